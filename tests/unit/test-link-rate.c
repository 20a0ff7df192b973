/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controller meets links: a simulated bottleneck with one FIFO, by 100 us of time, whose sender
 * does what TCP does where it is not paced (it fills the queue, loses something, and goes back),
 * and whose round trips are smoothed, late and noisy as the kernel's are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "stream/link_rate.h"
#include "support.h"
#include "util/clock.h"

#define TICK_NS (100 * NSEC_PER_USEC)
#define TICKS_PER_S (NSEC_PER_SEC / TICK_NS)
#define START_NS (1000 * NSEC_PER_SEC)
#define MBIT 125000ull
#define WAITS_MAX (60 * TICKS_PER_S)

struct sim {
	/* The scene. */
	uint64_t capacity; /* bytes/s */
	uint64_t rtt_us, queue_max_us;
	uint64_t stranger; /* bytes/s that yield to nobody */
	bool crowd;        /* others' TCP keeps the queue full, and takes half of the link */
	uint64_t late_us;  /* round trips are longer by up to this, by chance */
	bool not_held;     /* it is not the network that holds bulk up */
	bool stalls;       /* the link stands still now and then, and so does its queue */
	bool idle;
	/* What is there. */
	struct link_rate rate;
	uint64_t now_ns, step_ns, seed;
	double queue, srtt_us, unsent; /* bytes; of bulk TCP's window beyond the link */
	bool filling;
	uint64_t acked;
	/* Since begin(). */
	double sent;
	uint32_t *waits_us;
	size_t n_waits;
	uint64_t paced_ticks, stalled_ticks;
	uint64_t stall_ns, stalled_until_ns;
};

static void setup(struct sim *s)
{
	s->now_ns = START_NS;
	s->step_ns = START_NS;
	s->seed = 7;
	s->srtt_us = (double)s->rtt_us;
	s->filling = true;
	s->waits_us = malloc(WAITS_MAX * sizeof *s->waits_us);
	assert_non_null(s->waits_us);
}

static void begin(struct sim *s)
{
	s->sent = 0;
	s->n_waits = 0;
	s->paced_ticks = s->stalled_ticks = 0;
}

static double queue_us(const struct sim *s)
{
	return s->queue * 1e6 / (double)s->capacity;
}

/* What TCP alone would send in a tick: half as much again as fits, until the queue is full. */
static double unpaced(struct sim *s, double fits)
{
	if (queue_us(s) >= (double)s->queue_max_us)
		s->filling = false;
	else if (queue_us(s) <= 0.7 * (double)s->queue_max_us)
		s->filling = true;
	return fits * (s->filling ? 1.5 : 0.5);
}

static void tick(struct sim *s)
{
	double capacity = (double)s->capacity / (double)TICKS_PER_S;
	double stranger = (double)s->stranger / (double)TICKS_PER_S;
	double ours = s->crowd ? capacity / 2 : capacity - stranger;
	double sends = s->rate.bytes_per_s ? (double)s->rate.bytes_per_s / (double)TICKS_PER_S
	                                   : unpaced(s, ours);
	double left;

	if (s->stalls && s->now_ns >= s->stall_ns) {
		s->stalled_until_ns = s->now_ns + random_below(&s->seed, 15 * NSEC_PER_MSEC);
		s->stall_ns = s->stalled_until_ns + random_below(&s->seed, 200 * NSEC_PER_MSEC);
	}
	if (s->now_ns < s->stalled_until_ns) {
		ours = 0;
		s->stalled_ticks++;
	}
	if (s->idle)
		sends = 0;
	/* Where others fill what we leave, ours pass at our rate and the queue stays. */
	if (s->crowd)
		sends = sends > ours ? ours : sends;
	left = s->queue + sends - ours;
	s->sent += left > 0 ? ours : s->queue + sends;
	s->acked += (uint64_t)(left > 0 ? ours : s->queue + sends);
	s->queue = left > 0 ? left : 0;
	if (queue_us(s) > (double)s->queue_max_us)
		s->queue = (double)s->capacity * (double)s->queue_max_us / 1e6;
	s->srtt_us += ((double)s->rtt_us + (s->crowd ? (double)s->queue_max_us : queue_us(s)) -
	               s->srtt_us) /
	              40;
	s->paced_ticks += s->rate.bytes_per_s != 0;
	if (s->n_waits < WAITS_MAX)
		s->waits_us[s->n_waits++] = (uint32_t)queue_us(s);
	s->now_ns += TICK_NS;
}

static void look(struct sim *s)
{
	struct link_rate_sample sample = {
		.now_ns = s->now_ns,
		.acked_bytes = s->acked,
		.rtt_us = (uint64_t)s->srtt_us + random_below(&s->seed, 60 + s->late_us),
		.base_us = s->rtt_us,
		.held = !s->not_held,
	};

	s->acked = 0;
	link_rate_step(&s->rate, &sample);
	/* Threads look when they pass by. */
	s->step_ns =
	        s->now_ns + link_rate_step_ns(&s->rate) + random_below(&s->seed, 3 * NSEC_PER_MSEC);
}

static void run(struct sim *s, double seconds)
{
	uint64_t until_ns = s->now_ns + (uint64_t)(seconds * NSEC_PER_SEC);

	while (s->now_ns < until_ns) {
		tick(s);
		if (s->now_ns >= s->step_ns && !s->idle)
			look(s);
	}
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static uint32_t wait_us(struct sim *s, unsigned int percent)
{
	qsort(s->waits_us, s->n_waits, sizeof *s->waits_us, compare);
	return s->waits_us[s->n_waits * percent / 100];
}

/* The part of what it could have had. */
static double used(const struct sim *s, double seconds)
{
	return s->sent / ((double)(s->capacity - s->stranger) * seconds);
}

#define assert_over(x, limit)                                                                      \
	do {                                                                                       \
		if (!((x) >= (limit)))                                                             \
			fail_msg("%s is %g, and not %g", #x, (double)(x), (double)(limit));        \
	} while (0)

static void check_full_link(uint64_t mbit, uint64_t rtt_us, uint64_t queue_max_us)
{
	struct sim s = { .capacity = mbit * MBIT, .rtt_us = rtt_us, .queue_max_us = queue_max_us };
	uint32_t p50, p99;

	setup(&s);
	run(&s, 2);
	begin(&s);
	run(&s, 8);
	p50 = wait_us(&s, 50);
	p99 = wait_us(&s, 99);
	print_message("%llu Mbit/s, %llu us, queue %llu us: used %.3f, waits %u, %u us\n",
	              (unsigned long long)mbit, (unsigned long long)rtt_us,
	              (unsigned long long)queue_max_us, used(&s, 8), p50, p99);
	assert_over(used(&s, 8), 0.95);
	assert_in_range(p50, 0, 150);
	/* A slow link's packets and a long link's round trips take their time to be seen. */
	assert_in_range(p99, 0, 700 + rtt_us / 2 + 60000 / mbit * 10);
	free(s.waits_us);
}

static void test_a_full_link_has_no_queue(void **state)
{
	static const uint64_t mbits[] = { 100, 1000, 10000 };
	static const uint64_t queues_us[] = { 2000, 20000, 50000 };

	(void)state;
	for (size_t i = 0; i < 3; i++)
		for (size_t j = 0; j < 3; j++) {
			check_full_link(mbits[i], 200, queues_us[j]);
			check_full_link(mbits[i], 10000, queues_us[j]);
		}
}

/* At once: a guest's first faults matter as much. */
static void test_it_takes_little_time(void **state)
{
	struct sim s = { .capacity = 1000 * MBIT, .rtt_us = 200, .queue_max_us = 20000 };

	(void)state;
	setup(&s);
	run(&s, 0.15);
	begin(&s);
	run(&s, 1);
	assert_over(used(&s, 1), 0.93);
	assert_in_range(wait_us(&s, 95), 0, 700);
	free(s.waits_us);
}

static void test_a_stranger_comes_and_goes(void **state)
{
	struct sim s = { .capacity = 1000 * MBIT, .rtt_us = 200, .queue_max_us = 20000 };

	(void)state;
	setup(&s);
	run(&s, 2);
	s.stranger = 400 * MBIT;
	run(&s, 1);
	begin(&s);
	run(&s, 4);
	assert_over(used(&s, 4), 0.94);
	assert_in_range(wait_us(&s, 99), 0, 1000);
	s.stranger = 0;
	run(&s, 1);
	begin(&s);
	run(&s, 4);
	assert_over(used(&s, 4), 0.95);
	free(s.waits_us);
}

static void test_a_crowd_starves_nobody(void **state)
{
	struct sim s = {
		.capacity = 1000 * MBIT, .rtt_us = 200, .queue_max_us = 20000, .crowd = true
	};

	(void)state;
	setup(&s);
	run(&s, 1);
	begin(&s);
	run(&s, 20);
	/* Of half of the link. */
	assert_over(2 * used(&s, 20), 0.95);
	free(s.waits_us);
}

static void test_late_cpus_are_no_queue(void **state)
{
	/* So fast that nothing is ever queued, and the sender believes that it is the network. */
	struct sim s = {
		.capacity = 8000 * MBIT, .rtt_us = 50, .queue_max_us = 200, .late_us = 5000
	};

	(void)state;
	setup(&s);
	begin(&s);
	run(&s, 20);
	print_message("late CPUs: %.3f of it, paced for %.1f %%\n", used(&s, 20),
	              (double)s.paced_ticks * 100 / (20.0 * TICKS_PER_S));
	assert_over(used(&s, 20), 0.95);
	free(s.waits_us);
}

/* A host that is short of CPUs: what the link carries then is not what it can. */
static void test_a_link_that_stands_still_now_and_then(void **state)
{
	struct sim s = { .capacity = 1000 * MBIT,
		         .rtt_us = 200,
		         .queue_max_us = 20000,
		         .late_us = 150,
		         .stalls = true };
	double moves;

	(void)state;
	setup(&s);
	run(&s, 1);
	begin(&s);
	run(&s, 20);
	moves = 20 - (double)s.stalled_ticks / TICKS_PER_S;
	print_message("stalls: %.3f of what is left, waits %u, %u us\n", used(&s, moves),
	              wait_us(&s, 50), wait_us(&s, 90));
	assert_over(used(&s, moves), 0.9);
	assert_in_range(wait_us(&s, 50), 0, 1000);
	free(s.waits_us);
}

static void test_a_slow_receiver_is_no_queue(void **state)
{
	struct sim s = {
		.capacity = 1000 * MBIT, .rtt_us = 20, .queue_max_us = 5000, .not_held = true
	};

	(void)state;
	setup(&s);
	begin(&s);
	run(&s, 5);
	assert_int_equal(s.paced_ticks, 0);
	free(s.waits_us);
}

static void test_a_link_changes_its_rate(void **state)
{
	struct sim s = { .capacity = 1000 * MBIT, .rtt_us = 200, .queue_max_us = 20000 };

	(void)state;
	setup(&s);
	run(&s, 2);
	s.capacity = 100 * MBIT;
	s.queue = 0;
	run(&s, 2);
	begin(&s);
	run(&s, 4);
	assert_over(used(&s, 4), 0.95);
	s.capacity = 1000 * MBIT;
	run(&s, 1);
	begin(&s);
	run(&s, 4);
	assert_over(used(&s, 4), 0.95);
	free(s.waits_us);
}

/* What bulk does not need is not looked for, nor forgotten at once. */
static void test_pauses(void **state)
{
	struct sim s = { .capacity = 1000 * MBIT, .rtt_us = 200, .queue_max_us = 20000 };

	(void)state;
	setup(&s);
	run(&s, 2);
	assert_int_not_equal(s.rate.bytes_per_s, 0);
	for (unsigned int i = 0; i < 5; i++) {
		s.idle = true;
		run(&s, i);
		s.idle = false;
		begin(&s);
		run(&s, 0.5);
		assert_over(used(&s, 0.5), 0.9);
		assert_in_range(wait_us(&s, 99), 0, 1500);
	}
	s.not_held = true;
	run(&s, 6);
	assert_int_equal(s.rate.bytes_per_s, 0);
	free(s.waits_us);
}

static void test_bursts(void **state)
{
	struct link_rate l = { 0 };

	(void)state;
	assert_int_equal(link_rate_burst_bytes(&l), 0);
	l.bytes_per_s = 1000 * MBIT;
	assert_in_range(link_rate_burst_bytes(&l), 12u << 10, 20u << 10);
	l.bytes_per_s = MBIT;
	assert_int_equal(link_rate_burst_bytes(&l), 4u << 10);
	l.bytes_per_s = 10000 * MBIT;
	assert_int_equal(link_rate_burst_bytes(&l), 0);
}

enum need {
	IDLE,   /* or its receiver does not read */
	ENOUGH, /* all that it has is on its way */
	MORE,
};

#define PARTS_MAX 8u

/* @parts, of which @used[i] was used, of 1 Gbyte/s. */
static void divide(struct link_rate_part *parts, size_t n, const enum need *needs,
                   const uint64_t *used)
{
	for (size_t i = 0; i < n; i++)
		parts[i] = (struct link_rate_part){
			.next = i + 1 < n ? &parts[i + 1] : NULL,
			.used = used[i] * 1000 * 1000,
			.active = needs[i] != IDLE,
			.waiting = needs[i] == MORE,
		};
	link_rate_divide(NSEC_PER_SEC, parts);
	for (size_t i = 0; i < n; i++)
		parts[i].bytes_per_s /= 1000 * 1000;
}

static void test_what_one_does_not_need_the_others_have(void **state)
{
	static const enum need needs[] = { MORE, ENOUGH, MORE, ENOUGH, IDLE };
	static const uint64_t used[] = { 250, 10, 250, 240, 0 };
	struct link_rate_part parts[5];

	(void)state;
	divide(parts, 5, needs, used);
	assert_int_equal(parts[0].bytes_per_s, 375);
	assert_int_equal(parts[2].bytes_per_s, 375);
	/* A little more than they have used, so that they show if they need it. */
	assert_in_range(parts[1].bytes_per_s, 20, 200);
	assert_in_range(parts[3].bytes_per_s, 250, 375);
	assert_int_equal(parts[4].bytes_per_s, 200);
}

/* Nobody waits: who uses more than an equal part goes on doing so. */
static void test_who_does_not_wait_is_not_held(void **state)
{
	static const enum need needs[] = { ENOUGH, ENOUGH };
	static const uint64_t used[] = { 700, 50 };
	struct link_rate_part parts[2];

	(void)state;
	divide(parts, 2, needs, used);
	assert_int_equal(parts[0].bytes_per_s, 1000);
	assert_in_range(parts[1].bytes_per_s, 100, 500);
}

/* Who has more than the others leave enough for: step by step. */
static void test_enough_is_found_one_after_the_other(void **state)
{
	static const enum need needs[] = { ENOUGH, ENOUGH, ENOUGH, MORE };
	static const uint64_t used[] = { 300, 260, 10, 200 };
	struct link_rate_part parts[4];

	(void)state;
	divide(parts, 4, needs, used);
	assert_int_equal(parts[3].bytes_per_s, 430);
	assert_in_range(parts[0].bytes_per_s, 301, 430);
}

/* One that has used all, as it was alone, leaves the next an equal part, whether it waits or not.
 */
static void test_nobody_is_starved(void **state)
{
	static const enum need wants[] = { ENOUGH, MORE, IDLE };
	static const uint64_t used[] = { 990, 10, 0 };

	(void)state;
	for (unsigned int i = 0; i < 2; i++) {
		const enum need needs[] = { wants[i], MORE };
		struct link_rate_part parts[2];

		divide(parts, 2, needs, used);
		assert_int_equal(parts[0].bytes_per_s, 500);
		assert_int_equal(parts[1].bytes_per_s, 500);
	}
}

/* All the rate that there is, of every mixture; and no part is "unlimited". */
static void test_all_is_divided(void **state)
{
	uint64_t seed = 3;

	(void)state;
	for (unsigned int round = 0; round < 100000; round++) {
		struct link_rate_part parts[PARTS_MAX];
		enum need needs[PARTS_MAX];
		uint64_t used[PARTS_MAX], charged = 0, n = 1 + random_below(&seed, PARTS_MAX);
		bool waits = false;

		for (size_t i = 0; i < n; i++) {
			needs[i] = (enum need)random_below(&seed, 3);
			used[i] = needs[i] == IDLE ? 0 : random_below(&seed, 1200);
		}
		divide(parts, n, needs, used);
		for (size_t i = 0; i < n; i++) {
			bool enough = needs[i] == ENOUGH && used[i] < parts[i].bytes_per_s;

			assert_in_range(parts[i].bytes_per_s, 1, 1000);
			waits |= needs[i] == MORE;
			charged += needs[i] == IDLE ? 0 : enough ? used[i] : parts[i].bytes_per_s;
		}
		assert_in_range(charged, waits ? 1000 - n : 0, 1000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_full_link_has_no_queue),
		cmocka_unit_test(test_it_takes_little_time),
		cmocka_unit_test(test_a_stranger_comes_and_goes),
		cmocka_unit_test(test_a_crowd_starves_nobody),
		cmocka_unit_test(test_late_cpus_are_no_queue),
		cmocka_unit_test(test_a_link_that_stands_still_now_and_then),
		cmocka_unit_test(test_a_slow_receiver_is_no_queue),
		cmocka_unit_test(test_a_link_changes_its_rate),
		cmocka_unit_test(test_pauses),
		cmocka_unit_test(test_bursts),
		cmocka_unit_test(test_what_one_does_not_need_the_others_have),
		cmocka_unit_test(test_who_does_not_wait_is_not_held),
		cmocka_unit_test(test_enough_is_found_one_after_the_other),
		cmocka_unit_test(test_nobody_is_starved),
		cmocka_unit_test(test_all_is_divided),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
