/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "util/histogram.h"

#define VALUES_MAX 4096

/* Reproducible values spread over all magnitudes: xorshift64, shifted by its own bits. */
static uint64_t next_value(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return (*seed >> 24) >> (*seed & 31);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t exact_quantile(const uint64_t *sorted, size_t n, unsigned int permille)
{
	size_t rank = (n * permille + 999) / 1000;

	return sorted[rank ? rank - 1 : 0];
}

/* All in one go are what each is by itself. */
static void check_together(const struct histogram *h)
{
	unsigned int permille[1001];
	uint64_t ns[1001];

	for (unsigned int i = 0; i <= 1000; i++)
		permille[i] = i;
	histogram_quantiles(h, permille, 1001, ns);
	for (unsigned int i = 0; i <= 1000; i++)
		assert_int_equal(ns[i], histogram_quantile(h, i));
}

static void check_against_exact(const struct histogram *h, uint64_t *values, size_t n)
{
	check_together(h);
	qsort(values, n, sizeof *values, compare);
	for (unsigned int permille = 0; permille <= 1000; permille++) {
		uint64_t exact = exact_quantile(values, n, permille);
		uint64_t got = histogram_quantile(h, permille);

		if (got < exact || got > exact + exact / HISTOGRAM_SUB)
			fail_msg("%zu values, quantile %u/1000: %llu, exactly it is %llu", n,
			         permille, (unsigned long long)got, (unsigned long long)exact);
	}
}

static void test_bucket_upper_is_the_largest_value_of_its_bucket(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t upper = histogram_bucket_upper(i);

		assert_int_equal(histogram_bucket(upper), i);
		if (i < HISTOGRAM_BUCKETS - 1)
			assert_int_equal(histogram_bucket(upper + 1), i + 1);
	}
}

static void test_bucket_holds_its_value_within_a_sixteenth(void **state)
{
	uint64_t seed = 0x9e3779b97f4a7c15;

	(void)state;
	for (unsigned int n = 0; n < 1000000; n++) {
		uint64_t value = next_value(&seed);
		uint64_t upper = histogram_bucket_upper(histogram_bucket(value));

		assert_true(upper >= value);
		assert_true(upper - value <= value / HISTOGRAM_SUB);
	}
}

static void test_value_beyond_the_range_counts_in_the_last_bucket(void **state)
{
	struct histogram h = { 0 };

	(void)state;
	assert_int_equal(histogram_bucket((uint64_t)1 << 40), HISTOGRAM_BUCKETS - 1);
	assert_int_equal(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
	histogram_add(&h, 1);
	histogram_add(&h, UINT64_MAX);
	assert_true(histogram_quantile(&h, 1000) == UINT64_MAX);
	assert_int_equal(histogram_quantile(&h, 500), 1);
}

static void test_quantile_is_never_too_good_and_within_a_sixteenth(void **state)
{
	static const size_t sizes[] = { 1, 2, 3, 10, 999, 1000, 1001, VALUES_MAX };
	static uint64_t values[VALUES_MAX];
	uint64_t seed = 0x2545f4914f6cdd1d;

	(void)state;
	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
		struct histogram h = { 0 };

		for (size_t i = 0; i < sizes[s]; i++) {
			values[i] = next_value(&seed);
			histogram_add(&h, values[i]);
		}
		check_against_exact(&h, values, sizes[s]);
	}
}

static void test_empty_histogram_has_quantile_zero(void **state)
{
	struct histogram h = { 0 };

	(void)state;
	assert_int_equal(histogram_quantile(&h, 0), 0);
	assert_int_equal(histogram_quantile(&h, 1000), 0);
	check_together(&h);
}

static void test_quantile_does_not_exceed_the_largest_value_seen(void **state)
{
	struct histogram h = { 0 };

	(void)state;
	histogram_add(&h, 1000);
	assert_int_equal(histogram_quantile(&h, 0), 1000);
	assert_int_equal(histogram_quantile(&h, 500), 1000);
	assert_int_equal(histogram_quantile(&h, 1000), 1000);
}

static void test_merge_equals_adding_all_values_to_one(void **state)
{
	struct histogram all = { 0 }, a = { 0 }, b = { 0 }, merged = { 0 };
	uint64_t seed = 0x853c49e6748fea9b;

	(void)state;
	for (unsigned int n = 0; n < VALUES_MAX; n++) {
		uint64_t value = next_value(&seed);

		histogram_add(&all, value);
		histogram_add(n % 3 ? &a : &b, value);
	}
	histogram_merge(&merged, &a);
	histogram_merge(&merged, &b);
	assert_int_equal(merged.count, all.count);
	assert_true(merged.sum == all.sum);
	assert_true(merged.max == all.max);
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++)
		assert_int_equal(merged.buckets[i], all.buckets[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bucket_upper_is_the_largest_value_of_its_bucket),
		cmocka_unit_test(test_bucket_holds_its_value_within_a_sixteenth),
		cmocka_unit_test(test_value_beyond_the_range_counts_in_the_last_bucket),
		cmocka_unit_test(test_quantile_is_never_too_good_and_within_a_sixteenth),
		cmocka_unit_test(test_empty_histogram_has_quantile_zero),
		cmocka_unit_test(test_quantile_does_not_exceed_the_largest_value_seen),
		cmocka_unit_test(test_merge_equals_adding_all_values_to_one),
	};

	return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
