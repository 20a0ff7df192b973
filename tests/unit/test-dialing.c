/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dials that are given up. The loop used to wait for threads that dialled: with name servers that
 * did not answer, all migrations of a daemon stood still for seconds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "stream/dialing.h"

#define TIMEOUT_MS 20000u

/* Name servers that do not answer until they are let. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned int asked;
static bool answering;

int __real_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret);
int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret);

int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret)
{
	if (hints->ai_flags & AI_NUMERICHOST || strcmp(host, "slow.test"))
		return __real_getaddrinfo(host, port, hints, ret);
	pthread_mutex_lock(&lock);
	asked++;
	pthread_cond_broadcast(&changed);
	while (!answering)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	return __real_getaddrinfo("127.0.0.1", port, hints, ret);
}

static void answer(bool on)
{
	pthread_mutex_lock(&lock);
	answering = on;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static void wait_asked(unsigned int n)
{
	pthread_mutex_lock(&lock);
	while (asked < n)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

struct dial {
	struct dialing dialing;
	struct conn_target target;
	unsigned int timeout_ms;
	pthread_t thread;
	int result;
	struct error err;
};

static void *dial_main(void *arg)
{
	struct dial *d = arg;

	d->result = dialing_connect(&d->dialing, &d->target, d->timeout_ms, &d->err);
	if (d->result >= 0)
		dialing_done(&d->dialing);
	return NULL;
}

static void dial_start(struct dial *d)
{
	assert_int_equal(pthread_create(&d->thread, NULL, dial_main, d), 0);
}

static int dial_end(struct dial *d)
{
	pthread_join(d->thread, NULL);
	return d->result;
}

static void dial_init(struct dial *d, const char *host, unsigned int port)
{
	memset(d, 0, sizeof *d);
	dialing_init(&d->dialing);
	snprintf(d->target.host, sizeof d->target.host, "%s", host);
	snprintf(d->target.port, sizeof d->target.port, "%u", port);
	d->timeout_ms = TIMEOUT_MS;
}

static int listen_on_any(unsigned int *ret_port, int backlog)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(listen(fd, backlog), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	*ret_port = ntohs(a.sin_port);
	return fd;
}

static void test_a_name_that_is_not_answered_for_is_given_up(void **state)
{
	struct dial d;

	(void)state;
	answer(false);
	asked = 0;
	dial_init(&d, "slow.test", 1);
	dial_start(&d);
	wait_asked(1);
	dialing_cancel(&d.dialing);
	/* The latter where it had asked, and not yet begun to wait. */
	dial_end(&d);
	assert_true(d.result == -ECONNABORTED || d.result == -ECANCELED);
	/* And nothing is begun any more. */
	dial_start(&d);
	assert_int_equal(dial_end(&d), -ECANCELED);
	/* The thread that still waits has nothing of ours. */
	dialing_deinit(&d.dialing);
	answer(true);
}

/* Otherwise each try would leave one more thread waiting for a dead name server. */
static void test_the_next_dial_waits_for_the_same_answer(void **state)
{
	struct dial d;
	unsigned int port;
	int listener = listen_on_any(&port, 1);

	(void)state;
	answer(false);
	asked = 0;
	dial_init(&d, "slow.test", port);
	d.timeout_ms = 1;
	for (int i = 0; i < 5; i++) {
		dial_start(&d);
		assert_int_equal(dial_end(&d), -ETIMEDOUT);
		assert_non_null(strstr(d.err.text, "no name server answers"));
	}
	wait_asked(1);
	assert_int_equal(asked, 1);
	d.timeout_ms = TIMEOUT_MS;
	dial_start(&d);
	answer(true);
	assert_true(dial_end(&d) >= 0);
	assert_int_equal(asked, 1);
	close(d.result);
	dialing_deinit(&d.dialing);
	close(listener);
}

/* A host that does not answer: its queue of connections is full, and it drops what comes. */
static void test_a_host_that_does_not_answer_is_given_up(void **state)
{
	struct dial d, filler[8];
	unsigned int port;
	int listener = listen_on_any(&port, 0);

	(void)state;
	for (size_t i = 0; i < 8; i++) {
		dial_init(&filler[i], "127.0.0.1", port);
		dial_start(&filler[i]);
	}
	dial_init(&d, "127.0.0.1", port);
	for (int i = 0; i < 2; i++) {
		int wake = -1;

		dial_start(&d);
		/* It is shown once it has begun. */
		while (wake < 0) {
			pthread_mutex_lock(&d.dialing.lock);
			wake = d.dialing.wake;
			pthread_mutex_unlock(&d.dialing.lock);
			sched_yield();
		}
		if (i)
			dialing_cancel(&d.dialing);
		else
			dialing_interrupt(&d.dialing);
		/* Long before its time, and as the network's failure: it is worth another try. */
		dial_end(&d);
		assert_int_equal(d.result, i ? -ECANCELED : -ECONNABORTED);
		assert_int_equal(d.dialing.fd, -1);
		assert_int_equal(d.dialing.wake, -1);
	}
	for (size_t i = 0; i < 8; i++) {
		dialing_cancel(&filler[i].dialing);
		if (dial_end(&filler[i]) >= 0)
			close(filler[i].result);
		dialing_deinit(&filler[i].dialing);
	}
	dialing_deinit(&d.dialing);
	close(listener);
}

static void test_a_port_nobody_listens_on(void **state)
{
	struct dial d;
	unsigned int port;

	(void)state;
	close(listen_on_any(&port, 1));
	dial_init(&d, "127.0.0.1", port);
	dial_start(&d);
	assert_int_equal(dial_end(&d), -ECONNREFUSED);
	dialing_deinit(&d.dialing);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_name_that_is_not_answered_for_is_given_up),
		cmocka_unit_test(test_the_next_dial_waits_for_the_same_answer),
		cmocka_unit_test(test_a_host_that_does_not_answer_is_given_up),
		cmocka_unit_test(test_a_port_nobody_listens_on),
	};

	return cmocka_run_group_tests_name("dialing", tests, NULL, NULL);
}
