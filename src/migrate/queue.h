/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue for a place among those that come in (max-incoming).
 *
 * Theory of operation
 * -------------------
 * A Start that finds no place may ask to wait for one. The migration stays attached, with what it
 * is to be started with, and says that it waits and at which place: first those of higher
 * priority, then who has waited longest. Nobody passes them: a Start that does not wait finds no
 * place while anybody does. A Start that is refused takes one that waited out of the queue: who was
 * told no may go elsewhere, and nothing is started here later all the same.
 *
 * When one ends, or max-incoming is another, the first is started as if it had been asked for
 * now: it is looked at whether there is room once more, and where there is none it fails, and its
 * guest runs on at its source. One in each turn of the loop: each takes files of /proc and of
 * cgroups, a record and a thread, and hundreds may wait. It leaves the queue by that, by Cancel,
 * and when its VMM goes. Its place is in the record: another process goes on with the queue as it
 * was.
 *
 * On the loop's thread.
 */
#ifndef MIGRATE_QUEUE_H
#define MIGRATE_QUEUE_H

#include "migrate/migration.h"

static inline bool queue_has(const struct migration *m)
{
	return m->turn.since_ns;
}

/* How many are before it; of one that does not wait: all that do. */
unsigned int queue_ahead(const struct migration *m);
unsigned int queue_length(const struct migrations *ms);

/* Have it wait; one that does keeps its time, and all else is what is said last. */
void queue_add(struct migration *m, bool switchover, const struct migration_warm *warm,
               uint32_t priority);
void queue_leave(struct migration *m);

/* Who does wait does not any more, and nothing else comes of it. */
void queue_drop(struct migration *m);

/* There may be a place: it is looked soon, and from time to time while anybody waits. */
void queue_look(struct migrations *ms);

#endif
