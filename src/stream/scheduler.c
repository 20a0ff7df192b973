/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/scheduler.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"

/* Faults between two looks at them. Older ones are overwritten: they are stale. */
#define HINTS 64u
/* Faults that are worked on, the newest first. */
#define AROUNDS 64u
/* Words to each side of a fault: 8 of 256 KiB, 2 MiB. Along a stride twice as far, to one. */
#define AROUND_WORDS 8u
#define ALONG_WORDS (2 * AROUND_WORDS)
/* Words along a stride that jumps over others; doubled each time that it goes on. */
#define JUMPS_MIN 32u
#define JUMPS_MAX 4096u
/* Threads whose strides are looked for, and how many of their faults are compared. */
#define TRAILS 64u
#define TRAIL_FAULTS 6u
/* Words that one pick looks at for what was written lately. */
#define RECENT_WORDS 65536u
/* Units of a word from which on much of it was written. */
#define DENSE_UNITS (WORD_UNITS / 2)

/* A fault in 64 bits: who, region + 1, unit. 0 is none. Units fit: 52 bits of address, 12 of page.
 */
#define HINT_REGION_SHIFT 40
#define HINT_WHO_SHIFT 47
_Static_assert(REGIONS_MAX < 1u << (HINT_WHO_SHIFT - HINT_REGION_SHIFT), "a region fits a hint");

struct place {
	uint32_t region;
	uint64_t word;
};

/* A fault, and how far it was looked from there. */
struct around {
	uint32_t region;
	uint64_t unit;
	int64_t stride; /* in units; 0: to both sides */
	unsigned int step, steps;
};

/* One thread's faults. */
struct trail {
	uint32_t who;
	uint32_t region;              /* of the latest faults: in another it begins anew */
	unsigned int n;               /* how many there ever were there */
	uint64_t units[TRAIL_FAULTS]; /* ring */
	int64_t stride;               /* 0: none is known */
	uint64_t at;                  /* the fault by which it was found or went on */
	unsigned int ahead;           /* strides that are asked for */
};

struct hot {
	uint32_t region;
	uint64_t first, end; /* units */
};

/* Ways to look for what was written lately, one after the other. */
enum recent {
	RECENT_AGAIN, /* in each of the last two rounds */
	RECENT_DENSE, /* much of a word, since it was copied */
	RECENT_OVER,
};

struct scheduler {
	/* Set at birth. */
	const struct region_table *table;
	struct page_state *state;
	_Atomic uint64_t *asked[REGIONS_MAX]; /* a bit a word */

	/* Written by the fault thread. */
	_Atomic uint64_t hints[HINTS];
	_Atomic uint64_t n_hints; /* ever posted */
	struct hot hot[SCHEDULER_HOT_MAX];
	_Atomic unsigned int n_hot; /* those below it do not change any more */
	atomic_bool prefetch;

	atomic_bool held;         /* written under the lock */
	_Atomic uint64_t n_asked; /* words; grows under the lock */

	/* Under the lock. */
	pthread_mutex_t lock;
	uint64_t hints_seen;
	struct trail trails[TRAILS];
	struct around arounds[AROUNDS]; /* stack; the oldest make room for new ones */
	unsigned int around_top, around_depth;
	unsigned int hot_at; /* the range that is being asked for, and where it goes on */
	uint64_t hot_word;
	unsigned int rounds;           /* that have begun */
	uint64_t *before[REGIONS_MAX]; /* what was missing when the last of them began */
	enum recent recent;
	struct place recent_at;
	struct place linear_at;
	bool linear_again; /* it has passed over something that is to be asked for */
};

static int new_region(struct scheduler *s, uint32_t region)
{
	uint64_t words = s->table->regions[region].words;

	s->asked[region] = calloc((words + 63) / 64, sizeof *s->asked[region]);
	s->before[region] = calloc(words, sizeof *s->before[region]);
	return s->asked[region] && s->before[region] ? 0 : -ENOMEM;
}

int scheduler_new(const struct region_table *table, struct page_state *state,
                  struct scheduler **ret, struct error *err)
{
	struct scheduler *s = calloc(1, sizeof *s);

	if (!s)
		return error_set(err, -ENOMEM, "scheduler: out of memory");
	s->table = table;
	s->state = state;
	s->recent = RECENT_OVER;
	atomic_init(&s->prefetch, true);
	pthread_mutex_init(&s->lock, NULL);
	for (uint32_t i = 0; i < table->n; i++) {
		if (new_region(s, i)) {
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
	for (uint32_t i = 0; i < s->table->n; i++) {
		free(s->asked[i]);
		free(s->before[i]);
	}
	pthread_mutex_destroy(&s->lock);
	free(s);
	return NULL;
}

bool scheduler_is_asked(const struct scheduler *s, uint32_t region, uint64_t word)
{
	return atomic_load(&s->asked[region][word / 64]) & (1ull << (word % 64));
}

static uint64_t missing(const struct scheduler *s, uint32_t region, uint64_t word)
{
	return region_word_mask(&s->table->regions[region], word) &
	       ~page_state_claimed(s->state, region, word);
}

/* Hand out what the word lacks of @units, if it is anything. */
static bool take(struct scheduler *s, uint32_t region, uint64_t word, uint64_t units,
                 enum scheduler_reason why, struct scheduler_item *ret)
{
	uint64_t lacks = missing(s, region, word);

	if (!(lacks & units) || scheduler_is_asked(s, region, word))
		return false;
	atomic_fetch_or(&s->asked[region][word / 64], 1ull << (word % 64));
	atomic_fetch_add(&s->n_asked, 1);
	*ret = (struct scheduler_item){
		.region = region,
		.word = word,
		.want_mask = lacks & units,
		.why = why,
		.some = lacks & ~units,
	};
	return true;
}

/* Past the last word of a region comes the next region. Return: false past the last. */
static bool settle_place(const struct scheduler *s, struct place *at)
{
	while (at->region < s->table->n && at->word >= s->table->regions[at->region].words)
		*at = (struct place){ .region = at->region + 1 };
	return at->region < s->table->n;
}

/* The units of [first, end) in a word. */
static uint64_t range_mask(uint64_t word, uint64_t first, uint64_t end)
{
	uint64_t start = word * WORD_UNITS, mask = UINT64_MAX;

	if (first > start)
		mask &= UINT64_MAX << (first - start);
	if (end < start + WORD_UNITS)
		mask &= (1ull << (end - start)) - 1;
	return mask;
}

static bool next_hot(struct scheduler *s, struct scheduler_item *ret)
{
	unsigned int n = atomic_load_explicit(&s->n_hot, memory_order_acquire);

	for (; s->hot_at < n; s->hot_at++, s->hot_word = 0) {
		const struct hot *h = &s->hot[s->hot_at];

		if (s->hot_word < h->first / WORD_UNITS)
			s->hot_word = h->first / WORD_UNITS;
		while (s->hot_word * WORD_UNITS < h->end) {
			uint64_t word = s->hot_word++;

			if (take(s, h->region, word, range_mask(word, h->first, h->end),
			         SCHEDULER_HOT, ret))
				return true;
		}
	}
	return false;
}

static uint64_t distance(int64_t stride)
{
	return stride < 0 ? -(uint64_t)stride : (uint64_t)stride;
}

/* Words of a host page; 1 where it is smaller than a word. */
static uint64_t page_words(const struct scheduler *s, uint32_t region)
{
	uint64_t words = region_units_per_page(&s->table->regions[region]) / WORD_UNITS;

	return words ? words : 1;
}

/* Whether it jumps over words. */
static bool jumps(const struct scheduler *s, uint32_t region, int64_t stride)
{
	return region_units_per_page(&s->table->regions[region]) == 1 &&
	       distance(stride) >= WORD_UNITS;
}

/* How many strides are asked for at first, and how many places that is. */
static unsigned int first_ahead(const struct scheduler *s, uint32_t region, int64_t stride)
{
	uint64_t n = ALONG_WORDS * WORD_UNITS / distance(stride);

	if (jumps(s, region, stride))
		return JUMPS_MIN;
	return n ? (unsigned int)n : 1;
}

static unsigned int steps_along(const struct scheduler *s, const struct trail *t)
{
	return jumps(s, t->region, t->stride) ? t->ahead : ALONG_WORDS + 1;
}

/* Whether the fault is where the trail leads, perhaps some strides on. */
static bool goes_on(const struct trail *t, uint64_t unit)
{
	int64_t moved = (int64_t)(unit - t->at);

	return t->stride && moved % t->stride == 0 && moved / t->stride > 0 &&
	       moved / t->stride <= 2 * (int64_t)t->ahead;
}

/* The distance at which three of the thread's faults lie, this one the last; or 0. */
static int64_t find_stride(const struct trail *t, uint64_t unit)
{
	unsigned int n = t->n < TRAIL_FAULTS ? t->n : TRAIL_FAULTS;

	/* Backwards, for the latest tell most. */
	for (unsigned int i = 1; i <= n; i++) {
		uint64_t middle = t->units[(t->n - i) % TRAIL_FAULTS];

		for (unsigned int k = i + 1; k <= n && middle != unit; k++)
			if (t->units[(t->n - k) % TRAIL_FAULTS] == 2 * middle - unit)
				return (int64_t)(unit - middle);
	}
	return 0;
}

/* Note a fault of the thread's. Return: whether it lies on a stride, the trail's. */
static bool follow(const struct scheduler *s, struct trail *t, uint64_t unit)
{
	bool on = goes_on(t, unit);
	int64_t stride = on ? 0 : find_stride(t, unit);

	if (on && jumps(s, t->region, t->stride) && t->ahead < JUMPS_MAX)
		t->ahead *= 2;
	if (stride) {
		t->stride = stride;
		t->ahead = first_ahead(s, t->region, stride);
	}
	if (on || stride)
		t->at = unit;
	t->units[t->n++ % TRAIL_FAULTS] = unit;
	return on || stride;
}

/* Something to look around at, before all others. */
static void push(struct scheduler *s, const struct around *a)
{
	s->arounds[s->around_top++ % AROUNDS] = *a;
	if (s->around_depth < AROUNDS)
		s->around_depth++;
}

static void take_hint(struct scheduler *s, uint64_t hint)
{
	uint32_t who = (uint32_t)(hint >> HINT_WHO_SHIFT);
	uint32_t region = (hint >> HINT_REGION_SHIFT & ((1u << 7) - 1)) - 1;
	uint64_t unit = hint & ((1ull << HINT_REGION_SHIFT) - 1);
	struct trail *t = &s->trails[who % TRAILS];
	struct around a = { .region = region, .unit = unit, .steps = 2 * AROUND_WORDS + 1 };

	if (t->who != who || t->region != region)
		*t = (struct trail){ .who = who, .region = region };
	if (follow(s, t, unit)) {
		a.stride = t->stride;
		a.steps = steps_along(s, t);
	}
	push(s, &a);
}

/* The faults since the last look, in their order. */
static void take_hints(struct scheduler *s)
{
	uint64_t n = atomic_load(&s->n_hints);

	if (n - s->hints_seen > HINTS)
		s->hints_seen = n - HINTS;
	for (; s->hints_seen < n; s->hints_seen++)
		take_hint(s, atomic_load(&s->hints[s->hints_seen % HINTS]));
}

/* The units of a word, or of the host pages in it, that were written in the last two rounds. */
static uint64_t written_again(const struct scheduler *s, uint32_t region, uint64_t word)
{
	uint64_t units = missing(s, region, word) & s->before[region][word];

	/* A huge page is of use as a whole. */
	return units && region_units_per_page(&s->table->regions[region]) > 1 ? UINT64_MAX : units;
}

/* Of a word near a fault: not what the fault asks for itself; and, while some are left, units that
 * are known to be in use. */
static uint64_t units_around(const struct scheduler *s, const struct around *a, uint64_t word)
{
	uint64_t units = UINT64_MAX;

	if (s->recent == RECENT_AGAIN && !a->stride)
		units = written_again(s, a->region, word);
	if (page_words(s, a->region) == 1 && word == a->unit / WORD_UNITS)
		units &= ~(1ull << a->unit % WORD_UNITS);
	return units;
}

/*
 * Where to look at the current step: to both sides 0, +1, -1, +2, -2... words; along a stride the
 * words, the jumps, or the host pages. Return: false beyond the region.
 */
static bool place_around(const struct scheduler *s, const struct around *a, uint64_t *ret_word,
                         uint64_t *ret_units)
{
	const struct region *r = &s->table->regions[a->region];
	uint64_t pw = page_words(s, a->region), half = (a->step + 1) / 2, unit = a->unit;

	if (!a->stride) {
		*ret_word = unit / WORD_UNITS + (a->step % 2 ? half : -half);
	} else if (jumps(s, a->region, a->stride)) {
		unit += (a->step + 1) * (uint64_t)a->stride;
		*ret_word = unit / WORD_UNITS;
	} else if (pw > 1) {
		unit += (a->step / pw + 1) * (uint64_t)a->stride;
		*ret_word = unit / WORD_UNITS + a->step % pw;
	} else {
		*ret_word = unit / WORD_UNITS + (a->stride > 0 ? a->step : -(uint64_t)a->step);
	}
	/* Below the region's start it has wrapped round. */
	if (*ret_word >= r->words)
		return false;
	*ret_units = units_around(s, a, *ret_word);
	return true;
}

static bool next_around(struct scheduler *s, struct scheduler_item *ret)
{
	for (; s->around_depth; s->around_top--, s->around_depth--) {
		struct around *a = &s->arounds[(s->around_top - 1) % AROUNDS];

		while (a->step < a->steps) {
			uint64_t word, units;
			bool inside = place_around(s, a, &word, &units);

			/* Along a stride all that follows lies outside, too. */
			a->step = inside || !a->stride ? a->step + 1 : a->steps;
			if (inside && take(s, a->region, word, units,
			                   a->stride ? SCHEDULER_STRIDE : SCHEDULER_AROUND, ret))
				return true;
		}
	}
	return false;
}

/* Which units of a word are due, as it is looked for now. */
static uint64_t recent_units(const struct scheduler *s, uint32_t region, uint64_t word)
{
	uint64_t anew = missing(s, region, word) & page_state_written(s->state, region, word);

	if (s->recent == RECENT_AGAIN)
		return written_again(s, region, word);
	return (unsigned int)__builtin_popcountll(anew) >= DENSE_UNITS ? UINT64_MAX : 0;
}

static bool next_recent(struct scheduler *s, struct scheduler_item *ret)
{
	struct place *at = &s->recent_at;

	for (unsigned int looked = 0; s->recent != RECENT_OVER && looked < RECENT_WORDS; looked++) {
		uint64_t units;

		if (!settle_place(s, at)) {
			s->recent++;
			*at = (struct place){ 0 };
			continue;
		}
		units = recent_units(s, at->region, at->word);
		at->word++;
		if (units && take(s, at->region, at->word - 1, units, SCHEDULER_RECENT, ret))
			return true;
	}
	return false;
}

static bool next_linear(struct scheduler *s, struct scheduler_item *ret)
{
	do {
		while (settle_place(s, &s->linear_at)) {
			struct place at = s->linear_at;

			s->linear_at.word++;
			if (take(s, at.region, at.word, UINT64_MAX, SCHEDULER_LINEAR, ret))
				return true;
		}
		if (!s->linear_again)
			return false;
		/* What is claimed costs nothing. */
		s->linear_again = false;
		s->linear_at = (struct place){ 0 };
	} while (true);
}

bool scheduler_next(struct scheduler *s, struct scheduler_item *ret)
{
	bool found = false;

	pthread_mutex_lock(&s->lock);
	if (!atomic_load(&s->held)) {
		take_hints(s);
		if (atomic_load(&s->prefetch))
			found = next_hot(s, ret) || next_around(s, ret) || next_recent(s, ret);
		found = found || next_linear(s, ret);
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

static void forget_asked(struct scheduler *s, const struct scheduler_item *item)
{
	atomic_fetch_and(&s->asked[item->region][item->word / 64], ~(1ull << (item->word % 64)));
	atomic_fetch_sub(&s->n_asked, 1);
}

bool scheduler_done(struct scheduler *s, const struct scheduler_item *item)
{
	bool more = item->some && missing(s, item->region, item->word);

	if (!more) {
		forget_asked(s, item);
		return false;
	}
	scheduler_give_back(s, item);
	return true;
}

void scheduler_give_back(struct scheduler *s, const struct scheduler_item *item)
{
	pthread_mutex_lock(&s->lock);
	/* Linear may have passed it. */
	s->linear_again = true;
	forget_asked(s, item);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_hold(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->held, true);
	pthread_mutex_unlock(&s->lock);
}

static void go_locked(struct scheduler *s)
{
	s->recent_at = s->linear_at = (struct place){ 0 };
	s->linear_again = false;
	atomic_store(&s->held, false);
}

/* In the first all is missing, which tells nothing. */
void scheduler_go_round(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; s->rounds && i < s->table->n; i++)
		for (uint64_t word = 0; word < s->table->regions[i].words; word++)
			s->before[i][word] = missing(s, i, word);
	s->rounds++;
	/* What is written most is of least use now: it will be written again. */
	s->recent = RECENT_OVER;
	go_locked(s);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_go(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	s->recent = s->rounds > 1 ? RECENT_AGAIN : s->rounds ? RECENT_DENSE : RECENT_OVER;
	/* What was named may have been written since it came. */
	s->hot_at = 0;
	s->hot_word = 0;
	go_locked(s);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_go_on(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->held, false);
	pthread_mutex_unlock(&s->lock);
}

void scheduler_forget(struct scheduler *s)
{
	pthread_mutex_lock(&s->lock);
	s->rounds = 0;
	for (uint32_t i = 0; i < s->table->n; i++)
		memset(s->before[i], 0, s->table->regions[i].words * sizeof *s->before[i]);
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
	over = s->linear_at.region == s->table->n && !s->linear_again && !atomic_load(&s->n_asked);
	pthread_mutex_unlock(&s->lock);
	return over;
}

void scheduler_note_fault(struct scheduler *s, uint32_t region, uint64_t unit, uint32_t who)
{
	uint64_t n = atomic_load_explicit(&s->n_hints, memory_order_relaxed);

	/* Of who the lower bits will do: two threads that share them hide each other's strides. */
	atomic_store(&s->hints[n % HINTS], (uint64_t)who << HINT_WHO_SHIFT |
	                                           (uint64_t)(region + 1) << HINT_REGION_SHIFT |
	                                           unit);
	atomic_store(&s->n_hints, n + 1);
}

void scheduler_add_hot(struct scheduler *s, uint32_t region, uint64_t first_unit, uint64_t units)
{
	unsigned int n = atomic_load_explicit(&s->n_hot, memory_order_relaxed);

	if (n == SCHEDULER_HOT_MAX)
		return;
	s->hot[n] =
	        (struct hot){ .region = region, .first = first_unit, .end = first_unit + units };
	atomic_store_explicit(&s->n_hot, n + 1, memory_order_release);
}

void scheduler_set_prefetch(struct scheduler *s, bool on)
{
	atomic_store(&s->prefetch, on);
}
