/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pages of a source guest that are poisoned in its VMM's address space (UFFDIO_POISON: a
 * migration before this one could not bring them). Nobody but the VMM's own mapping knows: the
 * memory behind them reads as zeroes.
 *
 * VMM_WIRE_POISONED carries a sealed memfd of records, all little-endian, by region and offset,
 * none touching the next:
 *
 *   u32 region, u32 reserved (0), u64 offset into the region, u64 length (bytes, both multiples
 *   of 4096)
 */
#ifndef LIBPOSTCOPY_POISON_WIRE_H
#define LIBPOSTCOPY_POISON_WIRE_H

#include "util/bytes.h"

#define POISON_RECORD_BYTES 24
/* A guest with more holes than that is not migrated. */
#define POISON_RECORDS_MAX 65536u

struct poison_record {
	uint32_t region;
	uint64_t offset;
	uint64_t len;
};

static inline void poison_record_encode(const struct poison_record *p, void *buf)
{
	buf = put_u32(buf, p->region);
	buf = put_u32(buf, 0);
	buf = put_u64(buf, p->offset);
	put_u64(buf, p->len);
}

/* Return: whether @buf is a record at all; what it says is not checked. */
static inline bool poison_record_decode(const void *buf, struct poison_record *ret)
{
	struct reader r = reader_init(buf, POISON_RECORD_BYTES);
	uint32_t reserved;

	ret->region = get_u32(&r);
	reserved = get_u32(&r);
	ret->offset = get_u64(&r);
	ret->len = get_u64(&r);
	return !reserved && reader_done(&r);
}

#endif
