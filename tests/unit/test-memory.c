/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/memory.h"
#include "util/guard.h"
#include "util/cleanup.h"

#define PAGES 64u
#define SIZE (PAGES * (size_t)UNIT_BYTES)
#define SIZE_2M (2ull << 20)

static struct region region_of(enum postcopy_memory memory, uint64_t size, uint64_t fd_offset)
{
	bool huge = memory == POSTCOPY_MEMORY_HUGETLB;
	struct region_table table = { 0 };
	struct region r = {
		.memory = memory,
		.size = size,
		.page_size = huge ? SIZE_2M : UNIT_BYTES,
		.fd_offset = fd_offset,
	};

	assert_int_equal(region_table_add(&table, &r, NULL), 0);
	return table.regions[0];
}

static int make_memfd(unsigned int flags, size_t size)
{
	int fd = memfd_create("test-memory", MFD_CLOEXEC | flags);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

static uint64_t blocks(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static struct memory *open_source(const struct region *r, int fd)
{
	struct error err = ERROR_INIT;
	struct memory *m;

	if (memory_open_source(r, 0, fd, &m, &err))
		fail_msg("%s", err.text);
	return m;
}

static struct memory *open_destination(const struct region *r, int fd)
{
	struct error err = ERROR_INIT;
	struct memory *m;

	if (memory_open_destination(r, 0, fd, &m, &err))
		fail_msg("%s", err.text);
	return m;
}

static void check_bytes(const uint8_t *p, uint8_t value, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != value)
			fail_msg("byte %zu is %#x, not %#x", i, p[i], value);
}

static void test_memfd_is_read_with_its_holes(void **state)
{
	int fd = make_memfd(MFD_ALLOW_SEALING, SIZE + UNIT_BYTES);
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, UNIT_BYTES);
	struct memory *m = open_source(&r, fd);
	uint8_t page[UNIT_BYTES], *buf = malloc(SIZE);
	uint64_t before;

	(void)state;
	assert_int_equal(memory_fd(m), fd);
	assert_true(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK);
	memset(page, 0xaa, sizeof page);
	/* The region begins at the file's second page. */
	assert_int_equal(pwrite(fd, page, sizeof page, 4 * UNIT_BYTES), sizeof page);
	before = blocks(fd);
	memset(buf, 0x55, SIZE);
	assert_int_equal(memory_read(m, 0, buf, SIZE), 0);
	check_bytes(buf, 0, 3 * UNIT_BYTES);
	check_bytes(buf + 3 * UNIT_BYTES, 0xaa, UNIT_BYTES);
	check_bytes(buf + 4 * UNIT_BYTES, 0, SIZE - 4 * UNIT_BYTES);
	assert_int_equal(memory_read(m, 3 * UNIT_BYTES, page, sizeof page), 0);
	check_bytes(page, 0xaa, sizeof page);
	/* The source's memory may be larger than its RAM: reading must not fill its holes. */
	assert_int_equal(blocks(fd), before);
	free(buf);
	assert_null(memory_free(m));
	/* Freed, it is closed. */
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void test_memfd_of_the_destination_is_filled_by_pwrite(void **state)
{
	int fd = make_memfd(MFD_ALLOW_SEALING, SIZE + UNIT_BYTES);
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, UNIT_BYTES);
	struct memory *m = open_destination(&r, fd);
	struct memory_filled filled = { 0 };
	uint8_t from[3 * UNIT_BYTES], to[5 * UNIT_BYTES];

	(void)state;
	assert_int_equal(memory_fill_method(m, false), MEMORY_FILL_WRITE);
	assert_int_equal(memory_fill_method(m, true), MEMORY_FILL_WRITE);
	memset(from, 0x77, sizeof from);
	assert_int_equal(memory_fill(m, 8 * UNIT_BYTES, from, sizeof from, false, &filled), 0);
	assert_int_equal(memory_fill(m, SIZE - UNIT_BYTES, from, UNIT_BYTES, true, &filled), 0);
	assert_int_equal(filled.write, 4);
	assert_int_equal(filled.memcpy, 0);
	assert_int_equal(pread(fd, to, sizeof to, 8 * UNIT_BYTES), sizeof to);
	check_bytes(to, 0, UNIT_BYTES);
	check_bytes(to + UNIT_BYTES, 0x77, 3 * UNIT_BYTES);
	check_bytes(to + 4 * UNIT_BYTES, 0, UNIT_BYTES);
	/* The file's last page. */
	assert_int_equal(pread(fd, to, UNIT_BYTES, SIZE), UNIT_BYTES);
	check_bytes(to, 0x77, UNIT_BYTES);
	/* Only the userfaultfd makes zero pages of shared memory. */
	assert_int_equal(memory_touch(m, 0), -EOPNOTSUPP);
	memory_free(m);
}

static void test_a_refused_write_is_an_error(void **state)
{
	int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);
	struct memory *m = open_destination(&r, fd);
	struct memory_filled filled = { 0 };
	uint8_t page[UNIT_BYTES] = { 1 };

	(void)state;
	/* Sealed against writing, which stands for any refusal. */
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	assert_int_equal(memory_fill(m, 0, page, sizeof page, true, &filled), -EPERM);
	assert_int_equal(filled.write, 0);
	memory_free(m);
}

/* Sealed, so that nobody can take pages away from under a migration. */
static void test_an_opened_memfd_can_not_shrink(void **state)
{
	int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);
	struct memory *m = open_source(&r, fd);

	(void)state;
	assert_int_equal(ftruncate(fd, UNIT_BYTES), -1);
	assert_int_equal(errno, EPERM);
	memory_free(m);
}

/* Refused on both sides, named by the region's index, and the descriptor stays the caller's. */
static void refuse_fd(enum postcopy_memory memory, int fd, bool source_too, int code,
                      const char *needle)
{
	bool huge = memory == POSTCOPY_MEMORY_HUGETLB;
	struct region r = region_of(memory, huge ? SIZE_2M : SIZE, 0);

	for (int source = 0; source <= source_too; source++) {
		struct error err = ERROR_INIT;
		struct memory *m = NULL;
		int rc = source ? memory_open_source(&r, 7, fd, &m, &err)
		                : memory_open_destination(&r, 7, fd, &m, &err);

		assert_int_equal(rc, code);
		assert_null(m);
		if (!strstr(err.text, "region 7") || !strstr(err.text, needle))
			fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
	}
	if (code != -EBADF)
		assert_true(fcntl(fd, F_GETFD) >= 0);
}

static void test_what_is_no_memfd_is_refused(void **state)
{
	char path[] = "/tmp/test-memory-XXXXXX";
	int regular = mkstemp(path);
	int pipes[2], closed, dir;

	(void)state;
	assert_true(regular >= 0);
	unlink(path);
	assert_int_equal(ftruncate(regular, SIZE), 0);
	refuse_fd(POSTCOPY_MEMORY_MEMFD, regular, true, -EINVAL, "is no memfd");
	refuse_fd(POSTCOPY_MEMORY_HUGETLB, regular, true, -EINVAL, "is no hugetlb");
	refuse_fd(POSTCOPY_MEMORY_GUEST_MEMFD, regular, true, -EINVAL, "KVM_CREATE_GUEST_MEMFD");
	assert_int_equal(pipe(pipes), 0);
	refuse_fd(POSTCOPY_MEMORY_MEMFD, pipes[0], true, -EINVAL, "is no memfd");
	refuse_fd(POSTCOPY_MEMORY_MEMFD, pipes[1], true, -EINVAL, "is no memfd");
	dir = open("/dev/shm", O_RDONLY | O_DIRECTORY);
	if (dir >= 0) {
		refuse_fd(POSTCOPY_MEMORY_MEMFD, dir, true, -EINVAL, "descriptor");
		close(dir);
	}
	closed = dup(regular);
	close(closed);
	refuse_fd(POSTCOPY_MEMORY_MEMFD, closed, true, -EBADF, "descriptor");
	refuse_fd(POSTCOPY_MEMORY_MEMFD, -1, true, -EBADF, "descriptor");
	close(pipes[0]);
	close(pipes[1]);
	close(regular);
}

static void test_a_memfd_unfit_for_its_region_is_refused(void **state)
{
	int small = make_memfd(MFD_ALLOW_SEALING, SIZE - UNIT_BYTES);
	int good = make_memfd(MFD_ALLOW_SEALING, SIZE);
	struct region beyond = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, UNIT_BYTES);
	struct region fits = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);
	struct error err = ERROR_INIT;
	struct memory *m;
	char path[64];
	int read_only;

	(void)state;
	refuse_fd(POSTCOPY_MEMORY_MEMFD, small, true, -EINVAL, "exceed the descriptor's");
	refuse_fd(POSTCOPY_MEMORY_HUGETLB, good, true, -EINVAL, "not hugetlbfs");
	assert_int_equal(memory_open_source(&beyond, 0, good, &m, &err), -EINVAL);
	assert_int_equal(memory_open_destination(&beyond, 0, good, &m, &err), -EINVAL);
	/* What is refused for its size is not sealed: it stays as its owner had it. */
	assert_int_equal(fcntl(small, F_GET_SEALS), 0);
	snprintf(path, sizeof path, "/proc/self/fd/%d", good);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(read_only >= 0);
	refuse_fd(POSTCOPY_MEMORY_MEMFD, read_only, false, -EINVAL, "reading and writing");
	assert_int_equal(memory_open_source(&fits, 0, read_only, &m, &err), 0);
	memory_free(m);
	close(good);
	close(small);
}

/*
 * Cloud Hypervisor's memfds, QEMU's files on a tmpfs. pwrite() would have made the file longer
 * again, over pages that had come and were gone: the guest would have read zeroes.
 */
static void test_a_file_that_can_be_truncated_is_never_made_longer(void **state)
{
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);
	int fd = make_memfd(0, SIZE);
	struct memory *m = open_destination(&r, fd);
	struct memory_filled filled = { 0 };
	uint8_t page[UNIT_BYTES];
	struct stat st;

	(void)state;
	assert_int_equal(guard_init(), 0); /* cmocka has a handler of its own */
	memset(page, 0x5a, sizeof page);
	assert_true(memory_may_shrink(m));
	assert_int_equal(memory_fill_method(m, false), MEMORY_FILL_MEMCPY);
	assert_int_equal(memory_fill(m, 0, page, sizeof page, false, &filled), 0);
	assert_int_equal(filled.memcpy, 1);
	assert_false(memory_is_cut_off(m, SIZE - UNIT_BYTES, UNIT_BYTES));
	assert_int_equal(ftruncate(fd, UNIT_BYTES), 0);
	assert_true(memory_is_cut_off(m, SIZE - UNIT_BYTES, UNIT_BYTES));
	assert_int_equal(memory_fill(m, SIZE - UNIT_BYTES, page, sizeof page, true, &filled), -EIO);
	assert_int_equal(memory_fill(m, 0, page, sizeof page, true, &filled), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, UNIT_BYTES);
	memory_free(m);
}

static void test_a_truncated_source_is_unreadable_there(void **state)
{
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);
	int fd = make_memfd(0, SIZE);
	struct memory *m = open_source(&r, fd);
	uint8_t page[UNIT_BYTES];

	(void)state;
	assert_int_equal(memory_read(m, SIZE - UNIT_BYTES, page, sizeof page), 0);
	assert_int_equal(ftruncate(fd, UNIT_BYTES), 0);
	assert_int_equal(memory_read(m, SIZE - UNIT_BYTES, page, sizeof page), -EFAULT);
	assert_int_equal(memory_read(m, 0, page, sizeof page), 0);
	memory_free(m);
}

/* It was found out when the first page had come, and the guest had nowhere to go any more. */
static void test_a_memfd_that_no_page_can_come_to_is_refused(void **state)
{
	static const int seals[] = { F_SEAL_WRITE, F_SEAL_FUTURE_WRITE,
		                     F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL };

	(void)state;
	for (size_t i = 0; i < sizeof seals / sizeof *seals; i++) {
		int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
		struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);

		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
		refuse_fd(POSTCOPY_MEMORY_MEMFD, fd, false, -EINVAL, "no page can come");
		/* A source is only read. */
		memory_free(open_source(&r, fd));
	}
}

static void test_sealed_already_is_fine(void **state)
{
	int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
	struct region r = region_of(POSTCOPY_MEMORY_MEMFD, SIZE, 0);

	(void)state;
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
	memory_free(open_source(&r, fd));
}

static void test_anonymous_memory_is_read_through_proc_mem(void **state)
{
	uint8_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	struct region r = region_of(POSTCOPY_MEMORY_ANONYMOUS, SIZE, (uint64_t)(uintptr_t)p);
	struct memory *m = open_source(&r, fd);
	uint8_t *buf = malloc(SIZE);

	(void)state;
	memset(p + 5 * UNIT_BYTES, 0x3c, UNIT_BYTES);
	memset(buf, 0x55, SIZE);
	assert_int_equal(memory_read(m, 0, buf, SIZE), 0);
	check_bytes(buf, 0, 5 * UNIT_BYTES);
	check_bytes(buf + 5 * UNIT_BYTES, 0x3c, UNIT_BYTES);
	check_bytes(buf + 6 * UNIT_BYTES, 0, SIZE - 6 * UNIT_BYTES);
	/* Gone from the VMM: an error, and no zeroes. */
	munmap(p, SIZE);
	assert_true(memory_read(m, 0, buf, UNIT_BYTES) < 0);
	free(buf);
	memory_free(m);
}

static void test_anonymous_memory_is_filled_by_nobody_here(void **state)
{
	struct region r = region_of(POSTCOPY_MEMORY_ANONYMOUS, SIZE, 0);
	struct memory *m = open_destination(&r, -1);
	struct memory_filled filled = { 0 };
	uint8_t page[UNIT_BYTES] = { 0 };

	(void)state;
	assert_int_equal(memory_fd(m), -1);
	assert_int_equal(memory_fill_method(m, false), MEMORY_FILL_COPY);
	assert_int_equal(memory_fill_method(m, true), MEMORY_FILL_COPY);
	assert_int_equal(memory_fill(m, 0, page, sizeof page, true, &filled), -EOPNOTSUPP);
	assert_int_equal(memory_touch(m, 0), -EOPNOTSUPP);
	memory_free(m);
}

static void test_what_is_no_proc_mem_is_refused(void **state)
{
	struct region r = region_of(POSTCOPY_MEMORY_ANONYMOUS, SIZE, 0);
	static const char *const paths[] = { "/proc/self/maps", "/dev/zero", "/proc/self/status" };
	struct memory *m;

	(void)state;
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
		_cleanup_close_ int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
		struct error err = ERROR_INIT;

		assert_true(fd >= 0);
		assert_int_equal(memory_open_source(&r, 3, fd, &m, &err), -EINVAL);
		assert_non_null(strstr(err.text, "region 3"));
	}
}

/* A memfd of two huge pages, or -1 and the reason printed. */
static int huge_memfd(void)
{
	int fd = memfd_create("test-memory",
	                      MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB);
	void *p = MAP_FAILED;

	/* mmap() reserves the pages or says that there are none. */
	if (fd >= 0 && !ftruncate(fd, 2 * SIZE_2M))
		p = mmap(NULL, 2 * SIZE_2M, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED) {
		munmap(p, 2 * SIZE_2M);
		return fd;
	}
	print_message("skipped: no two free 2 MiB pages (vm.nr_hugepages): %s\n", strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static void test_hugetlb_is_read_with_its_holes(void **state)
{
	int fd = huge_memfd();
	struct region r = region_of(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, 0);
	uint8_t page[UNIT_BYTES];
	struct memory *m;

	(void)state;
	if (fd < 0)
		skip();
	m = open_source(&r, fd);
	memset(page, 1, sizeof page);
	assert_int_equal(memory_read(m, SIZE_2M + UNIT_BYTES, page, sizeof page), 0);
	check_bytes(page, 0, sizeof page);
	assert_int_equal(blocks(fd), 0);
	memory_free(m);
}

/* Whether a mapping of that name is left out of core dumps; fails where there is none. */
static bool is_in_no_core(const char *name)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	char line[512];
	bool ours = false, left_out = false, found = false;

	assert_non_null(smaps);
	while (fgets(line, sizeof line, smaps)) {
		if (strstr(line, name))
			ours = found = true;
		if (!ours || strncmp(line, "VmFlags:", 8))
			continue;
		left_out = strstr(line, " dd");
		ours = false;
	}
	fclose(smaps);
	assert_true(found);
	return left_out;
}

static void test_hugetlb_is_filled_by_memcpy_and_touched(void **state)
{
	int fd = huge_memfd();
	struct region r = region_of(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, 0);
	struct memory_filled filled = { 0 };
	uint8_t page[UNIT_BYTES];
	struct memory *m;

	(void)state;
	if (fd < 0)
		skip();
	m = open_destination(&r, fd);
	assert_int_equal(memory_fill_method(m, false), MEMORY_FILL_MEMCPY);
	/* A guest of hugetlb was in a core of the daemon, all of it. */
	assert_true(is_in_no_core("test-memory"));
	memset(page, 0x42, sizeof page);
	assert_int_equal(
	        memory_fill(m, SIZE_2M + 3 * UNIT_BYTES, page, sizeof page, false, &filled), 0);
	assert_int_equal(filled.memcpy, 1);
	assert_int_equal(blocks(fd), SIZE_2M / 512);
	/* What is there stays, what is not is made. */
	assert_int_equal(memory_touch(m, SIZE_2M), 0);
	assert_int_equal(memory_touch(m, 0), 0);
	assert_int_equal(blocks(fd), 2 * SIZE_2M / 512);
	memset(page, 0, sizeof page);
	assert_int_equal(memory_read(m, SIZE_2M + 3 * UNIT_BYTES, page, sizeof page), 0);
	check_bytes(page, 0x42, sizeof page);
	assert_int_equal(memory_read(m, 0, page, sizeof page), 0);
	check_bytes(page, 0, sizeof page);
	memory_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memfd_is_read_with_its_holes),
		cmocka_unit_test(test_memfd_of_the_destination_is_filled_by_pwrite),
		cmocka_unit_test(test_a_refused_write_is_an_error),
		cmocka_unit_test(test_an_opened_memfd_can_not_shrink),
		cmocka_unit_test(test_what_is_no_memfd_is_refused),
		cmocka_unit_test(test_a_memfd_unfit_for_its_region_is_refused),
		cmocka_unit_test(test_a_file_that_can_be_truncated_is_never_made_longer),
		cmocka_unit_test(test_a_truncated_source_is_unreadable_there),
		cmocka_unit_test(test_a_memfd_that_no_page_can_come_to_is_refused),
		cmocka_unit_test(test_sealed_already_is_fine),
		cmocka_unit_test(test_anonymous_memory_is_read_through_proc_mem),
		cmocka_unit_test(test_anonymous_memory_is_filled_by_nobody_here),
		cmocka_unit_test(test_what_is_no_proc_mem_is_refused),
		cmocka_unit_test(test_hugetlb_is_read_with_its_holes),
		cmocka_unit_test(test_hugetlb_is_filled_by_memcpy_and_touched),
	};

	return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
