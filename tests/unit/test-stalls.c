/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "telemetry/stalls.h"

#define US 1000ull

static struct fault_ring *ring;
static struct stall_info *info;

static int setup(void **state)
{
	(void)state;
	ring = calloc(1, sizeof *ring);
	info = calloc(1, sizeof *info);
	if (info)
		info->page_bytes = 4096;
	return !ring || !info;
}

static int teardown(void **state)
{
	(void)state;
	free(ring);
	free(info);
	return 0;
}

/* A fault of @tid whose event was read at @read_ns and that was mapped 50 us later. */
static void record(uint32_t tid, uint64_t addr, uint64_t read_ns)
{
	const struct fault_record r = {
		.addr = addr,
		.tid = tid,
		.read_ns = read_ns,
		.mapped_ns = read_ns + 50 * US,
	};

	fault_ring_add(ring, &r);
}

/* @tid: in the VMM's pid namespace; here it has another number. */
static bool join(pid_t tid, uint64_t address, uint64_t start_ns, uint64_t end_ns)
{
	const struct fault_tracer_event event = { .tid = tid ? tid + 1 : 0,
		                                  .ns_tid = (uint32_t)tid,
		                                  .address = address,
		                                  .start_ns = start_ns,
		                                  .end_ns = end_ns };

	return stalls_join(info, ring, &event);
}

static void test_a_stall_is_joined_with_its_thread_s_record(void **state)
{
	(void)state;
	record(1, 0x1000, 1000 * US);
	record(2, 0x2000, 1001 * US);
	record(1, 0x3000, 1100 * US);
	assert_true(join(2, 0, 993 * US, 1063 * US));
	assert_int_equal(atomic_load(&info->entry_ns.max), 8 * US);
	assert_int_equal(atomic_load(&info->wakeup_ns.max), 12 * US);
	assert_int_equal(atomic_load(&info->joined_ns.sum), 70 * US);
	assert_int_equal(atomic_load(&info->phases_ns.sum), 70 * US);
	assert_true(join(1, 0, 1090 * US, 1160 * US));
	assert_int_equal(info->slow[1].record.addr, 0x3000);
}

static void test_a_stall_that_the_daemon_never_saw_has_no_phases(void **state)
{
	(void)state;
	record(1, 0x1000, 1000 * US);
	assert_false(join(3, 0, 993 * US, 1063 * US));
	assert_false(join(1, 0, 2000 * US, 2063 * US));
	assert_false(join(1, 0, 100 * US, 163 * US));
	assert_int_equal(atomic_load(&info->joined_ns.count), 0);
	assert_int_equal(info->n_slow, 3);
	assert_int_equal(info->slow[0].record.read_ns, 0);
}

/* The kernel was not asked for thread ids: the address says which fault it was. */
static void test_without_a_thread_the_address_tells(void **state)
{
	(void)state;
	record(0, 0x7f0000200000, 1000 * US);
	record(0, 0x7f0000400000, 1000 * US);
	assert_true(join(9, 0x7f0000400123, 990 * US, 1060 * US));
	assert_int_equal(info->slow[0].record.addr, 0x7f0000400000);
	assert_false(join(9, 0, 990 * US, 1060 * US));
}

/* Mapped is stamped after the vCPU has been woken, and may come after it has run. */
static void test_a_vcpu_may_run_before_the_record_ends(void **state)
{
	(void)state;
	record(1, 0x1000, 1000 * US);
	assert_true(join(1, 0, 990 * US, 1045 * US));
	assert_int_equal(atomic_load(&info->wakeup_ns.max), 0);
}

/* The fault thread was awake: it has read the event before the vCPU sleeps. */
static void test_an_event_may_be_read_before_the_vcpu_sleeps(void **state)
{
	(void)state;
	record(1, 0x1000, 1000 * US);
	assert_true(join(1, 0, 1005 * US, 1062 * US));
	assert_int_equal(atomic_load(&info->entry_ns.max), 0);
	assert_int_equal(atomic_load(&info->wakeup_ns.max), 12 * US);
	assert_int_equal(atomic_load(&info->joined_ns.sum), 57 * US);
	assert_int_equal(atomic_load(&info->phases_ns.sum), 62 * US);
	/* The page was mapped before: this sleep is another fault's. */
	assert_false(join(1, 0, 1055 * US, 1100 * US));
}

/* The one before was stamped late; both fit, and the later one is this stall's. */
static void test_of_two_faults_of_a_thread_the_later_one_is_meant(void **state)
{
	(void)state;
	record(1, 0x1000, 1000 * US);
	record(1, 0x2000, 1040 * US);
	assert_true(join(1, 0, 1045 * US, 1102 * US));
	assert_int_equal(info->slow[0].record.addr, 0x2000);
}

static void test_the_slowest_stay(void **state)
{
	uint64_t least = UINT64_MAX;

	(void)state;
	for (unsigned int i = 1; i <= 3 * STALLS_SLOW_MAX; i++)
		join(1, 0, 0, (i * 7919 % 1000) * US);
	assert_int_equal(info->n_slow, STALLS_SLOW_MAX);
	for (unsigned int i = 0; i < info->n_slow; i++)
		if (info->slow[i].event.end_ns < least)
			least = info->slow[i].event.end_ns;
	for (unsigned int i = 1, slower = 0; i <= 3 * STALLS_SLOW_MAX; i++) {
		slower += (i * 7919 % 1000) * US > least;
		assert_true(slower < STALLS_SLOW_MAX);
	}
}

/* The ring has turned over: the search begins at what is still there. */
static void test_a_full_ring_is_searched_from_its_oldest_record(void **state)
{
	(void)state;
	for (uint64_t i = 0; i < 3 * FAULT_RING_MAX; i++)
		record(1, 0x1000 * i, i * 100 * US);
	assert_false(join(1, 0, 100 * 100 * US - 5 * US, 100 * 100 * US + 60 * US));
	assert_true(join(1, 0, (3 * FAULT_RING_MAX - 9) * 100 * US - 5 * US,
	                 (3 * FAULT_RING_MAX - 9) * 100 * US + 60 * US));
	assert_int_equal(info->slow[1].record.addr, 0x1000ull * (3 * FAULT_RING_MAX - 9));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_stall_is_joined_with_its_thread_s_record),
		TEST(test_a_stall_that_the_daemon_never_saw_has_no_phases),
		TEST(test_without_a_thread_the_address_tells),
		TEST(test_a_vcpu_may_run_before_the_record_ends),
		TEST(test_an_event_may_be_read_before_the_vcpu_sleeps),
		TEST(test_of_two_faults_of_a_thread_the_later_one_is_meant),
		TEST(test_the_slowest_stay),
		TEST(test_a_full_ring_is_searched_from_its_oldest_record),
	};

	return cmocka_run_group_tests_name("stalls", tests, NULL, NULL);
}
