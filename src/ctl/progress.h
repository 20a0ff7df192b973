/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration's progress as one line of text, from one update to the next.
 */
#ifndef CTL_PROGRESS_H
#define CTL_PROGRESS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the last updates said; all zero at first. */
struct progress {
	uint64_t first_ns; /* when pages began to arrive; 0 before */
	uint64_t first_present;
	uint64_t last_ns;
	uint64_t last_present;
	double bytes_per_s; /* smoothed */
};

/* Takes an update of CLOCK_MONOTONIC @now_ns in. */
void progress_update(struct progress *p, struct json_object *migration, uint64_t now_ns);

/*
 * progress_left_us() - until every page is here and the source may be switched off
 *
 * As the daemon says it; else at the rate of the last updates. Return: false where it is not known.
 */
bool progress_left_us(const struct progress *p, struct json_object *migration, double *ret);

/*
 * progress_format() - the line, without newline
 * @bar_width: characters of the bar between its brackets; 0 for no bar
 */
void progress_format(const struct progress *p, struct json_object *migration,
                     unsigned int bar_width, char *buf, size_t size);

/* Whether memory is being copied while the guest runs at the source. */
bool progress_is_warming(struct json_object *m);

#endif
