/* SPDX-License-Identifier: Apache-2.0 */
/*
 * migrate: a whole migration by one command, at both daemons.
 *
 * The token is made here and goes to the two daemons alone. What is there already is gone on with:
 * a guest that is attached as source keeps its attachment and gets a new token, and a migration
 * that is under way is followed. So the same command again goes on where the one before was
 * interrupted.
 */
#include "ctl/commands.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/token.h"
#include "ctl/watch.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define LOOK_EVERY_MS 100
#define ADDRESS_MAX 300

struct migrate_args {
	const char *from;
	const char *to;
	const char *source;
	uint64_t attach_timeout_s;
	uint64_t streams;
	uint64_t bandwidth;
};

#define MIGRATE(field) offsetof(struct migrate_args, field)
#define BANDWIDTH_UNSET UINT64_MAX
#define BANDWIDTH_MAX INT64_MAX

static const struct migrate_args migrate_defaults = { .attach_timeout_s = 60,
	                                              .bandwidth = BANDWIDTH_UNSET };

static const struct option_spec migrate_options[] = {
	{ "from", OPTION_STRING, MIGRATE(from), "ADDRESS",
	  "the source's daemon: its control service (what --control says)" },
	{ "to", OPTION_STRING, MIGRATE(to), "ADDRESS", "the destination's daemon, likewise" },
	{ "source", OPTION_STRING, MIGRATE(source), "HOST:PORT",
	  "where the destination finds the source's page streams (what the\nsource's daemon says; "
	  "where it listens on all addresses, the host\nof --from)" },
	{ "attach-timeout", OPTION_UINT, MIGRATE(attach_timeout_s), "SECONDS",
	  "how long the VMMs may take to attach (60)", 1, 86400 },
	{ "streams", OPTION_UINT, MIGRATE(streams), "N", "bulk connections, 1 to 16", 1, 16 },
	{ "bandwidth", OPTION_SIZE, MIGRATE(bandwidth), "BYTES",
	  "bytes/s that bulk may take, 0 for no cap", 0, BANDWIDTH_MAX },
};

struct side {
	const char *role; /* "source" or "destination" */
	struct ctl_common common;
	struct client *client;
};

struct run {
	const char *id;
	const struct migrate_args *args;
	int cancel_fd;
	struct side source, destination;
};

/* Says which of the two it was. Return: the exit code. */
static int refused_by(const struct side *s, struct error *err)
{
	error_prefix(err, "the %s's daemon", s->role);
	return command_refused(&migrate_command, &s->common, s->client, err);
}

static bool is_final(const char *state)
{
	return !strcmp(state, "complete") || !strcmp(state, "failed") ||
	       !strcmp(state, "cancelled");
}

static bool is_before_start(const char *state)
{
	return !strcmp(state, "prepared") || !strcmp(state, "attached");
}

/* @ret: the state of what has not ended there; empty: nothing. Return: an exit code. */
static int state_at(const struct side *s, const char *id, char ret[24])
{
	_cleanup_json_ struct json_object *migration = NULL;
	struct error err = ERROR_INIT;
	int rc = client_get(s->client, id, s->role, &migration, &err);

	*ret = 0;
	if (rc == -ENOENT)
		return CTL_OK;
	if (rc)
		return refused_by(s, &err);
	snprintf(ret, 24, "%s", json_string_or(migration, "state", ""));
	if (is_final(ret))
		*ret = 0;
	return CTL_OK;
}

static bool is_any_address(const char *host, size_t len)
{
	return (len == 7 && !memcmp(host, "0.0.0.0", len)) ||
	       (len == 4 && !memcmp(host, "[::]", len));
}

/* Where page streams are served, as the destination may call it. Return: an exit code. */
static int find_source_address(const struct run *r, char ret[ADDRESS_MAX])
{
	_cleanup_json_ struct json_object *info = NULL;
	struct error err = ERROR_INIT;
	const char *pages, *colon, *host = r->source.common.control;
	size_t len;

	if (r->args->source) {
		snprintf(ret, ADDRESS_MAX, "%s", r->args->source);
		return CTL_OK;
	}
	if (client_get_info(r->source.client, &info, &err))
		return refused_by(&r->source, &err);
	pages = json_string_or(info, "pages_address", "");
	colon = strrchr(pages, ':');
	if (!colon) {
		error_set(&err, -EBUSY, "it serves no page streams (\"listen\")");
		return refused_by(&r->source, &err);
	}
	len = (size_t)(strrchr(host, ':') ? strrchr(host, ':') - host : 0);
	if (!is_any_address(pages, (size_t)(colon - pages)))
		snprintf(ret, ADDRESS_MAX, "%s", pages);
	else if (*host != '/' && len && strncmp(host, "unix:", 5))
		snprintf(ret, ADDRESS_MAX, "%.*s%s", (int)len, host, colon);
	else
		snprintf(ret, ADDRESS_MAX, "%s%s", json_string_or(info, "hostname", ""), colon);
	return CTL_OK;
}

static int prepare_side(const struct run *r, const struct side *s, const uint8_t *token,
                        const char *source_address)
{
	struct client_prepare p = { .id = r->id, .limits = CLIENT_LIMITS_INIT };
	struct error err = ERROR_INIT;
	int rc;

	memcpy(p.token, token, sizeof p.token);
	if (source_address) {
		p.destination = true;
		p.source = source_address;
		p.limits.streams = (unsigned int)r->args->streams;
		if (r->args->bandwidth != BANDWIDTH_UNSET)
			p.limits.bandwidth_bytes_per_s = (int64_t)r->args->bandwidth;
	}
	rc = client_prepare(s->client, &p, NULL, &err);
	explicit_bzero(p.token, sizeof p.token);
	return rc ? refused_by(s, &err) : CTL_OK;
}

/* Both halves, with one token. @at_source: what there is already. Return: an exit code. */
static int prepare_both(const struct run *r, const char *at_source)
{
	uint8_t token[CLIENT_TOKEN_BYTES];
	char address[ADDRESS_MAX];
	struct error err = ERROR_INIT;
	int code = find_source_address(r, address);

	if (code)
		return code;
	if (token_make(token, &err))
		return command_failed(&migrate_command, &err);
	if (!*at_source)
		code = prepare_side(r, &r->source, token, NULL);
	else if (client_set_token(r->source.client, r->id, token, NULL, &err))
		code = refused_by(&r->source, &err);
	if (!code)
		code = prepare_side(r, &r->destination, token, address);
	explicit_bzero(token, sizeof token);
	return code;
}

/* Return: whether to go on. */
static bool sleep_a_little(const struct run *r)
{
	struct pollfd pfd = { .fd = r->cancel_fd, .events = POLLIN };

	return !poll(&pfd, 1, LOOK_EVERY_MS);
}

/* What was prepared for a VMM that has not come is taken back; a source that has one keeps it. */
static int give_up_waiting(const struct run *r, const struct side *absent)
{
	struct error err = ERROR_INIT;

	(void)client_cancel(r->destination.client, r->id, "destination", NULL, NULL);
	if (absent == &r->source)
		(void)client_cancel(r->source.client, r->id, "source", NULL, NULL);
	error_set(
	        &err, -ETIMEDOUT,
	        "the %s's VMM has not attached for %u s: nothing has been moved, the guest runs on "
	        "where it is",
	        absent->role, (unsigned int)r->args->attach_timeout_s);
	return command_failed(&migrate_command, &err);
}

/* Until both VMMs are attached. Return: an exit code. */
static int wait_attached(const struct run *r)
{
	const struct side *sides[] = { &r->source, &r->destination }, *told = NULL;
	uint64_t until_ns = clock_now_ns() + r->args->attach_timeout_s * NSEC_PER_SEC;

	for (size_t i = 0; i < 2;) {
		char state[24];
		int code = state_at(sides[i], r->id, state);

		if (code)
			return code;
		if (strcmp(state, "prepared")) {
			i++;
			continue;
		}
		if (clock_now_ns() >= until_ns)
			return give_up_waiting(r, sides[i]);
		if (told != sides[i])
			fprintf(stderr, "postcopyctl migrate: waiting for the %s's VMM to attach\n",
			        sides[i]->role);
		told = sides[i];
		if (!sleep_a_little(r))
			return CTL_INTERRUPTED;
	}
	return CTL_OK;
}

static int start(const struct run *r)
{
	struct error err = ERROR_INIT;
	int code = wait_attached(r);

	if (code)
		return code;
	return client_start(r->destination.client, r->id, false, NULL, &err)
	               ? refused_by(&r->destination, &err)
	               : CTL_OK;
}

static int migrate(const struct run *r)
{
	char at_source[24], at_destination[24];
	int code = state_at(&r->source, r->id, at_source);

	if (!code)
		code = state_at(&r->destination, r->id, at_destination);
	if (!code && !*at_destination)
		code = prepare_both(r, at_source);
	if (!code && (!*at_destination || is_before_start(at_destination)))
		code = start(r);
	if (!code)
		code = watch_follow(&migrate_command, &r->destination.common, r->destination.client,
		                    r->id, r->destination.role, WATCH_INTERVAL_MS);
	if (code == CTL_INTERRUPTED)
		fprintf(stderr,
		        "postcopyctl migrate: interrupted, and the migration is not: the same "
		        "command "
		        "again goes on with it, \"cancel\" ends it before the guest has moved\n");
	return code;
}

static int connect_side(struct side *s, const struct ctl_common *common, const char *control,
                        int cancel_fd)
{
	s->common = *common;
	s->common.control = control;
	return command_connect(&migrate_command, &s->common, cancel_fd, &s->client);
}

static int migrate_run(const struct ctl_common *common, const char *id, const void *args)
{
	struct run r = {
		.id = id, .args = args, .source.role = "source", .destination.role = "destination"
	};
	struct error err = ERROR_INIT;
	_cleanup_close_ int cancel_fd = -1;
	int code;

	if (!r.args->to)
		return command_misused(&migrate_command,
		                       "--to is missing: the destination's daemon");
	cancel_fd = interrupt_fd(&err);
	if (cancel_fd < 0)
		return command_failed(&migrate_command, &err);
	r.cancel_fd = cancel_fd;
	code = connect_side(&r.source, common, r.args->from ? r.args->from : common->control,
	                    cancel_fd);
	if (!code)
		code = connect_side(&r.destination, common, r.args->to, cancel_fd);
	if (!code)
		code = migrate(&r);
	client_free(r.source.client);
	client_free(r.destination.client);
	return code;
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
