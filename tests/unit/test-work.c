/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/work.h"
#include "ctl/json.h"

/*
 * A guest that does 100 accesses a millisecond at the source for 500 ms, starts to move there, is
 * paused at 600, runs here from 610 on at a quarter of that until it is complete at 810, and
 * then as ever. All times on a clock that began long ago.
 */
#define CLOCK 5000000000ull
#define MS(ms) (CLOCK + (uint64_t)(ms)*1000)
#define RATE 100

static const struct work_course course = {
	.steady_us = MS(0),
	.steady_end_us = MS(500),
	.start_us = MS(550),
	.pause_us = MS(600),
	.resume_us = MS(610),
	.complete_us = MS(810),
};

static struct work_sample source_samples[900], destination_samples[400];

/* Both VMMs' samples, @first_ms apart from each other; the source's goes on after the pause. */
static void make_samples(struct work_series *source, struct work_series *destination)
{
	*source = (struct work_series){ source_samples, 0 };
	*destination = (struct work_series){ destination_samples, 0 };
	for (uint64_t ms = 0; ms < 820; ms++)
		source->samples[source->n++] =
		        (struct work_sample){ MS(ms), (ms < 600 ? ms : 600) * RATE };
	for (uint64_t ms = 0; ms < 300; ms++)
		destination->samples[destination->n++] = (struct work_sample){
			MS(610 + ms), ms < 200 ? ms * RATE / 4 : 200 * RATE / 4 + (ms - 200) * RATE
		};
}

static void merge(const struct work_series *a, const struct work_series *b, struct work_series *ret)
{
	assert_true(work_series_merge(a, b, ret));
	for (size_t i = 1; i < ret->n; i++) {
		assert_true(ret->samples[i].at_us >= ret->samples[i - 1].at_us);
		assert_true(ret->samples[i].done >= ret->samples[i - 1].done);
	}
}

static void assert_near(double got, double want, double by)
{
	if (fabs(got - want) > by)
		fail_msg("%g, and not %g", got, want);
}

/* 10 ms of pause and three quarters of 200 ms; nothing in the 50 ms before the pause. */
static void test_a_pause_and_a_slow_guest_are_lost_work(void **state)
{
	struct work_series source, destination, both;
	struct work_lost lost;

	(void)state;
	make_samples(&source, &destination);
	merge(&source, &destination, &both);
	assert_true(work_measure(&both, &course, &lost));
	assert_near(lost.steady_per_s, RATE * 1000, 1);
	assert_near(lost.lost_ms, 160, 1);
	assert_near(lost.before.lost_ms, 0, 1);
	assert_near(lost.switchover.lost_ms, 10, 1);
	assert_near(lost.postcopy.lost_ms, 150, 1);
	assert_in_range(lost.longest_gap_us, 9000, 11000);
	work_series_deinit(&both);
}

static void test_nothing_is_lost_where_nothing_changes(void **state)
{
	struct work_series source, nothing = { .n = 0 }, both;
	struct work_lost lost;

	(void)state;
	make_samples(&source, &nothing);
	for (size_t i = 0; i < source.n; i++)
		source.samples[i].done = i * RATE;
	nothing.n = 0;
	merge(&source, &nothing, &both);
	assert_true(work_measure(&both, &course, &lost));
	assert_near(lost.lost_ms, 0, 0.01);
	/* A count that moves on at each sample has no gap that is known of. */
	assert_int_equal(lost.longest_gap_us, 0);
	work_series_deinit(&both);
}

/* A guest that is warm makes up for nothing that it has not lost: noise goes both ways. */
static void test_a_faster_guest_has_lost_less_than_nothing(void **state)
{
	struct work_series source, nothing = { .n = 0 }, both;
	struct work_lost lost;

	(void)state;
	make_samples(&source, &nothing);
	for (size_t i = 0; i < source.n; i++)
		source.samples[i].done = i <= 500 ? i * RATE : 500 * RATE + (i - 500) * 2 * RATE;
	nothing.n = 0;
	merge(&source, &nothing, &both);
	assert_true(work_measure(&both, &course, &lost));
	assert_near(lost.lost_ms, -260, 0.01);
	work_series_deinit(&both);
}

/*
 * Of two vCPUs each has a core for 0.9 of its time. Then, before the pause, the other half of what
 * they had is somebody else's; and here they have half of it, get half as much done with that, and
 * stand still in the rest.
 */
static void test_why_work_is_lost_the_cores_tell(void **state)
{
	struct work_series source, destination, both;
	struct work_lost lost;

	(void)state;
	make_samples(&source, &destination);
	for (size_t ms = 0; ms < source.n; ms++) {
		uint64_t as_ever = ms < 550 ? ms : 550, less = ms < 600 ? ms - as_ever : 50;

		source.samples[ms].done = as_ever * RATE + less * RATE / 2;
		source.samples[ms].ran_us = as_ever * 1800 + less * 900;
		source.samples[ms].waited_us = as_ever * 200 + less * 1100;
	}
	for (size_t ms = 0; ms < destination.n; ms++) {
		destination.samples[ms].done = ms * RATE / 4;
		destination.samples[ms].ran_us = ms * 900;
		destination.samples[ms].waited_us = ms * 200;
	}
	merge(&source, &destination, &both);
	assert_true(work_measure(&both, &course, &lost));
	assert_true(lost.why_known);
	assert_near(lost.before.lost_ms, 25, 0.1);
	assert_near(lost.before.cores_ms, 25, 0.1);
	assert_near(lost.before.stalled_ms, 0, 0.1);
	assert_near(lost.before.slower_ms, 0, 0.1);
	assert_near(lost.switchover.lost_ms, 10, 0.1);
	/* It waits for no core: less than in its steady state. */
	assert_near(lost.switchover.cores_ms, -10. / 9, 0.1);
	assert_near(lost.switchover.stalled_ms, 10 + 10. / 9, 0.1);
	assert_near(lost.postcopy.lost_ms, 150, 0.1);
	assert_near(lost.postcopy.cores_ms, 0, 0.1);
	assert_near(lost.postcopy.slower_ms, 50, 0.1);
	assert_near(lost.postcopy.stalled_ms, 100, 0.1);
	work_series_deinit(&both);
}

/* A sampler that lost its core for 50 ms has not seen the guest stand still. */
static void test_a_late_sample_is_no_gap(void **state)
{
	struct work_sample samples[] = { { MS(0), 0 },       { MS(500), 50000 }, { MS(560), 56000 },
		                         { MS(610), 61000 }, { MS(612), 61000 }, { MS(613), 61100 },
		                         { MS(900), 89000 } };
	struct work_series s = { samples, sizeof samples / sizeof *samples };
	struct work_lost lost;

	(void)state;
	assert_true(work_measure(&s, &course, &lost));
	assert_int_equal(lost.longest_gap_us, 2000);
}

/* Only what lies between start and complete is the migration's. */
static void test_a_gap_counts_within_the_migration_only(void **state)
{
	struct work_sample samples[] = {
		{ MS(0), 0 },       { MS(400), 50000 }, { MS(555), 50000 },
		{ MS(556), 50001 }, { MS(805), 70000 }, { MS(900), 70000 }
	};
	struct work_series s = { samples, sizeof samples / sizeof *samples };
	struct work_lost lost;

	(void)state;
	assert_true(work_measure(&s, &course, &lost));
	assert_int_equal(lost.longest_gap_us, 5000);
}

static void test_what_can_not_be_told_is_not_told(void **state)
{
	struct work_sample idle[] = { { MS(0), 7 }, { MS(900), 7 } };
	struct work_sample one[] = { { MS(0), 0 }, { MS(900), 90000 } };
	struct work_series none = { .n = 0 }, still = { idle, 2 }, straight = { one, 2 };
	struct work_course never = course;
	struct work_lost lost = { .lost_ms = 42 };

	(void)state;
	assert_false(work_measure(&none, &course, &lost));
	assert_false(work_measure(&still, &course, &lost));
	never.complete_us = 0;
	assert_false(work_measure(&straight, &never, &lost));
	assert_true(lost.lost_ms == 42);
	assert_true(work_done_at(&none, MS(5)) == 0);
	assert_true(work_done_at(&straight, 0) == 0);
	assert_near(work_done_at(&straight, MS(450)), 45000, 0.01);
	assert_true(work_done_at(&straight, MS(5000)) == 90000);
}

static void test_the_result_has_what_was_measured(void **state)
{
	_cleanup_json_ struct json_object *result = json_object_new_object();
	struct work_series source, destination, both, none = { .n = 0 };
	struct json_object *work;
	double ms, steady = 0;

	(void)state;
	make_samples(&source, &destination);
	merge(&source, &destination, &both);
	work_add(result, &both, &course);
	assert_near(json_number_or(result, "work_lost_ms", 0), 160, 1);
	assert_near(json_number_or(result, "work_lost_parts_ms.postcopy", 0), 150, 1);
	/* Nobody has told of cores. */
	assert_null(json_find(result, "work_lost_causes_ms"));
	assert_int_equal(json_object_array_length(json_find(result, "course")), 3);
	work = json_find(result, "work");
	assert_in_range(json_object_array_length(work), 88, 92);
	for (size_t i = 0; i < 50; i++) {
		struct json_object *pair = json_object_array_get_idx(work, i);

		ms = json_object_get_double(json_object_array_get_idx(pair, 0));
		steady = json_object_get_double(json_object_array_get_idx(pair, 1));
		assert_near(ms, -605 + 10 * (double)i, 0.01);
		assert_near(steady, 1, 0.01);
	}
	work_series_deinit(&both);

	work_add(result, &none, &course);
	assert_null(json_find(result, "work_lost_ms"));
	assert_true(json_object_object_get_ex(result, "work_lost_ms", NULL));
}

static int read_text(const char *text, struct work_series *ret, struct error *err)
{
	char path[] = "/tmp/test-work-XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	r = work_series_read(path, ret, err);
	unlink(path);
	return r;
}

static void test_files_are_read_or_refused(void **state)
{
	struct work_series s = { .n = 0 };
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(read_text("1 0 0 0\n5 7 2 1\n5 7 2 1\n", &s, &err), 0);
	assert_int_equal(s.n, 3);
	assert_int_equal(s.samples[2].done, 7);
	assert_int_equal(s.samples[2].ran_us, 2);
	assert_int_equal(s.samples[2].waited_us, 1);
	work_series_deinit(&s);
	assert_int_equal(read_text("", &s, &err), 0);
	assert_int_equal(s.n, 0);
	work_series_deinit(&s);
	assert_int_equal(read_text("1 0 0 0\n5 seven 2 1\n", &s, &err), -EBADMSG);
	assert_int_equal(read_text("5 0 0 0\n1 7 0 0\n9 9 0 0\n", &s, &err), -EBADMSG);
	assert_int_equal(read_text("1 9 0 0\n2 8 0 0\n3 9 0 0\n", &s, &err), -EBADMSG);
	assert_null(s.samples);
	assert_int_equal(work_series_read("/nowhere/at/all", &s, &err), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_pause_and_a_slow_guest_are_lost_work),
		cmocka_unit_test(test_nothing_is_lost_where_nothing_changes),
		cmocka_unit_test(test_a_faster_guest_has_lost_less_than_nothing),
		cmocka_unit_test(test_why_work_is_lost_the_cores_tell),
		cmocka_unit_test(test_a_late_sample_is_no_gap),
		cmocka_unit_test(test_a_gap_counts_within_the_migration_only),
		cmocka_unit_test(test_what_can_not_be_told_is_not_told),
		cmocka_unit_test(test_the_result_has_what_was_measured),
		cmocka_unit_test(test_files_are_read_or_refused),
	};

	return cmocka_run_group_tests_name("work", tests, NULL, NULL);
}
