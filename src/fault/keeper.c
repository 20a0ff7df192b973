/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: dials the urgent connections that the fault threads have lost, so that none of these
 * ever blocks on a dial.
 *
 * They all go to the same source. So one thread is enough: whichever is due first is dialled first.
 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <stdio.h>

#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/*
 * What it is to the source. An older one keeps few urgent connections of a migration, and one more
 * ends the oldest: there all but the first are as bulk's, of which it takes more than we have. They
 * are served alike, but what waits there goes before.
 */
static enum stream_role role_of(const struct fault_thread *ft)
{
	unsigned int urgents = atomic_load(&ft->pull->urgents);

	/* One may be lost, and the source does not know it yet. */
	return ft->index && 2 * (ft->index + 1) > urgents ? STREAM_BULK : STREAM_URGENT;
}

static int dial_as_it_may(struct fault_thread *ft, struct conn **ret, struct error *err)
{
	enum stream_role role = role_of(ft);
	struct pull *p = ft->pull;
	int rc = pull_dial(p, &p->dialing, role, ret, err);

	/* Its reply may have told that it is another source by now. */
	if (!rc && role != role_of(ft)) {
		*ret = conn_free(*ret);
		role = role_of(ft);
		rc = pull_dial(p, &p->dialing, role, ret, err);
	}
	if (!rc && role == STREAM_BULK) {
		rc = pull_settle_conn(*ret, STREAM_URGENT, err);
		if (rc)
			*ret = conn_free(*ret);
	}
	return rc;
}

/*
 * An urgent connection in place of one that is lost. Where the source was silent it may be the path
 * that lets small packets through only: then that is the reason that is told; the connection is
 * used all the same, for the guest has nothing better.
 */
static int dial_urgent(struct fault_thread *ft, struct conn **ret, struct error *err)
{
	struct pull *p = ft->pull;
	struct conn_target target = pull_target(p);
	struct error why = ERROR_INIT;
	int rc = dial_as_it_may(ft, ret, err);

	if (rc || !atomic_exchange(&ft->silent, false))
		return rc;
	rc = conn_probe(*ret, &target, &why);
	atomic_store(&ft->small_only, rc == -ETIMEDOUT);
	if (!rc)
		rc = pull_settle_conn(*ret, STREAM_URGENT, err);
	if (!rc)
		return 0;
	*ret = conn_free(*ret);
	log_migration_warning(p->config.id, "%s", why.text);
	return dial_as_it_may(ft, ret, err);
}

void pull_note_unconnected_locked(struct fault_thread *ft)
{
	ft->urgent.lost = true;
	ft->urgent.lost_ns = clock_now_ns();
	snprintf(ft->urgent.stall, sizeof ft->urgent.stall, "not connected yet");
}

/* When it is dialled: at once where the connection before has brought an answer. */
static void plan(struct urgent *u)
{
	unsigned int ms;

	if (u->planned)
		return;
	if (u->useful)
		u->retry_ms = 0;
	u->useful = false;
	ms = pull_next_pause_ms(&u->retry_ms);
	u->next_dial_ns = ms ? clock_now_ns() + ms * NSEC_PER_MSEC : 0;
	u->planned = true;
}

/* Of those that are lost the one that is due first; or NULL. */
static struct fault_thread *next_lost(struct pull *p)
{
	struct fault_thread *first = NULL;

	for (unsigned int i = 0; i < pull_n_faults(p); i++) {
		struct fault_thread *ft = &p->faults[i];

		if (!ft->urgent.lost)
			continue;
		plan(&ft->urgent);
		if (!first || ft->urgent.next_dial_ns < first->urgent.next_dial_ns)
			first = ft;
	}
	return first;
}

/* Until @ns; or sooner. The lock is held. */
static void wait_until(struct pull *p, uint64_t ns)
{
	const struct timespec at = { .tv_sec = (time_t)(ns / NSEC_PER_SEC),
		                     .tv_nsec = (long)(ns % NSEC_PER_SEC) };

	pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at);
}

/* The lock is held, but not while it dials. */
static void dial_now(struct fault_thread *ft)
{
	struct urgent *u = &ft->urgent;
	struct error err = ERROR_INIT;
	struct pull *p = ft->pull;
	uint64_t peer = p->peers;
	struct conn *c = NULL;
	int rc;

	u->next_dial_ns = 0;
	pthread_mutex_unlock(&p->lock);
	rc = dial_urgent(ft, &c, &err);
	pthread_mutex_lock(&p->lock);
	u->planned = false;
	/* It is another attachment's by now. */
	if (!rc && peer != p->peers) {
		conn_free(c);
		return;
	}
	snprintf(u->stall, sizeof u->stall, "%s", err.text);
	u->dials_failed += rc != 0;
	if (!rc) {
		u->lost = false;
		u->ready = c;
		/* That of a further one has been none yet. */
		if (!ft->index || u->was_there)
			stat_add(&p->stats.reconnects, 1);
		u->was_there = true;
		pull_wake_fault_thread(ft);
	}
	p->config.connection(p->config.arg);
}

void *keeper_main(void *arg)
{
	struct pull *p = arg;

	thread_set_name("keeper");
	thread_prefer_promptness();
	pthread_mutex_lock(&p->lock);
	while (!atomic_load(&p->stopping)) {
		struct fault_thread *ft = next_lost(p);

		if (!ft)
			pthread_cond_wait(&p->changed, &p->lock);
		else if (ft->urgent.next_dial_ns > clock_now_ns())
			wait_until(p, ft->urgent.next_dial_ns);
		else
			dial_now(ft);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

int pull_start_keeper(struct pull *p)
{
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	if (!p->keeper_runs) {
		rc = thread_start(&p->keeper, keeper_main, p);
		p->keeper_runs = !rc;
	}
	pthread_mutex_unlock(&p->lock);
	return rc;
}

/* Whether @a is worse off than @b. */
static bool is_worse(const struct urgent *a, const struct urgent *b)
{
	if (a->lost != b->lost)
		return a->lost;
	return a->lost && a->lost_ns < b->lost_ns;
}

void pull_get_connection(struct pull *p, struct pull_connection *ret)
{
	const struct urgent *worst = &p->faults[0].urgent;

	pthread_mutex_lock(&p->lock);
	ret->away = worst->lost && worst->dials_failed;
	for (unsigned int i = 1; i < pull_n_faults(p); i++) {
		const struct urgent *u = &p->faults[i].urgent;

		/* Before its thread runs nobody lacks the connection of a further one. */
		if (!p->faults[i].runs)
			continue;
		ret->away = ret->away && u->lost && u->dials_failed;
		if (is_worse(u, worst))
			worst = u;
	}
	ret->lost = worst->lost;
	ret->dials_failed = worst->dials_failed;
	ret->since_ns = worst->lost_ns;
	ret->next_ns = worst->next_dial_ns;
	snprintf(ret->why, sizeof ret->why, "%s", worst->stall);
	pthread_mutex_unlock(&p->lock);
}
