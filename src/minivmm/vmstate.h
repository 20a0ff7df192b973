/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vmstate: all of the guest that is not its memory, as bytes that any host can
 * read. Field by field and little-endian; nothing of it is believed before it is checked.
 */
#ifndef MINIVMM_VMSTATE_H
#define MINIVMM_VMSTATE_H

#include <postcopy/postcopy.h>
#include <stdint.h>

#include "minivmm/guest/abi.h"
#include "minivmm/spare.h"
#include "minivmm/vcpu.h"

struct vmstate {
	struct guest_boot boot; /* memory size, count of vCPUs, workload */
	struct vcpu_state vcpus[GUEST_VCPUS_MAX];
	uint64_t digests[GUEST_VCPUS_MAX]; /* each control block's digest at the pause */
	uint8_t spare[SPARE_PAGES];        /* each an enum spare_state */
	uint64_t pad_bytes;                /* follow, to try large states */
};

/* @ret_data is the caller's to free. */
int vmstate_encode(const struct vmstate *state, void **ret_data, uint64_t *ret_len,
                   struct postcopy_error *err);

int vmstate_decode(const void *data, uint64_t len, struct vmstate *ret, struct postcopy_error *err);

#endif
