/* SPDX-License-Identifier: Apache-2.0 */
/* What the fault path and bulk count while they run; read by anybody at any time. */
#ifndef FAULT_STATS_H
#define FAULT_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#include "util/histogram.h"

#define PULL_DOTS_MAX 16384u

/* One remote fault: when (CLOCK_MONOTONIC) it was resolved, and how long that took. */
struct pull_dot {
	_Atomic uint64_t at_ns;
	_Atomic uint64_t latency_ns;
};

struct pull_stats {
	/* Units of 4 KiB filled, by what did it. */
	_Atomic uint64_t fill_write;
	_Atomic uint64_t fill_memcpy;
	_Atomic uint64_t fill_copy;
	_Atomic uint64_t fill_zero; /* zero at the source, or discarded by the guest: left a hole */

	_Atomic uint64_t faults;           /* events read */
	_Atomic uint64_t faults_remote;    /* asked from the source */
	_Atomic uint64_t faults_minor;     /* the page was there already */
	_Atomic uint64_t faults_coalesced; /* another vCPU waited for the same page */

	_Atomic uint64_t bulk_bytes;     /* page bytes received by bulk connections */
	_Atomic uint64_t bulk_first_ns;  /* CLOCK_MONOTONIC of the first bulk GET; 0: none yet */
	_Atomic uint64_t bulk_last_ns;   /* of the latest bulk answer, filled */
	_Atomic uint64_t bulk_in_flight; /* GETs of bulk connections without an answer */
	_Atomic uint64_t prefetch_hit;   /* units near a fault, filled before one asked for them */
	_Atomic uint64_t prefetch_late;  /* faults for units that bulk had asked for already */
	_Atomic uint64_t
	        prefetch_wasted; /* units that bulk received when they were there already */
	_Atomic uint64_t reconnects;

	/* Nanoseconds from reading a remote fault's event to its page mapped and its vCPU woken. */
	struct histogram fault_idle_ns; /* no bulk request was in flight when it was read */
	struct histogram fault_bulk_ns; /* one was */

	struct pull_dot dots[PULL_DOTS_MAX]; /* ring */
	_Atomic uint64_t n_dots;             /* ever */
};

static inline void stat_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t stat_get(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

#endif
