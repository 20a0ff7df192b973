/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names with several addresses. A dead one that came first cost 5 s each time, of each connection
 * of a migration.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/tcp_dial.h"

/* Far beyond what a test may take: an address that is waited for to the end fails it. */
#define DEADLINE_NS (60 * NSEC_PER_SEC)

struct place {
	struct sockaddr_in address;
	int listener;
	int fillers[8]; /* connections that fill its queue: what comes then is dropped in silence */
	struct addrinfo ai;
};

static void place_init(struct place *p)
{
	memset(p, 0, sizeof *p);
	p->address.sin_family = AF_INET;
	p->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	p->listener = -1;
	memset(p->fillers, -1, sizeof p->fillers);
	p->ai = (struct addrinfo){ .ai_family = AF_INET,
		                   .ai_addr = (void *)&p->address,
		                   .ai_addrlen = sizeof p->address };
}

static void place_listen(struct place *p, int backlog)
{
	socklen_t len = sizeof p->address;

	place_init(p);
	p->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(p->listener, p->ai.ai_addr, len), 0);
	assert_int_equal(listen(p->listener, backlog), 0);
	assert_int_equal(getsockname(p->listener, p->ai.ai_addr, &len), 0);
}

static void place_silent(struct place *p)
{
	place_listen(p, 0);
	for (size_t i = 0; i < 8; i++) {
		p->fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)!connect(p->fillers[i], p->ai.ai_addr, p->ai.ai_addrlen);
	}
}

static void place_refusing(struct place *p)
{
	place_listen(p, 1);
	close(p->listener);
	p->listener = -1;
}

static void place_end(struct place *p)
{
	for (size_t i = 0; i < 8; i++)
		if (p->fillers[i] >= 0)
			close(p->fillers[i]);
	if (p->listener >= 0)
		close(p->listener);
}

static unsigned int port_reached(int fd)
{
	struct sockaddr_in a;
	socklen_t len = sizeof a;

	assert_true(fd >= 0);
	assert_int_equal(getpeername(fd, (void *)&a, &len), 0);
	close(fd);
	return a.sin_port;
}

static void test_a_silent_address_holds_nobody_up(void **state)
{
	struct place silent, good;
	const struct addrinfo *order[TCP_DIAL_MAX];
	struct tcp_dial_why why;
	int fd;

	(void)state;
	place_silent(&silent);
	place_listen(&good, 8);
	silent.ai.ai_next = &good.ai;
	assert_int_equal(tcp_dial_order("silent.test", "1", &silent.ai, order), 2);
	assert_ptr_equal(order[0], &silent.ai);
	fd = tcp_dial("silent.test", "1", &silent.ai, -1, clock_now_ns() + DEADLINE_NS, &why);
	assert_int_equal(port_reached(fd), good.address.sin_port);
	/* From now on it is the first, for this name alone. */
	assert_int_equal(tcp_dial_order("silent.test", "1", &silent.ai, order), 2);
	assert_ptr_equal(order[0], &good.ai);
	assert_ptr_equal(order[1], &silent.ai);
	tcp_dial_order("silent.test", "2", &silent.ai, order);
	assert_ptr_equal(order[0], &silent.ai);
	place_end(&silent);
	place_end(&good);
}

static void test_an_address_that_refuses_is_passed_over(void **state)
{
	struct place refusing, good;
	struct tcp_dial_why why;
	int fd;

	(void)state;
	place_refusing(&refusing);
	place_listen(&good, 8);
	refusing.ai.ai_next = &good.ai;
	fd = tcp_dial("refusing.test", "1", &refusing.ai, -1, clock_now_ns() + DEADLINE_NS, &why);
	assert_int_equal(port_reached(fd), good.address.sin_port);
	place_end(&good);
}

/* What is told of several is each one's failure, and what is returned what a later try may mend. */
static void test_all_that_fail_are_named(void **state)
{
	struct place refusing, silent, nowhere;
	struct tcp_dial_why why;

	(void)state;
	place_refusing(&refusing);
	assert_int_equal(
	        tcp_dial("x.test", "1", &refusing.ai, -1, clock_now_ns() + DEADLINE_NS, &why),
	        -ECONNREFUSED);
	assert_string_equal(why.text, "Connection refused");
	/* Broadcast, which no TCP connection goes to: no time mends that. */
	place_init(&nowhere);
	nowhere.address.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	nowhere.address.sin_port = htons(1);
	nowhere.ai.ai_next = &refusing.ai;
	assert_int_equal(
	        tcp_dial("x.test", "1", &nowhere.ai, -1, clock_now_ns() + DEADLINE_NS, &why),
	        -ECONNREFUSED);
	assert_non_null(strstr(why.text, "255.255.255.255: "));
	assert_non_null(strstr(why.text, "; 127.0.0.1: Connection refused"));
	place_silent(&silent);
	refusing.ai.ai_next = &silent.ai;
	assert_int_equal(tcp_dial("x.test", "1", &refusing.ai, -1,
	                          clock_now_ns() + 500 * NSEC_PER_MSEC, &why),
	                 -ETIMEDOUT);
	assert_non_null(strstr(why.text, "refused; 127.0.0.1: Connection timed out"));
	place_end(&silent);
}

static void test_it_is_given_up(void **state)
{
	struct place silent;
	struct tcp_dial_why why;
	int cancel_fd = eventfd(1, EFD_CLOEXEC);

	(void)state;
	place_silent(&silent);
	assert_int_equal(
	        tcp_dial("x.test", "1", &silent.ai, cancel_fd, clock_now_ns() + DEADLINE_NS, &why),
	        -ECANCELED);
	place_end(&silent);
	close(cancel_fd);
}

static void test_families_take_turns(void **state)
{
	static const int families[] = { AF_INET6, AF_INET6, AF_INET6, AF_INET, AF_INET };
	static const size_t want[] = { 0, 3, 1, 4, 2 };
	struct addrinfo list[5] = { 0 };
	const struct addrinfo *order[TCP_DIAL_MAX];

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		list[i].ai_family = families[i];
		list[i].ai_next = i < 4 ? &list[i + 1] : NULL;
	}
	assert_int_equal(tcp_dial_order("turns.test", "1", list, order), 5);
	for (size_t i = 0; i < 5; i++)
		assert_ptr_equal(order[i], &list[want[i]]);
}

static void test_more_addresses_than_are_tried(void **state)
{
	struct addrinfo list[TCP_DIAL_MAX + 4] = { 0 };
	const struct addrinfo *order[TCP_DIAL_MAX];

	(void)state;
	for (size_t i = 0; i < TCP_DIAL_MAX + 4; i++) {
		list[i].ai_family = i % 3 ? AF_INET : AF_INET6;
		list[i].ai_next = i < TCP_DIAL_MAX + 3 ? &list[i + 1] : NULL;
	}
	assert_int_equal(tcp_dial_order("many.test", "1", list, order), TCP_DIAL_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_silent_address_holds_nobody_up),
		cmocka_unit_test(test_an_address_that_refuses_is_passed_over),
		cmocka_unit_test(test_all_that_fail_are_named),
		cmocka_unit_test(test_it_is_given_up),
		cmocka_unit_test(test_families_take_turns),
		cmocka_unit_test(test_more_addresses_than_are_tried),
	};

	return cmocka_run_group_tests_name("tcp-dial", tests, NULL, NULL);
}
