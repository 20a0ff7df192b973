/* SPDX-License-Identifier: Apache-2.0 */
/* At a source whose destination is gone for good: run-on, release. */
#include <stddef.h>

#include "ctl/commands.h"

struct fence_args {
	const char *confirm;
};

struct fence_call {
	const char *id, *holder;
	int (*call)(struct client *c, const char *id, const char *holder, struct json_object **ret,
	            struct error *err);
};

static const struct fence_args fence_defaults = { .confirm = NULL };

static const struct option_spec fence_options[] = {
	{ "confirm", OPTION_STRING, offsetof(struct fence_args, confirm), "HOLDER",
	  "the destination that is gone: \"holder\" of \"status\"" },
};

static int call_fence(struct client *c, const void *arg, struct json_object **ret,
                      struct error *err)
{
	const struct fence_call *fence = arg;

	return fence->call(c, fence->id, fence->holder, ret, err);
}

static int fence_run(const struct command *command, const struct ctl_common *common,
                     const struct fence_call *fence)
{
	if (!fence->holder)
		return command_misused(
		        command,
		        "--confirm HOLDER is missing: the \"holder\" that \"status\" says");
	return command_call_and_print(command, common, call_fence, fence);
}

static int run_on_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct fence_args *a = args;

	return fence_run(&run_on_command, common,
	                 &(struct fence_call){ id, a->confirm, client_run_on });
}

const struct command run_on_command = {
	.name = "run-on",
	.operand = "ID",
	.summary = "Source, destination gone for good: the guest runs on here.",
	.details =
	        "As it was when it was paused. You vouch that it does not run at the destination,\n"
	        "which is never served again, and is told to stop its guest if it comes back.",
	.options = fence_options,
	.n_options = 1,
	.defaults = &fence_defaults,
	.args_size = sizeof fence_defaults,
	.json = true,
	.run = run_on_run,
};

static int release_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct fence_args *a = args;

	return fence_run(&release_command, common,
	                 &(struct fence_call){ id, a->confirm, client_release });
}

const struct command release_command = {
	.name = "release",
	.operand = "ID",
	.summary = "Source, destination out of reach for good: the guest is given up here.",
	.details = "It is the destination's. What of its memory is not there yet is lost.",
	.options = fence_options,
	.n_options = 1,
	.defaults = &fence_defaults,
	.args_size = sizeof fence_defaults,
	.json = true,
	.run = release_run,
};
