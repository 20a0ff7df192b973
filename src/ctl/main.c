/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "ctl/commands.h"
#include "util/cleanup.h"

static const struct command *const commands[] = {
	&check_command,    &info_command,        &migrate_command, &firecracker_command,
	&evacuate_command, &prepare_command,     &start_command,   &switchover_command,
	&status_command,   &list_command,        &watch_command,   &top_command,
	&limits_command,   &host_limits_command, &cancel_command,  &report_command,
	&recover_command,  &missing_command,     &poison_command,  &run_on_command,
	&release_command,  &delete_command,      &bench_command,
};

#define N_COMMANDS (sizeof commands / sizeof *commands)

static void print_usage(FILE *to)
{
	fprintf(to, "usage: postcopyctl [--control ADDRESS] [--json] COMMAND [options]\n\n"
	            "Live migration by postcopy: drive postcopyd, and measure it.\n\n");
	for (size_t i = 0; i < N_COMMANDS; i++)
		fprintf(to, "  %-11s %-3s %s\n", commands[i]->name,
		        commands[i]->operand ? commands[i]->operand : "", commands[i]->summary);
	fprintf(to,
	        "\npostcopyctl COMMAND --help says more. Exit status:\n"
	        "    0  done\n"
	        "    1  failed\n"
	        "    2  wrong usage, or this host, or the migration's state, does not allow it\n"
	        "    3  no daemon there, or it does not answer\n"
	        "    4  no such migration\n"
	        "  130  interrupted\n");
}

static int command_run(const struct command *cmd, int argc, char **argv)
{
	_cleanup_free_ void *args = malloc(cmd->args_size + 1);
	struct ctl_common common;
	const char *operand;
	int r;

	if (!args) {
		perror("postcopyctl");
		return CTL_FAILED;
	}
	r = options_parse(cmd, argc, argv, &common, &operand, args);
	if (r)
		return r < 0 ? CTL_USAGE : CTL_OK;
	r = cmd->run(&common, operand, args);
	if (fflush(stdout) == EOF) {
		perror("postcopyctl: stdout");
		return CTL_FAILED;
	}
	return r;
}

/* Words before the command that are options of every command: whose daemon, and how to answer. */
static int leading_words(int argc, char **argv)
{
	int n = 1, words;

	while ((words = options_common_words(argc - n, argv + n)))
		n += words;
	return n - 1;
}

/* Move the command in front of them: "--control PATH list" is "list --control PATH". */
static void put_command_first(int leading, char **argv)
{
	char *command = argv[1 + leading];

	memmove(&argv[2], &argv[1], (size_t)leading * sizeof *argv);
	argv[1] = command;
}

int main(int argc, char **argv)
{
	int leading = leading_words(argc, argv);

	/* Who hangs up, at a socket or at our output, is told by the call that finds it. */
	signal(SIGPIPE, SIG_IGN);
	if (leading && leading + 1 < argc)
		put_command_first(leading, argv);

	if (argc < 2) {
		print_usage(stderr);
		return CTL_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		print_usage(stdout);
		return CTL_OK;
	}
	if (!strcmp(argv[1], "--version")) {
		puts("postcopyctl " CTL_VERSION);
		return CTL_OK;
	}
	for (size_t i = 0; i < N_COMMANDS; i++)
		if (!strcmp(argv[1], commands[i]->name))
			return command_run(commands[i], argc - 1, argv + 1);
	fprintf(stderr, "postcopyctl: no command \"%s\" (see postcopyctl --help)\n", argv[1]);
	return CTL_USAGE;
}
