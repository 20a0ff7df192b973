/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Host.Check: the kernel is probed on a worker thread, for it takes its time, once for all who
 * ask meanwhile; who asks soon after is told the same.
 */
#ifndef RPC_CHECK_H
#define RPC_CHECK_H

#include <stdbool.h>
#include <uv.h>

#include "mem/probe.h"

struct check_wait;

struct check {
	uv_work_t work;
	bool running;
	uint64_t done_ns; /* 0: never */
	int rc;           /* of the work, which alone writes these three while it runs */
	struct error error;
	struct probe probe;
	struct check_wait *waiting; /* calls that are to be answered when it is done */
};

#endif
