/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The resolver on real memory, fills of whole runs racing faults inside of them. On a memfd
 * anywhere; on guest_memfd, where pwrite() and memcpy meet, in tests/vm.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "fault/resolver.h"
#include "guest.h"
#include "support.h"

#define ROUNDS 1000u
#define TOUCHERS 2u
#define TOUCHES 6u
#define UNIT_WORDS (UNIT_BYTES / sizeof(uint64_t))

struct race {
	struct guest guest;
	struct memory *memory;
	struct page_state *ps;
	struct pull_stats stats;
	struct resolver resolver;
	pthread_barrier_t begin, end;
	int stop_fd;
	atomic_uint torn; /* pages that were seen with anything but their content */
};

struct toucher {
	struct race *race;
	pthread_t thread;
	uint64_t seed;
};

/* No two pages alike, and no two words of a page. */
static void fill_unit(uint64_t *to, uint64_t unit)
{
	for (size_t i = 0; i < UNIT_WORDS; i++)
		to[i] = (unit + 1) * 0x9e3779b97f4a7c15ull + i;
}

static bool unit_right(const volatile uint64_t *at, uint64_t unit)
{
	for (size_t i = 0; i < UNIT_WORDS; i++)
		if (at[i] != (unit + 1) * 0x9e3779b97f4a7c15ull + i)
			return false;
	return true;
}

static void check_unit(struct race *r, uint64_t unit)
{
	const void *page = r->guest.addr + unit * UNIT_BYTES;

	if (!unit_right(page, unit))
		atomic_fetch_add(&r->torn, 1);
}

static bool give_way(void *arg)
{
	(void)arg;
	sched_yield();
	return true;
}

/* As the fault thread does it: want, then either map what is there or bring it. */
static void serve_fault(struct race *r, uint64_t addr)
{
	struct resolver_caller caller = { .resolver = &r->resolver, .again = give_way };
	uint64_t unit = (addr - (uintptr_t)r->guest.addr) / UNIT_BYTES;
	uint64_t data[UNIT_WORDS], filled;
	struct resolver_batch batch = {
		.word = unit / WORD_UNITS,
		.data_mask = 1ull << (unit % WORD_UNITS),
		.data = (const uint8_t *)data,
		.for_fault = true,
	};

	if (page_state_want(r->ps, 0, unit)) {
		if (resolver_map_page(&caller, 0, unit))
			abort();
		return;
	}
	fill_unit(data, unit);
	/* Where bulk has claimed it, bulk maps it: it is wanted. */
	if (resolver_fill(&caller, &batch, &filled))
		abort();
}

static void *serve_faults(void *arg)
{
	struct race *r = arg;
	struct pollfd fds[2] = { { .fd = r->guest.uffd, .events = POLLIN },
		                 { .fd = r->stop_fd, .events = POLLIN } };

	for (;;) {
		struct uffd_msg msg;

		poll(fds, 2, -1);
		if (fds[1].revents)
			return NULL;
		if (read(r->guest.uffd, &msg, sizeof msg) == sizeof msg &&
		    msg.event == UFFD_EVENT_PAGEFAULT)
			serve_fault(r, msg.arg.pagefault.address);
	}
}

static void *touch(void *arg)
{
	struct toucher *t = arg;

	for (unsigned int round = 0; round < ROUNDS; round++) {
		pthread_barrier_wait(&t->race->begin);
		for (unsigned int i = 0; i < TOUCHES; i++)
			check_unit(t->race,
			           round * WORD_UNITS + random_below(&t->seed, WORD_UNITS));
		pthread_barrier_wait(&t->race->end);
	}
	return NULL;
}

static void fill_word(struct race *r, uint64_t word)
{
	static _Alignas(64) uint64_t data[WORD_UNITS * UNIT_WORDS];
	struct resolver_caller caller = { .resolver = &r->resolver, .again = give_way };
	struct resolver_batch batch = { .word = word,
		                        .data_mask = UINT64_MAX,
		                        .data = (const uint8_t *)data };
	uint64_t filled;

	for (unsigned int i = 0; i < WORD_UNITS; i++)
		fill_unit(data + i * UNIT_WORDS, word * WORD_UNITS + i);
	pthread_barrier_wait(&r->begin);
	if (resolver_fill(&caller, &batch, &filled))
		abort();
	pthread_barrier_wait(&r->end);
}

static bool race_init(struct race *r, enum postcopy_memory kind, enum resolver_map map, size_t size)
{
	struct error err = ERROR_INIT;

	memset(r, 0, sizeof *r);
	if (!guest_init(&r->guest, kind, size))
		return false;
	r->memory = guest_memory(&r->guest);
	assert_non_null(r->memory);
	assert_int_equal(page_state_new(&r->guest.table, &r->ps, &err), 0);
	r->resolver = (struct resolver){ .table = &r->guest.table,
		                         .state = r->ps,
		                         .memories = &r->memory,
		                         .shards[0].uffd = r->guest.uffd,
		                         .map = map,
		                         .stats = &r->stats };
	assert_int_equal(resolver_init(&r->resolver), 0);
	return true;
}

static void race_deinit(struct race *r)
{
	resolver_deinit(&r->resolver);
	page_state_free(r->ps);
	memory_free(r->memory);
	guest_deinit(&r->guest);
}

static void run_race(enum postcopy_memory kind, enum resolver_map map)
{
	struct race *r = calloc(1, sizeof *r);
	struct toucher touchers[TOUCHERS];
	pthread_t server;

	if (!race_init(r, kind, map, ROUNDS * WORD_BYTES)) {
		free(r);
		skip();
		return;
	}
	pthread_barrier_init(&r->begin, NULL, TOUCHERS + 1);
	pthread_barrier_init(&r->end, NULL, TOUCHERS + 1);
	r->stop_fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(pthread_create(&server, NULL, serve_faults, r), 0);
	for (unsigned int i = 0; i < TOUCHERS; i++) {
		touchers[i] = (struct toucher){ .race = r, .seed = i + 1 };
		assert_int_equal(pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]), 0);
	}
	for (unsigned int round = 0; round < ROUNDS; round++) {
		fill_word(r, round);
		for (unsigned int i = 0; i < WORD_UNITS; i++)
			check_unit(r, round * WORD_UNITS + i);
	}
	for (unsigned int i = 0; i < TOUCHERS; i++)
		pthread_join(touchers[i].thread, NULL);
	eventfd_write(r->stop_fd, 1);
	pthread_join(server, NULL);
	close(r->stop_fd);

	assert_int_equal(atomic_load(&r->torn), 0);
	assert_int_equal(page_state_missing(r->ps), 0);
	if (kind == POSTCOPY_MEMORY_GUEST_MEMFD) {
		/* Both ways of filling have met. */
		assert_true(atomic_load(&r->stats.fill_write) > 0);
		assert_true(atomic_load(&r->stats.fill_memcpy) > 0);
	}
	race_deinit(r);
	free(r);
}

static void test_memfd_eager(void **state)
{
	(void)state;
	run_race(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_memfd_lazy(void **state)
{
	(void)state;
	run_race(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY);
}

static void test_guest_memfd_eager(void **state)
{
	(void)state;
	run_race(POSTCOPY_MEMORY_GUEST_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_guest_memfd_lazy(void **state)
{
	(void)state;
	run_race(POSTCOPY_MEMORY_GUEST_MEMFD, RESOLVER_MAP_LAZY);
}

/* Whether a page has an entry in the page tables, which reading it would make. */
static bool is_mapped(const uint8_t *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;
	ssize_t n = pread(fd, &entry, sizeof entry,
	                  (off_t)((uintptr_t)page / UNIT_BYTES * sizeof entry));

	assert_int_equal(n, sizeof entry);
	close(fd);
	return entry >> 63;
}

/*
 * A run that the mapping has holes in (as if the guest had just discarded them) is mapped around
 * them: the fills go to another file, so that what the mapping has is ours to choose.
 */
static void test_continue_over_holes_resumes(void **state)
{
	static const uint64_t holes[] = {
		0, 1ull, 1ull << 63, 1ull << 20, 0xff00ull, 0xaaaaaaaaaaaaaaaaull, UINT64_MAX,
	};
	static const uint64_t already = 1ull << 33 | 3ull << 40; /* mapped beforehand */
	const unsigned int n = sizeof holes / sizeof *holes;
	struct race r;
	struct guest elsewhere;

	(void)state;
	if (!race_init(&r, POSTCOPY_MEMORY_GUEST_MEMFD, RESOLVER_MAP_EAGER, n * WORD_BYTES))
		skip();
	for (uint64_t unit = 0; unit < n * WORD_UNITS; unit++) {
		struct memory_filled filled = { 0 };
		uint64_t data[UNIT_WORDS];

		fill_unit(data, unit);
		if (!(holes[unit / WORD_UNITS] >> unit % WORD_UNITS & 1))
			assert_int_equal(memory_fill(r.memory, unit * UNIT_BYTES, data, UNIT_BYTES,
			                             false, &filled),
			                 0);
	}
	assert_true(guest_init(&elsewhere, POSTCOPY_MEMORY_GUEST_MEMFD, n * WORD_BYTES));
	memory_free(r.memory);
	r.memory = guest_memory(&elsewhere);
	for (unsigned int word = 0; word < n; word++) {
		struct resolver_caller caller = { .resolver = &r.resolver, .again = give_way };
		static uint8_t data[WORD_BYTES];
		struct resolver_batch batch = { .word = word,
			                        .data_mask = UINT64_MAX,
			                        .data = data };
		uint64_t filled;

		for (unsigned int i = 0; i < WORD_UNITS; i++)
			if (already & ~holes[word] & 1ull << i)
				assert_int_equal(
				        resolver_map_page(&caller, 0, word * WORD_UNITS + i), 0);
		assert_int_equal(resolver_fill(&caller, &batch, &filled), 0);
		for (unsigned int i = 0; i < WORD_UNITS; i++) {
			const uint8_t *page = r.guest.addr + (word * WORD_UNITS + i) * UNIT_BYTES;

			assert_int_equal(is_mapped(page), !(holes[word] >> i & 1));
		}
	}
	guest_deinit(&elsewhere);
	race_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memfd_eager),
		cmocka_unit_test(test_memfd_lazy),
		cmocka_unit_test(test_guest_memfd_eager),
		cmocka_unit_test(test_guest_memfd_lazy),
		cmocka_unit_test(test_continue_over_holes_resumes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
