/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/queue_options.h"
#include "ctl/warm_options.h"

int command_failed(const struct command *cmd, const struct error *err)
{
	fprintf(stderr, "postcopyctl %s: %s\n", cmd->name, err->text);
	return CTL_FAILED;
}

int command_misused(const struct command *cmd, const char *what)
{
	fprintf(stderr, "postcopyctl %s: %s (see postcopyctl %s --help)\n", cmd->name, what,
	        cmd->name);
	return CTL_USAGE;
}

/* {"error": {code, reason, message}} */
static void print_error(const char *code, const char *reason, const struct error *err)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct json_object *error = json_object_new_object();

	json_set_string(error, "code", code);
	json_set_string(error, "reason", reason);
	json_set_string(error, "message", err->text);
	json_object_object_add(o, "error", error);
	json_print(o);
}

struct client_target command_target(const struct ctl_common *common)
{
	return (struct client_target){
		.control = common->control,
		.cert = common->cert,
		.key = common->key,
		.ca = common->ca,
		.server_name = common->server_name,
		.timeout_ms = (unsigned int)common->timeout_s * 1000,
	};
}

int command_connect(const struct command *cmd, const struct ctl_common *common, int cancel_fd,
                    struct client **ret)
{
	const struct client_target target = command_target(common);
	struct error err = ERROR_INIT;
	int r = client_new(&target, cancel_fd, ret, &err);

	if (!r)
		return CTL_OK;
	command_failed(cmd, &err);
	if (common->json)
		print_error(r == -EINVAL ? "INVALID_ARGUMENT" : "UNAVAILABLE", "", &err);
	if (r == -ECANCELED)
		return CTL_INTERRUPTED;
	return r == -EINVAL ? CTL_USAGE : CTL_UNREACHABLE;
}

static int exit_code(const struct client_refusal *refusal, int r)
{
	/* The connection's failure, not the daemon's word. */
	if (!*refusal->code)
		return r == -ECANCELED                                  ? CTL_INTERRUPTED
		       : r == -EPIPE || r == -ETIMEDOUT || r == -EPROTO ? CTL_UNREACHABLE
		                                                        : CTL_FAILED;
	switch (r) {
	case -ENOENT:
		return CTL_NOT_FOUND;
	case -EINVAL:
	case -EBUSY:
	case -EEXIST:
	case -EOPNOTSUPP:
		return CTL_USAGE;
	case -EAGAIN:
	case -ETIMEDOUT:
		return CTL_UNREACHABLE;
	default:
		return CTL_FAILED;
	}
}

int command_refused(const struct command *cmd, const struct ctl_common *common,
                    const struct client *c, const struct error *err)
{
	const struct client_refusal *refusal = client_refusal(c);
	int code = exit_code(refusal, err->code);

	if (code == CTL_INTERRUPTED)
		return code;
	command_failed(cmd, err);
	if (common->json)
		print_error(*refusal->code ? refusal->code : "UNAVAILABLE", refusal->reason, err);
	return code;
}

int command_call(const struct command *cmd, const struct ctl_common *common,
                 int (*call)(struct client *c, const void *arg, struct json_object **ret,
                             struct error *err),
                 const void *arg, struct json_object **ret)
{
	struct error err = ERROR_INIT;
	struct client *c;
	int code = command_connect(cmd, common, -1, &c);

	if (code)
		return code;
	if (call(c, arg, ret, &err) < 0)
		code = command_refused(cmd, common, c, &err);
	client_free(c);
	return code;
}

int command_call_and_print(const struct command *cmd, const struct ctl_common *common,
                           int (*call)(struct client *c, const void *arg, struct json_object **ret,
                                       struct error *err),
                           const void *arg)
{
	_cleanup_json_ struct json_object *migration = NULL;
	int code = command_call(cmd, common, call, arg, &migration);

	if (code)
		return code;
	if (common->json)
		json_print(migration);
	else
		migration_print(migration);
	return CTL_OK;
}

/* start */

struct start_args {
	bool switchover;
	struct warm_args warm;
	struct queue_args queue;
};

struct start_call {
	const char *id;
	bool hold;
	const struct client_warm *warm;
	const struct client_queue *queue;
};

static const struct start_args start_defaults = { .switchover = true };

static const struct option_spec start_options[] = {
	WARM_OPTIONS(offsetof(struct start_args, warm)),
	QUEUE_OPTIONS(offsetof(struct start_args, queue)),
	{ "no-switchover", OPTION_NO, offsetof(struct start_args, switchover), NULL,
	  "connect, and warm where that is asked for, only; \"switchover\"\ngoes on" },
};

static int call_start(struct client *c, const void *arg, struct json_object **ret,
                      struct error *err)
{
	const struct start_call *start = arg;

	return client_start(c, start->id, start->hold, start->warm, start->queue, ret, err);
}

static int start_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct start_args *a = args;
	struct client_warm warm;
	struct client_queue queue;
	const struct start_call start = { id, !a->switchover, warm_args_policy(&a->warm, &warm),
		                          queue_args_get(&a->queue, &queue) };

	return command_call_and_print(&start_command, common, call_start, &start);
}

const struct command start_command = {
	.name = "start",
	.operand = "ID",
	.summary =
	        "Destination: connect to the source, then pause the guest there and run it here.",
	.options = start_options,
	.n_options = sizeof start_options / sizeof *start_options,
	.defaults = &start_defaults,
	.args_size = sizeof start_defaults,
	.json = true,
	.run = start_run,
};

/* switchover: the id and nothing else */

static int call_switchover(struct client *c, const void *id, struct json_object **ret,
                           struct error *err)
{
	return client_switchover(c, id, ret, err);
}

static int switchover_run(const struct ctl_common *common, const char *id, const void *args)
{
	(void)args;
	return command_call_and_print(&switchover_command, common, call_switchover, id);
}

const struct command switchover_command = {
	.name = "switchover",
	.operand = "ID",
	.summary =
	        "Destination: pause the guest on the source and run it here. There is no way back.",
	.json = true,
	.run = switchover_run,
};

/* status, cancel, delete: and a role, where both halves are here */

struct half_args {
	const char *role;
};

struct half_call {
	const char *id, *role;
};

static const struct half_args half_defaults = { .role = NULL };

static const struct option_spec half_options[] = {
	OPTION_ROLE(struct half_args, role),
};

static struct half_call half_call(const char *id, const void *args)
{
	const struct half_args *a = args;

	return (struct half_call){ id, a->role };
}

static int call_get(struct client *c, const void *arg, struct json_object **ret, struct error *err)
{
	const struct half_call *half = arg;

	return client_get(c, half->id, half->role, ret, err);
}

static int status_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct half_call half = half_call(id, args);

	return command_call_and_print(&status_command, common, call_get, &half);
}

const struct command status_command = {
	.name = "status",
	.operand = "ID",
	.summary = "Print one migration's state and measurements.",
	.options = half_options,
	.n_options = 1,
	.defaults = &half_defaults,
	.args_size = sizeof half_defaults,
	.json = true,
	.run = status_run,
};

static int call_cancel(struct client *c, const void *arg, struct json_object **ret,
                       struct error *err)
{
	const struct half_call *half = arg;

	return client_cancel(c, half->id, half->role, ret, err);
}

static int cancel_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct half_call half = half_call(id, args);

	return command_call_and_print(&cancel_command, common, call_cancel, &half);
}

const struct command cancel_command = {
	.name = "cancel",
	.operand = "ID",
	.summary =
	        "Give a migration up. Possible until switchover; the guest runs on at the source.",
	.options = half_options,
	.n_options = 1,
	.defaults = &half_defaults,
	.args_size = sizeof half_defaults,
	.json = true,
	.run = cancel_run,
};

static int call_delete(struct client *c, const void *arg, struct json_object **ret,
                       struct error *err)
{
	const struct half_call *half = arg;

	return client_delete(c, half->id, half->role, ret, err);
}

static int delete_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct half_call half = half_call(id, args);
	_cleanup_json_ struct json_object *answer = NULL;
	int code = command_call(&delete_command, common, call_delete, &half, &answer);

	if (!code && common->json)
		json_print(answer);
	return code;
}

const struct command delete_command = {
	.name = "delete",
	.operand = "ID",
	.summary = "Forget what has ended by this id. Its id can be used again without that.",
	.options = half_options,
	.n_options = 1,
	.defaults = &half_defaults,
	.args_size = sizeof half_defaults,
	.json = true,
	.run = delete_run,
};

/* recover */

struct recover_args {
	const char *source;
};

struct recover_call {
	const char *id, *source;
};

static const struct recover_args recover_defaults = { .source = NULL };

static const struct option_spec recover_options[] = {
	{ "source", OPTION_STRING, offsetof(struct recover_args, source), "HOST:PORT",
	  "where the source's daemon is to be found now (where it was)" },
};

static int call_recover(struct client *c, const void *arg, struct json_object **ret,
                        struct error *err)
{
	const struct recover_call *recover = arg;

	return client_recover(c, recover->id, recover->source, ret, err);
}

static int recover_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct recover_args *a = args;
	const struct recover_call recover = { id, a->source };

	return command_call_and_print(&recover_command, common, call_recover, &recover);
}

const struct command recover_command = {
	.name = "recover",
	.operand = "ID",
	.summary = "Destination: dial the source anew, at another address where one is given.",
	.details = "Never needed where the same path comes back: that is found out without it.",
	.options = recover_options,
	.n_options = 1,
	.defaults = &recover_defaults,
	.args_size = sizeof recover_defaults,
	.json = true,
	.run = recover_run,
};
