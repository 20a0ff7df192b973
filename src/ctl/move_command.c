/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/move_command.h"

#include <errno.h>
#include <stdio.h>

#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/watch.h"
#include "util/cleanup.h"

struct run {
	const struct command *cmd;
	const struct ctl_common *common;
	const struct move_steps *steps;
	struct watch *watch;
	struct move move;
	struct client_queue queue;
};

static int on_absent(const struct move *m, const struct move_side *absent, bool first,
                     struct error *err)
{
	const struct run *run = m->userdata;

	if (first)
		fprintf(stderr, "postcopyctl %s: waiting for the %s's VMM to attach\n",
		        run->cmd->name, absent->role);
	return run->steps ? run->steps->on_absent(m, absent, first, run->steps->userdata, err) : 0;
}

static int show(struct json_object *migration, void *userdata, struct error *err)
{
	const struct run *run = userdata;

	return watch_update(migration, run->watch, err);
}

static int connect_side(struct run *run, struct move_side *s, const char *control)
{
	struct ctl_common one = *run->common;

	s->control = one.control = control;
	return command_connect(run->cmd, &one, run->move.cancel_fd, &s->client);
}

/*
 * What was interrupted may be complete by now; or the guest was started at the source anew, and its
 * VMM waits to be prepared. Nobody here can tell which: so it is said, and begun.
 */
static void tell_if_done(const struct run *run)
{
	const struct move *m = &run->move;

	if (move_has_completed(m, &m->source, NULL) && move_has_completed(m, &m->destination, NULL))
		fprintf(stderr,
		        "postcopyctl %s: the migration before is complete: its guest is at the "
		        "destination, %s, unless it was started at the source since\n",
		        run->cmd->name, m->destination.control);
}

/* Return: the exit code. */
static int run_move(struct run *run)
{
	_cleanup_json_ struct json_object *last = NULL;
	struct move *m = &run->move;
	struct error err = ERROR_INIT;
	bool under_way = false;
	int rc = 0, code;

	/* First of all: what ends from now on is followed to that end, and not begun once more. */
	if (run->steps && !move_is_under_way(m, &under_way, &err) && !under_way)
		rc = run->steps->find_done(m, run->steps->userdata, &last, &err);
	else if (!run->steps)
		tell_if_done(run);
	if (rc)
		return command_failed(run->cmd, &err);
	run->watch = watch_new(run->common->json);
	if (last)
		rc = show(last, run, &err);
	else
		rc = under_way ? move_follow(m, &last, &err) : move_guest(m, &last, &err);
	watch_free(run->watch);
	if (rc == -ECANCELED) {
		fprintf(stderr,
		        "postcopyctl %s: interrupted, and the migration is not: the same command "
		        "again goes on with it, \"cancel\" ends it before the guest has moved\n",
		        run->cmd->name);
		return CTL_INTERRUPTED;
	}
	if (!rc)
		return CTL_OK;
	code = m->asked ? command_refused(run->cmd, run->common, m->asked->client, &err)
	                : command_failed(run->cmd, &err);
	if (run->steps)
		run->steps->on_failed(m, last, run->steps->userdata);
	return code;
}

static void set_up(struct run *run, const char *id, const struct move_args *a, int cancel_fd)
{
	struct move *m = &run->move;

	move_init(m, id);
	m->source_address = a->source;
	m->attach_timeout_s = a->attach_timeout_s;
	m->limits.streams = (unsigned int)a->streams;
	if (a->bandwidth != UINT64_MAX)
		m->limits.bandwidth_bytes_per_s = (int64_t)a->bandwidth;
	m->queue = queue_args_get(&a->queue, &run->queue);
	m->interval_ms = WATCH_INTERVAL_MS;
	m->cancel_fd = cancel_fd;
	m->on_update = show;
	m->on_absent = on_absent;
	m->userdata = run;
}

int move_command_run(const struct command *cmd, const struct ctl_common *common, const char *id,
                     const struct move_args *a, const struct move_steps *steps)
{
	struct run run = { .cmd = cmd, .common = common, .steps = steps };
	struct error err = ERROR_INIT;
	_cleanup_close_ int cancel_fd = -1;
	int code;

	if (!a->to)
		return command_misused(cmd, "--to is missing: the destination's daemon");
	cancel_fd = interrupt_fd(&err);
	if (cancel_fd < 0)
		return command_failed(cmd, &err);
	set_up(&run, id, a, cancel_fd);
	code = connect_side(&run, &run.move.source, a->from ? a->from : common->control);
	if (!code)
		code = connect_side(&run, &run.move.destination, a->to);
	if (!code)
		code = run_move(&run);
	client_free(run.move.source.client);
	client_free(run.move.destination.client);
	return code;
}
