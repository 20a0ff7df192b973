/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What minivmm and the code that runs in its guest agree on: where things lie in
 * guest memory, and the blocks by which they talk. All of it is guest memory, so all
 * of it migrates.
 *
 *   0x1000      page tables: identity, 2 MiB pages
 *   0x100000    code
 *   0x180000    struct guest_boot
 *   0x200000    struct guest_vcpu, one each vCPU
 *   0x300000    stacks, each with its vCPU's clock below it
 *   0x380000    spare: the guest never touches it
 *   0x400000    generation table, u32 a data page
 *   data_start  data pages to the end of memory, shared out between the vCPUs
 *
 * A data page holds its frame number, its generation, words that mix frame,
 * generation, index and seed, and a checksum. Its generation grows with each write and is
 * also noted in the table, so that a page that is stale, torn or another's is told
 * from the right one. Some pages, chosen by a hash, are never written and stay zero. Of
 * GUEST_ZEROES no page stays what it is: one of an even generation is zero, and noted as any.
 */
#ifndef MINIVMM_GUEST_ABI_H
#define MINIVMM_GUEST_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GUEST_PAGE_BYTES 4096ull
#define GUEST_PAGE_WORDS 512u
#define GUEST_VCPUS_MAX 8u
#define GUEST_MEMORY_MIN (16ull << 20)
#define GUEST_MEMORY_MAX (64ull << 30)

#define GUEST_PML4 0x1000ull
#define GUEST_PDPT 0x2000ull
#define GUEST_PD 0x3000ull /* one page a GiB */
#define GUEST_CODE 0x100000ull
#define GUEST_CODE_MAX 0x80000ull
#define GUEST_BOOT 0x180000ull
#define GUEST_VCPU 0x200000ull
#define GUEST_VCPU_STRIDE 0x10000ull
#define GUEST_STACK 0x300000ull
#define GUEST_STACK_STRIDE 0x10000ull
#define GUEST_CLOCK GUEST_STACK /* the first page of each stack's place, which no stack reaches */
#define GUEST_SPARE 0x380000ull
#define GUEST_SPARE_BYTES 0x80000ull
#define GUEST_GENERATIONS 0x400000ull
#define GUEST_DATA_ALIGN (2ull << 20)

/* Written to GUEST_PORT with `out`, which ends KVM_RUN. */
#define GUEST_PORT 0x510
#define GUEST_OUT_READY 1u /* the vCPU's pages are initialised */
#define GUEST_OUT_TICK 2u  /* it has nothing to do for now: it may sleep */
#define GUEST_OUT_DONE 3u  /* told to stop: the vCPU's pages are verified */

enum guest_workload {
	GUEST_SEQUENTIAL,
	GUEST_RANDOM,
	GUEST_HOTCOLD, /* 80 % of the accesses to 20 % of the pages */
	GUEST_IDLE,
	GUEST_ZEROES, /* random, and each second write of a page makes it zero */
	GUEST_LIGHT,  /* one access, anywhere, each time that it wakes: a guest with little to do */
	GUEST_STRIDE, /* column by column of a matrix with rows of 1 MiB */
	GUEST_WORKLOADS,
};

/* Written by the host before the guest starts; never again. */
struct guest_boot {
	uint64_t memory_bytes;
	uint64_t data_start;
	uint64_t data_pages;
	uint64_t seed;
	uint64_t think_ticks; /* of the TSC: between two accesses */
	uint32_t workload;
	uint32_t write_percent;
	uint32_t zero_percent;
	uint32_t vcpus;
};

/* A log-linear histogram of TSC ticks: 16 buckets to each power of two. */
#define GUEST_HIST_SUB_BITS 4
#define GUEST_HIST_SUB (1u << GUEST_HIST_SUB_BITS)
#define GUEST_HIST_BUCKETS (42u * GUEST_HIST_SUB)

struct guest_stats {
	uint64_t accesses;
	uint64_t writes;
	uint64_t timed; /* accesses in the buckets */
	uint64_t max_ticks;
	uint64_t buckets[GUEST_HIST_BUCKETS];
};

_Static_assert(GUEST_STACK + GUEST_VCPUS_MAX * GUEST_STACK_STRIDE <= GUEST_SPARE &&
                       GUEST_SPARE + GUEST_SPARE_BYTES <= GUEST_GENERATIONS,
               "spare pages are nobody's");

#define GUEST_NO_PAGE UINT64_MAX

/*
 * A vCPU's control block. The host writes @stop at any time, @phase and @digest_at_pause
 * while the vCPU does not run. These two lie in one page: where one of them is as it was
 * at the pause, so is the other, and the digest beside them.
 */
struct guest_vcpu {
	_Alignas(GUEST_PAGE_BYTES) struct guest_stats stats[2];
	uint32_t index;
	volatile uint32_t stop;
	volatile uint32_t phase; /* which of @stats counts: 0 at the source, 1 once paused there */
	uint64_t first;          /* this vCPU's data pages */
	uint64_t pages;
	uint64_t digest;          /* over all generations: a stale table does not match it */
	uint64_t digest_at_pause; /* by which the host knows a stale control block */
	uint64_t pages_checked;
	uint64_t pages_bad;
	uint64_t first_bad; /* frame number, or GUEST_NO_PAGE */
	uint64_t touched;   /* data pages since the pause, each counted once */
};

_Static_assert(sizeof(struct guest_vcpu) <= GUEST_VCPU_STRIDE, "a control block fits its place");
_Static_assert(offsetof(struct guest_vcpu, phase) / GUEST_PAGE_BYTES ==
                       offsetof(struct guest_vcpu, digest_at_pause) / GUEST_PAGE_BYTES,
               "what tells a stale control block lies in one page");

/* tests/chaos/scene.py looks at a guest from outside. */
_Static_assert(offsetof(struct guest_vcpu, stats[0].accesses) == 0 &&
                       offsetof(struct guest_vcpu, stats[1].accesses) == 5408 &&
                       offsetof(struct guest_vcpu, phase) == 10824,
               "others know where these lie");

/* A generation with this bit: the workload found the page bad and let it be. */
#define GUEST_GENERATION_BAD (1u << 31)
/* And with this one: it has been touched since the pause. */
#define GUEST_GENERATION_TOUCHED (1u << 30)
#define GUEST_GENERATION_FLAGS (GUEST_GENERATION_BAD | GUEST_GENERATION_TOUCHED)

static inline uint64_t guest_mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

#endif
