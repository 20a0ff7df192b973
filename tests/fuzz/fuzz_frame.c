/* SPDX-License-Identifier: Apache-2.0 */
/* The page stream's frames: a header and, behind it, its payload. */
#include "fuzz.h"

#include <errno.h>
#include <string.h>

#include "stream/dirty.h"
#include "stream/frame.h"
#include "stream/window.h"

const unsigned int fuzz_rounds = 300000;

static void check_get(const uint8_t *data, const struct frame_header *h)
{
	uint8_t back[FRAME_HEADER_BYTES + FRAME_GET_BYTES];
	struct error err = ERROR_INIT;
	struct frame_get get;

	if (frame_get_decode(data + FRAME_HEADER_BYTES, &get, &err)) {
		FUZZ_CHECK(err.code < 0 && *err.text);
		return;
	}
	FUZZ_CHECK(get.want_mask && get.first_unit % WORD_UNITS == 0);
	FUZZ_CHECK(frame_get_encode(&get, h->request_id, back) == sizeof back);
	FUZZ_CHECK(!memcmp(back, data, sizeof back));
}

/* Also as the answer to a request that it may or may not fit. */
static void check_pages(const uint8_t *data, const struct frame_header *h)
{
	struct scheduler_item item = { .region = 1, .word = 2, .want_mask = 0xff };
	uint8_t back[FRAME_HEADER_BYTES + FRAME_PAGES_BYTES];
	struct error err = ERROR_INIT;
	struct window w = { 0 };
	struct frame_pages pages;

	if (!frame_pages_decode(h, data + FRAME_HEADER_BYTES, &pages, &err)) {
		FUZZ_CHECK(!(pages.data_mask & pages.zero_mask));
		FUZZ_CHECK(!((pages.data_mask | pages.zero_mask) & pages.error_mask));
		FUZZ_CHECK(frame_pages_encode(&pages, h->request_id, back) == sizeof back);
		FUZZ_CHECK(!memcmp(back, data, sizeof back));
	}
	window_ask(&w, &item, back);
	if (!window_answer(&w, h, data + FRAME_HEADER_BYTES, &pages, &item, &err)) {
		FUZZ_CHECK(pages.region == 1 && pages.first_unit == 2 * WORD_UNITS);
		FUZZ_CHECK((pages.data_mask | pages.zero_mask | pages.error_mask) == 0xff);
		FUZZ_CHECK(!w.n);
	} else {
		FUZZ_CHECK(w.n == 1 && err.code < 0);
	}
}

static void check_error(const uint8_t *payload, const struct frame_header *h)
{
	struct error err = ERROR_INIT;

	FUZZ_CHECK(frame_error_decode(h, payload, &err) < 0 && err.code < 0);
	FUZZ_CHECK(strlen(err.text) < sizeof err.text && !strpbrk(err.text, "\n\r\x1b"));
}

static void check_abort(const uint8_t *payload, const struct frame_header *h)
{
	uint8_t back[FRAME_HEADER_BYTES + FRAME_ABORT_MAX];
	struct error why = ERROR_INIT;

	frame_abort_decode(h, payload, &why);
	FUZZ_CHECK(strlen(why.text) < sizeof why.text && !strpbrk(why.text, "\n\r\x1b"));
	FUZZ_CHECK(frame_abort_encode(why.text, back) == FRAME_HEADER_BYTES + strlen(why.text));
}

/* Runs lie in their region, one behind the other, or the frame is refused. */
static void check_dirty(const uint8_t *payload, const struct frame_header *h)
{
	static const struct region_table table = {
		.n = 2,
		.regions = { { .units = 100, .words = 2 }, { .units = 1 << 20, .words = 1 << 14 } },
	};
	uint64_t end = 0, first = 0, n = 0;
	struct error err = ERROR_INIT;
	struct dirty_reader d;
	int rc = dirty_decode(h, payload, &table, &d, &err);

	while (!rc && (rc = dirty_next(&d, &first, &n, &err)) == 1) {
		FUZZ_CHECK(d.region < table.n && n && first >= end);
		FUZZ_CHECK(n <= table.regions[d.region].units &&
		           first <= table.regions[d.region].units - n);
		end = first + n;
		rc = 0;
	}
	FUZZ_CHECK(rc == err.code);
}

static size_t dirty_seed(uint8_t *buf)
{
	static const uint64_t bits[] = { 0xff0f0001, 0x8000000000000000, 1, 0 };
	uint64_t at = 0;

	return dirty_encode(1, bits, 4 * WORD_UNITS, &at, buf);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	uint8_t back[FRAME_HEADER_BYTES];
	struct error err = ERROR_INIT;
	struct frame_vmstate vmstate;
	struct frame_header h;

	if (size < FRAME_HEADER_BYTES)
		return 0;
	if (frame_header_decode(data, &h, &err)) {
		FUZZ_CHECK(err.code == -EPROTO);
		return 0;
	}
	FUZZ_CHECK(FRAME_HEADER_BYTES + h.payload_len <= FRAME_PAGES_MAX);
	frame_header_encode(&h, back);
	FUZZ_CHECK(!memcmp(back, data, sizeof back));
	size -= FRAME_HEADER_BYTES;
	if (h.type == FRAME_PAGES && size >= FRAME_PAGES_BYTES)
		check_pages(data, &h);
	/* Of all others the connection hands on whole payloads only. */
	if (size < h.payload_len)
		return 0;
	if (h.type == FRAME_GET)
		check_get(data, &h);
	if (h.type == FRAME_ERROR)
		check_error(data + FRAME_HEADER_BYTES, &h);
	if (h.type == FRAME_ABORT)
		check_abort(data + FRAME_HEADER_BYTES, &h);
	if (h.type == FRAME_TRACKED)
		FUZZ_CHECK(frame_tracked_decode(&h, data + FRAME_HEADER_BYTES, &err) == err.code &&
		           err.code <= 0);
	if (h.type == FRAME_DIRTY)
		check_dirty(data + FRAME_HEADER_BYTES, &h);
	if (h.type == FRAME_VMSTATE &&
	    !frame_vmstate_decode(data + FRAME_HEADER_BYTES, &vmstate, &err))
		FUZZ_CHECK(vmstate.len);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	struct frame_get get = { .region = 1, .first_unit = 128, .want_mask = 0xff };
	struct frame_pages zero = { .region = 1, .first_unit = 128, .zero_mask = 0xff };
	struct frame_pages both = {
		.region = 1,
		.first_unit = 128,
		.data_mask = 0x0f,
		.zero_mask = 0x70,
		.error_mask = 0x80,
	};
	struct frame_vmstate vmstate = { .len = 1 << 20, .pause_ns = 1, .held_ns = 2 };
	struct frame_header plain = { .type = (uint16_t)(FRAME_HELLO + i - 8) };

	switch (i) {
	case 0:
		return frame_get_encode(&get, 0, buf);
	case 1:
		return frame_pages_encode(&zero, 0, buf);
	case 2:
		return frame_pages_encode(&both, 0, buf);
	case 3:
		return frame_vmstate_encode(&vmstate, buf);
	case 4:
		return frame_error_encode(-EACCES, "no\nway\x1b[2J", buf);
	case 5:
		return dirty_seed(buf);
	case 6:
		return frame_tracked_encode(0, "", buf);
	case 7:
		return frame_abort_encode("no\nway\x1b[2J", buf);
	default:
		frame_header_encode(&plain, buf);
		return plain.type <= FRAME_SYNC ? FRAME_HEADER_BYTES : 0;
	}
}
