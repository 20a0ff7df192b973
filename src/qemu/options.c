/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/options.h"

#include <errno.h>
#include <limits.h>
#include <postcopy/postcopy.h>
#include <stdlib.h>

#include "adapter/command_line.h"

static const char *const commands[] = {
	[COMMAND_CHECK] = "check",
	[COMMAND_SOURCE] = "source",
	[COMMAND_DESTINATION] = "destination",
};

static int take_pid(void *options, const char *text, struct error *err)
{
	struct options *o = options;
	char *end;
	long pid;

	errno = 0;
	pid = strtol(text, &end, 10);
	if (errno || *end || end == text || pid < 1 || pid > INT_MAX)
		return error_set(err, -EINVAL, "--pid \"%s\" is not the number of a process", text);
	o->pid = (pid_t)pid;
	return 0;
}

static const struct command_line_option rows[] = {
	{ "id", "ID", "the migration's id, as it was prepared", offsetof(struct options, id) },
	{ "qmp", "PATH", "a QMP socket of QEMU's, for this program alone",
	  offsetof(struct options, qmp) },
	{ "pid", "PID", "QEMU's process, where another one has made its QMP socket (libvirt)",
	  .take = take_pid },
	{ "pidfile", "PATH", "the same, from a file", offsetof(struct options, pidfile) },
	{ "socket", "PATH", "postcopyd's VMM socket (" POSTCOPY_DEFAULT_SOCKET ")",
	  offsetof(struct options, socket) },
};

static const struct command_line line = {
	.program = "postcopy-qemu",
	.usage = "Usage: postcopy-qemu check --qmp PATH [OPTION...]\n"
	         "       postcopy-qemu source|destination --id ID --qmp PATH [OPTION...]\n",
	.about = "Moves the guest of a QEMU as it is, by postcopyd.",
	.exit_status = "0; 1 the guest has not moved, or there are reasons against; 2 wrong "
	               "arguments;\n75 where it is worth another try.",
	.commands = commands,
	.n_commands = sizeof commands / sizeof *commands,
	.options = rows,
	.n_options = sizeof rows / sizeof *rows,
};

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
