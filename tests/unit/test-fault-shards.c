/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that is watched by several userfaultfds: who reads which, and what is theirs alone; and
 * what lies, moves, or goes across a bound between two of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sys/uio.h>

/* 16 pieces of 2 MiB: eight shards have two each. */
#define PAGES 8192u
/*
 * Far below all else: where a piece of the guest has gone from no other memory of this process
 * comes.
 */
#ifdef __SANITIZE_THREAD__
#define GUEST_ADDR ((void *)(1ull << 36))
#else
#define GUEST_ADDR ((void *)(1ull << 45))
#endif
#include "fault/events.h"
#include "libpostcopy/fetch_wire.h"
#include "relay.h"
#include "await.h"
#include "source.h"
#include "util/clock.h"

#define PIECE (2u << 20)

/* How a userfaultfd's parts came to the pull. */
enum when {
	AT_BIRTH,     /* in its config, as where a process takes over */
	BEFORE_START, /* pull_take_shards() */
	AFTER_START,  /* the same, while faults are served */
};

/* A source of before: it says nothing of how many urgent connections it keeps. */
static bool is_older;

int __real_hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret,
                              struct error *err);
int __wrap_hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret,
                              struct error *err);

int __wrap_hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret,
                              struct error *err)
{
	int rc = __real_hello_reply_decode(payload, len, ret, err);

	if (is_older)
		ret->urgents = 0;
	return rc;
}

struct fixture {
	struct guest g;
	struct source s;
	struct relay relay;
	unsigned int n;
	int uffds[SHARDS_MAX]; /* the VMM's; the first is g.uffd */
	int journals_fd;
	int complete_fd;
	enum resolver_map map;
	uint8_t *spare; /* address space where nothing is */
	struct pull *p;
};

static void part(const struct fixture *f, unsigned int shard, uint64_t *ret_begin,
                 uint64_t *ret_end)
{
	const struct shards_region r = { .size = SIZE, .page_size = UNIT_BYTES };

	shards_part(f->n, &r, shard, ret_begin, ret_end);
}

/* The first byte of a shard's part. */
static uint64_t bound(const struct fixture *f, unsigned int shard)
{
	uint64_t begin, end;

	part(f, shard, &begin, &end);
	return begin;
}

/* As libpostcopy does it. */
static void move_parts(struct fixture *f)
{
	f->uffds[0] = f->g.uffd;
	for (unsigned int i = 1; i < f->n; i++) {
		struct postcopy_region public = { .memory = f->g.table.regions[0].memory,
			                          .fd = f->g.fd,
			                          .page_size = UNIT_BYTES };
		struct error err = ERROR_INIT;
		uint64_t features, begin, end;
		uint32_t mode;

		part(f, i, &begin, &end);
		public.host_addr = f->g.addr + begin;
		public.size = end - begin;
		assert_int_equal(uffd_open(&f->uffds[i], &features, &err), 0);
		uffd_unregister(f->g.uffd, public.host_addr, public.size);
		if (uffd_trap(f->uffds[i], &public, 0, &mode, &err))
			fail_msg("%s", err.text);
	}
}

static int copy_of(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

/* A pull, with all there is by then in its config. */
static struct pull *make(struct fixture *f, int state_fd, unsigned int n)
{
	struct pull_config config = {
		.id = "vm",
		.table = f->g.table,
		.memories = { guest_memory(&f->g) },
		.uffd = copy_of(f->g.uffd),
		.state_fd = state_fd,
		.n_shards = n,
		.journals_fd = f->journals_fd,
		.map = f->map,
		.streams = 2,
		.bulk = true,
		.complete = on_complete,
		.connection = on_connection,
		.arg = &f->complete_fd,
	};
	struct error err = ERROR_INIT;
	struct pull *p;

	for (unsigned int i = 1; i < n; i++)
		config.shard_uffds[i - 1] = copy_of(f->uffds[i]);
	if (pull_new(&config, &p, &err))
		fail_msg("%s", err.text);
	return p;
}

static void take_shards(struct fixture *f)
{
	struct error err = ERROR_INIT;
	int uffds[SHARDS_MAX - 1];

	move_parts(f);
	for (unsigned int i = 1; i < f->n; i++)
		uffds[i - 1] = copy_of(f->uffds[i]);
	if (f->n > 1 && pull_take_shards(f->p, uffds, f->n, f->journals_fd, &err))
		fail_msg("%s", err.text);
}

static void connect_now(struct fixture *f)
{
	struct error err = ERROR_INIT;

	if (pull_connect(f->p, &f->s.target, f->s.client_side.context, &f->s.hello, f->s.epoch,
	                 &err))
		fail_msg("%s", err.text);
}

/* All but the pull. */
static void set_up(struct fixture *f, enum postcopy_memory kind, enum resolver_map map,
                   unsigned int n)
{
	memset(f, 0, sizeof *f);
	f->n = n;
	f->map = map;
	assert_true(guest_init(&f->g, kind, SIZE));
	f->s.content = calloc(1, SIZE);
	fill_content(f->s.content);
	source_start(&f->s, &f->g);
	relay_start(&f->relay, (uint16_t)atoi(f->s.target.port));
	snprintf(f->s.target.port, sizeof f->s.target.port, "%u", f->relay.port);
	f->complete_fd = eventfd(0, EFD_CLOEXEC);
	f->journals_fd = memfd_create("journals", MFD_CLOEXEC);
	assert_int_equal(ftruncate(f->journals_fd, (off_t)pull_journals_bytes(n)), 0);
	f->spare = mmap(f->g.addr + SIZE, SIZE, PROT_NONE,
	                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(f->spare != MAP_FAILED);
}

/* Faults are served. */
static void start(struct fixture *f, enum postcopy_memory kind, enum resolver_map map,
                  unsigned int n, enum when when)
{
	set_up(f, kind, map, n);
	if (when == AT_BIRTH)
		move_parts(f);
	f->p = make(f, -1, when == AT_BIRTH ? n : 1);
	connect_now(f);
	if (when == BEFORE_START)
		take_shards(f);
	assert_int_equal(pull_start(f->p), 0);
	if (when == AFTER_START)
		take_shards(f);
}

static void finish(struct fixture *f)
{
	struct error err = ERROR_INIT;

	assert_true(readable(f->complete_fd, TIMEOUT_MS));
	if (pull_finish(f->p, &err))
		fail_msg("%s", err.text);
}

/* All that the pull has filled: as much as there is, so nothing twice. */
static void check_filled_once(const struct fixture *f)
{
	const struct pull_stats *s = pull_stats(f->p);

	assert_int_equal(stat_get(&s->fill_write) + stat_get(&s->fill_memcpy) +
	                         stat_get(&s->fill_copy) + stat_get(&s->fill_zero),
	                 PAGES);
}

static void stop(struct fixture *f)
{
	relay_hold(&f->relay, false);
	pull_free(f->p);
	relay_stop(&f->relay);
	source_stop(&f->s);
	close(f->complete_fd);
	close(f->journals_fd);
	free(f->s.content);
	for (unsigned int i = 1; i < f->n; i++)
		close(f->uffds[i]);
	munmap(f->spare, SIZE);
	guest_deinit(&f->g);
}

/* vCPUs: each reads pages all over the memory, and writes to some. */
struct toucher {
	pthread_t thread;
	const struct fixture *f;
	uint64_t seed;
	unsigned int n;
	int done_fd;
};

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	for (unsigned int i = 0; i < t->n; i++) {
		size_t offset = random_next(&t->seed) % PAGES * UNIT_BYTES;

		assert_memory_equal(t->f->g.addr + offset, t->f->s.content + offset, UNIT_BYTES);
	}
	eventfd_write(t->done_fd, 1);
	return NULL;
}

static void touch(const struct fixture *f, struct toucher *t, uint64_t seed, unsigned int n)
{
	*t = (struct toucher){ .f = f, .seed = seed, .n = n, .done_fd = eventfd(0, EFD_CLOEXEC) };
	assert_int_equal(pthread_create(&t->thread, NULL, toucher_main, t), 0);
}

static void touched(struct toucher *t)
{
	if (!readable(t->done_fd, TIMEOUT_MS))
		fail_msg("a thread that waits for pages is stuck");
	pthread_join(t->thread, NULL);
	close(t->done_fd);
}

/* One page, and a thread that waits for it. */
struct vcpu {
	pthread_t thread;
	const uint8_t *page;
	uint8_t seen[UNIT_BYTES];
	int done_fd;
};

static void *vcpu_main(void *arg)
{
	struct vcpu *r = arg;

	memcpy(r->seen, r->page, sizeof r->seen);
	eventfd_write(r->done_fd, 1);
	return NULL;
}

static void read_page(struct vcpu *r, const uint8_t *page)
{
	r->page = page;
	r->done_fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(pthread_create(&r->thread, NULL, vcpu_main, r), 0);
}

/* @content: what it must have seen */
static void was_read(struct vcpu *r, const uint8_t *content)
{
	if (!readable(r->done_fd, TIMEOUT_MS))
		fail_msg("a thread that waits for a page is stuck");
	pthread_join(r->thread, NULL);
	close(r->done_fd);
	assert_memory_equal(r->seen, content, UNIT_BYTES);
}

static void check_page(const struct fixture *f, uint64_t offset)
{
	struct vcpu r;

	read_page(&r, f->g.addr + offset);
	was_read(&r, f->s.content + offset);
}

static void check_parts(const struct fixture *f, unsigned int page)
{
	for (unsigned int i = 0; i < f->n; i++)
		check_page(f, bound(f, i) + page * UNIT_BYTES);
}

/* The VMM's end of a fetch channel. */
static int add_channel(const struct fixture *f)
{
	int ends[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends), 0);
	assert_int_equal(pull_add_channel(f->p, ends[0]), 0);
	return ends[1];
}

static void fetch(int fd, uint64_t offset, uint64_t len)
{
	struct fetch_request q = { .tag = offset, .guest_phys_addr = offset, .len = len };
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];
	size_t bytes = fetch_request_encode(&q, buf);

	assert_int_equal(send(fd, buf, bytes, 0), bytes);
}

static void was_fetched(int fd)
{
	uint8_t buf[FETCH_ANSWER_BYTES];

	if (!readable(fd, TIMEOUT_MS))
		fail_msg("a fetch is not answered");
	assert_int_equal(recv(fd, buf, sizeof buf, 0), sizeof buf);
}

static const enum postcopy_memory kinds[] = { POSTCOPY_MEMORY_MEMFD, POSTCOPY_MEMORY_ANONYMOUS };

static void serve_all(enum postcopy_memory kind, enum resolver_map map, unsigned int n,
                      enum when when)
{
	struct toucher t[6];
	struct fixture f;

	start(&f, kind, map, n, when);
	for (unsigned int i = 0; i < 6; i++)
		touch(&f, &t[i], 1000 * n + i, 60);
	assert_int_equal(pull_start_bulk(f.p), 0);
	for (unsigned int i = 0; i < 6; i++)
		touched(&t[i]);
	wait_threads("fault", n);
	finish(&f);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	check_filled_once(&f);
	stop(&f);
}

static void test_faults_of_all_parts_are_served(void **state)
{
	static const unsigned int ns[] = { 1, 2, 4, 8 };

	(void)state;
	for (unsigned int i = 0; i < 4; i++)
		for (unsigned int kind = 0; kind < 2; kind++)
			for (enum when when = AT_BIRTH; when <= AFTER_START; when++) {
				serve_all(kinds[kind], RESOLVER_MAP_EAGER, ns[i], when);
				serve_all(kinds[kind], RESOLVER_MAP_LAZY, ns[i], when);
			}
}

/* Each thread reads its own: faults alone, and none of another's. */
static void test_each_part_has_its_thread_and_connection(void **state)
{
	const struct pull_stats *stats;
	struct fixture f;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 4, AT_BIRTH);
	stats = pull_stats(f.p);
	wait_threads("fault", 4);
	wait_threads("serve-urgent", 4);
	check_parts(&f, 3);
	assert_int_equal(atomic_load(&stats->faults_remote), 4);
	assert_int_equal(atomic_load(&stats->reconnects), 0);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	stop(&f);
}

/* Its fourth urgent connection ended its first one, with the faults that wait there. */
static void test_an_older_source_has_one_urgent_connection(void **state)
{
	struct fixture f;

	(void)state;
	is_older = true;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 8, AT_BIRTH);
	/* Two streams, and seven. */
	wait_threads("serve-bulk", 9);
	wait_threads("serve-urgent", 1);
	check_parts(&f, 3);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	assert_int_equal(atomic_load(&pull_stats(f.p)->reconnects), 0);
	stop(&f);
	is_older = false;
}

/*
 * Nobody waits at the mapping when the parts are moved, but a fetch may: its answers come when the
 * pages are another thread's.
 */
static void test_what_was_asked_before_the_parts_moved_is_asked_anew(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++) {
		struct fixture f;
		int fd;

		start(&f, kinds[kind], RESOLVER_MAP_EAGER, 1, AT_BIRTH);
		f.n = 4;
		assert_int_equal(ftruncate(f.journals_fd, (off_t)pull_journals_bytes(4)), 0);
		relay_hold(&f.relay, true);
		fd = add_channel(&f);
		for (unsigned int i = 0; i < 4; i++)
			fetch(fd, bound(&f, i), UNIT_BYTES);
		wait_count(&page_source_stats(f.s.source)->requests, 4);
		take_shards(&f);
		/* By connections that are not held. */
		for (unsigned int i = 1; i < 4; i++)
			was_fetched(fd);
		assert_false(readable(fd, 0));
		relay_hold(&f.relay, false);
		was_fetched(fd);
		assert_int_equal(pull_missing(f.p), PAGES - 4);
		check_parts(&f, 0);
		check_parts(&f, 1);
		assert_int_equal(pull_start_bulk(f.p), 0);
		finish(&f);
		assert_memory_equal(f.g.addr, f.s.content, SIZE);
		check_filled_once(&f);
		close(fd);
		stop(&f);
	}
}

static void test_shards_that_make_no_sense_are_refused(void **state)
{
	int uffds[SHARDS_MAX] = { -1, -1, -1, -1, -1, -1, -1, -1 };
	struct error err = ERROR_INIT;
	struct fixture f;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 2, AFTER_START);
	uffds[0] = f.uffds[1];
	assert_int_equal(pull_take_shards(f.p, uffds, 2, f.journals_fd, &err), -EINVAL);
	check_parts(&f, 3);
	stop(&f);

	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 1, AFTER_START);
	assert_int_equal(pull_take_shards(f.p, uffds, 1, f.journals_fd, &err), -EINVAL);
	assert_int_equal(pull_take_shards(f.p, uffds, 9, f.journals_fd, &err), -EINVAL);
	/* An empty memfd. */
	uffds[0] = f.g.uffd;
	assert_int_equal(pull_take_shards(f.p, uffds, 2, f.journals_fd, &err), -EINVAL);
	assert_int_equal(ftruncate(f.journals_fd, (off_t)pull_journals_bytes(2)), 0);
	uffds[0] = f.journals_fd;
	assert_int_equal(pull_take_shards(f.p, uffds, 2, f.journals_fd, &err), -EINVAL);
	check_parts(&f, 3);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	stop(&f);
}

/* What is missing is zero when madvise() has returned; and zero it stays. */
static void test_discards_within_a_part_and_across_a_bound(void **state)
{
	(void)state;
	for (unsigned int n = 2; n <= 8; n *= 2) {
		struct fixture f;
		uint64_t last;

		start(&f, POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER, n, AT_BIRTH);
		last = bound(&f, n - 1);
		pull_set_bandwidth(f.p, 64u << 20);
		assert_int_equal(pull_start_bulk(f.p), 0);
		assert_int_equal(madvise(f.g.addr + last - PIECE / 2, PIECE, MADV_DONTNEED), 0);
		assert_int_equal(madvise(f.g.addr + last + PIECE, PIECE / 2, MADV_DONTNEED), 0);
		pull_set_bandwidth(f.p, 0);
		memset(f.s.content + last - PIECE / 2, 0, PIECE);
		memset(f.s.content + last + PIECE, 0, PIECE / 2);
		assert_memory_equal(f.g.addr + last - PIECE / 2, f.s.content + last - PIECE / 2,
		                    PIECE);
		finish(&f);
		assert_memory_equal(f.g.addr, f.s.content, SIZE);
		stop(&f);
	}
}

static void test_munmap_within_a_part_and_across_a_bound(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++) {
		struct fixture f;
		uint64_t mid;

		start(&f, kinds[kind], RESOLVER_MAP_EAGER, 4, BEFORE_START);
		mid = bound(&f, 2);
		pull_set_bandwidth(f.p, 64u << 20);
		assert_int_equal(pull_start_bulk(f.p), 0);
		assert_int_equal(munmap(f.g.addr + mid - PIECE / 2, PIECE), 0);
		assert_int_equal(munmap(f.g.addr + PIECE / 4, PIECE / 4), 0);
		check_page(&f, mid - PIECE / 2 - UNIT_BYTES);
		check_page(&f, mid + PIECE / 2);
		pull_set_bandwidth(f.p, 0);
		finish(&f);
		assert_memory_equal(f.g.addr, f.s.content, PIECE / 4);
		assert_memory_equal(f.g.addr + PIECE / 2, f.s.content + PIECE / 2, mid - PIECE);
		assert_memory_equal(f.g.addr + mid + PIECE / 2, f.s.content + mid + PIECE / 2,
		                    SIZE - mid - PIECE / 2);
		stop(&f);
	}
}

static void move(uint8_t *from, uint8_t *to, size_t len)
{
	assert_true(mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
}

/*
 * A range moves away, to where another shard's was, be it gone before or by this; and back. While
 * bulk fills all of it.
 */
static void test_mremap_to_where_another_shards_was(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++)
		for (enum resolver_map map = RESOLVER_MAP_EAGER; map <= RESOLVER_MAP_LAZY; map++) {
			uint8_t *first, *second, *third;
			uint64_t at[3];
			struct vcpu r[3];
			struct fixture f;

			start(&f, kinds[kind], map, 4, AT_BIRTH);
			for (unsigned int i = 0; i < 3; i++)
				at[i] = bound(&f, i) + PIECE / 2;
			first = f.g.addr + at[0];
			second = f.g.addr + at[1];
			third = f.g.addr + at[2];
			pull_set_bandwidth(f.p, 128u << 20);
			assert_int_equal(pull_start_bulk(f.p), 0);
			/* The second's in the place of the first's, which is elsewhere. */
			move(first, f.spare, PIECE);
			move(second, first, PIECE);
			/* The third's over what is left of the second's. */
			assert_int_equal(munmap(second, PIECE / 2), -(kind > 1));
			move(third, second, PIECE);
			read_page(&r[0], f.spare + 5 * UNIT_BYTES);
			read_page(&r[1], first + 5 * UNIT_BYTES);
			read_page(&r[2], second + 5 * UNIT_BYTES);
			for (unsigned int i = 0; i < 3; i++)
				was_read(&r[i], f.s.content + at[i] + 5 * UNIT_BYTES);
			/* And the second's over the third's, which has gone over something. */
			move(first, second, PIECE);
			pull_set_bandwidth(f.p, 0);
			finish(&f);
			assert_memory_equal(f.spare, f.s.content + at[0], PIECE);
			assert_memory_equal(second, f.s.content + at[1], PIECE);
			assert_memory_equal(f.g.addr, f.s.content, at[0]);
			assert_memory_equal(f.g.addr + at[2] + PIECE, f.s.content + at[2] + PIECE,
			                    SIZE - at[2] - PIECE);
			stop(&f);
		}
}

/* To and fro as fast as it goes: pieces of two shards change places, while bulk fills them. */
static void test_mremap_of_two_shards_all_the_time(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++) {
		uint8_t *free_place, *is_at[2];
		uint64_t at[2];
		struct fixture f;

		start(&f, kinds[kind], RESOLVER_MAP_EAGER, 2, AT_BIRTH);
		for (unsigned int i = 0; i < 2; i++) {
			at[i] = bound(&f, i);
			is_at[i] = f.g.addr + at[i];
		}
		free_place = f.spare;
		pull_set_bandwidth(f.p, 32u << 20);
		assert_int_equal(pull_start_bulk(f.p), 0);
		for (unsigned int i = 0; pull_missing(f.p); i++) {
			unsigned int who = i % 2;
			uint8_t *from = is_at[who];

			move(from, free_place, PIECE);
			is_at[who] = free_place;
			free_place = from;
			if (i > 200)
				pull_set_bandwidth(f.p, 0);
		}
		finish(&f);
		for (unsigned int i = 0; i < 2; i++)
			assert_memory_equal(is_at[i], f.s.content + at[i], PIECE);
		stop(&f);
	}
}

/* Who waits there has it asked for anew; who waits elsewhere has not lost anything. */
static void test_one_connection_of_several_is_lost(void **state)
{
	const struct pull_stats *stats;
	struct pull_connection c;
	struct fixture f;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 4, AT_BIRTH);
	stats = pull_stats(f.p);
	wait_threads("serve-urgent", 4);
	/* One urgent, two of bulk, and those that the keeper has dialled. */
	for (unsigned int i = 1; i < 4; i++) {
		relay_cut(&f.relay, 2 + i);
		wait_count(&stats->reconnects, i);
		check_parts(&f, i);
		wait_threads("serve-urgent", 4);
	}
	pull_get_connection(f.p, &c);
	assert_false(c.lost);
	assert_int_equal(atomic_load(&stats->faults_remote), 12);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	assert_memory_equal(f.g.addr, f.s.content, SIZE);
	stop(&f);
}

static struct pull_connection await_failed_dial(struct fixture *f)
{
	uint64_t until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;
	struct pull_connection c;

	do {
		assert_true(clock_now_ns() < until_ns);
		pull_get_connection(f->p, &c);
	} while (!c.dials_failed);
	return c;
}

/* Pages of the others come still: what is given up for lost then would be lost by us. */
static void test_a_source_that_refuses_one_connection_is_not_away(void **state)
{
	struct pull_connection c;
	struct fixture f;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 2, AT_BIRTH);
	wait_threads("serve-urgent", 2);
	atomic_store(&f.relay.refuses, true);
	relay_cut(&f.relay, 3);
	c = await_failed_dial(&f);
	assert_true(c.lost);
	assert_false(c.away);
	relay_cut(&f.relay, 0);
	do
		pull_get_connection(f.p, &c);
	while (!c.away);
	atomic_store(&f.relay.refuses, false);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	stop(&f);
}

/* The source's guest was attached anew while it warmed: what was dialled ahead is to the one
 * before. */
static void test_connections_ahead_are_of_the_attachment_that_counts(void **state)
{
	const struct pull_stats *stats;
	struct fixture f;

	(void)state;
	set_up(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 4);
	move_parts(&f);
	f.p = make(&f, -1, 4);
	stats = pull_stats(f.p);
	connect_now(&f);
	wait_threads("serve-urgent", 4);
	/* As it ends them. */
	for (unsigned int i = 0; i < 6; i++)
		relay_cut(&f.relay, i);
	wait_threads("serve-urgent", 0);
	connect_now(&f);
	wait_threads("serve-urgent", 4);
	assert_int_equal(pull_start(f.p), 0);
	check_parts(&f, 1);
	assert_int_equal(atomic_load(&stats->faults_remote), 4);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	stop(&f);
}

/* The source is away: all are lost, one of them tells. It is back: all are there. */
static void test_all_connections_are_lost(void **state)
{
	struct pull_connection c;
	struct vcpu r[4];
	struct fixture f;
	uint64_t until_ns;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 4, AFTER_START);
	wait_threads("serve-urgent", 4);
	relay_hold(&f.relay, true);
	for (unsigned int i = 0; i < 4; i++)
		read_page(&r[i], f.g.addr + bound(&f, i));
	wait_count(&pull_stats(f.p)->faults_remote, 4);
	for (unsigned int i = 3; i < 6; i++)
		relay_cut(&f.relay, i);
	relay_cut(&f.relay, 0);
	wait_count(&pull_stats(f.p)->reconnects, 4);
	relay_hold(&f.relay, false);
	for (unsigned int i = 0; i < 4; i++)
		was_read(&r[i], f.s.content + bound(&f, i));
	until_ns = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;
	do {
		assert_true(clock_now_ns() < until_ns);
		pull_get_connection(f.p, &c);
	} while (c.lost);
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	stop(&f);
}

/* A thread of the VMM that changes its mappings, and waits until its event is read. */
struct changer {
	pthread_t thread;
	uint8_t *addr, *to; /* to: moved there; or unmapped */
	bool discard;
	int done_fd;
};

static void *changer_main(void *arg)
{
	struct changer *c = arg;

	if (c->discard)
		assert_int_equal(madvise(c->addr, PIECE / 2, MADV_DONTNEED), 0);
	else if (c->to)
		move(c->addr, c->to, PIECE / 2);
	else
		assert_int_equal(munmap(c->addr, PIECE / 2), 0);
	eventfd_write(c->done_fd, 1);
	return NULL;
}

static void begin_change(struct changer *c)
{
	c->done_fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(pthread_create(&c->thread, NULL, changer_main, c), 0);
}

static void end_change(struct changer *c)
{
	assert_true(readable(c->done_fd, TIMEOUT_MS));
	pthread_join(c->thread, NULL);
	close(c->done_fd);
}

/* As a process that is killed then: the kernel has put the events into the journal's slots. */
static void take_events(const struct changer *c, int uffd, int fd, off_t journal)
{
	struct uffd_msg *slots =
	        mmap(NULL, EVENTS_ROOM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, journal);
	unsigned int n = 0;

	assert_true(slots != MAP_FAILED);
	for (;;) {
		struct pollfd fds[] = { { .fd = c->done_fd, .events = POLLIN },
			                { .fd = uffd, .events = POLLIN } };

		assert_true(poll(fds, 2, TIMEOUT_MS) > 0);
		if (fds[0].revents)
			break;
		assert_int_equal(read(uffd, &slots[n++], sizeof *slots), sizeof *slots);
	}
	assert_true(n);
	munmap(slots, EVENTS_ROOM_BYTES);
}

/* Killed with an event taken, and not applied, in each of three journals. */
static void test_events_in_several_journals_are_taken_up(void **state)
{
	/* Behind the page state's first page lies its room. */
	const off_t room = 4096;
	struct changer changers[3];
	struct fixture f;
	uint64_t at[3];
	int state_fd;

	(void)state;
	set_up(&f, POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER, 4);
	move_parts(&f);
	f.p = make(&f, -1, 4);
	state_fd = copy_of(pull_state_fd(f.p));
	pull_free(f.p);
	for (unsigned int i = 0; i < 3; i++)
		at[i] = bound(&f, i) + PIECE / 2;
	changers[0] = (struct changer){ .addr = f.g.addr + at[0], .discard = true };
	changers[1] = (struct changer){ .addr = f.g.addr + at[1] };
	changers[2] = (struct changer){ .addr = f.g.addr + at[2], .to = f.spare };
	for (unsigned int i = 0; i < 3; i++) {
		begin_change(&changers[i]);
		take_events(&changers[i], f.uffds[i], i ? f.journals_fd : state_fd,
		            i ? (off_t)((i - 1) * EVENTS_ROOM_BYTES) : room);
		end_change(&changers[i]);
	}
	f.p = make(&f, state_fd, 4);
	close(state_fd);
	pull_connect_later(f.p, &f.s.target, f.s.client_side.context, &f.s.hello, f.s.epoch);
	assert_int_equal(pull_missing(f.p), PAGES - PIECE / 2 / UNIT_BYTES);
	assert_int_equal(pull_start(f.p), 0);
	memset(f.s.content + at[0], 0, PIECE / 2);
	check_page(&f, at[0] + 9 * UNIT_BYTES);
	for (unsigned int i = 0; i < 3; i++) {
		struct vcpu r;

		read_page(&r, f.spare + i * UNIT_BYTES);
		was_read(&r, f.s.content + at[2] + i * UNIT_BYTES);
	}
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	assert_memory_equal(f.g.addr, f.s.content, at[1]);
	assert_memory_equal(f.spare, f.s.content + at[2], PIECE / 2);
	assert_memory_equal(f.g.addr + at[1] + PIECE / 2, f.s.content + at[1] + PIECE / 2,
	                    at[2] - at[1] - PIECE / 2);
	assert_memory_equal(f.g.addr + at[2] + PIECE / 2, f.s.content + at[2] + PIECE / 2,
	                    SIZE - at[2] - PIECE / 2);
	stop(&f);
}

/* Moved by one process; the next knows by the journals where each part's pieces are. */
static void test_the_next_process_goes_on_with_all_maps(void **state)
{
	struct fixture f;
	uint64_t at;
	int state_fd;

	(void)state;
	start(&f, POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER, 2, AFTER_START);
	at = bound(&f, 1);
	move(f.g.addr + at, f.spare, PIECE);
	check_page(&f, 0);
	state_fd = copy_of(pull_state_fd(f.p));
	pull_free(f.p);
	f.p = make(&f, state_fd, 2);
	close(state_fd);
	pull_connect_later(f.p, &f.s.target, f.s.client_side.context, &f.s.hello, f.s.epoch);
	assert_int_equal(pull_start(f.p), 0);
	for (unsigned int i = 0; i < 3; i++) {
		struct vcpu r;

		read_page(&r, f.spare + i * UNIT_BYTES);
		was_read(&r, f.s.content + at + i * UNIT_BYTES);
	}
	assert_int_equal(pull_start_bulk(f.p), 0);
	finish(&f);
	assert_memory_equal(f.spare, f.s.content + at, PIECE);
	assert_memory_equal(f.g.addr, f.s.content, at);
	assert_memory_equal(f.g.addr + at + PIECE, f.s.content + at + PIECE, SIZE - at - PIECE);
	stop(&f);
}

/* A fetch names pages of all parts; whoever fills them. */
static void test_fetches_reach_all_parts(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++) {
		struct fixture f;
		int fd;

		start(&f, kinds[kind], RESOLVER_MAP_LAZY, 8, AT_BIRTH);
		fd = add_channel(&f);
		/* More than there is room for in what is left for another thread. */
		for (uint64_t offset = 0; offset < SIZE; offset += PIECE)
			fetch(fd, offset, PIECE);
		for (uint64_t offset = 0; offset < SIZE; offset += PIECE)
			was_fetched(fd);
		assert_int_equal(pull_missing(f.p), 0);
		finish(&f);
		assert_memory_equal(f.g.addr, f.s.content, SIZE);
		check_filled_once(&f);
		close(fd);
		stop(&f);
	}
}

/* Who touches what is lost is told so, in whichever part. */
static void test_poison_reaches_all_parts(void **state)
{
	(void)state;
	for (unsigned int kind = 0; kind < 2; kind++) {
		struct error err = ERROR_INIT;
		uint64_t units;
		struct fixture f;
		int rc, pipe_fds[2];

		start(&f, kinds[kind], RESOLVER_MAP_EAGER, 4, AT_BIRTH);
		check_parts(&f, 3);
		rc = pull_poison(f.p, &units, &err);
		if (rc == -EOPNOTSUPP) {
			printf("%s\n", err.text);
			stop(&f);
			skip();
		}
		assert_int_equal(rc, 0);
		assert_int_equal(units, PAGES - 4);
		assert_int_equal(pull_finish(f.p, &err), 0);
		assert_int_equal(pipe(pipe_fds), 0);
		for (unsigned int i = 0; i < 4; i++) {
			uint8_t *part = f.g.addr + bound(&f, i);

			check_page(&f, bound(&f, i) + 3 * UNIT_BYTES);
			assert_int_equal(write(pipe_fds[1], part, 1), -1);
			assert_int_equal(write(pipe_fds[1], part + PIECE, 1), -1);
		}
		close(pipe_fds[0]);
		close(pipe_fds[1]);
		stop(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_faults_of_all_parts_are_served),
		cmocka_unit_test(test_each_part_has_its_thread_and_connection),
		cmocka_unit_test(test_an_older_source_has_one_urgent_connection),
		cmocka_unit_test(test_what_was_asked_before_the_parts_moved_is_asked_anew),
		cmocka_unit_test(test_shards_that_make_no_sense_are_refused),
		cmocka_unit_test(test_discards_within_a_part_and_across_a_bound),
		cmocka_unit_test(test_munmap_within_a_part_and_across_a_bound),
		cmocka_unit_test(test_mremap_to_where_another_shards_was),
		cmocka_unit_test(test_mremap_of_two_shards_all_the_time),
		cmocka_unit_test(test_one_connection_of_several_is_lost),
		cmocka_unit_test(test_a_source_that_refuses_one_connection_is_not_away),
		cmocka_unit_test(test_connections_ahead_are_of_the_attachment_that_counts),
		cmocka_unit_test(test_all_connections_are_lost),
		cmocka_unit_test(test_events_in_several_journals_are_taken_up),
		cmocka_unit_test(test_the_next_process_goes_on_with_all_maps),
		cmocka_unit_test(test_fetches_reach_all_parts),
		cmocka_unit_test(test_poison_reaches_all_parts),
	};

	return cmocka_run_group_tests_name("fault-shards", tests, NULL, NULL);
}
