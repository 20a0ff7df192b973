/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "stream/window.h"
#include "util/bytes.h"

#include "support.h"

static uint64_t ask(struct window *w, uint32_t region, uint64_t word, uint64_t mask)
{
	struct scheduler_item item = { .region = region, .word = word, .want_mask = mask };
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_GET_BYTES];
	struct frame_header h;
	struct frame_get get;

	assert_int_equal(window_ask(w, &item, buf), sizeof buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(frame_get_decode(buf + FRAME_HEADER_BYTES, &get, NULL), 0);
	assert_int_equal(get.region, region);
	assert_true(get.first_unit == word * WORD_UNITS);
	assert_true(get.want_mask == mask);
	return h.request_id;
}

/* The answer as it would come, all units zero but for @data. */
static int answer(struct window *w, uint64_t id, uint32_t region, uint64_t word, uint64_t mask,
                  uint64_t data, struct scheduler_item *ret_item, struct error *err)
{
	struct frame_pages pages = {
		.region = region,
		.first_unit = word * WORD_UNITS,
		.data_mask = data,
		.zero_mask = mask & ~data & ~1ull,
		/* The first unit can't be read, where it is not data. */
		.error_mask = mask & ~data & 1,
	};
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_PAGES_BYTES];
	struct frame_pages back;
	struct frame_header h;
	int rc;

	frame_pages_encode(&pages, id, buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	*err = ERROR_INIT;
	rc = window_answer(w, &h, buf + FRAME_HEADER_BYTES, &back, ret_item, err);
	assert_int_equal(err->code, rc);
	if (!rc) {
		assert_true(back.data_mask == data);
		assert_true((back.zero_mask | back.error_mask) == (mask & ~data));
	}
	return rc;
}

/* Not taken, and what is in flight stays there for the next try. */
static void refused(struct window *w, uint64_t id, uint32_t region, uint64_t word, uint64_t mask,
                    const char *needle)
{
	struct window before = *w;
	struct scheduler_item item;
	struct error err;

	assert_int_equal(answer(w, id, region, word, mask, 0, &item, &err), -EPROTO);
	if (!strstr(err.text, needle))
		fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
	assert_memory_equal(w, &before, sizeof before);
}

static void accepted(struct window *w, uint64_t id, uint32_t region, uint64_t word, uint64_t mask)
{
	struct scheduler_item item;
	struct error err;

	if (answer(w, id, region, word, mask, mask & (mask - 1), &item, &err))
		fail_msg("%s", err.text);
	assert_int_equal(item.region, region);
	assert_int_equal(item.word, word);
	assert_true(item.want_mask == mask);
}

static void test_answers_come_in_the_order_of_their_gets(void **state)
{
	struct window w = { 0 };
	uint64_t a = ask(&w, 0, 0, 1), b = ask(&w, 0, 1, 2);

	(void)state;
	assert_true(a != b);
	refused(&w, b, 0, 1, 2, "not what");
	accepted(&w, a, 0, 0, 1);
	refused(&w, a, 0, 0, 1, "not what");
	accepted(&w, b, 0, 1, 2);
	refused(&w, b, 0, 1, 2, "nobody asked");
}

static void test_what_was_not_asked_for_is_refused(void **state)
{
	struct window w = { 0 };
	uint64_t id;

	(void)state;
	refused(&w, 0, 0, 0, 1, "nobody asked");
	id = ask(&w, 3, 5, 0xf0);
	refused(&w, id, 2, 5, 0xf0, "region 2");
	refused(&w, id, 3, 6, 0xf0, "not what");
	refused(&w, id, 3, 5, 0xf1, "not what");
	refused(&w, id, 3, 5, 0x70, "not what");
	refused(&w, id, 3, 5, 0, "not what");
	refused(&w, id + 1, 3, 5, 0xf0, "not what");
	refused(&w, id - 1, 3, 5, 0xf0, "not what");
	accepted(&w, id, 3, 5, 0xf0);
}

static void test_other_frames_are_refused(void **state)
{
	struct window w = { 0 };
	struct frame_pages pages;
	struct scheduler_item item;
	uint8_t payload[FRAME_PAGES_BYTES] = { 0 };

	(void)state;
	ask(&w, 0, 0, 1);
	for (uint16_t type = FRAME_HELLO; type <= FRAME_ABORT_ACK; type++) {
		struct frame_header h = { .type = type, .payload_len = sizeof payload };

		if (type == FRAME_PAGES)
			continue;
		/* An ERROR says why itself; all else is a broken promise. */
		put_u32(payload, type == FRAME_ERROR ? EIO : 0);
		assert_int_equal(window_answer(&w, &h, payload, &pages, &item, NULL),
		                 type == FRAME_ERROR ? -EIO : -EPROTO);
		assert_int_equal(w.n, 1);
	}
}

static void test_an_answer_whose_length_lies_is_refused(void **state)
{
	struct window w = { 0 };
	struct frame_pages pages = { .data_mask = 3 }, back;
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_PAGES_BYTES];
	struct scheduler_item item;
	struct frame_header h;

	(void)state;
	ask(&w, 0, 0, 3);
	frame_pages_encode(&pages, 0, buf);
	frame_header_decode(buf, &h, NULL);
	h.payload_len -= UNIT_BYTES;
	assert_int_equal(window_answer(&w, &h, buf + FRAME_HEADER_BYTES, &back, &item, NULL),
	                 -EPROTO);
	assert_int_equal(w.n, 1);
}

static void test_drop_gives_the_oldest(void **state)
{
	struct window w = { 0 };
	struct scheduler_item item;

	(void)state;
	assert_false(window_drop(&w, &item));
	ask(&w, 1, 10, 1);
	ask(&w, 2, 20, 2);
	assert_true(window_drop(&w, &item));
	assert_int_equal(item.region, 1);
	assert_true(window_drop(&w, &item));
	assert_int_equal(item.word, 20);
	assert_false(window_drop(&w, &item));
	/* A dropped GET's answer, should it come, answers nothing. */
	refused(&w, 0, 1, 10, 1, "nobody asked");
}

/* Random asks, answers and drops against a list that never wraps. */
static void test_the_ring_wraps_around(void **state)
{
	enum { STEPS = 20000 };
	static struct {
		uint64_t id, word, mask;
	} sent[STEPS];
	struct window w = { 0 };
	size_t head = 0, tail = 0;
	bool was_full = false;
	uint64_t random = 7;

	(void)state;
	for (int step = 0; step < STEPS; step++) {
		/* Phases that fill it and such that empty it. */
		bool grow = random_below(&random, 8) < (step / 500 % 2 ? 2 : 6);

		assert_int_equal(window_full(&w), tail - head == WINDOW_MAX);
		was_full |= window_full(&w);
		if (grow && !window_full(&w)) {
			sent[tail].word = random_below(&random, 1 << 20);
			sent[tail].mask = random_next(&random) | 1;
			sent[tail].id = ask(&w, 0, sent[tail].word, sent[tail].mask);
			tail++;
		} else if (head < tail && !random_below(&random, 4)) {
			struct scheduler_item item;

			assert_true(window_drop(&w, &item));
			assert_int_equal(item.word, sent[head++].word);
		} else if (head < tail) {
			accepted(&w, sent[head].id, 0, sent[head].word, sent[head].mask);
			head++;
		}
		assert_int_equal(w.n, tail - head);
	}
	assert_true(was_full);
	assert_true(tail > 4ul * WINDOW_MAX);
}

static void test_a_long_fat_path_is_filled(void **state)
{
	const uint64_t second_ns = 1000000000;
	unsigned int n = WINDOW_BULK;

	(void)state;
	assert_int_equal(window_wanted(0, second_ns, 0), WINDOW_BULK);
	/* Loopback, and a full link that is short. */
	assert_int_equal(window_wanted(1000 << 20, second_ns, 50), WINDOW_BULK);
	assert_int_equal(window_wanted(125000000, second_ns, 200), WINDOW_BULK);
	/* 600 MB/s by 10 ms: 6 MB. It grows as what it lets through does. */
	for (unsigned int i = 0; i < 10; i++) {
		uint64_t fits = (uint64_t)n * (256 << 10) * 100;

		n = window_wanted(fits < 600000000 ? fits : 600000000, second_ns, 10000);
	}
	assert_in_range(n, 6000000 >> 18, WINDOW_MAX);
	assert_int_equal(window_wanted(UINT64_C(10000000000), second_ns, 100000), WINDOW_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_long_fat_path_is_filled),
		cmocka_unit_test(test_answers_come_in_the_order_of_their_gets),
		cmocka_unit_test(test_what_was_not_asked_for_is_refused),
		cmocka_unit_test(test_other_frames_are_refused),
		cmocka_unit_test(test_an_answer_whose_length_lies_is_refused),
		cmocka_unit_test(test_drop_gives_the_oldest),
		cmocka_unit_test(test_the_ring_wraps_around),
	};

	return cmocka_run_group_tests_name("window", tests, NULL, NULL);
}
