/* SPDX-License-Identifier: Apache-2.0 */
/* What the fault path and bulk count while they run; read by anybody at any time. */
#ifndef FAULT_STATS_H
#define FAULT_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "fault/phases.h"
#include "stream/scheduler.h"
#include "util/histogram.h"

/* A fault that takes longer counts as slow, where nobody has said otherwise. */
#define PULL_SLOW_FAULT_NS 10000000ull

struct pull_stats {
	/* Units of 4 KiB filled, by what did it. */
	_Atomic uint64_t fill_write;
	_Atomic uint64_t fill_memcpy;
	_Atomic uint64_t fill_copy;
	_Atomic uint64_t fill_zero; /* zero at the source, or discarded by the guest: left a hole */

	/* Units without content: the source can't read them, or their memory here is broken. */
	_Atomic uint64_t pages_poisoned;
	_Atomic uint64_t pages_unpoisoned; /* answers of such that this kernel can't poison */

	/* Pages that could not be filled or mapped for want of memory, each time that was tried. */
	_Atomic uint64_t fills_failed;

	_Atomic uint64_t faults;           /* events read */
	_Atomic uint64_t faults_remote;    /* the page was not there: it is asked for */
	_Atomic uint64_t faults_minor;     /* the page was there already */
	_Atomic uint64_t faults_coalesced; /* another vCPU waited for the same page */
	_Atomic uint64_t fault_units;      /* asked for by remote faults: all of a huge page */

	_Atomic uint64_t bulk_bytes;     /* page bytes received by bulk connections */
	_Atomic uint64_t bulk_first_ns;  /* CLOCK_MONOTONIC of the first bulk GET; 0: none yet */
	_Atomic uint64_t bulk_last_ns;   /* of the latest bulk answer, filled */
	_Atomic uint64_t bulk_in_flight; /* GETs of bulk connections without an answer */
	_Atomic uint64_t bulk_twice;     /* units that bulk received when they were there already */
	_Atomic uint64_t bulk_by[SCHEDULER_REASONS]; /* units that bulk has filled, by why */

	/* Of what was fetched by a guess (fault/guesses.h). */
	_Atomic uint64_t prefetch_watched; /* units whose first touch shows */
	_Atomic uint64_t prefetch_hit;     /* of these, touched when they were there */
	_Atomic uint64_t prefetch_missed;  /* of these, waited for */
	_Atomic uint64_t prefetch_late;    /* faults in a word that bulk had asked for already */

	_Atomic uint64_t reconnects;

	/* Nanoseconds from reading a remote fault's event to its page mapped and its vCPU woken. */
	struct histogram fault_idle_ns;  /* no bulk request was in flight when it was read */
	struct histogram fault_bulk_ns;  /* one was */
	struct histogram fault_minor_ns; /* the same of minor faults */
	/* Of remote faults, phase by phase: those of one fault add up to the above. */
	struct histogram fault_phase_ns[FAULT_PHASES];

	_Atomic uint64_t slow_fault_ns; /* what counts as slow: may be set at any time */
	_Atomic uint64_t faults_slow;   /* of all kinds */
	struct fault_slow slow;         /* the slowest, whatever counts as slow */
	struct fault_sample sample;     /* of all remote faults */
	struct fault_ring *records;     /* the latest remote faults, and slow minor ones; NULL: no
	                                 * thread adds to them any more */
};

static inline void stat_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t stat_get(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Units that were fetched by a guess. */
static inline uint64_t stats_guessed(const struct pull_stats *s)
{
	uint64_t n = 0;

	for (unsigned int i = SCHEDULER_LINEAR + 1; i < SCHEDULER_REASONS; i++)
		n += stat_get(&s->bulk_by[i]);
	return n;
}

/* Of these, whose first touch shows: that nobody has touched yet. */
static inline uint64_t stats_wasted(const struct pull_stats *s)
{
	uint64_t touched = stat_get(&s->prefetch_hit) + stat_get(&s->prefetch_missed);
	uint64_t watched = stat_get(&s->prefetch_watched);

	return watched > touched ? watched - touched : 0;
}

#endif
