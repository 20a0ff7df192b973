/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An adapter's command line: a command, and options as a table, so that what is parsed and what
 * --help says can't differ. --help and --version every adapter has.
 */
#ifndef ADAPTER_COMMAND_LINE_H
#define ADAPTER_COMMAND_LINE_H

#include <stddef.h>

#include "util/error.h"

/* sysexits.h: systemd starts it again. */
#define EXIT_AGAIN 75
#define EXIT_ARGUMENTS 2

struct command_line_option {
	const char *name;
	const char *argument; /* NULL: it takes none */
	const char *help;     /* lines after the first are indented as it is */
	size_t offset;        /* in the options: of a const char *; without an argument of a bool */
	/* Instead of storing it; also sees what is given more than once. */
	int (*take)(void *options, const char *value, struct error *err);
};

struct command_line {
	const char *program;
	const char *usage; /* whole lines */
	const char *about; /* a line */
	const char *exit_status;
	const char *const *commands; /* by the command's number */
	size_t n_commands;
	const struct command_line_option *options;
	size_t n_options;
};

/*
 * command_line_parse() - one command, and options around it
 * @options: get what is given, also where it fails; of @argv
 * @ret_command: its number
 *
 * Return: 0; 1 where help or the version was asked for and printed; -EINVAL with @err set.
 */
int command_line_parse(const struct command_line *line, int argc, char **argv, void *options,
                       int *ret_command, struct error *err);

#endif
