/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fetch channel: by which a VMM asks for pages itself, where its vCPUs' faults are not
 * userfaultfd events (memslots bound to guest_memfd, KVM userfault).
 *
 * A unix SEQPACKET socket of its own, whose one end the VMM passes to the daemon with
 * VMM_WIRE_CHANNEL. The daemon's fault thread serves it. All little-endian:
 *
 *   VMM -> daemon   u64 tag, u64 guest physical address, u64 length (bytes)
 *                   and, where it is no fetch: u64 what (FETCH_DISCARD, FETCH_HOT)
 *   daemon -> VMM   u64 tag, u32 code (0 or a positive errno), u32 reserved (0)
 *
 * An answer says that every page of the range is in place; EHWPOISON, that some of it is lost: the
 * source can't read it. FETCH_DISCARD: those that had not arrived are zero, and nothing of any is
 * still on its way. FETCH_HOT: the guest will need these soon; a hint, of any length within one
 * region, which has no answer. Answers come in any order. The
 * tag FETCH_TAG_ALL, which no request may use, says that all of the guest is: nothing needs to
 * be asked any more, and what was asked is there. FETCH_TAG_AGAIN says that another process
 * of the daemon serves the channel now: what has no answer yet is to be asked again, for the
 * question may have gone with the process before. It may have waited here as well: then it is
 * answered twice.
 */
#ifndef LIBPOSTCOPY_FETCH_WIRE_H
#define LIBPOSTCOPY_FETCH_WIRE_H

#include "util/bytes.h"

#define FETCH_REQUEST_BYTES 24
#define FETCH_REQUEST_BYTES_MAX (FETCH_REQUEST_BYTES + 8)
#define FETCH_DISCARD 1
#define FETCH_HOT 2
#define FETCH_ANSWER_BYTES 16
#define FETCH_TAG_ALL UINT64_MAX
#define FETCH_TAG_AGAIN (UINT64_MAX - 1)
/* The most that one request may ask for. */
#define FETCH_LEN_MAX (2u << 20)

struct fetch_request {
	uint64_t tag;
	uint64_t guest_phys_addr;
	uint64_t len;
	bool discard;
	bool hot;
};

struct fetch_answer {
	uint64_t tag;
	uint32_t code;
};

/* Into @buf of FETCH_REQUEST_BYTES_MAX. Return: the length. */
static inline size_t fetch_request_encode(const struct fetch_request *q, void *buf)
{
	buf = put_u64(buf, q->tag);
	buf = put_u64(buf, q->guest_phys_addr);
	buf = put_u64(buf, q->len);
	if (!q->discard && !q->hot)
		return FETCH_REQUEST_BYTES;
	put_u64(buf, q->hot ? FETCH_HOT : FETCH_DISCARD);
	return FETCH_REQUEST_BYTES_MAX;
}

/* Return: whether @buf is a request at all; what it asks for is not checked. */
static inline bool fetch_request_decode(const void *buf, size_t len, struct fetch_request *ret)
{
	struct reader r = reader_init(buf, len);
	uint64_t what;

	ret->tag = get_u64(&r);
	ret->guest_phys_addr = get_u64(&r);
	ret->len = get_u64(&r);
	what = len == FETCH_REQUEST_BYTES ? 0 : get_u64(&r);
	ret->discard = what == FETCH_DISCARD;
	ret->hot = what == FETCH_HOT;
	if (len != FETCH_REQUEST_BYTES && !ret->discard && !ret->hot)
		return false;
	return reader_done(&r) && ret->tag < FETCH_TAG_AGAIN;
}

static inline void fetch_answer_encode(const struct fetch_answer *a, void *buf)
{
	buf = put_u64(buf, a->tag);
	buf = put_u32(buf, a->code);
	put_u32(buf, 0);
}

static inline bool fetch_answer_decode(const void *buf, size_t len, struct fetch_answer *ret)
{
	struct reader r = reader_init(buf, len);

	ret->tag = get_u64(&r);
	ret->code = get_u32(&r);
	return get_u32(&r) == 0 && reader_done(&r);
}

#endif
