/* SPDX-License-Identifier: Apache-2.0 */
/* migrate: a whole migration by one command, at both daemons (move.h). */
#include "ctl/commands.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/move.h"
#include "ctl/watch.h"
#include "util/cleanup.h"

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

static void say_waiting(const struct move *m, const struct move_side *absent)
{
	(void)m;
	fprintf(stderr, "postcopyctl migrate: waiting for the %s's VMM to attach\n", absent->role);
}

static int connect_side(struct move_side *s, const struct ctl_common *common, const char *control,
                        int cancel_fd)
{
	struct ctl_common one = *common;

	s->control = one.control = control;
	return command_connect(&migrate_command, &one, cancel_fd, &s->client);
}

/* Return: the exit code. */
static int migrate(struct move *m, const struct ctl_common *common)
{
	_cleanup_json_ struct json_object *last = NULL;
	struct watch *watch = watch_new(common->json);
	struct error err = ERROR_INIT;
	int rc;

	m->on_update = watch_update;
	m->userdata = watch;
	rc = move_guest(m, &last, &err);
	watch_free(watch);
	if (rc == -ECANCELED) {
		fprintf(stderr, "postcopyctl migrate: interrupted, and the migration is not: the "
		                "same command again goes on with it, \"cancel\" ends it before the "
		                "guest has moved\n");
		return CTL_INTERRUPTED;
	}
	if (rc && m->asked)
		return command_refused(&migrate_command, common, m->asked->client, &err);
	return rc ? command_failed(&migrate_command, &err) : CTL_OK;
}

static int migrate_run(const struct ctl_common *common, const char *id, const void *args)
{
	const struct migrate_args *a = args;
	struct error err = ERROR_INIT;
	_cleanup_close_ int cancel_fd = -1;
	struct move m;
	int code;

	if (!a->to)
		return command_misused(&migrate_command,
		                       "--to is missing: the destination's daemon");
	cancel_fd = interrupt_fd(&err);
	if (cancel_fd < 0)
		return command_failed(&migrate_command, &err);
	move_init(&m, id);
	m.source_address = a->source;
	m.attach_timeout_s = a->attach_timeout_s;
	m.limits.streams = (unsigned int)a->streams;
	if (a->bandwidth != BANDWIDTH_UNSET)
		m.limits.bandwidth_bytes_per_s = (int64_t)a->bandwidth;
	m.interval_ms = WATCH_INTERVAL_MS;
	m.cancel_fd = cancel_fd;
	m.on_waiting = say_waiting;
	code = connect_side(&m.source, common, a->from ? a->from : common->control, cancel_fd);
	if (!code)
		code = connect_side(&m.destination, common, a->to, cancel_fd);
	if (!code)
		code = migrate(&m, common);
	client_free(m.source.client);
	client_free(m.destination.client);
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
