/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "util/error.h"

static void test_set_returns_code_and_keeps_text(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(error_set(&err, -EINVAL, "region %d: bad", 3), -EINVAL);
	assert_int_equal(err.code, -EINVAL);
	assert_string_equal(err.text, "region 3: bad");
	assert_int_equal(error_set(NULL, -EIO, "nobody listens"), -EIO);
}

static void test_errno_appends_its_name(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(error_errno(&err, -ENOENT, "key \"%s\"", "a.pem"), -ENOENT);
	assert_string_equal(err.text, "key \"a.pem\": No such file or directory");
	assert_int_equal(error_prefix(&err, "TLS"), -ENOENT);
	assert_string_equal(err.text, "TLS: key \"a.pem\": No such file or directory");
}

static void test_peer_text_cannot_forge_lines(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	error_set(&err, -EPROTO, "peer said \"%s\"", "a\nb\x1b[2J");
	assert_null(strpbrk(err.text, "\n\x1b"));
}

static void test_long_text_is_cut_and_terminated(void **state)
{
	struct error err = ERROR_INIT;
	char text[2 * ERROR_TEXT_MAX];

	(void)state;
	memset(text, 'x', sizeof text);
	text[sizeof text - 1] = 0;
	error_set(&err, -EIO, "%s", text);
	assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
	error_errno(&err, -EIO, "%s", text);
	error_prefix(&err, "%s", text);
	assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set_returns_code_and_keeps_text),
		cmocka_unit_test(test_errno_appends_its_name),
		cmocka_unit_test(test_peer_text_cannot_forge_lines),
		cmocka_unit_test(test_long_text_is_cut_and_terminated),
	};

	return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
