/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dialling that can be given up.
 *
 * Theory of operation
 * -------------------
 * Who dials blocks: for name servers, for the TCP connection, for the handshake. Who wants it to
 * end (a migration that is cancelled, a daemon that ends, a source that has moved) must not wait
 * for that. So a dial is shown here while it goes on: dialing_cancel() wakes who connects, and
 * shuts the socket of who shakes hands down, on which whatever waits for it returns.
 *
 * getaddrinfo() can't be interrupted. It runs in a thread that nobody waits for longer than he
 * wants to; whoever leaves last frees what they share. A name that was not answered for is
 * waited for again by the next dial, not asked again: no more than one such thread stands around
 * for each struct dialing. Addresses in digits need none.
 *
 * Threads: one dials; _cancel() and _interrupt() may be called by any.
 */
#ifndef STREAM_DIALING_H
#define STREAM_DIALING_H

#include <pthread.h>
#include <stdbool.h>

#include "stream/target.h"
#include "util/error.h"

struct lookup;

struct dialing {
	pthread_mutex_t lock; /* before a lookup's */
	bool cancelled;
	int fd;                /* what shakes hands; -1: nothing */
	int wake;              /* wakes who connects (an eventfd); -1: nobody does */
	struct lookup *lookup; /* what name servers are asked; NULL: nothing */
};

void dialing_init(struct dialing *d);
void dialing_deinit(struct dialing *d);

/* The dial that goes on, and all that are begun later, fail with -ECANCELED. */
void dialing_cancel(struct dialing *d);

/* Only the one that goes on: it fails with -ECONNABORTED. */
void dialing_interrupt(struct dialing *d);

/* Whether dialing_cancel() was called. */
bool dialing_is_cancelled(struct dialing *d);

/*
 * dialing_connect() - a TCP connection to one of the target's addresses
 * @timeout_ms: for the name, and for all its addresses (util/tcp_dial.h)
 *
 * The socket is blocking, and shown to _cancel() until dialing_done(), which must come before it
 * is closed. Return: the socket or a negative errno, with @err set.
 */
int dialing_connect(struct dialing *d, const struct conn_target *target, unsigned int timeout_ms,
                    struct error *err);
void dialing_done(struct dialing *d);

#endif
