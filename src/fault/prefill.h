/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling while the guest runs at the source: nothing is mapped, nobody is woken, and what is put
 * in place may be put there again in the next generation (mem/page_state.h).
 *
 * So it goes behind the registered mapping, whatever the memory: pwrite(), or memcpy to the alias.
 * guest_memfd, whose write() makes absent pages only, takes the second content by the alias.
 * Anonymous memory has no such way: UFFDIO_COPY would show the page, and can't do so twice.
 *
 * A unit that is zero stays a hole, unless bytes were put there before: then it is written over.
 * What can't be had now (the source can't read it, there is no memory for it here) stays claimed
 * and not present: it is not asked for again until the next generation, and is dealt with as ever
 * when the guest has moved.
 */
#ifndef FAULT_PREFILL_H
#define FAULT_PREFILL_H

#include "fault/resolver.h"

/* Whether memory of this kind can be filled so. */
static inline bool prefill_can(enum postcopy_memory memory)
{
	return memory != POSTCOPY_MEMORY_ANONYMOUS;
}

/*
 * prefill() - fill and publish what is not claimed of a batch
 *
 * Return: 0; or why something could not be filled; *@ret_filled is what was.
 */
int prefill(struct resolver *r, const struct resolver_batch *b, uint64_t *ret_filled);

#endif
