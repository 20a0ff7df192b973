/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "stream/scheduler.h"

#include "support.h"

/* Words to each side of a fault that are asked for first. */
#define AROUND 8
/* Of a word whose first unit faulted: that is asked for already. */
#define BUT_FIRST (~1ull)

struct fixture {
	struct region_table table;
	struct page_state *ps;
	struct scheduler *s;
};

static void start(struct fixture *f, const uint64_t *units, size_t n)
{
	struct error err = ERROR_INIT;

	memset(f, 0, sizeof *f);
	for (size_t i = 0; i < n; i++) {
		struct region r = {
			.memory = POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 30,
			.size = units[i] * UNIT_BYTES,
			.page_size = UNIT_BYTES,
		};

		assert_int_equal(region_table_add(&f->table, &r, &err), 0);
	}
	assert_int_equal(page_state_new(&f->table, &f->ps, &err), 0);
	assert_int_equal(scheduler_new(&f->table, f->ps, &f->s, &err), 0);
}

static void finish(struct fixture *f)
{
	assert_null(scheduler_free(f->s));
	page_state_free(f->ps);
}

static void one_region(struct fixture *f, uint64_t words)
{
	start(f, (const uint64_t[]){ words * WORD_UNITS }, 1);
}

static void expect(struct fixture *f, uint32_t region, uint64_t word, uint64_t mask,
                   enum scheduler_reason why)
{
	struct scheduler_item item;

	assert_true(scheduler_next(f->s, &item));
	if (item.region != region || item.word != word)
		fail_msg("region %u, word %llu where %u, %llu was due", item.region,
		         (unsigned long long)item.word, region, (unsigned long long)word);
	assert_true(item.want_mask == mask);
	assert_int_equal(item.why, why);
	assert_true(scheduler_is_asked(f->s, region, word));
}

/* Of nobody's: each fault is looked at for itself. */
static void note_fault(struct scheduler *s, uint32_t region, uint64_t word)
{
	static uint32_t who;

	scheduler_note_fault(s, region, word * WORD_UNITS, ++who);
}

static void expect_nothing(struct fixture *f)
{
	struct scheduler_item item;

	assert_false(scheduler_next(f->s, &item));
}

static void test_without_faults_it_goes_from_bottom_to_top(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, (const uint64_t[]){ 3 * WORD_UNITS, 1, WORD_UNITS + 5 }, 3);
	for (uint64_t word = 0; word < 3; word++)
		expect(&f, 0, word, UINT64_MAX, SCHEDULER_LINEAR);
	expect(&f, 1, 0, 1, SCHEDULER_LINEAR);
	expect(&f, 2, 0, UINT64_MAX, SCHEDULER_LINEAR);
	expect(&f, 2, 1, 0x1f, SCHEDULER_LINEAR);
	expect_nothing(&f);
	expect_nothing(&f);
	finish(&f);
}

static void test_claimed_units_are_not_asked_for(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 3);
	page_state_claim(f.ps, 0, 0, 0xff);
	page_state_claim(f.ps, 0, 1, UINT64_MAX);
	expect(&f, 0, 0, ~0xffull, SCHEDULER_LINEAR);
	expect(&f, 0, 2, UINT64_MAX, SCHEDULER_LINEAR);
	expect_nothing(&f);
	finish(&f);
}

static void test_given_back_it_comes_again_and_done_it_does_not(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 2);
	assert_true(scheduler_next(f.s, &item));
	expect(&f, 0, 1, UINT64_MAX, SCHEDULER_LINEAR);
	expect_nothing(&f);
	page_state_claim(f.ps, 0, 0, 1);
	scheduler_give_back(f.s, &item);
	assert_false(scheduler_is_asked(f.s, 0, 0));
	assert_true(scheduler_is_asked(f.s, 0, 1));
	/* Without what somebody else has brought meanwhile. */
	expect(&f, 0, 0, ~1ull, SCHEDULER_LINEAR);
	page_state_claim(f.ps, 0, 0, UINT64_MAX);
	scheduler_done(f.s, &item);
	assert_false(scheduler_is_asked(f.s, 0, 0));
	expect_nothing(&f);
	finish(&f);
}

static void test_a_prefetched_word_given_back_comes_again(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 1);
	note_fault(f.s, 0, 0);
	assert_true(scheduler_next(f.s, &item));
	assert_int_equal(item.why, SCHEDULER_AROUND);
	expect_nothing(&f);
	scheduler_give_back(f.s, &item);
	expect(&f, 0, 0, UINT64_MAX, SCHEDULER_LINEAR);
	expect_nothing(&f);
	finish(&f);
}

/* The fault's word, then one above, one below, two above... */
static void test_a_fault_steers_to_both_sides(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 100);
	expect(&f, 0, 0, UINT64_MAX, SCHEDULER_LINEAR);
	note_fault(f.s, 0, 50);
	expect(&f, 0, 50, BUT_FIRST, SCHEDULER_AROUND);
	for (uint64_t d = 1; d <= AROUND; d++) {
		expect(&f, 0, 50 + d, UINT64_MAX, SCHEDULER_AROUND);
		expect(&f, 0, 50 - d, UINT64_MAX, SCHEDULER_AROUND);
	}
	for (uint64_t word = 1; word < 50 - AROUND; word++)
		expect(&f, 0, word, UINT64_MAX, SCHEDULER_LINEAR);
	/* Nothing twice. */
	expect(&f, 0, 51 + AROUND, UINT64_MAX, SCHEDULER_LINEAR);
	finish(&f);
}

static void test_neighbours_end_with_the_region(void **state)
{
	struct fixture f;

	(void)state;
	start(&f, (const uint64_t[]){ 4 * WORD_UNITS, 2 * WORD_UNITS + 5, 4 * WORD_UNITS }, 3);
	note_fault(f.s, 1, 0);
	expect(&f, 1, 0, BUT_FIRST, SCHEDULER_AROUND);
	expect(&f, 1, 1, UINT64_MAX, SCHEDULER_AROUND);
	expect(&f, 1, 2, 0x1f, SCHEDULER_AROUND);
	/* The bubble is over: not into the regions to its sides. */
	expect(&f, 0, 0, UINT64_MAX, SCHEDULER_LINEAR);
	note_fault(f.s, 2, 3);
	expect(&f, 2, 3, BUT_FIRST, SCHEDULER_AROUND);
	expect(&f, 2, 2, UINT64_MAX, SCHEDULER_AROUND);
	expect(&f, 2, 1, UINT64_MAX, SCHEDULER_AROUND);
	expect(&f, 2, 0, UINT64_MAX, SCHEDULER_AROUND);
	expect(&f, 0, 1, UINT64_MAX, SCHEDULER_LINEAR);
	finish(&f);
}

static void test_the_newest_fault_goes_first_and_older_ones_follow(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 1000);
	note_fault(f.s, 0, 100);
	note_fault(f.s, 0, 300);
	note_fault(f.s, 0, 500);
	for (uint64_t i = 0; i < 3; i++) {
		uint64_t center = 500 - 200 * i;

		expect(&f, 0, center, BUT_FIRST, SCHEDULER_AROUND);
		for (uint64_t d = 1; d <= AROUND; d++) {
			expect(&f, 0, center + d, UINT64_MAX, SCHEDULER_AROUND);
			expect(&f, 0, center - d, UINT64_MAX, SCHEDULER_AROUND);
		}
	}
	expect(&f, 0, 0, UINT64_MAX, SCHEDULER_LINEAR);
	finish(&f);
}

/* A new fault goes before what is left of the bubble around an older one, which is not forgotten.
 */
static void test_a_fault_interrupts_the_bubble_of_another(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 1000);
	note_fault(f.s, 0, 100);
	note_fault(f.s, 0, 300);
	expect(&f, 0, 300, BUT_FIRST, SCHEDULER_AROUND);
	note_fault(f.s, 0, 500);
	expect(&f, 0, 500, BUT_FIRST, SCHEDULER_AROUND);
	for (uint64_t center = 500; center <= 500; center -= 200) {
		if (center == 100)
			expect(&f, 0, center, BUT_FIRST, SCHEDULER_AROUND);
		for (uint64_t d = 1; d <= AROUND; d++) {
			expect(&f, 0, center + d, UINT64_MAX, SCHEDULER_AROUND);
			expect(&f, 0, center - d, UINT64_MAX, SCHEDULER_AROUND);
		}
	}
	expect(&f, 0, 0, UINT64_MAX, SCHEDULER_LINEAR);
	finish(&f);
}

static void test_without_prefetch_faults_do_not_steer(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 100);
	scheduler_set_prefetch(f.s, false);
	note_fault(f.s, 0, 50);
	for (uint64_t word = 0; word < 60; word++)
		expect(&f, 0, word, UINT64_MAX, SCHEDULER_LINEAR);
	scheduler_set_prefetch(f.s, true);
	note_fault(f.s, 0, 90);
	expect(&f, 0, 90, BUT_FIRST, SCHEDULER_AROUND);
	finish(&f);
}

static void test_what_is_named_goes_before_all(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 100);
	note_fault(f.s, 0, 50);
	scheduler_add_hot(f.s, 0, 20 * WORD_UNITS + 60, WORD_UNITS);
	scheduler_add_hot(f.s, 0, 7, 2);
	expect(&f, 0, 20, 0xfull << 60, SCHEDULER_HOT);
	expect(&f, 0, 21, (1ull << 60) - 1, SCHEDULER_HOT);
	expect(&f, 0, 0, 3ull << 7, SCHEDULER_HOT);
	expect(&f, 0, 50, BUT_FIRST, SCHEDULER_AROUND);
	finish(&f);
}

/* It came ahead in a round, and was written again: it is what the guest needs first still. */
static void test_what_is_named_goes_before_all_once_more(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 10);
	scheduler_add_hot(f.s, 0, 7, 2);
	scheduler_go_round(f.s);
	page_state_note_written(f.ps, 0, 0, UINT64_MAX);
	assert_true(scheduler_next(f.s, &item) && item.why == SCHEDULER_HOT);
	page_state_claim(f.ps, 0, 0, item.want_mask);
	page_state_publish(f.ps, 0, 0, item.want_mask);
	assert_true(scheduler_done(f.s, &item));
	scheduler_hold(f.s);
	page_state_renew(f.ps, 0, 0, 3ull << 7);
	scheduler_go(f.s);
	expect(&f, 0, 0, 3ull << 7, SCHEDULER_HOT);
	finish(&f);
}

/* Of a word only some units were asked for: the rest comes, too, though linear has passed it. */
static void test_the_rest_of_a_word_comes_later(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 2);
	scheduler_add_hot(f.s, 0, 3, 1);
	assert_true(scheduler_next(f.s, &item));
	assert_true(item.want_mask == 1ull << 3);
	expect(&f, 0, 1, UINT64_MAX, SCHEDULER_LINEAR);
	expect_nothing(&f);
	assert_false(scheduler_is_over(f.s));
	page_state_claim(f.ps, 0, 0, 1ull << 3);
	assert_true(scheduler_done(f.s, &item));
	expect(&f, 0, 0, ~(1ull << 3), SCHEDULER_LINEAR);
	expect_nothing(&f);
	finish(&f);
}

static void fault_at(struct fixture *f, uint64_t unit)
{
	scheduler_note_fault(f->s, 0, unit, 7);
}

/* Three at the same distance, with another between: along it. */
static void test_a_stride_is_gone_along(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 1000);
	fault_at(&f, 1000);
	fault_at(&f, 1200);
	fault_at(&f, 50000);
	fault_at(&f, 1400);
	for (uint64_t unit = 1600; unit < 1400 + 33 * 200; unit += 200)
		expect(&f, 0, unit / WORD_UNITS, UINT64_MAX, SCHEDULER_STRIDE);
	/* What has come in time has raised no fault: the next is some strides on. */
	fault_at(&f, 1400 + 33 * 200);
	for (uint64_t unit = 1400 + 34 * 200; unit < 1400 + 98 * 200; unit += 200)
		expect(&f, 0, unit / WORD_UNITS, UINT64_MAX, SCHEDULER_STRIDE);
	expect(&f, 0, 50000 / WORD_UNITS, ~(1ull << 50000 % WORD_UNITS), SCHEDULER_AROUND);
	finish(&f);
}

/* A sequence goes to one side only. */
static void test_a_sequence_is_gone_along_by_words(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 1000);
	for (uint64_t unit = 500 * WORD_UNITS + 12; unit > 500 * WORD_UNITS + 9; unit--)
		fault_at(&f, unit);
	expect(&f, 0, 500, ~(1ull << 10), SCHEDULER_STRIDE);
	for (uint64_t word = 499; word >= 500 - 2 * AROUND; word--)
		expect(&f, 0, word, UINT64_MAX, SCHEDULER_STRIDE);
	expect(&f, 0, 501, UINT64_MAX, SCHEDULER_AROUND);
	finish(&f);
}

/* Another thread's faults in between do not matter; other distances are none. */
static void test_each_thread_has_its_own_stride(void **state)
{
	struct fixture f;

	(void)state;
	one_region(&f, 1000);
	for (uint64_t i = 0; i < 3; i++) {
		scheduler_note_fault(f.s, 0, 10000 + i * 500, 1);
		scheduler_note_fault(f.s, 0, 60000 - i * 300, 2);
	}
	expect(&f, 0, (60000 - 900) / WORD_UNITS, UINT64_MAX, SCHEDULER_STRIDE);
	fault_at(&f, 30000);
	fault_at(&f, 30500);
	fault_at(&f, 31600);
	expect(&f, 0, 31600 / WORD_UNITS, ~(1ull << 31600 % WORD_UNITS), SCHEDULER_AROUND);
	finish(&f);
}

/* All is copied, then some is written: what was written in both rounds comes first. */
static void test_what_was_written_lately_goes_first(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 10);
	scheduler_go_round(f.s);
	for (uint64_t word = 0; word < 10; word++)
		page_state_note_written(f.ps, 0, word, UINT64_MAX);
	while (scheduler_next(f.s, &item)) {
		page_state_claim(f.ps, 0, item.word, item.want_mask);
		page_state_publish(f.ps, 0, item.word, item.want_mask);
		scheduler_done(f.s, &item);
	}
	assert_true(scheduler_is_over(f.s));
	scheduler_hold(f.s);
	page_state_renew(f.ps, 0, 8, 0xff);
	page_state_renew(f.ps, 0, 3, 0xf0);
	/* In a round what will be written again has time. */
	scheduler_go_round(f.s);
	expect(&f, 0, 3, 0xf0, SCHEDULER_LINEAR);
	expect(&f, 0, 8, 0xff, SCHEDULER_LINEAR);
	for (uint64_t word = 3; word <= 8; word += 5) {
		page_state_claim(f.ps, 0, word, 0xff);
		item = (struct scheduler_item){ .word = word };
		scheduler_done(f.s, &item);
	}
	scheduler_hold(f.s);
	page_state_renew(f.ps, 0, 1, 0x1);
	page_state_renew(f.ps, 0, 5, ~0xffffull);
	page_state_renew(f.ps, 0, 8, 0x3f0);
	scheduler_go(f.s);
	expect(&f, 0, 8, 0xf0, SCHEDULER_RECENT);
	expect(&f, 0, 5, ~0xffffull, SCHEDULER_RECENT);
	expect(&f, 0, 1, 0x1, SCHEDULER_LINEAR);
	finish(&f);
}

/* Held and renewed amid a round: what it has passed is the next one's, what lies ahead is not. */
static void test_a_round_goes_on_where_it_was_held(void **state)
{
	struct scheduler_item item;
	struct fixture f;

	(void)state;
	one_region(&f, 3);
	scheduler_go_round(f.s);
	assert_true(scheduler_next(f.s, &item) && item.word == 0);
	page_state_note_written(f.ps, 0, 0, UINT64_MAX);
	page_state_claim(f.ps, 0, 0, UINT64_MAX);
	page_state_publish(f.ps, 0, 0, UINT64_MAX);
	scheduler_done(f.s, &item);
	scheduler_hold(f.s);
	page_state_renew(f.ps, 0, 0, 0xff);
	scheduler_go_on(f.s);
	for (uint64_t word = 1; word < 3; word++) {
		assert_true(scheduler_next(f.s, &item) && item.word == word);
		page_state_claim(f.ps, 0, word, UINT64_MAX);
		scheduler_done(f.s, &item);
	}
	expect_nothing(&f);
	assert_true(scheduler_is_over(f.s));
	scheduler_hold(f.s);
	scheduler_go_round(f.s);
	expect(&f, 0, 0, 0xff, SCHEDULER_LINEAR);
	finish(&f);
}

/* Between two generations nothing is asked for, and it shows when no answer is due any more. */
static void test_held_it_hands_out_nothing(void **state)
{
	struct scheduler_item first, second;
	struct fixture f;

	(void)state;
	one_region(&f, 3);
	assert_false(scheduler_is_over(f.s));
	assert_true(scheduler_next(f.s, &first) && scheduler_next(f.s, &second));
	scheduler_hold(f.s);
	assert_true(scheduler_is_held(f.s));
	expect_nothing(&f);
	assert_false(scheduler_is_idle(f.s));
	page_state_claim(f.ps, 0, 0, UINT64_MAX);
	scheduler_done(f.s, &first);
	assert_false(scheduler_is_idle(f.s));
	scheduler_give_back(f.s, &second);
	assert_true(scheduler_is_idle(f.s));
	note_fault(f.s, 0, 2);
	expect_nothing(&f);
	/* From the beginning, what is missing by now: the first word is again. */
	page_state_renew(f.ps, 0, 0, 0xf0);
	scheduler_set_prefetch(f.s, false);
	scheduler_go(f.s);
	expect(&f, 0, 0, 0xf0, SCHEDULER_LINEAR);
	expect(&f, 0, 1, UINT64_MAX, SCHEDULER_LINEAR);
	finish(&f);
}

static void test_it_is_over_when_all_is_answered(void **state)
{
	struct scheduler_item item[2];
	struct fixture f;

	(void)state;
	one_region(&f, 2);
	assert_true(scheduler_next(f.s, &item[0]) && scheduler_next(f.s, &item[1]));
	expect_nothing(&f);
	assert_false(scheduler_is_over(f.s));
	scheduler_done(f.s, &item[0]);
	assert_false(scheduler_is_over(f.s));
	scheduler_give_back(f.s, &item[1]);
	assert_false(scheduler_is_over(f.s));
	page_state_claim(f.ps, 0, 0, UINT64_MAX);
	page_state_claim(f.ps, 0, 1, UINT64_MAX);
	expect_nothing(&f);
	assert_true(scheduler_is_over(f.s));
	scheduler_go(f.s);
	assert_false(scheduler_is_over(f.s));
	finish(&f);
}

/* Many more faults than are remembered, and some that lie in what is there already. */
static void test_a_storm_of_faults_loses_no_word(void **state)
{
	enum { WORDS = 2000 };
	static uint64_t handed[WORDS];
	struct scheduler_item item;
	struct fixture f;
	uint64_t random = 3;

	(void)state;
	memset(handed, 0, sizeof handed);
	one_region(&f, WORDS);
	for (int i = 0; i < 5000; i++) {
		for (uint64_t n = random_below(&random, 100); n; n--)
			note_fault(f.s, 0, random_below(&random, WORDS));
		if (!scheduler_next(f.s, &item))
			break;
		assert_false(handed[item.word] & item.want_mask);
		handed[item.word] |= item.want_mask;
		/* The rest stays asked for: no unit of the word may come again. */
		if (random_below(&random, 2) || item.some) {
			page_state_claim(f.ps, 0, item.word, item.want_mask);
			scheduler_done(f.s, &item);
		}
	}
	for (int i = 0; i < WORDS; i++)
		assert_true(handed[i] == UINT64_MAX);
	finish(&f);
}

#define TAKERS 4
#define TAKER_WORDS 4000u

struct shared {
	struct fixture f;
	/* How many hold a word at the moment. */
	_Atomic uint8_t held[TAKER_WORDS];
	_Atomic unsigned int wrong;
	_Atomic unsigned int takers;
};

struct taker {
	pthread_t thread;
	struct shared *sh;
	uint64_t random;
};

static void take_one(struct taker *t, const struct scheduler_item *item)
{
	struct shared *sh = t->sh;

	if (atomic_fetch_add(&sh->held[item->word], 1))
		atomic_fetch_add(&sh->wrong, 1);
	if (random_below(&t->random, 4)) {
		if (page_state_claim(sh->f.ps, 0, item->word, item->want_mask) != item->want_mask)
			atomic_fetch_add(&sh->wrong, 1);
		atomic_fetch_sub(&sh->held[item->word], 1);
		scheduler_done(sh->f.s, item);
	} else {
		atomic_fetch_sub(&sh->held[item->word], 1);
		scheduler_give_back(sh->f.s, item);
	}
}

static void *taker_main(void *arg)
{
	struct taker *t = arg;
	struct scheduler_item item;

	while (scheduler_next(t->sh->f.s, &item))
		take_one(t, &item);
	atomic_fetch_sub(&t->sh->takers, 1);
	return NULL;
}

static void test_threads_never_hold_the_same_word(void **state)
{
	struct shared *sh = calloc(1, sizeof *sh);
	struct taker takers[TAKERS];
	struct taker last = { .sh = sh, .random = 99 };
	struct scheduler_item item;
	uint64_t random = 5;

	(void)state;
	one_region(&sh->f, TAKER_WORDS);
	atomic_store(&sh->takers, TAKERS);
	for (unsigned int i = 0; i < TAKERS; i++) {
		takers[i] = (struct taker){ .sh = sh, .random = i };
		assert_int_equal(pthread_create(&takers[i].thread, NULL, taker_main, &takers[i]),
		                 0);
	}
	/* This thread is the one that faults. */
	while (atomic_load(&sh->takers))
		note_fault(sh->f.s, 0, random_below(&random, TAKER_WORDS));
	for (int i = 0; i < TAKERS; i++)
		pthread_join(takers[i].thread, NULL);
	/* One may have given back what all others had passed and left. */
	while (scheduler_next(sh->f.s, &item))
		take_one(&last, &item);
	assert_int_equal(atomic_load(&sh->wrong), 0);
	for (unsigned int i = 0; i < TAKER_WORDS; i++)
		assert_true(page_state_claimed(sh->f.ps, 0, i) == UINT64_MAX);
	finish(&sh->f);
	free(sh);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_faults_it_goes_from_bottom_to_top),
		cmocka_unit_test(test_claimed_units_are_not_asked_for),
		cmocka_unit_test(test_given_back_it_comes_again_and_done_it_does_not),
		cmocka_unit_test(test_a_prefetched_word_given_back_comes_again),
		cmocka_unit_test(test_a_fault_steers_to_both_sides),
		cmocka_unit_test(test_neighbours_end_with_the_region),
		cmocka_unit_test(test_the_newest_fault_goes_first_and_older_ones_follow),
		cmocka_unit_test(test_a_fault_interrupts_the_bubble_of_another),
		cmocka_unit_test(test_without_prefetch_faults_do_not_steer),
		cmocka_unit_test(test_what_is_named_goes_before_all),
		cmocka_unit_test(test_what_is_named_goes_before_all_once_more),
		cmocka_unit_test(test_the_rest_of_a_word_comes_later),
		cmocka_unit_test(test_a_stride_is_gone_along),
		cmocka_unit_test(test_a_sequence_is_gone_along_by_words),
		cmocka_unit_test(test_each_thread_has_its_own_stride),
		cmocka_unit_test(test_what_was_written_lately_goes_first),
		cmocka_unit_test(test_a_round_goes_on_where_it_was_held),
		cmocka_unit_test(test_held_it_hands_out_nothing),
		cmocka_unit_test(test_it_is_over_when_all_is_answered),
		cmocka_unit_test(test_a_storm_of_faults_loses_no_word),
		cmocka_unit_test(test_threads_never_hold_the_same_word),
	};

	return cmocka_run_group_tests_name("scheduler", tests, NULL, NULL);
}
