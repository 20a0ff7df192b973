/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cap on bulk's bandwidth.
 *
 * Theory of operation
 * -------------------
 * A token bucket in the form of a time: each unit that is asked for moves the time at which the
 * next may be asked for by what it costs at the cap's rate. Whoever comes before that time waits;
 * time that nobody used is worth THROTTLE_SLACK_NS at most, so that a burst is no longer than that.
 * A request asks for THROTTLE_REQUEST_NS worth of pages at most: at 1 MiB/s that is one page, and a
 * fault in the same queue waits for no more.
 *
 * Pages are paid when they are asked for; what turns out to be a zero page, which costs
 * a bit, is given back. Faults do not come by here.
 *
 * Threads: any.
 */
#ifndef FAULT_THROTTLE_H
#define FAULT_THROTTLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define THROTTLE_SLACK_NS 10000000ull
#define THROTTLE_REQUEST_NS 5000000ull

struct throttle {
	_Atomic uint64_t bytes_per_s; /* 0: no cap */
	pthread_mutex_t lock;
	uint64_t next_ns; /* under the lock: when more may be asked for */
};

void throttle_init(struct throttle *t, uint64_t bytes_per_s);
void throttle_deinit(struct throttle *t);

/* A new cap, 0 for none, from now on. */
void throttle_set(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns);

/*
 * throttle_take() - have units to ask for
 *
 * Return: how many of at most WORD_UNITS; 0 where there are none before *@ret_wait_until_ns.
 */
unsigned int throttle_take(struct throttle *t, uint64_t now_ns, uint64_t *ret_wait_until_ns);

/* Units that were taken and not asked for, or were zero. */
void throttle_give_back(struct throttle *t, unsigned int units);

#endif
