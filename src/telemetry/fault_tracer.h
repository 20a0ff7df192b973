/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the guest's vCPUs really stood still in userfaultfd, seen by the kernel.
 *
 * Theory of operation
 * -------------------
 * The daemon knows when it has read a fault's event and when it has resolved it. The vCPU
 * stands still longer: from its entry into handle_userfault() until it runs again. A BPF
 * program (bpf/fault_latency.bpf.c) takes both times and sums them up in the kernel, so
 * that a fault costs no copy and no wake-up here; only faults that are slower than a threshold
 * also send an event through a ring buffer.
 *
 * There are three ways for it to see a fault, best first; what this kernel allows is
 * found by loading and attaching each:
 *
 * fentry:     entry and exit of handle_userfault(), by trampolines
 * kprobe:     the same, by kprobe and kretprobe
 * tracepoint: sched_switch; a thread of the VMM that goes to sleep with handle_userfault() on its
 *             stack, until it is switched in again. Leaves out what is before and after the
 *             sleep (about 1 us), and faults that are resolved before the thread sleeps
 *
 * Where none works the tracer's source is "daemon": the daemon's own times are all there is.
 * Tracing is never a reason to fail: such a tracer is an object like any other.
 *
 * A VMM takes a slot, with its own histograms; its process id says which threads are its, its
 * ranges which of their faults are the guest's. With fentry and kprobe the process is the one that
 * owns the memory, so that faults which KVM hands to a kernel thread count, too.
 *
 * Nothing blocks the VMM: what does not fit is counted (struct fault_tracer_counters).
 * sched_switch may miss a switch-in now and then: the fault is then "unpaired", and in no
 * histogram. A wake-up that comes before the thread has gone to sleep has no delay. So the counts
 * say nothing about how many faults there were; the daemon knows that.
 *
 * All functions are for the one thread that owns the tracer; fault_tracer_fd() may be polled
 * by any.
 */
#ifndef TELEMETRY_FAULT_TRACER_H
#define TELEMETRY_FAULT_TRACER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"
#include "util/histogram.h"

#define FAULT_TRACER_SLOTS 64
#define FAULT_TRACER_RANGES_MAX 64
#define FAULT_TRACER_COMM_BYTES 16
#define FAULT_TRACER_RING_BYTES (256u * 1024)

struct fault_tracer;

enum fault_tracer_mode {
	FAULT_TRACER_AUTO, /* the best that works */
	FAULT_TRACER_FENTRY,
	FAULT_TRACER_KPROBE,
	FAULT_TRACER_TRACEPOINT,
	FAULT_TRACER_OFF,
};

/* A fault that was slow. All times are CLOCK_MONOTONIC, as clock_now_ns(). */
struct fault_tracer_event {
	int slot;
	pid_t tid;
	uint32_t ns_tid;   /* the same as the thread's own pid namespace counts; 0: not known */
	uint64_t address;  /* in the VMM; 0 where it is not known */
	uint64_t start_ns; /* the vCPU stood still... */
	uint64_t woken_ns; /* was woken (0: before it slept)... */
	uint64_t end_ns;   /* and ran again */
	char comm[FAULT_TRACER_COMM_BYTES];
};

struct fault_tracer_config {
	enum fault_tracer_mode mode;
	uint64_t slow_threshold_ns; /* events of faults that took at least so long; 0: of all */
	uint32_t ring_bytes;        /* a power of two of whole pages; 0: FAULT_TRACER_RING_BYTES */
	/* Called by fault_tracer_poll(), never for a slot that was given back. NULL: no events. */
	void (*event)(void *arg, const struct fault_tracer_event *event);
	void *arg;
};

/* Addresses in the VMM. */
struct fault_tracer_range {
	uint64_t start;
	uint64_t len_bytes;
};

struct fault_tracer_counters {
	uint64_t faults; /* measured: the histogram `stall` has so many */
	/* Their end was not seen, or their thread was killed; by tracepoint sleeps of other kinds,
	 * too. */
	uint64_t unpaired;
	uint64_t lost_faults; /* not measured: too many threads stood in faults */
	uint64_t lost_events; /* measured, but the ring buffer was full */
};

/*
 * fault_tracer_new() - load and attach what works here
 *
 * Needs CAP_BPF and CAP_PERFMON (tracepoints: CAP_SYSLOG as well, to see the kernel's symbols);
 * they may be given up afterwards.
 *
 * Return: 0, also where nothing can be attached (fault_tracer_source() is "daemon" then);
 * -EINVAL for a configuration that can't be, -ENOMEM.
 */
int fault_tracer_new(const struct fault_tracer_config *config, struct fault_tracer **ret,
                     struct error *err);
struct fault_tracer *fault_tracer_free(struct fault_tracer *t);

/* "fentry", "kprobe", "tracepoint" or "daemon". Static. */
const char *fault_tracer_source(const struct fault_tracer *t);
/* Why nothing better is in use, in one line; "" where it is the best. Lives as long as @t. */
const char *fault_tracer_why(const struct fault_tracer *t);

/* Readable when there are events to poll; -1 where there will be none. */
int fault_tracer_fd(const struct fault_tracer *t);
/* Calls back for each event that is there. Return: how many, or a negative errno. */
int fault_tracer_poll(struct fault_tracer *t);

/*
 * fault_tracer_add() - begin to trace a VMM
 * @tgid:   its process id
 * @ranges: the guest's memory in it; none: all its faults count
 *
 * Return: 0; -EOPNOTSUPP where the source is "daemon", -ENOSPC where all slots are taken, -EEXIST
 * where that process has one, -EINVAL for too many ranges.
 */
int fault_tracer_add(struct fault_tracer *t, pid_t tgid, const struct fault_tracer_range *ranges,
                     size_t n, int *ret_slot, struct error *err);
/* Ends it, whether or not the VMM still lives, and frees the slot. A negative one is none. */
void fault_tracer_remove(struct fault_tracer *t, int slot);

/*
 * fault_tracer_read() - what was measured since the slot was taken
 * @ret_stall:        how long threads stood still, ns
 * @ret_wakeup_delay: of that, from being woken to running, ns
 *
 * Each may be NULL; what is there is overwritten. While the VMM runs the parts are not of one
 * instant.
 *
 * Return: 0, -ENOENT where the slot is not in use.
 */
int fault_tracer_read(const struct fault_tracer *t, int slot, struct histogram *ret_stall,
                      struct histogram *ret_wakeup_delay,
                      struct fault_tracer_counters *ret_counters);

/* What fault_tracer_new() would find in mode auto, for people. */
struct fault_tracer_probe {
	const char *source;
	char why[ERROR_TEXT_MAX];
};

void fault_tracer_probe(struct fault_tracer_probe *ret);

#endif
