/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that are good neighbours: named, small stacks, and with a place in the queue. */
#ifndef UTIL_THREAD_H
#define UTIL_THREAD_H

#include <pthread.h>

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

#endif
