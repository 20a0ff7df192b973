/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "mem/region.h"

#define SIZE_2M (2ull << 20)
#define SIZE_1G (1ull << 30)

static struct region plain(uint64_t guest_phys_addr, uint64_t size)
{
	return (struct region){
		.memory = POSTCOPY_MEMORY_MEMFD,
		.guest_phys_addr = guest_phys_addr,
		.size = size,
		.page_size = UNIT_BYTES,
	};
}

/* @bad is refused with @code, the text has @needle, and the table stays as it is. */
static void refused(struct region_table *table, const struct region *bad, int code,
                    const char *needle)
{
	struct region_table before = *table;
	struct error err = ERROR_INIT;

	assert_int_equal(region_table_add(table, bad, &err), code);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, needle))
		fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
	assert_memory_equal(table, &before, sizeof before);
	/* Nobody has to want the text. */
	assert_int_equal(region_table_add(table, bad, NULL), code);
}

static void accepted(struct region_table *table, const struct region *good)
{
	struct error err = ERROR_INIT;
	uint32_t n = table->n;

	if (region_table_add(table, good, &err))
		fail_msg("%s", err.text);
	assert_int_equal(table->n, n + 1);
}

static void test_add_derives_units_and_words_and_sums(void **state)
{
	struct region_table table = { 0 };
	struct region a = plain(0, 65 * UNIT_BYTES);
	struct region b = plain(1ull << 32, 64 * UNIT_BYTES);

	(void)state;
	accepted(&table, &a);
	accepted(&table, &b);
	assert_int_equal(table.regions[0].units, 65);
	assert_int_equal(table.regions[0].words, 2);
	assert_int_equal(table.regions[1].units, 64);
	assert_int_equal(table.regions[1].words, 1);
	assert_int_equal(table.units, 129);
	assert_int_equal(table.size_bytes, 129 * UNIT_BYTES);
}

static void test_derived_members_of_the_caller_are_not_believed(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);

	(void)state;
	r.units = r.words = UINT64_MAX;
	accepted(&table, &r);
	assert_int_equal(table.regions[0].units, 1);
	assert_int_equal(table.regions[0].words, 1);
	assert_int_equal(table.units, 1);
}

static void test_page_sizes_by_kind(void **state)
{
	static const uint64_t sizes[] = { 0,       1,       2048,        UNIT_BYTES,  8192,
		                          SIZE_2M, SIZE_1G, 2 * SIZE_2M, 2 * SIZE_1G, 1ull << 63 };

	(void)state;
	for (unsigned int kind = POSTCOPY_MEMORY_MEMFD; kind <= POSTCOPY_MEMORY_ANONYMOUS; kind++)
		for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
			struct region_table table = { 0 };
			struct region r = { .memory = (enum postcopy_memory)kind,
				            .size = SIZE_1G,
				            .page_size = sizes[i] };
			bool huge = sizes[i] == SIZE_2M || sizes[i] == SIZE_1G;

			/* Private memory has pages of 2 MiB as well. */
			bool staged = kind == POSTCOPY_MEMORY_ANONYMOUS && sizes[i] == SIZE_2M;

			if (kind == POSTCOPY_MEMORY_HUGETLB ? huge
			                                    : sizes[i] == UNIT_BYTES || staged)
				accepted(&table, &r);
			else
				refused(&table, &r, -EINVAL, "region 0");
		}
}

static void test_unknown_kinds_are_refused(void **state)
{
	static const unsigned int kinds[] = { 0, 5, 6, 1u << 31, UINT32_MAX };
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);

	(void)state;
	accepted(&table, &r);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		r = plain(SIZE_1G, UNIT_BYTES);
		r.memory = (enum postcopy_memory)kinds[i];
		refused(&table, &r, -EINVAL, "region 1");
	}
}

static void test_unknown_flags_are_refused(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);

	(void)state;
	for (unsigned int bit = 0; bit < 32; bit++) {
		r.flags = 1u << bit;
		if (!(r.flags & REGION_FLAGS))
			refused(&table, &r, -EINVAL, "flags");
	}
}

static void test_private_memory_is_in_the_table_but_not_readable(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);
	struct error err = ERROR_INIT;

	(void)state;
	accepted(&table, &r);
	assert_int_equal(region_table_check_readable(&table, &err), 0);
	r = plain(SIZE_1G, UNIT_BYTES);
	r.flags = POSTCOPY_REGION_PRIVATE;
	accepted(&table, &r);
	assert_int_equal(region_table_check_readable(&table, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "region 1"));
}

static void test_what_is_asked_for_is_a_file_and_all_of_it(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);

	(void)state;
	r.flags = POSTCOPY_REGION_ASKED;
	r.host_addr = UNIT_BYTES;
	refused(&table, &r, -EINVAL, "host address");
	r.host_addr = 0;
	r.flags |= POSTCOPY_REGION_PRIVATE;
	refused(&table, &r, -EINVAL, "private");
	r.flags = POSTCOPY_REGION_ASKED;
	r.memory = POSTCOPY_MEMORY_ANONYMOUS;
	refused(&table, &r, -EINVAL, "only a file");
	r.memory = POSTCOPY_MEMORY_MEMFD;
	assert_false(region_table_is_asked(&table));
	accepted(&table, &r);
	assert_true(region_table_is_asked(&table));
	r = plain(SIZE_1G, UNIT_BYTES);
	refused(&table, &r, -EINVAL, "all of a guest's regions");
}

static void test_size_must_be_whole_pages_and_some(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, 0);

	(void)state;
	refused(&table, &r, -EINVAL, "size");
	r.size = UNIT_BYTES - 1;
	refused(&table, &r, -EINVAL, "size");
	r.size = UNIT_BYTES + 1;
	refused(&table, &r, -EINVAL, "size");
	r.memory = POSTCOPY_MEMORY_HUGETLB;
	r.page_size = SIZE_2M;
	r.size = SIZE_2M + UNIT_BYTES;
	refused(&table, &r, -EINVAL, "size");
}

static void test_each_address_must_be_aligned(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(1, UNIT_BYTES);

	(void)state;
	refused(&table, &r, -EINVAL, "guest physical address");
	r = plain(0, UNIT_BYTES);
	r.host_addr = 0x7f0000000800;
	refused(&table, &r, -EINVAL, "host address");
	r = plain(0, UNIT_BYTES);
	r.fd_offset = 512;
	refused(&table, &r, -EINVAL, "descriptor offset");
	/* To the region's page size, not to 4 KiB. */
	r = (struct region){ .memory = POSTCOPY_MEMORY_HUGETLB,
		             .guest_phys_addr = UNIT_BYTES,
		             .size = SIZE_2M,
		             .page_size = SIZE_2M };
	refused(&table, &r, -EINVAL, "guest physical address");
}

static void test_no_address_may_wrap_with_its_size(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, 2 * UNIT_BYTES);

	(void)state;
	r.host_addr = 0 - (uint64_t)UNIT_BYTES;
	refused(&table, &r, -EINVAL, "host address");
	r = plain(0, 2 * UNIT_BYTES);
	r.fd_offset = 0 - (uint64_t)UNIT_BYTES;
	refused(&table, &r, -EINVAL, "descriptor offset");
	r = plain(0 - (uint64_t)UNIT_BYTES, 2 * UNIT_BYTES);
	refused(&table, &r, -EINVAL, "region 0");
}

static void test_no_guest_is_larger_than_52_bits(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, GUEST_BYTES_MAX + UNIT_BYTES);

	(void)state;
	refused(&table, &r, -EINVAL, "52 bits");
	r = plain(GUEST_BYTES_MAX + UNIT_BYTES, UNIT_BYTES);
	refused(&table, &r, -EINVAL, "52 bits");
	r = plain(1ull << 63, UNIT_BYTES);
	refused(&table, &r, -EINVAL, "52 bits");
	r = plain(GUEST_BYTES_MAX - UNIT_BYTES, UNIT_BYTES);
	accepted(&table, &r);
}

static void test_descriptor_offset_ends_where_files_end(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, UNIT_BYTES);

	(void)state;
	r.fd_offset = (1ull << 63) - UNIT_BYTES;
	refused(&table, &r, -EINVAL, "descriptor offset");
	r.fd_offset = 1ull << 63;
	refused(&table, &r, -EINVAL, "descriptor offset");
	r.fd_offset = (1ull << 63) - 2 * UNIT_BYTES;
	accepted(&table, &r);
}

static void test_regions_may_touch_but_not_overlap(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(8 * UNIT_BYTES, 4 * UNIT_BYTES);

	(void)state;
	accepted(&table, &r);
	r = plain(12 * UNIT_BYTES, UNIT_BYTES);
	accepted(&table, &r);
	r = plain(7 * UNIT_BYTES, UNIT_BYTES);
	accepted(&table, &r);
	/* The same, inside, around, and one page across each end. */
	r = plain(8 * UNIT_BYTES, 4 * UNIT_BYTES);
	refused(&table, &r, -EINVAL, "regions 0 and 3");
	r = plain(9 * UNIT_BYTES, UNIT_BYTES);
	refused(&table, &r, -EINVAL, "regions 0 and 3");
	r = plain(0, 64 * UNIT_BYTES);
	refused(&table, &r, -EINVAL, "overlap");
	r = plain(6 * UNIT_BYTES, 2 * UNIT_BYTES);
	refused(&table, &r, -EINVAL, "regions 2 and 3");
	r = plain(12 * UNIT_BYTES, 2 * UNIT_BYTES);
	refused(&table, &r, -EINVAL, "regions 1 and 3");
}

static void test_host_ranges_may_not_overlap_where_they_are_mapped(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, 4 * UNIT_BYTES);

	(void)state;
	r.host_addr = 0x7f0000000000;
	accepted(&table, &r);
	r = plain(SIZE_1G, 4 * UNIT_BYTES);
	r.host_addr = 0x7f0000003000;
	refused(&table, &r, -EINVAL, "host memory");
	r.host_addr = 0x7f0000004000;
	accepted(&table, &r);
	/* A peer's table has no host addresses at all: 0 overlaps nothing. */
	r = plain(2 * SIZE_1G, 4 * UNIT_BYTES);
	accepted(&table, &r);
	r = plain(3 * SIZE_1G, 4 * UNIT_BYTES);
	accepted(&table, &r);
}

static void test_a_full_table_takes_no_more(void **state)
{
	struct region_table table = { 0 };
	struct region r;

	(void)state;
	for (uint32_t i = 0; i < REGIONS_MAX; i++) {
		r = plain(i * SIZE_1G, UNIT_BYTES);
		accepted(&table, &r);
	}
	r = plain(REGIONS_MAX * SIZE_1G, UNIT_BYTES);
	refused(&table, &r, -E2BIG, "64");
}

static void test_same_guest_looks_at_number_address_and_size(void **state)
{
	struct region_table ours = { 0 }, theirs = { 0 };
	struct region a = plain(0, SIZE_2M), b = plain(SIZE_1G, SIZE_2M);
	struct error err = ERROR_INIT;

	(void)state;
	accepted(&ours, &a);
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), -EINVAL);
	assert_non_null(strstr(err.text, "1 regions here, 0 on the other side"));
	/* Kind, page size and host address are each side's own business. */
	a.memory = POSTCOPY_MEMORY_HUGETLB;
	a.page_size = SIZE_2M;
	a.host_addr = SIZE_1G;
	accepted(&theirs, &a);
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), 0);
	accepted(&ours, &b);
	b.size += SIZE_2M;
	accepted(&theirs, &b);
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), -EINVAL);
	assert_non_null(strstr(err.text, "region 1: 0x40000000+0x200000 here, "
	                                 "0x40000000+0x400000 on the other side"));
	theirs.regions[1] = ours.regions[1];
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), 0);
	theirs.regions[1].guest_phys_addr += SIZE_2M;
	assert_int_equal(region_table_same_guest(&ours, &theirs, NULL), -EINVAL);
}

static void test_same_guest_looks_at_order(void **state)
{
	struct region_table ours = { 0 }, theirs = { 0 };
	struct region a = plain(0, SIZE_2M), b = plain(SIZE_1G, SIZE_2M);
	struct error err = ERROR_INIT;

	(void)state;
	accepted(&ours, &a);
	accepted(&ours, &b);
	accepted(&theirs, &b);
	accepted(&theirs, &a);
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), -EINVAL);
	assert_non_null(strstr(err.text, "region 0"));
}

static struct region named(const char *name, uint64_t guest_phys_addr, uint64_t size)
{
	struct region r = plain(guest_phys_addr, size);

	strcpy(r.name, name);
	return r;
}

static void test_names_are_unique_and_in_order(void **state)
{
	struct region_table table = { 0 };
	struct region a = named("pc.ram", 0, SIZE_2M), same = named("pc.ram", SIZE_1G, SIZE_2M);
	struct region before = named("mem0", SIZE_1G, SIZE_2M), none = plain(SIZE_1G, SIZE_2M);
	struct region after = named("vga", SIZE_1G, SIZE_2M), bad = named("w\x1b", 0, SIZE_2M);

	(void)state;
	refused(&table, &bad, -EINVAL, "printable");
	accepted(&table, &a);
	refused(&table, &same, -EINVAL, "\"pc.ram\"");
	refused(&table, &before, -EINVAL, "does not come after \"pc.ram\"");
	refused(&table, &none, -EINVAL, "no name");
	accepted(&table, &after);
}

/* QEMU's blocks lie elsewhere at the other side, and one that is missing was told as "region 1". */
static void test_same_guest_by_name(void **state)
{
	struct region_table ours = { 0 }, theirs = { 0 }, less = { 0 }, plain_one = { 0 };
	struct region a = named("pc.ram", 0, SIZE_2M), b = named("vga", SIZE_1G, SIZE_2M);
	struct error err = ERROR_INIT;

	(void)state;
	accepted(&ours, &a);
	accepted(&less, &a);
	accepted(&ours, &b);
	a.guest_phys_addr = 3 * SIZE_1G;
	accepted(&theirs, &a);
	accepted(&theirs, &b);
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), 0);
	assert_int_equal(region_table_same_guest(&ours, &less, &err), -EINVAL);
	assert_string_equal(err.text, "regions pc.ram, vga here, pc.ram on the other side");
	theirs.regions[1].size *= 2;
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), -EINVAL);
	assert_non_null(strstr(err.text, "region \"vga\" has 0x200000 bytes here"));
	/* One that has names, and one that has none: by place, as ever. */
	a = plain(0, SIZE_2M);
	accepted(&plain_one, &a);
	assert_int_equal(region_table_same_guest(&less, &plain_one, &err), 0);
}

static void test_lists_of_long_names_are_cut(void **state)
{
	struct region_table ours = { 0 }, theirs = { 0 };
	struct error err = ERROR_INIT;

	(void)state;
	for (uint64_t i = 0; i < REGIONS_MAX; i++) {
		struct region r = plain(i * SIZE_1G, SIZE_2M);

		memset(r.name, 'a' + (int)(i / 26), 200);
		r.name[199] = (char)('a' + i % 26);
		accepted(&ours, &r);
		r.name[0] = 'z';
		if (i == 0)
			accepted(&theirs, &r);
	}
	assert_int_equal(region_table_same_guest(&ours, &theirs, &err), -EINVAL);
	assert_non_null(strstr(err.text, "... here, z"));
	assert_non_null(strstr(err.text, "... on the other side"));
}

static void test_word_mask_ends_with_the_region(void **state)
{
	struct region_table table = { 0 };
	struct region r = plain(0, (64 + 5) * UNIT_BYTES);

	(void)state;
	accepted(&table, &r);
	assert_true(region_word_mask(&table.regions[0], 0) == UINT64_MAX);
	assert_true(region_word_mask(&table.regions[0], 1) == 0x1f);
	r = plain(SIZE_1G, 128 * UNIT_BYTES);
	accepted(&table, &r);
	assert_true(region_word_mask(&table.regions[1], 1) == UINT64_MAX);
	r = plain(2 * SIZE_1G, (64 + 63) * UNIT_BYTES);
	accepted(&table, &r);
	assert_true(region_word_mask(&table.regions[2], 1) == UINT64_MAX >> 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_add_derives_units_and_words_and_sums),
		cmocka_unit_test(test_derived_members_of_the_caller_are_not_believed),
		cmocka_unit_test(test_page_sizes_by_kind),
		cmocka_unit_test(test_unknown_kinds_are_refused),
		cmocka_unit_test(test_unknown_flags_are_refused),
		cmocka_unit_test(test_private_memory_is_in_the_table_but_not_readable),
		cmocka_unit_test(test_what_is_asked_for_is_a_file_and_all_of_it),
		cmocka_unit_test(test_size_must_be_whole_pages_and_some),
		cmocka_unit_test(test_each_address_must_be_aligned),
		cmocka_unit_test(test_no_address_may_wrap_with_its_size),
		cmocka_unit_test(test_no_guest_is_larger_than_52_bits),
		cmocka_unit_test(test_descriptor_offset_ends_where_files_end),
		cmocka_unit_test(test_regions_may_touch_but_not_overlap),
		cmocka_unit_test(test_host_ranges_may_not_overlap_where_they_are_mapped),
		cmocka_unit_test(test_a_full_table_takes_no_more),
		cmocka_unit_test(test_same_guest_looks_at_number_address_and_size),
		cmocka_unit_test(test_same_guest_looks_at_order),
		cmocka_unit_test(test_names_are_unique_and_in_order),
		cmocka_unit_test(test_same_guest_by_name),
		cmocka_unit_test(test_lists_of_long_names_are_cut),
		cmocka_unit_test(test_word_mask_ends_with_the_region),
	};

	return cmocka_run_group_tests_name("region", tests, NULL, NULL);
}
