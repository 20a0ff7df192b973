/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory that the guest does not use (guest/abi.h: GUEST_SPARE), to do with it what a VMM
 * does with memory of its own accord while the guest moves.
 *
 * The source fills it. On either side a thread discards pieces of it all the time, as a balloon
 * does, and writes into some of what it has discarded: whatever comes late, or was copied before,
 * is told from what is due. What is due goes with the vmstate.
 */
#ifndef MINIVMM_SPARE_H
#define MINIVMM_SPARE_H

#include <pthread.h>
#include <stdatomic.h>

#include "minivmm/guest/abi.h"
#include "minivmm/memory.h"

#define SPARE_PAGES (GUEST_SPARE_BYTES / GUEST_PAGE_BYTES)

enum spare_state {
	SPARE_AS_IT_CAME,
	SPARE_DISCARDED, /* zero */
	SPARE_WRITTEN,   /* since it was discarded */
	SPARE_STATES,
};

struct spare {
	const struct memory *memory;
	struct postcopy_channel *channel; /* of the destination */
	pthread_t thread;
	bool running;
	atomic_bool stop;
	/* Of the thread while it runs. */
	uint8_t states[SPARE_PAGES]; /* enum spare_state */
	uint64_t random;
	uint64_t discards;
	struct postcopy_error err;
	/* Of any thread: pages that were changed and not reported since, a bit each. */
	_Atomic uint64_t changed[SPARE_PAGES / 64];
};

/* Source: before the guest runs. */
void spare_fill(const struct memory *m);

/* Source, anonymous memory: of the first @pages nothing can be read any more. */
int spare_lose(const struct memory *m, uint64_t pages, struct postcopy_error *err);

/* Destination: what is due as its guest comes, by the vmstate: an enum spare_state each. */
void spare_take(struct spare *sp, const struct memory *m, const uint8_t states[SPARE_PAGES]);

/*
 * Discards until spare_stop(), from what is due by now on.
 * @p: NULL at the source, where nobody has to be asked
 * @seed: of what is discarded when
 */
int spare_start(struct spare *sp, const struct memory *m, struct postcopy *p, uint64_t seed,
                struct postcopy_error *err);

/* Source: what was changed since the last time, into @bitmap, a bit a page of the guest's. */
void spare_report(struct spare *sp, uint64_t *bitmap);

/* Nothing where it has not been started. Return: 0, or what the thread has ended by. */
int spare_stop(struct spare *sp, struct postcopy_error *err);

/* How many spare pages are not as they must be. Where nothing was discarded they are not looked at.
 */
uint64_t spare_check(const struct spare *sp, uint64_t *ret_first_bad);

#endif
