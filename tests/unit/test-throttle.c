/* SPDX-License-Identifier: Apache-2.0 */
/* The cap by a clock of the test's own: exact, and no matter how busy the host is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>

#include "mem/region.h"
#include "stream/throttle.h"
#include "support.h"
#include "util/clock.h"

#define MIB (1ull << 20)
#define START_NS (1000 * NSEC_PER_SEC)

/* The bytes that one thread gets in @for_ns, when it wakes up to @late_ns late each time. */
static uint64_t bytes_in(struct throttle *t, uint64_t for_ns, uint64_t late_ns)
{
	uint64_t now_ns = START_NS, until_ns = 0, bytes = 0, seed = 1;

	while (now_ns < START_NS + for_ns) {
		unsigned int units = throttle_take(t, now_ns, &until_ns);

		bytes += (uint64_t)units * UNIT_BYTES;
		if (units)
			continue;
		assert_true(until_ns > now_ns);
		now_ns = until_ns + (late_ns ? random_below(&seed, late_ns) : 0);
	}
	return bytes;
}

static void assert_rate(uint64_t bytes_per_s, uint64_t for_ns, uint64_t late_ns)
{
	uint64_t due = bytes_per_s * (for_ns / NSEC_PER_MSEC) / 1000, bytes;
	uint64_t burst = bytes_per_s * 2 * THROTTLE_SLACK_NS / NSEC_PER_SEC + UNIT_BYTES;
	struct throttle t;

	throttle_init(&t, bytes_per_s);
	bytes = bytes_in(&t, for_ns, late_ns);
	if (bytes > due + burst || bytes < due - due / 50)
		fail_msg("%llu bytes, not %llu, at %llu bytes/s", (unsigned long long)bytes,
		         (unsigned long long)due, (unsigned long long)bytes_per_s);
	throttle_deinit(&t);
}

static void test_rate_is_the_cap(void **state)
{
	(void)state;
	for (uint64_t rate = MIB; rate <= 1024 * MIB; rate *= 4) {
		assert_rate(rate, 10 * NSEC_PER_SEC, 0);
		assert_rate(rate, 10 * NSEC_PER_SEC, THROTTLE_SLACK_NS / 2);
	}
	assert_rate(100 * 1000, 100 * NSEC_PER_SEC, 0);
}

static void test_without_a_cap_there_is_always_a_word(void **state)
{
	struct throttle t;
	uint64_t until_ns;

	(void)state;
	throttle_init(&t, 0);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(throttle_take(&t, START_NS, &until_ns), WORD_UNITS);
	throttle_deinit(&t);
}

/* A low cap is smooth: small requests, evenly apart. */
static void test_low_cap_makes_small_requests(void **state)
{
	uint64_t until_ns = 0, now_ns = START_NS;
	struct throttle t;

	(void)state;
	throttle_init(&t, 0);
	throttle_set_cap(&t, MIB, now_ns);
	for (int i = 0; i < 256; i++) {
		assert_int_equal(throttle_take(&t, now_ns, &until_ns), 1);
		assert_int_equal(throttle_take(&t, now_ns, &until_ns), 0);
		now_ns = until_ns;
	}
	assert_true(now_ns - START_NS - NSEC_PER_SEC < NSEC_PER_USEC);
	throttle_set_cap(&t, 1024 * MIB, now_ns);
	assert_int_equal(throttle_take(&t, now_ns, &until_ns), WORD_UNITS);
	throttle_deinit(&t);
}

/* Time that nobody used is not saved up for a burst. */
static void test_burst_after_a_pause_is_short(void **state)
{
	uint64_t until_ns, units = 0, n;
	struct throttle t;

	(void)state;
	throttle_init(&t, 0);
	throttle_set_cap(&t, 100 * MIB, START_NS);
	while ((n = throttle_take(&t, START_NS + 3600 * NSEC_PER_SEC, &until_ns)))
		units += n;
	assert_true(units * UNIT_BYTES <=
	            100 * MIB * (THROTTLE_SLACK_NS + THROTTLE_REQUEST_NS) / NSEC_PER_SEC);
	throttle_deinit(&t);
}

static void test_what_is_given_back_may_be_taken_again(void **state)
{
	uint64_t until_ns;
	struct throttle t;

	(void)state;
	throttle_init(&t, 0);
	throttle_set_cap(&t, 64 * MIB, START_NS);
	for (int i = 0; i < 1000; i++) {
		unsigned int units = throttle_take(&t, START_NS, &until_ns);

		assert_true(units > 0);
		throttle_give_back(&t, units);
	}
	assert_true(throttle_take(&t, START_NS, &until_ns) > 0);
	assert_int_equal(throttle_take(&t, START_NS, &until_ns), 0);
	throttle_deinit(&t);
}

static void test_new_cap_counts_at_once(void **state)
{
	uint64_t until_ns;
	struct throttle t;

	(void)state;
	throttle_init(&t, 0);
	throttle_set_cap(&t, 1, START_NS);
	assert_int_equal(throttle_take(&t, START_NS, &until_ns), 1);
	assert_int_equal(throttle_take(&t, START_NS + NSEC_PER_SEC, &until_ns), 0);
	throttle_set_cap(&t, MIB, START_NS + NSEC_PER_SEC);
	/* What the page costs still, at the new one. */
	assert_int_equal(throttle_take(&t, START_NS + NSEC_PER_SEC, &until_ns), 0);
	assert_true(until_ns - START_NS - NSEC_PER_SEC <= 4 * NSEC_PER_MSEC);
	assert_int_equal(throttle_take(&t, until_ns, &until_ns), 1);
	throttle_set_cap(&t, 0, START_NS + NSEC_PER_SEC);
	assert_int_equal(throttle_take(&t, START_NS + NSEC_PER_SEC, &until_ns), WORD_UNITS);
	throttle_give_back(&t, WORD_UNITS);
	throttle_deinit(&t);
}

/* Ten times a second a share changes: what was asked for is owed on, or each time were a present.
 */
static void test_changes_are_no_presents(void **state)
{
	const uint64_t for_s = 60;
	uint64_t now_ns = START_NS, until_ns = 0, bytes = 0, next_ns = START_NS;
	struct throttle t;
	bool more = false;

	(void)state;
	throttle_init(&t, 0);
	while (now_ns < START_NS + for_s * NSEC_PER_SEC) {
		unsigned int units;

		if (now_ns >= next_ns) {
			more = !more;
			assert_true(throttle_set_share(&t, more ? 3 * 4096 : 4096, now_ns));
			next_ns += 100 * NSEC_PER_MSEC;
		}
		units = throttle_take(&t, now_ns, &until_ns);
		bytes += (uint64_t)units * UNIT_BYTES;
		if (!units)
			now_ns = until_ns < next_ns ? until_ns : next_ns;
	}
	/* 2 * 4096 bytes/s on average. */
	assert_in_range(bytes, (2 * for_s - 4) * 4096, (2 * for_s + 4) * 4096);
	throttle_deinit(&t);
}

static void test_the_lower_of_cap_and_share_counts(void **state)
{
	struct throttle t;

	(void)state;
	throttle_init(&t, 4 * MIB);
	assert_false(throttle_set_share(&t, 8 * MIB, START_NS));
	assert_true(throttle_set_share(&t, MIB, START_NS));
	assert_int_equal(atomic_load(&t.bytes_per_s), MIB);
	assert_false(throttle_set_cap(&t, 0, START_NS));
	assert_int_equal(atomic_load(&t.bytes_per_s), MIB);
	assert_true(throttle_set_share(&t, 0, START_NS));
	assert_int_equal(atomic_load(&t.bytes_per_s), 0);
	throttle_deinit(&t);
}

/* An answer is sent whole: the next one waits for what it cost. */
static void test_answers_are_paid_whole(void **state)
{
	const uint64_t bytes = 256 << 10;
	uint64_t until_ns;
	struct throttle t;

	(void)state;
	throttle_init(&t, 0);
	assert_int_equal(throttle_pay(&t, bytes, START_NS), 0);
	assert_false(throttle_was_held(&t));
	throttle_set_share(&t, MIB, START_NS);
	assert_int_equal(throttle_pay(&t, bytes, START_NS), 0);
	until_ns = throttle_pay(&t, bytes, START_NS);
	assert_int_equal(until_ns, START_NS + NSEC_PER_SEC / 4);
	assert_true(throttle_was_held(&t));
	assert_false(throttle_was_held(&t));
	assert_int_equal(throttle_pay(&t, bytes, until_ns), 0);
	throttle_deinit(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rate_is_the_cap),
		cmocka_unit_test(test_without_a_cap_there_is_always_a_word),
		cmocka_unit_test(test_low_cap_makes_small_requests),
		cmocka_unit_test(test_burst_after_a_pause_is_short),
		cmocka_unit_test(test_what_is_given_back_may_be_taken_again),
		cmocka_unit_test(test_new_cap_counts_at_once),
		cmocka_unit_test(test_changes_are_no_presents),
		cmocka_unit_test(test_the_lower_of_cap_and_share_counts),
		cmocka_unit_test(test_answers_are_paid_whole),
	};

	return cmocka_run_group_tests_name("throttle", tests, NULL, NULL);
}
