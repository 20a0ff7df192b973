/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest writes in a moment of a round, and what will be dirty at its end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "migrate/conductor/forecast.h"
#include "support.h"

#define MEMORY 100000u /* units */
#define ROUND 1600u    /* ns: 100 for a sixteenth of memory */

static void look_at(struct forecast *f, uint64_t first_ns, uint64_t first, uint64_t second_ns,
                    uint64_t second)
{
	*f = (struct forecast){ 0 };
	forecast_note(f, first_ns, first);
	forecast_note(f, second_ns, second);
}

static void two_harvests_are_due_as_memory_comes(void **state)
{
	struct forecast f = { 0 };

	(void)state;
	assert_false(forecast_is_due(&f, MEMORY / 20, MEMORY));
	assert_true(forecast_is_due(&f, MEMORY / 16, MEMORY));
	forecast_note(&f, 100, 1);
	assert_false(forecast_is_due(&f, MEMORY / 16, MEMORY));
	assert_true(forecast_is_due(&f, MEMORY / 5, MEMORY));
	forecast_note(&f, 200, 1);
	assert_false(forecast_is_due(&f, MEMORY, MEMORY));
	/* And no third. */
	forecast_note(&f, 400, MEMORY);
	assert_true(forecast_percent(&f, ROUND, MEMORY) < FORECAST_FUTILE_PERCENT);
}

static void nothing_is_forecast_of_nothing(void **state)
{
	struct forecast f = { 0 };

	(void)state;
	assert_int_equal(forecast_percent(&f, ROUND, MEMORY), 0);
	forecast_note(&f, 100, 0);
	assert_int_equal(forecast_percent(&f, ROUND, MEMORY), 0);
	assert_int_equal(forecast_percent(&f, 0, MEMORY), 0);
	assert_int_equal(forecast_percent(&f, ROUND, 0), 0);
}

/* It writes anywhere: at a tenth of the rate at which memory comes, and as fast as that. */
static void a_guest_that_writes_anywhere_is_known_by_its_rate(void **state)
{
	struct forecast f;

	(void)state;
	look_at(&f, 100, 623, 200, 1242);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 4, 6);
	look_at(&f, 100, 6059, 200, 11750);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 37, 48);
}

/* Ten times as fast: nearly all of it. */
static void a_guest_that_writes_all_the_time_makes_it_futile(void **state)
{
	struct forecast f;

	(void)state;
	look_at(&f, 100, 46474, 200, 71350);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 85, 95);
	/* A first look that has seen half of memory written is enough. */
	f = (struct forecast){ 0 };
	forecast_note(&f, 100, MEMORY / 2);
	assert_true(forecast_percent(&f, ROUND, MEMORY) >= FORECAST_FUTILE_PERCENT);
}

/* A fifth of memory, over and over, faster than it can ever be copied. */
static void a_guest_that_works_with_a_part_of_its_memory_is_warmed(void **state)
{
	struct forecast f = { 0 };

	(void)state;
	forecast_note(&f, 100, MEMORY / 5);
	assert_true(forecast_percent(&f, ROUND, MEMORY) < FORECAST_FUTILE_PERCENT);
	look_at(&f, 100, MEMORY / 5, 200, MEMORY / 5 + 100);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 18, 22);
}

/* Which may be what happens on a host that has no core for it, or what a VMM says of itself. */
static void odd_harvests_are_borne(void **state)
{
	struct forecast f;

	(void)state;
	/* Less in the longer one; */
	look_at(&f, 100, 8000, 200, 10);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 7, 8);
	/* a second that was no longer than the first; */
	look_at(&f, 100, 8000, 100, 9000);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 7, 8);
	/* more than there is; */
	look_at(&f, 100, 2 * MEMORY, 200, 3 * MEMORY);
	assert_in_range(forecast_percent(&f, ROUND, MEMORY), 90, 100);
	/* and longer than the round. */
	look_at(&f, 2 * ROUND, MEMORY, 3 * ROUND, MEMORY);
	assert_int_equal(forecast_percent(&f, ROUND, MEMORY), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_harvests_are_due_as_memory_comes),
		cmocka_unit_test(nothing_is_forecast_of_nothing),
		cmocka_unit_test(a_guest_that_writes_anywhere_is_known_by_its_rate),
		cmocka_unit_test(a_guest_that_writes_all_the_time_makes_it_futile),
		cmocka_unit_test(a_guest_that_works_with_a_part_of_its_memory_is_warmed),
		cmocka_unit_test(odd_harvests_are_borne),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
