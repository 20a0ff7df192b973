/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "migrate/state.h"

#include "support.h"

static enum migration_state state_at(unsigned int i)
{
	return (enum migration_state)i;
}

static bool arrow(enum migration_state from, enum migration_state to)
{
	return migration_state_allows(from, to);
}

/* Can @to be reached from @from, in any number of steps? */
static bool reaches(enum migration_state from, enum migration_state to)
{
	bool seen[MIGRATION_STATES] = { false };
	bool grown = true;

	seen[from] = true;
	while (grown) {
		grown = false;
		for (unsigned int i = 0; i < MIGRATION_STATES; i++)
			for (unsigned int j = 0; seen[i] && j < MIGRATION_STATES; j++)
				if (!seen[j] && arrow(state_at(i), state_at(j)))
					seen[j] = grown = true;
	}
	return seen[to];
}

static void test_each_state_has_a_name_of_its_own(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < MIGRATION_STATES; i++) {
		assert_non_null(migration_state_name(state_at(i)));
		assert_true(*migration_state_name(state_at(i)));
		for (unsigned int j = 0; j < i; j++)
			assert_string_not_equal(migration_state_name(state_at(i)),
			                        migration_state_name(state_at(j)));
	}
	assert_string_equal(migration_state_name(MIGRATION_POSTCOPY), "postcopy");
	assert_string_equal(migration_state_name(MIGRATION_PAUSED), "paused");
}

static void test_complete_failed_and_cancelled_are_final(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < MIGRATION_STATES; i++) {
		bool final = i == MIGRATION_COMPLETE || i == MIGRATION_FAILED ||
		             i == MIGRATION_CANCELLED;

		assert_int_equal(migration_state_is_final(state_at(i)), final);
		for (unsigned int j = 0; final && j < MIGRATION_STATES; j++)
			assert_false(arrow(state_at(i), state_at(j)));
	}
}

static void test_the_way_of_a_good_migration(void **state)
{
	static const enum migration_state way[] = {
		MIGRATION_PREPARED,  MIGRATION_ATTACHED, MIGRATION_WARMING,
		MIGRATION_SWITCHING, MIGRATION_POSTCOPY, MIGRATION_COMPLETE,
	};
	size_t n = sizeof way / sizeof *way;

	(void)state;
	for (size_t i = 0; i < n; i++)
		for (size_t j = i + 1; j < n; j++)
			/* Each step, and none left out. */
			assert_int_equal(arrow(way[i], way[j]), j == i + 1);
	assert_true(arrow(MIGRATION_POSTCOPY, MIGRATION_PAUSED));
	assert_true(arrow(MIGRATION_PAUSED, MIGRATION_POSTCOPY));
}

static void test_no_state_follows_itself(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < MIGRATION_STATES; i++)
		assert_false(arrow(state_at(i), state_at(i)));
}

static void test_before_the_point_of_no_return_all_can_be_cancelled(void **state)
{
	(void)state;
	for (unsigned int i = MIGRATION_PREPARED; i <= MIGRATION_SWITCHING; i++) {
		assert_true(arrow(state_at(i), MIGRATION_CANCELLED));
		/* What is only announced has nothing that could fail. */
		assert_int_equal(arrow(state_at(i), MIGRATION_FAILED), i != MIGRATION_PREPARED);
	}
}

/*
 * The guest has run at the destination: it can't go back, in whatever number of steps; but a source
 * runs it on by command.
 */
static void test_postcopy_can_not_be_cancelled_nor_undone(void **state)
{
	static const enum migration_state after[] = { MIGRATION_POSTCOPY, MIGRATION_PAUSED };

	(void)state;
	for (size_t i = 0; i < sizeof after / sizeof *after; i++) {
		assert_int_equal(arrow(after[i], MIGRATION_CANCELLED),
		                 after[i] == MIGRATION_POSTCOPY);
		for (unsigned int j = MIGRATION_PREPARED; j <= MIGRATION_SWITCHING; j++)
			assert_false(reaches(after[i], state_at(j)));
	}
}

static void test_every_state_is_reached_and_ends(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < MIGRATION_STATES; i++) {
		assert_true(reaches(MIGRATION_PREPARED, state_at(i)));
		assert_true(migration_state_is_final(state_at(i)) ||
		            reaches(state_at(i), MIGRATION_FAILED));
	}
}

/* Complete says that a guest ran with all its pages: it comes from postcopy alone. */
static void test_random_walks_complete_only_after_postcopy(void **state)
{
	uint64_t random = 1;

	(void)state;
	for (int walk = 0; walk < 2000; walk++) {
		enum migration_state at = MIGRATION_PREPARED;
		bool ran = false;

		for (int step = 0; step < 100 && !migration_state_is_final(at); step++) {
			enum migration_state to =
			        state_at((unsigned int)random_below(&random, MIGRATION_STATES));

			if (!arrow(at, to))
				continue;
			assert_false(to == MIGRATION_COMPLETE && !ran);
			assert_false(to == MIGRATION_CANCELLED && ran && at != MIGRATION_POSTCOPY);
			at = to;
			ran |= at == MIGRATION_POSTCOPY;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_state_has_a_name_of_its_own),
		cmocka_unit_test(test_complete_failed_and_cancelled_are_final),
		cmocka_unit_test(test_the_way_of_a_good_migration),
		cmocka_unit_test(test_no_state_follows_itself),
		cmocka_unit_test(test_before_the_point_of_no_return_all_can_be_cancelled),
		cmocka_unit_test(test_postcopy_can_not_be_cancelled_nor_undone),
		cmocka_unit_test(test_every_state_is_reached_and_ends),
		cmocka_unit_test(test_random_walks_complete_only_after_postcopy),
	};

	return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
