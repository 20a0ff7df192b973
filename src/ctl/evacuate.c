/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evacuate: all guests of a host to others, some at a time.
 *
 * It keeps no state: what is to be done is what the daemons say (evacuate_plan.h), each guest goes
 * by move.h, and given again it goes on. A thread for each of those that go at a time, with its own
 * connections; what they share is under one lock.
 */
#include "ctl/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/client.h"
#include "ctl/evacuate_plan.h"
#include "ctl/hook.h"
#include "ctl/interrupt.h"
#include "ctl/json.h"
#include "ctl/move.h"
#include "ctl/queue_options.h"
#include "ctl/units.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/thread.h"

#define PARALLEL_MAX 64

struct evacuate_args {
	const char *from;
	const char *to;
	const char *exec;
	bool plan;
	uint64_t parallel;
	uint64_t deadline_s;
	uint64_t tries;
	uint64_t attach_timeout_s;
	uint64_t streams;
	uint64_t bandwidth;
	struct queue_args queue;
};

#define EVACUATE(field) offsetof(struct evacuate_args, field)
#define BANDWIDTH_UNSET UINT64_MAX

static const struct evacuate_args evacuate_defaults = {
	.parallel = 4, .tries = 2, .attach_timeout_s = 60, .bandwidth = BANDWIDTH_UNSET
};

static const struct option_spec evacuate_options[] = {
	{ "from", OPTION_STRING, EVACUATE(from), "ADDRESS",
	  "the daemon whose guests are to go (what --control says)" },
	{ "to", OPTION_STRING, EVACUATE(to), "ADDRESS[,ADDRESS...]",
	  "the daemons they may go to: their control services" },
	{ "plan", OPTION_FLAG, EVACUATE(plan), NULL, "say which would go where, and do nothing" },
	{ "parallel", OPTION_UINT, EVACUATE(parallel), "N", "how many go at a time (4)", 1,
	  PARALLEL_MAX },
	{ "deadline", OPTION_UINT, EVACUATE(deadline_s), "SECONDS",
	  "none is begun after that (no deadline)", 1, 604800 },
	{ "tries", OPTION_UINT, EVACUATE(tries), "N", "how many targets are tried for a guest (2)",
	  1, EVACUATE_TARGETS_MAX },
	{ "exec", OPTION_STRING, EVACUATE(exec), "COMMAND",
	  "run for each guest once it is prepared: has its VMM started at the\ntarget, by the "
	  "environment's POSTCOPY_ID, _FROM, _TO and _MEMORY_BYTES" },
	{ "attach-timeout", OPTION_UINT, EVACUATE(attach_timeout_s), "SECONDS",
	  "how long the VMMs, and COMMAND, may take (60)", 1, 86400 },
	{ "streams", OPTION_UINT, EVACUATE(streams), "N", "bulk connections of each, 1 to 16", 1,
	  16 },
	{ "bandwidth", OPTION_SIZE, EVACUATE(bandwidth), "BYTES",
	  "bytes/s that bulk of each may take, 0 for no cap", 0, INT64_MAX },
	QUEUE_OPTIONS(EVACUATE(queue)),
};

struct evacuation {
	const struct evacuate_args *args;
	const struct ctl_common *common;
	const char *from;
	char *to_text; /* of --to, cut into targets */
	const char *to[EVACUATE_TARGETS_MAX];
	unsigned int n_to;
	int cancel_fd;
	uint64_t until_ns; /* none is begun after that */

	pthread_mutex_t lock; /* of all below, and of what is printed */
	struct evacuate_plan plan;
	size_t next; /* the first guest that nobody has taken */
	size_t n_ended;
	bool interrupted;
};

/* One connection to one of the daemons. */
static int connect_to(const struct evacuation *e, const char *control, int cancel_fd,
                      struct client **ret, struct error *err)
{
	struct ctl_common one = *e->common;
	struct client_target target;

	one.control = control;
	target = command_target(&one);
	return client_new(&target, cancel_fd, ret, err);
}

static int list_at(const struct evacuation *e, const char *control, struct json_object **ret,
                   struct error *err)
{
	struct client *c;
	int rc = connect_to(e, control, e->cancel_fd, &c, err);

	if (rc)
		return rc;
	rc = client_list(c, 0, ret, err);
	client_free(c);
	return rc ? error_prefix(err, "%s", control) : 0;
}

static int make_plan(struct evacuation *e, struct error *err)
{
	struct json_object *lists[EVACUATE_TARGETS_MAX] = { NULL };
	_cleanup_json_ struct json_object *source = NULL;
	int rc = list_at(e, e->from, &source, err);

	for (unsigned int i = 0; i < e->n_to && !rc; i++)
		rc = list_at(e, e->to[i], &lists[i], err);
	if (!rc)
		rc = evacuate_plan_make(source, lists, e->n_to, &e->plan, err);
	for (unsigned int i = 0; i < e->n_to; i++)
		json_object_put(lists[i]);
	return rc;
}

static void print_plan(const struct evacuation *e)
{
	printf("%zu guests of %s:\n", e->plan.n, e->from);
	for (size_t i = 0; i < e->plan.n; i++) {
		const struct evacuate_guest *g = &e->plan.guests[i];

		printf("  %-24s %10s  -> %s%s\n", g->id, text_bytes((double)g->memory_bytes).s,
		       e->to[g->target], g->under_way ? " (under way)" : "");
	}
	fflush(stdout);
}

/* What a move needs of us besides. */
struct step {
	struct evacuation *e;
	const struct evacuate_guest *guest;
};

static int have_vmm_started(const struct move *m, struct error *err)
{
	const struct step *s = m->userdata;
	const struct evacuate_args *a = s->e->args;
	char id[80], from[400], to[400], memory[64];
	const char *environment[] = { id, from, to, memory, NULL };

	snprintf(id, sizeof id, "POSTCOPY_ID=%s", m->id);
	snprintf(from, sizeof from, "POSTCOPY_FROM=%s", m->source.control);
	snprintf(to, sizeof to, "POSTCOPY_TO=%s", m->destination.control);
	snprintf(memory, sizeof memory, "POSTCOPY_MEMORY_BYTES=%" PRIu64, s->guest->memory_bytes);
	return hook_run(a->exec, environment, (int)a->attach_timeout_s * 1000, m->cancel_fd, err);
}

/* One try at one target. @ret_us: its downtime. @ret_lost: it may be there, or come there. */
static int try_once(struct evacuation *e, struct evacuate_guest *g, double *ret_us, bool *ret_lost,
                    struct error *err)
{
	const struct evacuate_args *a = e->args;
	_cleanup_json_ struct json_object *last = NULL;
	struct step step = { e, g };
	struct client_queue queue;
	struct move m;
	int rc;

	move_init(&m, g->id);
	m.source.control = e->from;
	m.destination.control = e->to[g->target];
	m.attach_timeout_s = a->attach_timeout_s;
	m.limits.streams = (unsigned int)a->streams;
	if (a->bandwidth != BANDWIDTH_UNSET)
		m.limits.bandwidth_bytes_per_s = (int64_t)a->bandwidth;
	m.queue = queue_args_get(&a->queue, &queue);
	m.interval_ms = 1000;
	m.cancel_fd = e->cancel_fd;
	m.on_prepared = a->exec ? have_vmm_started : NULL;
	m.userdata = &step;
	rc = connect_to(e, e->from, e->cancel_fd, &m.source.client, err);
	if (!rc)
		rc = connect_to(e, e->to[g->target], e->cancel_fd, &m.destination.client, err);
	if (!rc)
		rc = move_guest(&m, &last, err);
	client_free(m.source.client);
	client_free(m.destination.client);
	*ret_us = json_number_or(last, "downtime_us.total", 0);
	*ret_lost = m.lost_sight;
	return rc;
}

/* Return: whether to try elsewhere. The lock is held. */
static bool note_try(struct evacuation *e, struct evacuate_guest *g, int rc, bool lost,
                     double downtime_us, double us, const struct error *err)
{
	const char *to = e->to[g->target];
	bool again = false;

	g->tries++;
	if (!rc) {
		g->moved = true;
		snprintf(g->result, sizeof g->result, "moved in %s, downtime %s",
		         text_duration(us).s, text_duration(downtime_us).s);
	} else if (rc == -ECANCELED) {
		e->interrupted = true;
		snprintf(g->result, sizeof g->result, "interrupted");
	} else {
		snprintf(g->result, sizeof g->result, "%s", err->text);
		again = !lost && g->tries < e->args->tries && evacuate_plan_elsewhere(&e->plan, g);
	}
	e->n_ended += !again;
	if (!e->common->json && rc != -ECANCELED) {
		printf("[%zu/%zu] %s -> %s: %s%s\n", e->n_ended, e->plan.n, g->id, to, g->result,
		       again ? "; is tried elsewhere" : "");
		fflush(stdout);
	}
	return again;
}

static void move_one(struct evacuation *e, struct evacuate_guest *g)
{
	bool again = true;

	while (again) {
		uint64_t began_ns = clock_now_ns();
		struct error err = ERROR_INIT;
		double downtime_us;
		bool lost;
		int rc = try_once(e, g, &downtime_us, &lost, &err);

		pthread_mutex_lock(&e->lock);
		again = note_try(e, g, rc, lost, downtime_us,
		                 (double)(clock_now_ns() - began_ns) / NSEC_PER_USEC, &err);
		pthread_mutex_unlock(&e->lock);
	}
}

/* NULL: there is none, or no time for it. */
static struct evacuate_guest *take_next(struct evacuation *e)
{
	struct evacuate_guest *g = NULL;

	pthread_mutex_lock(&e->lock);
	if (!e->interrupted && e->next < e->plan.n && clock_now_ns() < e->until_ns)
		g = &e->plan.guests[e->next++];
	pthread_mutex_unlock(&e->lock);
	return g;
}

static void *mover_main(void *arg)
{
	struct evacuation *e = arg;
	struct evacuate_guest *g;

	thread_set_name("mover");
	while ((g = take_next(e)))
		move_one(e, g);
	return NULL;
}

/* Return: 0; -EAGAIN, -ENOMEM where no thread can be had at all. */
static int move_all(struct evacuation *e, struct error *err)
{
	pthread_t threads[PARALLEL_MAX];
	size_t n = 0, wanted = e->args->parallel < e->plan.n ? e->args->parallel : e->plan.n;
	int rc = 0;

	while (n < wanted && !(rc = thread_start(&threads[n], mover_main, e)))
		n++;
	for (size_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return rc && !n ? error_errno(err, rc, "a thread") : 0;
}

static struct json_object *summary_json(const struct evacuation *e)
{
	struct json_object *o = json_object_new_object(), *guests = json_object_new_array();

	for (size_t i = 0; i < e->plan.n; i++) {
		const struct evacuate_guest *g = &e->plan.guests[i];
		struct json_object *one = json_object_new_object();

		json_set_string(one, "id", g->id);
		json_set_count(one, "memory_bytes", g->memory_bytes);
		json_set_string(one, "to", e->to[g->target]);
		json_set_bool(one, "under_way", g->under_way);
		json_set_bool(one, "moved", g->moved);
		json_set_count(one, "tries", g->tries);
		json_set_string(one, "result", g->result);
		json_object_array_add(guests, one);
	}
	json_object_object_add(o, "guests", guests);
	return o;
}

/* Return: the exit code. */
static int sum_up(const struct evacuation *e)
{
	size_t moved = 0, failed = 0;

	for (size_t i = 0; i < e->plan.n; i++) {
		moved += e->plan.guests[i].moved;
		failed += !e->plan.guests[i].moved && e->plan.guests[i].tries;
	}
	if (e->common->json) {
		_cleanup_json_ struct json_object *o = summary_json(e);

		json_print(o);
	} else {
		printf("%zu moved, %zu failed, %zu not begun\n", moved, failed,
		       e->plan.n - moved - failed);
	}
	if (e->interrupted) {
		fprintf(stderr, "postcopyctl evacuate: interrupted: what was started goes on by "
		                "itself, all others are where they were; the same command again "
		                "goes on\n");
		return CTL_INTERRUPTED;
	}
	return moved == e->plan.n ? CTL_OK : CTL_FAILED;
}

/* --to into targets. Return: NULL, or what is wrong with it. */
static const char *cut_targets(struct evacuation *e)
{
	char *rest = e->to_text, *one;

	while ((one = strsep(&rest, ","))) {
		if (!*one)
			return "--to: an address is empty";
		if (e->n_to == EVACUATE_TARGETS_MAX)
			return "--to: 32 addresses at most";
		e->to[e->n_to++] = one;
	}
	return NULL;
}

static int evacuate(struct evacuation *e)
{
	struct error err = ERROR_INIT;
	int rc = make_plan(e, &err);

	if (rc == -ECANCELED)
		return CTL_INTERRUPTED;
	if (rc) {
		command_failed(&evacuate_command, &err);
		return rc == -ENOMEM ? CTL_FAILED : CTL_UNREACHABLE;
	}
	if (!e->common->json)
		print_plan(e);
	if (!e->args->plan && move_all(e, &err))
		return command_failed(&evacuate_command, &err);
	if (!e->args->plan)
		return sum_up(e);
	if (e->common->json) {
		_cleanup_json_ struct json_object *o = summary_json(e);

		json_print(o);
	}
	return CTL_OK;
}

static int evacuate_run(const struct ctl_common *common, const char *operand, const void *args)
{
	struct evacuation e = { .args = args, .common = common, .lock = PTHREAD_MUTEX_INITIALIZER };
	_cleanup_close_ int cancel_fd = -1;
	_cleanup_free_ char *to_text = NULL;
	struct error err = ERROR_INIT;
	const char *mistake;
	int code;

	(void)operand;
	if (!e.args->to)
		return command_misused(&evacuate_command, "--to is missing: where the guests go");
	to_text = e.to_text = strdup(e.args->to);
	mistake = to_text ? cut_targets(&e) : "out of memory";
	if (mistake)
		return command_misused(&evacuate_command, mistake);
	cancel_fd = interrupt_fd(&err);
	if (cancel_fd < 0)
		return command_failed(&evacuate_command, &err);
	e.cancel_fd = cancel_fd;
	e.from = e.args->from ? e.args->from : common->control;
	e.until_ns = e.args->deadline_s ? clock_now_ns() + e.args->deadline_s * NSEC_PER_SEC
	                                : UINT64_MAX;
	code = evacuate(&e);
	evacuate_plan_free(&e.plan);
	return code;
}

const struct command evacuate_command = {
	.name = "evacuate",
	.summary = "Move all guests of a host to others, some at a time.",
	.details =
	        "All that are attached as sources. The plan is printed first. A guest that could\n"
	        "not be moved to one target is tried at another, if its VMM attaches again.\n"
	        "Status 0 where all have gone, 1 where some have not. Interrupted it leaves each\n"
	        "guest here or there; the same command again goes on.",
	.options = evacuate_options,
	.n_options = sizeof evacuate_options / sizeof *evacuate_options,
	.defaults = &evacuate_defaults,
	.args_size = sizeof evacuate_defaults,
	.json = true,
	.run = evacuate_run,
};
