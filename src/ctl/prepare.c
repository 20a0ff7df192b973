/* SPDX-License-Identifier: Apache-2.0 */
/* prepare and limits: what a migration is, and what it may do. */
#include "ctl/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/json.h"
#include "ctl/token.h"

/* As the daemon takes. */
#define UIDS_MAX 16
#define BANDWIDTH_UNSET UINT64_MAX
#define BANDWIDTH_MAX INT64_MAX

struct prepare_args {
	const char *role;
	const char *token;
	const char *token_file;
	const char *vmm_uids;
	const char *vmm_cgroup;
	uint64_t vmm_pid;
	const char *peer;
	const char *source;
	const char *map;
	uint64_t streams;
	uint64_t bandwidth;
	uint64_t weight;
	bool bulk;
	bool prefetch;
};

#define PREPARE(field) offsetof(struct prepare_args, field)

static const struct prepare_args prepare_defaults = { .bulk = true,
	                                              .prefetch = true,
	                                              .bandwidth = BANDWIDTH_UNSET };

static const struct option_spec prepare_options[] = {
	{ "role", OPTION_CHOICE, PREPARE(role), "source|destination",
	  "which side of the migration this daemon is", .choices = { "source", "destination" } },
	{ "token-file", OPTION_STRING, PREPARE(token_file), "FILE",
	  "the migration's token, 64 hex digits, read from FILE" },
	{ "token", OPTION_STRING, PREPARE(token), "HEX",
	  "the token itself (other users may see it in the list of processes)" },
	{ "vmm-uid", OPTION_STRING, PREPARE(vmm_uids), "UID[,UID...]",
	  "only a VMM of one of these users may attach" },
	{ "vmm-cgroup", OPTION_STRING, PREPARE(vmm_cgroup), "PATH",
	  "only a VMM in this cgroup or below may, such as\n/machine.slice/vm7.scope" },
	{ "vmm-pid", OPTION_UINT, PREPARE(vmm_pid), "PID", "only this process may", 1, INT32_MAX },
	{ "peer", OPTION_STRING, PREPARE(peer), "NAME",
	  "the other daemon's certificate must have this name (URI or DNS), as\nwith allow-peer" },
	{ "source", OPTION_STRING, PREPARE(source), "HOST:PORT",
	  "destination: where the source's daemon listens" },
	{ "streams", OPTION_UINT, PREPARE(streams), "N",
	  "destination: bulk connections, 1 to 16 (4, or the number of\nCPUs where that is less)",
	  1, 16 },
	{ "bandwidth", OPTION_SIZE, PREPARE(bandwidth), "BYTES",
	  "destination: bytes/s that bulk may take, 0 for no cap (what the\ndaemon is set to)", 0,
	  BANDWIDTH_MAX },
	{ "weight", OPTION_UINT, PREPARE(weight), "N",
	  "its part of this host's bandwidth against that of others, 1 to 1000\n(100)", 1, 1000 },
	{ "map", OPTION_CHOICE, PREPARE(map), "auto|eager|lazy",
	  "destination: map pages into the guest ahead of its touch (auto)",
	  .choices = { "auto", "eager", "lazy" } },
	{ "no-bulk", OPTION_NO, PREPARE(bulk), NULL,
	  "destination: move pages on demand only, until \"limits\"" },
	{ "no-prefetch", OPTION_NO, PREPARE(prefetch), NULL,
	  "destination: don't fetch the neighbours of faults first" },
};

static const char *prepare_mistake(const struct prepare_args *a)
{
	if (!a->role)
		return "--role is missing: source or destination";
	if (a->token && a->token_file)
		return "--token and --token-file exclude each other";
	if (!strcmp(a->role, "destination")) {
		if (!a->source)
			return "--source is missing: where the source's daemon listens";
		if (!a->token && !a->token_file)
			return "a destination needs the token that the source's prepare printed: "
			       "--token-file";
		return NULL;
	}
	if (a->source || a->streams || a->map || !a->bulk || !a->prefetch ||
	    a->bandwidth != BANDWIDTH_UNSET)
		return "--source, --streams, --bandwidth, --map, --no-bulk and --no-prefetch are "
		       "the destination's";
	return NULL;
}

static int token_get(const struct prepare_args *a, uint8_t *ret, struct error *err)
{
	if (a->token)
		return token_parse(a->token, "what --token gives", ret, err);
	if (a->token_file)
		return token_read(a->token_file, ret, err);
	return token_make(ret, err);
}

static int call_prepare(struct client *c, const void *arg, struct json_object **ret,
                        struct error *err)
{
	return client_prepare(c, arg, ret, err);
}

static struct client_prepare prepare_request(const char *id, const struct prepare_args *a)
{
	struct client_prepare p = {
		.id = id,
		.destination = !strcmp(a->role, "destination"),
		.source = a->source,
		.map = a->map,
		.parties = { .pid = (int64_t)a->vmm_pid, .cgroup = a->vmm_cgroup, .peer = a->peer },
		.limits = CLIENT_LIMITS_INIT,
	};

	p.limits.streams = (unsigned int)a->streams;
	if (a->bandwidth != BANDWIDTH_UNSET)
		p.limits.bandwidth_bytes_per_s = (int64_t)a->bandwidth;
	p.limits.weight = (unsigned int)a->weight;
	/* A source has no more than that. */
	if (p.destination) {
		p.limits.bulk = a->bulk;
		p.limits.prefetch = a->prefetch;
	}
	return p;
}

/* "1000,1001". Return: how many; or -EINVAL with @err set. */
static int uids_parse(const char *text, uint32_t ret[UIDS_MAX], struct error *err)
{
	int n = 0;

	while (text) {
		const char *comma = strchr(text, ',');
		size_t len = comma ? (size_t)(comma - text) : strlen(text);
		unsigned long long uid = strtoull(text, NULL, 10);

		if (!len || len > 10 || strspn(text, "0123456789") != len || uid > UINT32_MAX)
			return error_set(err, -EINVAL, "--vmm-uid: \"%.*s\" is no user's number",
			                 (int)len, text);
		if (n == UIDS_MAX)
			return error_set(err, -EINVAL, "--vmm-uid: %d users at most", UIDS_MAX);
		ret[n++] = (uint32_t)uid;
		text = comma ? comma + 1 : NULL;
	}
	return n;
}

static int prepare_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct prepare_args *a = args;
	_cleanup_json_ struct json_object *migration = NULL;
	const char *mistake = prepare_mistake(a);
	struct error err = ERROR_INIT;
	uint32_t uids[UIDS_MAX];
	struct client_prepare p;
	int code, n_uids;

	if (mistake)
		return command_misused(&prepare_command, mistake);
	p = prepare_request(id, a);
	n_uids = uids_parse(a->vmm_uids, uids, &err);
	if (n_uids < 0 || token_get(a, p.token, &err) < 0)
		return command_failed(&prepare_command, &err);
	p.parties.uids = uids;
	p.parties.n_uids = (size_t)n_uids;
	code = command_call(&prepare_command, common, call_prepare, &p, &migration);
	/* Only a token that we made needs telling. */
	if (!code && !a->token && !a->token_file) {
		char token[TOKEN_HEX + 1];

		token_format(p.token, token);
		json_set_string(migration, "token", token);
	}
	explicit_bzero(p.token, sizeof p.token);
	if (code)
		return code;
	if (common->json)
		json_print(migration);
	else
		migration_print(migration);
	return CTL_OK;
}

const struct command prepare_command = {
	.name = "prepare",
	.operand = "ID",
	.summary = "Make a migration known to one side's daemon, before its VMM attaches.",
	.details = "The source without a token makes one and prints it: the destination's prepare\n"
	           "needs the same.",
	.options = prepare_options,
	.n_options = sizeof prepare_options / sizeof *prepare_options,
	.defaults = &prepare_defaults,
	.args_size = sizeof prepare_defaults,
	.json = true,
	.run = prepare_run,
};

/* limits */

struct limits_args {
	uint64_t bandwidth;
	uint64_t streams;
	uint64_t weight;
	enum option_switch bulk;
	enum option_switch prefetch;
};

#define LIMITS(field) offsetof(struct limits_args, field)

static const struct limits_args limits_defaults = { .bandwidth = BANDWIDTH_UNSET };

static const struct option_spec limits_options[] = {
	{ "bandwidth", OPTION_SIZE, LIMITS(bandwidth), "BYTES",
	  "bytes/s that bulk may take, 0 for no cap; faults are never held back", 0,
	  BANDWIDTH_MAX },
	{ "streams", OPTION_UINT, LIMITS(streams), "N", "bulk connections, 1 to 16", 1, 16 },
	{ "weight", OPTION_UINT, LIMITS(weight), "N",
	  "its part of this host's bandwidth against that of others, 1 to 1000; a\n"
	  "source's, too",
	  1, 1000 },
	{ "bulk", OPTION_ON_OFF, LIMITS(bulk), "on|off", "fetch pages ahead of the guest" },
	{ "prefetch", OPTION_ON_OFF, LIMITS(prefetch), "on|off",
	  "fetch the neighbours of faults first" },
};

struct limits_call {
	const char *id;
	struct client_limits limits;
};

static int call_limits(struct client *c, const void *arg, struct json_object **ret,
                       struct error *err)
{
	const struct limits_call *call = arg;

	return client_set_limits(c, call->id, &call->limits, ret, err);
}

static int limits_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct limits_args *a = args;
	struct limits_call call = { id, CLIENT_LIMITS_INIT };

	if (a->bandwidth == BANDWIDTH_UNSET && !a->streams && !a->weight && !a->bulk &&
	    !a->prefetch)
		return command_misused(&limits_command, "nothing to change: --bandwidth, "
		                                        "--streams, --weight, --bulk or "
		                                        "--prefetch");
	if (a->bandwidth != BANDWIDTH_UNSET)
		call.limits.bandwidth_bytes_per_s = (int64_t)a->bandwidth;
	call.limits.streams = (unsigned int)a->streams;
	call.limits.weight = (unsigned int)a->weight;
	if (a->bulk)
		call.limits.bulk = a->bulk == SWITCH_ON;
	if (a->prefetch)
		call.limits.prefetch = a->prefetch == SWITCH_ON;
	return command_call_and_print(&limits_command, common, call_limits, &call);
}

const struct command limits_command = {
	.name = "limits",
	.operand = "ID",
	.summary = "Change what a running migration may do, at its destination.",
	.options = limits_options,
	.n_options = sizeof limits_options / sizeof *limits_options,
	.defaults = &limits_defaults,
	.args_size = sizeof limits_defaults,
	.json = true,
	.run = limits_run,
};

/* host-limits */

struct host_limits_args {
	uint64_t in, out;
};

#define HOST_LIMITS(field) offsetof(struct host_limits_args, field)

static const struct host_limits_args host_limits_defaults = { .in = BANDWIDTH_UNSET,
	                                                      .out = BANDWIDTH_UNSET };

static const struct option_spec host_limits_options[] = {
	{ "bandwidth-in", OPTION_SIZE, HOST_LIMITS(in), "BYTES",
	  "bytes/s of all page streams that come in, 0 for no limit", 0, BANDWIDTH_MAX },
	{ "bandwidth-out", OPTION_SIZE, HOST_LIMITS(out), "BYTES",
	  "bytes/s of all that leave, 0 for no limit", 0, BANDWIDTH_MAX },
};

static int64_t given(uint64_t bandwidth)
{
	return bandwidth == BANDWIDTH_UNSET ? -1 : (int64_t)bandwidth;
}

static int call_host_limits(struct client *c, const void *arg, struct json_object **ret,
                            struct error *err)
{
	const struct host_limits_args *a = arg;

	return client_set_host_limits(c, given(a->in), given(a->out), ret, err);
}

static int host_limits_run(const struct ctl_common *common, const char *operand, const void *args)
{
	_cleanup_json_ struct json_object *budget = NULL;
	const struct host_limits_args *a = args;
	int code;

	(void)operand;
	if (a->in == BANDWIDTH_UNSET && a->out == BANDWIDTH_UNSET)
		return command_misused(&host_limits_command,
		                       "nothing to change: --bandwidth-in or --bandwidth-out");
	code = command_call(&host_limits_command, common, call_host_limits, a, &budget);
	if (code)
		return code;
	if (common->json)
		json_print(budget);
	else
		budget_print(budget);
	return CTL_OK;
}

const struct command host_limits_command = {
	.name = "host-limits",
	.summary = "What all page streams of this host may take of the network, from now on.",
	.details =
	        "Faults are never held back. It holds until the daemon is started again, or the\n"
	        "configuration is read anew and says something else than before.",
	.options = host_limits_options,
	.n_options = sizeof host_limits_options / sizeof *host_limits_options,
	.defaults = &host_limits_defaults,
	.args_size = sizeof host_limits_defaults,
	.json = true,
	.run = host_limits_run,
};
