/* SPDX-License-Identifier: Apache-2.0 */
#include "adapter/command_line.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define OPTIONS_MAX 16
#define HELP_COLUMN 19

static const struct command_line_option common[] = {
	{ .name = "help", .help = "this" },
	{ .name = "version", .help = "the program's version" },
};

#define N_COMMON (sizeof common / sizeof *common)

static const struct command_line_option *option_at(const struct command_line *line, size_t i)
{
	return i < line->n_options ? &line->options[i] : &common[i - line->n_options];
}

static void print_option(const struct command_line_option *o)
{
	const char *text = o->help;
	int n = printf("  --%s%s%s", o->name, o->argument ? " " : "",
	               o->argument ? o->argument : "");

	for (;;) {
		int len = (int)strcspn(text, "\n");

		printf("%*s %.*s\n", HELP_COLUMN - 1 - n, "", len, text);
		if (!text[len])
			return;
		text += len + 1;
		n = 0;
	}
}

static void print_help(const struct command_line *line)
{
	printf("%s\n%s\n\n", line->usage, line->about);
	for (size_t i = 0; i < line->n_options + N_COMMON; i++)
		print_option(option_at(line, i));
	printf("\nExit status: %s\n", line->exit_status);
}

/* Return: 0; 1 where it was printed; or what take() says. */
static int take(const struct command_line *line, const struct command_line_option *o,
                const char *value, void *options, struct error *err)
{
	void *target = (char *)options + o->offset;

	if (o == &common[0])
		print_help(line);
	else if (o == &common[1])
		printf("%s " POSTCOPY_VERSION "\n", line->program);
	else if (o->take)
		return o->take(options, value, err);
	else if (o->argument)
		*(const char **)target = value;
	else
		*(bool *)target = true;
	return o >= common && o < common + N_COMMON;
}

static int find_command(const struct command_line *line, const char *word, int *ret,
                        struct error *err)
{
	char list[128] = "";
	size_t len = 0;

	for (size_t i = 0; i < line->n_commands; i++) {
		if (word && !strcmp(word, line->commands[i])) {
			*ret = (int)i;
			return 0;
		}
		len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "",
		                        line->commands[i]);
	}
	return error_set(err, -EINVAL, "\"%s\" is none of %s; see --help", word ? word : "", list);
}

int command_line_parse(const struct command_line *line, int argc, char **argv, void *options,
                       int *ret_command, struct error *err)
{
	struct option longs[OPTIONS_MAX + 1] = { 0 };
	int index, c, rc = 0;

	assert(line->n_options + N_COMMON <= OPTIONS_MAX);
	for (size_t i = 0; i < line->n_options + N_COMMON; i++) {
		const struct command_line_option *o = option_at(line, i);

		longs[i] =
		        (struct option){ .name = o->name,
			                 .has_arg = o->argument ? required_argument : no_argument };
	}
	optind = 0; /* start over */
	opterr = 0; /* one line about it is enough, and it is ours */
	while (!rc && (c = getopt_long(argc, argv, ":", longs, &index)) == 0)
		rc = take(line, option_at(line, (size_t)index), optarg, options, err);
	if (rc)
		return rc;
	if (c != -1)
		return error_set(err, -EINVAL, "\"%s\" %s; see --help", argv[optind - 1],
		                 c == ':' ? "lacks its value" : "is not an option");
	rc = find_command(line, argv[optind], ret_command, err);
	if (!rc && optind + 1 < argc)
		rc = error_set(err, -EINVAL, "\"%s\" is one word too many; see --help",
		               argv[optind + 1]);
	return rc;
}
