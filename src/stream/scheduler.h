/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What bulk asks for next.
 *
 * Theory of operation
 * -------------------
 * The scheduler hands out words (64 units) that still have unclaimed units, each to one
 * bulk connection at a time. What a guest waits for already goes by another connection; here it
 * is guessed what it touches next. In this order, each when the ones before have nothing left:
 *
 *   hot      what its VMM has named (scheduler_add_hot())
 *   around   faults, the newest first, in growing distance to both sides ("bubbling", Hines &
 *            Gopalan): what the guest touches next is likely near to what it touched last
 *   stride   instead of around, where a thread's faults lie at a constant distance (a sequence, in
 *            either direction; a matrix by columns): along it, in whole words, for what lies beside
 *            a column is the next one
 *   recent   where memory was copied while the guest ran at the source: first the units that were
 *            written in each of the last two rounds, which is what it works with; then words of
 *            which much was written
 *   linear   from the bottom of the first region up
 *
 * A thread's stride is found among its latest faults: three of them, not necessarily on end, with
 * the same distance; so two sequences at once, or a table beside them, do not hide it. Pages that
 * came in time raise no fault: the next one, several strides on, goes on with it, and further
 * ahead.
 *
 * A word that was handed out is marked asked; when its answer came scheduler_done()
 * forgets it, and when its connection was lost scheduler_give_back() makes it available
 * again. So each missing page is asked for until it is there, and by one bulk
 * connection only. Only some of a word's units may be asked for: linear comes for the rest.
 *
 * Before the guest runs here what is missing changes with each generation (mem/page_state.h). So
 * the scheduler can be held: it hands out nothing, and when no word is asked any more no answer is
 * under way. Then units may be renewed, and all begins again from the bottom.
 *
 * Bounded: the latest HINTS faults, AROUNDS of them that are worked on, a few strides; a bit a word
 * (asked), and one a page of 4 KiB (written before). A pick looks at so many places and
 * RECENT_WORDS words at most, but for what linear and hot ranges pass over, which each word is once
 * a generation (in each of SCHEDULER_HOT_MAX ranges).
 *
 * Threads: any. Faults and hot ranges are posted without a lock, for the fault path never waits;
 * the rest is under one mutex that bulk threads hold for microseconds.
 */
#ifndef STREAM_SCHEDULER_H
#define STREAM_SCHEDULER_H

#include <stdbool.h>

#include "mem/page_state.h"

/* Ranges that a VMM may name; further ones are left out. */
#define SCHEDULER_HOT_MAX 64u

struct scheduler;

/* Why a word was picked. */
enum scheduler_reason {
	SCHEDULER_LINEAR,
	/* What follows is a guess. */
	SCHEDULER_HOT,
	SCHEDULER_AROUND,
	SCHEDULER_STRIDE,
	SCHEDULER_RECENT,
	SCHEDULER_REASONS,
};

struct scheduler_item {
	uint32_t region;
	uint64_t word;
	uint64_t want_mask; /* units to ask for, never 0 */
	enum scheduler_reason why;
	bool some; /* not all that the word lacks */
	bool part; /* not the scheduler's: the same connection asks for more of the word */
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

/*
 * The answer is here and its units are claimed. Return: whether there is more to ask for of that
 * word: whoever waits for work may find some.
 */
bool scheduler_done(struct scheduler *s, const struct scheduler_item *item);

/* The answer will never come. */
void scheduler_give_back(struct scheduler *s, const struct scheduler_item *item);

/* Hand out nothing. */
void scheduler_hold(struct scheduler *s);

/*
 * From the beginning, all that is missing: in a round, while the guest runs at the source; or when
 * it runs here.
 */
void scheduler_go_round(struct scheduler *s);
void scheduler_go(struct scheduler *s);
/* Where it was held: units renewed meanwhile that it has passed are left for the next round. */
void scheduler_go_on(struct scheduler *s);
bool scheduler_is_held(const struct scheduler *s);

/* Held: all begins anew, and what was written in rounds before tells nothing. */
void scheduler_forget(struct scheduler *s);

/* No word is asked for. Lock-free. */
bool scheduler_is_idle(const struct scheduler *s);

/* All that was missing when it began to go was asked for, and answered. */
bool scheduler_is_over(struct scheduler *s);

/*
 * A fault happened here. Lock-free; one thread.
 * @who: the guest's thread; 0 where it is not known
 */
void scheduler_note_fault(struct scheduler *s, uint32_t region, uint64_t unit, uint32_t who);

/* The VMM says that its guest needs this soon. Lock-free; the thread that notes faults. */
void scheduler_add_hot(struct scheduler *s, uint32_t region, uint64_t first_unit, uint64_t units);

/* Whether anything steers; else linear only. */
void scheduler_set_prefetch(struct scheduler *s, bool on);

/* Whether a word is being asked for by bulk at the moment. Lock-free. */
bool scheduler_is_asked(const struct scheduler *s, uint32_t region, uint64_t word);

#endif
