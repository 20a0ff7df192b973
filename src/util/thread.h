/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that are good neighbours: named, small stacks, and with a place in the queue. */
#ifndef UTIL_THREAD_H
#define UTIL_THREAD_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A thread with all signals blocked (the loop's thread takes them). Return: 0 or -errno. */
int thread_start(pthread_t *ret, void *(*main)(void *), void *arg);
int thread_start_detached(void *(*main)(void *), void *arg);

/* Of the calling thread; 15 characters at most. */
void thread_set_name(const char *name);

/*
 * The calling thread's place among others; best effort, raising needs CAP_SYS_NICE.
 *
 * latency:    short work that a vCPU waits for: at once when it is woken, and before all others
 * promptness: short work on the way of a switchover: at once when it is woken, for otherwise a
 *             busy vCPU's time slice, some milliseconds, would be part of the downtime
 * control:    the loop's: as promptness, and with a share of a CPU that many guests' faults, at
 *             "latency", leave for nobody else. Then an operator is answered, and whose turn it is
 *             to pause or resume a guest need not wait, when guests are under way by the dozen
 * throughput: long work that should push nobody aside
 *
 * A new thread has its maker's, but none of "control": that is the loop's alone. So who is on the
 * way of a switchover says what it is.
 */
void thread_prefer_latency(void);
void thread_prefer_promptness(void);
void thread_prefer_control(void);
void thread_prefer_throughput(void);

/*
 * thread_give_back_stack() - the memory that the calling thread's stack has taken deeper than now
 *
 * For one that has done what goes deep (a TLS handshake), and then lives on for long.
 */
void thread_give_back_stack(void);

/*
 * thread_own_time_ns() - the time, without what the calling thread has waited for a CPU
 *
 * For a limit on what it does: a busy host must not make it shorter. What it waits for otherwise (a
 * lock, a disk) counts. Where the kernel does not tell (CONFIG_SCHED_INFO, no descriptor) all of it
 * does. Only differences of it mean anything, in one thread.
 */
uint64_t thread_own_time_ns(void);

/*
 * thread_open_times() - what the kernel tells of the calling thread's time, for thread_busy_ns()
 *
 * Return: a descriptor, or -errno where it tells nothing.
 */
int thread_open_times(void);

/*
 * thread_busy_ns() - what a thread has computed, and waited for a CPU to compute on
 * @times_fd: of thread_open_times(), in that thread
 *
 * It opens and allocates nothing: for the data path.
 *
 * Return: nanoseconds; 0 where @times_fd is negative.
 */
uint64_t thread_busy_ns(int times_fd);

/* Whether a thread of this process would go on if it had a CPU, and waits for nothing else. */
bool thread_is_runnable(pid_t tid);

/* How often it paid to wait awake of late. All zero at first. */
struct thread_spin {
	int worth; /* the share of short waits, of 256; the last eight or so count */
};

/* Whether the next wait is to be awake. */
bool thread_spin_pays(const struct thread_spin *s);

/*
 * thread_spin_poll() - poll(), but stay awake for a while first, where that pays
 * @spin_ns: look without sleeping for so long; 0: not this time
 *
 * Waking a core that has gone to sleep takes longer than all that a fault needs besides. But where
 * nothing comes within that time, a core was kept from others, on a busy host from the guest that
 * is to raise the next fault. So a wait is awake while a third of those before it were short: no
 * less, for a sleep costs half of what a wait in vain does, and not the last alone, for a guest's
 * faults come in no such order.
 *
 * Return: as poll() with @timeout_ms.
 */
int thread_spin_poll(struct thread_spin *s, struct pollfd *fds, nfds_t n, uint64_t spin_ns,
                     int timeout_ms);

#endif
