/* SPDX-License-Identifier: Apache-2.0 */
/* What a killed process leaves: at whichever byte its write stopped, the next one reads a whole
 * version, and never an older one than the last that was whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "util/cleanup.h"
#include "util/record.h"

static const char first[] = "the first version", second[] = "the second, which is longer";

static int copy_of(int fd)
{
	int copy = memfd_create("copy", MFD_CLOEXEC);
	struct stat st;
	char *buf;

	assert_int_equal(fstat(fd, &st), 0);
	buf = malloc((size_t)st.st_size + 1);
	assert_int_equal(pread(fd, buf, (size_t)st.st_size, 0), st.st_size);
	assert_int_equal(pwrite(copy, buf, (size_t)st.st_size, 0), st.st_size);
	free(buf);
	return copy;
}

/* What another process would read of it; NULL for nothing. */
static const char *read_back(int fd, struct record *ret)
{
	static uint8_t data[RECORD_BYTES_MAX];
	struct error err = ERROR_INIT;
	struct record r;
	size_t len;

	memset(data, 0, sizeof data);
	if (record_adopt(&r, copy_of(fd), data, &len, &err)) {
		assert_true(*err.text);
		return NULL;
	}
	if (ret)
		*ret = r;
	else
		record_deinit(&r);
	return (const char *)data;
}

static void test_the_newest_version_is_read(void **state)
{
	struct record r, next;

	(void)state;
	assert_int_equal(record_init(&r), 0);
	assert_null(read_back(r.fd, NULL));
	for (unsigned int i = 0; i < 10; i++) {
		char text[32];

		snprintf(text, sizeof text, "version %u", i);
		assert_int_equal(record_write(&r, text, sizeof text), 0);
		assert_string_equal(read_back(r.fd, NULL), text);
	}
	/* The next process writes on: its first version is newer than all before. */
	assert_string_equal(read_back(r.fd, &next), "version 9");
	assert_int_equal(record_write(&next, first, sizeof first), 0);
	assert_string_equal(read_back(next.fd, NULL), first);
	record_deinit(&next);
	record_deinit(&r);
}

/* Each prefix of a write, over what was in the slot before. */
static void test_torn_write_leaves_the_version_before(void **state)
{
	struct record before, after;
	struct stat st;
	char *content;

	(void)state;
	assert_int_equal(record_init(&before), 0);
	assert_int_equal(record_write(&before, "oldest", 7), 0);
	assert_int_equal(record_write(&before, first, sizeof first), 0);
	after = (struct record){ .fd = copy_of(before.fd), .sequence = before.sequence };
	assert_int_equal(record_write(&after, second, sizeof second), 0);
	assert_int_equal(fstat(after.fd, &st), 0);
	content = malloc((size_t)st.st_size);
	assert_int_equal(pread(after.fd, content, (size_t)st.st_size, 0), st.st_size);
	for (off_t len = 0; len <= st.st_size; len++) {
		int torn = copy_of(before.fd);
		const char *seen;

		/* The slots lie one after the other: what is the same is no matter. */
		assert_int_equal(pwrite(torn, content, (size_t)len, 0), len);
		seen = read_back(torn, NULL);
		assert_non_null(seen);
		assert_true(!strcmp(seen, first) || !strcmp(seen, second));
		if (len == st.st_size)
			assert_string_equal(seen, second);
		close(torn);
		/* Between the slots nothing is ever written. */
		if (len == 200)
			len = (off_t)RECORD_BYTES_MAX;
	}
	free(content);
	record_deinit(&after);
	record_deinit(&before);
}

static void test_flipped_bit_is_seen(void **state)
{
	struct record r;

	(void)state;
	assert_int_equal(record_init(&r), 0);
	assert_int_equal(record_write(&r, first, sizeof first), 0);
	assert_int_equal(record_write(&r, second, sizeof second), 0);
	/* The second version is in the slot at 0: sequence, length, checksum, content. */
	for (off_t at = 8; at < 32 + (off_t)sizeof second; at++) {
		int broken = copy_of(r.fd);
		char byte;

		assert_int_equal(pread(broken, &byte, 1, at), 1);
		byte ^= 0x10;
		assert_int_equal(pwrite(broken, &byte, 1, at), 1);
		assert_string_equal(read_back(broken, NULL), first);
		close(broken);
	}
	record_deinit(&r);
}

static void test_other_layout_is_told_from_nothing(void **state)
{
	static uint8_t data[RECORD_BYTES_MAX];
	struct error err = ERROR_INIT;
	struct record r, next;
	size_t len;

	(void)state;
	assert_int_equal(record_init(&r), 0);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -ENODATA);
	assert_int_equal(pwrite(r.fd, "pstcpr99", 8, 0), 8);
	assert_int_equal(ftruncate(r.fd, 4096), 0);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -EPROTO);
	assert_non_null(strstr(err.text, "layout"));
	record_deinit(&r);
}

/* Whoever takes what he can't read for nothing throws away what a guest hangs on. */
static void test_nothing_whole_is_told_from_nothing(void **state)
{
	static uint8_t data[RECORD_BYTES_MAX];
	const off_t slots[] = { 0, 32 + RECORD_BYTES_MAX };
	struct error err = ERROR_INIT;
	struct record r, next;
	int ends[2];
	size_t len;

	(void)state;
	assert_int_equal(record_init(&r), 0);
	assert_int_equal(record_write(&r, first, sizeof first), 0);
	assert_int_equal(record_write(&r, second, sizeof second), 0);
	for (unsigned int i = 0; i < 2; i++)
		assert_int_equal(pwrite(r.fd, "?", 1, slots[i] + 24), 1);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -EPROTO);
	assert_non_null(strstr(err.text, "whole"));
	/* A length that is no slot's of ours; and a write that stopped within its head. */
	for (unsigned int i = 0; i < 2; i++)
		assert_int_equal(pwrite(r.fd, "\xff\xff\xff", 3, slots[i] + 16), 3);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -EPROTO);
	assert_int_equal(ftruncate(r.fd, 12), 0);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -EPROTO);
	/* Zeroes are nothing. */
	assert_int_equal(ftruncate(r.fd, 0), 0);
	assert_int_equal(ftruncate(r.fd, slots[1] + 100), 0);
	assert_int_equal(record_adopt(&next, r.fd, data, &len, &err), -ENODATA);
	record_deinit(&r);

	assert_int_equal(pipe(ends), 0);
	assert_int_equal(record_adopt(&next, ends[0], data, &len, &err), -ESPIPE);
	close(ends[0]);
	close(ends[1]);
}

static void test_too_much_is_refused_and_changes_nothing(void **state)
{
	static char large[RECORD_BYTES_MAX + 1];
	struct record r;

	(void)state;
	assert_int_equal(record_init(&r), 0);
	assert_int_equal(record_write(&r, first, sizeof first), 0);
	assert_int_equal(record_write(&r, large, sizeof large), -EMSGSIZE);
	assert_string_equal(read_back(r.fd, NULL), first);
	memset(large, 'x', sizeof large);
	assert_int_equal(record_write(&r, large, RECORD_BYTES_MAX), 0);
	assert_memory_equal(read_back(r.fd, NULL), large, RECORD_BYTES_MAX);
	record_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_newest_version_is_read),
		cmocka_unit_test(test_torn_write_leaves_the_version_before),
		cmocka_unit_test(test_flipped_bit_is_seen),
		cmocka_unit_test(test_other_layout_is_told_from_nothing),
		cmocka_unit_test(test_nothing_whole_is_told_from_nothing),
		cmocka_unit_test(test_too_much_is_refused_and_changes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
