/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/frame.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "util/bytes.h"

#define PAGES_MAX_LEN (FRAME_PAGES_BYTES + WORD_UNITS * UNIT_BYTES)
#define ERROR_CODE_MAX 4095
#define DIRTY_LAST 1u

/* The payload lengths a type can have: what a decoder may allocate for or wait for. */
static const struct frame_lengths {
	const char *name;
	uint32_t min;
	uint32_t max;
} frame_lengths[] = {
	[FRAME_HELLO] = { "HELLO", 0, FRAME_HELLO_MAX },
	[FRAME_HELLO_REPLY] = { "HELLO_REPLY", 0, FRAME_HELLO_MAX },
	[FRAME_ERROR] = { "ERROR", 4, FRAME_ERROR_MAX },
	[FRAME_GET] = { "GET", FRAME_GET_BYTES, FRAME_GET_BYTES },
	[FRAME_PAGES] = { "PAGES", FRAME_PAGES_BYTES, PAGES_MAX_LEN },
	[FRAME_SWITCHOVER] = { "SWITCHOVER", 0, 0 },
	[FRAME_VMSTATE] = { "VMSTATE", FRAME_VMSTATE_BYTES, FRAME_VMSTATE_BYTES },
	[FRAME_VMSTATE_DATA] = { "VMSTATE_DATA", 1, FRAME_VMSTATE_DATA_MAX },
	[FRAME_RESUMED] = { "RESUMED", 0, 0 },
	[FRAME_COMPLETE] = { "COMPLETE", 0, 0 },
	[FRAME_COMPLETE_ACK] = { "COMPLETE_ACK", 0, 0 },
	[FRAME_ABORT] = { "ABORT", 0, FRAME_ABORT_MAX },
	[FRAME_ABORT_ACK] = { "ABORT_ACK", 0, 0 },
	[FRAME_PING] = { "PING", 0, 0 },
	[FRAME_PONG] = { "PONG", 0, 0 },
	[FRAME_PROBE] = { "PROBE", FRAME_PROBE_BYTES, FRAME_PROBE_BYTES },
	[FRAME_PROBE_REPLY] = { "PROBE_REPLY", FRAME_PROBE_BYTES, FRAME_PROBE_BYTES },
	[FRAME_PROOF] = { "PROOF", FRAME_PROOF_BYTES, FRAME_PROOF_BYTES },
	[FRAME_TRACK] = { "TRACK", 0, 0 },
	[FRAME_TRACKED] = { "TRACKED", 4, FRAME_ERROR_MAX },
	[FRAME_SYNC] = { "SYNC", 0, 0 },
	[FRAME_DIRTY] = { "DIRTY", FRAME_DIRTY_BYTES, FRAME_DIRTY_MAX },
	[FRAME_VMSTATE_AHEAD] = { "VMSTATE_AHEAD", 1, FRAME_VMSTATE_DATA_MAX },
};

void frame_header_encode(const struct frame_header *h, void *buf)
{
	buf = put_u16(buf, h->type);
	buf = put_u16(buf, 0);
	buf = put_u32(buf, h->payload_len);
	put_u64(buf, h->request_id);
}

int frame_header_decode(const void *buf, struct frame_header *ret, struct error *err)
{
	struct reader r = reader_init(buf, FRAME_HEADER_BYTES);
	uint16_t type = get_u16(&r);
	uint16_t flags = get_u16(&r);
	uint32_t len = get_u32(&r);
	const struct frame_lengths *lengths;

	if (type >= sizeof frame_lengths / sizeof *frame_lengths || !frame_lengths[type].name)
		return error_set(err, -EPROTO, "frame of unknown type %u", type);
	lengths = &frame_lengths[type];
	if (flags)
		return error_set(err, -EPROTO, "%s frame with unknown flags %#x", lengths->name,
		                 flags);
	if (len < lengths->min || len > lengths->max)
		return error_set(err, -EPROTO, "%s frame of %u bytes, must be %u..%u",
		                 lengths->name, len, lengths->min, lengths->max);
	ret->type = type;
	ret->payload_len = len;
	ret->request_id = get_u64(&r);
	return 0;
}

static void *put_header(void *buf, uint16_t type, size_t payload_len, uint64_t request_id)
{
	struct frame_header h = {
		.type = type,
		.payload_len = (uint32_t)payload_len,
		.request_id = request_id,
	};

	frame_header_encode(&h, buf);
	return (char *)buf + FRAME_HEADER_BYTES;
}

size_t frame_get_encode(const struct frame_get *get, uint64_t request_id, void *buf)
{
	void *p = put_header(buf, FRAME_GET, FRAME_GET_BYTES, request_id);

	p = put_u32(p, get->region);
	p = put_u32(p, 0);
	p = put_u64(p, get->first_unit);
	put_u64(p, get->want_mask);
	return FRAME_HEADER_BYTES + FRAME_GET_BYTES;
}

size_t frame_pages_encode(const struct frame_pages *pages, uint64_t request_id, void *buf)
{
	size_t data = (size_t)__builtin_popcountll(pages->data_mask) * UNIT_BYTES;
	void *p = put_header(buf, FRAME_PAGES, FRAME_PAGES_BYTES + data, request_id);

	p = put_u32(p, pages->region);
	p = put_u32(p, 0);
	p = put_u64(p, pages->first_unit);
	p = put_u64(p, pages->data_mask);
	p = put_u64(p, pages->zero_mask);
	put_u64(p, pages->error_mask);
	return FRAME_HEADER_BYTES + FRAME_PAGES_BYTES;
}

size_t frame_vmstate_encode(const struct frame_vmstate *vmstate, void *buf)
{
	void *p = put_header(buf, FRAME_VMSTATE, FRAME_VMSTATE_BYTES, 0);

	p = put_u64(p, vmstate->len);
	p = put_u64(p, vmstate->pause_ns);
	put_u64(p, vmstate->held_ns);
	return FRAME_HEADER_BYTES + FRAME_VMSTATE_BYTES;
}

size_t frame_proof_encode(const uint8_t proof[FRAME_PROOF_BYTES], void *buf)
{
	memcpy(put_header(buf, FRAME_PROOF, FRAME_PROOF_BYTES, 0), proof, FRAME_PROOF_BYTES);
	return FRAME_HEADER_BYTES + FRAME_PROOF_BYTES;
}

/* A code and what a person will read. */
static size_t put_told(uint16_t type, int code, const char *text, void *buf)
{
	size_t len = strlen(text);
	void *p;

	if (len > FRAME_ERROR_MAX - 4)
		len = FRAME_ERROR_MAX - 4;
	p = put_header(buf, type, 4 + len, 0);
	p = put_u32(p, (uint32_t)(code < 0 ? -code : code));
	memcpy(p, text, len);
	return FRAME_HEADER_BYTES + 4 + len;
}

size_t frame_error_encode(int code, const char *text, void *buf)
{
	return put_told(FRAME_ERROR, code, text, buf);
}

size_t frame_tracked_encode(int code, const char *text, void *buf)
{
	return put_told(FRAME_TRACKED, code, text, buf);
}

size_t frame_abort_encode(const char *why, void *buf)
{
	size_t len = strnlen(why, FRAME_ABORT_MAX);

	memcpy(put_header(buf, FRAME_ABORT, len, 0), why, len);
	return FRAME_HEADER_BYTES + len;
}

size_t frame_dirty_encode(const struct frame_dirty *dirty, size_t runs_len, void *buf)
{
	void *p = put_header(buf, FRAME_DIRTY, FRAME_DIRTY_BYTES + runs_len, 0);

	p = put_u32(p, dirty->region);
	p = put_u32(p, dirty->last ? DIRTY_LAST : 0);
	put_u64(p, dirty->first_unit);
	return FRAME_HEADER_BYTES + FRAME_DIRTY_BYTES + runs_len;
}

static int check_first_unit(const char *frame, uint64_t first_unit, struct error *err)
{
	if (first_unit % WORD_UNITS)
		return error_set(err, -EPROTO, "%s frame: first unit %llu is not a multiple of %u",
		                 frame, (unsigned long long)first_unit, WORD_UNITS);
	return 0;
}

int frame_get_decode(const void *payload, struct frame_get *ret, struct error *err)
{
	struct reader r = reader_init(payload, FRAME_GET_BYTES);
	uint32_t reserved;

	ret->region = get_u32(&r);
	reserved = get_u32(&r);
	ret->first_unit = get_u64(&r);
	ret->want_mask = get_u64(&r);
	if (reserved)
		return error_set(err, -EPROTO, "GET frame with reserved field %#x", reserved);
	if (!ret->want_mask)
		return error_set(err, -EPROTO, "GET frame that asks for nothing");
	return check_first_unit("GET", ret->first_unit, err);
}

int frame_pages_decode(const struct frame_header *h, const void *payload, struct frame_pages *ret,
                       struct error *err)
{
	struct reader r = reader_init(payload, FRAME_PAGES_BYTES);
	uint32_t reserved;
	size_t want;

	ret->region = get_u32(&r);
	reserved = get_u32(&r);
	ret->first_unit = get_u64(&r);
	ret->data_mask = get_u64(&r);
	ret->zero_mask = get_u64(&r);
	ret->error_mask = get_u64(&r);
	if (reserved)
		return error_set(err, -EPROTO, "PAGES frame with reserved field %#x", reserved);
	if ((ret->data_mask & ret->zero_mask) ||
	    ((ret->data_mask | ret->zero_mask) & ret->error_mask))
		return error_set(err, -EPROTO, "PAGES frame with units in two masks");
	want = FRAME_PAGES_BYTES + (size_t)__builtin_popcountll(ret->data_mask) * UNIT_BYTES;
	if (h->payload_len != want)
		return error_set(err, -EPROTO,
		                 "PAGES frame of %u bytes, its mask of %d units needs %zu",
		                 h->payload_len, __builtin_popcountll(ret->data_mask), want);
	return check_first_unit("PAGES", ret->first_unit, err);
}

int frame_vmstate_decode(const void *payload, struct frame_vmstate *ret, struct error *err)
{
	struct reader r = reader_init(payload, FRAME_VMSTATE_BYTES);

	ret->len = get_u64(&r);
	ret->pause_ns = get_u64(&r);
	ret->held_ns = get_u64(&r);
	if (!ret->len)
		return error_set(err, -EPROTO, "VMSTATE frame that announces 0 bytes");
	return 0;
}

int frame_dirty_decode(const void *payload, struct frame_dirty *ret, struct error *err)
{
	struct reader r = reader_init(payload, FRAME_DIRTY_BYTES);
	uint32_t flags;

	ret->region = get_u32(&r);
	flags = get_u32(&r);
	ret->first_unit = get_u64(&r);
	ret->last = flags & DIRTY_LAST;
	if (flags & ~DIRTY_LAST)
		return error_set(err, -EPROTO, "DIRTY frame with unknown flags %#x", flags);
	return 0;
}

int frame_tracked_decode(const struct frame_header *h, const void *payload, struct error *err)
{
	struct reader r = reader_init(payload, h->payload_len);

	return get_u32(&r) ? frame_error_decode(h, payload, err) : 0;
}

void frame_abort_decode(const struct frame_header *h, const void *payload, struct error *ret)
{
	error_set(ret, -ECANCELED, "%.*s", (int)h->payload_len, (const char *)payload);
	ret->from_peer = true;
}

int frame_error_decode(const struct frame_header *h, const void *payload, struct error *err)
{
	struct reader r = reader_init(payload, h->payload_len);
	uint32_t code = get_u32(&r);
	int len = (int)(r.end - r.pos);

	if (!code || code > ERROR_CODE_MAX)
		code = EPROTO;
	error_set(err, -(int)code, "the source says: %.*s", len, (const char *)r.pos);
	if (err)
		err->from_peer = true;
	return -(int)code;
}
