/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/page_state.h"

#include "support.h"

#define SIZE_2M (2ull << 20)
#define MODEL_UNITS 1024u

/* What page_state should hold of one region, a byte a unit. */
struct model {
	uint8_t claimed[MODEL_UNITS];
	uint8_t present[MODEL_UNITS];
	uint8_t wanted[MODEL_UNITS];
};

static void add_region(struct region_table *table, enum postcopy_memory memory, uint64_t units)
{
	struct region r = {
		.memory = memory,
		.guest_phys_addr = (uint64_t)table->n << 30,
		.size = units * UNIT_BYTES,
		.page_size = memory == POSTCOPY_MEMORY_HUGETLB ? SIZE_2M : UNIT_BYTES,
	};
	struct error err = ERROR_INIT;

	if (region_table_add(table, &r, &err))
		fail_msg("%s", err.text);
}

static struct page_state *new_state(const struct region_table *table)
{
	struct error err = ERROR_INIT;
	struct page_state *ps;

	if (page_state_new(table, &ps, &err))
		fail_msg("%s", err.text);
	return ps;
}

static uint64_t word_of(const uint8_t *bits, uint64_t word, uint64_t units)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < WORD_UNITS && word * WORD_UNITS + i < units; i++)
		v |= (uint64_t)bits[word * WORD_UNITS + i] << i;
	return v;
}

static void set_word(uint8_t *bits, uint64_t word, uint64_t mask, uint8_t value)
{
	for (unsigned int i = 0; i < WORD_UNITS; i++)
		if (mask >> i & 1)
			bits[word * WORD_UNITS + i] = value;
}

static bool page_present(const struct model *m, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (!m->present[first + i])
			return false;
	return true;
}

static void check_all(const struct page_state *ps, const struct region_table *table,
                      const struct model *models)
{
	uint64_t missing = 0;

	for (uint32_t r = 0; r < table->n; r++) {
		uint64_t units = table->regions[r].units;

		for (uint64_t w = 0; w < table->regions[r].words; w++) {
			assert_true(page_state_claimed(ps, r, w) ==
			            word_of(models[r].claimed, w, units));
			assert_true(page_state_present(ps, r, w) ==
			            word_of(models[r].present, w, units));
			assert_true(page_state_wanted(ps, r, w) ==
			            word_of(models[r].wanted, w, units));
		}
		for (uint64_t i = 0; i < units; i++)
			missing += !models[r].present[i];
	}
	assert_int_equal(page_state_missing(ps), missing);
}

static void random_want(struct page_state *ps, const struct region *region, uint32_t index,
                        struct model *m, uint64_t *random)
{
	uint64_t n = region_units_per_page(region);
	uint64_t first = random_below(random, region->units / n) * n;
	bool whole = page_present(m, first, n);

	assert_int_equal(page_state_page_present(ps, index, first), whole);
	assert_int_equal(page_state_want(ps, index, first), whole);
	memset(m->wanted + first, 1, n);
}

/* One random step, done to both. */
static void random_step(struct page_state *ps, const struct region_table *table,
                        struct model *models, uint64_t *random)
{
	uint32_t r = (uint32_t)random_below(random, table->n);
	const struct region *region = &table->regions[r];
	struct model *m = &models[r];
	uint64_t word = random_below(random, region->words);
	uint64_t mask = random_next(random) & region_word_mask(region, word);
	uint64_t claimed = word_of(m->claimed, word, region->units);
	uint64_t mine = claimed & ~word_of(m->present, word, region->units);

	switch (random_below(random, 8)) {
	case 0:
	case 1:
	case 2:
		assert_true(page_state_claim(ps, r, word, mask) == (mask & ~claimed));
		set_word(m->claimed, word, mask, 1);
		break;
	case 3:
	case 4:
		assert_true(page_state_publish(ps, r, word, mask & mine) ==
		            (mask & mine & word_of(m->wanted, word, region->units)));
		set_word(m->present, word, mask & mine, 1);
		break;
	case 5:
		page_state_unclaim(ps, r, word, mask & mine);
		set_word(m->claimed, word, mask & mine, 0);
		break;
	default:
		/* Seldom, lest everything be wanted from the start. */
		if (!random_below(random, 16))
			random_want(ps, region, r, m, random);
		break;
	}
}

static void test_random_steps_agree_with_a_model(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct region_table table = { 0 };
		struct model *models = calloc(4, sizeof *models);
		struct page_state *ps;
		uint64_t random = seed;

		add_region(&table, POSTCOPY_MEMORY_MEMFD, 3 * WORD_UNITS + 5);
		add_region(&table, POSTCOPY_MEMORY_HUGETLB, 1024);
		add_region(&table, POSTCOPY_MEMORY_ANONYMOUS, 1);
		add_region(&table, POSTCOPY_MEMORY_GUEST_MEMFD, 2 * WORD_UNITS);
		ps = new_state(&table);
		for (int step = 0; step < 5000; step++) {
			random_step(ps, &table, models, &random);
			if (step % 500 == 0)
				check_all(ps, &table, models);
		}
		check_all(ps, &table, models);
		page_state_free(ps);
		free(models);
	}
}

static void test_a_new_state_misses_everything(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps;
	struct stat st;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	add_region(&table, POSTCOPY_MEMORY_HUGETLB, 512);
	ps = new_state(&table);
	assert_int_equal(page_state_missing(ps), 612);
	assert_false(page_state_page_present(ps, 0, 99));
	assert_false(page_state_page_present(ps, 1, 0));
	/* Whoever takes over finds it all in the memfd: a header, room for events, and
	 * 6 * (2 + 8) words. */
	assert_int_equal(fstat(page_state_fd(ps), &st), 0);
	assert_int_equal(st.st_size, 4096 + PAGE_STATE_ROOM_BYTES + 6 * 10 * 8);
	assert_null(page_state_free(ps));
	assert_null(page_state_free(NULL));
}

static void test_publishing_twice_counts_once(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, WORD_UNITS);
	ps = new_state(&table);
	assert_true(page_state_claim(ps, 0, 0, 0xff) == 0xff);
	page_state_publish(ps, 0, 0, 0x0f);
	page_state_publish(ps, 0, 0, 0xff);
	assert_int_equal(page_state_missing(ps), WORD_UNITS - 8);
	page_state_free(ps);
}

static void test_a_huge_page_is_present_with_its_last_unit_only(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_HUGETLB, 1024);
	ps = new_state(&table);
	assert_false(page_state_want(ps, 0, 512));
	for (uint64_t word = 8; word < 16; word++) {
		uint64_t last = word == 15 ? 1ull << 63 : 0;

		assert_true(page_state_claim(ps, 0, word, UINT64_MAX) == UINT64_MAX);
		/* All of its units are waited for, of the other page none. */
		assert_true(page_state_publish(ps, 0, word, ~last) == ~last);
		assert_true(page_state_claim(ps, 0, word - 8, 1) == 1);
		assert_true(page_state_publish(ps, 0, word - 8, 1) == 0);
	}
	assert_false(page_state_page_present(ps, 0, 512));
	page_state_publish(ps, 0, 15, 1ull << 63);
	assert_true(page_state_page_present(ps, 0, 512));
	assert_true(page_state_want(ps, 0, 512));
	assert_false(page_state_page_present(ps, 0, 0));
	page_state_free(ps);
}

/* Another process goes on: what was present is, what was only claimed is not. */
static void test_adopting_takes_over_what_is_present(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps, *heir;
	struct error err = ERROR_INIT;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	add_region(&table, POSTCOPY_MEMORY_HUGETLB, 512);
	ps = new_state(&table);
	page_state_claim(ps, 0, 1, 0xff);
	page_state_publish(ps, 0, 1, 0x0f);
	page_state_claim(ps, 1, 7, UINT64_MAX);
	page_state_publish(ps, 1, 7, 1ull << 63);
	page_state_want(ps, 0, 99);
	if (page_state_adopt(&table, page_state_fd(ps), &heir, &err))
		fail_msg("%s", err.text);
	page_state_free(ps);
	assert_int_equal(page_state_missing(heir), 612 - 5);
	assert_true(page_state_present(heir, 0, 1) == 0x0f);
	assert_true(page_state_claimed(heir, 0, 1) == 0x0f);
	assert_true(page_state_claim(heir, 0, 1, 0xff) == 0xf0);
	assert_true(page_state_claim(heir, 1, 7, UINT64_MAX) == UINT64_MAX >> 1);
	assert_true(page_state_wanted(heir, 0, 1) == 1ull << 35);
	page_state_free(heir);
}

/* While the guest runs at the source: what is written there again is missing again here. */
static void test_a_new_generation_is_missing_and_can_be_claimed(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps, *heir;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	ps = new_state(&table);
	page_state_claim(ps, 0, 0, 0xff);
	page_state_note_written(ps, 0, 0, 0xff);
	page_state_publish(ps, 0, 0, 0x7f);
	/* One that was present, one that was claimed only, one that was neither. */
	assert_true(page_state_renew(ps, 0, 0, 1u << 6 | 1u << 7 | 1u << 8) == 1u << 6);
	assert_int_equal(page_state_missing(ps), 100 - 6);
	assert_true(page_state_present(ps, 0, 0) == 0x3f);
	assert_true(page_state_claimed(ps, 0, 0) == 0x3f);
	assert_true(page_state_written(ps, 0, 0) == 0xff);
	assert_true(page_state_renew(ps, 0, 0, 1u << 6 | 1u << 7 | 1u << 8) == 0);
	assert_int_equal(page_state_missing(ps), 100 - 6);
	assert_true(page_state_claim(ps, 0, 0, 0xff) == 0xc0);
	/* Another process knows what is stale. */
	assert_int_equal(page_state_adopt(&table, page_state_fd(ps), &heir, NULL), 0);
	assert_true(page_state_written(heir, 0, 0) == 0xff);
	assert_true(page_state_present(heir, 0, 0) == 0x3f);
	assert_int_equal(page_state_missing(heir), 100 - 6);
	page_state_free(heir);
	page_state_free(ps);
}

/* Seen here it is the last, though the process that let it be seen has told nobody. */
static void test_what_may_have_been_seen_is_of_the_last_generation(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps, *heir;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	ps = new_state(&table);
	assert_false(page_state_is_visible(ps));
	page_state_claim(ps, 0, 0, 0xff);
	page_state_publish(ps, 0, 0, 0x7f);
	page_state_note_visible(ps);
	assert_int_equal(page_state_adopt(&table, page_state_fd(ps), &heir, NULL), 0);
	assert_true(page_state_is_visible(heir));
	assert_true(page_state_renew(heir, 0, 0, UINT64_MAX) == 0);
	assert_true(page_state_present(heir, 0, 0) == 0x7f);
	assert_true(page_state_claim(heir, 0, 0, 0xff) == 0x80);
	assert_int_equal(page_state_missing(heir), 100 - 7);
	page_state_free(heir);
	page_state_free(ps);
}

static void test_claims_without_content_are_dropped(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	add_region(&table, POSTCOPY_MEMORY_HUGETLB, 512);
	ps = new_state(&table);
	page_state_claim(ps, 0, 1, 0xff);
	page_state_publish(ps, 0, 1, 0x0f);
	page_state_claim(ps, 1, 7, UINT64_MAX);
	page_state_drop_claims(ps);
	assert_true(page_state_claimed(ps, 0, 1) == 0x0f);
	assert_true(page_state_claimed(ps, 1, 7) == 0);
	assert_int_equal(page_state_missing(ps), 612 - 4);
	page_state_free(ps);
}

/* A daemon is upgraded under a guest: its page state has one bitmap less. */
static void test_the_state_of_the_version_before_is_adopted(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps, *heir;
	struct stat st;
	int fd;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	ps = new_state(&table);
	page_state_claim(ps, 0, 1, 0xff);
	page_state_publish(ps, 0, 1, 0x0f);
	fd = page_state_fd(ps);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(fd, st.st_size - 2 * (off_t)sizeof(uint64_t)), 0);
	assert_int_equal(pwrite(fd, "pstcps04", 8, 0), 8);
	assert_int_equal(page_state_adopt(&table, fd, &heir, NULL), 0);
	assert_true(page_state_present(heir, 0, 1) == 0x0f);
	assert_true(page_state_written(heir, 0, 1) == 0);
	assert_int_equal(page_state_missing(heir), 100 - 4);
	page_state_free(heir);
	/* And once more, as what it is now. */
	assert_int_equal(page_state_adopt(&table, fd, &heir, NULL), 0);
	assert_true(page_state_present(heir, 0, 1) == 0x0f);
	page_state_free(heir);
	page_state_free(ps);
}

static void test_what_is_no_state_of_this_guest_is_not_adopted(void **state)
{
	struct region_table table = { 0 }, larger = { 0 }, other = { 0 };
	struct page_state *ps, *heir = NULL;
	struct error err = ERROR_INIT;
	int fd;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	add_region(&larger, POSTCOPY_MEMORY_MEMFD, 200);
	add_region(&other, POSTCOPY_MEMORY_MEMFD, 101);
	ps = new_state(&table);
	fd = page_state_fd(ps);
	assert_int_equal(page_state_adopt(&larger, fd, &heir, &err), -EINVAL);
	assert_int_equal(page_state_adopt(&other, fd, &heir, &err), -EINVAL);
	assert_int_equal(page_state_adopt(&table, -1, &heir, &err), -EINVAL);
	/* Another version: the first bytes say so. */
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	assert_int_equal(page_state_adopt(&table, fd, &heir, &err), -EINVAL);
	assert_non_null(strstr(err.text, "version"));
	assert_null(heir);
	page_state_free(ps);
}

/*
 * Bits of the last word that no unit has: counted as present they made less than nothing missing,
 * and a migration was complete with pages that never came. Fuzzing shows it, too.
 */
static void test_what_lies_beyond_memory_is_not_present(void **state)
{
	struct region_table table = { 0 };
	struct page_state *ps, *heir;
	struct error err = ERROR_INIT;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, 100);
	ps = new_state(&table);
	page_state_publish(ps, 0, 1, UINT64_MAX);
	if (page_state_adopt(&table, page_state_fd(ps), &heir, &err))
		fail_msg("%s", err.text);
	assert_int_equal(page_state_missing(heir), 64);
	assert_true(page_state_present(heir, 0, 1) == (1ull << 36) - 1);
	page_state_free(heir);
	page_state_free(ps);
}

#define RACE_WORDS 512u
#define RACERS 4

struct racer {
	pthread_t thread;
	struct page_state *ps;
	uint64_t random;
	pthread_barrier_t *start;
	uint64_t won[RACE_WORDS];
};

/* Claim with random masks first, so that all meet in each word, then what is left. */
static void *racer_main(void *arg)
{
	struct racer *r = arg;

	pthread_barrier_wait(r->start);
	for (int round = 0; round < 4; round++)
		for (uint64_t word = 0; word < RACE_WORDS; word++) {
			uint64_t mask = round == 3 ? UINT64_MAX : random_next(&r->random);
			uint64_t mine = page_state_claim(r->ps, 0, word, mask);

			r->won[word] |= mine;
			page_state_publish(r->ps, 0, word, mine);
		}
	return NULL;
}

static void test_each_unit_is_claimed_by_one_thread(void **state)
{
	struct region_table table = { 0 };
	struct racer *racers = calloc(RACERS, sizeof *racers);
	pthread_barrier_t start;
	struct page_state *ps;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, RACE_WORDS * WORD_UNITS);
	ps = new_state(&table);
	pthread_barrier_init(&start, NULL, RACERS);
	for (unsigned int i = 0; i < RACERS; i++) {
		racers[i].ps = ps;
		racers[i].random = i;
		racers[i].start = &start;
		assert_int_equal(pthread_create(&racers[i].thread, NULL, racer_main, &racers[i]),
		                 0);
	}
	for (int i = 0; i < RACERS; i++)
		pthread_join(racers[i].thread, NULL);
	for (uint64_t word = 0; word < RACE_WORDS; word++) {
		uint64_t all = 0;

		for (int i = 0; i < RACERS; i++) {
			assert_true((all & racers[i].won[word]) == 0);
			all |= racers[i].won[word];
		}
		assert_true(all == UINT64_MAX);
	}
	assert_int_equal(page_state_missing(ps), 0);
	pthread_barrier_destroy(&start);
	page_state_free(ps);
	free(racers);
}

/*
 * The handshake between one that faults and those who fill. All start each page at the same
 * moment, by an atomic that each spins on: a barrier's wake-up would keep them apart.
 */
#define MEETINGS 50000u
/* Before giving the CPU to somebody else. */
#define SPINS 2000u
#define FILLERS_MAX 2

struct meeting {
	struct page_state *ps;
	uint64_t units_per_page;
	unsigned int fillers;
	atomic_uint arrived;
	/* Plain: whoever sees the page present must see its content too, which TSan checks. */
	uint32_t *content;
	uint8_t *seen_by_fault;
	uint8_t *seen_by_filler[FILLERS_MAX];
	unsigned int wrong;
};

struct filler {
	struct meeting *m;
	unsigned int index;
};

static void meet(struct meeting *m, unsigned int turn, uint64_t *random)
{
	unsigned int all = (turn + 1) * (m->fillers + 1);

	atomic_fetch_add(&m->arrived, 1);
	for (unsigned int i = 0; atomic_load(&m->arrived) < all; i++)
		if (i > SPINS)
			sched_yield();
	/* A few nanoseconds more or less, so that each order of their steps comes up. */
	for (volatile uint64_t n = random_below(random, 40); n; n--)
		;
}

static void *filler_main(void *arg)
{
	struct filler *f = arg;
	struct meeting *m = f->m;
	uint64_t words = (m->units_per_page + WORD_UNITS - 1) / WORD_UNITS;
	uint64_t share = words / m->fillers;
	uint64_t random = f->index + 1;

	for (unsigned int page = 0; page < MEETINGS; page++) {
		uint64_t unit = page * m->units_per_page;
		uint64_t mask = words > 1 ? UINT64_MAX : 1ull << unit % WORD_UNITS;
		uint64_t first = unit / WORD_UNITS + f->index * share, wanted = 0;

		meet(m, page, &random);
		if (!f->index)
			m->content[page] = page;
		for (uint64_t word = first; word < first + share; word++) {
			uint64_t mine = page_state_claim(m->ps, 0, word, mask);

			wanted |= page_state_publish(m->ps, 0, word, mine);
		}
		m->seen_by_filler[f->index][page] =
		        wanted && page_state_page_present(m->ps, 0, unit);
	}
	return NULL;
}

static void *fault_main(void *arg)
{
	struct meeting *m = arg;
	uint64_t random = 77;

	for (unsigned int page = 0; page < MEETINGS; page++) {
		meet(m, page, &random);
		m->seen_by_fault[page] = page_state_want(m->ps, 0, page * m->units_per_page);
		if (m->seen_by_fault[page])
			m->wrong += m->content[page] != page;
	}
	return NULL;
}

static void hold_meetings(enum postcopy_memory memory, unsigned int fillers)
{
	struct region_table table = { 0 };
	struct meeting m = { .fillers = fillers };
	struct filler args[FILLERS_MAX];
	pthread_t fault, threads[FILLERS_MAX];

	m.units_per_page = memory == POSTCOPY_MEMORY_HUGETLB ? SIZE_2M / UNIT_BYTES : 1;
	add_region(&table, memory, MEETINGS * m.units_per_page);
	m.ps = new_state(&table);
	m.content = calloc(MEETINGS, sizeof *m.content);
	m.seen_by_fault = calloc(MEETINGS, 1);
	assert_int_equal(pthread_create(&fault, NULL, fault_main, &m), 0);
	for (unsigned int i = 0; i < fillers; i++) {
		m.seen_by_filler[i] = calloc(MEETINGS, 1);
		args[i] = (struct filler){ .m = &m, .index = i };
		assert_int_equal(pthread_create(&threads[i], NULL, filler_main, &args[i]), 0);
	}
	pthread_join(fault, NULL);
	for (unsigned int i = 0; i < fillers; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int page = 0; page < MEETINGS; page++) {
		bool seen = m.seen_by_fault[page];

		for (unsigned int i = 0; i < fillers; i++)
			seen |= m.seen_by_filler[i][page];
		if (!seen)
			fail_msg("page %u: nobody would wake the guest", page);
	}
	assert_int_equal(m.wrong, 0);
	assert_int_equal(page_state_missing(m.ps), 0);
	for (unsigned int i = 0; i < fillers; i++)
		free(m.seen_by_filler[i]);
	free(m.seen_by_fault);
	free(m.content);
	page_state_free(m.ps);
}

static void test_fault_and_filler_can_not_miss_each_other(void **state)
{
	(void)state;
	hold_meetings(POSTCOPY_MEMORY_MEMFD, 1);
}

static void test_fault_and_two_fillers_of_a_huge_page_can_not_miss_each_other(void **state)
{
	(void)state;
	hold_meetings(POSTCOPY_MEMORY_HUGETLB, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_steps_agree_with_a_model),
		cmocka_unit_test(test_a_new_state_misses_everything),
		cmocka_unit_test(test_publishing_twice_counts_once),
		cmocka_unit_test(test_a_huge_page_is_present_with_its_last_unit_only),
		cmocka_unit_test(test_adopting_takes_over_what_is_present),
		cmocka_unit_test(test_a_new_generation_is_missing_and_can_be_claimed),
		cmocka_unit_test(test_what_may_have_been_seen_is_of_the_last_generation),
		cmocka_unit_test(test_claims_without_content_are_dropped),
		cmocka_unit_test(test_the_state_of_the_version_before_is_adopted),
		cmocka_unit_test(test_what_is_no_state_of_this_guest_is_not_adopted),
		cmocka_unit_test(test_what_lies_beyond_memory_is_not_present),
		cmocka_unit_test(test_each_unit_is_claimed_by_one_thread),
		cmocka_unit_test(test_fault_and_filler_can_not_miss_each_other),
		cmocka_unit_test(test_fault_and_two_fillers_of_a_huge_page_can_not_miss_each_other),
	};

	return cmocka_run_group_tests_name("page-state", tests, NULL, NULL);
}
