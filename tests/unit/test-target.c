/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as people write them. What can never be dialled was tried for 20 s before anybody
 * heard. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "stream/target.h"

static void test_what_can_be_dialled(void **state)
{
	static const char *const good[][3] = {
		{ "host1:7777", "host1", "7777" },
		{ "a_b.example-c.org:1", "a_b.example-c.org", "1" },
		{ "127.0.0.1:65535", "127.0.0.1", "65535" },
		{ "[::1]:7777", "::1", "7777" },
		{ "[fe80::1%eth0]:7777", "fe80::1%eth0", "7777" },
		{ "[host1]:7777", "host1", "7777" },
	};
	struct error err = ERROR_INIT;
	struct conn_target t;

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		assert_int_equal(conn_target_parse(good[i][0], &t, &err), 0);
		assert_string_equal(t.host, good[i][1]);
		assert_string_equal(t.port, good[i][2]);
	}
}

static void test_what_can_not_is_refused_by_name(void **state)
{
	static const char *const bad[][2] = {
		{ "tcp://host1:7777", "is a URL" },
		{ "https://host1", "is a URL" },
		{ "host1:7777/", "is a URL" },
		{ "host1", "is not HOST:PORT" },
		{ ":7777", "is not HOST:PORT" },
		{ "host1:", "is not HOST:PORT" },
		{ "[]:7777", "is not HOST:PORT" },
		{ "host1:http", "the port is no number" },
		{ "host1:65536", "the port must be 0..65535" },
		{ "host 1:7777", "no host has such a name" },
		{ "::1:7777", "[ADDRESS]:PORT" },
		{ "[::g]:7777", "no IPv6 address" },
		{ "[fe80::1]:7777", "of one link" },
		{ "[fe80::1%]:7777", "of one link" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct conn_target t = { .host = "untouched" };
		struct error err = ERROR_INIT;

		assert_int_equal(conn_target_parse(bad[i][0], &t, &err), -EINVAL);
		assert_non_null(strstr(err.text, bad[i][1]));
		assert_non_null(strstr(err.text, bad[i][0]));
		assert_string_equal(t.host, "untouched");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_can_be_dialled),
		cmocka_unit_test(test_what_can_not_is_refused_by_name),
	};

	return cmocka_run_group_tests_name("target", tests, NULL, NULL);
}
