/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What fault_latency.bpf.c and src/telemetry/fault_tracer.c share: the layout of the maps and
 * of the ring buffer's records. Who includes it has __u32 and __u64 already, from
 * bpf/kernel.h or <linux/types.h>.
 */
#ifndef BPF_FAULT_LATENCY_H
#define BPF_FAULT_LATENCY_H

#define FAULT_LATENCY_SLOTS 64
#define FAULT_LATENCY_RANGES 64 /* of guest memory, in a slot */
#define FAULT_LATENCY_COMM 16
/* Threads that may stand in a fault at the same time; beyond them, faults count as lost. */
#define FAULT_LATENCY_THREADS 8192

/* The buckets of util/histogram.h, so that the two can be merged. */
#define FAULT_LATENCY_SUB_BITS 4
#define FAULT_LATENCY_SUB (1u << FAULT_LATENCY_SUB_BITS)
#define FAULT_LATENCY_BUCKETS (37 * FAULT_LATENCY_SUB)

struct fault_latency_histogram {
	__u64 sum;
	__u64 max;
	__u64 buckets[FAULT_LATENCY_BUCKETS];
};

struct fault_latency_range {
	__u64 start;
	__u64 len_bytes;
};

/* One traced process, a value of the map `slots`. */
struct fault_latency_slot {
	__u32 epoch;    /* who used the slot before has another one; 0: nobody uses it */
	__u32 n_ranges; /* 0: all addresses count */
	struct fault_latency_range ranges[FAULT_LATENCY_RANGES];
	__u64 faults;      /* that have begun and ended */
	__u64 unpaired;    /* that have begun, and their end was not seen */
	__u64 lost_faults; /* that were not measured: too many at the same time */
	__u64 lost_events; /* that were measured, but found the ring buffer full */
	struct fault_latency_histogram stall;
	struct fault_latency_histogram wakeup_delay;
};

/* Whom a process's faults count for, a value of the map `processes`; its key is the tgid. */
struct fault_latency_owner {
	__u32 slot;
	__u32 epoch;
};

/* A fault that has not ended, a value of the map `threads`; its key is the thread's id. */
struct fault_latency_thread {
	struct fault_latency_owner owner;
	__u64 address; /* 0: not known yet */
	__u64 start_ns;
	__u64 woken_ns; /* 0: not woken yet */
};

/* A record of the ring buffer. All times are CLOCK_MONOTONIC. */
struct fault_latency_event {
	__u64 address; /* 0: not known */
	__u64 start_ns;
	__u64 woken_ns; /* 0: before it slept */
	__u64 end_ns;
	__u32 slot;
	__u32 epoch;
	__u32 tid;
	__u32 ns_tid; /* the same as its own pid namespace counts; 0: not known */
	char comm[FAULT_LATENCY_COMM];
};

/* The bucket that a value counts in, as histogram_bucket() has it; BPF has no clz. */
static inline __u32 fault_latency_bucket(__u64 value)
{
	__u64 rest = value >> FAULT_LATENCY_SUB_BITS;
	__u32 shift = 0, bucket;

	if (!rest)
		return (__u32)value;
	for (__u32 step = 32; step; step >>= 1) {
		if (rest >> step) {
			rest >>= step;
			shift += step;
		}
	}
	bucket = (shift + 1) * FAULT_LATENCY_SUB + (__u32)((value >> shift) - FAULT_LATENCY_SUB);
	return bucket < FAULT_LATENCY_BUCKETS ? bucket : FAULT_LATENCY_BUCKETS - 1;
}

#endif
