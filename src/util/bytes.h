/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Little-endian encoding, field by field: no struct of ours ever lies on a wire.
 *
 * The get_*() side is a cursor with a sticky failure: read all fields, then ask
 * once with reader_done() whether every one of them was there and nothing is left.
 */
#ifndef UTIL_BYTES_H
#define UTIL_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void *put_u16(void *p, uint16_t v)
{
	v = htole16(v);
	return (char *)memcpy(p, &v, sizeof v) + sizeof v;
}

static inline void *put_u32(void *p, uint32_t v)
{
	v = htole32(v);
	return (char *)memcpy(p, &v, sizeof v) + sizeof v;
}

static inline void *put_u64(void *p, uint64_t v)
{
	v = htole64(v);
	return (char *)memcpy(p, &v, sizeof v) + sizeof v;
}

struct reader {
	const uint8_t *pos;
	const uint8_t *end;
	bool failed;
};

static inline struct reader reader_init(const void *data, size_t len)
{
	return (struct reader){ .pos = data, .end = (const uint8_t *)data + len };
}

/* The next @len bytes, or NULL (and failed from then on). */
static inline const void *get_bytes(struct reader *r, size_t len)
{
	const uint8_t *p = r->pos;

	if (r->failed || (size_t)(r->end - r->pos) < len) {
		r->failed = true;
		return NULL;
	}
	r->pos += len;
	return p;
}

static inline uint16_t get_u16(struct reader *r)
{
	const void *p = get_bytes(r, 2);
	uint16_t v = 0;

	if (p)
		memcpy(&v, p, sizeof v);
	return le16toh(v);
}

static inline uint32_t get_u32(struct reader *r)
{
	const void *p = get_bytes(r, 4);
	uint32_t v = 0;

	if (p)
		memcpy(&v, p, sizeof v);
	return le32toh(v);
}

static inline uint64_t get_u64(struct reader *r)
{
	const void *p = get_bytes(r, 8);
	uint64_t v = 0;

	if (p)
		memcpy(&v, p, sizeof v);
	return le64toh(v);
}

/* True where all fields were there and nothing follows them. */
static inline bool reader_done(const struct reader *r)
{
	return !r->failed && r->pos == r->end;
}

#endif
