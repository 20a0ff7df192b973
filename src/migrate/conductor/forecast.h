/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the one round of a guest that nobody has given a policy is worth its end.
 *
 * Theory of operation
 * -------------------
 * What a guest writes after it was copied is moved twice, and costs it a fault of the log. Where
 * much of its memory is, it gains nothing by being copied ahead, and loses what that takes of its
 * link and its cores. So early in the round two harvests are taken, the second one of a
 * longer time than the first. Each tells how many pages were written within its time: w(t). That
 * grows ever more slowly, for a guest writes the same pages again; so the line through the two is
 * above what is to come, but by little:
 *
 *        w |          ______ all of memory
 *          |        /
 *          |    , +          + what was harvested
 *          |  +
 *          | /________________ t
 *            t1   t2         the whole round
 *
 * A page that is copied at time u has been written again at the end with the probability
 * w(end - u) / memory. The mean of it over the round is what will be dirty at its end. A guest that
 * works with a part of its memory, however fast, has a flat line.
 */
#ifndef MIGRATE_CONDUCTOR_FORECAST_H
#define MIGRATE_CONDUCTOR_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

/* Harvests that are taken for it. */
#define FORECAST_LOOKS 2u

/* Where at least so much of memory will be dirty again, the round is not worth its end. */
#define FORECAST_FUTILE_PERCENT 33u

struct forecast {
	unsigned int looks;
	double ns[FORECAST_LOOKS];
	double units[FORECAST_LOOKS];
};

/* Whether the next harvest is due: @copied_units of @memory_units, not 0, have come. */
bool forecast_is_due(const struct forecast *f, uint64_t copied_units, uint64_t memory_units);

/* A harvest has told that @units were written within @ns. */
void forecast_note(struct forecast *f, uint64_t ns, uint64_t units);

/*
 * forecast_percent() - how much of memory will be dirty at the end of the round
 * @round_ns: how long all of it takes
 *
 * 0 where nothing was noted.
 */
unsigned int forecast_percent(const struct forecast *f, uint64_t round_ns, uint64_t memory_units);

#endif
