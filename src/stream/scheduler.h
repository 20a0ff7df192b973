/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bulk asks for next.
 *
 * Theory of operation
 * -------------------
 * The scheduler hands out words (64 units) that still have unclaimed units, each to one
 * bulk connection at a time. First those around recent faults, newest fault first, in
 * growing distance to both sides ("bubbling", Hines & Gopalan): what the guest touches next
 * is likely near to what it touched last. Then linear, from the bottom of the first
 * region up.
 *
 * A word that was handed out is marked asked; when its answer came scheduler_done()
 * forgets it, and when its connection was lost scheduler_give_back() makes it available
 * again. So each missing page is asked for until it is there, and by one bulk
 * connection only.
 *
 * Before the guest runs here what is missing changes with each generation (mem/page_state.h). So
 * the scheduler can be held: it hands out nothing, and when no word is asked any more no answer is
 * under way. Then units may be renewed, and all begins again from the bottom.
 *
 * Threads: any. Faults are posted without a lock, for the fault path never waits; the rest
 * is under one mutex that bulk threads hold for microseconds.
 */
#ifndef STREAM_SCHEDULER_H
#define STREAM_SCHEDULER_H

#include <stdbool.h>

#include "mem/page_state.h"

struct scheduler;

struct scheduler_item {
	uint32_t region;
	uint64_t word;
	uint64_t want_mask; /* units to ask for, never 0 */
	bool prefetch;      /* picked because of a fault nearby */
	bool part;          /* not the scheduler's: the same connection asks for more of the word */
};

/* @table, @state: borrowed, must outlive the scheduler. */
int scheduler_new(const struct region_table *table, struct page_state *state,
                  struct scheduler **ret, struct error *err);
struct scheduler *scheduler_free(struct scheduler *s);

/*
 * scheduler_next() - the next word for one bulk connection
 *
 * Return: false where nothing is left to ask for: everything is claimed or asked.
 */
bool scheduler_next(struct scheduler *s, struct scheduler_item *ret);

/* The answer is here and its units are claimed. */
void scheduler_done(struct scheduler *s, const struct scheduler_item *item);

/* The answer will never come. */
void scheduler_give_back(struct scheduler *s, const struct scheduler_item *item);

/* Hand out nothing; or, from the beginning, all that is missing. */
void scheduler_hold(struct scheduler *s);
void scheduler_go(struct scheduler *s);
bool scheduler_is_held(const struct scheduler *s);

/* No word is asked for. Lock-free. */
bool scheduler_is_idle(const struct scheduler *s);

/* All that was missing at the last scheduler_go() was asked for, and answered. */
bool scheduler_is_over(struct scheduler *s);

/* A fault happened here. Lock-free; one thread. */
void scheduler_note_fault(struct scheduler *s, uint32_t region, uint64_t word);

/* Whether faults steer at all; else linear only. */
void scheduler_set_prefetch(struct scheduler *s, bool on);

/* Whether a word is being asked for by bulk at the moment. Lock-free. */
bool scheduler_is_asked(const struct scheduler *s, uint32_t region, uint64_t word);

#endif
