/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast bulk may go so that faults do not wait in the bottleneck's queue behind it.
 *
 * Theory of operation
 * -------------------
 * TCP fills the queue before a link until something is lost, and whatever else comes by there waits
 * for all of it: at 1 Gbit/s and 20 ms of queue a fault takes 20 ms. A rate just below the link's
 * leaves the queue empty and costs next to nothing. So that rate is looked for. What is seen in
 * each step: what was acknowledged, what the round trip was, and whether it is the network that
 * holds bulk up (the sockets had something to send, and the receiver had room).
 *
 *   free    No limit. A round trip that stays longer than the shortest by some 0.3 ms, while the
 *           network holds bulk up, is a queue that stands. What is acknowledged meanwhile is what
 *           the link carries for us.
 *   drain   Less than that, for as long as the queue should take to run empty. It is ours only if
 *           it does: what others fill, or is no queue (CPUs that are late), stays, and then all
 *           is free again for a while that doubles. So nobody else's traffic can starve bulk: at
 *           the worst it has what TCP gives it.
 *   hold    A little below what the link carries, and after some time more: little by little near
 *           what it carried before, else by steps that double, until a queue stands again (drain)
 *           or bulk has not needed its rate for long (free).
 *
 * Round trips are the kernel's, from packet to acknowledgement: they do not know when a thread
 * gets its core, at either end. That a receiver or a sender is slow shows in "held".
 *
 * No I/O, no clock: test-link-rate has it meet links, strangers, late CPUs, and a link that stands
 * still now and then.
 */
#ifndef STREAM_LINK_RATE_H
#define STREAM_LINK_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define LINK_RATE_STEPS 4u

enum link_rate_state {
	LINK_RATE_FREE,
	LINK_RATE_DRAIN,
	LINK_RATE_HOLD,
};

struct link_rate {
	enum link_rate_state state;
	uint64_t bytes_per_s; /* bulk's limit; 0: none */
	uint64_t queue_us;    /* as it was last seen */
	uint64_t rtt_us;

	uint64_t last_ns;
	uint64_t capacity;              /* what the link carried when a queue stood, bytes/s */
	uint64_t best;                  /* the most of it that was seen lately */
	unsigned int standing;          /* a queue, since so many steps */
	uint64_t took[LINK_RATE_STEPS]; /* bytes/s that were acknowledged, of the last steps */
	unsigned int n_steps;
	uint64_t drained_from_us, drain_until_ns;
	uint64_t drained;                /* the most that came in a step meanwhile, bytes/s */
	bool fast;                       /* it went much slower at once */
	unsigned int cleared;            /* steps that the queue has been gone for */
	uint64_t free_until_ns, free_ns; /* it was not ours: not again until then; and how long */
	uint64_t grow_at_ns, grow_permille;
	uint64_t needed_ns; /* when bulk last went as fast as it may */
};

/* What was seen since the step before. */
struct link_rate_sample {
	uint64_t now_ns;
	uint64_t acked_bytes;
	uint64_t rtt_us;  /* the shortest of all connections' */
	uint64_t base_us; /* the shortest ever: an empty queue's */
	bool held;        /* by the network alone */
};

/* How long a step is to be; from one to the next. */
uint64_t link_rate_step_ns(const struct link_rate *l);

/* One step. From zero on; a pause of a second or more begins anew. */
void link_rate_step(struct link_rate *l, const struct link_rate_sample *s);

/* What one connection has of it. */
struct link_rate_part {
	struct link_rate_part *next;
	uint64_t used; /* bytes/s, in this step */
	bool active;   /* something of it was acknowledged */
	bool waiting;  /* and there was more, that its part kept back */
	uint64_t bytes_per_s;
};

/*
 * Divide a rate among connections. What who does not wait has used is his, and a little more so
 * that he can grow; those that wait have the rest in equal parts, and nobody less than an equal
 * part of all unless he does not use it. Who is not active may begin as one of them.
 */
void link_rate_divide(uint64_t bytes_per_s, struct link_rate_part *parts);

/* How much may leave at once, so that nobody waits long behind it; 0: any. */
uint32_t link_rate_burst_bytes(const struct link_rate *l);

#endif
