/* SPDX-License-Identifier: Apache-2.0 */
/* Each byte belongs to one shard, whoever asks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "util/shards.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

static void check_part(unsigned int n, const struct shards_region *r, unsigned int shard,
                       uint64_t begin, uint64_t end)
{
	if (begin == end)
		return;
	assert_int_equal(shards_of(n, r, begin), shard);
	assert_int_equal(shards_of(n, r, end - 1), shard);
	assert_int_equal(shards_of(n, r, begin + (end - begin) / 2), shard);
}

/* One after the other they are all of the region. */
static void check_region(unsigned int n, const struct shards_region *r)
{
	uint64_t align = r->page_size > 2 * MIB ? r->page_size : 2 * MIB;
	uint64_t at = 0, begin, end, least = UINT64_MAX, most = 0;

	for (unsigned int shard = 0; shard < n; shard++) {
		shards_part(n, r, shard, &begin, &end);
		check_part(n, r, shard, begin, end);
		if (begin == end)
			continue;
		assert_int_equal(begin, at);
		assert_int_equal(begin % align, 0);
		at = end;
		least = end - begin < least ? end - begin : least;
		most = end - begin > most ? end - begin : most;
	}
	assert_int_equal(at, r->size);
	/* Rounding may cost one a piece, and the rest of a piece comes on top. */
	assert_true(most - least < 2 * align);
}

static void test_all_of_a_region_belongs_to_one_shard_each(void **state)
{
	const uint64_t sizes[] = { 4 * KIB,         2 * MIB,         2 * MIB + 4 * KIB,
		                   16 * MIB,        16 * MIB - 4096, 33 * MIB + 4096,
		                   3 * GIB,         5 * GIB,         TIB,
		                   16 * TIB + 4096, 64 * TIB };
	const uint64_t page_sizes[] = { 4 * KIB, 2 * MIB, GIB };

	(void)state;
	for (unsigned int n = 1; n <= SHARDS_MAX; n++)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
			for (size_t k = 0; k < sizeof page_sizes / sizeof *page_sizes; k++) {
				const struct shards_region r = { .index = (uint32_t)i,
					                         .size = sizes[i],
					                         .page_size = page_sizes[k] };

				if (!(r.size % r.page_size))
					check_region(n, &r);
			}
}

/* What is too small to be cut does not all fall to the first one. */
static void test_small_regions_are_dealt_out_in_turn(void **state)
{
	struct shards_region r = { .size = 64 * KIB, .page_size = 4 * KIB };

	(void)state;
	for (r.index = 0; r.index < 8; r.index++)
		assert_int_equal(shards_of(4, &r, 0), r.index % 4);
}

static void test_a_large_region_is_cut_at_known_places(void **state)
{
	const struct shards_region r = { .size = 4 * GIB, .page_size = 4 * KIB };

	(void)state;
	for (uint64_t i = 0; i < 4; i++) {
		assert_int_equal(shards_of(4, &r, i * GIB), i);
		assert_int_equal(shards_of(4, &r, i * GIB + GIB - 1), i);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_of_a_region_belongs_to_one_shard_each),
		cmocka_unit_test(test_small_regions_are_dealt_out_in_turn),
		cmocka_unit_test(test_a_large_region_is_cut_at_known_places),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
