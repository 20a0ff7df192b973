/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest gets done, over time: a thread looks at the vCPUs' counts of accesses from time to
 * time (each millisecond, if not told otherwise) and appends a line to a file,
 *
 *	TIME ACCESSES RAN WAITED
 *
 * the time in microseconds of CLOCK_MONOTONIC, so that both sides' files are on one clock where
 * they are on one host; the accesses since the guest has run here; and for how long, in
 * microseconds, the vCPUs' threads have had a core, and have waited for one that was busy with
 * something else (/proc/PID/task/TID/schedstat; 0 where the kernel does not tell).
 *
 * It reads guest memory as any device of a VMM does. So it starts when the guest runs, and then
 * may wait for a page as the guest does.
 */
#ifndef MINIVMM_PROGRESS_H
#define MINIVMM_PROGRESS_H

#include <postcopy/postcopy.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>

#include "minivmm/vm.h"

struct progress {
	const struct vm *vm;
	unsigned int phase;
	uint64_t interval_ms;
	FILE *file;
	int schedstat_fds[GUEST_VCPUS_MAX]; /* -1: not opened yet */
	pthread_t thread;
	bool running;
	atomic_bool stop;
};

/* @phase: whose accesses: 0 those before the pause, 1 those since */
int progress_start(struct progress *p, const char *path, uint64_t interval_ms, const struct vm *vm,
                   unsigned int phase, struct postcopy_error *err);

/* Nothing where it has not been started. Return: 0, or where not all could be written. */
int progress_stop(struct progress *p, struct postcopy_error *err);

#endif
