/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A destination's memory, divided among several userfaultfds (util/shards.h).
 *
 * The daemon offers it before it says ATTACHED, and here it is done at once: nobody may touch the
 * memory before the attach has returned. That matters: between the two userfaultfds a part is
 * trapped by none, and who touched an absent page then would be given zeroes for it.
 */
#ifndef LIBPOSTCOPY_SPLIT_H
#define LIBPOSTCOPY_SPLIT_H

#include "libpostcopy/attachment.h"

/*
 * split_memory() - before the attach has returned: divide it, and say so
 * @n: shards, as they were offered
 *
 * Where it can't be done nothing has changed, and nothing is said.
 *
 * Return: 0; or -errno with @err set: a part of the memory is not trapped any more.
 */
int split_memory(struct postcopy *p, uint32_t n, struct error *err);

/* Said again to a daemon that asks again; nothing where the memory was not divided. */
int split_say(struct postcopy *p, struct error *err);

/* Nothing of it is trapped any more: of the userfaultfd of ATTACH, too, which stays open. */
void split_unregister(struct postcopy *p);

#endif
