/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "mem/addrmap.h"

#include "support.h"

#define BASE 0x7f0000000000ull
#define SPACE_PAGES 256u
#define NONE 0xff

/* What is mapped in each page of the address space from BASE on. */
struct model {
	uint8_t region[SPACE_PAGES];
	uint8_t page[SPACE_PAGES];
};

/* Three regions in a space of 256 pages, with room between them. */
static const struct {
	unsigned int at, pages;
} layout[] = { { 0, 40 }, { 64, 65 }, { 200, 10 } };
#define REGIONS 3u

static uint64_t addr_of(uint64_t page)
{
	return BASE + page * UNIT_BYTES;
}

static void make_table(struct region_table *table)
{
	memset(table, 0, sizeof *table);
	for (unsigned int i = 0; i < REGIONS; i++) {
		struct region r = {
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 30,
			.size = layout[i].pages * UNIT_BYTES,
			.page_size = UNIT_BYTES,
			.host_addr = addr_of(layout[i].at),
		};

		assert_int_equal(region_table_add(table, &r, NULL), 0);
	}
}

static void make_model(struct model *m)
{
	memset(m->region, NONE, sizeof m->region);
	for (unsigned int i = 0; i < REGIONS; i++)
		for (unsigned int j = 0; j < layout[i].pages; j++) {
			m->region[layout[i].at + j] = (uint8_t)i;
			m->page[layout[i].at + j] = (uint8_t)j;
		}
}

static void model_unmap(struct model *m, unsigned int first, unsigned int n)
{
	memset(m->region + first, NONE, n);
}

static void model_move(struct model *m, unsigned int from, unsigned int to, unsigned int n)
{
	memcpy(m->region + to, m->region + from, n);
	memcpy(m->page + to, m->page + from, n);
	model_unmap(m, from, n);
}

/* Where a page of a region is mapped, or SPACE_PAGES. */
static unsigned int model_where(const struct model *m, unsigned int region, unsigned int page)
{
	for (unsigned int i = 0; i < SPACE_PAGES; i++)
		if (m->region[i] == region && m->page[i] == page)
			return i;
	return SPACE_PAGES;
}

static void check_find(const struct addrmap *map, const struct model *m)
{
	for (unsigned int i = 0; i < SPACE_PAGES; i++)
		for (int last = 0; last < 2; last++) {
			uint64_t addr = addr_of(i) + (last ? UNIT_BYTES - 1 : 0);
			const struct addrmap_piece *p = addrmap_find(map, addr);

			if (m->region[i] == NONE) {
				assert_null(p);
				continue;
			}
			assert_non_null(p);
			assert_int_equal(p->region, m->region[i]);
			assert_int_equal(p->offset + (addr - p->host_addr),
			                 (uint64_t)m->page[i] * UNIT_BYTES +
			                         (last ? UNIT_BYTES - 1 : 0));
		}
	assert_null(addrmap_find(map, BASE - 1));
	assert_null(addrmap_find(map, addr_of(SPACE_PAGES)));
}

/* Go through a stretch of a region as the resolver does, page by page as the model has it. */
static void check_locate(const struct addrmap *map, const struct model *m, unsigned int region,
                         unsigned int first, unsigned int end)
{
	while (first < end) {
		uint64_t host = 0, skip = 0;
		uint64_t len = addrmap_locate(map, region, (uint64_t)first * UNIT_BYTES,
		                              (uint64_t)(end - first) * UNIT_BYTES, &host, &skip);
		unsigned int next = first;

		while (next < end && model_where(m, region, next) == SPACE_PAGES)
			next++;
		if (next == end) {
			assert_int_equal(len, 0);
			return;
		}
		assert_int_equal(skip, (uint64_t)(next - first) * UNIT_BYTES);
		assert_true(len > 0 && len % UNIT_BYTES == 0);
		assert_true(next + len / UNIT_BYTES <= end);
		for (uint64_t i = 0; i < len / UNIT_BYTES; i++)
			assert_int_equal(addr_of(model_where(m, region, next + (unsigned int)i)),
			                 host + i * UNIT_BYTES);
		first = next + (unsigned int)(len / UNIT_BYTES);
	}
}

static void random_change(struct addrmap *map, struct model *m, uint64_t *random)
{
	unsigned int n = 1 + (unsigned int)random_below(random, 24);
	unsigned int from = (unsigned int)random_below(random, SPACE_PAGES - n + 1);
	unsigned int to = (unsigned int)random_below(random, SPACE_PAGES - n + 1);

	if (!random_below(random, 3)) {
		assert_int_equal(addrmap_unmap(map, addr_of(from), addr_of(from + n)), 0);
		model_unmap(m, from, n);
	} else if (to + n <= from || from + n <= to) {
		/* mremap() refuses ranges that overlap. */
		assert_int_equal(
		        addrmap_move(map, addr_of(from), addr_of(to), (uint64_t)n * UNIT_BYTES), 0);
		model_move(m, from, to, n);
	}
}

static void test_random_changes_agree_with_a_model(void **state)
{
	struct region_table table;

	(void)state;
	make_table(&table);
	for (uint64_t seed = 1; seed <= 100; seed++) {
		uint64_t random = seed;
		struct addrmap map;
		struct model m;

		addrmap_init(&map, &table);
		make_model(&m);
		check_find(&map, &m);
		for (int step = 0; step < 40; step++) {
			unsigned int r = (unsigned int)random_below(&random, REGIONS);
			unsigned int a = (unsigned int)random_below(&random, layout[r].pages + 1);
			unsigned int b = (unsigned int)random_below(&random, layout[r].pages + 1);

			random_change(&map, &m, &random);
			check_find(&map, &m);
			check_locate(&map, &m, r, a < b ? a : b, a < b ? b : a);
			for (r = 0; r < REGIONS; r++)
				check_locate(&map, &m, r, 0, layout[r].pages);
		}
	}
}

static void test_locate_does_not_round(void **state)
{
	struct region_table table;
	struct addrmap map;
	uint64_t host, skip;

	(void)state;
	make_table(&table);
	addrmap_init(&map, &table);
	assert_int_equal(addrmap_locate(&map, 1, 100, 50, &host, &skip), 50);
	assert_int_equal(host, addr_of(64) + 100);
	assert_int_equal(skip, 0);
	/* Up to the region's end and no further. */
	assert_int_equal(addrmap_locate(&map, 0, 39 * UNIT_BYTES, 9 * UNIT_BYTES, &host, &skip),
	                 UNIT_BYTES);
	assert_int_equal(addrmap_locate(&map, 0, 40 * UNIT_BYTES, UNIT_BYTES, &host, &skip), 0);
}

static void test_too_many_pieces_are_an_error_and_the_map_stays_good(void **state)
{
	struct region_table table = { 0 };
	struct region r = {
		.memory = POSTCOPY_MEMORY_MEMFD,
		.size = 4ull * ADDRMAP_PIECES_MAX * UNIT_BYTES,
		.page_size = UNIT_BYTES,
		.host_addr = BASE,
	};
	struct addrmap map;
	uint64_t holes = 0;
	int rc = 0;

	(void)state;
	assert_int_equal(region_table_add(&table, &r, NULL), 0);
	addrmap_init(&map, &table);
	while (!rc && holes < ADDRMAP_PIECES_MAX) {
		rc = addrmap_unmap(&map, addr_of(2 * holes + 1), addr_of(2 * holes + 2));
		holes += !rc;
	}
	assert_int_equal(rc, -ENOSPC);
	/* Each hole needs two cuts before it takes a piece out. */
	assert_int_equal(holes, ADDRMAP_PIECES_MAX - 2);
	for (uint64_t page = 0; page < 4ull * ADDRMAP_PIECES_MAX; page++) {
		const struct addrmap_piece *p = addrmap_find(&map, addr_of(page));

		if (page % 2 && page / 2 < holes) {
			assert_null(p);
			continue;
		}
		assert_non_null(p);
		assert_int_equal(p->offset + (addr_of(page) - p->host_addr), page * UNIT_BYTES);
	}
	/* Unmapping whole pieces needs no room. */
	assert_int_equal(addrmap_unmap(&map, BASE, BASE + r.size), 0);
	assert_int_equal(map.n, 0);
}

/* Of each region a part alone, however its pieces lie. */
static void test_what_is_kept_is_what_lies_in_the_part(void **state)
{
	static const unsigned int from[REGIONS] = { 10, 0, 5 }, to[REGIONS] = { 25, 65, 5 };
	struct region_table table;
	struct addrmap map;
	unsigned int kept = 0;

	(void)state;
	make_table(&table);
	addrmap_init(&map, &table);
	/* A hole in the part, and a piece across its end that lies elsewhere. */
	assert_int_equal(addrmap_unmap(&map, addr_of(12), addr_of(14)), 0);
	assert_int_equal(addrmap_move(&map, addr_of(20), addr_of(150), 10 * UNIT_BYTES), 0);
	for (uint32_t i = 0; i < REGIONS; i++)
		addrmap_keep(&map, i, from[i] * UNIT_BYTES, to[i] * UNIT_BYTES);
	for (uint64_t page = 0; page < SPACE_PAGES; page++) {
		const struct addrmap_piece *p = addrmap_find(&map, addr_of(page));
		uint64_t of = p ? (p->offset + addr_of(page) - p->host_addr) / UNIT_BYTES : 0;

		kept += p != NULL;
		if (p)
			assert_true(of >= from[p->region] && of < to[p->region]);
	}
	/* 15 without the hole, all of the second, nothing of the third. */
	assert_int_equal(kept, 13 + 65);
	assert_ptr_equal(addrmap_find(&map, addr_of(155)), NULL);
	assert_non_null(addrmap_find(&map, addr_of(154)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_changes_agree_with_a_model),
		cmocka_unit_test(test_locate_does_not_round),
		cmocka_unit_test(test_too_many_pieces_are_an_error_and_the_map_stays_good),
		cmocka_unit_test(test_what_is_kept_is_what_lies_in_the_part),
	};

	return cmocka_run_group_tests_name("addrmap", tests, NULL, NULL);
}
