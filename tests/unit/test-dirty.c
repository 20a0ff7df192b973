/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stream/dirty.h"

#define REGION 1u
#define UNITS (20u * WORD_UNITS + 5)
#define WORDS (UNITS / WORD_UNITS + 1)

static uint8_t frame[FRAME_HEADER_BYTES + FRAME_DIRTY_MAX];

static struct region_table table_of(uint64_t units)
{
	struct region_table table = { 0 };

	for (uint64_t i = 0; i < 2; i++) {
		struct region r = {
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = i << 50,
			.size = units * UNIT_BYTES,
			.page_size = UNIT_BYTES,
		};

		assert_int_equal(region_table_add(&table, &r, NULL), 0);
	}
	return table;
}

static struct dirty_reader read_frame(size_t len, const struct region_table *table)
{
	struct frame_header h;
	struct dirty_reader d;

	assert_int_equal(frame_header_decode(frame, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_DIRTY);
	assert_int_equal(FRAME_HEADER_BYTES + h.payload_len, len);
	assert_int_equal(dirty_decode(&h, frame + FRAME_HEADER_BYTES, table, &d, NULL), 0);
	return d;
}

static void set_units(uint64_t *bits, uint64_t first, uint64_t n)
{
	for (uint64_t unit = first; unit < first + n; unit++)
		bits[unit / WORD_UNITS] |= 1ull << unit % WORD_UNITS;
}

/* What comes out at the other end. Return: how many frames it took. */
static unsigned int there_and_back(const uint64_t *bits, uint64_t units, uint64_t *back)
{
	struct region_table table = table_of(units);
	unsigned int frames = 0;
	uint64_t at = 0, first, n;
	size_t len;

	memset(back, 0, (units + 63) / 64 * sizeof *back);
	while ((len = dirty_encode(REGION, bits, units, &at, frame))) {
		struct dirty_reader d = read_frame(len, &table);
		int rc;

		frames++;
		assert_int_equal(d.region, REGION);
		assert_false(d.last);
		while ((rc = dirty_next(&d, &first, &n, NULL)) == 1)
			set_units(back, first, n);
		assert_int_equal(rc, 0);
	}
	assert_int_equal(at, units);
	return frames;
}

static void test_harvests_come_back(void **state)
{
	uint64_t bits[WORDS], back[WORDS];

	(void)state;
	srand(1);
	for (unsigned int round = 0; round < 500; round++) {
		memset(bits, 0, sizeof bits);
		for (unsigned int i = 0; i < round % 40; i++) {
			uint64_t first = (uint64_t)rand() % UNITS;
			uint64_t room = UNITS - first;

			set_units(bits, first, 1 + (uint64_t)rand() % (room < 150 ? room : 150));
		}
		assert_int_equal(there_and_back(bits, UNITS, back), round % 40 ? 1 : 0);
		assert_memory_equal(bits, back, sizeof bits);
	}
}

static void test_all_of_it_is_one_run(void **state)
{
	uint64_t bits[WORDS], back[WORDS], at = 0;

	(void)state;
	/* Also what no unit has. */
	memset(bits, 0xff, sizeof bits);
	assert_int_equal(dirty_encode(REGION, bits, UNITS, &at, frame),
	                 FRAME_HEADER_BYTES + FRAME_DIRTY_BYTES + 3);
	assert_int_equal(there_and_back(bits, UNITS, back), 1);
	bits[WORDS - 1] = (1u << 5) - 1;
	assert_memory_equal(bits, back, sizeof bits);
}

/* Each second unit: the most that there can be to say. */
static void test_what_one_frame_has_no_room_for_goes_on_in_the_next(void **state)
{
	const uint64_t units = 1u << 20;
	uint64_t *bits = malloc(units / 8), *back = malloc(units / 8);
	unsigned int frames;

	(void)state;
	memset(bits, 0xaa, units / 8);
	frames = there_and_back(bits, units, back);
	assert_int_equal(frames, (units + FRAME_DIRTY_MAX - 1) / FRAME_DIRTY_MAX + 1);
	assert_memory_equal(bits, back, units / 8);
	free(bits);
	free(back);
}

/* 1 % dirty, each page alone, must not be a matter of the guest's size: 3 bytes a page. */
static void test_sparse_pages_take_few_bytes(void **state)
{
	const uint64_t units = 1u << 20;
	uint64_t *bits = calloc(units / 64, sizeof *bits), at = 0;
	size_t bytes = 0, len;

	(void)state;
	for (uint64_t unit = 0; unit < units; unit += 100)
		set_units(bits, unit, 1);
	while ((len = dirty_encode(REGION, bits, units, &at, frame)))
		bytes += len;
	assert_true(bytes < units / 100 * 3);
	free(bits);
}

static void test_the_end_has_no_runs(void **state)
{
	struct region_table table = table_of(UNITS);
	struct dirty_reader d = read_frame(dirty_encode_last(frame), &table);
	uint64_t first, n;

	(void)state;
	assert_true(d.last);
	assert_int_equal(dirty_next(&d, &first, &n, NULL), 0);
}

/* A frame of these runs; what reading them ends with. */
static int read_runs(uint64_t first_unit, const uint8_t *runs, size_t len, struct error *err)
{
	struct frame_dirty dirty = { .region = REGION, .first_unit = first_unit };
	struct region_table table = table_of(UNITS);
	struct dirty_reader d;
	uint64_t first, n;
	int rc;

	*err = ERROR_INIT;
	memcpy(frame + FRAME_HEADER_BYTES + FRAME_DIRTY_BYTES, runs, len);
	d = read_frame(frame_dirty_encode(&dirty, len, frame), &table);
	while ((rc = dirty_next(&d, &first, &n, err)) == 1)
		assert_true(first < UNITS && n && n <= UNITS - first);
	return rc;
}

static void bad_runs(uint64_t first_unit, const uint8_t *runs, size_t len, const char *needle)
{
	struct error err;

	assert_int_equal(read_runs(first_unit, runs, len, &err), -EPROTO);
	assert_non_null(strstr(err.text, needle));
}

static void test_bad_runs_are_refused(void **state)
{
	static const uint8_t whole[] = { 0, (UNITS & 0x7f) | 0x80, UNITS >> 7 };
	static const uint8_t more[] = { 0, ((UNITS + 1) & 0x7f) | 0x80, (UNITS + 1) >> 7 };
	static const uint8_t one[] = { 0, 1 }, empty[] = { 1, 0 }, gap[] = { 1, 1, 7 };
	static const uint8_t cut[] = { 1, 0x80 };
	static const uint8_t wraps[] = {
		5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1
	};
	static const uint8_t large[] = {
		5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2
	};
	static const uint8_t endless[] = { 5,    0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
		                           0x80, 0x80, 0x80, 0x80, 0x80, 0 };
	struct error err;

	(void)state;
	assert_int_equal(read_runs(0, whole, sizeof whole, &err), 0);
	assert_int_equal(read_runs(UNITS - 1, one, sizeof one, &err), 0);
	bad_runs(1, whole, sizeof whole, "the region has");
	bad_runs(0, more, sizeof more, "the region has");
	bad_runs(UNITS, one, sizeof one, "the region has");
	bad_runs(UINT64_MAX, one, sizeof one, "the region has");
	bad_runs(0, empty, sizeof empty, "run of 0 units");
	bad_runs(0, gap, sizeof gap, "cut");
	bad_runs(0, cut, sizeof cut, "cut");
	bad_runs(0, wraps, sizeof wraps, "the region has");
	bad_runs(0, large, sizeof large, "too large");
	bad_runs(0, endless, sizeof endless, "too large");
}

static void test_regions_and_flags_are_checked(void **state)
{
	struct frame_dirty dirty = { .region = 2 };
	struct region_table table = table_of(UNITS);
	struct error err = ERROR_INIT;
	struct frame_header h;
	struct dirty_reader d;

	(void)state;
	frame_dirty_encode(&dirty, 0, frame);
	assert_int_equal(frame_header_decode(frame, &h, NULL), 0);
	assert_int_equal(dirty_decode(&h, frame + FRAME_HEADER_BYTES, &table, &d, &err), -EPROTO);
	assert_non_null(strstr(err.text, "of region 2"));
	dirty.region = 1;
	frame_dirty_encode(&dirty, 0, frame);
	for (unsigned int bit = 1; bit < 32; bit++) {
		put_u32(frame + FRAME_HEADER_BYTES + 4, 1u << bit);
		assert_int_equal(dirty_decode(&h, frame + FRAME_HEADER_BYTES, &table, &d, &err),
		                 -EPROTO);
		assert_non_null(strstr(err.text, "unknown flags"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_harvests_come_back),
		cmocka_unit_test(test_all_of_it_is_one_run),
		cmocka_unit_test(test_what_one_frame_has_no_room_for_goes_on_in_the_next),
		cmocka_unit_test(test_sparse_pages_take_few_bytes),
		cmocka_unit_test(test_the_end_has_no_runs),
		cmocka_unit_test(test_bad_runs_are_refused),
		cmocka_unit_test(test_regions_and_flags_are_checked),
	};

	return cmocka_run_group_tests_name("dirty", tests, NULL, NULL);
}
