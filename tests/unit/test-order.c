/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the order in which bulk asks is worth: a guest's accesses, simulated against a link, with
 * the scheduler as it is.
 *
 * The link carries one page after the other, and each answer is half a round trip away from it; a
 * fault's page goes before all that bulk waits for. Bulk has some requests in flight, as a pull
 * has. Time is counted, and not measured: the same each time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "stream/scheduler.h"

#include "support.h"

#define WORDS 1024u /* 256 MiB */
#define UNITS (WORDS * WORD_UNITS)
#define IN_FLIGHT 16u /* requests: two connections */
#define PAGE_NS 3300u /* on the link: 10 Gbit/s */
#define ROUND_TRIP_NS 200000u
#define THINK_NS 20000u /* between two accesses */
#define THREADS_MAX 2u

struct asked {
	struct scheduler_item item;
	uint64_t done_ns;
};

struct sim {
	struct region_table table;
	struct page_state *ps;
	struct scheduler *s;
	struct asked asked[IN_FLIGHT]; /* ring, oldest at head */
	unsigned int head, n;
	uint64_t link_free_ns;
	uint64_t random;
	uint64_t next[THREADS_MAX]; /* page of each thread */
	/* What came of it. */
	uint64_t touches; /* of pages that were missing at first, or are still */
	uint64_t faults;
};

static void start(struct sim *sim, bool order)
{
	struct region r = { .memory = POSTCOPY_MEMORY_MEMFD,
		            .size = (uint64_t)UNITS * UNIT_BYTES,
		            .page_size = UNIT_BYTES };
	struct error err = ERROR_INIT;

	memset(sim, 0, sizeof *sim);
	sim->random = 7;
	assert_int_equal(region_table_add(&sim->table, &r, &err), 0);
	assert_int_equal(page_state_new(&sim->table, &sim->ps, &err), 0);
	assert_int_equal(scheduler_new(&sim->table, sim->ps, &sim->s, &err), 0);
	scheduler_set_prefetch(sim->s, order);
}

static void stop(struct sim *sim)
{
	scheduler_free(sim->s);
	page_state_free(sim->ps);
}

static void fill(struct sim *sim, uint64_t word, uint64_t mask)
{
	page_state_claim(sim->ps, 0, word, mask);
	page_state_publish(sim->ps, 0, word, mask);
}

/* Ask as far as the window goes. */
static void ask(struct sim *sim, uint64_t now_ns)
{
	while (sim->n < IN_FLIGHT) {
		struct asked *a = &sim->asked[(sim->head + sim->n) % IN_FLIGHT];
		uint64_t begin_ns = now_ns + ROUND_TRIP_NS;

		if (!scheduler_next(sim->s, &a->item))
			return;
		if (begin_ns < sim->link_free_ns)
			begin_ns = sim->link_free_ns;
		sim->link_free_ns = a->done_ns =
		        begin_ns + PAGE_NS * (uint64_t)__builtin_popcountll(a->item.want_mask);
		sim->n++;
	}
}

/* All that bulk has brought by now, or the oldest of it. */
static void bring(struct sim *sim, uint64_t now_ns)
{
	ask(sim, now_ns);
	while (sim->n && sim->asked[sim->head].done_ns <= now_ns) {
		struct asked *a = &sim->asked[sim->head];
		uint64_t at_ns = a->done_ns;

		fill(sim, a->item.word, a->item.want_mask);
		scheduler_done(sim->s, &a->item);
		sim->head = (sim->head + 1) % IN_FLIGHT;
		sim->n--;
		ask(sim, at_ns);
	}
}

static bool is_present(const struct sim *sim, uint64_t unit)
{
	return page_state_present(sim->ps, 0, unit / WORD_UNITS) >> unit % WORD_UNITS & 1;
}

/* A fault: it passes what bulk waits for, and holds it up by its own page. Return: until when. */
static uint64_t fault(struct sim *sim, uint64_t unit, uint32_t who, uint64_t now_ns)
{
	uint64_t done_ns = now_ns + ROUND_TRIP_NS + PAGE_NS;

	sim->faults++;
	scheduler_note_fault(sim->s, 0, unit, who);
	for (unsigned int i = 0; i < sim->n; i++)
		sim->asked[(sim->head + i) % IN_FLIGHT].done_ns += PAGE_NS;
	sim->link_free_ns += PAGE_NS;
	bring(sim, done_ns);
	fill(sim, unit / WORD_UNITS, 1ull << unit % WORD_UNITS);
	return done_ns;
}

typedef uint64_t pattern(struct sim *sim, unsigned int thread);

/*
 * The guest runs until all is there. What counts are accesses of pages that had to come, each the
 * first of its page. Return: how many of them had to wait, of 1000.
 */
static unsigned int run(struct sim *sim, pattern *next, unsigned int threads)
{
	static bool counted[UNITS];
	uint64_t now_ns = 0;

	for (uint64_t i = 0; i < UNITS; i++)
		counted[i] = is_present(sim, i);
	while (page_state_missing(sim->ps)) {
		for (unsigned int i = 0; i < threads; i++) {
			uint64_t unit = next(sim, i);

			now_ns += THINK_NS / threads;
			bring(sim, now_ns);
			sim->touches += !counted[unit];
			counted[unit] = true;
			if (!is_present(sim, unit))
				now_ns = fault(sim, unit, i + 1, now_ns);
		}
	}
	return (unsigned int)(sim->faults * 1000 / sim->touches);
}

/* @order 0: in the order of addresses. */
static unsigned int cold(pattern *next, unsigned int threads, bool order)
{
	struct sim *sim = calloc(1, sizeof *sim);
	unsigned int share;

	start(sim, order);
	sim->next[0] = UNITS / 3;
	sim->next[1] = UNITS - UNITS / 3;
	scheduler_go(sim->s);
	share = run(sim, next, threads);
	stop(sim);
	free(sim);
	return share;
}

static uint64_t upward(struct sim *sim, unsigned int thread)
{
	return sim->next[thread]++ % UNITS;
}

static uint64_t downward(struct sim *sim, unsigned int thread)
{
	return sim->next[thread]-- % UNITS;
}

#define ROW 256u

static uint64_t by_columns(struct sim *sim, unsigned int thread)
{
	uint64_t unit = sim->next[thread];

	sim->next[thread] = unit + ROW < UNITS ? unit + ROW : (unit + 1) % ROW;
	return unit;
}

/* A table that is looked at before each access of a matrix: another sequence in between. */
static uint64_t by_columns_with_a_table(struct sim *sim, unsigned int thread)
{
	static uint64_t turn;

	if (turn++ % 2)
		return by_columns(sim, thread);
	return (turn * 7919 / 64) % (UNITS / 16);
}

static uint64_t around_two_places(struct sim *sim, unsigned int thread)
{
	uint64_t center = thread ? UNITS / 2 : UNITS - UNITS / 4;

	return center + random_below(&sim->random, 16 * WORD_UNITS);
}

static uint64_t anywhere(struct sim *sim, unsigned int thread)
{
	(void)thread;
	return random_below(&sim->random, UNITS);
}

static void compare(const char *what, unsigned int with, unsigned int without)
{
	print_message("%-28s %4u of 1000 first touches wait, %4u without the order: %.2f\n", what,
	              with, without, (double)with / (without ? without : 1));
}

static void test_a_sequence_waits_seldom(void **state)
{
	unsigned int up = cold(upward, 1, true), down = cold(downward, 1, true);
	unsigned int up_off = cold(upward, 1, false), down_off = cold(downward, 1, false);

	(void)state;
	compare("upward", up, up_off);
	compare("downward", down, down_off);
	assert_true(up * 2 < up_off);
	assert_true(down * 2 < down_off);
}

static void test_a_stride_waits_seldom(void **state)
{
	unsigned int one = cold(by_columns, 1, true), off = cold(by_columns, 1, false);
	unsigned int two = cold(by_columns, 2, true), two_off = cold(by_columns, 2, false);
	unsigned int table = cold(by_columns_with_a_table, 1, true);
	unsigned int table_off = cold(by_columns_with_a_table, 1, false);

	(void)state;
	compare("by columns", one, off);
	compare("by columns, two threads", two, two_off);
	compare("by columns, with a table", table, table_off);
	assert_true(one * 2 < off);
	assert_true(two * 2 < two_off);
	assert_true(table * 3 < table_off * 2);
}

static void test_neighbours_of_faults_wait_seldom(void **state)
{
	unsigned int with = cold(around_two_places, 2, true);
	unsigned int without = cold(around_two_places, 2, false);

	(void)state;
	compare("around two places", with, without);
	assert_true(with * 2 < without);
}

/* Where there is nothing to find, nothing is lost by looking. */
static void test_chance_costs_nothing(void **state)
{
	unsigned int with = cold(anywhere, 2, true), without = cold(anywhere, 2, false);

	(void)state;
	compare("anywhere", with, without);
	assert_true(with <= without + without / 10);
}

/* One in so many pages is hot, in runs: it lies in every word. */
#define HOT_RUN 16u
#define HOT_EVERY 5u

static bool is_hot(uint64_t unit)
{
	return unit / HOT_RUN % HOT_EVERY == HOT_EVERY / 2;
}

static uint64_t hot_and_cold(struct sim *sim, unsigned int thread)
{
	bool hot = random_below(&sim->random, 100) < 80;
	uint64_t unit;

	(void)thread;
	do
		unit = random_below(&sim->random, UNITS);
	while (is_hot(unit) != hot);
	return unit;
}

/* A generation ends: all that is hot was written, and some of the rest. */
static void write_some(struct sim *sim)
{
	for (uint64_t unit = 0; unit < UNITS; unit++)
		if (is_hot(unit) || !random_below(&sim->random, 5))
			page_state_renew(sim->ps, 0, unit / WORD_UNITS, 1ull << unit % WORD_UNITS);
}

static void copy_all(struct sim *sim)
{
	for (uint64_t word = 0; word < WORDS; word++) {
		page_state_note_written(sim->ps, 0, word, UINT64_MAX);
		fill(sim, word, UINT64_MAX);
	}
}

/* Two rounds, then the guest moves. */
static unsigned int warm(bool order)
{
	struct sim *sim = calloc(1, sizeof *sim);
	unsigned int share;

	start(sim, order);
	for (int round = 0; round < 2; round++) {
		scheduler_go_round(sim->s);
		copy_all(sim);
		scheduler_hold(sim->s);
		write_some(sim);
	}
	scheduler_go(sim->s);
	share = run(sim, hot_and_cold, 1);
	stop(sim);
	free(sim);
	return share;
}

static void test_what_is_written_again_and_again_waits_seldom(void **state)
{
	unsigned int with = warm(true), without = warm(false);

	(void)state;
	compare("hot and cold, two rounds", with, without);
	assert_true(with * 3 < without * 2);
}

/* A guest of which its VMM has named a part, where it begins. */
static uint64_t in_a_named_part(struct sim *sim, unsigned int thread)
{
	(void)thread;
	return UNITS / 2 + random_below(&sim->random, UNITS / 16);
}

static unsigned int named(bool order)
{
	struct sim *sim = calloc(1, sizeof *sim);
	unsigned int share;

	start(sim, order);
	scheduler_add_hot(sim->s, 0, UNITS / 2, UNITS / 16);
	scheduler_go(sim->s);
	share = run(sim, in_a_named_part, 1);
	stop(sim);
	free(sim);
	return share;
}

static void test_what_is_named_waits_seldom(void **state)
{
	unsigned int with = named(true), without = named(false);

	(void)state;
	compare("in a named part", with, without);
	assert_true(with * 3 < without * 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_sequence_waits_seldom),
		cmocka_unit_test(test_a_stride_waits_seldom),
		cmocka_unit_test(test_neighbours_of_faults_wait_seldom),
		cmocka_unit_test(test_chance_costs_nothing),
		cmocka_unit_test(test_what_is_written_again_and_again_waits_seldom),
		cmocka_unit_test(test_what_is_named_waits_seldom),
	};

	return cmocka_run_group_tests_name("order", tests, NULL, NULL);
}
