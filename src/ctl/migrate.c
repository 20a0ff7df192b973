/* SPDX-License-Identifier: Apache-2.0 */
/* migrate: a whole migration by one command, at both daemons (move.h). */
#include "ctl/commands.h"

#include "ctl/move_command.h"

static const struct move_args migrate_defaults = MOVE_ARGS_DEFAULTS;

static const struct option_spec migrate_options[] = { MOVE_OPTIONS(0) };

static int migrate_run(const struct ctl_common *common, const char *id, const void *args)
{
	return move_command_run(&migrate_command, common, id, args, NULL);
}

const struct command migrate_command = {
	.name = "migrate",
	.operand = "ID",
	.summary = "Move a guest: prepare both sides, start, and follow it to its end.",
	.details = "Its VMMs attach by themselves, before or after. A guest that is attached as\n"
	           "source keeps its attachment. Status 0 where it completes, 1 where it fails.\n"
	           "Ctrl-C ends this command, and not the migration: the same command again goes\n"
	           "on with it.",
	.options = migrate_options,
	.n_options = sizeof migrate_options / sizeof *migrate_options,
	.defaults = &migrate_defaults,
	.args_size = sizeof migrate_defaults,
	.json = true,
	.run = migrate_run,
};
