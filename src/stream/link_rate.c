/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/link_rate.h"

#include "util/clock.h"

/* A round trip that is longer by this, and a burst, has met a queue. */
#define QUEUE_US 250u
/* Beyond it a queue is drained fast. */
#define LONG_QUEUE_US 2000u
/* Steps that it has to stand: what was free may have filled it just now. */
#define STANDS_FREE 4u
#define STANDS_HELD 2u
/* A queue that TCP fills is there within some ms; a rate that is held takes longer to be told. */
#define STEP_MIN_NS (4 * NSEC_PER_MSEC)
#define STEP_HELD_NS (6 * NSEC_PER_MSEC)
#define STEP_MAX_NS (200 * NSEC_PER_MSEC)
/* What a step has to bring at least to tell a rate. */
#define STEP_BYTES (64u << 10)
#define RATE_MIN (256u << 10)
/* Parts of what the link carries: when held, drained, and drained fast. */
#define HOLD_PERMILLE 970u
#define DRAIN_PERMILLE 850u
#define DRAIN_FAST_PERMILLE 500u
/* How long it may take for the drained queue to be seen, beside the time that it takes. */
#define DRAIN_SLACK_NS (30 * NSEC_PER_MSEC)
/* Steps without a queue that a drain has to end with: one may be chance. */
#define CLEARED 2u
/*
 * A rate is held for so long, then raised so often by so much. Where the link's end is near that
 * stays little: what is too much is a queue before it is seen. Elsewhere it doubles each time.
 */
#define HOLD_NS (200 * NSEC_PER_MSEC)
#define GROW_NEAR_NS (20 * NSEC_PER_MSEC)
#define GROW_NEAR_PERMILLE 5u
#define GROW_NS (12 * NSEC_PER_MSEC)
#define GROW_MIN_PERMILLE 20u
#define GROW_MAX_PERMILLE 160u
#define NEAR_FROM_PERMILLE 960u
#define NEAR_TO_PERMILLE 1030u
/* Bulk that goes at this part of its rate needs it; when it has not for so long there is none. */
#define NEEDED_PERMILLE 700u
#define NEEDED_NS (5 * NSEC_PER_SEC)
#define FREE_MIN_NS (100 * NSEC_PER_MSEC)
#define FREE_MAX_NS (10 * NSEC_PER_SEC)
#define PAUSE_NS NSEC_PER_SEC
/* What a burst may take of the link's time, and its size. */
#define BURST_US 130u
#define BURST_MIN (4u << 10)
#define BURST_MAX (64u << 10)

static uint64_t per_mille(uint64_t n, uint64_t permille)
{
	return n / 1000 * permille + n % 1000 * permille / 1000;
}

static uint64_t max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

uint64_t link_rate_step_ns(const struct link_rate *l)
{
	uint64_t ns = l->rtt_us * NSEC_PER_USEC;

	if (l->bytes_per_s)
		ns = max(ns, STEP_BYTES * NSEC_PER_SEC / l->bytes_per_s);
	return min(max(ns, l->state == LINK_RATE_HOLD ? STEP_HELD_NS : STEP_MIN_NS), STEP_MAX_NS);
}

uint32_t link_rate_burst_bytes(const struct link_rate *l)
{
	uint64_t bytes = l->bytes_per_s / (1000 * 1000 / BURST_US);

	if (!l->bytes_per_s || bytes >= BURST_MAX)
		return 0;
	return (uint32_t)max(bytes, BURST_MIN);
}

/* Bursts wait for one another as well: that is no queue that stands. */
static uint64_t threshold_us(const struct link_rate *l)
{
	uint64_t burst = link_rate_burst_bytes(l);

	return QUEUE_US + (burst ? burst * 1000 * 1000 / l->bytes_per_s : 0);
}

static void set_rate(struct link_rate *l, uint64_t permille)
{
	l->bytes_per_s = max(per_mille(l->capacity, permille), RATE_MIN);
}

static void be_free(struct link_rate *l, uint64_t until_ns)
{
	l->state = LINK_RATE_FREE;
	l->bytes_per_s = 0;
	l->standing = 0;
	l->free_until_ns = until_ns;
}

static void drain(struct link_rate *l, uint64_t now_ns, bool fast)
{
	uint64_t permille =
	        fast || l->queue_us > LONG_QUEUE_US ? DRAIN_FAST_PERMILLE : DRAIN_PERMILLE;
	uint64_t takes_us = l->queue_us * 1000 / (1000 - permille);

	l->state = LINK_RATE_DRAIN;
	l->standing = l->cleared = 0;
	l->fast = permille == DRAIN_FAST_PERMILLE;
	l->drained_from_us = l->queue_us;
	l->drained = 0;
	set_rate(l, permille);
	l->drain_until_ns = now_ns + (takes_us * 3 / 2 + 2 * l->rtt_us) * NSEC_PER_USEC +
	                    max(DRAIN_SLACK_NS, 2 * link_rate_step_ns(l));
}

/*
 * What the link carries while a queue stands: the most of the last steps. In one of them it may
 * have stood still, as on a host that is short of CPUs.
 */
static uint64_t best_step(const struct link_rate *l)
{
	uint64_t best = 0;

	for (unsigned int i = 0; i < LINK_RATE_STEPS; i++)
		best = max(best, l->took[i]);
	return best;
}

static void note_step(struct link_rate *l, const struct link_rate_sample *s, uint64_t ns)
{
	l->took[l->n_steps++ % LINK_RATE_STEPS] = s->acked_bytes * 1000 / (ns / 1000 + 1) * 1000;
}

/* Whether a queue has stood for @steps; then it is known what the link carries. */
static bool stands(struct link_rate *l, const struct link_rate_sample *s, unsigned int steps)
{
	if (!s->held || l->queue_us <= threshold_us(l)) {
		l->standing = 0;
		return false;
	}
	if (++l->standing < steps || !best_step(l))
		return false;
	l->capacity = best_step(l);
	/* What comes after a moment in which nothing went is more than the link carries. */
	if (l->bytes_per_s)
		l->capacity = min(l->capacity, l->bytes_per_s);
	return true;
}

/* What is less than lately may be chance: then it is not held for long. */
static void hold(struct link_rate *l, uint64_t now_ns)
{
	/*
	 * What came while the queue ran empty the link has carried, whatever it stood still for
	 * before: so that one moment of that after the other does not make bulk slower and slower.
	 */
	uint64_t carried = min(l->drained, per_mille(l->best, 1050));
	bool known;

	l->capacity = max(l->capacity, carried);
	known = l->best && l->capacity >= per_mille(l->best, 950);
	l->state = LINK_RATE_HOLD;
	l->standing = 0;
	l->best = max(l->capacity, per_mille(l->best, 950));
	l->free_ns /= 2;
	l->needed_ns = now_ns;
	l->grow_permille = GROW_MIN_PERMILLE;
	l->grow_at_ns = now_ns + (known ? HOLD_NS : GROW_NS);
	set_rate(l, HOLD_PERMILLE);
}

static void step_drain(struct link_rate *l, const struct link_rate_sample *s)
{
	if (l->queue_us <= threshold_us(l)) {
		set_rate(l, HOLD_PERMILLE);
		if (++l->cleared >= CLEARED)
			hold(l, s->now_ns);
		return;
	}
	l->cleared = 0;
	l->drained = max(l->drained, l->took[(l->n_steps - 1) % LINK_RATE_STEPS]);
	if (s->now_ns < l->drain_until_ns)
		return;
	/* It was not enough, perhaps: the link may carry less than it did. */
	if (!l->fast || l->queue_us < l->drained_from_us / 2) {
		l->capacity = min(l->capacity, max(best_step(l), RATE_MIN));
		drain(l, s->now_ns, true);
	} else {
		l->free_ns = min(max(l->free_ns * 2, FREE_MIN_NS), FREE_MAX_NS);
		be_free(l, s->now_ns + l->free_ns);
	}
}

static bool is_near(const struct link_rate *l)
{
	return l->bytes_per_s >= per_mille(l->best, NEAR_FROM_PERMILLE) &&
	       l->bytes_per_s <= per_mille(l->best, NEAR_TO_PERMILLE);
}

static void grow(struct link_rate *l, uint64_t now_ns)
{
	bool near = is_near(l);

	l->grow_permille = near ? GROW_NEAR_PERMILLE : min(l->grow_permille * 2, GROW_MAX_PERMILLE);
	l->bytes_per_s += per_mille(l->bytes_per_s, l->grow_permille);
	l->grow_at_ns = now_ns + max(near ? GROW_NEAR_NS : GROW_NS, 2 * l->rtt_us * NSEC_PER_USEC);
}

/* Near the link's end a little of a queue says that it is reached. */
static bool may_grow(const struct link_rate *l, uint64_t now_ns)
{
	return now_ns >= l->grow_at_ns && l->queue_us <= threshold_us(l) / (is_near(l) ? 2 : 1);
}

static void step_hold(struct link_rate *l, const struct link_rate_sample *s)
{
	bool needed = s->held && best_step(l) >= per_mille(l->bytes_per_s, NEEDED_PERMILLE);

	if (stands(l, s, STANDS_HELD)) {
		drain(l, s->now_ns, false);
		return;
	}
	if (needed)
		l->needed_ns = s->now_ns;
	if (s->now_ns > l->needed_ns + NEEDED_NS) {
		be_free(l, 0);
	} else if (needed && may_grow(l, s->now_ns)) {
		grow(l, s->now_ns);
	}
}

static bool has_enough(const struct link_rate_part *p, uint64_t level)
{
	return p->active && !p->waiting && p->used < level;
}

/* What each of those has that have not enough with @level, when the others leave what they do. */
static uint64_t raise_level(uint64_t rate, const struct link_rate_part *parts, uint64_t level)
{
	uint64_t n = 0, all = rate;

	for (const struct link_rate_part *p = parts; p; p = p->next)
		if (has_enough(p, level))
			rate -= p->used;
		else
			n += p->active;
	return n ? rate / n : all;
}

void link_rate_divide(uint64_t bytes_per_s, struct link_rate_part *parts)
{
	uint64_t active = 0, equal, level, before;

	for (const struct link_rate_part *p = parts; p; p = p->next)
		active += p->active;
	equal = level = bytes_per_s / max(active, 1);
	/* With each that turns out to have enough there is more for the rest. */
	do {
		before = level;
		level = raise_level(bytes_per_s, parts, level);
	} while (level > before);
	for (struct link_rate_part *p = parts; p; p = p->next) {
		if (!p->active)
			p->bytes_per_s = bytes_per_s / (active + 1);
		else if (has_enough(p, level))
			p->bytes_per_s = min(level, p->used + max(p->used, equal / 2));
		else
			p->bytes_per_s = level;
	}
}

void link_rate_step(struct link_rate *l, const struct link_rate_sample *s)
{
	uint64_t ns = s->now_ns - l->last_ns;

	l->rtt_us = s->rtt_us;
	l->queue_us = s->rtt_us > s->base_us ? s->rtt_us - s->base_us : 0;
	l->last_ns = s->now_ns;
	if (ns > PAUSE_NS) {
		l->standing = 0;
		if (l->state == LINK_RATE_DRAIN)
			hold(l, s->now_ns);
		return;
	}
	note_step(l, s, ns);
	if (l->state == LINK_RATE_DRAIN)
		step_drain(l, s);
	else if (l->state == LINK_RATE_HOLD)
		step_hold(l, s);
	else if (s->now_ns >= l->free_until_ns && stands(l, s, STANDS_FREE))
		drain(l, s->now_ns, false);
}
