/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/guard.h"

#define PAGE 4096

/* In the test itself: cmocka catches SIGBUS around each. */
static void guard_on(void)
{
	assert_int_equal(guard_init(), 0);
}

/* Two mapped pages of which the second is beyond the file's end. */
static char *map_truncated(void)
{
	int fd = memfd_create("test-guard", MFD_CLOEXEC);
	char *p;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 2 * PAGE), 0);
	p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	memset(p, 'x', 2 * PAGE);
	assert_int_equal(ftruncate(fd, PAGE), 0);
	close(fd);
	return p;
}

static void test_good_memory_is_copied(void **state)
{
	char from[100], to[100] = { 0 };

	(void)state;
	guard_on();
	memset(from, 'a', sizeof from);
	assert_int_equal(guard_copy(to, from, sizeof from), 0);
	assert_memory_equal(to, from, sizeof from);
	assert_int_equal(guard_copy(to, from, 0), 0);
}

static void test_a_lost_page_is_an_error_and_the_next_copy_works(void **state)
{
	char *p = map_truncated();
	char buf[PAGE];

	(void)state;
	guard_on();
	/* Again and again: each signal must leave the handler and its mask as they were. */
	for (int i = 0; i < 100; i++) {
		assert_int_equal(guard_copy(buf, p + PAGE, sizeof buf), -EFAULT);
		assert_int_equal(guard_copy(p + PAGE, buf, sizeof buf), -EFAULT);
		memset(buf, 0, sizeof buf);
		assert_int_equal(guard_copy(buf, p, sizeof buf), 0);
		assert_int_equal(buf[0], 'x');
		assert_int_equal(buf[PAGE - 1], 'x');
	}
	/* The first page is fine, the copy as a whole is not. */
	assert_int_equal(guard_copy(p + PAGE - 8, "0123456789abcdef", 16), -EFAULT);
	munmap(p, 2 * PAGE);
}

struct copier {
	pthread_t thread;
	char *bad;
	atomic_bool *stop;
	unsigned long rounds;
	unsigned long wrong;
};

static void *copier_main(void *arg)
{
	struct copier *c = arg;
	char a[512], b[512];

	for (unsigned long i = 0; !atomic_load(c->stop) || i < 100; i++) {
		memset(a, (int)i, sizeof a);
		c->wrong += guard_copy(b, a, sizeof a) != 0 || memcmp(a, b, sizeof a) != 0;
		if (c->bad)
			c->wrong += guard_copy(b, c->bad, sizeof b) != -EFAULT;
		c->rounds++;
	}
	return NULL;
}

static void test_threads_do_not_meet_each_others_faults(void **state)
{
	struct copier copiers[4] = { 0 };
	char *p = map_truncated();
	atomic_bool stop = false;

	(void)state;
	guard_on();
	for (int i = 0; i < 4; i++) {
		copiers[i].bad = i % 2 ? p + PAGE : NULL;
		copiers[i].stop = &stop;
		assert_int_equal(pthread_create(&copiers[i].thread, NULL, copier_main, &copiers[i]),
		                 0);
	}
	for (int i = 0; i < 1000; i++) {
		char byte;

		assert_int_equal(guard_copy(&byte, p + PAGE, 1), -EFAULT);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < 4; i++) {
		pthread_join(copiers[i].thread, NULL);
		assert_int_equal(copiers[i].wrong, 0);
		assert_true(copiers[i].rounds >= 100);
	}
	munmap(p, 2 * PAGE);
}

/* A SIGBUS that no copy has raised is a bug, and must look like one. */
static void test_other_sigbus_still_kills(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	guard_on();
	assert_true(pid >= 0);
	if (!pid) {
		raise(SIGBUS);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGBUS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_memory_is_copied),
		cmocka_unit_test(test_a_lost_page_is_an_error_and_the_next_copy_works),
		cmocka_unit_test(test_threads_do_not_meet_each_others_faults),
		cmocka_unit_test(test_other_sigbus_still_kills),
	};

	return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
