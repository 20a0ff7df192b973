/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/phases.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct fault_record) == FAULT_RECORD_WORDS * sizeof(uint64_t),
               "a record is copied word by word");

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

/*
 * Release and acquire on each word rather than fences (which ThreadSanitizer does not know): who
 * reads any word of a newer record also sees the 0 before it. Free of charge on x86.
 */
static void slot_put(struct fault_slot *slot, uint64_t sequence, const struct fault_record *r)
{
	uint64_t words[FAULT_RECORD_WORDS];

	memcpy(words, r, sizeof words);
	atomic_store_explicit(&slot->sequence, 0, memory_order_relaxed);
	for (size_t i = 0; i < FAULT_RECORD_WORDS; i++)
		atomic_store_explicit(&slot->words[i], words[i], memory_order_release);
	atomic_store_explicit(&slot->sequence, sequence, memory_order_release);
}

/* Return: the record's sequence number; 0 where there is none, or it changed meanwhile. */
static uint64_t slot_get(const struct fault_slot *slot, struct fault_record *ret)
{
	uint64_t sequence = atomic_load_explicit(&slot->sequence, memory_order_acquire);
	uint64_t words[FAULT_RECORD_WORDS];

	for (size_t i = 0; i < FAULT_RECORD_WORDS; i++)
		words[i] = atomic_load_explicit(&slot->words[i], memory_order_acquire);
	if (!sequence || atomic_load_explicit(&slot->sequence, memory_order_relaxed) != sequence)
		return 0;
	memcpy(ret, words, sizeof words);
	return sequence;
}

void fault_ring_add(struct fault_ring *ring, const struct fault_record *r)
{
	uint64_t n = atomic_load_explicit(&ring->n, memory_order_relaxed);

	slot_put(&ring->slots[n % FAULT_RING_MAX], n + 1, r);
	atomic_store_explicit(&ring->n, n + 1, memory_order_release);
}

uint64_t fault_ring_first(const struct fault_ring *ring)
{
	uint64_t n = atomic_load_explicit(&ring->n, memory_order_acquire);

	return n > FAULT_RING_MAX ? n - FAULT_RING_MAX : 0;
}

bool fault_ring_get(const struct fault_ring *ring, uint64_t i, struct fault_record *ret)
{
	return slot_get(&ring->slots[i % FAULT_RING_MAX], ret) == i + 1;
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
