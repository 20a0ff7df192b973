/* SPDX-License-Identifier: Apache-2.0 */
/* The status lines: one JSON object a line, each written in one piece. */
#ifndef MINIVMM_REPORT_H
#define MINIVMM_REPORT_H

#include <postcopy/postcopy.h>

#include "minivmm/guest/abi.h"
#include "minivmm/options.h"
#include "minivmm/vm.h"

/* {"event": "...", "at_us": of CLOCK_MONOTONIC}; with the reason where there is one. */
int report_event(int fd, const char *event, uint64_t at_us, const char *reason,
                 struct postcopy_error *err);
uint64_t report_now_us(void);

/* What the guest has found, and how its accesses went. */
struct result {
	const char *role;
	unsigned int vcpus;
	uint64_t memory_bytes;
	uint64_t pages_checked;
	uint64_t pages_bad;
	uint64_t first_bad;  /* frame number, or GUEST_NO_PAGE */
	uint64_t fetched;    /* pages that were asked for before the guest ran */
	uint64_t prefaulted; /* those of them that KVM has mapped ahead */
	uint64_t userfaults; /* vCPU faults that were KVM exits */
	uint64_t touched;    /* data pages, while they came */
	unsigned int tsc_khz;
	struct guest_stats stats; /* of all vCPUs */
};

/* Adds up the vCPUs' control blocks. @phase: which of their statistics. */
void result_collect(const struct vm *vm, unsigned int phase, struct result *ret);

/* Counts pages that the host found bad. */
void result_add_bad(struct result *r, uint64_t pages, uint64_t first);

int report_result(int fd, const struct result *r, struct postcopy_error *err);

#endif
