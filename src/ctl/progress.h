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
	double deviation;   /* of a measurement from that, smoothed */
};

/* Takes an update of CLOCK_MONOTONIC @now_ns in. */
void progress_update(struct progress *p, struct json_object *migration, uint64_t now_ns);

/* From when on, and until when, as the rate goes up and down. */
struct progress_left {
	double low_us, high_us;
};

/*
 * progress_get_left() - until every page is here and the source may be switched off
 *
 * As the daemon says it; else at the rate of the last updates. As far to either side as those were
 * from their mean (RFC 6298 has a round trip's time so). Return: false where it is not known.
 */
bool progress_get_left(const struct progress *p, struct json_object *migration,
                       struct progress_left *ret);

/* What keeps it from being faster: as it is called in JSON, in a line, and in three columns. */
struct progress_limit {
	const char *name, *words, *brief;
};

/* NULL: not known. */
const struct progress_limit *progress_limit(struct json_object *migration);

/*
 * progress_format() - the line, without newline
 * @columns: of a terminal, of which what matters less is left out, and a bar fills what is left;
 *           0: no terminal, all that is known
 */
void progress_format(const struct progress *p, struct json_object *migration, unsigned int columns,
                     char *buf, size_t size);

/* Whether memory is being copied while the guest runs at the source. */
bool progress_is_warming(struct json_object *m);

#endif
