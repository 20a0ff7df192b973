/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all roles share: the VM as the options want it, one place to wait, and the
 * end: the guest verifies its pages and the result is told.
 */
#ifndef MINIVMM_SESSION_H
#define MINIVMM_SESSION_H

#include <postcopy/postcopy.h>
#include <stdbool.h>
#include <stdint.h>

#include "minivmm/guest/abi.h"
#include "minivmm/options.h"
#include "minivmm/progress.h"
#include "minivmm/vm.h"

struct session {
	struct options options;
	struct vm vm;
	struct memory private_memory; /* where the options want it; no vCPU sees it */
	struct guest_boot boot;
	struct postcopy *postcopy; /* NULL: not attached */
	bool daemon_gone;          /* attached, but nobody answers any more */
	int signal_fd;             /* SIGTERM and SIGINT */
	struct progress progress;  /* where the options want it */
	uint64_t touched;          /* data pages that the guest touched while they came */
	uint64_t fetched;          /* pages asked for before the guest ran, ... */
	uint64_t prefaulted;       /* ... and those of them that KVM has mapped ahead */
};

/* The VM with empty memory and no vCPU. */
int session_init(struct session *s, const struct options *options, struct postcopy_error *err);

/* The guest's memory, as libpostcopy wants it. Return: how many regions, 1 or 2. */
size_t session_regions(const struct session *s, struct postcopy_region ret[2]);

/* Loads the guest, lets it run, and returns when it has initialised its pages. */
int session_start_guest(struct session *s, struct postcopy_error *err);

/* KVM writes the vCPUs' clocks from now on, where the options want it. They don't run yet. */
int session_start_clocks(struct session *s, struct postcopy_error *err);

#define SESSION_FOREVER UINT64_MAX
uint64_t session_now_ms(void);

struct wake {
	bool stop;   /* SIGTERM or SIGINT */
	bool daemon; /* postcopy_next_event() has something */
	bool timeout;
};

/*
 * session_wait() - until something happens
 * @deadline_ms: of session_now_ms(), or SESSION_FOREVER
 *
 * Also returns, with nothing set, when a vCPU has told something. One that failed
 * is an error.
 */
int session_wait(struct session *s, uint64_t deadline_ms, struct wake *ret,
                 struct postcopy_error *err);

/* The guest runs now: from here on its progress is told, where the options want it. */
int session_follow_progress(struct session *s, unsigned int phase, struct postcopy_error *err);

int session_report(struct session *s, const char *event, const char *reason,
                   struct postcopy_error *err);

/* The same of what was at a moment before, by report_now_us(). */
int session_report_at(struct session *s, const char *event, uint64_t at_us, const char *reason,
                      struct postcopy_error *err);

/*
 * session_detach() - no attachment any more
 *
 * On the destination only after COMPLETE: absent pages would read as zeroes.
 */
void session_detach(struct session *s);

/* Stops the workload and waits until every vCPU has verified its pages. */
int session_verify(struct session *s, struct postcopy_error *err);

/*
 * session_finish() - tell the result
 * @phase: whose statistics count: 0 those before the pause, 1 those since
 * @bad, @first_bad: what the caller found besides the guest
 *
 * Return: 0, or -EIO where a page is bad.
 */
int session_finish(struct session *s, const char *role, unsigned int phase, uint64_t bad,
                   uint64_t first_bad, struct postcopy_error *err);

/* The roles. */
int source_run(struct session *s, struct postcopy_error *err);
int destination_run(struct session *s, struct postcopy_error *err);

#endif
