/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mem/descriptor.h"

static void is(int fd, enum descriptor_kind kind)
{
	char name[96];

	assert_true(fd >= 0);
	descriptor_name(fd, name, sizeof name);
	if (descriptor_identify(fd) != kind)
		fail_msg("%s is taken for kind %d, not %d", name, descriptor_identify(fd), kind);
	descriptor_discard(&fd);
	assert_int_equal(fd, -1);
}

static void test_each_kind_is_known(void **state)
{
	int pair[2], uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int huge = memfd_create("test", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);

	(void)state;
	is(memfd_create("test", MFD_CLOEXEC), DESCRIPTOR_SHMEM);
	is(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING), DESCRIPTOR_SHMEM);
	is(open("/proc/self/mem", O_RDONLY | O_CLOEXEC), DESCRIPTOR_PROC_MEM);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	is(pair[0], DESCRIPTOR_UNIX_SOCKET);
	close(pair[1]);
	if (huge >= 0)
		is(huge, DESCRIPTOR_HUGETLB);
	if (uffd >= 0)
		is(uffd, DESCRIPTOR_USERFAULTFD);
	else
		print_message("not tried: a userfaultfd, which this process may not create\n");
}

/* One of these names made a stranger's bytes the kernel's events. */
static void test_a_name_proves_nothing(void **state)
{
	static const char *const names[] = { "[userfaultfd]", "anon_inode:[userfaultfd]",
		                             "anon_inode:[kvm-gmem]", "/[kvm-gmem]", "1/mem" };
	char dir[] = "/tmp/test-descriptor-XXXXXX", path[64];

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		is(memfd_create(names[i], MFD_CLOEXEC), DESCRIPTOR_SHMEM);
	/* A file, where a process's memory would be. */
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/1", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof path, "%s/1/mem", dir);
	is(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), DESCRIPTOR_OTHER);
	unlink(path);
	snprintf(path, sizeof path, "%s/[kvm-gmem]", dir);
	is(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), DESCRIPTOR_OTHER);
	unlink(path);
	snprintf(path, sizeof path, "%s/1", dir);
	rmdir(path);
	rmdir(dir);
}

static void test_others_are_kept_away_from(void **state)
{
	static const char *const paths[] = { "/dev/null", "/proc/self/maps", "/proc/self", "/" };

	(void)state;
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
		is(open(paths[i], O_RDONLY | O_CLOEXEC), DESCRIPTOR_OTHER);
	/* Its close() may wait for as long as its owner has said: SO_LINGER. */
	is(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), DESCRIPTOR_OTHER);
	assert_int_equal(descriptor_identify(-1), DESCRIPTOR_OTHER);
}

/* By another process, and yet it is this one's that is closed. */
static void test_what_is_strange_is_closed_all_the_same(void **state)
{
	struct pollfd end = { .events = POLLIN };
	int pipes[2];

	(void)state;
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	end.fd = pipes[0];
	descriptor_discard(&pipes[1]);
	assert_int_equal(pipes[1], -1);
	assert_int_equal(poll(&end, 1, 10000), 1);
	assert_int_equal(read(pipes[0], &(char){ 0 }, 1), 0);
	descriptor_discard(&pipes[1]);
	close(pipes[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_kind_is_known),
		cmocka_unit_test(test_a_name_proves_nothing),
		cmocka_unit_test(test_others_are_kept_away_from),
		cmocka_unit_test(test_what_is_strange_is_closed_all_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
