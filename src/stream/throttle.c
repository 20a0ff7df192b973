/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/throttle.h"

#include "mem/region.h"
#include "util/clock.h"

void throttle_init(struct throttle *t, uint64_t cap)
{
	pthread_mutex_init(&t->lock, NULL);
	atomic_init(&t->bytes_per_s, cap);
	atomic_init(&t->held, false);
	t->cap = cap;
	t->share = 0;
	t->next_ns = 0;
}

void throttle_deinit(struct throttle *t)
{
	pthread_mutex_destroy(&t->lock);
}

static uint64_t lower(uint64_t a, uint64_t b)
{
	return a && (!b || a < b) ? a : b;
}

/* The lock is held. What is owed costs the same bytes at the new rate. */
static bool set_rate(struct throttle *t, uint64_t now_ns)
{
	uint64_t before = atomic_load(&t->bytes_per_s), after = lower(t->cap, t->share);

	if (after == before)
		return false;
	if (!before || !after)
		t->next_ns = now_ns;
	else if (t->next_ns > now_ns)
		t->next_ns = now_ns +
		             (uint64_t)((unsigned __int128)(t->next_ns - now_ns) * before / after);
	atomic_store(&t->bytes_per_s, after);
	return true;
}

/* @limit: the cap, or the share. */
static bool set_limit(struct throttle *t, uint64_t *limit, uint64_t bytes_per_s, uint64_t now_ns)
{
	bool changed;

	pthread_mutex_lock(&t->lock);
	*limit = bytes_per_s;
	changed = set_rate(t, now_ns);
	pthread_mutex_unlock(&t->lock);
	return changed;
}

bool throttle_set_cap(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns)
{
	return set_limit(t, &t->cap, bytes_per_s, now_ns);
}

bool throttle_set_share(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns)
{
	return set_limit(t, &t->share, bytes_per_s, now_ns);
}

bool throttle_was_held(struct throttle *t)
{
	return atomic_exchange(&t->held, false);
}

/* Rounded up, so that the rate is never above the cap. */
static uint64_t cost_ns(uint64_t bytes, uint64_t bytes_per_s)
{
	return (bytes * NSEC_PER_SEC + bytes_per_s - 1) / bytes_per_s;
}

static uint64_t units_cost_ns(unsigned int units, uint64_t bytes_per_s)
{
	return cost_ns((uint64_t)units * UNIT_BYTES, bytes_per_s);
}

/* How many units make a request; a low cap makes it one, a high one a whole word. */
static unsigned int request_units(uint64_t bytes_per_s)
{
	uint64_t units = bytes_per_s / (NSEC_PER_SEC / THROTTLE_REQUEST_NS) / UNIT_BYTES;

	return units < 1 ? 1 : units < WORD_UNITS ? (unsigned int)units : WORD_UNITS;
}

/* The lock is held. Return: 0, it is time; or not before when it is. */
static uint64_t wait_until(struct throttle *t, uint64_t now_ns)
{
	if (t->next_ns > now_ns) {
		atomic_store(&t->held, true);
		return t->next_ns;
	}
	if (t->next_ns + THROTTLE_SLACK_NS < now_ns)
		t->next_ns = now_ns - THROTTLE_SLACK_NS;
	return 0;
}

unsigned int throttle_take(struct throttle *t, uint64_t now_ns, uint64_t *ret_wait_until_ns)
{
	uint64_t bytes_per_s, until_ns = 0;
	unsigned int units = WORD_UNITS;

	/* Without a cap no two threads meet here. */
	if (!atomic_load_explicit(&t->bytes_per_s, memory_order_relaxed))
		return units;
	pthread_mutex_lock(&t->lock);
	bytes_per_s = atomic_load(&t->bytes_per_s);
	if (bytes_per_s)
		until_ns = wait_until(t, now_ns);
	if (until_ns) {
		units = 0;
		*ret_wait_until_ns = until_ns;
	} else if (bytes_per_s) {
		units = request_units(bytes_per_s);
		t->next_ns += units_cost_ns(units, bytes_per_s);
	}
	pthread_mutex_unlock(&t->lock);
	return units;
}

void throttle_give_back(struct throttle *t, unsigned int units)
{
	uint64_t bytes_per_s;

	if (!units || !atomic_load_explicit(&t->bytes_per_s, memory_order_relaxed))
		return;
	pthread_mutex_lock(&t->lock);
	bytes_per_s = atomic_load(&t->bytes_per_s);
	if (bytes_per_s) {
		uint64_t ns = units_cost_ns(units, bytes_per_s);

		t->next_ns = t->next_ns > ns ? t->next_ns - ns : 0;
	}
	pthread_mutex_unlock(&t->lock);
}

uint64_t throttle_pay(struct throttle *t, uint64_t bytes, uint64_t now_ns)
{
	uint64_t bytes_per_s, until_ns = 0;

	if (!atomic_load_explicit(&t->bytes_per_s, memory_order_relaxed))
		return 0;
	pthread_mutex_lock(&t->lock);
	bytes_per_s = atomic_load(&t->bytes_per_s);
	if (bytes_per_s)
		until_ns = wait_until(t, now_ns);
	if (bytes_per_s && !until_ns)
		t->next_ns += cost_ns(bytes, bytes_per_s);
	pthread_mutex_unlock(&t->lock);
	return until_ns;
}
