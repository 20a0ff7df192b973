/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/queue.h"

#include "migrate/admission.h"
#include "migrate/destination/destination.h"
#include "migrate/record/keep.h"
#include "util/clock.h"
#include "util/log.h"

/* For what nobody announces: one that is taken over later, or a place that a VMM's end has left. */
#define LOOK_MS 1000u
/* After one was started. Not 0: a timer that a timer sets for now may be run in the same turn. */
#define NEXT_MS 1u

/* What is not taken over yet can't be started, and holds up nobody. */
static bool is_in_line(const struct migration *m)
{
	return queue_has(m) && !m->left;
}

static bool is_before(const struct migration *a, const struct migration *b)
{
	if (!queue_has(b) || a->turn.priority > b->turn.priority)
		return true;
	return a->turn.priority == b->turn.priority && a->turn.since_ns < b->turn.since_ns;
}

unsigned int queue_ahead(const struct migration *m)
{
	unsigned int n = 0;

	for (const struct migration *a = m->owner->list; a; a = a->next)
		n += a != m && is_in_line(a) && is_before(a, m);
	return n;
}

unsigned int queue_length(const struct migrations *ms)
{
	unsigned int n = 0;

	for (const struct migration *m = ms->list; m; m = m->next)
		n += queue_has(m);
	return n;
}

void queue_add(struct migration *m, bool switchover, const struct migration_warm *warm,
               uint32_t priority)
{
	bool waits = queue_has(m);

	if (!waits)
		m->turn.since_ns = clock_now_ns();
	m->turn.priority = priority;
	m->turn.switchover = switchover;
	m->warming = *warm;
	migration_save(m);
	if (!waits)
		log_migration_info(m->params.id,
		                   "waits for its turn, with priority %u, behind %u others",
		                   priority, queue_ahead(m));
	migration_tell(m, m->reason);
	queue_look(m->owner);
}

void queue_leave(struct migration *m)
{
	if (!queue_has(m))
		return;
	m->turn = (struct migration_turn){ 0 };
	m->warming = (struct migration_warm){ 0 };
}

void queue_drop(struct migration *m)
{
	if (!queue_has(m))
		return;
	queue_leave(m);
	migration_save(m);
	log_migration_info(m->params.id, "waits for its turn no more");
	migration_tell(m, m->reason);
}

static struct migration *find_first(const struct migrations *ms)
{
	struct migration *first = NULL;

	for (struct migration *m = ms->list; m; m = m->next)
		if (is_in_line(m) && (!first || is_before(m, first)))
			first = m;
	return first;
}

static void start(struct migration *m)
{
	static const struct migration_turn_wanted none;
	struct migration_warm warm = m->warming;
	bool switchover = m->turn.switchover;
	struct error why = ERROR_INIT;

	log_migration_info(m->params.id, "its turn has come");
	if (destination_start(m, switchover, &warm, &none, &why))
		destination_fail_attached(m, &why);
}

static void on_look(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;
	struct migration *m = find_first(ms);

	if (!queue_length(ms))
		uv_timer_stop(timer);
	if (!m || ms->draining || !admission_has_place(m))
		return;
	start(m);
	uv_timer_start(timer, on_look, NEXT_MS, LOOK_MS);
}

void queue_look(struct migrations *ms)
{
	ms->queue.data = ms;
	uv_timer_start(&ms->queue, on_look, 0, LOOK_MS);
}
