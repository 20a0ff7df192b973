/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a fault's time went.
 *
 * Theory of operation
 * -------------------
 * The fault thread stamps each fault as it passes (CLOCK_MONOTONIC, no system call):
 *
 *   read      its event was read from the userfaultfd
 *   asked     it had room in the window, and a connection: its GET is being sent
 *   sent      the GET is with the kernel
 *   received  the answer is here
 *   filled    the content is in place, by whomever
 *   mapped    the ioctl that maps it and wakes its vCPU has returned
 *
 * Between two stamps lies a phase; the phases add up to the time from read to mapped. What comes
 * before (the kernel's part) and after (until the vCPU has a core) only eBPF sees: it is
 * joined to these records by address, or thread, and time.
 *
 * Bulk may bring the page of a fault that has asked for it already. Its vCPU is woken then and
 * there, by the bulk thread, and the answer that comes later is no part of the fault:
 * fault/brought.h tells when. Such a fault's content counts as received when bulk had it in place.
 *
 * Records are kept thrice, each in a place of bounded size: the latest of them in a ring, for who
 * joins them with what the kernel saw; the slowest ever in a table; and for a picture of the whole
 * migration a sample of every 2^k-th, from the first to the last, where k grows whenever it is
 * full. One writer, the fault thread; any number of readers at any time. A slot has a sequence
 * number, 0 while it is being written: a reader that finds another number before
 * and after takes nothing. No lock, no allocation.
 *
 * Many migrations at a time have all of this each, so what is kept of a record is small (its stamps
 * count from the first one), and a place that was not needed yet was not touched: it is to lie in
 * zeroed memory that takes none before that.
 */
#ifndef FAULT_PHASES_H
#define FAULT_PHASES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum fault_phase {
	FAULT_QUEUE,   /* waits for its turn, for room in the window, for a connection */
	FAULT_REQUEST, /* encrypts and sends the GET */
	FAULT_ANSWER,  /* the network and the source */
	FAULT_FILL,    /* puts the content in place, or waits for the one who does */
	FAULT_MAP,     /* maps the page and wakes the vCPU */
};
#define FAULT_PHASES 5u

enum fault_flags {
	FAULT_DURING_BULK = 1 << 0, /* a bulk request was in flight when it was read; else idle */
	FAULT_MINOR = 1 << 1,       /* the page was there already: nothing but FAULT_MAP */
	FAULT_BROUGHT = 1 << 2,     /* bulk brought the page before the answer did */
	FAULT_FETCHED = 1 << 3,     /* the VMM asked (fault/fetch.h): no vCPU at the mapping */
};

struct fault_record {
	uint64_t addr; /* of the host page, as the VMM has it; 0 where FAULT_FETCHED */
	/* Of the vCPU, as its own pid namespace counts; 0: the kernel did not say. Linux has 22
	 * bits of them at most. */
	uint32_t tid;
	uint32_t flags; /* enum fault_flags, below 2^8 */
	uint64_t read_ns, asked_ns, sent_ns, received_ns, filled_ns, mapped_ns; /* 0: never */
};

struct fault_durations {
	uint64_t ns[FAULT_PHASES];
	uint64_t total_ns; /* their sum */
};

/* "queue", "request", "answer", "fill", "map". */
const char *fault_phase_name(enum fault_phase phase);

/*
 * fault_record_durations() - how long each phase took
 *
 * A stamp that is missing, or out of order (what somebody else did meanwhile), makes its phase
 * empty.
 *
 * Return: the phase that took longest.
 */
enum fault_phase fault_record_durations(const struct fault_record *r, struct fault_durations *ret);

static inline uint64_t fault_record_total_ns(const struct fault_record *r)
{
	return r->mapped_ns > r->read_ns ? r->mapped_ns - r->read_ns : 0;
}

/* Of a record that is kept. */
#define FAULT_SLOT_WORDS 5u

/*
 * A record that is kept says how long after read_ns each other stamp was, at least 0: to the
 * nanosecond up to two seconds, and from there on (up to 19 hours) to some 30 us.
 */
struct fault_slot {
	_Atomic uint64_t sequence; /* which record this is, from 1 on; 0: none, or not whole */
	_Atomic uint64_t words[FAULT_SLOT_WORDS];
};

/* Powers of two. */
#define FAULT_RING_MIN 256u
#define FAULT_RING_MAX 4096u
/* What is younger is not to be overwritten, as far as there is room. */
#define FAULT_RING_KEEP_NS 1000000000ull

/*
 * The latest records: FAULT_RING_MIN of them; twice as many whenever that many came in less than
 * FAULT_RING_KEEP_NS, up to FAULT_RING_MAX.
 */
struct fault_ring {
	_Atomic uint64_t n;         /* ever */
	_Atomic unsigned int grown; /* how often it was made twice as large */
	struct fault_slot slots[FAULT_RING_MAX];
};

void fault_ring_add(struct fault_ring *ring, const struct fault_record *r);

/* The oldest record that is still there; it goes up to ring->n. */
uint64_t fault_ring_first(const struct fault_ring *ring);

/* Record @i. Return: false where it has been overwritten. */
bool fault_ring_get(const struct fault_ring *ring, uint64_t i, struct fault_record *ret);

/* A power of two. */
#define FAULT_SAMPLE_MAX 2048u

/* Every 2^shift-th record, from the first on: once there were so many, at least half as many. */
struct fault_sample {
	struct fault_slot slots[FAULT_SAMPLE_MAX]; /* in no order */
	_Atomic unsigned int shift;
	/* The writer's. */
	uint64_t n;        /* ever taken in */
	unsigned int next; /* the slot that it looks for room from */
};

void fault_sample_add(struct fault_sample *sample, const struct fault_record *r);

/*
 * A copy, in no order; @ret_every: every so many-th is in it, and few of those are not that were
 * added meanwhile. Return: how many.
 */
size_t fault_sample_get(const struct fault_sample *sample,
                        struct fault_record ret[FAULT_SAMPLE_MAX], uint64_t *ret_every);

#define FAULT_SLOW_MAX 1024u

/* The slowest records. */
struct fault_slow {
	struct fault_slot slots[FAULT_SLOW_MAX];
	/* The writer's. */
	uint64_t total_ns[FAULT_SLOW_MAX];
	unsigned int fastest; /* of them */
	uint64_t n;           /* ever taken in */
};

void fault_slow_add(struct fault_slow *slow, const struct fault_record *r);

/* A copy, slowest first. Return: how many. */
size_t fault_slow_get(const struct fault_slow *slow, struct fault_record ret[FAULT_SLOW_MAX]);

#endif
