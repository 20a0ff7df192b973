/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work lost: what a migration costs the guest, as the guest's users feel it.
 *
 * The guest's VMMs write down how much it has got done, each on its side, on one clock
 * (minivmm --progress). Both together are one curve: what was done until when. Its slope before
 * the start is the guest's steady state; from start to complete, what would have been done at
 * that rate and was not is lost, and is told as time: a guest that stands still for 50 ms and
 * one that is at half its speed for 100 ms have both lost 50 ms.
 *
 * Why it was lost the vCPUs' threads tell: they wait for a core that is busy with something else
 * (where both ends share a host with their guest, the migration itself: that is this host's), or
 * they stand still (paused, or waiting for a page), or they have their core and get less done with
 * it (faults, writes that are logged, cold caches). The three add up.
 *
 * No clamping: a guest that for a while is faster than before has made up for something, and
 * where nothing was lost the noise of a run may come out as a little less than nothing.
 */
#ifndef BENCH_WORK_H
#define BENCH_WORK_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

struct work_sample {
	uint64_t at_us;
	uint64_t done; /* since the series began; never less than before */
	/* All vCPUs' threads, since they began; 0 where that is not known: */
	uint64_t ran_us;    /* had a core */
	uint64_t waited_us; /* for one */
};

struct work_series {
	struct work_sample *samples; /* in order of time */
	size_t n;
};

/* When what was, all on the samples' clock. */
struct work_course {
	uint64_t steady_us; /* from here to the start it was as ever */
	uint64_t steady_end_us;
	uint64_t start_us;
	uint64_t pause_us;
	uint64_t resume_us;
	uint64_t complete_us;
	bool warm; /* memory moved before the pause */
};

/* Of one phase: what was lost in it, and why. */
struct work_part {
	double lost_ms;
	double cores_ms, stalled_ms, slower_ms; /* that, by causes */
};

struct work_lost {
	double steady_per_s;
	double lost_ms;              /* from start to complete: the sum of what was lost */
	bool why_known;              /* the parts have causes */
	struct work_part before;     /* while it still ran at the source, */
	struct work_part switchover; /* while it ran nowhere, */
	struct work_part postcopy;   /* and while its memory followed */
	uint64_t longest_gap_us;     /* the guest certainly got nothing done for so long */
};

/* What minivmm --progress has written. @ret: for work_series_deinit() */
int work_series_read(const char *path, struct work_series *ret, struct error *err);
void work_series_deinit(struct work_series *s);

/* The sum of two sides, which began at 0 each. Return: false where there is no memory. */
bool work_series_merge(const struct work_series *a, const struct work_series *b,
                       struct work_series *ret);

/* How much was done until then; between two samples in proportion. */
double work_done_at(const struct work_series *s, uint64_t at_us);

/* Return: false where the samples don't tell: none, or a guest that does nothing. */
bool work_measure(const struct work_series *s, const struct work_course *c, struct work_lost *ret);

/*
 * work_add() - to a benchmark's result
 *
 * "work_lost_ms", "work_lost_parts_ms" {before, switchover, postcopy}, "work_lost_causes_ms" {of
 * each of these {cores, stalled, slower}}, "longest_gap_us" and "steady_accesses_per_s", which are
 * null where they can't be told, and for the report the series "work" ([[ms, share of the steady
 * state]...]) and "course"
 * ([[name, from ms, to ms]...]). Times in ms since the guest was resumed.
 */
void work_add(struct json_object *result, const struct work_series *s, const struct work_course *c);

#endif
