/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bulk spends its time on, of late: what limits it.
 *
 * Theory of operation
 * -------------------
 * A thread of bulk is held back by a cap, or works (it computes, or waits for a core to compute
 * on), or waits for its peer. It accounts for its time now and then: what the cap had it wait for
 * it measures, what it worked the kernel tells (thread_busy_ns()), the rest it waited. While it is
 * held back it looks as often. All threads of a migration move one smoothed view, which anybody may
 * read: two that do it at once may lose the one or the other's part, which is no more than it
 * forgets in the next tenth of a second.
 *
 * Threads: a load is its thread's, a view everybody's.
 */
#ifndef STREAM_LOAD_H
#define STREAM_LOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/clock.h"

#define LOAD_LOOK_NS (100 * NSEC_PER_MSEC)

struct load_view {
	_Atomic uint64_t told_ns;          /* CLOCK_MONOTONIC; 0: nothing is known */
	_Atomic unsigned int capped, busy; /* thousandths of the time */
};

/* All zero at first, and where what it did since is to be forgotten. */
struct load {
	uint64_t looked_ns;
	uint64_t busy_ns; /* at that time; 0: not told */
	uint64_t capped_since_ns;
	uint64_t capped_ns; /* and lent_ns: since it was looked at */
	uint64_t lent_ns;   /* another thread worked in its place */
};

enum load_limit {
	LOAD_UNKNOWN,
	LOAD_WAITS, /* for its peer, or the network between */
	LOAD_CAP,
	LOAD_CPU,
};

/* The cap allows nothing from @now_ns on; until load_go_on(), which may always be called. */
void load_capped(struct load *l, uint64_t now_ns);
void load_go_on(struct load *l, uint64_t now_ns);

/* Whether it is time for load_look(). */
bool load_is_due(const struct load *l, uint64_t now_ns);

/* @busy_ns: that the thread has worked in all; 0: it is not told. */
void load_look(struct load *l, struct load_view *v, uint64_t now_ns, uint64_t busy_ns);

/* Who is not heard from for long waits: a thread looks whenever an answer has come. */
enum load_limit load_limit(const struct load_view *v, uint64_t now_ns);

#endif
