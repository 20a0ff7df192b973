/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "fault/arrival.h"
#include "util/clock.h"

#define START_NS (5 * NSEC_PER_SEC)

static struct arrival_map *make_map(const uint64_t *units, size_t n)
{
	struct region_table *table = calloc(1, sizeof *table);
	struct arrival_map *map = calloc(1, sizeof *map);
	struct error err = ERROR_INIT;

	for (size_t i = 0; i < n; i++) {
		struct region r = {
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 42,
			.size = units[i] * UNIT_BYTES,
			.page_size = UNIT_BYTES,
		};

		assert_int_equal(region_table_add(table, &r, &err), 0);
	}
	arrival_init(map, table);
	arrival_begin(map, START_NS);
	free(table);
	return map;
}

static void assert_cell(const struct arrival_map *map, uint32_t i, uint64_t by_fault,
                        uint64_t by_bulk, uint64_t sum_us)
{
	assert_int_equal(atomic_load(&map->cells[i].by_fault), by_fault);
	assert_int_equal(atomic_load(&map->cells[i].by_bulk), by_bulk);
	assert_int_equal(atomic_load(&map->cells[i].sum_us), sum_us);
}

/* Small regions, one after the other: a cell for each word. */
static void test_small_guest_has_a_cell_a_word(void **state)
{
	struct arrival_map *map = make_map((const uint64_t[]){ 2 * WORD_UNITS, 5, 100 }, 3);

	(void)state;
	assert_int_equal(map->n_cells, 5);
	arrival_note(map, 0, 1, 64, false, START_NS + 3 * NSEC_PER_USEC);
	arrival_note(map, 1, 0, 4, true, START_NS + 10 * NSEC_PER_USEC);
	arrival_note(map, 1, 0, 1, false, START_NS + 20 * NSEC_PER_USEC);
	arrival_note(map, 2, 1, 36, true, START_NS);
	arrival_note(map, 2, 0, 0, true, START_NS + NSEC_PER_SEC);
	/* Of a clock that was read a little before the begin. */
	arrival_note(map, 0, 0, 1, true, START_NS - 1);
	assert_cell(map, 0, 1, 0, 0);
	assert_cell(map, 1, 0, 64, 64 * 3);
	assert_cell(map, 2, 4, 1, 4 * 10 + 20);
	assert_cell(map, 3, 0, 0, 0);
	assert_cell(map, 4, 36, 0, 0);
	free(map);
}

/* A guest of 4 TiB and a bit: no more cells than there are, the last word in the last. */
static void test_large_guest_has_all_cells_and_no_more(void **state)
{
	const uint64_t units = 1ull << 30, words = units / WORD_UNITS;
	struct arrival_map *map = make_map((const uint64_t[]){ units, 1 }, 2);

	(void)state;
	assert_true(map->n_cells <= ARRIVAL_CELLS_MAX && map->n_cells > ARRIVAL_CELLS_MAX / 2);
	assert_true(map->words_per_cell * map->n_cells >= words + 1);
	arrival_note(map, 1, 0, 1, false, START_NS + 7 * NSEC_PER_USEC);
	assert_cell(map, map->n_cells - 1, 0, 1, 7);
	/* A whole cell that took a day. */
	for (uint64_t word = 0; word < map->words_per_cell; word++)
		arrival_note(map, 0, word, WORD_UNITS, false, START_NS + 86400 * NSEC_PER_SEC);
	assert_cell(map, 0, 0, map->words_per_cell * WORD_UNITS,
	            map->words_per_cell * WORD_UNITS * 86400000000ull);
	free(map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small_guest_has_a_cell_a_word),
		cmocka_unit_test(test_large_guest_has_all_cells_and_no_more),
	};

	return cmocka_run_group_tests_name("arrival", tests, NULL, NULL);
}
