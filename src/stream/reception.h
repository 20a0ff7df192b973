/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strangers: connections that have not proven yet who they are.
 *
 * Theory of operation
 * -------------------
 * Anybody who reaches the port can open a connection and say nothing, or a byte a second. So until
 * TLS and HELLO are done a connection has no thread, one of few slots, and so much time from
 * beginning to end, whatever trickles in. All are looked after by the one thread that accepts.
 *
 * Where the slots are all taken somebody has to go: the oldest of the address that has most of
 * them. So a crowd from one host keeps out itself, and nobody keeps a host out that has few.
 *
 * Threads: one.
 */
#ifndef STREAM_RECEPTION_H
#define STREAM_RECEPTION_H

#include <netinet/in.h>
#include <poll.h>

#include "stream/conn.h"

#define STRANGERS_MAX 64u

struct stranger {
	struct conn *c;
	uint64_t deadline_ns;
	short events; /* that it waits for */
	struct in6_addr address;
	char peer[64]; /* the same with the port, for the log */
};

struct reception {
	/* Set by the owner. */
	struct tls_context *tls;
	/* Its HELLO is here. @c is taken over; @hello is valid until it returns. */
	void (*admit)(void *arg, struct conn *c, const struct hello *hello, const char *peer);
	void *arg;

	struct hello hello;
	unsigned int n;
	struct stranger strangers[STRANGERS_MAX]; /* oldest first */
};

/* @fd: just accepted; taken over in any case. */
void reception_add(struct reception *r, int fd);

/*
 * Between the two: poll(). @fds: STRANGERS_MAX of them; *@timeout_ms comes with how long others
 * would wait (-1: for good). Return: how many were filled in.
 */
unsigned int reception_prepare(const struct reception *r, struct pollfd *fds, int *timeout_ms);
void reception_serve(struct reception *r, const struct pollfd *fds, unsigned int n);

/* The end of all. */
void reception_close(struct reception *r);

#endif
