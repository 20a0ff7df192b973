/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <postcopy/postcopy.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const commands[] = {
	[COMMAND_CHECK] = "check",
	[COMMAND_SOURCE] = "source",
	[COMMAND_DESTINATION] = "destination",
};

static const struct row {
	const char *name, *argument, *help;
	size_t offset; /* of a const char *; 0: apart */
} rows[] = {
	{ "id", "ID", "the migration's id, as it was prepared", offsetof(struct options, id) },
	{ "qmp", "PATH", "a QMP socket of QEMU's, for this program alone",
	  offsetof(struct options, qmp) },
	{ "pid", "PID", "QEMU's process, where another one has made its QMP socket (libvirt)", 0 },
	{ "pidfile", "PATH", "the same, from a file", offsetof(struct options, pidfile) },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")",
	  offsetof(struct options, socket) },
	{ "help", NULL, "this", 0 },
};

#define N_ROWS (sizeof rows / sizeof *rows)

static void print_help(void)
{
	printf("Usage: postcopy-qemu check --qmp PATH [OPTION...]\n"
	       "       postcopy-qemu source|destination --id ID --qmp PATH [OPTION...]\n\n"
	       "Moves the guest of a QEMU as it is, by postcopyd.\n\n");
	for (size_t i = 0; i < N_ROWS; i++) {
		char left[40];

		snprintf(left, sizeof left, "--%s%s%s", rows[i].name, rows[i].argument ? " " : "",
		         rows[i].argument ? rows[i].argument : "");
		printf("  %-16s %s\n", left, rows[i].help);
	}
	printf("\nExit status: 0; 1 the guest has not moved, or there are reasons against; 2 wrong "
	       "arguments;\n75 where it is worth another try.\n");
}

static int parse_pid(const char *text, pid_t *ret, struct error *err)
{
	char *end;
	long pid;

	errno = 0;
	pid = strtol(text, &end, 10);
	if (errno || *end || end == text || pid < 1 || pid > INT_MAX)
		return error_set(err, -EINVAL, "--pid \"%s\" is not the number of a process", text);
	*ret = (pid_t)pid;
	return 0;
}

static int take(const struct row *row, const char *value, struct options *o, struct error *err)
{
	if (!strcmp(row->name, "help")) {
		print_help();
		return 1;
	}
	if (!row->offset)
		return parse_pid(value, &o->pid, err);
	*(const char **)((char *)o + row->offset) = value;
	return 0;
}

static int parse_command(const char *word, struct options *o, struct error *err)
{
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (word && !strcmp(word, commands[i])) {
			o->command = (enum command)i;
			return 0;
		}
	return error_set(err, -EINVAL, "\"%s\" is none of check, source, destination; see --help",
	                 word ? word : "");
}

static int check(const struct options *o, struct error *err)
{
	if (!o->qmp)
		return error_set(err, -EINVAL, "give --qmp, the path of a QMP socket of QEMU's");
	if (!o->id && o->command != COMMAND_CHECK)
		return error_set(err, -EINVAL, "give --id, the migration's id as it was prepared");
	if (o->pid && o->pidfile)
		return error_set(err, -EINVAL, "give --pid or --pidfile, not both");
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret, struct error *err)
{
	struct option longs[N_ROWS + 1] = { 0 };
	struct options o = { 0 };
	int index, c, rc = 0;

	for (size_t i = 0; i < N_ROWS; i++)
		longs[i] = (struct option){ .name = rows[i].name,
			                    .has_arg = rows[i].argument ? required_argument
			                                                : no_argument };
	opterr = 0; /* one line about it is enough, and it is ours */
	while (!rc && (c = getopt_long(argc, argv, ":", longs, &index)) == 0)
		rc = take(&rows[index], optarg, &o, err);
	if (rc)
		return rc;
	if (c != -1)
		return error_set(err, -EINVAL, "\"%s\" %s; see --help", argv[optind - 1],
		                 c == ':' ? "lacks its value" : "is not an option");
	rc = parse_command(argv[optind], &o, err);
	if (!rc && optind + 1 < argc)
		rc = error_set(err, -EINVAL, "\"%s\" is one word too many; see --help",
		               argv[optind + 1]);
	if (!rc)
		rc = check(&o, err);
	if (!rc)
		*ret = o;
	return rc;
}
