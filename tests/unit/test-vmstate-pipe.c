/* SPDX-License-Identifier: Apache-2.0 */
/* The pipe by which a vmstate comes to QEMU: filled by one process, found and filled on by the
 * next. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qemu/vmstate_pipe.h"

#define LEN (3u << 20) /* more than goes into a pipe */

struct scene {
	int from, to, vmstate;
	int qemus; /* the other descriptor of the end to write to */
	uint8_t *content;
};

static int make_memfd(const void *content, size_t len)
{
	int fd = memfd_create("test-vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, content, len, 0), len);
	return fd;
}

static int set_up(void **state)
{
	struct scene *s = calloc(1, sizeof *s);
	struct error err = ERROR_INIT;

	s->content = malloc(LEN);
	for (size_t i = 0; i < LEN; i++)
		s->content[i] = (uint8_t)(i * 31 + i / 4096);
	s->vmstate = make_memfd(s->content, LEN);
	s->to = -1;
	assert_int_equal(vmstate_pipe_make(&s->from, &s->qemus, &s->to, &err), 0);
	/* As QEMU does with what it is given. */
	assert_int_equal(fcntl(s->qemus, F_SETFL, 0), 0);
	*state = s;
	return 0;
}

static int tear_down(void **state)
{
	struct scene *s = *state;

	close(s->from);
	close(s->to);
	close(s->qemus);
	close(s->vmstate);
	free(s->content);
	free(s);
	return 0;
}

static void expect_bytes(struct scene *s, size_t at, size_t len)
{
	uint8_t *buf = malloc(len);
	size_t n = 0;

	while (n < len) {
		ssize_t got = read(s->from, buf + n, len - n);

		assert_true(got > 0);
		n += (size_t)got;
	}
	assert_memory_equal(buf, s->content + at, len);
	free(buf);
}

static void fill(struct scene *s, uint64_t len, bool wait)
{
	struct error err = ERROR_INIT;

	assert_int_equal(vmstate_pipe_fill(s->to, s->vmstate, len, wait, &err), 0);
}

static void each_byte_goes_in_once_whoever_puts_it_in(void **state)
{
	struct scene *s = *state;
	int next;

	fill(s, 1000, false);
	assert_int_equal(vmstate_pipe_filled(s->vmstate), 1000);
	/* The next process: it has the vmstate's open file, and finds the pipe. */
	next = vmstate_pipe_find(getpid());
	assert_true(next >= 0);
	close(s->to);
	s->to = next;
	fill(s, 5000, false);
	fill(s, 5000, false);
	assert_int_equal(vmstate_pipe_filled(s->vmstate), 5000);
	expect_bytes(s, 0, 5000);
}

static void what_does_not_fit_is_put_in_later(void **state)
{
	struct scene *s = *state;
	uint64_t filled;

	fill(s, LEN, false);
	filled = vmstate_pipe_filled(s->vmstate);
	assert_true(filled > 0 && filled < LEN);
	expect_bytes(s, 0, (size_t)filled);
	fill(s, filled + 10, false);
	expect_bytes(s, (size_t)filled, 10);
}

static void *read_all(void *arg)
{
	expect_bytes(arg, 0, LEN);
	return NULL;
}

static void it_waits_for_who_reads(void **state)
{
	struct scene *s = *state;
	pthread_t reader;

	assert_int_equal(pthread_create(&reader, NULL, read_all, s), 0);
	fill(s, LEN, true);
	assert_int_equal(pthread_join(reader, NULL), 0);
	assert_int_equal(vmstate_pipe_filled(s->vmstate), LEN);
}

/* Whatever is in the pipe of it, it can be sealed: the daemon does that meanwhile. */
static void what_is_in_the_pipe_can_be_sealed(void **state)
{
	struct scene *s = *state;

	fill(s, 200000, false);
	assert_int_equal(fcntl(s->vmstate, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK),
	                 0);
	fill(s, 300000, false);
	expect_bytes(s, 0, 300000);
}

static void a_reader_that_is_gone_is_no_failure_of_ours(void **state)
{
	struct scene *s = *state;

	close(s->from);
	s->from = -1;
	fill(s, LEN, true);
	assert_int_equal(vmstate_pipe_filled(s->vmstate), 0);
}

/* Killed in the middle of putting something in. */
static void where_nobody_knows_how_much_is_in_it_that_is_known(void **state)
{
	struct scene *s = *state;

	assert_true(lseek(s->vmstate, (off_t)1 << 62, SEEK_SET) > 0);
	assert_true(vmstate_pipe_filled(s->vmstate) == VMSTATE_PIPE_UNKNOWN);
	assert_true(vmstate_pipe_filled(s->vmstate) > LEN);
}

static void pipes_of_others_are_not_taken_for_it(void **state)
{
	struct scene *s = *state;
	int other[2];

	close(s->from);
	close(s->to);
	close(s->qemus);
	s->from = s->to = s->qemus = -1;
	assert_int_equal(pipe2(other, O_CLOEXEC), 0);
	assert_int_equal(vmstate_pipe_find(getpid()), -ENOENT);
	close(other[0]);
	close(other[1]);
}

static void vmstates_are_compared_as_far_as_is_asked(void **state)
{
	struct scene *s = *state;
	int other;

	s->content[100000] ^= 1;
	other = make_memfd(s->content, 200000);
	assert_true(vmstate_begins_alike(s->vmstate, other, 0));
	assert_true(vmstate_begins_alike(s->vmstate, other, 100000));
	assert_false(vmstate_begins_alike(s->vmstate, other, 100001));
	/* One that is shorter is not alike. */
	s->content[100000] ^= 1;
	assert_int_equal(pwrite(other, s->content, 200000, 0), 200000);
	assert_true(vmstate_begins_alike(s->vmstate, other, 200000));
	assert_false(vmstate_begins_alike(s->vmstate, other, 200001));
	close(other);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_byte_goes_in_once_whoever_puts_it_in),
		TEST(what_does_not_fit_is_put_in_later),
		TEST(it_waits_for_who_reads),
		TEST(what_is_in_the_pipe_can_be_sealed),
		TEST(a_reader_that_is_gone_is_no_failure_of_ours),
		TEST(where_nobody_knows_how_much_is_in_it_that_is_known),
		TEST(pipes_of_others_are_not_taken_for_it),
		TEST(vmstates_are_compared_as_far_as_is_asked),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
