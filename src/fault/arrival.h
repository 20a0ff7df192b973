/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When which part of guest memory arrived, for a picture of it: all units of all regions, one after
 * the other, in at most ARRIVAL_CELLS_MAX cells of whole words. Means rather than each unit's time:
 * bounded, and cheap, for the fillers add to it as they go.
 *
 * Threads: any, at any time; a cell that is read while it changes may be off by what is just
 * arriving.
 */
#ifndef FAULT_ARRIVAL_H
#define FAULT_ARRIVAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "mem/region.h"

#define ARRIVAL_CELLS_MAX 4096u

struct arrival_cell {
	_Atomic uint32_t by_fault; /* units: of the largest guest a cell has 2^28 */
	_Atomic uint32_t by_bulk;
	_Atomic uint64_t sum_us; /* of their times since arrival_map.origin_ns */
};

struct arrival_map {
	/* Set at birth. */
	uint64_t first_word[REGIONS_MAX]; /* of each region, in the order of the table */
	uint64_t words_per_cell;
	uint32_t n_cells;

	_Atomic uint64_t origin_ns; /* CLOCK_MONOTONIC */
	struct arrival_cell cells[ARRIVAL_CELLS_MAX];
};

void arrival_init(struct arrival_map *map, const struct region_table *table);

/* From when on time is counted: before the first unit arrives. */
void arrival_begin(struct arrival_map *map, uint64_t now_ns);

/* Units of a word are in place: brought for a fault, or by bulk. */
void arrival_note(struct arrival_map *map, uint32_t region, uint64_t word, uint64_t units,
                  bool by_fault, uint64_t now_ns);

#endif
