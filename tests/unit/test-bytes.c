/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "util/bytes.h"

static void test_put_writes_little_endian_and_returns_the_next_position(void **state)
{
	static const uint8_t expected[] = {
		0x22, 0x11, 0x66, 0x55, 0x44, 0x33, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77,
	};
	uint8_t buf[sizeof expected];
	uint8_t *p = buf;

	(void)state;
	p = put_u16(p, 0x1122);
	p = put_u32(p, 0x33445566);
	p = put_u64(p, 0x778899aabbccddee);
	assert_ptr_equal(p, buf + sizeof buf);
	assert_memory_equal(buf, expected, sizeof expected);
}

static void test_reader_returns_what_was_put(void **state)
{
	uint8_t buf[17];
	uint8_t *p = buf;
	struct reader r;

	(void)state;
	p = put_u64(p, UINT64_MAX - 1);
	p = put_u32(p, 0xdeadbeef);
	p = put_u16(p, 0xcafe);
	memcpy(p, "abc", 3);
	r = reader_init(buf, sizeof buf);
	assert_true(get_u64(&r) == UINT64_MAX - 1);
	assert_int_equal(get_u32(&r), 0xdeadbeef);
	assert_int_equal(get_u16(&r), 0xcafe);
	assert_false(reader_done(&r));
	assert_memory_equal(get_bytes(&r, 3), "abc", 3);
	assert_true(reader_done(&r));
}

static void test_reader_stays_failed_after_a_field_that_is_not_there(void **state)
{
	static const uint8_t buf[] = { 1, 2, 3 };
	struct reader r = reader_init(buf, sizeof buf);

	(void)state;
	assert_int_equal(get_u32(&r), 0);
	/* Two bytes are left, but what follows a missing field can't be trusted. */
	assert_int_equal(get_u16(&r), 0);
	assert_int_equal(get_u64(&r), 0);
	assert_null(get_bytes(&r, 1));
	assert_null(get_bytes(&r, 0));
	assert_false(reader_done(&r));
}

static void test_reader_is_not_done_while_bytes_are_left(void **state)
{
	static const uint8_t buf[] = { 1, 0, 9 };
	struct reader r = reader_init(buf, sizeof buf);

	(void)state;
	assert_int_equal(get_u16(&r), 1);
	assert_false(reader_done(&r));
	assert_non_null(get_bytes(&r, 1));
	assert_true(reader_done(&r));
}

static void test_each_field_fails_on_one_byte_too_few(void **state)
{
	static const uint8_t buf[8];
	struct reader r;

	(void)state;
	r = reader_init(buf, 1);
	get_u16(&r);
	assert_false(reader_done(&r));
	r = reader_init(buf, 3);
	get_u32(&r);
	assert_false(reader_done(&r));
	r = reader_init(buf, 7);
	get_u64(&r);
	assert_false(reader_done(&r));
}

static void test_a_length_near_the_top_does_not_wrap(void **state)
{
	static const uint8_t buf[4];
	struct reader r = reader_init(buf, sizeof buf);

	(void)state;
	assert_int_equal(get_u16(&r), 0);
	assert_null(get_bytes(&r, SIZE_MAX));
	assert_false(reader_done(&r));
}

static void test_empty_input_is_done_at_once(void **state)
{
	struct reader r = reader_init("", 0);

	(void)state;
	assert_true(reader_done(&r));
	assert_int_equal(get_u16(&r), 0);
	assert_false(reader_done(&r));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put_writes_little_endian_and_returns_the_next_position),
		cmocka_unit_test(test_reader_returns_what_was_put),
		cmocka_unit_test(test_reader_stays_failed_after_a_field_that_is_not_there),
		cmocka_unit_test(test_reader_is_not_done_while_bytes_are_left),
		cmocka_unit_test(test_each_field_fails_on_one_byte_too_few),
		cmocka_unit_test(test_a_length_near_the_top_does_not_wrap),
		cmocka_unit_test(test_empty_input_is_done_at_once),
	};

	return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
