/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vmstate of a Cloud Hypervisor guest: what its source has said, for its destination to hear.
 *
 * Opaque to the daemons. All little-endian:
 *
 *   u32 magic, u32 version (1), u32 flags (1: the guest ran), u32 number of memory slots
 *   of each slot: u32 number, u32 0, u64 guest physical address, size, file offset, page size
 *   u64 bytes of Config, u64 bytes of State; then these, as they came
 *
 * One side's adapter is not trusted by the other: all is checked.
 */
#ifndef CLOUD_HYPERVISOR_ENVELOPE_H
#define CLOUD_HYPERVISOR_ENVELOPE_H

#include <stdbool.h>

#include "cloud_hypervisor/layout.h"

#define CH_ENVELOPE_MAGIC 0x56484350u /* "PCHV" */
#define CH_ENVELOPE_VERSION 1u
#define CH_ENVELOPE_SLOT_BYTES 40
#define CH_ENVELOPE_HEAD_MAX (16 + CH_SLOTS_MAX * CH_ENVELOPE_SLOT_BYTES + 16)

struct ch_envelope {
	bool runs; /* it ran when it was sent, and is to run again */
	struct ch_layout layout;
	const char *config, *state; /* into what was decoded */
	size_t config_len, state_len;
};

/* All that comes before Config and State, into @buf of CH_ENVELOPE_HEAD_MAX. Return: its length. */
size_t ch_envelope_encode_head(const struct ch_envelope *e, void *buf);

/* Return: 0; -EPROTO or -EPROTONOSUPPORT with @err. */
int ch_envelope_decode(const void *data, size_t len, struct ch_envelope *ret, struct error *err);

#endif
