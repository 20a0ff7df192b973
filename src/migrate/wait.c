/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/wait.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/adapter.h"
#include "migrate/destination/destination.h"
#include "migrate/queue.h"
#include "migrate/source/source.h"
#include "util/clock.h"
#include "util/log.h"

#define LOOK_MS 1000u
/* As long as somebody may be about to say Switchover nothing stands still. */
#define HELD_NAMED_MS 60000u

static struct migration_wait wait_of_source(const struct migration *m)
{
	struct migration_wait w = { .what = MIGRATION_WAITS_NOT };

	if (m->state == MIGRATION_SWITCHING && !m->paused) {
		w.what = MIGRATION_WAITS_PAUSE;
		w.since_ns = m->pause_sent_ns;
	} else if (source_holder_is_silent(m)) {
		w.what = MIGRATION_WAITS_DESTINATION;
		w.since_ns = source_silent_since_ns(m);
	}
	return w;
}

/* The conductor dials, or has an answer to come that the source owes for long. */
static bool tries(struct migration *m, struct migration_wait *ret)
{
	pthread_mutex_lock(&m->lock);
	if (*m->note && !m->note_is_of_warming)
		*ret = (struct migration_wait){
			.what = MIGRATION_WAITS_SOURCE,
			.since_ns = m->tried_since_ns,
			.tries = m->tries,
			.next_ns = m->next_try_ns,
		};
	pthread_mutex_unlock(&m->lock);
	return ret->what;
}

static bool is_paused(const struct migration *m, struct migration_wait *ret)
{
	struct pull_connection c;

	if (m->state != MIGRATION_PAUSED || !m->pull)
		return false;
	pull_get_connection(m->pull, &c);
	if (c.lost)
		*ret = (struct migration_wait){
			.what = MIGRATION_WAITS_SOURCE,
			.since_ns = c.since_ns,
			.tries = c.dials_failed,
			.next_ns = c.next_ns,
		};
	return ret->what;
}

/* Its VMM, or before that the source's. */
static bool switches(struct migration *m, struct migration_wait *ret)
{
	bool given = m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_PAUSED;

	if ((!given && m->state != MIGRATION_SWITCHING) || m->resumed_ns)
		return false;
	pthread_mutex_lock(&m->lock);
	ret->since_ns = m->vmstate_received_ns;
	if (m->loaded_ns) {
		ret->what = MIGRATION_WAITS_RESUME;
		ret->since_ns = m->loaded_ns;
	} else if (given || m->vmstate_waits) {
		ret->what = MIGRATION_WAITS_LOAD;
	} else if (m->switch_sent_ns && !m->vmstate_received_ns) {
		ret->what = MIGRATION_WAITS_VMSTATE;
		ret->since_ns = m->switch_sent_ns;
	}
	pthread_mutex_unlock(&m->lock);
	return ret->what;
}

/* It keeps its memory and its place here until somebody says Switchover, or ends it. */
static bool is_held(struct migration *m, struct migration_wait *ret)
{
	if (m->state != MIGRATION_WARMING || m->switchover)
		return false;
	pthread_mutex_lock(&m->lock);
	if (m->held_since_ns) {
		ret->what = MIGRATION_WAITS_SWITCHOVER;
		ret->since_ns = m->held_since_ns;
	}
	pthread_mutex_unlock(&m->lock);
	return ret->what;
}

static bool lacks_memory(const struct migration *m, struct migration_wait *ret)
{
	struct pull_trouble trouble;

	if (m->state != MIGRATION_POSTCOPY || !m->pull)
		return false;
	pull_get_trouble(m->pull, &trouble);
	if (trouble.since_ns)
		*ret = (struct migration_wait){
			.what = MIGRATION_WAITS_MEMORY,
			.since_ns = trouble.since_ns,
			.tries = (unsigned int)stat_get(&pull_stats(m->pull)->fills_failed),
			.error = trouble.error,
		};
	return ret->what;
}

struct migration_wait migration_get_wait(struct migration *m)
{
	struct migration_wait w = { .what = MIGRATION_WAITS_NOT };

	/* A destination that is over may have a goodbye to say still. */
	if (m->left || (m->params.role == MIGRATION_SOURCE && migration_state_is_final(m->state)))
		return w;
	if (m->params.role == MIGRATION_SOURCE)
		return wait_of_source(m);
	if (queue_has(m))
		return (struct migration_wait){ .what = MIGRATION_WAITS_TURN,
			                        .since_ns = m->turn.since_ns,
			                        .place = queue_ahead(m) + 1 };
	if (!is_paused(m, &w) && !tries(m, &w) && !switches(m, &w) && !is_held(m, &w))
		lacks_memory(m, &w);
	return w;
}

/* Mostly there is no memory: where to look for it then. */
static void fills_text(const struct migration_wait *w, unsigned long long s,
                       char ret[WAIT_TEXT_MAX])
{
	const char *why = strerror(-w->error);

	if (w->error == -ENOMEM)
		snprintf(ret, WAIT_TEXT_MAX,
		         "there is no memory for pages that have come (%s), for %llu s: its tmpfs "
		         "is full, or memory.max of the VMM's cgroup or postcopyd's reached",
		         why, s);
	else if (w->error == -ENOSPC)
		snprintf(ret, WAIT_TEXT_MAX,
		         "there is no memory for pages that have come (%s), for %llu s: its tmpfs "
		         "is full, or the huge pages are used up",
		         why, s);
	else
		snprintf(ret, WAIT_TEXT_MAX,
		         "pages that have come can't be put in place (%s), for %llu s: it is "
		         "tried on",
		         why, s);
}

/* @s: for how long it is by now. */
static void held_text(const struct migration *m, unsigned long long s, char ret[WAIT_TEXT_MAX])
{
	unsigned long long most_s = m->owner->config.hold_timeout_ms / 1000;

	if (most_s)
		snprintf(ret, WAIT_TEXT_MAX,
		         "held for %llu s, with its place and its memory here, until Switchover; "
		         "given up after %llu s (hold-timeout)",
		         s, most_s);
	else
		snprintf(ret, WAIT_TEXT_MAX,
		         "held for %llu s, with its place and its memory here, until Switchover",
		         s);
}

void migration_wait_text(const struct migration *m, const struct migration_wait *w,
                         char ret[WAIT_TEXT_MAX])
{
	unsigned long long s = (clock_now_ns() - w->since_ns) / NSEC_PER_SEC;
	int pid = (int)migration_vmm_pid(m);
	/* Of an adapter that is away that is said, and its VMM can't answer. */
	bool named = s * 1000 >= WAIT_NAMED_MS && !migration_adapter_is_away(m);
	bool held_long = s * 1000 >= HELD_NAMED_MS;

	*ret = '\0';
	if (w->what == MIGRATION_WAITS_MEMORY)
		fills_text(w, s, ret);
	else if (w->what == MIGRATION_WAITS_TURN)
		snprintf(ret, WAIT_TEXT_MAX,
		         "waits for its turn for %llu s, at place %u of %u: as many come in as may "
		         "(max-incoming, %u)",
		         s, w->place, queue_length(m->owner), m->owner->config.max_incoming);
	else if (w->what == MIGRATION_WAITS_DESTINATION)
		snprintf(ret, WAIT_TEXT_MAX, "the destination is silent for %llu s", s);
	else if (held_long && w->what == MIGRATION_WAITS_SWITCHOVER)
		held_text(m, s, ret);
	else if (named && w->what == MIGRATION_WAITS_PAUSE)
		snprintf(ret, WAIT_TEXT_MAX, "the VMM, pid %d, has not answered PAUSE for %llu s",
		         pid, s);
	else if (named && w->what == MIGRATION_WAITS_VMSTATE)
		snprintf(ret, WAIT_TEXT_MAX,
		         "the source has not sent the vmstate for %llu s: its VMM does not pause?",
		         s);
	else if (named && w->what == MIGRATION_WAITS_LOAD)
		snprintf(ret, WAIT_TEXT_MAX, "the VMM, pid %d, has not answered VMSTATE for %llu s",
		         pid, s);
	else if (named && w->what == MIGRATION_WAITS_RESUME)
		snprintf(ret, WAIT_TEXT_MAX,
		         "the VMM, pid %d, has loaded the vmstate, and not said that its guest "
		         "runs for %llu s",
		         pid, s);
}

/* What has its line in the log elsewhere, or is as somebody wants it. */
static bool is_told_elsewhere(enum migration_waits what)
{
	return what == MIGRATION_WAITS_SOURCE || what == MIGRATION_WAITS_MEMORY ||
	       what == MIGRATION_WAITS_TURN || what == MIGRATION_WAITS_SWITCHOVER;
}

/* Who holds it has forgotten it, as it seems, and others want its place. */
static bool is_held_too_long(const struct migration *m, const struct migration_wait *w,
                             uint64_t for_ns)
{
	uint64_t most_ms = m->owner->config.hold_timeout_ms;

	return w->what == MIGRATION_WAITS_SWITCHOVER && most_ms &&
	       for_ns >= most_ms * NSEC_PER_MSEC;
}

static void give_up_held(struct migration *m)
{
	struct error why = ERROR_INIT;

	error_set(
	        &why, -ETIMEDOUT,
	        "held for %llu s, and nobody has said Switchover (hold-timeout): given up, and the "
	        "guest runs on at its source",
	        (unsigned long long)(m->owner->config.hold_timeout_ms / 1000));
	destination_give_up(m, &why);
}

static void look_at(struct migration *m)
{
	struct migration_wait w = migration_get_wait(m);
	uint64_t for_ns = clock_now_ns() - w.since_ns;
	char text[WAIT_TEXT_MAX];

	if (w.what != m->told_waits) {
		m->told_waits = w.what;
		m->told_wait_ns = WAIT_NAMED_MS * NSEC_PER_MSEC / 2;
	}
	if (is_held_too_long(m, &w, for_ns))
		give_up_held(m);
	if (!w.what || is_told_elsewhere(w.what) || for_ns < 2 * m->told_wait_ns)
		return;
	migration_wait_text(m, &w, text);
	if (!*text)
		return;
	m->told_wait_ns = for_ns;
	log_migration_warning(m->params.id, "%s", text);
}

static void on_look(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;
	bool more = false;

	for (struct migration *m = ms->list; m; m = m->next) {
		look_at(m);
		more |= m->state >= MIGRATION_WARMING && m->state <= MIGRATION_PAUSED;
	}
	if (!more)
		uv_timer_stop(timer);
}

void migrations_watch_waits(struct migrations *ms)
{
	ms->waits.data = ms;
	if (!uv_is_active((uv_handle_t *)&ms->waits))
		uv_timer_start(&ms->waits, on_look, LOOK_MS, LOOK_MS);
}
