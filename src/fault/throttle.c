/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/throttle.h"

#include "mem/region.h"
#include "util/clock.h"

void throttle_init(struct throttle *t, uint64_t bytes_per_s)
{
	pthread_mutex_init(&t->lock, NULL);
	atomic_init(&t->bytes_per_s, bytes_per_s);
	t->next_ns = 0;
}

void throttle_deinit(struct throttle *t)
{
	pthread_mutex_destroy(&t->lock);
}

void throttle_set(struct throttle *t, uint64_t bytes_per_s, uint64_t now_ns)
{
	pthread_mutex_lock(&t->lock);
	atomic_store(&t->bytes_per_s, bytes_per_s);
	t->next_ns = now_ns;
	pthread_mutex_unlock(&t->lock);
}

/* Rounded up, so that the rate is never above the cap. */
static uint64_t cost_ns(unsigned int units, uint64_t bytes_per_s)
{
	uint64_t bytes = (uint64_t)units * UNIT_BYTES;

	return (bytes * NSEC_PER_SEC + bytes_per_s - 1) / bytes_per_s;
}

/* How many units make a request; a low cap makes it one, a high one a whole word. */
static unsigned int request_units(uint64_t bytes_per_s)
{
	uint64_t units = bytes_per_s / (NSEC_PER_SEC / THROTTLE_REQUEST_NS) / UNIT_BYTES;

	return units < 1 ? 1 : units < WORD_UNITS ? (unsigned int)units : WORD_UNITS;
}

unsigned int throttle_take(struct throttle *t, uint64_t now_ns, uint64_t *ret_wait_until_ns)
{
	unsigned int units = 0;
	uint64_t bytes_per_s;

	/* Without a cap no two threads meet here. */
	if (!atomic_load_explicit(&t->bytes_per_s, memory_order_relaxed))
		return WORD_UNITS;
	pthread_mutex_lock(&t->lock);
	bytes_per_s = atomic_load(&t->bytes_per_s);
	if (!bytes_per_s) {
		units = WORD_UNITS;
	} else if (t->next_ns > now_ns) {
		*ret_wait_until_ns = t->next_ns;
	} else {
		if (t->next_ns + THROTTLE_SLACK_NS < now_ns)
			t->next_ns = now_ns - THROTTLE_SLACK_NS;
		units = request_units(bytes_per_s);
		t->next_ns += cost_ns(units, bytes_per_s);
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
		uint64_t ns = cost_ns(units, bytes_per_s);

		t->next_ns = t->next_ns > ns ? t->next_ns - ns : 0;
	}
	pthread_mutex_unlock(&t->lock);
}
