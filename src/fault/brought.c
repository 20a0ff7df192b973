/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/brought.h"

#include <stddef.h>

#define BROUGHT_BUSY UINT64_MAX
/* Units of a region fit below it: 52 bits of address, 12 of page. */
#define REGION_SHIFT 52

static uint64_t key_of(uint32_t region, uint64_t first_unit)
{
	return (uint64_t)(region + 1) << REGION_SHIFT | first_unit;
}

static struct brought_place *place_of(struct brought *b, uint64_t key, unsigned int probe)
{
	/* Fibonacci hashing: neighbouring pages, which are brought together, lie apart. */
	uint64_t hash = (key * 0x9e3779b97f4a7c15ull) >> 32;

	return &b->places[(hash + probe) % BROUGHT_PLACES];
}

/* A free place, or the oldest note's. Return: NULL where others are writing all of them. */
static struct brought_place *find_place(struct brought *b, uint64_t key, uint64_t *ret_key)
{
	struct brought_place *oldest = NULL;
	uint64_t oldest_ns = UINT64_MAX;

	for (unsigned int i = 0; i < BROUGHT_PROBES; i++) {
		struct brought_place *p = place_of(b, key, i);
		uint64_t there = atomic_load_explicit(&p->key, memory_order_relaxed);
		uint64_t ns = there ? atomic_load_explicit(&p->mapped_ns, memory_order_relaxed) : 0;

		if (there == BROUGHT_BUSY || ns >= oldest_ns)
			continue;
		oldest = p;
		oldest_ns = ns;
		*ret_key = there;
	}
	return oldest;
}

void brought_note(struct brought *b, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                  uint64_t mapped_ns)
{
	uint64_t key = key_of(region, first_unit), there;
	struct brought_place *p = find_place(b, key, &there);

	if (!p ||
	    !atomic_compare_exchange_strong_explicit(&p->key, &there, BROUGHT_BUSY,
	                                             memory_order_acquire, memory_order_relaxed))
		return;
	atomic_store_explicit(&p->filled_ns, filled_ns, memory_order_relaxed);
	atomic_store_explicit(&p->mapped_ns, mapped_ns, memory_order_relaxed);
	atomic_store_explicit(&p->key, key, memory_order_release);
}

bool brought_take(struct brought *b, uint32_t region, uint64_t first_unit, uint64_t *ret_filled_ns,
                  uint64_t *ret_mapped_ns)
{
	uint64_t key = key_of(region, first_unit);

	for (unsigned int i = 0; i < BROUGHT_PROBES; i++) {
		struct brought_place *p = place_of(b, key, i);
		uint64_t there = key;

		if (atomic_load_explicit(&p->key, memory_order_relaxed) != key ||
		    !atomic_compare_exchange_strong_explicit(&p->key, &there, BROUGHT_BUSY,
		                                             memory_order_acquire,
		                                             memory_order_relaxed))
			continue;
		*ret_filled_ns = atomic_load_explicit(&p->filled_ns, memory_order_relaxed);
		*ret_mapped_ns = atomic_load_explicit(&p->mapped_ns, memory_order_relaxed);
		atomic_store_explicit(&p->key, 0, memory_order_release);
		return true;
	}
	return false;
}
