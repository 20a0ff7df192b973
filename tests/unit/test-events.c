/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd's events: that they are read whatever else there is to do, until nobody waits
 * for it any more; that what they say is never lost. This process is the VMM; a call that
 * changes its mappings returns only when its event has been read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sys/socket.h>

#include "fault/fault_table.h"
#include "libpostcopy/fetch_wire.h"

#define PAGES 2048u
#include "source.h"
#include "util/clock.h"

/* A source that nobody can reach, and a guest. */
struct fixture {
	struct guest g;
	struct source s;
	struct pull *p;
	int complete_fd;
};

/* A pull whose connections can't be opened yet. Return: false where this host can't. */
static bool start(struct fixture *f, enum postcopy_memory kind, enum resolver_map map)
{
	struct conn_target nobody = { .host = "127.0.0.1", .port = "1" };

	memset(f, 0, sizeof *f);
	if (!guest_init(&f->g, kind, SIZE))
		return false;
	f->s.content = calloc(1, SIZE);
	fill_content(f->s.content);
	source_start(&f->s, &f->g);
	f->complete_fd = eventfd(0, EFD_CLOEXEC);
	f->p = make_pull(&f->g, -1, map, &f->complete_fd);
	assert_non_null(f->p);
	pull_connect_later(f->p, &nobody, f->s.client_side.context, &f->s.hello, f->s.epoch);
	return true;
}

/* The source is there at last. */
static void connect_now(struct fixture *f)
{
	pull_redirect(f->p, &f->s.target);
}

static void stop(struct fixture *f)
{
	pull_free(f->p);
	source_stop(&f->s);
	close(f->complete_fd);
	free(f->s.content);
	guest_deinit(&f->g);
}

static void wait_complete(struct fixture *f)
{
	struct error err = ERROR_INIT;

	assert_int_equal(pull_start_bulk(f->p), 0);
	assert_true(readable(f->complete_fd, TIMEOUT_MS));
	assert_int_equal(pull_finish(f->p, &err), 0);
}

/* Something that a thread of the VMM does, and that may have to wait. */
struct act {
	pthread_t thread;
	void *(*main)(void *arg);
	uint8_t *at;
	size_t len;
	int advice;
	uint8_t seen[8];
	int done_fd; /* eventfd */
};

static void *do_touch(void *arg)
{
	struct act *a = arg;

	memcpy(a->seen, a->at, sizeof a->seen);
	eventfd_write(a->done_fd, 1);
	return NULL;
}

static void *do_madvise(void *arg)
{
	struct act *a = arg;

	(void)madvise(a->at, a->len, a->advice);
	eventfd_write(a->done_fd, 1);
	return NULL;
}

static void begin(struct act *a)
{
	pthread_attr_t attr;

	a->done_fd = eventfd(0, EFD_CLOEXEC);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	assert_int_equal(pthread_create(&a->thread, &attr, a->main, a), 0);
	pthread_attr_destroy(&attr);
}

static void touch(const struct fixture *f, struct act *a, unsigned int page)
{
	*a = (struct act){ .main = do_touch, .at = f->g.addr + (size_t)page * UNIT_BYTES };
	begin(a);
}

static void discard(const struct fixture *f, struct act *a, unsigned int page, int advice)
{
	*a = (struct act){ .main = do_madvise,
		           .at = f->g.addr + (size_t)page * UNIT_BYTES,
		           .len = UNIT_BYTES,
		           .advice = advice };
	begin(a);
}

static void finished(struct act *a, const char *what)
{
	if (!readable(a->done_fd, TIMEOUT_MS))
		fail_msg("%s is stuck", what);
	pthread_join(a->thread, NULL);
	close(a->done_fd);
}

static void touched(const struct fixture *f, struct act *a)
{
	finished(a, "a thread that waits for a page");
	assert_memory_equal(a->seen, f->s.content + (a->at - f->g.addr), sizeof a->seen);
}

static void wait_count(const _Atomic uint64_t *counter, uint64_t n)
{
	uint64_t until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;

	while (atomic_load(counter) < n) {
		if (clock_now_ns() > until_ns)
			fail_msg("%llu, not %llu", (unsigned long long)atomic_load(counter),
			         (unsigned long long)n);
		poll(NULL, 0, 1);
	}
}

/* The VMM asks for all of the guest ahead of it, over a channel. */
static int fetch_everything(const struct fixture *f)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
	assert_int_equal(pull_add_channel(f->p, pair[1]), 0);
	for (uint64_t at = 0; at < SIZE; at += FETCH_LEN_MAX) {
		struct fetch_request q = { .tag = at, .guest_phys_addr = at, .len = FETCH_LEN_MAX };
		uint8_t buf[FETCH_REQUEST_BYTES];

		fetch_request_encode(&q, buf);
		assert_int_equal(send(pair[0], buf, sizeof buf, 0), sizeof buf);
	}
	return pair[0];
}

/* Put a page in place as a filler does, but for waking who waits. */
static void fill_page(const struct fixture *f, unsigned int page)
{
	struct error err = ERROR_INIT;
	struct memory_filled filled = { 0 };
	struct memory *m = guest_memory(&f->g);
	struct page_state *ps;
	uint64_t bit = 1ull << (page % WORD_UNITS);

	assert_int_equal(page_state_adopt(&f->g.table, pull_state_fd(f->p), &ps, &err), 0);
	assert_int_equal(page_state_claim(ps, 0, page / WORD_UNITS, bit), bit);
	assert_int_equal(memory_fill(m, (uint64_t)page * UNIT_BYTES,
	                             f->s.content + (size_t)page * UNIT_BYTES, UNIT_BYTES, false,
	                             &filled),
	                 0);
	page_state_publish(ps, 0, page / WORD_UNITS, bit);
	page_state_free(ps);
	memory_free(m);
}

/*
 * It lost the whole VMM: 1,024 pages asked for ahead filled the fault table, the fault thread
 * read no event any more until one of them came, and so a vCPU's fault on a page that is here,
 * and a madvise(), waited for a source that is away.
 */
static void test_pages_asked_for_ahead_hold_up_no_event(void **state)
{
	struct fixture f;
	struct act here, away, change;
	int channel;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY))
		skip();
	fill_page(&f, 1500);
	assert_int_equal(pull_start(f.p), 0);
	channel = fetch_everything(&f);
	wait_count(&pull_stats(f.p)->faults_remote, FAULT_TABLE_FETCHED_MAX);
	touch(&f, &away, 1700);
	touch(&f, &here, 1500);
	discard(&f, &change, 100, MADV_DONTNEED);
	touched(&f, &here);
	finished(&change, "madvise()");
	connect_now(&f);
	touched(&f, &away);
	wait_complete(&f);
	close(channel);
	stop(&f);
}

/* The same with more threads that wait than there are entries: nobody of them is forgotten. */
static void test_more_faults_than_entries_hold_up_no_event(void **state)
{
	const unsigned int n = FAULT_TABLE_MAX + 100;
	struct act *a = calloc(n, sizeof *a), change;
	struct fixture f;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER))
		skip();
	assert_int_equal(pull_start(f.p), 0);
	for (unsigned int i = 0; i < n; i++)
		touch(&f, &a[i], i);
	wait_count(&pull_stats(f.p)->faults, n);
	discard(&f, &change, 2000, MADV_DONTNEED);
	finished(&change, "madvise()");
	connect_now(&f);
	for (unsigned int i = 0; i < n; i++)
		touched(&f, &a[i]);
	wait_complete(&f);
	free(a);
	stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pages_asked_for_ahead_hold_up_no_event),
		cmocka_unit_test(test_more_faults_than_entries_hold_up_no_event),
	};

	return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
