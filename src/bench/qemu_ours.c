// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "bench/qemu.h"
#include "ctl/client.h"
#include "ctl/json.h"
#include "util/clock.h"

#define ATTACH_WAIT_MS 30000
#define ATTACH_NAP_MS 5
#define WATCH_INTERVAL_MS 50

/* One migration's own. */
struct ours {
	struct bench *b;
	char id[32];
	struct process source_adapter;
	struct process destination_adapter;
	struct bench_vmm *source, *destination;
};

static int start_adapter(struct ours *o, struct process *p, const char *side,
                         const struct bench_vmm *vmm, struct error *err)
{
	char socket[128], log[PATH_MAX], name[48];
	/* clang-format off */
	char *const argv[] = {
		o->b->adapter_path, (char *)side,
		"--id", o->id, "--qmp", (char *)vmm->adapter_qmp_path, "--socket", socket,
		NULL,
	};
	/* clang-format on */

	snprintf(socket, sizeof socket, "%s/%s.vmm", o->b->dir, side);
	snprintf(log, sizeof log, "%.*s/%s-postcopy-qemu.log", PATH_MAX - 64, o->b->log_dir, side);
	snprintf(name, sizeof name, "the %s's postcopy-qemu", side);
	return process_start(p, name, argv, log, err);
}

static int check_processes(struct ours *o, struct error *err)
{
	struct process *const all[] = {
		&o->b->source_daemon,    &o->b->destination_daemon, &o->source_adapter,
		&o->destination_adapter, &o->destination->process,
	};
	int r = 0;

	for (size_t i = 0; !r && i < sizeof all / sizeof *all; i++)
		r = process_check(all[i], err);
	return r;
}

static int wait_attached(struct ours *o, struct client *daemon, struct error *err)
{
	uint64_t deadline = clock_now_ns() + ATTACH_WAIT_MS * NSEC_PER_MSEC;

	for (;;) {
		_cleanup_json_ struct json_object *m = NULL;
		int r = client_get(daemon, o->id, NULL, &m, err);

		if (!r)
			r = check_processes(o, err);
		if (r < 0 || !strcmp(json_string_or(m, "state", ""), "attached"))
			return r;
		if (clock_now_ns() > deadline)
			return error_set(err, -ETIMEDOUT, "QEMU is not attached: \"%s\" (%s)",
			                 json_string_or(m, "state", "?"),
			                 json_string_or(m, "reason", ""));
		poll(NULL, 0, ATTACH_NAP_MS);
	}
}

static int follow(struct json_object *migration, void *userdata, struct error *err)
{
	(void)migration;
	return check_processes(userdata, err);
}

static int migrate(struct ours *o, struct pace *pace, struct error *err)
{
	_cleanup_json_ struct json_object *last = NULL;
	int r;

	pace_begin(pace);
	r = client_start(o->b->destination, o->id, false, NULL, NULL, NULL, err);
	if (r < 0)
		return error_prefix(err, "starting");
	r = client_watch(o->b->watcher, o->id, NULL, WATCH_INTERVAL_MS, follow, o, &last, err);
	if (r < 0)
		return r;
	if (strcmp(json_string_or(last, "state", ""), "complete"))
		return error_set(err, -EIO, "the migration ended %s: %s",
		                 json_string_or(last, "state", "without a state"),
		                 json_string_or(last, "reason", "no reason given"));
	return 0;
}

static int move(struct bench *b, struct bench_vmm *source, struct bench_vmm *destination,
                unsigned int n, struct pace *pace, struct error *err)
{
	struct ours o = {
		.b = b,
		.source_adapter = PROCESS_INIT,
		.destination_adapter = PROCESS_INIT,
		.source = source,
		.destination = destination,
	};
	int r;

	snprintf(o.id, sizeof o.id, "bench-%d-%u", (int)getpid(), n);
	r = bench_prepare(b, o.id, true, err);
	if (!r)
		r = start_adapter(&o, &o.source_adapter, "source", source, err);
	if (!r)
		r = start_adapter(&o, &o.destination_adapter, "destination", destination, err);
	if (!r)
		r = wait_attached(&o, b->source, err);
	if (!r)
		r = wait_attached(&o, b->destination, err);
	if (!r)
		r = migrate(&o, pace, err);
	process_stop(&o.source_adapter);
	process_stop(&o.destination_adapter);
	return r;
}

const struct bench_way bench_way_ours = {
	.name = "postcopyd",
	.title = "postcopyd, TLS",
	.move = move,
};
