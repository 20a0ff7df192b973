/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/guesses.h"

#include <errno.h>
#include <stdlib.h>

int guesses_init(struct guesses *g, const struct region_table *table)
{
	for (g->n = 0; g->n < table->n; g->n++) {
		g->units[g->n] = calloc(table->regions[g->n].words, sizeof *g->units[g->n]);
		if (!g->units[g->n])
			return -ENOMEM;
	}
	return 0;
}

void guesses_deinit(struct guesses *g)
{
	while (g->n)
		free(g->units[--g->n]);
}

void guesses_note(struct guesses *g, uint32_t region, uint64_t word, uint64_t units)
{
	atomic_fetch_or(&g->units[region][word], units);
}

void guesses_drop(struct guesses *g, uint32_t region, uint64_t word, uint64_t units)
{
	atomic_fetch_and(&g->units[region][word], ~units);
}

uint64_t guesses_take(struct guesses *g, uint32_t region, uint64_t first_unit, uint64_t n)
{
	/* A page is one unit, or whole words. */
	uint64_t mask = n == 1 ? 1ull << first_unit % WORD_UNITS : UINT64_MAX, taken = 0;

	for (uint64_t unit = first_unit; unit < first_unit + n; unit += WORD_UNITS) {
		_Atomic uint64_t *word = &g->units[region][unit / WORD_UNITS];

		if (atomic_load(word) & mask)
			taken += (uint64_t)__builtin_popcountll(atomic_fetch_and(word, ~mask) &
			                                        mask);
	}
	return taken;
}
