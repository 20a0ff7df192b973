/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest has written, on the wire.
 *
 * Theory of operation
 * -------------------
 * A harvest is a bit a unit, region by region. It travels in DIRTY frames, each with runs of one
 * region: pairs of a gap (clean units) and a length (dirty units, at least 1), both as LEB128, from
 * the frame's first unit on. Gaps between frames are clean, too. An isolated dirty page costs two
 * or three bytes, a long run not more: of 1 TiB with 1 % dirty that is 8 MB where each page lies
 * alone. The last frame of a harvest says so, and has no runs.
 *
 * Both ends go by words where nothing changes for long: a sparse harvest of large memory takes no
 * more than a look at each word of the bitmap.
 */
#ifndef STREAM_DIRTY_H
#define STREAM_DIRTY_H

#include "stream/frame.h"
#include "util/bytes.h"

/*
 * dirty_encode() - the next frame of a region's harvest
 * @bits: (@units + 63) / 64 words; what is set beyond @units does not count
 * @at: from this unit on; moves on to where the next frame begins
 * @buf: FRAME_HEADER_BYTES + FRAME_DIRTY_MAX
 *
 * Return: the frame's length; 0 where nothing is dirty from @at on.
 */
size_t dirty_encode(uint32_t region, const uint64_t *bits, uint64_t units, uint64_t *at, void *buf);

/* The harvest's end. @buf: FRAME_HEADER_BYTES + FRAME_DIRTY_BYTES. Return: the frame's length. */
size_t dirty_encode_last(void *buf);

struct dirty_reader {
	uint32_t region;
	bool last; /* of the harvest */
	/* The reader's own. */
	struct reader runs;
	uint64_t unit;  /* where the next gap begins */
	uint64_t units; /* of the region */
};

/*
 * dirty_decode() - begin to read a DIRTY frame
 * @table: that its region is of
 *
 * Return: 0 or -EPROTO with @err set.
 */
int dirty_decode(const struct frame_header *h, const void *payload,
                 const struct region_table *table, struct dirty_reader *ret, struct error *err);

/* The next run: it lies within the region. Return: 1; 0 at the end; -EPROTO with @err set. */
int dirty_next(struct dirty_reader *d, uint64_t *ret_first, uint64_t *ret_n, struct error *err);

#endif
