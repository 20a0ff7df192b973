/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/phases.h"

#include <stdlib.h>
#include <string.h>

/* Of a stamp in 32 bits: what is coarse is in units of 2^15 ns. */
#define COARSE (1u << 31)
#define COARSE_SHIFT 15
/* Of a tid, below the flags. */
#define TID_BITS 24

const char *fault_phase_name(enum fault_phase phase)
{
	static const char *const names[FAULT_PHASES] = {
		[FAULT_QUEUE] = "queue", [FAULT_REQUEST] = "request", [FAULT_ANSWER] = "answer",
		[FAULT_FILL] = "fill",   [FAULT_MAP] = "map",
	};

	return (unsigned int)phase < FAULT_PHASES ? names[phase] : "?";
}

enum fault_phase fault_record_durations(const struct fault_record *r, struct fault_durations *ret)
{
	const uint64_t ends[FAULT_PHASES] = {
		[FAULT_QUEUE] = r->asked_ns,     [FAULT_REQUEST] = r->sent_ns,
		[FAULT_ANSWER] = r->received_ns, [FAULT_FILL] = r->filled_ns,
		[FAULT_MAP] = r->mapped_ns,
	};
	enum fault_phase longest = FAULT_MAP;
	uint64_t at = r->read_ns;

	for (unsigned int i = 0; i < FAULT_PHASES; i++) {
		uint64_t end = ends[i] < r->mapped_ns ? ends[i] : r->mapped_ns;

		ret->ns[i] = end > at ? end - at : 0;
		at += ret->ns[i];
		if (ret->ns[i] > ret->ns[longest] || i == 0)
			longest = i;
	}
	ret->total_ns = fault_record_total_ns(r);
	return longest;
}

/* How long after the first stamp; 0: never. What was before it is none of the fault's time. */
static uint32_t pack_stamp(uint64_t ns, uint64_t read_ns)
{
	uint64_t since = ns > read_ns ? ns - read_ns : 0;

	if (!ns)
		return 0;
	if (since + 1 < COARSE)
		return (uint32_t)since + 1;
	since >>= COARSE_SHIFT;
	return COARSE | (uint32_t)(since < COARSE ? since : COARSE - 1);
}

static uint64_t unpack_stamp(uint32_t stamp, uint64_t read_ns)
{
	if (!stamp)
		return 0;
	if (stamp & COARSE)
		return read_ns + ((uint64_t)(stamp & ~COARSE) << COARSE_SHIFT);
	return read_ns + stamp - 1;
}

static uint64_t pack_pair(uint32_t high, uint32_t low)
{
	return (uint64_t)high << 32 | low;
}

static void pack(const struct fault_record *r, uint64_t ret[FAULT_SLOT_WORDS])
{
	ret[0] = r->addr;
	ret[1] = r->read_ns;
	ret[2] = pack_pair(r->flags << TID_BITS | r->tid, pack_stamp(r->asked_ns, r->read_ns));
	ret[3] = pack_pair(pack_stamp(r->sent_ns, r->read_ns),
	                   pack_stamp(r->received_ns, r->read_ns));
	ret[4] = pack_pair(pack_stamp(r->filled_ns, r->read_ns),
	                   pack_stamp(r->mapped_ns, r->read_ns));
}

static void unpack(const uint64_t words[FAULT_SLOT_WORDS], struct fault_record *ret)
{
	uint64_t read_ns = words[1];
	uint32_t who = (uint32_t)(words[2] >> 32);

	*ret = (struct fault_record){
		.addr = words[0],
		.tid = who & ((1u << TID_BITS) - 1),
		.flags = who >> TID_BITS,
		.read_ns = read_ns,
		.asked_ns = unpack_stamp((uint32_t)words[2], read_ns),
		.sent_ns = unpack_stamp((uint32_t)(words[3] >> 32), read_ns),
		.received_ns = unpack_stamp((uint32_t)words[3], read_ns),
		.filled_ns = unpack_stamp((uint32_t)(words[4] >> 32), read_ns),
		.mapped_ns = unpack_stamp((uint32_t)words[4], read_ns),
	};
}

/*
 * Release and acquire on each word rather than fences (which ThreadSanitizer does not know): who
 * reads any word of a newer record also sees the 0 before it. Free of charge on x86.
 */
static void slot_put(struct fault_slot *slot, uint64_t sequence, const struct fault_record *r)
{
	uint64_t words[FAULT_SLOT_WORDS];

	pack(r, words);
	atomic_store_explicit(&slot->sequence, 0, memory_order_relaxed);
	for (size_t i = 0; i < FAULT_SLOT_WORDS; i++)
		atomic_store_explicit(&slot->words[i], words[i], memory_order_release);
	atomic_store_explicit(&slot->sequence, sequence, memory_order_release);
}

/* Return: the record's sequence number; 0 where there is none, or it changed meanwhile. */
static uint64_t slot_get(const struct fault_slot *slot, struct fault_record *ret)
{
	uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
	uint64_t words[FAULT_SLOT_WORDS];

	for (size_t i = 0; i < FAULT_SLOT_WORDS; i++)
		words[i] = atomic_load_explicit(&slot->words[i], memory_order_acquire);
	if (!sequence || atomic_load_explicit(&slot->sequence, memory_order_relaxed) != sequence)
		return 0;
	unpack(words, ret);
	return sequence;
}

static uint64_t ring_size(const struct fault_ring *ring)
{
	return (uint64_t)FAULT_RING_MIN << atomic_load_explicit(&ring->grown, memory_order_relaxed);
}

/* What is overwritten next is too young for that. */
static bool ring_is_fast(const struct fault_ring *ring, uint64_t n, const struct fault_record *r)
{
	struct fault_record oldest;

	return fault_ring_get(ring, n - ring_size(ring), &oldest) &&
	       r->mapped_ns < oldest.mapped_ns + FAULT_RING_KEEP_NS;
}

/*
 * Once in two rounds all that is there lies where it lies in a ring of twice the size, too: nobody
 * who reads meanwhile sees a difference.
 */
static void ring_grow(struct fault_ring *ring, uint64_t n, const struct fault_record *r)
{
	uint64_t size = ring_size(ring);

	if (size < FAULT_RING_MAX && n % (2 * size) == size && ring_is_fast(ring, n, r))
		atomic_fetch_add_explicit(&ring->grown, 1, memory_order_relaxed);
}

void fault_ring_add(struct fault_ring *ring, const struct fault_record *r)
{
	uint64_t n = atomic_load_explicit(&ring->n, memory_order_relaxed);

	ring_grow(ring, n, r);
	slot_put(&ring->slots[n % ring_size(ring)], n + 1, r);
	atomic_store_explicit(&ring->n, n + 1, memory_order_release);
}

uint64_t fault_ring_first(const struct fault_ring *ring)
{
	uint64_t n = atomic_load_explicit(&ring->n, memory_order_acquire);
	uint64_t size = ring_size(ring);

	return n > size ? n - size : 0;
}

bool fault_ring_get(const struct fault_ring *ring, uint64_t i, struct fault_record *ret)
{
	return slot_get(&ring->slots[i % ring_size(ring)], ret) == i + 1;
}

/* Whether a slot has nothing that belongs to every 2^@shift-th. The writer asks. */
static bool sample_slot_is_free(const struct fault_slot *slot, unsigned int shift)
{
	uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_relaxed);

	return !sequence || (sequence - 1) & ((1ull << shift) - 1);
}

/* There is one, or else half of what is kept goes: then every other slot is free. */
static struct fault_slot *sample_room(struct fault_sample *sample)
{
	unsigned int shift = atomic_load_explicit(&sample->shift, memory_order_relaxed);

	for (;;) {
		while (sample->next < FAULT_SAMPLE_MAX) {
			struct fault_slot *slot = &sample->slots[sample->next++];

			if (sample_slot_is_free(slot, shift))
				return slot;
		}
		sample->next = 0;
		atomic_store_explicit(&sample->shift, ++shift, memory_order_release);
	}
}

/*
 * When all slots are taken the record at hand is number FAULT_SAMPLE_MAX << shift: it belongs to
 * every 2^(shift + 1)-th, too. So does each other of what is kept, and the rest is written over.
 */
void fault_sample_add(struct fault_sample *sample, const struct fault_record *r)
{
	unsigned int shift = atomic_load_explicit(&sample->shift, memory_order_relaxed);
	uint64_t i = sample->n++;

	if (!(i & ((1ull << shift) - 1)))
		slot_put(sample_room(sample), i + 1, r);
}

size_t fault_sample_get(const struct fault_sample *sample,
                        struct fault_record ret[FAULT_SAMPLE_MAX], uint64_t *ret_every)
{
	uint64_t sequences[FAULT_SAMPLE_MAX], every;
	size_t n = 0, kept = 0;

	for (size_t i = 0; i < FAULT_SAMPLE_MAX; i++) {
		sequences[n] = slot_get(&sample->slots[i], &ret[n]);
		n += sequences[n] != 0;
	}
	/* After them: who has seen a record that was written over another sees what for. */
	every = 1ull << atomic_load_explicit(&sample->shift, memory_order_acquire);
	for (size_t i = 0; i < n; i++)
		if (!((sequences[i] - 1) % every))
			ret[kept++] = ret[i];
	*ret_every = every;
	return kept;
}

static unsigned int fastest_of(const struct fault_slow *slow)
{
	unsigned int fastest = 0;

	for (unsigned int i = 1; i < FAULT_SLOW_MAX; i++)
		if (slow->total_ns[i] < slow->total_ns[fastest])
			fastest = i;
	return fastest;
}

void fault_slow_add(struct fault_slow *slow, const struct fault_record *r)
{
	uint64_t total_ns = fault_record_total_ns(r);
	unsigned int i = slow->fastest;

	if (total_ns <= slow->total_ns[i])
		return;
	slow->total_ns[i] = total_ns;
	slow->fastest = fastest_of(slow);
	slot_put(&slow->slots[i], ++slow->n, r);
}

static int compare_slower(const void *a, const void *b)
{
	uint64_t a_ns = fault_record_total_ns(a), b_ns = fault_record_total_ns(b);

	return a_ns < b_ns ? 1 : a_ns > b_ns ? -1 : 0;
}

size_t fault_slow_get(const struct fault_slow *slow, struct fault_record ret[FAULT_SLOW_MAX])
{
	size_t n = 0;

	for (unsigned int i = 0; i < FAULT_SLOW_MAX; i++)
		if (slot_get(&slow->slots[i], &ret[n]))
			n++;
	qsort(ret, n, sizeof *ret, compare_slower);
	return n;
}
