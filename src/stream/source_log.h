/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a source tells a destination of what its guest writes: TRACK, SYNC and the last harvest.
 *
 * Theory of operation
 * -------------------
 * The log (mem/dirty_log.h) is one, and what a harvest has told it forgets. So it belongs to one
 * control connection at a time: to the last that has said TRACK. Whoever has lost it, or its
 * connection, does not know what was written since, and begins anew. While it is somebody's, pages
 * are read though the guest runs.
 *
 * Where the VMM keeps it, it is asked by the owner, on the loop: what is wanted is an order, by
 * number, that the owner compares with what it has told the VMM already (source_log_get_order()).
 * Where the kernel keeps it, the connections' threads ask it themselves, for the loop may not wait
 * for a VMM's memory map.
 *
 * At switchover it is pinned: it stays on, whatever becomes of the connection, until the guest
 * stands still. Its last harvest is told before each VMSTATE to the holder, if that was whose it
 * was; nobody else's pages would be what they must be.
 *
 * Threads: _init() to _restore() before any other; then any. Lock order: turn, then lock; the
 * page_source's lock may be held around lock, never around turn.
 */
#ifndef STREAM_SOURCE_LOG_H
#define STREAM_SOURCE_LOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "mem/dirty_log.h"
#include "stream/conn.h"

/* What the VMM is to do. */
struct source_log_order {
	uint64_t session; /* the number of the order that began it; 0: it is to be off */
	uint64_t number;  /* of the last one: to begin, or to harvest */
};

struct source_log {
	void (*changed)(void *arg); /* the order has: without any lock of ours */
	void *arg;
	struct dirty_log *dirty; /* set once; NULL: there is none */
	uint8_t *tx;             /* for a DIRTY frame */

	pthread_mutex_t turn; /* one TRACK, SYNC or last harvest at a time */

	/* Under the lock; answer is signalled with each change. */
	pthread_mutex_t lock;
	pthread_cond_t answer;
	char none[ERROR_TEXT_MAX]; /* why there is no log */
	const void *owner;         /* the connection whose it is */
	bool pinned;               /* switchover was asked for */
	bool warm;                 /* and by whose it was */
	bool over;
	struct source_log_order order;
	uint64_t last_number;
	uint64_t answered;
	int answer_code;
	char answer_text[ERROR_TEXT_MAX];

	atomic_bool on; /* pages may be read */
};

void source_log_init(struct source_log *l, void (*changed)(void *arg), void *arg);
void source_log_deinit(struct source_log *l);

/*
 * source_log_set() - there is a log
 * @dirty: taken over on success; NULL: there is none, for the reason @none
 *
 * Return: 0; -EBUSY where there is one; -ENOMEM.
 */
int source_log_set(struct source_log *l, struct dirty_log *dirty, const char *none);

/* After it, in a process that has taken over, where a switchover had pinned it. */
void source_log_restore(struct source_log *l, bool warm);

/*
 * source_log_track(), source_log_sync() - TRACK and SYNC, to their answers
 * @who: the connection, as a name
 *
 * Return: 0; or why the connection ends, with @err set.
 */
int source_log_track(struct source_log *l, const void *who, struct conn *c, struct error *err);
int source_log_sync(struct source_log *l, const void *who, struct conn *c, struct error *err);

/* The connection has ended: where it was its own, and is not pinned, nothing is logged any more. */
void source_log_leave(struct source_log *l, const void *who);

/* SWITCHOVER is its first: whether the last harvest will tell it what it needs is decided. */
void source_log_pin(struct source_log *l, const void *who);
bool source_log_is_warm(struct source_log *l);

/* The guest stands still: DIRTY frames, where it is warm; else nothing. */
int source_log_tell_last(struct source_log *l, struct conn *c, struct error *err);

/* Nothing is write-protected any more. May wait for the VMM's memory map. */
void source_log_stop(struct source_log *l);

static inline bool source_log_is_on(const struct source_log *l)
{
	return atomic_load(&l->on);
}

/* Whether it is one that the kernel keeps. */
bool source_log_is_kernels(struct source_log *l);

/* The owner. */
void source_log_get_order(struct source_log *l, struct source_log_order *ret);
/* @code: 0: it is done; else a positive errno. Of another number than the last: nothing. */
void source_log_answer(struct source_log *l, uint64_t number, int code, const char *text);

/* Its keeper is gone: nobody knows what was written. */
void source_log_lose(struct source_log *l);

/* Nobody is answered any more, and nothing is read of a guest that runs. */
void source_log_end(struct source_log *l);

#endif
