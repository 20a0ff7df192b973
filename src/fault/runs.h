/* SPDX-License-Identifier: Apache-2.0 */
/* Masks of a word's units as runs: what one call fills or maps. */
#ifndef FAULT_RUNS_H
#define FAULT_RUNS_H

#include <stdint.h>

#include "mem/region.h"

/* One run of set bits, taken off the bottom of a mask. */
struct run {
	unsigned int first;
	unsigned int n;
};

/* @mask: not 0; loses the run. */
static inline struct run next_run(uint64_t *mask)
{
	struct run run = { .first = (unsigned int)__builtin_ctzll(*mask) };
	uint64_t above = ~(*mask >> run.first);

	run.n = above ? (unsigned int)__builtin_ctzll(above) : WORD_UNITS;
	if (run.first + run.n >= WORD_UNITS) {
		run.n = WORD_UNITS - run.first;
		*mask = 0;
	} else {
		*mask &= UINT64_MAX << (run.first + run.n);
	}
	return run;
}

static inline uint64_t run_mask(unsigned int first, uint64_t n)
{
	return (n == WORD_UNITS ? UINT64_MAX : (1ull << n) - 1) << first;
}

/* Where the run's bytes lie, of those that come lowest unit first for @mask. */
static inline const uint8_t *run_data(const uint8_t *data, uint64_t mask, struct run run)
{
	uint64_t below = mask & ((1ull << run.first) - 1);

	return data + (size_t)__builtin_popcountll(below) * UNIT_BYTES;
}

#endif
