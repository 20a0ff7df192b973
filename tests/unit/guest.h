/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory for tests, registered with a userfaultfd as libpostcopy does it: a memfd, anonymous
 * memory, or a guest_memfd where the kernel can trap it (in tests/vm). This process is the VMM.
 */
#ifndef TESTS_UNIT_GUEST_H
#define TESTS_UNIT_GUEST_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "libpostcopy/uffd.h"
#include "mem/memory.h"
#include "util/kernel_abi.h"

/* Where it is to be mapped, if that is free. */
#ifndef GUEST_ADDR
#define GUEST_ADDR NULL
#endif

struct guest {
	struct region_table table;
	int kvm, vm; /* guest_memfd: what it hangs on */
	int fd;
	int uffd;
	uint8_t *addr;
	size_t size;
};

static inline int guest_open_file(struct guest *g, enum postcopy_memory kind)
{
	struct kvm_create_guest_memfd create = {
		.size = g->size, .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
	};

	if (kind == POSTCOPY_MEMORY_MEMFD) {
		int fd = memfd_create("test-guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

		return fd < 0 || ftruncate(fd, (off_t)g->size) ? -1 : fd;
	}
	g->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	g->vm = g->kvm < 0 ? -1 : ioctl(g->kvm, KVM_CREATE_VM, 0);
	return g->vm < 0 ? -1 : ioctl(g->vm, KVM_CREATE_GUEST_MEMFD, &create);
}

static inline int guest_trap(struct guest *g, enum postcopy_memory kind, struct error *err)
{
	struct postcopy_region public = {
		.memory = kind, .fd = g->fd, .size = g->size, .page_size = UNIT_BYTES
	};
	struct region r = { .memory = kind, .size = g->size, .page_size = UNIT_BYTES };
	uint64_t features;
	int rc;

	g->addr = mmap(GUEST_ADDR, g->size, PROT_READ | PROT_WRITE,
	               g->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, g->fd, 0);
	if (g->addr == MAP_FAILED)
		return error_errno(err, -errno, "mmap");
	public.host_addr = g->addr;
	r.host_addr = (uintptr_t)g->addr;
	rc = uffd_open(&g->uffd, &features, err);
	if (!rc)
		rc = uffd_register(g->uffd, &public, 0, &r.uffd_mode, err);
	return rc ? rc : region_table_add(&g->table, &r, err);
}

static inline void guest_deinit(struct guest *g)
{
	/* The userfaultfd first: munmap() would wait for the reader of its event. */
	for (int *fds[] = { &g->uffd, &g->fd, &g->vm, &g->kvm }, **fd = fds; fd < fds + 4; fd++)
		if (**fd >= 0)
			close(**fd);
	if (g->addr && g->addr != MAP_FAILED)
		munmap(g->addr, g->size);
}

/* Return: false where this host can't; why is printed then. */
static inline bool guest_init(struct guest *g, enum postcopy_memory kind, size_t size)
{
	struct error err = ERROR_INIT;

	*g = (struct guest){ .size = size, .kvm = -1, .vm = -1, .fd = -1, .uffd = -1 };
	if (kind != POSTCOPY_MEMORY_ANONYMOUS)
		g->fd = guest_open_file(g, kind);
	if (g->fd < 0 && kind != POSTCOPY_MEMORY_ANONYMOUS)
		error_errno(&err, -errno, "can't create %s", memory_name(kind));
	else if (!guest_trap(g, kind, &err))
		return true;
	printf("%s\n", err.text);
	guest_deinit(g);
	return false;
}

/* The daemon's side of it. Return: NULL, and why is printed. */
static inline struct memory *guest_memory(const struct guest *g)
{
	struct error err = ERROR_INIT;
	struct memory *m;
	bool anonymous = g->table.regions[0].memory == POSTCOPY_MEMORY_ANONYMOUS;
	int fd = anonymous ? -1 : fcntl(g->fd, F_DUPFD_CLOEXEC, 0);

	if ((fd >= 0 || anonymous) &&
	    !memory_open_destination(&g->table.regions[0], 0, fd, &m, &err))
		return m;
	printf("%s\n", err.text);
	if (fd >= 0)
		close(fd);
	return NULL;
}

#endif
