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
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "fault/fault_table.h"

#include "libpostcopy/fetch_wire.h"

#define PAGES 2048u
#include "await.h"
#include "source.h"
#include "util/clock.h"

/* Of fault/uffd.h: libpostcopy's header, which guest.h needs, has a function of the same name. */
bool uffd_is_quiet(int uffd);

/* Called before each UFFDIO_POISON. */
static void (*before_poison)(void);

/* In place of libc's. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == UFFDIO_POISON && before_poison)
		before_poison();
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

/* What the reader does when it has read the event of a discard or a move, before it applies it. */
static void (*discard_read)(void), (*move_read)(void);

/* A kernel before Linux 6.10; and a VMM that does its worst between poll() and read(). */
static atomic_bool no_nowait, steals;

ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
	const struct uffd_msg *first = iov->iov_base;
	ssize_t len;

	if (atomic_load(&no_nowait)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	len = syscall(SYS_preadv2, fd, iov, n, offset, offset, flags);
	if (len > 0 && discard_read && first->event == UFFD_EVENT_REMOVE)
		discard_read();
	if (len > 0 && move_read && first->event == UFFD_EVENT_REMAP)
		move_read();
	return len;
}

ssize_t read(int fd, void *buf, size_t len)
{
	if (len == 32 * sizeof(struct uffd_msg) && atomic_exchange(&steals, false)) {
		(void)syscall(SYS_read, fd, buf, len);
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	}
	return syscall(SYS_read, fd, buf, len);
}

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

static int open_channel(const struct fixture *f)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
	assert_int_equal(pull_add_channel(f->p, pair[1]), 0);
	return pair[0];
}

static void request(int channel, uint64_t at, uint64_t len, bool discard)
{
	struct fetch_request q = {
		.tag = at, .guest_phys_addr = at, .len = len, .discard = discard
	};
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];
	ssize_t bytes = (ssize_t)fetch_request_encode(&q, buf);

	assert_int_equal(send(channel, buf, (size_t)bytes, 0), bytes);
}

/* The VMM asks for all of the guest ahead of it, over a channel. */
static int fetch_everything(const struct fixture *f)
{
	int channel = open_channel(f);

	for (uint64_t at = 0; at < SIZE; at += FETCH_LEN_MAX)
		request(channel, at, FETCH_LEN_MAX, false);
	return channel;
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

/* Threads of a VMM that change its mappings all the time. */
#define CHANGERS 4u

struct changer {
	pthread_t thread;
	const struct fixture *f;
	unsigned int index;
	bool unmap;
	atomic_bool end;
	int done_fd;
};

static void *changer_main(void *arg)
{
	struct changer *c = arg;
	uint8_t *at = c->f->g.addr + (size_t)c->index * (SIZE / CHANGERS);
	uint8_t *end = at + SIZE / CHANGERS;

	for (; !atomic_load(&c->end) && at < end; at += c->unmap ? UNIT_BYTES : 0) {
		if (c->unmap)
			(void)munmap(at, UNIT_BYTES);
		else
			(void)madvise(at, UNIT_BYTES, MADV_DONTNEED);
	}
	eventfd_write(c->done_fd, 1);
	return NULL;
}

static void start_changers(struct changer *c, const struct fixture *f, bool unmap)
{
	for (unsigned int i = 0; i < CHANGERS; i++) {
		c[i] = (struct changer){
			.f = f, .index = i, .unmap = unmap, .done_fd = eventfd(0, EFD_CLOEXEC)
		};
		assert_int_equal(pthread_create(&c[i].thread, NULL, changer_main, &c[i]), 0);
	}
}

static void stop_changers(struct changer *c)
{
	for (unsigned int i = 0; i < CHANGERS; i++)
		atomic_store(&c[i].end, true);
	for (unsigned int i = 0; i < CHANGERS; i++) {
		if (!readable(c[i].done_fd, TIMEOUT_MS))
			fail_msg("a thread that changes its mappings is stuck");
		pthread_join(c[i].thread, NULL);
		close(c[i].done_fd);
	}
}

/* A guest that is whole, but for its being watched: a page state without a missing unit. */
static bool start_whole(struct fixture *f)
{
	struct error err = ERROR_INIT;
	struct page_state *ps;

	memset(f, 0, sizeof *f);
	if (!guest_init(&f->g, POSTCOPY_MEMORY_MEMFD, SIZE))
		return false;
	assert_int_equal(page_state_new(&f->g.table, &ps, &err), 0);
	for (uint64_t word = 0; word < PAGES / WORD_UNITS; word++)
		page_state_publish(ps, 0, word, page_state_claim(ps, 0, word, UINT64_MAX));
	f->complete_fd = eventfd(0, EFD_CLOEXEC);
	f->p = make_pull(&f->g, page_state_fd(ps), RESOLVER_MAP_LAZY, &f->complete_fd);
	page_state_free(ps);
	assert_int_equal(pull_start(f->p), 0);
	assert_true(readable(f->complete_fd, TIMEOUT_MS));
	return true;
}

/*
 * A complete guest whose VMM stood still for good: a madvise() or munmap() that was under way when
 * the watching ended raised its event when nobody read any more. In 9 of 150 runs.
 */
static void finish_while_it_changes(bool unmap)
{
	for (unsigned int i = 0; i < 60; i++) {
		struct changer changers[CHANGERS];
		struct error err = ERROR_INIT;
		struct fixture f;

		if (!start_whole(&f))
			skip();
		start_changers(changers, &f, unmap);
		poll(NULL, 0, 1);
		assert_int_equal(pull_finish(f.p, &err), 0);
		/* The VMM has its own copy of the userfaultfd: this ends nobody's waiting. */
		f.p = pull_free(f.p);
		stop_changers(changers);
		/* Nothing is watched any more: or this would wait. */
		if (!unmap)
			assert_int_equal(f.g.addr[SIZE - UNIT_BYTES], 0);
		close(f.complete_fd);
		guest_deinit(&f.g);
	}
}

static void test_discards_while_the_watching_ends(void **state)
{
	(void)state;
	finish_while_it_changes(false);
}

static void test_unmapping_while_the_watching_ends(void **state)
{
	(void)state;
	finish_while_it_changes(true);
}

/* A daemon that is to end while its VMM discards: it does, and the next one reads on. */
static void test_a_pull_ends_while_the_vmm_discards(void **state)
{
	for (unsigned int i = 0; i < 10; i++) {
		struct changer changers[CHANGERS];
		struct error err = ERROR_INIT;
		struct fixture f;
		uint64_t begin_ns;
		int state_fd;

		(void)state;
		if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER))
			skip();
		connect_now(&f);
		pull_set_bandwidth(f.p, 4u << 20);
		assert_int_equal(pull_start(f.p), 0);
		assert_int_equal(pull_start_bulk(f.p), 0);
		start_changers(changers, &f, false);
		/* From here on some fill is under way most of the time. */
		wait_count(&pull_stats(f.p)->bulk_first_ns, 1);
		poll(NULL, 0, 20);
		state_fd = fcntl(pull_state_fd(f.p), F_DUPFD_CLOEXEC, 0);
		begin_ns = clock_now_ns();
		f.p = pull_free(f.p);
		assert_true(clock_now_ns() - begin_ns < 5 * NSEC_PER_SEC);

		f.p = make_pull(&f.g, state_fd, RESOLVER_MAP_EAGER, &f.complete_fd);
		assert_non_null(f.p);
		if (pull_connect(f.p, &f.s.target, f.s.client_side.context, &f.s.hello, f.s.epoch,
		                 &err))
			fail_msg("%s", err.text);
		assert_int_equal(pull_start(f.p), 0);
		stop_changers(changers);
		wait_complete(&f);
		close(state_fd);
		stop(&f);
	}
}

static void free_in_time(struct fixture *f)
{
	uint64_t begin_ns = clock_now_ns();

	f->p = pull_free(f->p);
	assert_true(clock_now_ns() - begin_ns < 5 * NSEC_PER_SEC);
}

/*
 * A VMM whose userfaultfd blocks, from the beginning or whenever it likes: the reader waited in
 * read() for good, and a restart of the daemon 90 s for it, with every other guest.
 */
static void test_a_blocking_userfaultfd_blocks_nobody(void **state)
{
	struct fixture f;
	struct act a[3];

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER))
		skip();
	connect_now(&f);
	assert_int_equal(fcntl(f.g.uffd, F_SETFL, 0), 0);
	assert_int_equal(pull_start(f.p), 0);
	for (unsigned int i = 0; i < 3; i++) {
		touch(&f, &a[i], 10 * i);
		touched(&f, &a[i]);
		assert_int_equal(fcntl(f.g.uffd, F_SETFL, 0), 0);
	}
	free_in_time(&f);
	stop(&f);
}

/* The same where the kernel knows of no read() that does not wait. */
static void keep_reader_waiting(enum postcopy_memory kind)
{
	struct fixture f;
	struct act a;

	if (!start(&f, kind, RESOLVER_MAP_EAGER))
		skip();
	connect_now(&f);
	atomic_store(&no_nowait, true);
	assert_int_equal(pull_start(f.p), 0);
	touch(&f, &a, 1);
	touched(&f, &a);
	atomic_store(&steals, true);
	touch(&f, &a, 2);
	while (atomic_load(&steals))
		poll(NULL, 0, 1);
	/* What it brings of anonymous memory waits for the reader. */
	assert_int_equal(pull_start_bulk(f.p), 0);
	wait_count(&pull_stats(f.p)->bulk_in_flight, 1);
	free_in_time(&f);
	/* The next one has a kernel that can, and wakes who has lost its event. */
	atomic_store(&no_nowait, false);
	f.p = make_pull(&f.g, -1, RESOLVER_MAP_EAGER, &f.complete_fd);
	pull_connect_later(f.p, &f.s.target, f.s.client_side.context, &f.s.hello, f.s.epoch);
	assert_int_equal(pull_start(f.p), 0);
	touched(&f, &a);
	stop(&f);
}

static void test_a_reader_that_is_kept_waiting_ends_with_the_pull_memfd(void **state)
{
	(void)state;
	keep_reader_waiting(POSTCOPY_MEMORY_MEMFD);
}

static void test_a_reader_that_is_kept_waiting_ends_with_the_pull_anonymous(void **state)
{
	(void)state;
	keep_reader_waiting(POSTCOPY_MEMORY_ANONYMOUS);
}

static struct fixture *moving;
static atomic_uint poisonings;
static struct act mover;
static uint8_t *moved_to;

static void *do_move(void *arg)
{
	struct act *a = arg;

	(void)mremap(a->at, a->len, a->len, MREMAP_MAYMOVE | MREMAP_FIXED, moved_to);
	eventfd_write(a->done_fd, 1);
	return NULL;
}

/* The first page is poisoned by now: all that follow are elsewhere. */
static void move_guest(void)
{
	if (atomic_fetch_add(&poisonings, 1) != 1)
		return;
	mover = (struct act){ .main = do_move, .at = moving->g.addr, .len = SIZE };
	begin(&mover);
	/* It has moved when the kernel refuses to poison; or all is over. */
	while (uffd_is_quiet(moving->g.uffd) && !readable(mover.done_fd, 1))
		;
}

static void assert_poisoned(const uint8_t *guest)
{
	int pair[2];

	assert_int_equal(pipe(pair), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		if (write(pair[1], guest + i * UNIT_BYTES, 1) != -1 || errno != EFAULT)
			fail_msg("page %llu can be read", (unsigned long long)i);
	close(pair[0]);
	close(pair[1]);
}

/* The kernel has let the VMM go, and so whoever poisons: where does that one look for the guest? */
static void let_poisoning_run_on(void)
{
	unsigned int now;

	readable(mover.done_fd, 1000);
	now = atomic_load(&poisonings);
	for (int ms = 0; ms < 100 && atomic_load(&poisonings) == now; ms++)
		poll(NULL, 0, 1);
}

/*
 * Poisoning read events, to get on, and forgot what they said: what the VMM had moved meanwhile was
 * not found any more, and the guest read zeroes there in place of a machine check. Later the fault
 * thread read them, and poisoning went on between the reading and the change of the map: one page
 * was looked for where it was no more, and was left out.
 */
static void test_what_moves_is_poisoned_where_it_is(void **state)
{
	struct error err = ERROR_INIT;
	struct fixture f;
	uint64_t units;
	int rc;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER))
		skip();
	moving = &f;
	moved_to = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pull_start(f.p), 0);
	before_poison = move_guest;
	move_read = let_poisoning_run_on;
	rc = pull_poison(f.p, &units, &err);
	before_poison = NULL;
	move_read = NULL;
	if (rc == -EOPNOTSUPP) {
		print_message("skipped: %s\n", err.text);
		stop(&f);
		skip();
	}
	assert_int_equal(rc, 0);
	finished(&mover, "mremap()");
	f.g.addr = moved_to;
	assert_int_equal(pull_finish(f.p, &err), 0);
	assert_poisoned(f.g.addr);
	stop(&f);
}

/*
 * One ioctl takes no range that two VMAs share. All pages before the second one's were left out,
 * and the guest read zeroes there.
 */
static void test_poison_goes_across_vmas(void **state)
{
	struct error err = ERROR_INIT;
	struct fixture f;
	uint64_t units;
	int rc;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER))
		skip();
	assert_int_equal(madvise(f.g.addr + SIZE / 2, SIZE / 4, MADV_SEQUENTIAL), 0);
	assert_int_equal(pull_start(f.p), 0);
	rc = pull_poison(f.p, &units, &err);
	if (rc == -EOPNOTSUPP) {
		print_message("skipped: %s\n", err.text);
		stop(&f);
		skip();
	}
	assert_int_equal(rc, 0);
	assert_int_equal(units, PAGES);
	assert_int_equal(pull_finish(f.p, &err), 0);
	assert_poisoned(f.g.addr);
	stop(&f);
}

/* What a VMM discards and must read as zeroes: told first, then punched out. */
static void test_told_discards_are_zero(void **state)
{
	uint8_t answer[FETCH_ANSWER_BYTES];
	struct fixture f;
	int channel;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY))
		skip();
	/* One that has arrived, in the middle of others that have not. */
	fill_page(&f, 500);
	assert_int_equal(pull_start(f.p), 0);
	channel = open_channel(&f);
	request(channel, 490 * UNIT_BYTES, 20 * UNIT_BYTES, true);
	assert_true(readable(channel, TIMEOUT_MS));
	assert_int_equal(recv(channel, answer, sizeof answer, 0), sizeof answer);
	assert_int_equal(fallocate(f.g.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                           490 * UNIT_BYTES, 20 * UNIT_BYTES),
	                 0);
	memset(f.s.content + 490 * UNIT_BYTES, 0, 20 * UNIT_BYTES);
	assert_int_equal(f.g.addr[495 * UNIT_BYTES], 0);
	connect_now(&f);
	wait_complete(&f);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	close(channel);
	stop(&f);
}

/* The reader has read and does not go on. */
static atomic_bool reader_is_held, reader_may_go_on;

static void hold_reader(void)
{
	atomic_store(&reader_is_held, true);
	while (!atomic_load(&reader_may_go_on))
		poll(NULL, 0, 1);
}

static bool is_there(const uint8_t *page)
{
	unsigned char vec;

	assert_int_equal(mincore((void *)page, UNIT_BYTES, &vec), 0);
	return vec & 1;
}

/*
 * Bulk claimed and filled a page whose discard had been read and was not applied yet: it was there
 * again after the madvise() had returned, with its old bytes.
 */
static void test_nothing_is_filled_while_an_event_is_read(void **state)
{
	const unsigned int page = 3;
	struct act change;
	struct fixture f;

	(void)state;
	if (!start(&f, POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER))
		skip();
	discard_read = hold_reader;
	assert_int_equal(pull_start(f.p), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	discard(&f, &change, page, MADV_DONTNEED);
	finished(&change, "madvise()");
	while (!atomic_load(&reader_is_held))
		poll(NULL, 0, 1);
	connect_now(&f);
	wait_count(&pull_stats(f.p)->bulk_in_flight, 1);
	/* Long enough for a bulk thread that does not wait for the reader. */
	for (unsigned int ms = 0; ms < 200 && !is_there(f.g.addr + page * UNIT_BYTES); ms++)
		poll(NULL, 0, 1);
	atomic_store(&reader_may_go_on, true);
	wait_complete(&f);
	discard_read = NULL;
	memset(f.s.content + page * UNIT_BYTES, 0, UNIT_BYTES);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	stop(&f);
}

/* Every other page of a guest is discarded while bulk brings them all. */
static void test_discards_amid_bulk_are_zero(void **state)
{
	unsigned int back = 0;
	struct fixture f;

	(void)state;
	for (unsigned int round = 0; round < 20; round++) {
		if (!start(&f, POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER))
			skip();
		connect_now(&f);
		assert_int_equal(pull_start(f.p), 0);
		assert_int_equal(pull_start_bulk(f.p), 0);
		wait_count(&pull_stats(f.p)->bulk_first_ns, 1);
		for (unsigned int i = 1; i < PAGES; i += 2) {
			uint8_t *page = f.g.addr + (size_t)i * UNIT_BYTES;

			assert_int_equal(madvise(page, UNIT_BYTES, MADV_DONTNEED), 0);
			memset(f.s.content + (size_t)i * UNIT_BYTES, 0, UNIT_BYTES);
		}
		wait_complete(&f);
		for (size_t at = 0; at < SIZE; at += UNIT_BYTES)
			back += memcmp(f.g.addr + at, f.s.content + at, UNIT_BYTES) != 0;
		stop(&f);
	}
	print_message("%u pages came back\n", back);
	assert_int_equal(back, 0);
}

/* A daemon that reads events and is killed. */
static pid_t start_daemon(const struct fixture *f, int state_fd)
{
	pid_t child = fork();
	int complete_fd;
	struct pull *p;

	if (child)
		return child;
	complete_fd = eventfd(0, EFD_CLOEXEC);
	p = make_pull(&f->g, state_fd, RESOLVER_MAP_EAGER, &complete_fd);
	if (!p || pull_start(p))
		_exit(1);
	for (;;)
		pause();
}

static void kill_daemon(pid_t child)
{
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
}

/* A fixture without a pull, but for its state. */
static bool start_without_pull(struct fixture *f, enum postcopy_memory kind, int *ret_state_fd)
{
	struct error err = ERROR_INIT;
	struct page_state *ps;

	if (!start(f, kind, RESOLVER_MAP_EAGER))
		return false;
	f->p = pull_free(f->p);
	assert_int_equal(page_state_new(&f->g.table, &ps, &err), 0);
	*ret_state_fd = fcntl(page_state_fd(ps), F_DUPFD_CLOEXEC, 0);
	page_state_free(ps);
	return true;
}

static void take_over(struct fixture *f, int state_fd)
{
	f->p = make_pull(&f->g, state_fd, RESOLVER_MAP_EAGER, &f->complete_fd);
	assert_non_null(f->p);
	pull_connect_later(f->p, &f->s.target, f->s.client_side.context, &f->s.hello, f->s.epoch);
	assert_int_equal(pull_start(f->p), 0);
}

#define DISCARDED (PAGES - 8)

/* Pages that a thread of the VMM has discarded, one after the other. */
struct discarder {
	pthread_t thread;
	uint8_t *addr;
	_Atomic uint64_t n;
};

static void *discarder_main(void *arg)
{
	struct discarder *d = arg;

	for (uint64_t i = 0; i < DISCARDED; i++) {
		(void)madvise(d->addr + i * UNIT_BYTES, UNIT_BYTES, MADV_DONTNEED);
		atomic_store(&d->n, i + 1);
	}
	return NULL;
}

/*
 * The kernel lets a madvise() go as soon as its event has been read. A daemon that was killed right
 * then had told nobody: of 23 kills 13 brought a discarded page back, with its old bytes.
 */
static void test_no_discard_is_lost_by_a_kill(void **state)
{
	struct discarder d = { 0 };
	unsigned int kills = 0, back = 0;
	uint64_t seed = 11;
	struct fixture f;
	int state_fd;

	(void)state;
	if (!start_without_pull(&f, POSTCOPY_MEMORY_ANONYMOUS, &state_fd))
		skip();
	d.addr = f.g.addr;
	assert_int_equal(pthread_create(&d.thread, NULL, discarder_main, &d), 0);
	while (atomic_load(&d.n) < DISCARDED) {
		uint64_t until = atomic_load(&d.n) + 1 + random_below(&seed, 4);
		pid_t daemon = start_daemon(&f, state_fd);

		while (atomic_load(&d.n) < until && atomic_load(&d.n) < DISCARDED)
			if (waitpid(daemon, NULL, WNOHANG))
				fail_msg("the daemon has ended by itself");
		kill_daemon(daemon);
		kills++;
	}
	pthread_join(d.thread, NULL);
	take_over(&f, state_fd);
	wait_complete(&f);
	memset(f.s.content, 0, DISCARDED * UNIT_BYTES);
	for (uint64_t i = 0; i < PAGES; i++)
		back += memcmp(f.g.addr + i * UNIT_BYTES, f.s.content + i * UNIT_BYTES,
		               UNIT_BYTES) != 0;
	print_message("%u kills, %u pages came back\n", kills, back);
	assert_int_equal(back, 0);
	close(state_fd);
	stop(&f);
}

/* What the VMM has moved and unmapped is known to a process that takes over. */
static void test_a_take_over_knows_what_was_moved(void **state)
{
	uint8_t *moved = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct fixture f;
	struct act a;
	pid_t daemon;
	int state_fd;

	(void)state;
	if (!start_without_pull(&f, POSTCOPY_MEMORY_MEMFD, &state_fd))
		skip();
	daemon = start_daemon(&f, state_fd);
	assert_true(mremap(f.g.addr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved);
	f.g.addr = moved;
	assert_int_equal(munmap(moved, 10 * UNIT_BYTES), 0);
	kill_daemon(daemon);
	take_over(&f, state_fd);
	touch(&f, &a, 100);
	touched(&f, &a);
	wait_complete(&f);
	assert_memory_equal(moved + 10 * UNIT_BYTES, f.s.content + 10 * UNIT_BYTES,
	                    SIZE - 10 * UNIT_BYTES);
	close(state_fd);
	stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pages_asked_for_ahead_hold_up_no_event),
		cmocka_unit_test(test_more_faults_than_entries_hold_up_no_event),
		cmocka_unit_test(test_discards_while_the_watching_ends),
		cmocka_unit_test(test_unmapping_while_the_watching_ends),
		cmocka_unit_test(test_a_pull_ends_while_the_vmm_discards),
		cmocka_unit_test(test_a_blocking_userfaultfd_blocks_nobody),
		cmocka_unit_test(test_a_reader_that_is_kept_waiting_ends_with_the_pull_memfd),
		cmocka_unit_test(test_a_reader_that_is_kept_waiting_ends_with_the_pull_anonymous),
		cmocka_unit_test(test_what_moves_is_poisoned_where_it_is),
		cmocka_unit_test(test_poison_goes_across_vmas),
		cmocka_unit_test(test_told_discards_are_zero),
		cmocka_unit_test(test_nothing_is_filled_while_an_event_is_read),
		cmocka_unit_test(test_discards_amid_bulk_are_zero),
		cmocka_unit_test(test_no_discard_is_lost_by_a_kill),
		cmocka_unit_test(test_a_take_over_knows_what_was_moved),
	};

	return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
