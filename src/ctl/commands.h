/* SPDX-License-Identifier: Apache-2.0 */
/*
 * postcopyctl: one command line client of postcopyd.
 *
 * main.c finds the sub-command in a table, options.c parses its options by the
 * command's own table, and the command's run() does it: the small ones in commands.c,
 * check.c, watch.c and bench.c the others. All that is said to a daemon goes through client.h.
 */
#ifndef CTL_COMMANDS_H
#define CTL_COMMANDS_H

#include <json-c/json.h>

#include "ctl/options.h"
#include "util/error.h"

extern const struct command check_command;
extern const struct command prepare_command;
extern const struct command start_command;
extern const struct command switchover_command;
extern const struct command status_command;
extern const struct command list_command;
extern const struct command watch_command;
extern const struct command limits_command;
extern const struct command cancel_command;
extern const struct command report_command;
extern const struct command bench_command;

/* Says on stderr why a command failed. Return: its exit code, CTL_FAILED. */
int command_failed(const struct command *cmd, const struct error *err);

/* What `check` finds: [{name, ok, detail}...]; NULL where it can't be tried. */
struct json_object *check_rows(void);

/* A migration for people: aligned lines, with what is known. */
void migration_print(struct json_object *migration);

#endif
