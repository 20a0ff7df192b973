/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pull and a source in one process: how faults are told, what must not hold them up, and limits
 * that change. Between the two lies a relay that can hold back the urgent connection's answers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "relay.h"
#include "await.h"
#include "source.h"
#include "stream/throttle.h"
#include "util/clock.h"

/* A kernel that is short of memory: how often these fail still, and how often any did. */
static atomic_uint continues_to_fail, copies_to_fail, failed;

static bool fails(atomic_uint *left)
{
	unsigned int n = atomic_load(left);

	while (n && !atomic_compare_exchange_weak(left, &n, n - 1))
		;
	return n;
}

/* A fill that is refused once, and not before another fault has raised its event. */
static struct {
	atomic_bool armed;
	atomic_int thread; /* who fills; 0: nobody yet */
	atomic_bool looks; /* it has not yet gone to sleep since */
	const _Atomic uint64_t *n_seen;
	uint64_t seen_asleep; /* by then */
} refusal;

static int wait_for_event(int uffd)
{
	struct pollfd event = { .fd = uffd, .events = POLLIN };

	atomic_store(&refusal.thread, (int)syscall(SYS_gettid));
	atomic_store(&refusal.looks, true);
	(void)ppoll(&event, 1, &(struct timespec){ .tv_sec = TIMEOUT_MS / 1000 }, NULL);
	errno = EAGAIN;
	return -1;
}

/* What the thread "fault" has asked the allocator for, by code that is linked in: ours. */
static atomic_uint n_allocated;

static void note_allocation(void)
{
	char name[16] = "";

	(void)prctl(PR_GET_NAME, name);
	if (!strcmp(name, "fault"))
		atomic_fetch_add(&n_allocated, 1);
}

/* By the linker's --wrap. */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__wrap_realloc(void *p, size_t size);

void *__wrap_malloc(size_t size)
{
	note_allocation();
	return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	note_allocation();
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	note_allocation();
	return __real_realloc(p, size);
}

/* In place of libc's. */
int poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
	if (timeout_ms && atomic_load(&refusal.looks) &&
	    syscall(SYS_gettid) == atomic_load(&refusal.thread)) {
		refusal.seen_asleep = atomic_load(refusal.n_seen);
		atomic_store(&refusal.looks, false);
	}
	return ppoll(fds, n,
	             timeout_ms < 0 ? NULL
	                            : &(struct timespec){ .tv_sec = timeout_ms / 1000,
	                                                  .tv_nsec = timeout_ms % 1000 *
	                                                             (long)NSEC_PER_MSEC },
	             NULL);
}

/* In place of libc's. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == UFFDIO_COPY && atomic_exchange(&refusal.armed, false))
		return wait_for_event(fd);
	if ((request == UFFDIO_CONTINUE && fails(&continues_to_fail)) ||
	    (request == UFFDIO_COPY && fails(&copies_to_fail))) {
		atomic_fetch_add(&failed, 1);
		errno = ENOMEM;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

struct fixture {
	struct guest g;
	struct source s;
	struct relay relay;
	struct pull *p;
	int complete_fd;
};

/* A pull of a kind of memory and page size, and its source. Return: false where this host can't. */
static bool start_apart_on(struct fixture *f, enum postcopy_memory kind, enum resolver_map map,
                           uint64_t page_size)
{
	memset(f, 0, sizeof *f);
	if (!guest_init(&f->g, kind, SIZE))
		return false;
	f->s.content = calloc(1, SIZE);
	fill_content(f->s.content);
	source_start(&f->s, &f->g);
	/* As of huge pages, which a host may have none of. */
	f->g.table.regions[0].page_size = page_size;
	relay_start(&f->relay, (uint16_t)atoi(f->s.target.port));
	snprintf(f->s.target.port, sizeof f->s.target.port, "%u", f->relay.port);
	f->complete_fd = eventfd(0, EFD_CLOEXEC);
	f->p = make_pull(&f->g, -1, map, &f->complete_fd);
	assert_non_null(f->p);
	return true;
}

static bool start_apart_by(struct fixture *f, enum resolver_map map, uint64_t page_size)
{
	return start_apart_on(f, POSTCOPY_MEMORY_MEMFD, map, page_size);
}

static bool start_apart(struct fixture *f, enum resolver_map map)
{
	return start_apart_by(f, map, UNIT_BYTES);
}

static void connect_now(struct fixture *f)
{
	struct error err = ERROR_INIT;

	if (pull_connect(f->p, &f->s.target, f->s.client_side.context, &f->s.hello, f->s.epoch,
	                 &err))
		fail_msg("%s", err.text);
}

/* A connected pull; faults are not served yet. */
static bool start(struct fixture *f, enum resolver_map map)
{
	if (!start_apart(f, map))
		return false;
	connect_now(f);
	return true;
}

static void wait_complete(struct fixture *f)
{
	struct error err = ERROR_INIT;

	assert_true(readable(f->complete_fd, TIMEOUT_MS));
	assert_int_equal(pull_finish(f->p, &err), 0);
	assert_memory_equal(f->g.addr, f->s.content, SIZE);
}

static void stop(struct fixture *f)
{
	relay_hold(&f->relay, false);
	pull_free(f->p);
	relay_stop(&f->relay);
	source_stop(&f->s);
	close(f->complete_fd);
	free(f->s.content);
	guest_deinit(&f->g);
}

/* A vCPU that reads one page. */
struct toucher {
	pthread_t thread;
	const uint8_t *page;
	uint8_t seen[UNIT_BYTES];
	_Atomic uint32_t tid;
	int done_fd;
};

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	atomic_store(&t->tid, (uint32_t)syscall(SYS_gettid));
	memcpy(t->seen, t->page, sizeof t->seen);
	eventfd_write(t->done_fd, 1);
	return NULL;
}

static void touch(const struct fixture *f, struct toucher *t, unsigned int page)
{
	t->page = f->g.addr + (size_t)page * UNIT_BYTES;
	t->done_fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(pthread_create(&t->thread, NULL, toucher_main, t), 0);
}

static void touched(const struct fixture *f, struct toucher *t)
{
	size_t offset = (size_t)(t->page - f->g.addr);

	if (!readable(t->done_fd, TIMEOUT_MS))
		fail_msg("the thread that waits for page %zu is stuck", offset / UNIT_BYTES);
	pthread_join(t->thread, NULL);
	close(t->done_fd);
	assert_memory_equal(t->seen, f->s.content + offset, UNIT_BYTES);
}

static void wait_set(const atomic_int *what)
{
	uint64_t until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;

	while (!atomic_load(what)) {
		assert_true(clock_now_ns() < until_ns);
		poll(NULL, 0, 1);
	}
}

/* The record of the fault on a page. Return: false where there is none. */
static bool find_record(const struct fixture *f, unsigned int page, struct fault_record *ret)
{
	const struct fault_ring *ring = pull_stats(f->p)->records;
	uint64_t addr = (uintptr_t)f->g.addr + (uint64_t)page * UNIT_BYTES;

	for (uint64_t i = fault_ring_first(ring); i < atomic_load(&ring->n); i++)
		if (fault_ring_get(ring, i, ret) && ret->addr == addr)
			return true;
	return false;
}

static void test_remote_fault_is_told_stamp_by_stamp(void **state)
{
	const struct pull_stats *stats;
	struct fault_durations d;
	struct fault_record r;
	struct toucher t;
	struct fixture f;
	uint64_t before_ns;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	pull_set_slow_fault(f.p, 0);
	assert_int_equal(pull_start(f.p), 0);
	before_ns = clock_now_ns();
	touch(&f, &t, 5);
	touched(&f, &t);
	wait_count(&stats->records->n, 1);
	assert_true(find_record(&f, 5, &r));
	assert_true(before_ns <= r.read_ns && r.read_ns <= r.asked_ns);
	assert_true(r.asked_ns <= r.sent_ns && r.sent_ns <= r.received_ns);
	assert_true(r.received_ns <= r.filled_ns && r.filled_ns <= r.mapped_ns);
	assert_true(r.mapped_ns <= clock_now_ns());
	assert_int_equal(r.flags, 0);
	/* The kernel has had this feature for as long as it had the others that are asked for. */
	assert_int_equal(r.tid, atomic_load(&t.tid));
	fault_record_durations(&r, &d);
	for (unsigned int i = 0; i < FAULT_PHASES; i++) {
		assert_int_equal(atomic_load(&stats->fault_phase_ns[i].count), 1);
		assert_int_equal(atomic_load(&stats->fault_phase_ns[i].sum), d.ns[i]);
	}
	assert_int_equal(atomic_load(&stats->fault_idle_ns.sum), d.total_ns);
	assert_int_equal(atomic_load(&stats->faults_slow), 1);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	stop(&f);
}

/*
 * A process that served faults, and ended before it was written down that the guest may run here:
 * the next asks for the vmstate again, and what the source tells of the pages was true before.
 */
static void test_what_was_served_is_not_taken_back_by_the_next_process(void **state)
{
	struct toucher t;
	struct fixture f;
	struct pull *next;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	assert_false(pull_is_visible(f.p));
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &t, 5);
	touched(&f, &t);
	pull_stop(f.p);
	next = make_pull(&f.g, pull_state_fd(f.p), RESOLVER_MAP_EAGER, &f.complete_fd);
	assert_non_null(next);
	assert_true(pull_is_visible(next));
	assert_true(pull_missing(next) < SIZE / UNIT_BYTES);
	assert_int_equal(pull_warm_renew(next, 0, 5, 1), 0);
	pull_warm_forget(next);
	assert_int_equal(pull_missing(next), pull_missing(f.p));
	pull_free(next);
	stop(&f);
}

static void test_minor_fault_is_told_as_one(void **state)
{
	const struct pull_stats *stats;
	struct fault_record r[FAULT_SLOW_MAX];
	struct toucher t;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_LAZY))
		skip();
	stats = pull_stats(f.p);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	assert_true(readable(f.complete_fd, TIMEOUT_MS));
	touch(&f, &t, 9);
	touched(&f, &t);
	wait_count(&stats->fault_minor_ns.count, 1);
	assert_int_equal(atomic_load(&stats->faults_minor), 1);
	assert_int_equal(atomic_load(&stats->records->n), 0);
	/* Below what counts as slow, but the slowest there was. */
	assert_int_equal(fault_slow_get(&stats->slow, r), 1);
	assert_int_equal(r[0].flags, FAULT_MINOR);
	assert_true(r[0].addr == (uintptr_t)t.page && !r[0].asked_ns && !r[0].filled_ns);
	wait_complete(&f);
	stop(&f);
}

/*
 * A fault's answer is held back; bulk brings its page and wakes who waits.
 * Return: false where this host can't.
 */
static bool start_with_page_brought(struct fixture *f, unsigned int page)
{
	struct toucher t;

	if (!start(f, RESOLVER_MAP_EAGER))
		return false;
	assert_int_equal(pull_start(f->p), 0);
	relay_hold(&f->relay, true);
	touch(f, &t, page);
	wait_count(&page_source_stats(f->s.source)->requests, 1);
	assert_int_equal(pull_start_bulk(f->p), 0);
	touched(f, &t);
	return true;
}

/* The fault ends when its vCPU is woken, not when the answer comes. */
static void test_fault_ends_when_bulk_brings_its_page(void **state)
{
	const struct pull_stats *stats;
	struct fault_durations d;
	struct fault_record r;
	struct fixture f;
	uint64_t awake_ns;

	(void)state;
	if (!start_with_page_brought(&f, 700))
		skip();
	stats = pull_stats(f.p);
	/* Then bulk has noted when it woke the thread. */
	assert_true(readable(f.complete_fd, TIMEOUT_MS));
	awake_ns = clock_now_ns();
	assert_int_equal(atomic_load(&stats->records->n), 0);
	relay_hold(&f.relay, false);
	wait_count(&stats->records->n, 1);
	assert_true(find_record(&f, 700, &r));
	assert_int_equal(r.flags, FAULT_BROUGHT);
	assert_true(r.mapped_ns <= awake_ns);
	assert_true(r.filled_ns <= r.mapped_ns && r.received_ns == r.filled_ns);
	fault_record_durations(&r, &d);
	assert_int_equal(d.ns[FAULT_FILL], 0);
	assert_int_equal(atomic_load(&stats->fault_idle_ns.max), r.mapped_ns - r.read_ns);
	wait_complete(&f);
	stop(&f);
}

/* One read() of the socket brings several: poll() tells of none but the first. */
static void test_answers_that_come_together_are_all_taken(void **state)
{
	const struct page_source_stats *source;
	struct toucher t[3];
	struct fixture f;
	int waiting = 0;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	source = page_source_stats(f.s.source);
	assert_int_equal(pull_start(f.p), 0);
	relay_hold(&f.relay, true);
	for (unsigned int i = 0; i < 3; i++) {
		touch(&f, &t[i], 100 * i);
		wait_count(&source->requests, i + 1);
	}
	/* The first is in the relay's hands, the others are taken from its socket as one. */
	while (waiting < (int)(2 * UNIT_BYTES)) {
		poll(NULL, 0, 1);
		assert_int_equal(ioctl(f.relay.pipes[0].from, FIONREAD, &waiting), 0);
	}
	relay_hold(&f.relay, false);
	for (unsigned int i = 0; i < 3; i++)
		touched(&f, &t[i]);
	/* Nor was one taken only when the source was thought to be gone. */
	assert_int_equal(atomic_load(&pull_stats(f.p)->reconnects), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	stop(&f);
}

/* The migration is over before the answer has come: the fault is counted still. */
static void test_fault_whose_answer_never_comes_is_counted(void **state)
{
	const struct pull_stats *stats;
	struct fault_record r;
	struct fixture f;

	(void)state;
	if (!start_with_page_brought(&f, 700))
		skip();
	stats = pull_stats(f.p);
	wait_complete(&f);
	assert_int_equal(atomic_load(&stats->faults_remote), 1);
	assert_int_equal(atomic_load(&stats->fault_idle_ns.count), 1);
	assert_true(find_record(&f, 700, &r));
	assert_int_equal(r.flags, FAULT_BROUGHT);
	/* It was asked for before its page was there. */
	assert_true(r.asked_ns && r.asked_ns < r.filled_ns);
	stop(&f);
}

/*
 * Another thread has claimed the page and takes its time. The fault's answer is here and can't be
 * filled in; the faults of others are served all the same, and events read.
 */
static void test_fault_on_a_claimed_page_holds_nobody_up(void **state)
{
	struct error err = ERROR_INIT;
	struct toucher claimed, others[3];
	struct memory_filled filled = { 0 };
	struct page_state *ps;
	struct memory *m;
	struct fixture f;
	struct uffdio_continue map = { 0 };

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	m = guest_memory(&f.g);
	assert_int_equal(page_state_adopt(&f.g.table, pull_state_fd(f.p), &ps, &err), 0);
	assert_int_equal(page_state_claim(ps, 0, 0, 1ull << 10), 1ull << 10);
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &claimed, 10);
	wait_count(&page_source_stats(f.s.source)->requests, 1);
	for (unsigned int i = 0; i < 3; i++) {
		touch(&f, &others[i], 20 + i);
		touched(&f, &others[i]);
	}
	/* Returns only when the fault thread has read its event. */
	assert_int_equal(madvise(f.g.addr + 30 * UNIT_BYTES, UNIT_BYTES, MADV_REMOVE), 0);
	assert_false(readable(claimed.done_fd, 0));

	assert_int_equal(memory_fill(m, 10 * UNIT_BYTES, f.s.content + 10 * UNIT_BYTES, UNIT_BYTES,
	                             false, &filled),
	                 0);
	assert_int_equal(page_state_publish(ps, 0, 0, 1ull << 10), 1ull << 10);
	map.range = (struct uffdio_range){ .start = (uintptr_t)claimed.page, .len = UNIT_BYTES };
	assert_int_equal(ioctl(f.g.uffd, UFFDIO_CONTINUE, &map), 0);
	touched(&f, &claimed);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	page_state_free(ps);
	memory_free(m);
	stop(&f);
}

/* The same, but whoever has claimed it gives up: the fault asks again. */
static void test_fault_on_a_page_whose_claimer_gives_up_is_asked_again(void **state)
{
	struct error err = ERROR_INIT;
	struct page_state *ps;
	struct toucher t;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	assert_int_equal(page_state_adopt(&f.g.table, pull_state_fd(f.p), &ps, &err), 0);
	assert_int_equal(page_state_claim(ps, 0, 0, 1ull << 10), 1ull << 10);
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &t, 10);
	wait_count(&page_source_stats(f.s.source)->requests, 2);
	page_state_unclaim(ps, 0, 0, 1ull << 10);
	touched(&f, &t);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	page_state_free(ps);
	stop(&f);
}

static void test_page_that_could_not_be_mapped_is_mapped_later(void **state)
{
	const struct pull_stats *stats;
	struct toucher t;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_LAZY))
		skip();
	stats = pull_stats(f.p);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	assert_true(readable(f.complete_fd, TIMEOUT_MS));
	atomic_store(&failed, 0);
	atomic_store(&continues_to_fail, 3);
	touch(&f, &t, 3);
	touched(&f, &t);
	assert_int_equal(atomic_load(&failed), 3);
	wait_count(&stats->fault_minor_ns.count, 1);
	assert_int_equal(atomic_load(&stats->faults_minor), 1);
	wait_complete(&f);
	stop(&f);
}

/* The host's bandwidth is told what faults take: of a huge page that is all of it. */
static void test_units_that_a_fault_asks_for_are_counted(void **state)
{
	const uint64_t page_sizes[] = { UNIT_BYTES, 2u << 20 };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		const struct pull_stats *stats;
		struct toucher t;
		struct fixture f;

		if (!start_apart_by(&f, RESOLVER_MAP_EAGER, page_sizes[i]))
			skip();
		connect_now(&f);
		stats = pull_stats(f.p);
		assert_int_equal(pull_start(f.p), 0);
		touch(&f, &t, 3);
		touched(&f, &t);
		assert_int_equal(atomic_load(&stats->faults_remote), 1);
		assert_int_equal(atomic_load(&stats->fault_units), page_sizes[i] / UNIT_BYTES);
		stop(&f);
	}
}

static void test_page_that_could_not_be_filled_is_asked_for_again(void **state)
{
	const struct pull_stats *stats;
	struct toucher t;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	assert_int_equal(pull_start(f.p), 0);
	atomic_store(&failed, 0);
	atomic_store(&copies_to_fail, 2);
	touch(&f, &t, 3);
	touched(&f, &t);
	assert_int_equal(atomic_load(&failed), 2);
	assert_int_equal(atomic_load(&page_source_stats(f.s.source)->requests), 3);
	wait_count(&stats->fault_idle_ns.count, 1);
	assert_int_equal(atomic_load(&stats->faults_remote), 1);

	/* The same for bulk: a word that is not whole comes again. */
	pull_set_bandwidth(f.p, 64u << 20);
	atomic_store(&copies_to_fail, 3);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	assert_int_equal(atomic_load(&failed), 5);
	/* For that reason it came again, and not because it was there. */
	assert_int_equal(atomic_load(&stats->bulk_twice), 0);
	stop(&f);
}

/* Mapped when it is touched, a page tells whether it was guessed well. */
static void test_guesses_are_judged_by_the_first_touch(void **state)
{
	const struct pull_stats *stats;
	struct error err = ERROR_INIT;
	struct toucher t[3];
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_LAZY))
		skip();
	stats = pull_stats(f.p);
	pull_set_prefetch(f.p, true);
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &t[0], 5);
	touched(&f, &t[0]);
	assert_int_equal(pull_start_bulk(f.p), 0);
	assert_true(readable(f.complete_fd, TIMEOUT_MS));
	/* Its word without itself, and the words above. */
	assert_int_equal(atomic_load(&stats->bulk_by[SCHEDULER_AROUND]), 9 * WORD_UNITS - 1);
	assert_int_equal(stats_guessed(stats), 9 * WORD_UNITS - 1);
	assert_int_equal(atomic_load(&stats->prefetch_watched), 9 * WORD_UNITS - 1);
	assert_int_equal(stats_wasted(stats), 9 * WORD_UNITS - 1);
	/* Two of them, a page of zeroes among them; and one that linear has brought. */
	touch(&f, &t[0], 6);
	touch(&f, &t[1], 14);
	touch(&f, &t[2], PAGES - 1);
	for (int i = 0; i < 3; i++)
		touched(&f, &t[i]);
	wait_count(&stats->fault_minor_ns.count, 3);
	assert_int_equal(atomic_load(&stats->prefetch_hit), 2);
	assert_int_equal(atomic_load(&stats->prefetch_missed), 0);
	assert_int_equal(stats_wasted(stats), 9 * WORD_UNITS - 3);
	assert_int_equal(pull_finish(f.p, &err), 0);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	stop(&f);
}

/* Mapped ahead nothing tells: so nothing is said to be wasted. */
static void test_guesses_that_are_mapped_are_not_judged(void **state)
{
	const struct pull_stats *stats;
	struct toucher t;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	pull_set_prefetch(f.p, true);
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &t, 5);
	touched(&f, &t);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	assert_int_equal(stats_guessed(stats), 9 * WORD_UNITS - 1);
	assert_int_equal(atomic_load(&stats->prefetch_watched), 0);
	assert_int_equal(stats_wasted(stats), 0);
	stop(&f);
}

/* Never above the cap, whatever the host is busy with; and everything comes. */
static void test_cap_holds_and_everything_arrives(void **state)
{
	const uint64_t cap = 16u << 20;
	const struct pull_stats *stats;
	struct fixture f;
	uint64_t ns, most;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	pull_set_bandwidth(f.p, cap);
	pull_set_streams(f.p, 3);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_complete(&f);
	ns = atomic_load(&stats->bulk_last_ns) - atomic_load(&stats->bulk_first_ns);
	most = cap * (ns + 2 * THROTTLE_SLACK_NS) / NSEC_PER_SEC;
	assert_true(atomic_load(&stats->bulk_bytes) <= most);
	/* Words were asked for in parts, and nothing twice. */
	assert_int_equal(atomic_load(&stats->bulk_twice), 0);
	assert_int_equal(atomic_load(&stats->bulk_in_flight), 0);
	assert_true(page_source_stats(f.s.source)->requests > 2 * PAGES / WORD_UNITS);
	stop(&f);
}

/* It let no thread work, so none told what it waits for: the network was blamed, or nobody. */
static void test_cap_that_lets_next_to_nothing_through_is_told(void **state)
{
	uint64_t begin_ns = clock_now_ns();
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	/* A page in an hour. */
	pull_set_bandwidth(f.p, 1);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	while (pull_get_limit(f.p) != LOAD_CAP) {
		assert_true(clock_now_ns() - begin_ns < 60 * NSEC_PER_SEC);
		poll(NULL, 0, 1);
	}
	pull_set_bandwidth(f.p, 0);
	wait_complete(&f);
	stop(&f);
}

/* A fault goes by a cap that lets bulk through next to nothing; a new cap counts at once. */
static void test_cap_holds_no_fault_back(void **state)
{
	const struct pull_stats *stats;
	struct toucher t[8];
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	/* A page in an hour. */
	pull_set_bandwidth(f.p, 1);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	for (unsigned int i = 0; i < 8; i++) {
		touch(&f, &t[i], 500 + 10 * i);
		touched(&f, &t[i]);
	}
	assert_true(atomic_load(&stats->bulk_bytes) <= 2 * UNIT_BYTES);
	pull_set_bandwidth(f.p, 0);
	wait_complete(&f);
	stop(&f);
}

/*
 * Events are read while a fill is refused, and poll() does not tell of them again. The fault waited
 * for the next news of any kind.
 */
static void test_fault_that_comes_within_a_fill_is_served_at_once(void **state)
{
	struct toucher t;
	struct fixture f;

	(void)state;
	/* What bulk brings the fault thread fills, after all faults. */
	if (!start_apart_on(&f, POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER, UNIT_BYTES))
		skip();
	connect_now(&f);
	refusal.n_seen = &pull_stats(f.p)->faults_remote;
	atomic_store(&refusal.thread, 0);
	atomic_store(&refusal.armed, true);
	/* One page comes, and the next in an hour: no other news. */
	pull_set_bandwidth(f.p, 1);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_set(&refusal.thread);
	touch(&f, &t, 500);
	touched(&f, &t);
	assert_false(atomic_load(&refusal.looks));
	assert_int_equal(refusal.seen_asleep, 1);
	pull_set_bandwidth(f.p, 0);
	wait_complete(&f);
	stop(&f);
}

/* A guest's memory is what the host is short of when it comes: nobody waits for a page by malloc().
 */
static void test_faults_allocate_nothing(void **state)
{
	static const enum postcopy_memory kinds[] = { POSTCOPY_MEMORY_MEMFD,
		                                      POSTCOPY_MEMORY_ANONYMOUS };
	struct toucher t;
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (!start_apart_on(&f, kinds[i], RESOLVER_MAP_LAZY, UNIT_BYTES))
			skip();
		connect_now(&f);
		atomic_store(&n_allocated, 0);
		assert_int_equal(pull_start(f.p), 0);
		/* Some of these are zero pages. */
		for (unsigned int page = 500; page < 520; page++) {
			touch(&f, &t, page);
			touched(&f, &t);
		}
		/* Others are minor faults. */
		assert_int_equal(pull_start_bulk(f.p), 0);
		for (unsigned int page = 0; page < 1000; page += 100) {
			touch(&f, &t, page);
			touched(&f, &t);
		}
		wait_complete(&f);
		assert_int_equal(atomic_load(&n_allocated), 0);
		stop(&f);
	}
}

/* Parts of a word are asked for while others of it come by faults, and connections come and go. */
static void test_streams_change_while_it_runs(void **state)
{
	static const unsigned int streams[] = { 4, 2, 7, 1, 3 };
	struct toucher t[5];
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	pull_set_bandwidth(f.p, 2u << 20);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_threads("bulk", 1);
	for (unsigned int i = 0; i < 5; i++) {
		assert_int_equal(pull_set_streams(f.p, streams[i]), 0);
		wait_threads("bulk", streams[i]);
		touch(&f, &t[i], 100 * i + 150);
		touched(&f, &t[i]);
	}
	assert_true(pull_missing(f.p) > 0);
	assert_int_equal(atomic_load(&pull_stats(f.p)->reconnects), 0);
	pull_set_bulk(f.p, false);
	pull_set_bandwidth(f.p, 0);
	pull_set_bulk(f.p, true);
	wait_complete(&f);
	assert_int_equal(atomic_load(&pull_stats(f.p)->bulk_in_flight), 0);
	stop(&f);
}

/* To and fro as fast as it goes: a thread that is about to end is wanted again. */
static void test_streams_change_all_the_time(void **state)
{
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	pull_set_bandwidth(f.p, 2u << 20);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	for (unsigned int i = 0; i < 300; i++)
		assert_int_equal(pull_set_streams(f.p, 1 + i % 3), 0);
	assert_int_equal(pull_set_streams(f.p, 2), 0);
	wait_threads("bulk", 2);
	pull_set_bandwidth(f.p, 0);
	wait_complete(&f);
	stop(&f);
}

/* Words of which some parts are answered, some on the way, some not asked for yet. */
static void test_connections_lost_between_parts_of_a_word_lose_nothing(void **state)
{
	const struct pull_stats *stats;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	pull_set_bandwidth(f.p, 1u << 20);
	pull_set_streams(f.p, 2);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	for (uint64_t i = 1; i <= 5; i++) {
		wait_count(&stats->bulk_bytes, 10 * i * UNIT_BYTES);
		relay_cut_bulk(&f.relay);
		wait_count(&stats->reconnects, i);
	}
	pull_set_bandwidth(f.p, 0);
	wait_complete(&f);
	assert_int_equal(atomic_load(&stats->bulk_in_flight), 0);
	stop(&f);
}

/*
 * A source that lets every connection in and closes it at its first request: 500 TLS handshakes
 * a second were the answer, from bulk alone.
 */
static void test_connections_of_no_use_are_dialled_ever_more_slowly(void **state)
{
	const struct pull_stats *stats;
	struct fixture f;

	(void)state;
	if (!start(&f, RESOLVER_MAP_EAGER))
		skip();
	stats = pull_stats(f.p);
	page_source_withdraw(f.s.source);
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_count(&stats->reconnects, 2);
	/* Of each connection: at once, then after 50, 100, 200, 400 ms. */
	poll(NULL, 0, 1000);
	assert_true(atomic_load(&stats->reconnects) <= 12);
	stop(&f);
}

/*
 * Another thread's answer was measured while there was nothing to say of TLS, and packed when there
 * was: 32 bytes behind its end on the heap, and the daemon ended with all its guests.
 */
static void test_what_is_told_of_tls_does_not_change_under_its_reader(void **state)
{
	struct fixture f;
	const char *told;

	(void)state;
	if (!start_apart(&f, RESOLVER_MAP_EAGER))
		skip();
	told = pull_tls(f.p);
	assert_string_equal(told, "");
	connect_now(&f);
	assert_string_equal(told, "");
	told = pull_tls(f.p);
	assert_non_null(strstr(told, "TLSv1.3"));
	stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_remote_fault_is_told_stamp_by_stamp),
		cmocka_unit_test(test_what_was_served_is_not_taken_back_by_the_next_process),
		cmocka_unit_test(test_minor_fault_is_told_as_one),
		cmocka_unit_test(test_fault_ends_when_bulk_brings_its_page),
		cmocka_unit_test(test_answers_that_come_together_are_all_taken),
		cmocka_unit_test(test_fault_whose_answer_never_comes_is_counted),
		cmocka_unit_test(test_fault_on_a_claimed_page_holds_nobody_up),
		cmocka_unit_test(test_fault_on_a_page_whose_claimer_gives_up_is_asked_again),
		cmocka_unit_test(test_page_that_could_not_be_mapped_is_mapped_later),
		cmocka_unit_test(test_units_that_a_fault_asks_for_are_counted),
		cmocka_unit_test(test_page_that_could_not_be_filled_is_asked_for_again),
		cmocka_unit_test(test_guesses_are_judged_by_the_first_touch),
		cmocka_unit_test(test_guesses_that_are_mapped_are_not_judged),
		cmocka_unit_test(test_cap_holds_and_everything_arrives),
		cmocka_unit_test(test_cap_that_lets_next_to_nothing_through_is_told),
		cmocka_unit_test(test_cap_holds_no_fault_back),
		cmocka_unit_test(test_fault_that_comes_within_a_fill_is_served_at_once),
		cmocka_unit_test(test_faults_allocate_nothing),
		cmocka_unit_test(test_streams_change_while_it_runs),
		cmocka_unit_test(test_streams_change_all_the_time),
		cmocka_unit_test(test_connections_lost_between_parts_of_a_word_lose_nothing),
		cmocka_unit_test(test_connections_of_no_use_are_dialled_ever_more_slowly),
		cmocka_unit_test(test_what_is_told_of_tls_does_not_change_under_its_reader),
	};

	return cmocka_run_group_tests_name("pull", tests, NULL, NULL);
}
