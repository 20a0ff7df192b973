/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host puts at the bottom of guest memory: page tables, code, the boot block,
 * the control blocks. All but the last never changes, so it can be checked at the end.
 */
#ifndef MINIVMM_IMAGE_H
#define MINIVMM_IMAGE_H

#include <stdint.h>

#include "minivmm/guest/abi.h"
#include "minivmm/memory.h"

/* Fills in what follows from @boot's memory_bytes. */
void image_layout(struct guest_boot *boot);

void image_load(const struct memory *m, const struct guest_boot *boot);

/* How many of its pages are not as image_load() left them. */
uint64_t image_check(const struct memory *m, const struct guest_boot *boot,
                     uint64_t *ret_first_bad);

/* A piece of guest memory, in bytes, both multiples of a page. */
struct image_range {
	uint64_t start;
	uint64_t len;
};
#define IMAGE_NEEDED_MAX (3 + 2 * GUEST_VCPUS_MAX)

/* What the vCPUs touch before anything else. Return: how many pieces. */
unsigned int image_needed(const struct guest_boot *boot, struct image_range ret[IMAGE_NEEDED_MAX]);

/* And what is touched with each access of a data page: their generations. */
struct image_range image_generations(const struct guest_boot *boot);

/* How many data pages the guest has touched since the pause. */
uint64_t image_touched(const struct memory *m, unsigned int vcpus);

struct guest_vcpu *image_vcpu(const struct memory *m, unsigned int index);

#endif
