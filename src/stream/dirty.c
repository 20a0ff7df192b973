/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/dirty.h"

#include <errno.h>

/* A u64 takes at most so many bytes of 7 bits. */
#define LEB128_MAX 10u

/* The first unit from @unit on whose bit is @set; @units where there is none. */
static uint64_t find_bit(const uint64_t *bits, uint64_t units, uint64_t unit, bool set)
{
	while (unit < units) {
		uint64_t word = bits[unit / WORD_UNITS];
		uint64_t found = (set ? word : ~word) & (UINT64_MAX << unit % WORD_UNITS);

		if (found) {
			unit = unit - unit % WORD_UNITS + (uint64_t)__builtin_ctzll(found);
			break;
		}
		unit += WORD_UNITS - unit % WORD_UNITS;
	}
	return unit < units ? unit : units;
}

static uint8_t *put_leb128(uint8_t *p, uint64_t v)
{
	for (; v > 0x7f; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* Also one that is longer than it must be. Return: 0; -EPROTO where it is cut or too large. */
static int get_leb128(struct reader *r, uint64_t *ret)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < LEB128_MAX; i++) {
		const uint8_t *byte = get_bytes(r, 1);
		uint64_t bits = byte ? *byte & 0x7f : 0;

		/* Of the last byte one bit has room. */
		if (!byte || (i == LEB128_MAX - 1 && bits > 1))
			return -EPROTO;
		v |= bits << 7 * i;
		if (*byte < 0x80) {
			*ret = v;
			return 0;
		}
	}
	return -EPROTO;
}

size_t dirty_encode(uint32_t region, const uint64_t *bits, uint64_t units, uint64_t *at, void *buf)
{
	struct frame_dirty dirty = { .region = region, .first_unit = *at };
	uint8_t *runs = (uint8_t *)buf + FRAME_HEADER_BYTES + FRAME_DIRTY_BYTES;
	uint8_t *end = (uint8_t *)buf + FRAME_HEADER_BYTES + FRAME_DIRTY_MAX - 2 * LEB128_MAX;
	uint8_t *p = runs;

	while (p <= end) {
		uint64_t first = find_bit(bits, units, *at, true);
		uint64_t next = find_bit(bits, units, first, false);

		if (first == units) {
			*at = units;
			break;
		}
		p = put_leb128(put_leb128(p, first - *at), next - first);
		*at = next;
	}
	return p == runs ? 0 : frame_dirty_encode(&dirty, (size_t)(p - runs), buf);
}

size_t dirty_encode_last(void *buf)
{
	return frame_dirty_encode(&(struct frame_dirty){ .last = true }, 0, buf);
}

int dirty_decode(const struct frame_header *h, const void *payload,
                 const struct region_table *table, struct dirty_reader *ret, struct error *err)
{
	struct frame_dirty dirty;
	int rc = frame_dirty_decode(payload, &dirty, err);

	if (rc)
		return rc;
	if (dirty.region >= table->n)
		return error_set(err, -EPROTO, "DIRTY frame of region %u, there are %u",
		                 dirty.region, table->n);
	*ret = (struct dirty_reader){
		.region = dirty.region,
		.last = dirty.last,
		.runs = reader_init((const uint8_t *)payload + FRAME_DIRTY_BYTES,
		                    h->payload_len - FRAME_DIRTY_BYTES),
		.unit = dirty.first_unit,
		.units = table->regions[dirty.region].units,
	};
	return 0;
}

int dirty_next(struct dirty_reader *d, uint64_t *ret_first, uint64_t *ret_n, struct error *err)
{
	uint64_t gap, n;

	if (reader_done(&d->runs))
		return 0;
	if (get_leb128(&d->runs, &gap) || get_leb128(&d->runs, &n))
		return error_set(err, -EPROTO, "DIRTY frame with a run that is cut or too large");
	if (d->unit > d->units || gap > d->units - d->unit || !n || n > d->units - d->unit - gap)
		return error_set(err, -EPROTO,
		                 "DIRTY frame of region %u with a run of %llu units after a gap of "
		                 "%llu from unit %llu on, the region has %llu",
		                 d->region, (unsigned long long)n, (unsigned long long)gap,
		                 (unsigned long long)d->unit, (unsigned long long)d->units);
	*ret_first = d->unit + gap;
	*ret_n = n;
	d->unit += gap + n;
	return 1;
}
