/* SPDX-License-Identifier: Apache-2.0 */
/* An adapter's command line: what is taken, and what is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "adapter/command_line.h"

struct options {
	const char *path;
	bool flag;
	unsigned int n_taken;
};

static int take(void *options, const char *value, struct error *err)
{
	struct options *o = options;

	o->n_taken++;
	return strcmp(value, "bad") ? 0 : error_set(err, -EINVAL, "--taken \"bad\"");
}

static const char *const commands[] = { "go", "come" };
static const struct command_line_option rows[] = {
	{ "path", "PATH", "a path", offsetof(struct options, path) },
	{ "flag", NULL, "a flag", offsetof(struct options, flag) },
	{ "taken", "WORD", "any number\nof them", .take = take },
};
static const struct command_line line = {
	.program = "test",
	.usage = "Usage: test go|come\n",
	.about = "Nothing.",
	.exit_status = "0",
	.commands = commands,
	.n_commands = 2,
	.options = rows,
	.n_options = 3,
};

static int parse(struct options *o, int *command, struct error *err, char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	*o = (struct options){ 0 };
	*err = ERROR_INIT;
	return command_line_parse(&line, argc, argv, o, command, err);
}

#define PARSE(...) parse(&o, &command, &err, (char *[]){ (char *)"test", ##__VA_ARGS__, NULL })

static void test_options_stand_around_the_command(void **state)
{
	struct options o;
	struct error err;
	int command;

	(void)state;
	assert_int_equal(PARSE("--taken", "a", "come", "--path=/x", "--flag", "--taken", "b"), 0);
	assert_int_equal(command, 1);
	assert_string_equal(o.path, "/x");
	assert_true(o.flag);
	assert_int_equal(o.n_taken, 2);
	assert_int_equal(PARSE("go"), 0);
	assert_int_equal(command, 0);
	assert_false(o.flag);
}

static void test_what_is_wrong_is_named(void **state)
{
	struct options o;
	struct error err;
	int command;

	(void)state;
	assert_int_equal(PARSE("go", "--nothing"), -EINVAL);
	assert_non_null(strstr(err.text, "\"--nothing\" is not an option"));
	assert_int_equal(PARSE("go", "--path"), -EINVAL);
	assert_non_null(strstr(err.text, "\"--path\" lacks its value"));
	assert_int_equal(PARSE("stay"), -EINVAL);
	assert_non_null(strstr(err.text, "\"stay\" is none of go, come"));
	assert_int_equal(PARSE(), -EINVAL);
	assert_int_equal(PARSE("go", "come"), -EINVAL);
	assert_non_null(strstr(err.text, "\"come\" is one word too many"));
	assert_int_equal(PARSE("go", "--taken", "bad"), -EINVAL);
	assert_string_equal(err.text, "--taken \"bad\"");
}

static void test_help_and_version_are_everybodys(void **state)
{
	struct options o;
	struct error err;
	int command;

	(void)state;
	assert_int_equal(PARSE("--help"), 1);
	assert_int_equal(PARSE("--version", "nonsense"), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options_stand_around_the_command),
		cmocka_unit_test(test_what_is_wrong_is_named),
		cmocka_unit_test(test_help_and_version_are_everybodys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
