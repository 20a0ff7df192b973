/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/arrival.h"

#include "util/clock.h"

void arrival_init(struct arrival_map *map, const struct region_table *table)
{
	uint64_t words = 0;

	for (uint32_t i = 0; i < table->n; i++) {
		map->first_word[i] = words;
		words += table->regions[i].words;
	}
	map->words_per_cell = (words + ARRIVAL_CELLS_MAX - 1) / ARRIVAL_CELLS_MAX;
	if (words)
		map->n_cells = (uint32_t)((words + map->words_per_cell - 1) / map->words_per_cell);
}

void arrival_begin(struct arrival_map *map, uint64_t now_ns)
{
	atomic_store_explicit(&map->origin_ns, now_ns, memory_order_relaxed);
}

void arrival_note(struct arrival_map *map, uint32_t region, uint64_t word, uint64_t units,
                  bool by_fault, uint64_t now_ns)
{
	uint64_t cell = (map->first_word[region] + word) / map->words_per_cell;
	struct arrival_cell *c = &map->cells[cell];
	uint64_t origin_ns = atomic_load_explicit(&map->origin_ns, memory_order_relaxed);
	uint64_t us = now_ns > origin_ns ? (now_ns - origin_ns) / NSEC_PER_USEC : 0;

	if (!units)
		return;
	atomic_fetch_add_explicit(&c->sum_us, units * us, memory_order_relaxed);
	atomic_fetch_add_explicit(by_fault ? &c->by_fault : &c->by_bulk, (uint32_t)units,
	                          memory_order_relaxed);
}
