/* SPDX-License-Identifier: Apache-2.0 */
/* What limits a migration, by a clock of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "stream/load.h"

/* A thread whose every tenth of a second is spent so: shares in percent. */
struct thread {
	struct load load;
	uint64_t now_ns, busy_ns;
};

static void run(struct thread *t, struct load_view *v, unsigned int tenths, unsigned int capped,
                unsigned int busy)
{
	for (unsigned int i = 0; i < tenths; i++) {
		uint64_t part = LOAD_LOOK_NS / 100;

		load_capped(&t->load, t->now_ns);
		load_go_on(&t->load, t->now_ns + capped * part);
		t->now_ns += LOAD_LOOK_NS;
		t->busy_ns += busy * part;
		load_go_on(&t->load, t->now_ns);
		assert_true(load_is_due(&t->load, t->now_ns));
		load_look(&t->load, v, t->now_ns, t->busy_ns);
		assert_false(load_is_due(&t->load, t->now_ns + LOAD_LOOK_NS / 2));
	}
}

static struct thread new_thread(void)
{
	return (struct thread){ .now_ns = 1000 * NSEC_PER_SEC, .busy_ns = NSEC_PER_SEC };
}

static void test_what_takes_the_time_is_told(void **state)
{
	static const struct {
		unsigned int capped, busy;
		enum load_limit limit;
	} rows[] = {
		{ 0, 0, LOAD_WAITS }, { 0, 60, LOAD_WAITS },  { 0, 90, LOAD_CPU },
		{ 90, 10, LOAD_CAP }, { 30, 30, LOAD_WAITS },
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		struct load_view v = { .told_ns = 0 };
		struct thread t = new_thread();

		assert_int_equal(load_limit(&v, t.now_ns), LOAD_UNKNOWN);
		run(&t, &v, 30, rows[i].capped, rows[i].busy);
		assert_int_equal(load_limit(&v, t.now_ns), rows[i].limit);
	}
}

static void test_what_was_is_forgotten_in_a_second(void **state)
{
	struct load_view v = { .told_ns = 0 };
	struct thread t = new_thread();

	(void)state;
	run(&t, &v, 100, 100, 0);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_CAP);
	run(&t, &v, 10, 0, 0);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_WAITS);
	/* Nobody has looked for long: all wait for their answers. */
	run(&t, &v, 100, 0, 100);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_CPU);
	assert_int_equal(load_limit(&v, t.now_ns + 2 * NSEC_PER_SEC), LOAD_WAITS);
}

static void test_threads_are_taken_together(void **state)
{
	struct load_view v = { .told_ns = 0 };
	struct thread busy = new_thread(), idle = new_thread();

	(void)state;
	for (unsigned int i = 0; i < 40; i++) {
		run(&busy, &v, 1, 0, 100);
		run(&idle, &v, 1, 0, 0);
	}
	assert_int_equal(load_limit(&v, busy.now_ns), LOAD_WAITS);
}

static void test_a_kernel_that_tells_nothing_blames_no_cpu(void **state)
{
	struct load_view v = { .told_ns = 0 };
	struct thread t = new_thread();

	(void)state;
	t.busy_ns = 0;
	run(&t, &v, 30, 0, 0);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_WAITS);
	/* Nor does what was told once, and then not. */
	t.busy_ns = 5 * NSEC_PER_SEC;
	run(&t, &v, 1, 0, 0);
	t.busy_ns = 0;
	run(&t, &v, 1, 0, 0);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_WAITS);
}

/* What another thread fills in its place is work. */
static void test_lent_work_counts(void **state)
{
	struct load_view v = { .told_ns = 0 };
	struct thread t = new_thread();

	(void)state;
	for (unsigned int i = 0; i < 30; i++) {
		run(&t, &v, 1, 0, 10);
		t.load.lent_ns = LOAD_LOOK_NS;
	}
	run(&t, &v, 1, 0, 10);
	assert_int_equal(load_limit(&v, t.now_ns), LOAD_CPU);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_takes_the_time_is_told),
		cmocka_unit_test(test_what_was_is_forgotten_in_a_second),
		cmocka_unit_test(test_threads_are_taken_together),
		cmocka_unit_test(test_a_kernel_that_tells_nothing_blames_no_cpu),
		cmocka_unit_test(test_lent_work_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
