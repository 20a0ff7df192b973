/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopyctl: one command line client of postcopyd.
 *
 * main.c finds the sub-command in a table, options.c parses its options by the
 * command's own table, and the command's run() does it: the small ones in commands.c, the others
 * in files of their own; the benchmark and the report in a directory of their own, which only
 * main.c knows (bench/commands.h). All that is said to a daemon goes through client.h.
 */
#ifndef CTL_COMMANDS_H
#define CTL_COMMANDS_H

#include <json-c/json.h>

#include "ctl/client.h"
#include "ctl/options.h"
#include "util/error.h"

extern const struct command check_command;
extern const struct command info_command;
extern const struct command migrate_command;
extern const struct command firecracker_command;
extern const struct command evacuate_command;
extern const struct command prepare_command;
extern const struct command start_command;
extern const struct command switchover_command;
extern const struct command status_command;
extern const struct command list_command;
extern const struct command watch_command;
extern const struct command top_command;
extern const struct command limits_command;
extern const struct command host_limits_command;
extern const struct command cancel_command;
extern const struct command delete_command;
extern const struct command recover_command;
extern const struct command missing_command;
extern const struct command poison_command;
extern const struct command run_on_command;
extern const struct command release_command;

/* Says on stderr why a command failed. Return: its exit code, CTL_FAILED. */
int command_failed(const struct command *cmd, const struct error *err);

/* The same for what was wrong with the command line. Return: CTL_USAGE */
int command_misused(const struct command *cmd, const char *what);

/* The daemon that the command line names. */
struct client_target command_target(const struct ctl_common *common);

/*
 * command_connect() - to that daemon
 * @cancel_fd: as client_new()
 *
 * Return: CTL_OK; or the exit code, after saying why on stderr (and, for --json, on stdout).
 */
int command_connect(const struct command *cmd, const struct ctl_common *common, int cancel_fd,
                    struct client **ret);

/* The daemon's refusal, or what became of the connection, said likewise. Return: the exit code. */
int command_refused(const struct command *cmd, const struct ctl_common *common,
                    const struct client *c, const struct error *err);

/*
 * command_call() - connect, call once, and disconnect
 * @ret: the answer
 *
 * Return: as command_connect()
 */
int command_call(const struct command *cmd, const struct ctl_common *common,
                 int (*call)(struct client *c, const void *arg, struct json_object **ret,
                             struct error *err),
                 const void *arg, struct json_object **ret);

/* The same, and print the migration that is the answer. */
int command_call_and_print(const struct command *cmd, const struct ctl_common *common,
                           int (*call)(struct client *c, const void *arg, struct json_object **ret,
                                       struct error *err),
                           const void *arg);

/* What `check` finds: [{name, ok, detail}...]; NULL where it can't be tried. */
struct json_object *check_rows(void);

/* What the host has for guests, for people. */
void budget_print(struct json_object *budget);

/* A migration for people: aligned lines, with what is known. */
void migration_print(struct json_object *migration);

#endif
