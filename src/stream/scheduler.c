/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/scheduler.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "util/cleanup.h"

/* Recent faults that steer. Older ones are overwritten: their neighbourhood is stale. */
#define HINTS 64u
/* Words to each side of a fault: 8 of 256 KiB, 2 MiB. */
#define BUBBLE_WORDS 8

/* (region + 1) << HINT_SHIFT | word; 0 is none. Words fit: 52 bits of address, 18 of word. */
#define HINT_SHIFT 40

struct scheduler {
	/* Set at birth. */
	const struct region_table *table;
	struct page_state *state;
	_Atomic uint64_t *asked[REGIONS_MAX]; /* a bit a word */

	/* Written by the fault thread. */
	_Atomic uint64_t hints[HINTS];
	_Atomic uint64_t n_hints; /* ever posted */
	atomic_bool prefetch;

	atomic_bool held;         /* written under the lock */
	_Atomic uint64_t n_asked; /* words; grows under the lock */

	/* Under the lock. */
	pthread_mutex_t lock;
	uint64_t bubble_hint;     /* the hint that is being worked on */
	unsigned int bubble_step; /* how far around it */
	uint64_t hints_seen;      /* n_hints when a hint was last taken */
	uint64_t hints_drained;   /* n_hints when none was left */
	uint32_t linear_region;
	uint64_t linear_word;
};

int scheduler_new(const struct region_table *table, struct page_state *state,
                  struct scheduler **ret, struct error *err)
{
	struct scheduler *s = calloc(1, sizeof *s);

	if (!s)
		return error_set(err, -ENOMEM, "scheduler: out of memory");
	s->table = table;
	s->state = state;
	atomic_init(&s->prefetch, true);
	pthread_mutex_init(&s->lock, NULL);
	for (uint32_t i = 0; i < table->n; i++) {
		s->asked[i] = calloc((table->regions[i].words + 63) / 64, sizeof *s->asked[i]);
		if (!s->asked[i]) {
			scheduler_free(s);
			return error_set(err, -ENOMEM, "scheduler: out of memory");
		}
	}
	*ret = s;
	return 0;
}

struct scheduler *scheduler_free(struct scheduler *s)
{
	if (!s)
		return NULL;
	for (uint32_t i = 0; i < s->table->n; i++)
		free(s->asked[i]);
	pthread_mutex_destroy(&s->lock);
	free(s);
	return NULL;
}

bool scheduler_is_asked(const struct scheduler *s, uint32_t region, uint64_t word)
{
	return atomic_load(&s->asked[region][word / 64]) & (1ull << (word % 64));
}

/* Hand the word out, if there is something in it to ask for. */
static bool take(struct scheduler *s, uint32_t region, uint64_t word, bool prefetch,
                 struct scheduler_item *ret)
{
	uint64_t want = region_word_mask(&s->table->regions[region], word) &
	                ~page_state_claimed(s->state, region, word);

	if (!want || scheduler_is_asked(s, region, word))
		return false;
	atomic_fetch_or(&s->asked[region][word / 64], 1ull << (word % 64));
	atomic_fetch_add(&s->n_asked, 1);
	*ret = (struct scheduler_item){
		.region = region, .word = word, .want_mask = want, .prefetch = prefetch
	};
	return true;
}

/* The word at the bubble's current step: 0, +1, -1, +2, -2... Return: false beyond the region. */
static bool bubble_word(const struct scheduler *s, uint32_t region, uint64_t center,
                        uint64_t *ret_word)
{
	uint64_t distance = (s->bubble_step + 1) / 2;

	if (s->bubble_step % 2) {
		*ret_word = center + distance;
		return *ret_word < s->table->regions[region].words;
	}
	*ret_word = center - distance;
	return center >= distance;
}

static bool next_in_bubble(struct scheduler *s, struct scheduler_item *ret)
{
	uint32_t region = (uint32_t)(s->bubble_hint >> HINT_SHIFT) - 1;
	uint64_t center = s->bubble_hint & ((1ull << HINT_SHIFT) - 1);

	while (s->bubble_step <= 2 * BUBBLE_WORDS) {
		uint64_t word;
		bool inside = bubble_word(s, region, center, &word);

		s->bubble_step++;
		if (inside && take(s, region, word, true, ret))
			return true;
	}
	s->bubble_hint = 0;
	return false;
}

/* The newest fault that nobody has looked around yet. */
static bool take_hint(struct scheduler *s)
{
	uint64_t n = atomic_load(&s->n_hints);
	uint64_t oldest = n > HINTS ? n - HINTS : 0;

	if (n == s->hints_drained)
		return false;
	s->hints_seen = n;
	for (uint64_t i = n; i > oldest; i--) {
		uint64_t hint = atomic_exchange(&s->hints[(i - 1) % HINTS], 0);

		if (hint) {
			s->bubble_hint = hint;
			s->bubble_step = 0;
			return true;
		}
	}
	s->hints_drained = n;
	return false;
}

static bool next_linear(struct scheduler *s, struct scheduler_item *ret)
{
	for (; s->linear_region < s->table->n; s->linear_region++, s->linear_word = 0) {
		uint64_t words = s->table->regions[s->linear_region].words;

		while (s->linear_word < words)
			if (take(s, s->linear_region, s->linear_word++, false, ret))
				return true;
	}
	return false;
}

/*
 * A fault that came meanwhile goes before the bubble of an older one: of that, what is left is
 * reached linearly, or by its own next fault.
 */
bool scheduler_next(struct scheduler *s, struct scheduler_item *ret)
{
	bool held, found = false;

	pthread_mutex_lock(&s->lock);
	held = atomic_load(&s->held);
	if (!held && atomic_load(&s->prefetch)) {
		if (!s->bubble_hint || atomic_load(&s->n_hints) != s->hints_seen)
			take_hint(s);
		while (s->bubble_hint && !found) {
			found = next_in_bubble(s, ret);
			if (!found)
				take_hint(s);
		}
	}
	if (!found && !held)
		found = next_linear(s, ret);
	pthread_mutex_unlock(&s->lock);
	return found;
}

void scheduler_done(struct scheduler *s, const struct scheduler_item *item)
{
	atomic_fetch_and(&s->asked[item->region][item->word / 64], ~(1ull << (item->word % 64)));
	atomic_fetch_sub(&s->n_asked, 1);
}

void scheduler_give_back(struct scheduler *s, const struct scheduler_item *item)
{
	pthread_mutex_lock(&s->lock);
	/* Linear has passed it: go over everything again. What is claimed costs nothing. */
	s->linear_region = 0;
	s->linear_word = 0;
	scheduler_done(s, item);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_hold(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->held, true);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_go(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	s->linear_region = 0;
	s->linear_word = 0;
	atomic_store(&s->held, false);
	pthread_mutex_unlock(&s->lock);
}

bool scheduler_is_held(const struct scheduler *s)
{
	return atomic_load(&s->held);
}

bool scheduler_is_idle(const struct scheduler *s)
{
	return !atomic_load(&s->n_asked);
}

bool scheduler_is_over(struct scheduler *s)
{
	bool over;

	pthread_mutex_lock(&s->lock);
	over = s->linear_region == s->table->n && !atomic_load(&s->n_asked);
	pthread_mutex_unlock(&s->lock);
	return over;
}

void scheduler_note_fault(struct scheduler *s, uint32_t region, uint64_t word)
{
	uint64_t n = atomic_load_explicit(&s->n_hints, memory_order_relaxed);

	atomic_store(&s->hints[n % HINTS], (uint64_t)(region + 1) << HINT_SHIFT | word);
	atomic_store(&s->n_hints, n + 1);
}

void scheduler_set_prefetch(struct scheduler *s, bool on)
{
	atomic_store(&s->prefetch, on);
}
