/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of bandwidth.h: one rate divided among those who move.
 *
 * By weight, and nobody is given what he can not use: who had to wait may have as much as his own
 * cap allows; who had not is given what he used of late and a quarter more, so that he can grow.
 * What is left over is divided again, by weight, for nobody knows who needs it next. So all of them
 * together have exactly what there is, unless their own caps are lower; and what one leaves the
 * others have.
 *
 * Nothing here allocates; time is in the rates alone.
 */
#ifndef MIGRATE_SHARE_H
#define MIGRATE_SHARE_H

#include <stdbool.h>
#include <stdint.h>

#define SHARE_WEIGHT_MIN 1u
#define SHARE_WEIGHT_MAX 1000u
#define SHARE_WEIGHT_DEFAULT 100u

/*
 * Whoever moves has a page a second, whatever it weighs: its bulk ends, and it shows that it waits.
 * Where it comes to more than there is that is what is taken. It is the floor of what is divided: a
 * source sends an answer of bulk after 2 s all the same, so that each bulk connection has up to
 * 128 KiB/s there (SHARE_WAIT_MS in stream/page_source.c).
 */
#define SHARE_MIN_BYTES_PER_S 4096u
/* The least of a host's bandwidth: below that the floors are most of it. */
#define SHARE_HOST_MIN_BYTES_PER_S (1u << 20)

struct share {
	struct share *next;
	uint32_t weight;
	uint64_t cap;         /* bytes/s, its own; 0: none */
	uint64_t used;        /* bytes/s, of late */
	bool held;            /* it would have used more */
	uint64_t bytes_per_s; /* what it has */
	uint64_t room;        /* while it is divided: so much more it takes */
};

/* What faults leave of a host's bandwidth to bulk: a sixteenth of it at least. */
uint64_t share_of_bulk(uint64_t bytes_per_s, uint64_t faults_bytes_per_s);

/* Divide @bytes_per_s, not 0, among all in the list. */
void share_divide(uint64_t bytes_per_s, struct share *list);

#endif
