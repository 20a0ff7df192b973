/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest takes, of which pool and at whose charge; and what the kernel's files say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "migrate/budget.h"

#define MIB (1ull << 20)

static struct region region(enum postcopy_memory memory, uint64_t size, uint64_t page_size)
{
	return (struct region){ .memory = memory, .size = size, .page_size = page_size };
}

static struct region_table mixed(void)
{
	struct region_table t = { .n = 4 };

	t.regions[0] = region(POSTCOPY_MEMORY_MEMFD, 64 * MIB, UNIT_BYTES);
	t.regions[1] = region(POSTCOPY_MEMORY_HUGETLB, 128 * MIB, 2 * MIB);
	t.regions[2] = region(POSTCOPY_MEMORY_GUEST_MEMFD, 32 * MIB, UNIT_BYTES);
	t.regions[3] = region(POSTCOPY_MEMORY_ANONYMOUS, 16 * MIB, 2 * MIB);
	t.size_bytes = 240 * MIB;
	return t;
}

static void test_huge_pages_are_pools_of_their_own(void **state)
{
	struct region_table t = mixed();
	struct budget_guest g = { .table = &t, .missing_bytes = t.size_bytes };

	(void)state;
	assert_int_equal(budget_need(&g, UNIT_BYTES), 96 * MIB);
	/* With private ones, which come from the same. */
	assert_int_equal(budget_need(&g, 2 * MIB), 144 * MIB);
	assert_int_equal(budget_need(&g, 1024 * MIB), 0);
}

static void test_what_is_here_is_not_needed_again(void **state)
{
	struct region_table t = mixed();
	struct budget_guest g = { .table = &t, .missing_bytes = 8 * MIB, .lazy = true };

	(void)state;
	assert_int_equal(budget_need(&g, UNIT_BYTES), 8 * MIB);
	assert_int_equal(budget_charge(&g, true), 8 * MIB);
	g.missing_bytes = 0;
	assert_int_equal(budget_need(&g, 2 * MIB), 0);
}

/* Measured: 64 MiB of a memfd, lazy: +64 MiB of the daemon; by UFFDIO_COPY: of the VMM. */
static void test_who_fills_is_charged(void **state)
{
	struct region_table t = mixed();
	struct budget_guest g = { .table = &t, .missing_bytes = t.size_bytes };

	(void)state;
	assert_int_equal(budget_charge(&g, false), 64 * MIB);
	assert_int_equal(budget_charge(&g, true), 32 * MIB);
	g.lazy = true;
	assert_int_equal(budget_charge(&g, false), 0);
	assert_int_equal(budget_charge(&g, true), 96 * MIB);
	g.lazy = false;
	g.warm = true;
	assert_int_equal(budget_charge(&g, true), 96 * MIB);
	t.n = 1;
	t.regions[0] = region(POSTCOPY_MEMORY_ANONYMOUS, 64 * MIB, UNIT_BYTES);
	assert_int_equal(budget_charge(&g, true), 0);
	assert_int_equal(budget_charge(&g, false), 64 * MIB);
	t.regions[0].memory = POSTCOPY_MEMORY_MEMFD;
	t.regions[0].flags = POSTCOPY_REGION_ASKED;
	g.warm = false;
	assert_int_equal(budget_charge(&g, true), 64 * MIB);
}

static void test_sums_do_not_overflow(void **state)
{
	(void)state;
	assert_int_equal(budget_add(1, 2), 3);
	assert_int_equal(budget_add(BUDGET_ANY, 1), BUDGET_ANY);
	assert_int_equal(budget_add(BUDGET_ANY - 1, 2), BUDGET_ANY);
	assert_int_equal(budget_left(5, 7), 0);
	assert_int_equal(budget_left(7, 5), 2);
	assert_int_equal(budget_left(BUDGET_ANY, 5), BUDGET_ANY);
}

static void test_room_of_a_cgroup(void **state)
{
	struct budget_cgroup c = { .max = 100, .high = BUDGET_ANY, .current = 60 };

	(void)state;
	assert_int_equal(budget_cgroup_room(&c), 40);
	c.inactive_file = 20;
	assert_int_equal(budget_cgroup_room(&c), 60);
	c.high = 50;
	assert_int_equal(budget_cgroup_room(&c), 10);
	c.high = 30;
	assert_int_equal(budget_cgroup_room(&c), 0);
	c.high = c.max = BUDGET_ANY;
	assert_int_equal(budget_cgroup_room(&c), BUDGET_ANY);
}

static void expect_place(const char *file, const char *path, bool legacy)
{
	char text[256];
	bool is_legacy;
	const char *found;

	strcpy(text, file);
	found = budget_find_cgroup(text, &is_legacy);
	if (!path) {
		assert_null(found);
		return;
	}
	assert_string_equal(found, path);
	assert_int_equal(is_legacy, legacy);
}

static void test_where_memory_is_counted(void **state)
{
	(void)state;
	expect_place("0::/a/b\n", "/a/b", false);
	expect_place("0::/a/b", "/a/b", false);
	/* Where version 1 has the controller, version 2 has not. */
	expect_place("4:memory:/x\n1:cpu:/y\n0::/z\n", "/x", true);
	expect_place("4:cpu,memory,pids:/x\n0::/z\n", "/x", true);
	expect_place("4:name=memory:/x\n5:memoryless:/y\n0::/z\n", "/z", false);
	/* A name of the VMM's choice says nothing. */
	expect_place("0::/a:memory:/b\n", "/a:memory:/b", false);
	expect_place("0::/../vm7\n", NULL, false);
	expect_place("", NULL, false);
	expect_place("\n:\n::\nx", NULL, false);
}

static void test_meminfo(void **state)
{
	(void)state;
	assert_int_equal(budget_parse_available("MemTotal:       24683656 kB\n"
	                                        "MemFree:        21477148 kB\n"
	                                        "MemAvailable:   21696224 kB\n"),
	                 21696224ull * 1024);
	assert_int_equal(budget_parse_available("MemAvailable:   0 kB\n"), 0);
	assert_int_equal(budget_parse_available("MemFree:  21477148 kB\n"), BUDGET_ANY);
	assert_int_equal(budget_parse_available("MemAvailable:  -1 kB\n"), BUDGET_ANY);
	assert_int_equal(budget_parse_available("MemAvailable: 99999999999999999999 kB\n"),
	                 BUDGET_ANY);
	assert_int_equal(budget_parse_available(""), BUDGET_ANY);
}

static void test_limits(void **state)
{
	(void)state;
	assert_int_equal(budget_parse_bytes("max\n", 7), BUDGET_ANY);
	assert_int_equal(budget_parse_bytes("67108864\n", 7), 64 * MIB);
	assert_int_equal(budget_parse_bytes("0\n", 7), 0);
	/* Version 1's "max". */
	assert_int_equal(budget_parse_bytes("9223372036854771712\n", 7), BUDGET_ANY);
	assert_int_equal(budget_parse_bytes("18446744073709551616\n", 7), BUDGET_ANY);
	assert_int_equal(budget_parse_bytes("-1\n", 7), 7);
	assert_int_equal(budget_parse_bytes("", 7), 7);
}

static void test_stat(void **state)
{
	static const char stat[] = "anon 5\ninactive_file_x 6\nactive_file 8\ninactive_file 7\n";

	(void)state;
	assert_int_equal(budget_parse_stat(stat, "inactive_file"), 7);
	assert_int_equal(budget_parse_stat(stat, "file"), 0);
	assert_int_equal(budget_parse_stat("inactive_file", "inactive_file"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_huge_pages_are_pools_of_their_own),
		cmocka_unit_test(test_what_is_here_is_not_needed_again),
		cmocka_unit_test(test_who_fills_is_charged),
		cmocka_unit_test(test_sums_do_not_overflow),
		cmocka_unit_test(test_room_of_a_cgroup),
		cmocka_unit_test(test_where_memory_is_counted),
		cmocka_unit_test(test_meminfo),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_stat),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
