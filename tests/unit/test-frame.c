/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "stream/frame.h"
#include "util/bytes.h"

/* The lengths that each type may have, as frame.h says it. */
static const struct {
	uint16_t type;
	uint32_t min, max;
} lengths[] = {
	{ FRAME_HELLO, 0, FRAME_HELLO_MAX },
	{ FRAME_HELLO_REPLY, 0, FRAME_HELLO_MAX },
	{ FRAME_ERROR, 4, FRAME_ERROR_MAX },
	{ FRAME_GET, 24, 24 },
	{ FRAME_PAGES, 40, 40 + 64 * 4096 },
	{ FRAME_SWITCHOVER, 0, 0 },
	{ FRAME_VMSTATE, 24, 24 },
	{ FRAME_VMSTATE_DATA, 1, 256 * 1024 },
	{ FRAME_RESUMED, 0, 0 },
	{ FRAME_COMPLETE, 0, 0 },
	{ FRAME_COMPLETE_ACK, 0, 0 },
	{ FRAME_ABORT, 0, FRAME_ABORT_MAX },
	{ FRAME_ABORT_ACK, 0, 0 },
	{ FRAME_PING, 0, 0 },
	{ FRAME_PONG, 0, 0 },
	{ FRAME_PROBE, 64 * 1024, 64 * 1024 },
	{ FRAME_PROBE_REPLY, 64 * 1024, 64 * 1024 },
	{ FRAME_PROOF, 32, 32 },
	{ FRAME_TRACK, 0, 0 },
	{ FRAME_TRACKED, 4, FRAME_ERROR_MAX },
	{ FRAME_SYNC, 0, 0 },
	{ FRAME_DIRTY, 16, 256 * 1024 },
	{ FRAME_VMSTATE_AHEAD, 1, 256 * 1024 },
};
#define N_TYPES (sizeof lengths / sizeof *lengths)

static int decode_header(uint16_t type, uint16_t flags, uint32_t len, struct frame_header *ret)
{
	uint8_t buf[FRAME_HEADER_BYTES];
	struct error err = ERROR_INIT;
	int rc;

	put_u64(put_u32(put_u16(put_u16(buf, type), flags), len), 0x1122334455667788);
	rc = frame_header_decode(buf, ret, &err);
	assert_int_equal(err.code, rc);
	assert_int_equal(rc != 0, *err.text != 0);
	return rc;
}

static void test_header_is_little_endian_and_comes_back(void **state)
{
	static const uint8_t expected[] = { 5, 0, 0, 0, 32, 16, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1 };
	struct frame_header h = { .type = FRAME_PAGES,
		                  .payload_len = 0x1020,
		                  .request_id = 0x0102030405060708 };
	struct frame_header back;
	uint8_t buf[FRAME_HEADER_BYTES];

	(void)state;
	frame_header_encode(&h, buf);
	assert_memory_equal(buf, expected, sizeof expected);
	assert_int_equal(frame_header_decode(buf, &back, NULL), 0);
	assert_int_equal(back.type, h.type);
	assert_int_equal(back.payload_len, h.payload_len);
	assert_true(back.request_id == h.request_id);
}

static void test_each_type_has_its_lengths(void **state)
{
	struct frame_header h;

	(void)state;
	for (size_t i = 0; i < N_TYPES; i++) {
		uint16_t type = lengths[i].type;

		assert_int_equal(decode_header(type, 0, lengths[i].min, &h), 0);
		assert_int_equal(h.payload_len, lengths[i].min);
		assert_int_equal(decode_header(type, 0, lengths[i].max, &h), 0);
		assert_int_equal(h.payload_len, lengths[i].max);
		assert_int_equal(decode_header(type, 0, lengths[i].max + 1, &h), -EPROTO);
		assert_int_equal(decode_header(type, 0, UINT32_MAX, &h), -EPROTO);
		if (lengths[i].min)
			assert_int_equal(decode_header(type, 0, lengths[i].min - 1, &h), -EPROTO);
	}
}

static void test_unknown_types_are_refused(void **state)
{
	struct frame_header h;

	(void)state;
	for (unsigned int type = 0; type <= UINT16_MAX; type++) {
		uint32_t len = type && type <= N_TYPES ? lengths[type - 1].min : 0;

		assert_int_equal(decode_header((uint16_t)type, 0, len, &h),
		                 type && type <= N_TYPES ? 0 : -EPROTO);
	}
}

static void test_flags_are_reserved(void **state)
{
	struct frame_header h;

	(void)state;
	for (unsigned int bit = 0; bit < 16; bit++)
		assert_int_equal(decode_header(FRAME_COMPLETE, (uint16_t)(1u << bit), 0, &h),
		                 -EPROTO);
}

static void test_get_comes_back(void **state)
{
	struct frame_get get = { .region = 63, .first_unit = 64ull << 40, .want_mask = 1ull << 63 };
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_GET_BYTES];
	struct frame_header h;
	struct frame_get back;

	(void)state;
	assert_int_equal(frame_get_encode(&get, 77, buf), sizeof buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_GET);
	assert_int_equal(h.request_id, 77);
	assert_int_equal(frame_get_decode(buf + FRAME_HEADER_BYTES, &back, NULL), 0);
	assert_int_equal(back.region, get.region);
	assert_true(back.first_unit == get.first_unit);
	assert_true(back.want_mask == get.want_mask);
}

static void test_abort_says_why_in_one_line(void **state)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_ABORT_MAX];
	char why[2 * FRAME_ABORT_MAX] = "no\nroom";
	struct error told = ERROR_INIT;
	struct frame_header h;

	(void)state;
	assert_int_equal(frame_abort_encode("", buf), FRAME_HEADER_BYTES);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	frame_abort_decode(&h, buf + FRAME_HEADER_BYTES, &told);
	assert_string_equal(told.text, "");
	assert_int_equal(frame_abort_encode(why, buf), FRAME_HEADER_BYTES + strlen(why));
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	frame_abort_decode(&h, buf + FRAME_HEADER_BYTES, &told);
	assert_string_equal(told.text, "no?room");
	assert_true(told.from_peer);
	memset(why, 'x', sizeof why - 1);
	assert_int_equal(frame_abort_encode(why, buf), sizeof buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	frame_abort_decode(&h, buf + FRAME_HEADER_BYTES, &told);
	assert_int_equal(strlen(told.text), sizeof told.text - 1);
}

static void bad_get(const struct frame_get *get, uint32_t reserved, const char *needle)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_GET_BYTES];
	struct error err = ERROR_INIT;
	struct frame_get back;

	frame_get_encode(get, 0, buf);
	put_u32(buf + FRAME_HEADER_BYTES + 4, reserved);
	assert_int_equal(frame_get_decode(buf + FRAME_HEADER_BYTES, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, needle));
}

static void test_bad_gets_are_refused(void **state)
{
	struct frame_get nothing = { .first_unit = 64 };
	struct frame_get crooked = { .first_unit = 1, .want_mask = 1 };
	struct frame_get fine = { .want_mask = 1 };

	(void)state;
	bad_get(&nothing, 0, "asks for nothing");
	bad_get(&crooked, 0, "multiple of 64");
	crooked.first_unit = 63;
	bad_get(&crooked, 0, "multiple of 64");
	bad_get(&fine, 1, "reserved");
	bad_get(&fine, 1u << 31, "reserved");
}

/* What decoding a PAGES frame gives whose header claims @len bytes. */
static int decode_pages(const struct frame_pages *pages, uint32_t reserved, uint32_t len,
                        struct frame_pages *ret, struct error *err)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_PAGES_BYTES];
	struct frame_header h = { .type = FRAME_PAGES, .payload_len = len };

	*err = ERROR_INIT;
	assert_int_equal(frame_pages_encode(pages, 9, buf), sizeof buf);
	put_u32(buf + FRAME_HEADER_BYTES + 4, reserved);
	return frame_pages_decode(&h, buf + FRAME_HEADER_BYTES, ret, err);
}

static void test_pages_come_back_with_the_length_of_their_data(void **state)
{
	static const uint64_t masks[] = { 0, 1, 1ull << 63, 0x5555555555555555, UINT64_MAX };

	(void)state;
	for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
		struct frame_pages pages = { .region = 7,
			                     .first_unit = 128,
			                     .data_mask = masks[i],
			                     .zero_mask = ~masks[i] };
		uint8_t buf[FRAME_HEADER_BYTES + FRAME_PAGES_BYTES];
		struct frame_header h;
		struct frame_pages back;

		frame_pages_encode(&pages, 9, buf);
		assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
		assert_int_equal(h.type, FRAME_PAGES);
		assert_int_equal(h.request_id, 9);
		assert_int_equal(h.payload_len, FRAME_PAGES_BYTES + __builtin_popcountll(masks[i]) *
		                                                            (int)UNIT_BYTES);
		assert_int_equal(frame_pages_decode(&h, buf + FRAME_HEADER_BYTES, &back, NULL), 0);
		assert_int_equal(back.region, 7);
		assert_int_equal(back.first_unit, 128);
		assert_true(back.data_mask == masks[i]);
		assert_true(back.zero_mask == ~masks[i]);
	}
}

static void test_bad_pages_are_refused(void **state)
{
	struct frame_pages pages = { .first_unit = 64, .data_mask = 3, .zero_mask = 4 };
	const uint32_t right = FRAME_PAGES_BYTES + 2 * UNIT_BYTES;
	struct frame_pages back;
	struct error err;

	(void)state;
	assert_int_equal(decode_pages(&pages, 0, right, &back, &err), 0);
	/* Data that is a byte or a page more or less than the mask says. */
	assert_int_equal(decode_pages(&pages, 0, right - 1, &back, &err), -EPROTO);
	assert_int_equal(decode_pages(&pages, 0, right + 1, &back, &err), -EPROTO);
	assert_int_equal(decode_pages(&pages, 0, right + UNIT_BYTES, &back, &err), -EPROTO);
	assert_int_equal(decode_pages(&pages, 0, FRAME_PAGES_BYTES, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "its mask of 2 units"));
	assert_int_equal(decode_pages(&pages, 1, right, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "reserved"));
	pages.zero_mask = 6;
	assert_int_equal(decode_pages(&pages, 0, right, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "in two masks"));
	pages.zero_mask = 4;
	/* A unit that can't be read has no content beside. */
	for (uint64_t error = 2; error <= 4; error *= 2) {
		pages.error_mask = error;
		assert_int_equal(decode_pages(&pages, 0, right, &back, &err), -EPROTO);
		assert_non_null(strstr(err.text, "in two masks"));
	}
	pages.error_mask = 8;
	assert_int_equal(decode_pages(&pages, 0, right, &back, &err), 0);
	assert_true(back.error_mask == 8);
	pages.first_unit = 65;
	assert_int_equal(decode_pages(&pages, 0, right, &back, &err), -EPROTO);
	assert_non_null(strstr(err.text, "multiple of 64"));
}

static void test_vmstate_comes_back_and_can_not_be_empty(void **state)
{
	struct frame_vmstate v = { .len = 1ull << 40, .pause_ns = 2, .held_ns = UINT64_MAX };
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_VMSTATE_BYTES];
	struct frame_vmstate back;
	struct frame_header h;

	(void)state;
	assert_int_equal(frame_vmstate_encode(&v, buf), sizeof buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_VMSTATE);
	assert_int_equal(frame_vmstate_decode(buf + FRAME_HEADER_BYTES, &back, NULL), 0);
	assert_true(back.len == v.len && back.pause_ns == 2 && back.held_ns == UINT64_MAX);
	v.len = 0;
	frame_vmstate_encode(&v, buf);
	assert_int_equal(frame_vmstate_decode(buf + FRAME_HEADER_BYTES, &back, NULL), -EPROTO);
}

/* Encodes an ERROR and gives what the other side makes of it. */
static int error_back(int code, const char *text, struct error *err)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_ERROR_MAX];
	size_t len = frame_error_encode(code, text, buf);
	struct frame_header h;

	assert_true(len <= sizeof buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_ERROR);
	assert_int_equal(FRAME_HEADER_BYTES + h.payload_len, len);
	*err = ERROR_INIT;
	return frame_error_decode(&h, buf + FRAME_HEADER_BYTES, err);
}

static void test_errors_come_back_as_ours(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(error_back(-EACCES, "no", &err), -EACCES);
	assert_int_equal(err.code, -EACCES);
	assert_string_equal(err.text, "the source says: no");
	assert_int_equal(error_back(EBUSY, "", &err), -EBUSY);
	assert_string_equal(err.text, "the source says: ");
	/* Text from a peer can't forge a line of the log. */
	assert_int_equal(error_back(-EIO, "a\nb\x1b[2J", &err), -EIO);
	assert_string_equal(err.text, "the source says: a?b?[2J");
}

static void test_error_text_is_cut(void **state)
{
	char text[2 * FRAME_ERROR_MAX];
	struct error err;

	(void)state;
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = 0;
	assert_int_equal(error_back(-EIO, text, &err), -EIO);
	assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
}

static void test_error_codes_are_always_negative_errnos(void **state)
{
	static const uint32_t codes[] = { 0, 4096, 1u << 31, (1u << 31) + 1, UINT32_MAX };
	struct frame_header h = { .type = FRAME_ERROR, .payload_len = 4 };
	uint8_t payload[4];

	(void)state;
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
		put_u32(payload, codes[i]);
		assert_int_equal(frame_error_decode(&h, payload, NULL), -EPROTO);
	}
	put_u32(payload, 4095);
	assert_int_equal(frame_error_decode(&h, payload, NULL), -4095);
}

/* What the destination makes of the answer to TRACK. */
static int tracked_back(int code, const char *text, struct error *err)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_ERROR_MAX];
	size_t len = frame_tracked_encode(code, text, buf);
	struct frame_header h;

	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_TRACKED);
	assert_int_equal(FRAME_HEADER_BYTES + h.payload_len, len);
	*err = ERROR_INIT;
	return frame_tracked_decode(&h, buf + FRAME_HEADER_BYTES, err);
}

static void test_tracked_says_yes_or_why_not(void **state)
{
	struct error err;

	(void)state;
	assert_int_equal(tracked_back(0, "", &err), 0);
	assert_int_equal(err.code, 0);
	assert_int_equal(tracked_back(-EOPNOTSUPP, "guest_memfd\x1b", &err), -EOPNOTSUPP);
	assert_string_equal(err.text, "the source says: guest_memfd?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header_is_little_endian_and_comes_back),
		cmocka_unit_test(test_each_type_has_its_lengths),
		cmocka_unit_test(test_unknown_types_are_refused),
		cmocka_unit_test(test_flags_are_reserved),
		cmocka_unit_test(test_get_comes_back),
		cmocka_unit_test(test_abort_says_why_in_one_line),
		cmocka_unit_test(test_bad_gets_are_refused),
		cmocka_unit_test(test_pages_come_back_with_the_length_of_their_data),
		cmocka_unit_test(test_bad_pages_are_refused),
		cmocka_unit_test(test_vmstate_comes_back_and_can_not_be_empty),
		cmocka_unit_test(test_errors_come_back_as_ours),
		cmocka_unit_test(test_error_text_is_cut),
		cmocka_unit_test(test_error_codes_are_always_negative_errnos),
		cmocka_unit_test(test_tracked_says_yes_or_why_not),
	};

	return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
