/* SPDX-License-Identifier: Apache-2.0 */
/* The link's delay. What the kernel's part does of it, test_ctl.py looks at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/link.h"
#include "util/clock.h"

#define DELAY_NS (20 * NSEC_PER_MSEC)
#define PACKETS 600u
#define IN_FLIGHT 64u

/* Two ends as tun devices are: packets with borders, and a carrier between them. */
struct scene {
	int ours[2], carrier[2];
	pthread_t thread;
};

static void *carry(void *arg)
{
	struct scene *s = arg;

	link_carry(s->carrier[0], s->carrier[1], DELAY_NS);
	return NULL;
}

static void start(struct scene *s)
{
	for (int i = 0; i < 2; i++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
		s->ours[i] = fds[0];
		s->carrier[i] = fds[1];
		assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
	}
	assert_int_equal(pthread_create(&s->thread, NULL, carry, s), 0);
}

static void stop(struct scene *s)
{
	close(s->ours[0]);
	pthread_join(s->thread, NULL);
	close(s->ours[1]);
	close(s->carrier[0]);
	close(s->carrier[1]);
}

static void test_packets_are_as_late_as_the_link_is_long(void **state)
{
	struct scene s;
	uint64_t sent_ns;
	char got[16];

	(void)state;
	start(&s);
	for (int from = 0; from < 2; from++) {
		sent_ns = clock_now_ns();
		assert_int_equal(send(s.ours[from], "ping", 4, 0), 4);
		assert_int_equal(recv(s.ours[!from], got, sizeof got, 0), 4);
		assert_memory_equal(got, "ping", 4);
		assert_true(clock_now_ns() - sent_ns >= DELAY_NS);
	}
	stop(&s);
}

/* The delay is each packet's own: many are on their way at once, and none overtakes another. */
static void test_packets_follow_each_other(void **state)
{
	struct scene s;
	uint64_t start_ns;
	uint32_t got;

	(void)state;
	start(&s);
	start_ns = clock_now_ns();
	for (uint32_t sent = 0, seen = 0; seen < PACKETS; seen++) {
		/* So few that a socket holds them: what an end does not take is lost. */
		for (; sent < PACKETS && sent - seen < IN_FLIGHT; sent++)
			assert_int_equal(send(s.ours[0], &sent, sizeof sent, 0), sizeof sent);
		assert_int_equal(recv(s.ours[1], &got, sizeof got, 0), sizeof got);
		assert_int_equal(got, seen);
	}
	/* One after the other it would be 12 s. */
	assert_true(clock_now_ns() - start_ns < PACKETS * DELAY_NS / 2);
	stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_packets_are_as_late_as_the_link_is_long),
		cmocka_unit_test(test_packets_follow_each_other),
	};

	return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
