/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that a VMM asks for: the daemon's table of fetches, and libpostcopy's channel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fault/fetch.h"
#include "libpostcopy/fetch_wire.h"
#include "libpostcopy/vmm_wire.h"
#include "util/cleanup.h"

#define PAGE 4096ull
#define MIB (1ull << 20)
#define HUGE_START (64 * MIB)

/* The daemon's side: a memfd region at 1 MiB and a hugetlb one at 64 MiB. */
struct daemon {
	struct region_table regions;
	struct page_state *state;
	struct fault_table faults;
	struct fetch_table fetches;
	int vmm; /* the VMM's end of channel 0 */
};

static int add_channel(struct daemon *d)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
	assert_int_equal(fetch_table_add_channel(&d->fetches, pair[0]), 0);
	return pair[1];
}

static int daemon_setup(void **state)
{
	struct daemon *d = calloc(1, sizeof *d);
	struct region small = { .memory = POSTCOPY_MEMORY_MEMFD,
		                .guest_phys_addr = MIB,
		                .size = 4 * MIB,
		                .page_size = PAGE };
	struct region huge = { .memory = POSTCOPY_MEMORY_HUGETLB,
		               .guest_phys_addr = HUGE_START,
		               .size = 4 * MIB,
		               .page_size = 2 * MIB };

	assert_int_equal(region_table_add(&d->regions, &small, NULL), 0);
	assert_int_equal(region_table_add(&d->regions, &huge, NULL), 0);
	assert_int_equal(page_state_new(&d->regions, &d->state, NULL), 0);
	d->vmm = add_channel(d);
	*state = d;
	return 0;
}

static int daemon_teardown(void **state)
{
	struct daemon *d = *state;

	fetch_table_close(&d->fetches);
	page_state_free(d->state);
	close_fd(&d->vmm);
	free(d);
	return 0;
}

static void ask(int vmm, uint64_t tag, uint64_t addr, uint64_t len)
{
	struct fetch_request q = { .tag = tag, .guest_phys_addr = addr, .len = len };
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];

	assert_int_equal(fetch_request_encode(&q, buf), FETCH_REQUEST_BYTES);
	assert_int_equal(send(vmm, buf, FETCH_REQUEST_BYTES, 0), FETCH_REQUEST_BYTES);
}

static void ask_discard(int vmm, uint64_t tag, uint64_t addr, uint64_t len)
{
	struct fetch_request q = {
		.tag = tag, .guest_phys_addr = addr, .len = len, .discard = true
	};
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];

	assert_int_equal(fetch_request_encode(&q, buf), sizeof buf);
	assert_int_equal(send(vmm, buf, sizeof buf, 0), sizeof buf);
}

static void serve(struct daemon *d)
{
	for (unsigned int i = 0; i < d->fetches.n_channels; i++)
		if (d->fetches.channels[i] >= 0)
			fetch_table_read(&d->fetches, i, &d->regions);
	fetch_table_serve(&d->fetches, &d->regions, d->state, &d->faults, 7);
}

#define NO_ANSWER (-1)
#define CLOSED (-2)

/* The code of the answer that is there, NO_ANSWER or CLOSED. */
static int answered(int vmm, uint64_t *ret_tag)
{
	uint8_t buf[FETCH_ANSWER_BYTES + 1];
	struct fetch_answer a;
	ssize_t n;

	do
		n = recv(vmm, buf, sizeof buf, MSG_DONTWAIT);
	while (n < 0 && errno == ECONNRESET);
	if (n < 0)
		return NO_ANSWER;
	if (!n)
		return CLOSED;
	assert_true(fetch_answer_decode(buf, (size_t)n, &a));
	*ret_tag = a.tag;
	return (int)a.code;
}

static void expect_answer(int vmm, uint64_t tag, int code)
{
	uint64_t got = 0;

	assert_int_equal(answered(vmm, &got), code);
	assert_int_equal(got, tag);
}

static void expect_none(int vmm)
{
	uint64_t tag;

	assert_int_equal(answered(vmm, &tag), NO_ANSWER);
}

static void expect_closed(int vmm)
{
	uint64_t tag;

	assert_int_equal(answered(vmm, &tag), CLOSED);
}

static void make_present(struct daemon *d, uint32_t region, uint64_t first, uint64_t n)
{
	for (uint64_t unit = first; unit < first + n; unit++) {
		uint64_t bit = 1ull << (unit % WORD_UNITS);

		page_state_claim(d->state, region, unit / WORD_UNITS, bit);
		page_state_publish(d->state, region, unit / WORD_UNITS, bit);
	}
}

static void test_a_fetch_faults_what_is_missing(void **state)
{
	struct daemon *d = *state;

	make_present(d, 0, 11, 1);
	ask(d->vmm, 9, MIB + 10 * PAGE, 4 * PAGE);
	serve(d);
	assert_int_equal(d->faults.n, 3);
	assert_non_null(fault_table_find(&d->faults, 0, 10));
	assert_null(fault_table_find(&d->faults, 0, 11));
	assert_non_null(fault_table_find(&d->faults, 0, 13));
	assert_true(d->faults.faults[0].record.flags & FAULT_FETCHED);
	expect_none(d->vmm);
	/* Looked at again nothing is faulted twice. */
	serve(d);
	assert_int_equal(d->faults.n, 3);
	make_present(d, 0, 10, 3);
	serve(d);
	expect_none(d->vmm);
	make_present(d, 0, 13, 1);
	serve(d);
	expect_answer(d->vmm, 9, 0);
	serve(d);
	expect_none(d->vmm);
}

static void test_what_is_present_is_answered_at_once(void **state)
{
	struct daemon *d = *state;

	make_present(d, 0, 0, 64);
	ask(d->vmm, 1, MIB, 64 * PAGE);
	serve(d);
	expect_answer(d->vmm, 1, 0);
	assert_int_equal(d->faults.n, 0);
}

static void test_a_part_of_a_huge_page_is_all_of_it(void **state)
{
	struct daemon *d = *state;

	ask(d->vmm, 1, HUGE_START + 2 * MIB + 5 * PAGE, PAGE);
	serve(d);
	assert_int_equal(d->faults.n, 1);
	assert_non_null(fault_table_find(&d->faults, 1, 512));
	make_present(d, 1, 512, 511);
	serve(d);
	expect_none(d->vmm);
	make_present(d, 1, 1023, 1);
	serve(d);
	expect_answer(d->vmm, 1, 0);
}

static void test_bad_ranges_are_answered_einval(void **state)
{
	static const struct {
		uint64_t addr, len;
	} bad[] = {
		{ MIB, 0 },
		{ MIB, 1 },
		{ MIB + 1, PAGE },
		{ MIB, 2 * MIB + PAGE },
		{ MIB - PAGE, PAGE },
		{ MIB - PAGE, 2 * PAGE },
		{ 5 * MIB - PAGE, 2 * PAGE },
		{ 5 * MIB, PAGE },
		{ UINT64_MAX - PAGE + 1, 2 * PAGE },
		{ MIB, UINT64_MAX - PAGE + 1 },
	};
	struct daemon *d = *state;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		ask(d->vmm, i, bad[i].addr, bad[i].len);
		serve(d);
		expect_answer(d->vmm, i, EINVAL);
	}
	assert_int_equal(d->faults.n, 0);
}

static void test_no_request_at_all_ends_the_channel(void **state)
{
	struct daemon *d = *state;
	int other = add_channel(d);

	ask(d->vmm, 1, MIB, PAGE);
	ask(d->vmm, FETCH_TAG_ALL, MIB, PAGE);
	ask(other, 2, MIB, PAGE);
	serve(d);
	expect_closed(d->vmm);
	/* Its request went with it, the other's stayed. */
	assert_int_equal(d->fetches.n, 1);
	make_present(d, 0, 0, 1);
	serve(d);
	expect_answer(other, 2, 0);
	close(other);
}

static void test_a_channel_s_place_is_used_again(void **state)
{
	struct daemon *d = *state;
	int ends[FETCH_CHANNELS_MAX], pair[2];

	for (unsigned int i = 1; i < FETCH_CHANNELS_MAX; i++)
		ends[i] = add_channel(d);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	assert_int_equal(fetch_table_add_channel(&d->fetches, pair[0]), -EMFILE);
	expect_closed(pair[1]);
	close(pair[1]);
	close(ends[5]);
	serve(d);
	ends[5] = add_channel(d);
	make_present(d, 0, 0, 1);
	ask(ends[5], 3, MIB, PAGE);
	serve(d);
	expect_answer(ends[5], 3, 0);
	for (unsigned int i = 1; i < FETCH_CHANNELS_MAX; i++)
		close(ends[i]);
}

static void test_more_than_fit_wait_in_the_socket(void **state)
{
	struct daemon *d = *state;
	const unsigned int more = 10;
	int other = add_channel(d);

	for (unsigned int i = 0; i < FETCHES_MAX / 2; i++)
		ask(d->vmm, i, MIB + i * PAGE, PAGE);
	for (unsigned int i = 0; i < FETCHES_MAX / 2 + more; i++)
		ask(other, i, MIB + i * PAGE, PAGE);
	serve(d);
	assert_int_equal(d->fetches.n, FETCHES_MAX);
	assert_false(fetch_table_has_room(&d->fetches));
	make_present(d, 0, 0, 4 * MIB / PAGE);
	serve(d);
	assert_int_equal(d->fetches.n, 0);
	serve(d);
	for (unsigned int i = 0; i < FETCHES_MAX / 2 + more; i++) {
		uint64_t tag;

		assert_int_equal(answered(other, &tag), 0);
	}
	expect_none(other);
	close(other);
}

static void test_a_full_fault_table_is_filled_up_later(void **state)
{
	struct daemon *d = *state;

	ask(d->vmm, 1, MIB, 2 * MIB);
	ask(d->vmm, 2, HUGE_START, PAGE);
	serve(d);
	assert_int_equal(d->faults.n, FAULT_TABLE_FETCHED_MAX);
	assert_null(fault_table_find(&d->faults, 1, 0));
	fault_table_remove(&d->faults, &d->faults.faults[0]);
	serve(d);
	assert_non_null(fault_table_find(&d->faults, 1, 0));
}

/* Zero at once what is missing; and an answer when what somebody was filling is in place. */
static void test_a_discard_waits_for_what_is_being_filled(void **state)
{
	struct daemon *d = *state;

	make_present(d, 0, 11, 1);
	assert_true(page_state_claim(d->state, 0, 0, 1ull << 12));
	ask_discard(d->vmm, 9, MIB + 10 * PAGE, 4 * PAGE);
	serve(d);
	assert_int_equal(d->faults.n, 0);
	assert_true(page_state_present(d->state, 0, 0) == 0xbull << 10);
	expect_none(d->vmm);
	page_state_publish(d->state, 0, 0, 1ull << 12);
	serve(d);
	expect_answer(d->vmm, 9, 0);
	/* Another that its filler gives up: the discard has it then. */
	assert_true(page_state_claim(d->state, 0, 0, 1ull << 20));
	ask_discard(d->vmm, 10, MIB + 20 * PAGE, PAGE);
	serve(d);
	expect_none(d->vmm);
	page_state_unclaim(d->state, 0, 0, 1ull << 20);
	serve(d);
	expect_answer(d->vmm, 10, 0);
}

/* A part of a huge page, of which a part is here: that is all that is discarded. */
static void test_a_discard_of_a_part_of_a_huge_page(void **state)
{
	struct daemon *d = *state;

	make_present(d, 1, 1, 1);
	ask_discard(d->vmm, 1, HUGE_START, 3 * PAGE);
	serve(d);
	expect_answer(d->vmm, 1, 0);
	assert_true(page_state_present(d->state, 1, 0) == 7);
	assert_false(page_state_page_present(d->state, 1, 0));
	ask_discard(d->vmm, 2, HUGE_START, 2 * MIB);
	serve(d);
	expect_answer(d->vmm, 2, 0);
	assert_true(page_state_page_present(d->state, 1, 0));
}

static void say_hot(int vmm, uint64_t addr, uint64_t len)
{
	struct fetch_request q = { .guest_phys_addr = addr, .len = len, .hot = true };
	uint8_t buf[FETCH_REQUEST_BYTES_MAX];

	assert_int_equal(fetch_request_encode(&q, buf), sizeof buf);
	assert_int_equal(send(vmm, buf, sizeof buf, 0), sizeof buf);
}

/* A hint is no fetch: bulk asks for it first, and nobody is answered. */
static void test_hot_ranges_are_told_to_the_scheduler(void **state)
{
	struct daemon *d = *state;
	struct scheduler_item item;

	assert_int_equal(scheduler_new(&d->regions, d->state, &d->fetches.scheduler, NULL), 0);
	say_hot(d->vmm, MIB + 3 * WORD_UNITS * PAGE, 4 * MIB - 3 * WORD_UNITS * PAGE);
	say_hot(d->vmm, MIB + PAGE, PAGE);
	/* A part of a huge page is of no use. */
	say_hot(d->vmm, HUGE_START + PAGE, PAGE);
	/* These are no ranges of the guest's. */
	say_hot(d->vmm, 0, PAGE);
	say_hot(d->vmm, MIB, 5 * MIB);
	say_hot(d->vmm, MIB, 0);
	serve(d);
	expect_none(d->vmm);
	assert_int_equal(d->fetches.n, 0);
	assert_int_equal(d->faults.n, 0);
	for (uint64_t word = 3; word < 4 * MIB / PAGE / WORD_UNITS; word++) {
		assert_true(scheduler_next(d->fetches.scheduler, &item));
		assert_int_equal(item.why, SCHEDULER_HOT);
		assert_int_equal(item.word, word);
	}
	assert_true(scheduler_next(d->fetches.scheduler, &item));
	assert_true(item.why == SCHEDULER_HOT && !item.word && item.want_mask == 2);
	for (uint64_t word = 0; word < 2 * MIB / PAGE / WORD_UNITS; word++) {
		assert_true(scheduler_next(d->fetches.scheduler, &item));
		assert_true(item.why == SCHEDULER_HOT && item.region == 1 && item.word == word);
		assert_true(item.want_mask == UINT64_MAX);
	}
	assert_true(scheduler_next(d->fetches.scheduler, &item));
	assert_int_equal(item.why, SCHEDULER_LINEAR);
	d->fetches.scheduler = scheduler_free(d->fetches.scheduler);
}

/* Who says hints without end holds nobody up. */
static void test_hints_without_end_are_taken_by_turns(void **state)
{
	struct daemon *d = *state;
	struct pollfd left = { .fd = d->fetches.channels[0], .events = POLLIN };

	assert_int_equal(setsockopt(d->vmm, SOL_SOCKET, SO_SNDBUF, &(int){ 1 << 20 }, sizeof(int)),
	                 0);
	for (unsigned int i = 0; i < FETCHES_MAX + 1; i++)
		say_hot(d->vmm, MIB, PAGE);
	fetch_table_read(&d->fetches, 0, &d->regions);
	assert_int_equal(poll(&left, 1, 0), 1);
	fetch_table_read(&d->fetches, 0, &d->regions);
	assert_int_equal(poll(&left, 1, 0), 0);
}

static void test_the_end_is_told(void **state)
{
	struct daemon *d = *state;
	int other = add_channel(d);

	ask(d->vmm, 1, MIB, PAGE);
	serve(d);
	fetch_table_finish(&d->fetches);
	expect_answer(d->vmm, FETCH_TAG_ALL, 0);
	expect_closed(d->vmm);
	expect_answer(other, FETCH_TAG_ALL, 0);
	expect_closed(other);
	close(other);
}

static void test_without_the_end_nothing_is_promised(void **state)
{
	struct daemon *d = *state;

	ask(d->vmm, 1, MIB, PAGE);
	serve(d);
	fetch_table_close(&d->fetches);
	expect_closed(d->vmm);
}

/* The VMM's side: libpostcopy against a daemon that says what the test wants. */
struct vmm {
	char path[64];
	int listener, sock, channel; /* the daemon's ends */
	struct postcopy_region region;
	struct postcopy *p;
	struct postcopy_channel *ch;
	enum vmm_wire_role role;
	int rc;
};

static void *accept_vmm(void *arg)
{
	struct vmm_wire_msg attached = { .type = VMM_WIRE_ATTACHED }, msg;
	struct vmm *v = arg;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds;

	v->sock = accept4(v->listener, NULL, NULL, SOCK_CLOEXEC);
	if (vmm_wire_recv(v->sock, 0, &msg, fds, &n_fds, NULL))
		return NULL;
	for (size_t i = 0; i < n_fds; i++)
		close(fds[i]);
	/* Where it fails the attach has no answer, and fails too. */
	(void)vmm_wire_send(v->sock, &attached, NULL, 0);
	return NULL;
}

static int attach(struct vmm *v)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct postcopy_error err = { 0 };
	pthread_t thread;
	int rc;

	snprintf(v->path, sizeof v->path, "/tmp/test-fetch-%d.sock", getpid());
	strcpy(addr.sun_path, v->path);
	unlink(v->path);
	v->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(v->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(v->listener, 1), 0);
	assert_int_equal(pthread_create(&thread, NULL, accept_vmm, v), 0);
	rc = v->role == VMM_WIRE_SOURCE
	             ? postcopy_source_attach(v->path, "vm", &v->region, 1, &v->p, &err)
	             : postcopy_destination_attach(v->path, "vm", &v->region, 1, &v->p, &err);
	/* Where the attach fails before it connects, somebody else must. */
	if (rc) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		connect(fd, (struct sockaddr *)&addr, sizeof addr);
		close(fd);
		printf("%s\n", err.text);
	}
	pthread_join(thread, NULL);
	return rc;
}

static struct vmm *make_vmm(enum vmm_wire_role role)
{
	struct vmm *v = calloc(1, sizeof *v);
	void *addr = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	v->role = role;
	v->listener = v->sock = v->channel = -1;
	v->region = (struct postcopy_region){ .memory = POSTCOPY_MEMORY_ANONYMOUS,
		                              .size = MIB,
		                              .page_size = PAGE,
		                              .host_addr = addr,
		                              .fd = -1 };
	v->rc = attach(v);
	return v;
}

static void open_channel(struct vmm *v)
{
	struct vmm_wire_msg msg;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds;

	assert_int_equal(postcopy_channel_open(v->p, &v->ch, NULL), 0);
	assert_int_equal(vmm_wire_recv(v->sock, 0, &msg, fds, &n_fds, NULL), 0);
	assert_int_equal(msg.type, VMM_WIRE_CHANNEL);
	assert_int_equal(n_fds, 1);
	v->channel = fds[0];
}

static int vmm_setup(void **state)
{
	struct vmm *v = make_vmm(VMM_WIRE_DESTINATION);

	*state = v;
	if (!v->rc)
		open_channel(v);
	return 0;
}

static void free_vmm(struct vmm *v)
{
	postcopy_channel_close(v->ch);
	postcopy_detach(v->p);
	close_fd(&v->channel);
	close_fd(&v->sock);
	close_fd(&v->listener);
	unlink(v->path);
	munmap(v->region.host_addr, MIB);
	free(v);
}

static int vmm_teardown(void **state)
{
	free_vmm(*state);
	return 0;
}

/* The request that has come, or 0 where there is none. */
static uint64_t requested(struct vmm *v, uint64_t addr, uint64_t len)
{
	uint8_t buf[FETCH_REQUEST_BYTES_MAX + 1];
	struct fetch_request q;
	ssize_t n = recv(v->channel, buf, sizeof buf, MSG_DONTWAIT);

	if (n < 0)
		return 0;
	assert_true(fetch_request_decode(buf, (size_t)n, &q));
	assert_int_equal(q.guest_phys_addr, addr);
	assert_int_equal(q.len, len);
	return q.tag;
}

static void say(struct vmm *v, uint64_t tag, uint32_t code)
{
	struct fetch_answer a = { .tag = tag, .code = code };
	uint8_t buf[FETCH_ANSWER_BYTES];

	fetch_answer_encode(&a, buf);
	assert_int_equal(send(v->channel, buf, sizeof buf, 0), sizeof buf);
}

static int fetch(struct vmm *v, uint64_t addr)
{
	struct postcopy_error err = { 0 };
	int rc = postcopy_channel_fetch(v->ch, addr, PAGE, 0, &err);

	assert_int_equal(err.code, rc);
	assert_int_equal(!rc, !*err.text);
	return rc;
}

static int next(struct vmm *v, uint64_t *ret_tag, int *ret_result)
{
	return postcopy_channel_next(v->ch, 0, ret_tag, ret_result, NULL);
}

static void expect_next(struct vmm *v, uint64_t tag, int result)
{
	uint64_t got_tag = ~tag;
	int got = 1;

	assert_int_equal(next(v, &got_tag, &got), 0);
	assert_int_equal(got_tag, tag);
	assert_int_equal(got, result);
}

static void expect_next_fails(struct vmm *v, int rc)
{
	uint64_t tag;
	int result;

	assert_int_equal(next(v, &tag, &result), rc);
}

/* A VMM may not be allowed a userfaultfd; attach() has printed why. */
#define NEED(v)                                                                                    \
	do {                                                                                       \
		if ((v)->rc) {                                                                     \
			skip();                                                                    \
			return;                                                                    \
		}                                                                                  \
	} while (0)

static void test_fetch_waits_for_its_answer(void **state)
{
	struct vmm *v = *state;
	uint64_t number;

	NEED(v);
	assert_int_equal(fetch(v, PAGE), -ETIMEDOUT);
	number = requested(v, PAGE, PAGE);
	assert_true(number);
	/* Given up, then wanted again: it is not asked for twice. */
	assert_int_equal(fetch(v, PAGE), -ETIMEDOUT);
	assert_false(requested(v, PAGE, PAGE));
	say(v, number, 0);
	assert_int_equal(fetch(v, PAGE), 0);
	/* Once answered the next is a new one. */
	assert_int_equal(fetch(v, PAGE), -ETIMEDOUT);
	assert_true(requested(v, PAGE, PAGE) != number);
}

static void test_fetch_of_a_range_that_is_none(void **state)
{
	struct vmm *v = *state;
	struct postcopy_error err;

	NEED(v);
	assert_int_equal(postcopy_channel_fetch(v->ch, 0, 0, 0, &err), -EINVAL);
	assert_int_equal(postcopy_channel_fetch(v->ch, 1, PAGE, 0, &err), -EINVAL);
	assert_int_equal(postcopy_channel_fetch(v->ch, 0, 1, 0, &err), -EINVAL);
	assert_int_equal(postcopy_channel_fetch(v->ch, 0, POSTCOPY_FETCH_MAX + PAGE, 0, &err),
	                 -EINVAL);
	assert_int_equal(postcopy_channel_ask(v->ch, 7, PAGE, 0, &err), -EINVAL);
	assert_false(requested(v, 0, 0));
	assert_int_equal(fetch(v, MIB), -ETIMEDOUT);
	say(v, requested(v, MIB, PAGE), EINVAL);
	assert_int_equal(fetch(v, MIB), -EINVAL);
	expect_next_fails(v, -ENOENT);
}

static void test_fetch_of_a_page_that_is_lost(void **state)
{
	struct vmm *v = *state;
	struct postcopy_error err;

	NEED(v);
	assert_int_equal(fetch(v, MIB), -ETIMEDOUT);
	say(v, requested(v, MIB, PAGE), EHWPOISON);
	assert_int_equal(postcopy_channel_fetch(v->ch, MIB, PAGE, 0, &err), -EHWPOISON);
	assert_non_null(strstr(err.text, "lost"));
}

static void test_late_answers_of_others_do_no_harm(void **state)
{
	struct vmm *v = *state;
	uint64_t first, second;

	NEED(v);
	assert_int_equal(fetch(v, 0), -ETIMEDOUT);
	first = requested(v, 0, PAGE);
	assert_int_equal(fetch(v, PAGE), -ETIMEDOUT);
	second = requested(v, PAGE, PAGE);
	say(v, first, 0);
	say(v, second, 0);
	assert_int_equal(fetch(v, PAGE), 0);
}

static void test_answers_come_in_any_order(void **state)
{
	struct vmm *v = *state;
	uint64_t numbers[3];

	NEED(v);
	for (uint64_t i = 0; i < 3; i++) {
		/* Any tag will do, also the one that means all on the wire, and one twice. */
		assert_int_equal(
		        postcopy_channel_ask(v->ch, i * PAGE, PAGE, i ? 5 : FETCH_TAG_ALL, NULL),
		        0);
		numbers[i] = requested(v, i * PAGE, PAGE);
		assert_true(numbers[i]);
	}
	expect_next_fails(v, -ETIMEDOUT);
	say(v, numbers[2], 0);
	expect_next(v, 5, 0);
	expect_next_fails(v, -ETIMEDOUT);
	say(v, numbers[0], EINVAL);
	say(v, numbers[1], 0);
	expect_next(v, FETCH_TAG_ALL, -EINVAL);
	expect_next(v, 5, 0);
	expect_next_fails(v, -ENOENT);
}

static void test_fetch_keeps_answers_for_next(void **state)
{
	struct pollfd pfd = { .events = POLLIN };
	struct vmm *v = *state;
	uint64_t number;

	NEED(v);
	pfd.fd = postcopy_channel_fd(v->ch);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 77, NULL), 0);
	number = requested(v, 0, PAGE);
	assert_int_equal(poll(&pfd, 1, 0), 0);
	say(v, number, 0);
	assert_int_equal(poll(&pfd, 1, 0), 1);
	assert_int_equal(fetch(v, PAGE), -ETIMEDOUT); /* reads 77's answer on its way */
	say(v, requested(v, PAGE, PAGE), 0);
	expect_next(v, 77, 0);
	assert_int_equal(fetch(v, PAGE), 0);
}

static void test_no_more_than_so_many_at_a_time(void **state)
{
	struct vmm *v = *state;
	uint64_t first = 0;

	NEED(v);
	for (uint64_t i = 0; i < POSTCOPY_ASKS_MAX; i++) {
		assert_int_equal(postcopy_channel_ask(v->ch, i * PAGE, PAGE, i, NULL), 0);
		first = first ? first : requested(v, 0, PAGE);
	}
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 0, NULL), -EAGAIN);
	assert_int_equal(fetch(v, 0), -EAGAIN);
	say(v, first, 0);
	expect_next(v, 0, 0);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 0, NULL), 0);
}

static void test_answered_ones_make_room(void **state)
{
	struct vmm *v = *state;

	NEED(v);
	for (uint64_t i = 0; i < 2 * POSTCOPY_ASKS_MAX; i++) {
		assert_int_equal(fetch(v, i * PAGE), -ETIMEDOUT);
		say(v, requested(v, i * PAGE, PAGE), 0);
		assert_int_equal(fetch(v, i * PAGE), 0);
		/* The second one's answer is read by the next round's fetch. */
		assert_int_equal(fetch(v, i * PAGE), -ETIMEDOUT);
		say(v, requested(v, i * PAGE, PAGE), 0);
		assert_int_equal(postcopy_channel_ask(v->ch, i * PAGE, PAGE, i, NULL), 0);
		say(v, requested(v, i * PAGE, PAGE), 0);
		expect_next(v, i, 0);
	}
}

static void test_after_all_nothing_is_asked(void **state)
{
	struct vmm *v = *state;
	uint64_t tags = 0;

	NEED(v);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 1, NULL), 0);
	assert_int_equal(postcopy_channel_ask(v->ch, PAGE, PAGE, 2, NULL), 0);
	/* Closed with requests unread: that resets, ahead of the last word. */
	say(v, FETCH_TAG_ALL, 0);
	close_fd(&v->channel);
	for (int i = 0; i < 2; i++) {
		uint64_t tag = 0;
		int result = 1;

		assert_int_equal(next(v, &tag, &result), 0);
		assert_int_equal(result, 0);
		tags += tag;
	}
	assert_int_equal(tags, 3);
	assert_int_equal(fetch(v, 5 * PAGE), 0);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 9, NULL), 0);
	expect_next(v, 9, 0);
	expect_next_fails(v, -ENOENT);
}

static void test_fetch_into_a_closed_end_hears_its_last_word(void **state)
{
	struct vmm *v = *state;

	NEED(v);
	say(v, FETCH_TAG_ALL, 0);
	close_fd(&v->channel);
	assert_int_equal(fetch(v, 0), 0);
}

static void test_a_daemon_that_is_gone(void **state)
{
	struct vmm *v = *state;

	NEED(v);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 1, NULL), 0);
	close_fd(&v->channel);
	expect_next_fails(v, -EPIPE);
	assert_int_equal(fetch(v, 0), -EPIPE);
	close_fd(&v->sock);
	assert_int_equal(postcopy_channel_open(v->p, &(struct postcopy_channel *){ NULL }, NULL),
	                 -EPIPE);
}

static void test_answers_that_are_none(void **state)
{
	struct vmm *v = *state;
	uint64_t number;

	NEED(v);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 1, NULL), 0);
	number = requested(v, 0, PAGE);
	assert_int_equal(send(v->channel, "x", 1, 0), 1);
	expect_next_fails(v, -EPIPE);
	say(v, number + 1, 0);
	expect_next_fails(v, -EPIPE);
	say(v, number, EPERM);
	expect_next_fails(v, -EPIPE);
	/* The real one is not spoilt by them. */
	say(v, number, 0);
	expect_next(v, 1, 0);
}

/* Another process of the daemon serves the channel: it may have lost what was asked, or not. */
static void test_what_has_no_answer_is_asked_again(void **state)
{
	struct vmm *v = *state;
	uint64_t waiting, answered;

	NEED(v);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 1, NULL), 0);
	assert_int_equal(postcopy_channel_ask(v->ch, PAGE, PAGE, 2, NULL), 0);
	waiting = requested(v, 0, PAGE);
	answered = requested(v, PAGE, PAGE);
	say(v, answered, 0);
	expect_next(v, 2, 0);
	say(v, FETCH_TAG_AGAIN, 0);
	assert_int_equal(fetch(v, 2 * PAGE), -ETIMEDOUT);
	assert_true(requested(v, 2 * PAGE, PAGE));
	assert_int_equal(requested(v, 0, PAGE), waiting);
	/* The fetch's own request went out before the channel was read. */
	assert_true(requested(v, 2 * PAGE, PAGE));
	assert_false(requested(v, 0, 0));
	/* Both questions are answered, and what was answered before is, too. */
	say(v, answered, 0);
	say(v, waiting, 0);
	say(v, waiting, 0);
	expect_next(v, 1, 0);
	expect_next_fails(v, -ENOENT);
	assert_int_equal(fetch(v, 3 * PAGE), -ETIMEDOUT);
	say(v, requested(v, 3 * PAGE, PAGE), 0);
	assert_int_equal(fetch(v, 3 * PAGE), 0);
}

/* The discard that has come, or 0 where there is none. */
static uint64_t requested_discard(struct vmm *v, uint64_t addr, uint64_t len)
{
	uint8_t buf[FETCH_REQUEST_BYTES_MAX + 1];
	struct fetch_request q;
	ssize_t n = recv(v->channel, buf, sizeof buf, MSG_DONTWAIT);

	if (n < 0)
		return 0;
	assert_true(fetch_request_decode(buf, (size_t)n, &q));
	assert_true(q.discard && q.guest_phys_addr == addr && q.len == len);
	return q.tag;
}

/* By a channel of their own, that is opened once; and whatever becomes of it, it is no failure. */
static void test_hot_ranges_are_named(void **state)
{
	struct vmm_wire_msg msg;
	struct vmm *v = *state;
	struct fetch_request q;
	uint8_t buf[FETCH_REQUEST_BYTES_MAX + 1];
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds;

	NEED(v);
	assert_int_equal(postcopy_destination_hot(v->p, 0, MIB + PAGE, NULL), -EINVAL);
	assert_int_equal(postcopy_destination_hot(v->p, MIB, PAGE, NULL), -EINVAL);
	assert_int_equal(postcopy_destination_hot(v->p, 5, PAGE, NULL), -EINVAL);
	assert_int_equal(postcopy_destination_hot(v->p, 0, 0, NULL), -EINVAL);
	assert_int_equal(postcopy_destination_hot(v->p, PAGE, MIB - PAGE, NULL), 0);
	assert_int_equal(postcopy_destination_hot(v->p, 0, PAGE, NULL), 0);
	assert_int_equal(vmm_wire_recv(v->sock, 0, &msg, fds, &n_fds, NULL), 0);
	assert_int_equal(msg.type, VMM_WIRE_CHANNEL);
	assert_int_equal(recv(fds[0], buf, sizeof buf, 0), FETCH_REQUEST_BYTES_MAX);
	assert_true(fetch_request_decode(buf, FETCH_REQUEST_BYTES_MAX, &q));
	assert_true(q.hot && q.guest_phys_addr == PAGE && q.len == MIB - PAGE);
	assert_int_equal(recv(fds[0], buf, sizeof buf, 0), FETCH_REQUEST_BYTES_MAX);
	assert_true(fetch_request_decode(buf, FETCH_REQUEST_BYTES_MAX, &q));
	assert_true(q.hot && !q.guest_phys_addr && q.len == PAGE);
	/* An older daemon knows no hints. */
	close(fds[0]);
	assert_int_equal(postcopy_destination_hot(v->p, 0, PAGE, NULL), 0);
	assert_int_equal(postcopy_channel_fetch(v->ch, 0, PAGE, 0, NULL), -ETIMEDOUT);
}

/* Of a daemon that was started again it is asked again; what is large goes in pieces. */
static void test_a_discard_is_told_until_it_is_answered(void **state)
{
	struct vmm *v = *state;
	uint64_t first, second;

	NEED(v);
	assert_int_equal(postcopy_discard(v->ch, 0, 3 * MIB, 0, NULL), -ETIMEDOUT);
	first = requested_discard(v, 0, 2 * MIB);
	assert_true(first);
	say(v, FETCH_TAG_AGAIN, 0);
	assert_int_equal(postcopy_discard(v->ch, 0, 3 * MIB, 0, NULL), -ETIMEDOUT);
	assert_int_equal(requested_discard(v, 0, 2 * MIB), first);
	assert_false(requested_discard(v, 0, 0));
	/* A fetch of the same range is another question. */
	assert_int_equal(postcopy_channel_fetch(v->ch, 0, 2 * MIB, 0, NULL), -ETIMEDOUT);
	assert_true(requested(v, 0, 2 * MIB));
	say(v, first, 0);
	assert_int_equal(postcopy_discard(v->ch, 0, 3 * MIB, 0, NULL), -ETIMEDOUT);
	second = requested_discard(v, 2 * MIB, MIB);
	assert_true(second);
	say(v, second, EINVAL);
	assert_int_equal(postcopy_discard(v->ch, 2 * MIB, MIB, 0, NULL), -EINVAL);
	assert_int_equal(postcopy_discard(v->ch, 0, 100, 0, NULL), -EINVAL);
	assert_int_equal(postcopy_discard(v->ch, 0, 0, 0, NULL), -EINVAL);
}

/* The daemon's part from VMSTATE to COMPLETE. */
static void complete(struct vmm *v)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_VMSTATE };
	int fd = memfd_create("vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct postcopy_event event;

	assert_int_equal(
	        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL),
	        0);
	assert_int_equal(vmm_wire_send(v->sock, &msg, &fd, 1), 0);
	close(fd);
	assert_int_equal(postcopy_next_event(v->p, -1, &event, NULL), 0);
	close(event.vmstate_fd);
	assert_int_equal(postcopy_destination_loaded(v->p, NULL), 0);
	msg.type = VMM_WIRE_COMPLETE;
	assert_int_equal(vmm_wire_send(v->sock, &msg, NULL, 0), 0);
	assert_int_equal(postcopy_next_event(v->p, -1, &event, NULL), 0);
	assert_int_equal(event.type, POSTCOPY_EVENT_COMPLETE);
}

/*
 * A guest that was moved on too early was zeroes at its next host: memory that is arriving is
 * nobody's source, as a whole or in part, nor another's destination, which would discard it.
 */
static void test_what_is_arriving_is_no_source(void **state)
{
	struct vmm *v = *state;
	struct postcopy_region part = v->region;
	struct postcopy_error err = { 0 };
	struct postcopy *p = NULL;

	NEED(v);
	part.host_addr = (char *)part.host_addr + part.size - PAGE;
	part.size = PAGE;
	assert_int_equal(postcopy_source_attach("/nonexistent", "next", &part, 1, &p, &err),
	                 -EBUSY);
	assert_non_null(strstr(err.text, "\"vm\""));
	assert_int_equal(postcopy_destination_attach("/nonexistent", "next", &part, 1, &p, &err),
	                 -EBUSY);
	complete(v);
	assert_int_equal(postcopy_source_attach("/nonexistent", "next", &part, 1, &p, &err),
	                 -ENOENT);
	assert_null(p);
}

static void test_a_channel_opened_after_the_end_needs_no_daemon(void **state)
{
	struct vmm *v = *state;

	NEED(v);
	complete(v);
	close_fd(&v->sock);
	v->ch = postcopy_channel_close(v->ch);
	assert_int_equal(postcopy_channel_open(v->p, &v->ch, NULL), 0);
	assert_int_equal(fetch(v, 0), 0);
	assert_int_equal(postcopy_channel_ask(v->ch, 0, PAGE, 4, NULL), 0);
	expect_next(v, 4, 0);
}

static void test_a_source_has_no_channel(void **state)
{
	struct vmm *v = make_vmm(VMM_WIRE_SOURCE);
	struct postcopy_error err;

	(void)state;
	assert_int_equal(v->rc, 0);
	assert_int_equal(postcopy_channel_open(v->p, &v->ch, &err), -EINVAL);
	assert_null(postcopy_channel_close(NULL));
	free_vmm(v);
}

static void test_attributes_are_an_event(void **state)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ATTRIBUTES, .n_regions = 3 };
	struct vmm *v = *state;
	struct postcopy_event event;

	NEED(v);
	msg.regions[1].flags = POSTCOPY_REGION_PRIVATE;
	msg.regions[2].flags = 0x80000000;
	assert_int_equal(vmm_wire_send(v->sock, &msg, NULL, 0), 0);
	assert_int_equal(postcopy_next_event(v->p, -1, &event, NULL), 0);
	assert_int_equal(event.type, POSTCOPY_EVENT_ATTRIBUTES);
	assert_int_equal(event.vmstate_fd, -1);
	assert_int_equal(event.n_regions, 3);
	assert_int_equal(event.region_flags[0], 0);
	assert_int_equal(event.region_flags[1], POSTCOPY_REGION_PRIVATE);
	assert_int_equal(event.region_flags[2], 0x80000000);
}

#define DAEMON_TEST(f) cmocka_unit_test_setup_teardown(f, daemon_setup, daemon_teardown)
#define VMM_TEST(f) cmocka_unit_test_setup_teardown(f, vmm_setup, vmm_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		DAEMON_TEST(test_a_fetch_faults_what_is_missing),
		DAEMON_TEST(test_what_is_present_is_answered_at_once),
		DAEMON_TEST(test_a_part_of_a_huge_page_is_all_of_it),
		DAEMON_TEST(test_bad_ranges_are_answered_einval),
		DAEMON_TEST(test_no_request_at_all_ends_the_channel),
		DAEMON_TEST(test_a_channel_s_place_is_used_again),
		DAEMON_TEST(test_more_than_fit_wait_in_the_socket),
		DAEMON_TEST(test_a_full_fault_table_is_filled_up_later),
		DAEMON_TEST(test_a_discard_waits_for_what_is_being_filled),
		DAEMON_TEST(test_a_discard_of_a_part_of_a_huge_page),
		DAEMON_TEST(test_hot_ranges_are_told_to_the_scheduler),
		DAEMON_TEST(test_hints_without_end_are_taken_by_turns),
		DAEMON_TEST(test_the_end_is_told),
		DAEMON_TEST(test_without_the_end_nothing_is_promised),
		VMM_TEST(test_fetch_waits_for_its_answer),
		VMM_TEST(test_fetch_of_a_range_that_is_none),
		VMM_TEST(test_fetch_of_a_page_that_is_lost),
		VMM_TEST(test_late_answers_of_others_do_no_harm),
		VMM_TEST(test_answers_come_in_any_order),
		VMM_TEST(test_fetch_keeps_answers_for_next),
		VMM_TEST(test_no_more_than_so_many_at_a_time),
		VMM_TEST(test_answered_ones_make_room),
		VMM_TEST(test_after_all_nothing_is_asked),
		VMM_TEST(test_fetch_into_a_closed_end_hears_its_last_word),
		VMM_TEST(test_a_daemon_that_is_gone),
		VMM_TEST(test_answers_that_are_none),
		VMM_TEST(test_what_has_no_answer_is_asked_again),
		VMM_TEST(test_what_is_arriving_is_no_source),
		VMM_TEST(test_hot_ranges_are_named),
		VMM_TEST(test_a_discard_is_told_until_it_is_answered),
		VMM_TEST(test_a_channel_opened_after_the_end_needs_no_daemon),
		cmocka_unit_test(test_a_source_has_no_channel),
		VMM_TEST(test_attributes_are_an_event),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
