/* SPDX-License-Identifier: Apache-2.0 */
/* A block's host address against /proc/PID/maps. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "qemu/mapping.h"
#include "util/pidfd.h"

#define SIZE (1u << 20)

static const char maps[] =
        "7ff45ffff000-7ff460fff000 rw-s 00000000 00:1b 157                        /dev/shm/a\n"
        "7ff460fff000-7ff467fff000 rw-s 01000000 00:1b 157                        /dev/shm/a\n"
        "7ff468000000-7ff468001000 rw-p 00000000 00:1b 158                        /dev/shm/b c\n"
        "7ff468001000-7ff468002000 rw-p 00000000 00:00 0 \n"
        "7ff468002000-7ff468003000 rw-p 00000000 00:00 0 \n"
        "7ff468003000-7ff468004000 rw-s 00005000 00:1b 159                        /dev/shm/d\n"
        "7ff468004000-7ff468005000 rw-s 00000000 00:1b 159                        /dev/shm/d\n";

static int search(uint64_t addr, uint64_t size, struct mapping *ret)
{
	FILE *f = fmemopen((void *)maps, strlen(maps), "r");
	int rc = mapping_search(f, addr, size, ret);

	fclose(f);
	return rc;
}

static void a_block_may_be_several_pieces_of_one_file(void **state)
{
	struct mapping m;

	(void)state;
	assert_int_equal(search(0x7ff45ffff000, 128 << 20, &m), 0);
	assert_true(m.is_shared);
	assert_int_equal(m.dev, makedev(0, 0x1b));
	assert_int_equal(m.ino, 157);
	assert_int_equal(m.offset, 0);
	assert_string_equal(m.path, "/dev/shm/a");
	assert_int_equal(search(0x7ff460000000, 1 << 20, &m), 0);
	assert_int_equal(m.offset, 0x1000);
}

static void what_is_not_one_mapping_is_none(void **state)
{
	struct mapping m;

	(void)state;
	assert_int_equal(search(0x7ff467ffe000, 8192, &m), -ENOENT);
	assert_int_equal(search(0x7ff45fffe000, 8192, &m), -ENOENT);
	assert_int_equal(search(0x7ff469000000, 4096, &m), -ENOENT);
	assert_int_equal(search(0x7ff468000000, 8192, &m), -EXDEV);
	assert_int_equal(search(0x7ff468003000, 8192, &m), -EXDEV);
	assert_int_equal(search(0x7ff468001000, 8192, &m), 0);
	assert_false(m.is_shared);
	assert_int_equal(search(0x7ff468000000, 4096, &m), 0);
	assert_string_equal(m.path, "/dev/shm/b c");
}

/* Of this process, which stands for QEMU. */
static void a_mapped_file_is_opened_and_others_that_have_it_are_seen(void **state)
{
	int fd = memfd_create("ram", MFD_CLOEXEC), copy, ready[2], status;
	char *addr = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), name[32];
	struct error err = ERROR_INIT;
	struct stat a, b;
	struct mapping m;
	int self = pidfd_of(getpid());
	pid_t child;

	(void)state;
	assert_int_equal(ftruncate(fd, SIZE), 0);
	assert_int_equal(mapping_find(getpid(), (uintptr_t)addr, SIZE, &m, &err), 0);
	copy = mapping_open(getpid(), self, &m, &err);
	assert_true(copy >= 0);
	/* Its own: a file that is open for reading alone stays so, whatever its mode. */
	assert_int_equal(fcntl(copy, F_GETFL) & O_ACCMODE, O_RDWR);
	assert_true(!fstat(fd, &a) && !fstat(copy, &b) && a.st_ino == b.st_ino);
	assert_int_equal(mapping_find_other(getpid(), &m, name), 0);
	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (!child) {
		char c;

		/* It has inherited the mapping, and ends when we close the pipe. */
		close(ready[1]);
		_exit(read(ready[0], &c, 1) != 0);
	}
	close(ready[0]);
	assert_int_equal(mapping_find_other(getpid(), &m, name), child);
	assert_string_equal(name, "test-mapping");
	close(ready[1]);
	assert_int_equal(waitpid(child, &status, 0), child);
	close(copy);
	close(fd);
	assert_int_equal(mapping_open(getpid(), self, &m, &err), -ENOENT);
	munmap(addr, SIZE);
	assert_int_equal(mapping_find(getpid(), (uintptr_t)addr, SIZE, &m, &err), -ENOENT);
}

static void a_descriptor_is_found_by_what_it_is(void **state)
{
	int fd = memfd_create("somebody", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(descriptor_number(getpid(), "/memfd:somebody (deleted)", false), fd);
	assert_int_equal(descriptor_number(getpid(), "/memfd:some", true), fd);
	assert_int_equal(descriptor_number(getpid(), "/memfd:some", false), -ENOENT);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_block_may_be_several_pieces_of_one_file),
		cmocka_unit_test(what_is_not_one_mapping_is_none),
		cmocka_unit_test(a_mapped_file_is_opened_and_others_that_have_it_are_seen),
		cmocka_unit_test(a_descriptor_is_found_by_what_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
