/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/memory.h"

#include <errno.h>
#include <linux/memfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/guest/abi.h"
#include "minivmm/kvm_abi.h"

static int make_memfd(uint64_t size, unsigned int flags, int *ret_fd, struct postcopy_error *err)
{
	int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	int rc;

	if (fd < 0)
		return fail_errno(err, errno == ENODEV ? -EOPNOTSUPP : -errno,
		                  "can't create a %smemfd", flags ? "hugetlb " : "");
	if (ftruncate(fd, (off_t)size)) {
		rc = fail_errno(err, -errno, "can't give the memfd %llu bytes",
		                (unsigned long long)size);
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

/* The flag's bit may mean another thing: what the kernel then can't do tells. */
static int check_no_direct_map(int fd, struct postcopy_error *err)
{
	void *at = mmap(NULL, GUEST_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int rc = 0;

	if (at == MAP_FAILED)
		return fail_errno(err, -errno, "can't map guest_memfd");
	/* EFAULT, or what madvise() makes of it */
	if (!madvise(at, GUEST_PAGE_BYTES, MADV_POPULATE_WRITE) ||
	    (errno != EFAULT && errno != EINVAL))
		rc = fail(err, -EOPNOTSUPP,
		          "--no-direct-map: this kernel takes the flag for something else: it can "
		          "still reach the memory by itself");
	munmap(at, GUEST_PAGE_BYTES);
	return rc;
}

static int make_guest_memfd(int vm_fd, uint64_t size, bool no_direct_map, int *ret_fd,
                            struct postcopy_error *err)
{
	uint64_t flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_create_guest_memfd create = {
		.size = size,
		.flags = flags | (no_direct_map ? GUEST_MEMFD_FLAG_NO_DIRECT_MAP : 0),
	};
	int offered = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS);

	if (offered < 0 || (offered & flags) != flags)
		return fail(err, -EOPNOTSUPP,
		            "this host's KVM lacks guest_memfd that can be mapped: flags MMAP and "
		            "INIT_SHARED, since Linux 6.18 (KVM_CAP_GUEST_MEMFD_FLAGS is %d)",
		            offered);
	*ret_fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &create);
	if (*ret_fd < 0 && errno == EINVAL && no_direct_map)
		return fail(err, -EOPNOTSUPP,
		            "--no-direct-map: guest_memfd stays in this kernel's direct map (the "
		            "series is not merged)");
	if (*ret_fd < 0)
		return fail_errno(err, -errno, "can't create a guest_memfd of %llu bytes",
		                  (unsigned long long)size);
	return no_direct_map ? check_no_direct_map(*ret_fd, err) : 0;
}

static int make_fd(struct memory *m, bool no_direct_map, int vm_fd, struct postcopy_error *err)
{
	switch (m->kind) {
	case POSTCOPY_MEMORY_MEMFD:
		return make_memfd(m->size, 0, &m->fd, err);
	case POSTCOPY_MEMORY_HUGETLB:
		return make_memfd(m->size,
		                  MFD_HUGETLB |
		                          (m->page_size == 1u << 30 ? MFD_HUGE_1GB : MFD_HUGE_2MB),
		                  &m->fd, err);
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return make_guest_memfd(vm_fd, m->size, no_direct_map, &m->fd, err);
	case POSTCOPY_MEMORY_ANONYMOUS:
		return 0;
	}
	return fail(err, -EINVAL, "unknown kind of memory %d", (int)m->kind);
}

int memory_new(enum postcopy_memory kind, uint64_t size, uint64_t page_size, bool no_direct_map,
               int vm_fd, struct memory *ret, struct postcopy_error *err)
{
	struct memory m = { .kind = kind, .size = size, .page_size = page_size, .fd = -1 };
	int flags = MAP_SHARED;
	int rc;

	if (size % page_size)
		return fail(err, -EINVAL,
		            "--memory of %llu bytes is not a multiple of the backend's %llu byte "
		            "pages",
		            (unsigned long long)size, (unsigned long long)page_size);
	rc = make_fd(&m, no_direct_map, vm_fd, err);
	if (rc)
		return rc;
	if (kind == POSTCOPY_MEMORY_ANONYMOUS)
		flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	m.addr = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, m.fd, 0);
	if (m.addr == MAP_FAILED) {
		rc = -errno;
		if (m.fd >= 0)
			close(m.fd);
		/* This reserves the pages, so that no vCPU can die for the lack of one. */
		if (kind == POSTCOPY_MEMORY_HUGETLB)
			return fail(err, rc == -ENOMEM ? -EOPNOTSUPP : rc,
			            "can't reserve %llu huge pages: write at least so many to "
			            "/sys/kernel/mm/hugepages/hugepages-%llukB/nr_hugepages",
			            (unsigned long long)(size / page_size),
			            (unsigned long long)page_size / 1024);
		return fail_errno(err, rc, "can't map %llu bytes of guest memory",
		                  (unsigned long long)size);
	}
	*ret = m;
	return 0;
}

struct postcopy_region memory_region(const struct memory *m)
{
	return (struct postcopy_region){
		.memory = m->kind,
		.flags = m->flags,
		.guest_phys_addr = m->guest_phys_addr,
		.size = m->size,
		.page_size = m->page_size,
		.host_addr = m->addr,
		.fd = m->fd,
		.fd_offset = 0,
	};
}
