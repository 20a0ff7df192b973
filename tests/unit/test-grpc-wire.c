/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/status.h"
#include "grpc/wire.h"
#include "util/clock.h"

#define MAX 100000u

static size_t put_message(uint8_t *buf, size_t len, uint8_t fill)
{
	grpc_prefix_encode(buf, (uint32_t)len);
	memset(buf + GRPC_PREFIX_BYTES, fill, len);
	return GRPC_PREFIX_BYTES + len;
}

/* Feed @buf in pieces of @piece bytes: messages come out whole, with nothing lost between them. */
static void feed_in_pieces(const uint8_t *buf, size_t len, size_t piece, const size_t *lens)
{
	struct grpc_assembly a;
	unsigned int n = 0;

	grpc_assembly_init(&a, MAX);
	while (len) {
		const uint8_t *p = buf;
		size_t left = piece < len ? piece : len;

		buf += left;
		len -= left;
		while (left && grpc_assembly_feed(&a, &p, &left) == 1) {
			assert_int_equal(a.have, lens[n]);
			for (size_t i = 0; i < a.have; i++)
				assert_int_equal(a.message[i], n + 1);
			assert_false(grpc_assembly_partial(&a));
			grpc_assembly_next(&a);
			n++;
		}
	}
	assert_int_equal(n, 4);
	assert_false(grpc_assembly_partial(&a));
	grpc_assembly_deinit(&a);
}

static void test_messages_are_made_of_pieces(void **state)
{
	static const size_t lens[] = { 3, 0, 70000, 1 };
	static const size_t pieces[] = { 1, 2, 5, 6, 4096, 65536, MAX };
	static uint8_t buf[MAX];
	size_t len = 0;

	(void)state;
	for (size_t i = 0; i < 4; i++)
		len += put_message(buf + len, lens[i], (uint8_t)(i + 1));
	for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
		feed_in_pieces(buf, len, pieces[i], lens);
}

static void test_bad_prefix_is_refused(void **state)
{
	static const struct {
		uint8_t prefix[GRPC_PREFIX_BYTES];
		int want;
	} cases[] = {
		{ { 0, 0, 1, 0x86, 0xa1 }, -EMSGSIZE }, /* 100001 */
		{ { 0, 0xff, 0xff, 0xff, 0xff }, -EMSGSIZE },
		{ { 1, 0, 0, 0, 1 }, -ENOTSUP },
		{ { 2, 0, 0, 0, 1 }, -EPROTO },
		{ { 'G', 'E', 'T', ' ', '/' }, -EPROTO },
		{ { 0, 0, 1, 0x86, 0xa0 }, 0 }, /* 100000 */
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const uint8_t *p = cases[i].prefix;
		size_t len = GRPC_PREFIX_BYTES;
		struct grpc_assembly a;

		grpc_assembly_init(&a, MAX);
		assert_int_equal(grpc_assembly_feed(&a, &p, &len), cases[i].want);
		grpc_assembly_deinit(&a);
	}
}

/* A promise of much must not cost much. */
static void test_memory_follows_what_has_come(void **state)
{
	uint8_t buf[GRPC_PREFIX_BYTES + 1] = { 0 };
	const uint8_t *p = buf;
	size_t len = sizeof buf;
	struct grpc_assembly a;

	(void)state;
	grpc_prefix_encode(buf, MAX);
	grpc_assembly_init(&a, MAX);
	assert_int_equal(grpc_assembly_feed(&a, &p, &len), 0);
	assert_true(grpc_assembly_partial(&a));
	assert_true(a.allocated <= 4096);
	grpc_assembly_deinit(&a);
}

static void test_text_goes_through_percents(void **state)
{
	static const struct {
		const char *plain, *encoded;
	} cases[] = {
		{ "", "" },
		{ "no migration \"vm7\"", "no migration \"vm7\"" },
		{ "100% of \n", "100%25 of %0A" },
		{ "\xc3\xa4\x7f", "%C3%A4%7F" },
	};
	char out[64], back[64];

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		size_t len = grpc_percent_encode(cases[i].plain, out, sizeof out);

		assert_string_equal(out, cases[i].encoded);
		assert_int_equal(len, strlen(out));
		grpc_percent_decode(out, len, back, sizeof back);
		assert_string_equal(back, cases[i].plain);
	}
	/* Never half an escape. */
	assert_int_equal(grpc_percent_encode("a%b", out, 4), 1);
	assert_string_equal(out, "a");
	/* What is no escape stays. */
	grpc_percent_decode("%zz%4", 5, back, sizeof back);
	assert_string_equal(back, "%zz%4");
	assert_int_equal(grpc_percent_decode("abcdef", 6, back, 4), 3);
}

static void test_bytes_go_through_base64(void **state)
{
	uint8_t data[64], back[64];
	char text[GRPC_BASE64_SIZE(sizeof data) + 2];
	size_t len;

	(void)state;
	for (size_t n = 0; n <= sizeof data; n++) {
		size_t text_len;

		for (size_t i = 0; i < n; i++)
			data[i] = (uint8_t)(i * 37 + n);
		text_len = grpc_base64_encode(data, n, text);
		assert_int_equal(text_len, strlen(text));
		assert_int_equal(grpc_base64_decode(text, text_len, back, n, &len), 0);
		assert_int_equal(len, n);
		assert_memory_equal(back, data, n);
		while (text_len % 4)
			text[text_len++] = '=';
		assert_int_equal(grpc_base64_decode(text, text_len, back, n, &len), 0);
		assert_int_equal(len, n);
	}
	grpc_base64_encode("\xff\xfe\xfd\x00", 4, text);
	assert_string_equal(text, "//79AA");
}

static void test_bad_base64_is_refused(void **state)
{
	static const char *const bad[] = {
		"A", "AAAAA", "A=", "AA==A", "A A=", "AA-_", "====", "\n"
	};
	uint8_t out[3];
	size_t len;

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(grpc_base64_decode(bad[i], strlen(bad[i]), out, sizeof out, &len),
		                 -EINVAL);
	assert_int_equal(grpc_base64_decode("AA\0A", 4, out, sizeof out, &len), -EINVAL);
	assert_int_equal(grpc_base64_decode("AAAAAA", 6, out, sizeof out, &len), -ENOBUFS);
}

static void test_timeouts(void **state)
{
	static const struct {
		const char *text;
		uint64_t ns;
	} good[] = {
		{ "0n", 0 },
		{ "1H", 3600 * NSEC_PER_SEC },
		{ "2M", 120 * NSEC_PER_SEC },
		{ "3S", 3 * NSEC_PER_SEC },
		{ "100m", 100 * NSEC_PER_MSEC },
		{ "99999999u", 99999999 * NSEC_PER_USEC },
		{ "00000001n", 1 },
		{ "99999999H", UINT64_MAX },
	};
	static const char *const bad[] = { "",    "1",   "S",  "-1S",        "+1S", " 1S",
		                           "1 S", "1SS", "1s", "123456789n", "0x1S" };
	char out[GRPC_TIMEOUT_SIZE];
	uint64_t ns;

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		assert_int_equal(grpc_timeout_decode(good[i].text, strlen(good[i].text), &ns), 0);
		assert_int_equal(ns, good[i].ns);
	}
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(grpc_timeout_decode(bad[i], strlen(bad[i]), &ns), -EINVAL);
	grpc_timeout_encode(1500, out);
	assert_string_equal(out, "1500m");
	grpc_timeout_encode(UINT32_MAX, out);
	assert_string_equal(out, "4294968S");
}

static void test_codes_have_names(void **state)
{
	(void)state;
	assert_string_equal(grpc_code_name(GRPC_OK), "OK");
	assert_string_equal(grpc_code_name(GRPC_UNAUTHENTICATED), "UNAUTHENTICATED");
	assert_string_equal(grpc_code_name(17), "UNKNOWN");
	assert_string_equal(grpc_code_name(UINT32_MAX), "UNKNOWN");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_messages_are_made_of_pieces),
		cmocka_unit_test(test_bad_prefix_is_refused),
		cmocka_unit_test(test_memory_follows_what_has_come),
		cmocka_unit_test(test_text_goes_through_percents),
		cmocka_unit_test(test_bytes_go_through_base64),
		cmocka_unit_test(test_bad_base64_is_refused),
		cmocka_unit_test(test_timeouts),
		cmocka_unit_test(test_codes_have_names),
	};

	return cmocka_run_group_tests_name("grpc-wire", tests, NULL, NULL);
}
