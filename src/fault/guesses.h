/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that were fetched by a guess (stream/scheduler.h), until the guest touches them.
 *
 * Where a page is mapped only when it is touched, the first touch is a fault whose page is there
 * already: so it shows which guesses were right. Mapped ahead, nothing shows, and nothing is noted.
 *
 * Noted before it is filled, for it may be touched at once; what somebody else has filled meanwhile
 * is dropped. A bit a page, of zeroes that cost nothing until there are guesses.
 *
 * Threads: any. Lock-free.
 */
#ifndef FAULT_GUESSES_H
#define FAULT_GUESSES_H

#include <stdatomic.h>

#include "mem/region.h"

struct guesses {
	uint32_t n;
	_Atomic uint64_t *units[REGIONS_MAX];
};

/* Return: 0 or -ENOMEM; deinit is due in any case. */
int guesses_init(struct guesses *g, const struct region_table *table);
void guesses_deinit(struct guesses *g);

void guesses_note(struct guesses *g, uint32_t region, uint64_t word, uint64_t units);
void guesses_drop(struct guesses *g, uint32_t region, uint64_t word, uint64_t units);

/* A host page is touched. Return: how many of its @n units were guesses; they are none any more. */
uint64_t guesses_take(struct guesses *g, uint32_t region, uint64_t first_unit, uint64_t n);

#endif
