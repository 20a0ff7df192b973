/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that are good neighbours: named, small stacks, and with a place in the queue. */
#ifndef UTIL_THREAD_H
#define UTIL_THREAD_H

#include <poll.h>
#include <pthread.h>
#include <stdint.h>

/* A thread with all signals blocked (the loop's thread takes them). Return: 0 or -errno. */
int thread_start(pthread_t *ret, void *(*main)(void *), void *arg);
int thread_start_detached(void *(*main)(void *), void *arg);

/* Of the calling thread; 15 characters at most. */
void thread_set_name(const char *name);

/*
 * Have the scheduler run the calling thread as soon as it is woken: short work that a vCPU
 * waits for. And the opposite: long work that should not push others aside. Both are
 * best effort; raising needs CAP_SYS_NICE.
 */
void thread_prefer_latency(void);
void thread_prefer_throughput(void);

/*
 * thread_spin_poll() - poll(), but stay awake for a while first
 * @spin_ns: look without sleeping for so long
 *
 * Waking a core that has gone to sleep takes longer than all that a fault needs besides.
 *
 * Return: as poll() with @timeout_ms.
 */
int thread_spin_poll(struct pollfd *fds, nfds_t n, uint64_t spin_ns, int timeout_ms);

#endif
