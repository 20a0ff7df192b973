/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/share.h"

#include <stddef.h>

#define BULK_PART 16u

uint64_t share_of_bulk(uint64_t bytes_per_s, uint64_t faults_bytes_per_s)
{
	uint64_t least = bytes_per_s / BULK_PART;

	return faults_bytes_per_s < bytes_per_s - least ? bytes_per_s - faults_bytes_per_s : least;
}

static uint64_t min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t part(uint64_t bytes, uint64_t weight, uint64_t weights)
{
	return (uint64_t)((unsigned __int128)bytes * weight / weights);
}

static uint64_t weigh(const struct share *list)
{
	uint64_t weights = 0;

	for (const struct share *s = list; s; s = s->next)
		weights += s->room ? s->weight : 0;
	return weights;
}

static uint64_t give(struct share *s, uint64_t bytes)
{
	s->bytes_per_s += bytes;
	s->room -= bytes;
	return bytes;
}

/*
 * Those whose room is no more than their part of it are full by that, and leave the rest to the
 * others. Return: what they took; 0: there are none.
 */
static uint64_t fill_small(uint64_t bytes, struct share *list)
{
	uint64_t weights = weigh(list), taken = 0;

	for (struct share *s = list; s; s = s->next)
		if (s->room && s->room <= part(bytes, s->weight, weights))
			taken += give(s, s->room);
	return taken;
}

/* As much as there is room for. Return: what is left. */
static uint64_t pour(uint64_t bytes, struct share *list)
{
	uint64_t taken, weights;

	while (bytes && (taken = fill_small(bytes, list)))
		bytes -= taken;
	/* All that is left have more room than that. Parts of what remains: nothing is lost. */
	weights = weigh(list);
	for (struct share *s = list; s; s = s->next) {
		if (!s->room)
			continue;
		taken = part(bytes, s->weight, weights);
		weights -= s->weight;
		bytes -= give(s, min(taken, s->room));
	}
	return bytes;
}

static uint64_t cap_of(const struct share *s)
{
	return s->cap ? s->cap : UINT64_MAX;
}

void share_divide(uint64_t bytes_per_s, struct share *list)
{
	uint64_t left;

	for (struct share *s = list; s; s = s->next) {
		s->bytes_per_s = 0;
		s->room = s->held ? cap_of(s)
		                  : min(cap_of(s), s->used + s->used / 4 + SHARE_MIN_BYTES_PER_S);
	}
	left = pour(bytes_per_s, list);
	for (struct share *s = list; s; s = s->next)
		s->room = cap_of(s) - s->bytes_per_s;
	pour(left, list);
	for (struct share *s = list; s; s = s->next)
		if (s->bytes_per_s < SHARE_MIN_BYTES_PER_S)
			s->bytes_per_s = SHARE_MIN_BYTES_PER_S;
}
