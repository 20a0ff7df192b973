/* SPDX-License-Identifier: Apache-2.0 */
/* What a thread's time is spent on, as the kernel tells. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/thread.h"

/* Until the kernel has counted some of it: a busy host may let us wait, and that counts, too. */
static void work_until_told(int times_fd, uint64_t before_ns)
{
	uint64_t begin_ns = clock_now_ns();

	while (thread_busy_ns(times_fd) == before_ns)
		assert_true(clock_now_ns() - begin_ns < 60 * NSEC_PER_SEC);
}

/* Bulk asks for it ten times a second on the data path, where a process may be short of all. */
static void test_work_is_told_where_nothing_can_be_opened(void **state)
{
	_cleanup_close_ int fd = thread_open_times();
	struct rlimit limit, none;
	uint64_t before_ns;

	(void)state;
	if (fd == -ENOENT) {
		print_message("skipped: this kernel does not tell how long a thread works\n");
		skip();
	}
	assert_true(fd >= 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = limit.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	before_ns = thread_busy_ns(fd);
	assert_int_not_equal(before_ns, 0);
	work_until_told(fd, before_ns);
	assert_int_equal(thread_open_times(), -EMFILE);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void test_what_can_not_be_told_is_nothing(void **state)
{
	(void)state;
	assert_int_equal(thread_busy_ns(-1), 0);
	assert_int_equal(thread_busy_ns(-ENOENT), 0);
}

static void *open_own(void *arg)
{
	*(int *)arg = thread_open_times();
	return NULL;
}

static int own_nice(void)
{
	return getpriority(PRIO_PROCESS, (id_t)gettid());
}

static void *tell_nice(void *arg)
{
	*(int *)arg = own_nice();
	return NULL;
}

/* What the loop does and how its threads stand; they would push aside what it was not meant for. */
static void *be_the_loop(void *arg)
{
	int *nices = arg;
	pthread_t thread;

	thread_prefer_control();
	nices[0] = own_nice();
	if (!thread_start(&thread, tell_nice, &nices[1]))
		pthread_join(thread, NULL);
	return NULL;
}

static void test_what_the_loop_starts_has_not_its_place(void **state)
{
	int nices[2] = { 0, 99 };
	pthread_t thread;

	(void)state;
	assert_int_equal(thread_start(&thread, be_the_loop, nices), 0);
	pthread_join(thread, NULL);
	if (!nices[0]) {
		print_message("skipped: nobody may be raised here\n");
		skip();
	}
	assert_true(nices[0] < 0);
	assert_int_equal(nices[1], 0);
}

/* Of who has opened it, and not of who asks. */
static void test_it_is_the_thread_that_opened_it(void **state)
{
	_cleanup_close_ int own = thread_open_times();
	uint64_t begin_ns = clock_now_ns();
	int other = -1;
	pthread_t thread;

	(void)state;
	if (own == -ENOENT) {
		print_message("skipped: this kernel does not tell how long a thread works\n");
		skip();
	}
	work_until_told(own, thread_busy_ns(own));
	assert_int_equal(thread_start(&thread, open_own, &other), 0);
	pthread_join(thread, NULL);
	assert_true(other >= 0);
	/* It ends, a moment after it is joined. */
	while (thread_busy_ns(other))
		assert_true(clock_now_ns() - begin_ns < 60 * NSEC_PER_SEC);
	assert_int_not_equal(thread_busy_ns(own), 0);
	close(other);
}

#define DEEP_BYTES (64 * 1024)

/* Return: an address in the middle of what it has used, and uses no more. */
__attribute__((noinline)) static uintptr_t go_deep(void)
{
	volatile uint8_t deep[DEEP_BYTES];

	for (size_t i = 0; i < DEEP_BYTES; i += 512)
		deep[i] = 1;
	return (uintptr_t)&deep[DEEP_BYTES / 2];
}

static bool is_there(uintptr_t address)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	unsigned char there = 0;

	assert_int_equal(mincore((void *)(address & ~(page - 1)), page, &there), 0);
	return there & 1;
}

static void *give_back(void *arg)
{
	volatile uint64_t kept = 0x0123456789abcdef;
	uintptr_t address = go_deep();
	bool was_there = is_there(address);

	thread_give_back_stack();
	*(bool *)arg = was_there && !is_there(address) && kept == 0x0123456789abcdef;
	return NULL;
}

static void test_a_stack_that_was_deep_is_given_back(void **state)
{
	bool is_right = false;
	pthread_t thread;

	(void)state;
	assert_int_equal(thread_start(&thread, give_back, &is_right), 0);
	pthread_join(thread, NULL);
	assert_true(is_right);
}

/* Waits that end at once, or that nothing ends. */
static void wait_often(struct thread_spin *spin, struct pollfd *fd, unsigned int times)
{
	while (times--)
		(void)thread_spin_poll(spin, fd, 1, 10 * NSEC_PER_USEC, 0);
}

/* Awake while that was good for something of late. */
static void test_a_wait_is_awake_where_those_before_were_short(void **state)
{
	const uint64_t short_ns = NSEC_PER_MSEC, long_ns = 60 * NSEC_PER_SEC;
	struct thread_spin spin = { 0 }, before;
	struct pollfd never = { .fd = -1 }, ready = { .events = POLLIN };
	uint64_t begin_ns;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	ready.fd = fds[0];
	assert_int_equal(write(fds[1], "x", 1), 1);
	/* Not the first time: that would last a minute. */
	assert_int_equal(thread_spin_poll(&spin, &never, 1, long_ns, 0), 0);
	/* One that is short may be chance. */
	assert_int_equal(thread_spin_poll(&spin, &ready, 1, long_ns, 0), 1);
	assert_false(thread_spin_pays(&spin));
	wait_often(&spin, &ready, 20);
	assert_true(thread_spin_pays(&spin));
	/* So may one that is not. */
	begin_ns = clock_now_ns();
	assert_int_equal(thread_spin_poll(&spin, &never, 1, short_ns, 0), 0);
	assert_true(clock_now_ns() - begin_ns >= short_ns);
	assert_true(thread_spin_pays(&spin));
	/* Who does not want it learns nothing of it. */
	before = spin;
	assert_int_equal(thread_spin_poll(&spin, &never, 1, 0, 0), 0);
	assert_memory_equal(&spin, &before, sizeof spin);
	/* Every second is enough, every eighth is not. */
	for (unsigned int i = 0; i < 20; i++) {
		wait_often(&spin, &never, 1);
		wait_often(&spin, &ready, 1);
	}
	assert_true(thread_spin_pays(&spin));
	for (unsigned int i = 0; i < 20; i++) {
		wait_often(&spin, &ready, 1);
		wait_often(&spin, &never, 7);
	}
	assert_false(thread_spin_pays(&spin));
	assert_int_equal(thread_spin_poll(&spin, &never, 1, long_ns, 0), 0);
	close(fds[0]);
	close(fds[1]);
}

/* What comes later than a wait awake would have lasted is no reason for one. */
static void test_what_comes_too_late_does_not_pay(void **state)
{
	const struct itimerspec later = { .it_interval.tv_nsec = 2 * NSEC_PER_MSEC,
		                          .it_value.tv_nsec = 2 * NSEC_PER_MSEC };
	struct thread_spin spin = { 0 };
	struct pollfd fd = { .fd = timerfd_create(CLOCK_MONOTONIC, 0), .events = POLLIN };

	(void)state;
	assert_int_equal(timerfd_settime(fd.fd, 0, &later, NULL), 0);
	for (unsigned int i = 0; i < 8; i++) {
		assert_int_equal(read(fd.fd, &(uint64_t){ 0 }, 8), 8);
		assert_int_equal(thread_spin_poll(&spin, &fd, 1, NSEC_PER_USEC, -1), 1);
	}
	assert_false(thread_spin_pays(&spin));
	close(fd.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_work_is_told_where_nothing_can_be_opened),
		cmocka_unit_test(test_what_can_not_be_told_is_nothing),
		cmocka_unit_test(test_it_is_the_thread_that_opened_it),
		cmocka_unit_test(test_what_the_loop_starts_has_not_its_place),
		cmocka_unit_test(test_a_stack_that_was_deep_is_given_back),
		cmocka_unit_test(test_a_wait_is_awake_where_those_before_were_short),
		cmocka_unit_test(test_what_comes_too_late_does_not_pay),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
