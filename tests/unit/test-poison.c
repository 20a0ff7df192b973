/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A source VMM some of whose guest is poisoned, on the public header; this process is the daemon,
 * too. It lost what was lost a second time: the next host had zeroes in its place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "libpostcopy/vmm_wire.h"
#include "stream/poison_list.h"
#include "util/kernel_abi.h"

#define PAGES 64u
#define SIZE (PAGES * (size_t)UNIT_BYTES)

static char dir[] = "/tmp/test-poison-XXXXXX";
static char path[64];

/* What the daemon was told, until PAUSED. */
struct daemon {
	int listen_fd;
	pthread_t thread;
	int poison_fd; /* -1: nothing */
	bool paused;
};

static void *daemon_main(void *arg)
{
	struct daemon *d = arg;
	struct error err = ERROR_INIT;
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTACHED };
	int sock = accept(d->listen_fd, NULL, NULL);

	while (!d->paused) {
		int fds[VMM_WIRE_FDS_MAX];
		size_t n;

		if (vmm_wire_recv(sock, 0, &msg, fds, &n, &err))
			break;
		if (msg.type == VMM_WIRE_POISONED)
			d->poison_fd = fds[--n];
		d->paused = msg.type == VMM_WIRE_PAUSED;
		while (n)
			close(fds[--n]);
		if (msg.type != VMM_WIRE_ATTACH)
			continue;
		msg = (struct vmm_wire_msg){ .type = VMM_WIRE_ATTACHED };
		vmm_wire_send(sock, &msg, NULL, 0);
		msg.type = VMM_WIRE_PAUSE;
		vmm_wire_send(sock, &msg, NULL, 0);
	}
	close(sock);
	return NULL;
}

static void start_daemon(struct daemon *d)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	*d = (struct daemon){ .poison_fd = -1 };
	memcpy(addr.sun_path, path, strlen(path) + 1);
	unlink(path);
	d->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(d->listen_fd, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(d->listen_fd, 1), 0);
	assert_int_equal(pthread_create(&d->thread, NULL, daemon_main, d), 0);
}

/* A whole life of a source VMM up to PAUSED. */
static void attach_and_pause(struct daemon *d, struct postcopy_region *regions, size_t n)
{
	struct postcopy_error err;
	struct postcopy_event event;
	struct postcopy *p;

	start_daemon(d);
	if (postcopy_source_attach(path, "vm1", regions, n, &p, &err))
		fail_msg("%s", err.text);
	if (postcopy_next_event(p, 10000, &event, &err))
		fail_msg("%s", err.text);
	assert_int_equal(event.type, POSTCOPY_EVENT_PAUSE);
	if (postcopy_source_paused(p, "state", 5, &err))
		fail_msg("%s", err.text);
	pthread_join(d->thread, NULL);
	assert_true(d->paused);
	close(d->listen_fd);
	postcopy_detach(p);
}

/* Guest memory of which [first, end) is poisoned. Return: false where this kernel can't. */
static bool make_region(struct postcopy_region *r, uint64_t guest_phys_addr, uint64_t first,
                        uint64_t end)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int rc;

	*r = (struct postcopy_region){
		.memory = POSTCOPY_MEMORY_MEMFD,
		.fd = memfd_create("test-poison", MFD_CLOEXEC | MFD_ALLOW_SEALING),
		.guest_phys_addr = guest_phys_addr,
		.size = SIZE,
		.page_size = UNIT_BYTES,
	};
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	r->host_addr = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) {
		print_message("skipped: userfaultfd: %s\n", strerror(errno));
		return false;
	}
	struct uffdio_register reg = { .range = { (uintptr_t)r->host_addr, SIZE },
		                       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_poison poison = {
		.range = { (uintptr_t)r->host_addr + first * UNIT_BYTES,
		           (end - first) * UNIT_BYTES },
	};

	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	rc = end > first ? ioctl(uffd, UFFDIO_POISON, &poison) : 0;
	if (rc)
		print_message("skipped: UFFDIO_POISON: %s\n", strerror(errno));
	/* As after a migration: nobody watches any more. */
	assert_int_equal(ioctl(uffd, UFFDIO_UNREGISTER, &reg.range), 0);
	close(uffd);
	memset(r->host_addr, 1, first * UNIT_BYTES);
	return !rc;
}

static void test_what_is_poisoned_is_told_before_paused(void **state)
{
	struct postcopy_region regions[2];
	struct region_table table = { 0 };
	struct error err = ERROR_INIT;
	struct poison_list *list;
	struct daemon d;

	(void)state;
	if (!make_region(&regions[0], 0, 3, 9) || !make_region(&regions[1], SIZE, 0, 1))
		skip();
	for (size_t i = 0; i < 2; i++) {
		struct region r = { .memory = POSTCOPY_MEMORY_MEMFD,
			            .guest_phys_addr = regions[i].guest_phys_addr,
			            .size = SIZE,
			            .page_size = UNIT_BYTES };

		assert_int_equal(region_table_add(&table, &r, &err), 0);
	}
	attach_and_pause(&d, regions, 2);
	if (d.poison_fd < 0)
		fail_msg("nothing is poisoned, the VMM says");
	if (poison_list_read(&table, d.poison_fd, &list, &err))
		fail_msg("%s", err.text);
	assert_int_equal(poison_list_units(list), 7);
	assert_int_equal(poison_list_mask(list, 0, 0), 0x1f8);
	assert_int_equal(poison_list_mask(list, 1, 0), 1);
	poison_list_free(list);
	close(d.poison_fd);
}

static void test_a_sound_guest_tells_nothing(void **state)
{
	struct postcopy_region region;
	struct daemon d;

	(void)state;
	if (!make_region(&region, 0, 5, 5))
		skip();
	attach_and_pause(&d, &region, 1);
	assert_int_equal(d.poison_fd, -1);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof path, "%s/vmm", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_poisoned_is_told_before_paused),
		cmocka_unit_test(test_a_sound_guest_tells_nothing),
	};

	return cmocka_run_group_tests_name("poison", tests, setup, teardown);
}
