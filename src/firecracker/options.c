/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/options.h"

#include <errno.h>
#include <getopt.h>
#include <postcopy/postcopy.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static const char *const commands[] = {
	[COMMAND_SOURCE] = "source",
	[COMMAND_DESTINATION] = "destination",
	[COMMAND_SERVE] = "serve",
};

static const struct row {
	const char *name, *argument, *help;
	size_t offset; /* of a const char * */
} rows[] = {
	{ "id", "ID", "the migration's id, as it was prepared; serve: one or more",
	  offsetof(struct options, id) },
	{ "api", "PATH", "Firecracker's API socket", offsetof(struct options, api) },
	{ "dir", "PATH",
	  "a directory of a tmpfs for vmstate, memory and socket, as Firecracker sees it",
	  offsetof(struct options, dir) },
	{ "memory", "FILE", "serve: a snapshot's memory file", offsetof(struct options, memory) },
	{ "vmstate", "FILE", "serve: a snapshot's state file", offsetof(struct options, vmstate) },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")",
	  offsetof(struct options, socket) },
	{ "help", NULL, "this", 0 },
};

#define N_ROWS (sizeof rows / sizeof *rows)

static void print_help(void)
{
	printf("Usage: postcopy-firecracker source|destination --id ID --api PATH --dir PATH\n"
	       "       postcopy-firecracker serve --id ID... --memory FILE --vmstate FILE\n\n"
	       "Moves the guest of a Firecracker as it is, by postcopyd.\n\n");
	for (size_t i = 0; i < N_ROWS; i++) {
		char left[40];

		snprintf(left, sizeof left, "--%s%s%s", rows[i].name, rows[i].argument ? " " : "",
		         rows[i].argument ? rows[i].argument : "");
		printf("  %-16s %s\n", left, rows[i].help);
	}
	printf("\nExit status: 0; 1 the guest has not moved; 2 wrong arguments; 75 where it is "
	       "worth "
	       "another try.\n");
}

static int parse_command(const char *word, struct options *o, struct error *err)
{
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (word && !strcmp(word, commands[i])) {
			o->command = (enum command)i;
			return 0;
		}
	return error_set(err, -EINVAL, "\"%s\" is none of source, destination, serve; see --help",
	                 word ? word : "");
}

static int add_id(struct options *o, const char *id, struct error *err)
{
	if (o->n_ids == OPTIONS_IDS_MAX)
		return error_set(err, -EINVAL, "more than %d --id", OPTIONS_IDS_MAX);
	o->ids[o->n_ids++] = id;
	return 0;
}

static int check(const struct options *o, struct error *err)
{
	if (!o->id)
		return error_set(err, -EINVAL, "give --id, the migration's id as it was prepared");
	if (o->command == COMMAND_SERVE)
		return o->memory && o->vmstate
		               ? 0
		               : error_set(err, -EINVAL,
		                           "give --memory and --vmstate, a snapshot's files");
	if (o->n_ids > 1)
		return error_set(err, -EINVAL, "only serve takes more than one --id");
	if (!o->api)
		return error_set(err, -EINVAL, "give --api, the path of Firecracker's API socket");
	if (!o->dir || *o->dir != '/')
		return error_set(err, -EINVAL,
		                 "give --dir, an absolute path as Firecracker sees it");
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret, struct error *err)
{
	struct option longs[N_ROWS + 1] = { 0 };
	struct options o = { .command = COMMAND_SOURCE };
	int index, c, rc = 0;

	for (size_t i = 0; i < N_ROWS; i++)
		longs[i] = (struct option){ .name = rows[i].name,
			                    .has_arg = rows[i].argument ? required_argument
			                                                : no_argument };
	opterr = 0; /* one line about it is enough, and it is ours */
	while (!rc && (c = getopt_long(argc, argv, ":", longs, &index)) == 0) {
		if (!rows[index].argument) {
			print_help();
			return 1;
		}
		*(const char **)((char *)&o + rows[index].offset) = optarg;
		if (rows[index].offset == offsetof(struct options, id))
			rc = add_id(&o, optarg, err);
	}
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
