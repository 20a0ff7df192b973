/* SPDX-License-Identifier: Apache-2.0 */
/* A relay between a pull and its source: it can hold back answers, and cut connections. */
#ifndef TESTS_UNIT_RELAY_H
#define TESTS_UNIT_RELAY_H

#include <stdatomic.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RELAY_CONNS 1024u

/* One direction of a connection. */
struct pipe {
	struct relay *relay;
	pthread_t thread;
	int from, to;
	bool held; /* by relay->hold */
};

struct relay {
	int listen_fd;
	uint16_t server_port, port;
	pthread_t thread;
	unsigned int n_pipes;
	struct pipe pipes[2 * RELAY_CONNS];

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool hold;
	atomic_bool refuses; /* who connects is cut off at once */
};

static inline void *pipe_main(void *arg)
{
	struct pipe *p = arg;
	char buf[65536];
	ssize_t n;

	while ((n = recv(p->from, buf, sizeof buf, 0)) > 0) {
		pthread_mutex_lock(&p->relay->lock);
		while (p->held && p->relay->hold)
			pthread_cond_wait(&p->relay->changed, &p->relay->lock);
		pthread_mutex_unlock(&p->relay->lock);
		if (send(p->to, buf, (size_t)n, MSG_NOSIGNAL) != n)
			break;
	}
	shutdown(p->to, SHUT_RDWR);
	shutdown(p->from, SHUT_RDWR);
	return NULL;
}

static inline int dial(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
		                 .sin_port = htons(port),
		                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	return fd;
}

static inline void start_pipe(struct relay *r, int from, int to, bool held)
{
	struct pipe *p = &r->pipes[r->n_pipes++];

	*p = (struct pipe){ .relay = r, .from = from, .to = to, .held = held };
	assert_int_equal(pthread_create(&p->thread, NULL, pipe_main, p), 0);
}

/* The first connection is the urgent one: its answers can be held. */
static inline void *relay_main(void *arg)
{
	struct relay *r = arg;
	int fd;

	while ((fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		int server;

		if (atomic_load(&r->refuses)) {
			close(fd);
			continue;
		}
		server = dial(r->server_port);
		pthread_mutex_lock(&r->lock);
		assert_true(r->n_pipes < 2 * RELAY_CONNS);
		start_pipe(r, server, fd, r->n_pipes == 0);
		start_pipe(r, fd, server, false);
		pthread_mutex_unlock(&r->lock);
	}
	return NULL;
}

static inline void relay_start(struct relay *r, uint16_t server_port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;

	memset(r, 0, sizeof *r);
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->changed, NULL);
	r->server_port = server_port;
	r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(r->listen_fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(listen(r->listen_fd, 16), 0);
	assert_int_equal(getsockname(r->listen_fd, (struct sockaddr *)&a, &len), 0);
	r->port = ntohs(a.sin_port);
	assert_int_equal(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

static inline void relay_hold(struct relay *r, bool hold)
{
	pthread_mutex_lock(&r->lock);
	r->hold = hold;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* Every connection but the urgent one breaks. */
static inline void relay_cut_bulk(struct relay *r)
{
	pthread_mutex_lock(&r->lock);
	for (unsigned int i = 2; i < r->n_pipes; i++)
		shutdown(r->pipes[i].from, SHUT_RDWR);
	pthread_mutex_unlock(&r->lock);
}

/* One of them breaks: by when it was opened. */
static inline void relay_cut(struct relay *r, unsigned int conn)
{
	pthread_mutex_lock(&r->lock);
	assert_true(2 * conn < r->n_pipes);
	shutdown(r->pipes[2 * conn].from, SHUT_RDWR);
	pthread_mutex_unlock(&r->lock);
}

static inline void relay_stop(struct relay *r)
{
	shutdown(r->listen_fd, SHUT_RDWR);
	pthread_join(r->thread, NULL);
	close(r->listen_fd);
	for (unsigned int i = 0; i < r->n_pipes; i++)
		shutdown(r->pipes[i].from, SHUT_RDWR);
	for (unsigned int i = 0; i < r->n_pipes; i++)
		pthread_join(r->pipes[i].thread, NULL);
	for (unsigned int i = 0; i < r->n_pipes; i += 2) {
		close(r->pipes[i].from);
		close(r->pipes[i].to);
	}
}

#endif
