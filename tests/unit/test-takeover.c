/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pull that takes over from a process that was killed: its fault thread had read the faults'
 * events and taken them along, one of its fills was half done. Nobody may stay asleep, and
 * nobody may see anything but the right page. And a pull whose VMM changes its mappings meanwhile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>

#include "source.h"

#define WAITERS 12u

/* Where the waiters are: two on one page, zero pages, and two that were being filled. */
static const unsigned int waited_for[WAITERS] = { 0, 1, 5, 6, 7, 7, 63, 64, 100, 511, 640, 1023 };
/* What was being filled: two that faults bring, two that bulk does. */
#define TORN_MASK (1ull << 5 | 1ull << 6 | 1ull << 8 | 1ull << 9)

#define COPIED 20u
#define NOT_COPIED 21u

struct waiter {
	pthread_t thread;
	const uint8_t *page;
	uint8_t seen[UNIT_BYTES];
	int done_fd; /* eventfd */
};

/*
 * The first daemon: a pull without a connection reads events and can do nothing about them.
 * Says so when it has all of them, and waits for its end.
 */
static _Noreturn void be_first_daemon(const struct guest *g, int state_fd, enum resolver_map map,
                                      int ready_fd)
{
	int complete_fd = eventfd(0, EFD_CLOEXEC);
	struct pull *p = make_pull(g, state_fd, map, &complete_fd);
	struct timespec step = { .tv_nsec = 1000000 };

	if (!p || pull_start(p))
		_exit(1);
	while (atomic_load(&pull_stats(p)->faults) < WAITERS)
		nanosleep(&step, NULL);
	if (write(ready_fd, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void *wait_for_page(void *arg)
{
	struct waiter *w = arg;

	memcpy(w->seen, w->page, sizeof w->seen);
	eventfd_write(w->done_fd, 1);
	return NULL;
}

static void start_waiters(const struct guest *g, struct waiter *waiters)
{
	for (unsigned int i = 0; i < WAITERS; i++) {
		struct waiter *w = &waiters[i];

		w->page = g->addr + (size_t)waited_for[i] * UNIT_BYTES;
		w->done_fd = eventfd(0, EFD_CLOEXEC);
		assert_int_equal(pthread_create(&w->thread, NULL, wait_for_page, w), 0);
	}
}

/*
 * What a process leaves that is killed in the middle of a fill: units that are claimed and not
 * present, with wrong content.
 */
/*
 * And by one that is killed around a UFFDIO_COPY: of what it was copying the guest has one page,
 * and has written to it; the other was not begun.
 */
static void leave_copied_pages(const struct guest *g, struct page_state *ps, const uint8_t *content)
{
	uint8_t *page = g->addr + COPIED * (size_t)UNIT_BYTES;
	uint64_t mask = 1ull << COPIED | 1ull << NOT_COPIED;
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page,
		.src = (uintptr_t)content + COPIED * (size_t)UNIT_BYTES,
		.len = UNIT_BYTES,
	};

	assert_int_equal(page_state_claim(ps, 0, 0, mask), mask);
	page_state_note_copy(ps, 0, 0, mask);
	assert_int_equal(ioctl(g->uffd, UFFDIO_COPY, &copy), 0);
	memset(page, 0x77, UNIT_BYTES / 2);
}

static void leave_torn_pages(const struct guest *g, struct page_state *ps)
{
	struct memory *m = guest_memory(g);
	struct memory_filled filled = { 0 };
	uint8_t torn[UNIT_BYTES];

	assert_non_null(m);
	memset(torn, 0xdb, sizeof torn);
	assert_int_equal(page_state_claim(ps, 0, 0, TORN_MASK), TORN_MASK);
	for (uint64_t left = TORN_MASK; left; left &= left - 1)
		assert_int_equal(memory_fill(m, (uint64_t)__builtin_ctzll(left) * UNIT_BYTES, torn,
		                             sizeof torn, false, &filled),
		                 0);
	memory_free(m);
}

/* All waiters sleep, the events of all of them are in the killed process. */
static int leave_waiters(const struct guest *g, enum resolver_map map, struct waiter *waiters,
                         const uint8_t *copied)
{
	struct error err = ERROR_INIT;
	struct page_state *ps;
	int ready[2], state_fd;
	pid_t child;

	assert_int_equal(page_state_new(&g->table, &ps, &err), 0);
	state_fd = fcntl(page_state_fd(ps), F_DUPFD_CLOEXEC, 0);
	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (!child)
		be_first_daemon(g, state_fd, map, ready[1]);
	close(ready[1]);
	start_waiters(g, waiters);
	assert_true(readable(ready[0], TIMEOUT_MS));
	/* It ended, rather than to say that it is ready, where this reads nothing. */
	assert_int_equal(read(ready[0], &(char){ 0 }, 1), 1);
	close(ready[0]);
	leave_torn_pages(g, ps);
	if (copied)
		leave_copied_pages(g, ps, copied);
	page_state_free(ps);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	return state_fd;
}

static void check_waiters(const struct source *s, struct waiter *waiters)
{
	for (unsigned int i = 0; i < WAITERS; i++) {
		struct waiter *w = &waiters[i];

		if (!readable(w->done_fd, TIMEOUT_MS))
			fail_msg("the thread that waits for page %u is stuck", waited_for[i]);
		pthread_join(w->thread, NULL);
		close(w->done_fd);
		assert_memory_equal(w->seen, s->content + (size_t)waited_for[i] * UNIT_BYTES,
		                    UNIT_BYTES);
	}
}

static void take_over(enum postcopy_memory kind, enum resolver_map map)
{
	struct waiter waiters[WAITERS];
	struct error err = ERROR_INIT;
	struct source s = { 0 };
	struct guest g;
	struct pull *p;
	int state_fd, complete_fd;

	if (!guest_init(&g, kind, SIZE))
		skip();
	s.content = calloc(1, SIZE);
	fill_content(s.content);
	state_fd =
	        leave_waiters(&g, map, waiters, kind == POSTCOPY_MEMORY_MEMFD ? s.content : NULL);
	for (unsigned int i = 0; i < WAITERS; i++)
		assert_false(readable(waiters[i].done_fd, 0));
	source_start(&s, &g);

	complete_fd = eventfd(0, EFD_CLOEXEC);
	p = make_pull(&g, state_fd, map, &complete_fd);
	assert_non_null(p);
	if (pull_connect(p, &s.target, s.client_side.context, &s.hello, s.epoch, &err))
		fail_msg("%s", err.text);
	assert_int_equal(pull_start(p), 0);
	check_waiters(&s, waiters);
	assert_int_equal(pull_start_bulk(p), 0);
	assert_true(readable(complete_fd, TIMEOUT_MS));
	assert_int_equal(pull_finish(p, &err), 0);
	/* What the guest wrote before the take-over is its own. */
	if (kind == POSTCOPY_MEMORY_MEMFD)
		memset(s.content + COPIED * (size_t)UNIT_BYTES, 0x77, UNIT_BYTES / 2);
	assert_memory_equal(g.addr, s.content, SIZE);

	pull_free(p);
	source_stop(&s);
	close(state_fd);
	close(complete_fd);
	free(s.content);
	guest_deinit(&g);
}

static void assert_page(const struct source *s, const uint8_t *at, unsigned int page)
{
	assert_memory_equal(at, s->content + (size_t)page * UNIT_BYTES, UNIT_BYTES);
}

/*
 * What the VMM may do to its mappings while a pull runs. Each of these calls returns only when the
 * fault thread has read its event; each page touched afterwards is a fault.
 */
static void test_vmm_changes_its_mappings(void **state)
{
	struct error err = ERROR_INIT;
	struct source s = { 0 };
	int complete_fd = eventfd(0, EFD_CLOEXEC);
	uint8_t *moved;
	struct guest g;
	struct pull *p;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	s.content = calloc(1, SIZE);
	fill_content(s.content);
	source_start(&s, &g);
	p = make_pull(&g, -1, RESOLVER_MAP_EAGER, &complete_fd);
	assert_non_null(p);
	if (pull_connect(p, &s.target, s.client_side.context, &s.hello, s.epoch, &err))
		fail_msg("%s", err.text);
	assert_int_equal(pull_start(p), 0);
	assert_page(&s, g.addr + 3 * UNIT_BYTES, 3);

	moved = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(mremap(g.addr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved);
	g.addr = moved;
	assert_page(&s, moved + 3 * UNIT_BYTES, 3);
	assert_page(&s, moved + 702 * UNIT_BYTES, 702);

	/* Of shared memory that is no discard of what has not come. */
	assert_int_equal(madvise(moved + 800 * UNIT_BYTES, 2 * UNIT_BYTES, MADV_DONTNEED), 0);
	assert_page(&s, moved + 800 * UNIT_BYTES, 800);
	assert_int_equal(munmap(moved + 900 * UNIT_BYTES, 10 * UNIT_BYTES), 0);
	assert_page(&s, moved + 950 * UNIT_BYTES, 950);

	assert_int_equal(pull_start_bulk(p), 0);
	assert_true(readable(complete_fd, TIMEOUT_MS));
	assert_int_equal(pull_finish(p, &err), 0);
	assert_memory_equal(moved, s.content, 900 * UNIT_BYTES);
	assert_memory_equal(moved + 910 * UNIT_BYTES, s.content + 910 * UNIT_BYTES,
	                    SIZE - 910 * UNIT_BYTES);
	pull_free(p);
	source_stop(&s);
	close(complete_fd);
	free(s.content);
	guest_deinit(&g);
}

static void test_memfd_eager(void **state)
{
	(void)state;
	take_over(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_memfd_lazy(void **state)
{
	(void)state;
	take_over(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY);
}

static void test_guest_memfd_eager(void **state)
{
	(void)state;
	take_over(POSTCOPY_MEMORY_GUEST_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_guest_memfd_lazy(void **state)
{
	(void)state;
	take_over(POSTCOPY_MEMORY_GUEST_MEMFD, RESOLVER_MAP_LAZY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vmm_changes_its_mappings),
		cmocka_unit_test(test_memfd_eager),
		cmocka_unit_test(test_memfd_lazy),
		cmocka_unit_test(test_guest_memfd_eager),
		cmocka_unit_test(test_guest_memfd_lazy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
