/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/source_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stream/dirty.h"
#include "util/cleanup.h"
#include "util/clock.h"

/* For a VMM to begin, or to harvest. */
#define ANSWER_MS 10000u
/* How often a destination hears from us meanwhile. */
#define SIGN_MS 1000u

void source_log_init(struct source_log *l, void (*changed)(void *arg), void *arg)
{
	*l = (struct source_log){ .changed = changed, .arg = arg };
	pthread_mutex_init(&l->turn, NULL);
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->answer, NULL);
	snprintf(l->none, sizeof l->none,
	         "the source VMM does not tell what its guest writes (libpostcopy: "
	         "postcopy_source_offer_dirty_log())");
	/* Another process's answers are to none of ours. */
	l->last_number = clock_now_ns();
}

void source_log_deinit(struct source_log *l)
{
	dirty_log_free(l->dirty);
	free(l->tx);
	pthread_cond_destroy(&l->answer);
	pthread_mutex_destroy(&l->lock);
	pthread_mutex_destroy(&l->turn);
}

int source_log_set(struct source_log *l, struct dirty_log *dirty, const char *none)
{
	uint8_t *tx = dirty ? malloc(FRAME_HEADER_BYTES + FRAME_DIRTY_MAX) : NULL;
	int rc = dirty && !tx ? -ENOMEM : 0;

	pthread_mutex_lock(&l->lock);
	if (!rc && l->dirty)
		rc = -EBUSY;
	if (!rc && dirty) {
		l->dirty = dirty;
		l->tx = steal_ptr(&tx);
	} else if (!rc) {
		snprintf(l->none, sizeof l->none, "%s", none);
	}
	pthread_mutex_unlock(&l->lock);
	free(tx);
	return rc;
}

void source_log_restore(struct source_log *l, bool warm)
{
	l->pinned = true;
	l->warm = warm;
}

static bool by_vmm(const struct source_log *l)
{
	return dirty_log_how(l->dirty) == DIRTY_LOG_BY_VMM;
}

/* A VMM may take its time: the destination hears that we are still here. The lock is held. */
static int wait_or_say_so(struct source_log *l, struct conn *c, struct error *err)
{
	uint64_t until_ns = clock_now_ns() + SIGN_MS * NSEC_PER_MSEC;
	const struct timespec until = {
		.tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(until_ns % NSEC_PER_SEC),
	};
	int rc;

	if (pthread_cond_clockwait(&l->answer, &l->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
		return 0;
	pthread_mutex_unlock(&l->lock);
	rc = conn_send_plain(c, FRAME_PONG);
	pthread_mutex_lock(&l->lock);
	return rc ? error_errno(err, rc, "connection: PONG") : 0;
}

/* Until the VMM has answered @number. The lock is held. Return: as ask_vmm(). */
static int wait_answer(struct source_log *l, struct conn *c, uint64_t number, struct error *why,
                       struct error *err)
{
	uint64_t deadline_ns = clock_now_ns() + ANSWER_MS * NSEC_PER_MSEC;
	int rc = 0;

	while (!rc && !l->over && l->answered != number && clock_now_ns() < deadline_ns)
		rc = wait_or_say_so(l, c, err);
	if (l->over)
		error_set(why, -ECANCELED, "the migration is over at the source");
	else if (l->answered != number)
		error_set(why, -ETIMEDOUT,
		          "the source VMM has not answered for %u s, asked what its guest writes",
		          ANSWER_MS / 1000);
	else if (l->answer_code)
		error_set(why, -l->answer_code,
		          "the source VMM can't tell what its guest writes: %s", l->answer_text);
	return rc;
}

/* Return: why the connection ends; else 0, with @why set where the VMM can't. */
static int ask_vmm(struct source_log *l, struct conn *c, bool start, struct error *why,
                   struct error *err)
{
	uint64_t number;
	int rc;

	pthread_mutex_lock(&l->lock);
	number = ++l->last_number;
	l->order.number = number;
	if (start)
		l->order.session = number;
	pthread_mutex_unlock(&l->lock);
	l->changed(l->arg);
	pthread_mutex_lock(&l->lock);
	rc = wait_answer(l, c, number, why, err);
	pthread_mutex_unlock(&l->lock);
	return rc;
}

/* It is nobody's, and off. In one's turn. */
static void switch_off(struct source_log *l)
{
	pthread_mutex_lock(&l->lock);
	l->owner = NULL;
	l->order.session = 0;
	atomic_store(&l->on, false);
	pthread_mutex_unlock(&l->lock);
	if (l->dirty && by_vmm(l))
		l->changed(l->arg);
	else if (l->dirty)
		dirty_log_stop(l->dirty);
}

static int answer_tracked(struct source_log *l, struct conn *c, const struct error *why,
                          struct error *err)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_ERROR_MAX];
	int rc = conn_send(c, buf, frame_tracked_encode(why->code, why->text, buf));

	(void)l;
	return rc ? error_errno(err, rc, "connection: TRACKED") : 0;
}

/* Whether it can be anybody's now. */
static void check_free(struct source_log *l, struct error *why)
{
	pthread_mutex_lock(&l->lock);
	if (l->over)
		error_set(why, -ECANCELED, "the migration is over at the source");
	else if (l->pinned)
		error_set(why, -EBUSY, "the guest is being paused, or was: it writes no more");
	else if (!l->dirty)
		error_set(why, -EOPNOTSUPP, "%s", l->none);
	/* Whoever had it knows no more what was written. */
	l->owner = NULL;
	pthread_mutex_unlock(&l->lock);
}

static int track(struct source_log *l, const void *who, struct conn *c, struct error *why,
                 struct error *err)
{
	int rc = 0;

	check_free(l, why);
	if (why->code)
		return 0;
	(void)dirty_log_start(l->dirty, why);
	if (!why->code && by_vmm(l))
		rc = ask_vmm(l, c, true, why, err);
	pthread_mutex_lock(&l->lock);
	if (!why->code && (l->over || l->pinned))
		error_set(why, -ECANCELED, "the migration went on at the source meanwhile");
	if (!rc && !why->code) {
		l->owner = who;
		atomic_store(&l->on, true);
	}
	pthread_mutex_unlock(&l->lock);
	if (rc || why->code)
		switch_off(l);
	return rc;
}

int source_log_track(struct source_log *l, const void *who, struct conn *c, struct error *err)
{
	struct error why = ERROR_INIT;
	int rc;

	pthread_mutex_lock(&l->turn);
	rc = track(l, who, c, &why, err);
	pthread_mutex_unlock(&l->turn);
	return rc ? rc : answer_tracked(l, c, &why, err);
}

static int send_harvest(struct source_log *l, struct conn *c, const struct region_table *table,
                        bool keep, struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; i < table->n && !rc; i++) {
		const uint64_t *bits = dirty_log_take(l->dirty, i, keep);
		uint64_t at = 0;
		size_t len;

		while (!rc && (len = dirty_encode(i, bits, table->regions[i].units, &at, l->tx)))
			rc = conn_send(c, l->tx, len);
	}
	if (!rc)
		rc = conn_send(c, l->tx, dirty_encode_last(l->tx));
	return rc ? error_errno(err, rc, "connection: DIRTY") : 0;
}

static bool is_owner(struct source_log *l, const void *who)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = l->owner == who && !l->over;
	pthread_mutex_unlock(&l->lock);
	return is;
}

int source_log_sync(struct source_log *l, const void *who, struct conn *c, struct error *err)
{
	struct error why = ERROR_INIT;
	int rc = 0;

	pthread_mutex_lock(&l->turn);
	if (!is_owner(l, who))
		error_set(&why, -ECANCELED,
		          "nothing is logged for this connection (any more): TRACK comes first");
	else if (by_vmm(l))
		rc = ask_vmm(l, c, false, &why, err);
	else
		(void)dirty_log_harvest(l->dirty, &why);
	if (!rc && !why.code)
		rc = send_harvest(l, c, dirty_log_table(l->dirty), false, err);
	else if (!rc && is_owner(l, who))
		switch_off(l);
	pthread_mutex_unlock(&l->turn);
	return rc || !why.code ? rc : answer_tracked(l, c, &why, err);
}

void source_log_leave(struct source_log *l, const void *who)
{
	bool off;

	pthread_mutex_lock(&l->turn);
	pthread_mutex_lock(&l->lock);
	off = l->owner == who && !l->warm;
	pthread_mutex_unlock(&l->lock);
	if (off)
		switch_off(l);
	pthread_mutex_unlock(&l->turn);
}

void source_log_pin(struct source_log *l, const void *who)
{
	pthread_mutex_lock(&l->lock);
	/* What another process had decided stands. */
	if (!l->pinned)
		l->warm = l->owner == who;
	l->pinned = true;
	pthread_mutex_unlock(&l->lock);
}

bool source_log_is_warm(struct source_log *l)
{
	bool warm;

	pthread_mutex_lock(&l->lock);
	warm = l->warm;
	pthread_mutex_unlock(&l->lock);
	return warm;
}

int source_log_tell_last(struct source_log *l, struct conn *c, struct error *err)
{
	int rc = 0;

	/* A VMSTATE that comes alone waits for no harvest of another connection's. */
	if (!source_log_is_warm(l))
		return 0;
	pthread_mutex_lock(&l->turn);
	/* It may have been lost meanwhile. */
	if (source_log_is_warm(l)) {
		dirty_log_finish(l->dirty);
		rc = send_harvest(l, c, dirty_log_table(l->dirty), true, err);
	}
	pthread_mutex_unlock(&l->turn);
	return rc;
}

void source_log_stop(struct source_log *l)
{
	struct dirty_log *dirty;

	pthread_mutex_lock(&l->turn);
	pthread_mutex_lock(&l->lock);
	dirty = l->dirty;
	pthread_mutex_unlock(&l->lock);
	if (dirty)
		dirty_log_stop(dirty);
	pthread_mutex_unlock(&l->turn);
}

void source_log_get_order(struct source_log *l, struct source_log_order *ret)
{
	pthread_mutex_lock(&l->lock);
	*ret = l->order;
	pthread_mutex_unlock(&l->lock);
}

void source_log_answer(struct source_log *l, uint64_t number, int code, const char *text)
{
	pthread_mutex_lock(&l->lock);
	if (number == l->order.number) {
		l->answered = number;
		l->answer_code = code;
		snprintf(l->answer_text, sizeof l->answer_text, "%s", text);
		pthread_cond_broadcast(&l->answer);
	}
	pthread_mutex_unlock(&l->lock);
}

/* The lock is held. */
static void disown(struct source_log *l)
{
	l->owner = NULL;
	l->order.session = 0;
	atomic_store(&l->on, false);
	pthread_cond_broadcast(&l->answer);
}

void source_log_lose(struct source_log *l)
{
	pthread_mutex_lock(&l->lock);
	l->warm = false;
	disown(l);
	pthread_mutex_unlock(&l->lock);
}

void source_log_end(struct source_log *l)
{
	pthread_mutex_lock(&l->lock);
	l->over = true;
	disown(l);
	pthread_mutex_unlock(&l->lock);
}

bool source_log_is_kernels(struct source_log *l)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = l->dirty && !by_vmm(l);
	pthread_mutex_unlock(&l->lock);
	return is;
}
