/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bulk of all migrations to one host goes at one rate (stream/link_rate.h), for it shares a queue.
 *
 * The kernel paces each connection at its share (SO_MAX_PACING_RATE): a thread that is late, here
 * or at the destination, neither makes a burst of what it has missed nor leaves the link idle. What
 * leaves at once is small (conn_set_burst()). What limits is seen in TCP_INFO: round trips from the
 * kernel's clock, and for how long the receiver's window was the reason. A share is what a
 * connection needs, and an equal part where they need more than there is (link_rate_divide()).
 *
 * The threads that serve bulk call pacer_note() after each answer; whoever finds that a step is due
 * looks at all connections to that host. Nothing here can fail a connection: where something can't
 * be had bulk is not paced.
 */
#ifndef STREAM_PACER_H
#define STREAM_PACER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "stream/conn.h"
#include "stream/link_rate.h"

struct pacer;

/* All hosts that bulk goes to. */
struct pacers {
	pthread_mutex_t lock;
	struct pacer *list;
};

/* One bulk connection. Zero: it is not paced. */
struct pacer_conn {
	struct pacer *pacer;
	uint32_t burst; /* the own thread's: what the connection was told */
	/* Under the pacer's lock. */
	struct pacer_conn *next;
	int fd;
	struct link_rate_part part;
	uint64_t acked_bytes, busy_us, rwnd_us; /* as TCP_INFO last counted */
	uint64_t bytes_per_s;                   /* its share; 0: it never had one */
};

/* What anybody may look at. */
struct pacer_view {
	_Atomic uint64_t bytes_per_s; /* all bulk to that host; 0: as fast as it gets */
	_Atomic uint64_t queue_us;    /* how long a packet waits on its way */
	_Atomic uint64_t rtt_us;
	_Atomic uint64_t in_flight_bytes; /* sent and not acknowledged */
};

void pacers_init(struct pacers *ps);
/* All connections have left. */
void pacers_deinit(struct pacers *ps);

/* A connection's place among those to its peer; pacers_leave() before its descriptor is closed. */
void pacers_join(struct pacers *ps, struct pacer_conn *pc, int fd);
void pacers_leave(struct pacers *ps, struct pacer_conn *pc);

/* An answer was sent: look whether something is to change. @view: what is seen, where it is new */
void pacer_note(struct pacer_conn *pc, struct conn *c, struct pacer_view *view);

#endif
