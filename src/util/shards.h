/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a guest's memory is divided among several userfaultfds.
 *
 * Theory of operation
 * -------------------
 * One userfaultfd has one queue of events and one lock, and one thread that reads it: with many
 * vCPUs it is what they wait for. So a VMM may watch its memory by several, each its shard. Both
 * ends compute from the same table and the same number what belongs to which, and nothing of it
 * travels.
 *
 * Each region is cut into as many parts of about the same size as there are shards, at bounds that
 * no huge page and no word of the page state straddles; a small one is not cut, and belongs
 * to one of them as a whole, in turn. Parts are long stretches, and not thin slices: each is a
 * mapping of its own for the kernel, and neighbours that fault together are asked for together.
 *
 * Threads: pure functions.
 */
#ifndef UTIL_SHARDS_H
#define UTIL_SHARDS_H

#include <stdint.h>

#define SHARDS_MAX 8u

/* What is known of a region. */
struct shards_region {
	uint32_t index;           /* in its table, as it travels */
	uint64_t size, page_size; /* bytes */
};

/*
 * shards_part() - the part of a region that a shard has
 * @n: how many shards there are, 1..SHARDS_MAX
 * @shard: which one, below @n
 * @ret_begin, @ret_end: bytes into the region; equal where it has none of it
 */
void shards_part(unsigned int n, const struct shards_region *r, unsigned int shard,
                 uint64_t *ret_begin, uint64_t *ret_end);

/* Whose part a byte of the region lies in. @offset: below its size */
unsigned int shards_of(unsigned int n, const struct shards_region *r, uint64_t offset);

#endif
