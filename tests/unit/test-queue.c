/* SPDX-License-Identifier: Apache-2.0 */
/* The queue for a place: who is started, and when. What starting takes is made up here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>

#include "migrate/admission.h"
#include "migrate/destination/destination.h"
#include "migrate/queue.h"
#include "migrate/record/keep.h"

#define MIGRATIONS 5u

struct fixture {
	uv_loop_t loop;
	uv_prepare_t turn;
	struct migrations ms;
	struct migration *m[MIGRATIONS]; /* in the order in which they began to wait */
	unsigned int n_seen;             /* that had ended or were started in the last turn */
};

static unsigned int places, n_ended, n_started;
static bool no_room;

bool admission_has_place(const struct migration *m)
{
	return queue_ahead(m) < places;
}

int destination_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                      const struct migration_turn_wanted *turn, struct error *err)
{
	(void)warm;
	assert_true(switchover && !turn->wait);
	if (no_room)
		return error_set(err, -ENOMEM, "no room");
	queue_leave(m);
	m->state = MIGRATION_WARMING;
	places--;
	n_started++;
	return 0;
}

void destination_fail_attached(struct migration *m, const struct error *why)
{
	assert_int_equal(why->code, -ENOMEM);
	queue_leave(m);
	m->state = MIGRATION_FAILED;
	n_ended++;
	queue_look(m->owner);
}

void migration_save(struct migration *m)
{
	(void)m;
}

void migration_tell(struct migration *m, const char *reason)
{
	(void)m;
	(void)reason;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	const struct migration_warm none = { .wanted = false };

	places = n_ended = n_started = 0;
	no_room = false;
	uv_loop_init(&f->loop);
	uv_prepare_init(&f->loop, &f->turn);
	f->ms.loop = &f->loop;
	uv_timer_init(&f->loop, &f->ms.queue);
	for (size_t i = 0; i < MIGRATIONS; i++) {
		struct migration *m = f->m[i] = calloc(1, sizeof *m);

		m->owner = &f->ms;
		m->state = MIGRATION_ATTACHED;
		m->next = f->ms.list;
		f->ms.list = m;
		queue_add(m, true, &none, 0);
		/* Whatever the clock's steps are. */
		m->turn.since_ns = i + 1;
	}
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	uv_close((uv_handle_t *)&f->turn, NULL);
	uv_close((uv_handle_t *)&f->ms.queue, NULL);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	for (size_t i = 0; i < MIGRATIONS; i++)
		free(f->m[i]);
	free(f);
	return 0;
}

/* After the timers of each turn. */
static void on_turn(uv_prepare_t *turn)
{
	struct fixture *f = turn->data;
	unsigned int n = n_started + n_ended;

	assert_true(n <= f->n_seen + 1);
	f->n_seen = n;
	if (n == MIGRATIONS)
		uv_prepare_stop(turn);
}

/* Until nobody waits. */
static void run(struct fixture *f)
{
	f->turn.data = f;
	uv_prepare_start(&f->turn, on_turn);
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_false(uv_is_active((uv_handle_t *)&f->ms.queue));
}

static void test_one_is_started_in_each_turn_of_the_loop(void **state)
{
	places = MIGRATIONS;
	run(*state);
	assert_int_equal(n_started, MIGRATIONS);
}

static void test_one_fails_in_each_turn_of_the_loop(void **state)
{
	places = MIGRATIONS;
	no_room = true;
	run(*state);
	assert_int_equal(n_ended, MIGRATIONS);
}

static void test_who_is_not_taken_over_yet_holds_up_nobody(void **state)
{
	struct fixture *f = *state;
	struct saved *left = malloc(1);

	f->m[0]->left = left;
	assert_int_equal(queue_ahead(f->m[1]), 0);
	places = 1;
	uv_run(&f->loop, UV_RUN_NOWAIT);
	assert_int_equal(n_started, 1);
	assert_int_equal(f->m[1]->state, MIGRATION_WARMING);
	/* It is first when it is there, and who waits for it is not forgotten. */
	for (size_t i = 2; i < MIGRATIONS; i++)
		queue_drop(f->m[i]);
	uv_run(&f->loop, UV_RUN_NOWAIT);
	assert_int_equal(queue_length(&f->ms), 1);
	assert_true(uv_is_active((uv_handle_t *)&f->ms.queue));
	f->m[0]->left = NULL;
	free(left);
	places = 1;
	uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(f->m[0]->state, MIGRATION_WARMING);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_one_is_started_in_each_turn_of_the_loop, setup,
		                                teardown),
		cmocka_unit_test_setup_teardown(test_one_fails_in_each_turn_of_the_loop, setup,
		                                teardown),
		cmocka_unit_test_setup_teardown(test_who_is_not_taken_over_yet_holds_up_nobody,
		                                setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
