/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cap on bulk's bandwidth, and its share of the host's.
 *
 * Theory of operation
 * -------------------
 * A token bucket in the form of a time: each unit that is asked for moves the time at which the
 * next may be asked for by what it costs at the rate. Whoever comes before that time waits;
 * time that nobody used is worth THROTTLE_SLACK_NS at most, so that a burst is no longer than that.
 * A request asks for THROTTLE_REQUEST_NS worth of pages at most: at 1 MiB/s that is one page, and a
 * fault in the same queue waits for no more.
 *
 * The rate is the lower of two: the migration's own cap, and what it has of the host's bandwidth
 * (migrate/bandwidth.h), which changes all the time. What was asked for and is not paid yet is
 * owed on at the new rate: else each change would make a present of it.
 *
 * A destination pays for pages when it asks for them (throttle_take()); what turns out to be a zero
 * page, which costs a bit, is given back. A source pays for an answer when it sends it
 * (throttle_pay()). Faults come by neither.
 *
 * Threads: any.
 */
#ifndef STREAM_THROTTLE_H
#define STREAM_THROTTLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define THROTTLE_SLACK_NS 10000000ull
#define THROTTLE_REQUEST_NS 5000000ull

struct throttle {
	_Atomic uint64_t bytes_per_s; /* the lower of these that is not 0; 0: no limit */
	atomic_bool held;             /* somebody had to wait */
	pthread_mutex_t lock;
	/* Under the lock. */
	uint64_t cap, share; /* 0: none */
	uint64_t next_ns;    /* when more may be asked for */
};

void throttle_init(struct throttle *t, uint64_t cap);
void throttle_deinit(struct throttle *t);

/* A new cap, or share, 0 for none, from now on. Return: whether the rate is another by that. */
bool throttle_set_cap(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns);
bool throttle_set_share(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns);

/* Whether anybody had to wait since this was asked last. */
bool throttle_was_held(struct throttle *t);

/*
 * throttle_take() - have units to ask for
 *
 * Return: how many of at most WORD_UNITS; 0 where there are none before *@ret_wait_until_ns.
 */
unsigned int throttle_take(struct throttle *t, uint64_t now_ns, uint64_t *ret_wait_until_ns);

/* Units that were taken and not asked for, or were zero. */
void throttle_give_back(struct throttle *t, unsigned int units);

/* All of so many bytes. Return: 0, they are paid; or not before when they can be. */
uint64_t throttle_pay(struct throttle *t, uint64_t bytes, uint64_t now_ns);

#endif
