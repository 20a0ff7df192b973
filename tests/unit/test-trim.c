/* SPDX-License-Identifier: Apache-2.0 */
/* When memory that migrations have left goes back to the kernel: never beside one that moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <malloc.h>

#include "migrate/trim.h"

static unsigned int n_trimmed;

/* In place of libc's. */
int malloc_trim(size_t pad)
{
	(void)pad;
	n_trimmed++;
	return 1;
}

struct fixture {
	uv_loop_t loop;
	struct migrations ms;
	struct migration one, other;
};

static void open_loop(struct fixture *f)
{
	*f = (struct fixture){ 0 };
	assert_int_equal(uv_loop_init(&f->loop), 0);
	uv_timer_init(&f->loop, &f->ms.trim);
	f->one.next = &f->other;
	f->one.state = f->other.state = MIGRATION_ATTACHED;
	f->ms.list = &f->one;
	n_trimmed = 0;
}

/* Until nothing is due any more. */
static void close_loop(struct fixture *f)
{
	uv_run(&f->loop, UV_RUN_DEFAULT);
	uv_close((uv_handle_t *)&f->ms.trim, NULL);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
}

static void test_memory_is_given_back_once_when_the_last_has_ended(void **state)
{
	struct fixture f;

	(void)state;
	open_loop(&f);
	for (int i = 0; i < 3; i++)
		migrations_trim_later(&f.ms);
	assert_int_equal(n_trimmed, 0);
	close_loop(&f);
	assert_int_equal(n_trimmed, 1);
}

static void test_nothing_is_given_back_beside_one_that_moves(void **state)
{
	static const enum migration_state states[] = { MIGRATION_WARMING, MIGRATION_SWITCHING,
		                                       MIGRATION_POSTCOPY, MIGRATION_PAUSED };
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
		open_loop(&f);
		f.other.state = states[i];
		migrations_trim_later(&f.ms);
		close_loop(&f);
		assert_int_equal(n_trimmed, 0);
	}
	/* Its source has still to hear that it has ended. */
	open_loop(&f);
	f.other.state = MIGRATION_COMPLETE;
	f.other.conductor_runs = true;
	migrations_trim_later(&f.ms);
	close_loop(&f);
	assert_int_equal(n_trimmed, 0);
}

/* Nor as the daemon ends. */
static void test_nothing_is_given_back_by_a_daemon_that_ends(void **state)
{
	struct fixture f;

	(void)state;
	open_loop(&f);
	f.ms.draining = true;
	migrations_trim_later(&f.ms);
	close_loop(&f);
	assert_int_equal(n_trimmed, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory_is_given_back_once_when_the_last_has_ended),
		cmocka_unit_test(test_nothing_is_given_back_beside_one_that_moves),
		cmocka_unit_test(test_nothing_is_given_back_by_a_daemon_that_ends),
	};

	return cmocka_run_group_tests_name("trim", tests, NULL, NULL);
}
