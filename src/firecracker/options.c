/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/options.h"

#include <errno.h>
#include <postcopy/postcopy.h>

#include "adapter/command_line.h"

static const char *const commands[] = {
	[COMMAND_SOURCE] = "source",
	[COMMAND_DESTINATION] = "destination",
	[COMMAND_SERVE] = "serve",
};

static int add_id(void *options, const char *id, struct error *err)
{
	struct options *o = options;

	if (o->n_ids == OPTIONS_IDS_MAX)
		return error_set(err, -EINVAL, "more than %d --id", OPTIONS_IDS_MAX);
	o->ids[o->n_ids++] = o->id = id;
	return 0;
}

static const struct command_line_option rows[] = {
	{ "id", "ID", "the migration's id, as it was prepared; serve: one or more",
	  .take = add_id },
	{ "api", "PATH", "Firecracker's API socket", offsetof(struct options, api) },
	{ "dir", "PATH",
	  "a directory of a tmpfs for vmstate, memory and socket, as Firecracker sees it;\nmade "
	  "where there is none",
	  offsetof(struct options, dir) },
	{ "memory", "FILE", "serve: a snapshot's memory file", offsetof(struct options, memory) },
	{ "vmstate", "FILE", "serve: a snapshot's state file", offsetof(struct options, vmstate) },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")",
	  offsetof(struct options, socket) },
	{ "unit", NULL,
	  "have postcopy-firecracker@ID-source.service (or -destination) do it, and return",
	  offsetof(struct options, unit) },
};

static const struct command_line line = {
	.program = "postcopy-firecracker",
	.usage = "Usage: postcopy-firecracker source|destination --id ID --api PATH --dir PATH\n"
	         "       postcopy-firecracker serve --id ID... --memory FILE --vmstate FILE\n",
	.about = "Moves the guest of a Firecracker as it is, by postcopyd.",
	.exit_status = "0; 1 the guest has not moved; 2 wrong arguments; 75 where it is worth "
	               "another try.",
	.commands = commands,
	.n_commands = sizeof commands / sizeof *commands,
	.options = rows,
	.n_options = sizeof rows / sizeof *rows,
};

const char *options_command_name(enum command command)
{
	return commands[command];
}

static int check(const struct options *o, struct error *err)
{
	if (!o->id)
		return error_set(err, -EINVAL, "give --id, the migration's id as it was prepared");
	if (o->command == COMMAND_SERVE && o->unit)
		return error_set(err, -EINVAL, "--unit is of source and destination");
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
	struct options o = { 0 };
	int command, rc = command_line_parse(&line, argc, argv, &o, &command, err);

	if (rc)
		return rc;
	o.command = (enum command)command;
	rc = check(&o, err);
	if (!rc)
		*ret = o;
	return rc;
}
