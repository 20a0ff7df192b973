/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a migration waits for, if it does: somebody else, or memory. Found from what is known of it
 * at the moment when somebody asks; so it can't be forgotten to be said, nor to be taken back.
 *
 * A VMM may take as long as it likes: nobody ends a migration for that. But its guest stands still
 * meanwhile, so from WAIT_NAMED_MS on it is in the state's reason, and in the log, again whenever
 * it has lasted twice as long. The one thing that does end it is the operator's own limit on how
 * long it may be held before its switchover (hold-timeout): its guest runs meanwhile, at its
 * source, while others may wait for the place that it keeps.
 */
#ifndef MIGRATE_WAIT_H
#define MIGRATE_WAIT_H

#include "migrate/migration.h"

#define WAIT_NAMED_MS 5000u

/* Room for migration_wait_text(). */
#define WAIT_TEXT_MAX 256u

/* On the loop's thread. */
struct migration_wait migration_get_wait(struct migration *m);

/* That it lasts, for a person; empty where there is nothing that the reason does not say already.
 */
void migration_wait_text(const struct migration *m, const struct migration_wait *w,
                         char ret[WAIT_TEXT_MAX]);

/* From now on look after those who are silent, as long as there may be any. */
void migrations_watch_waits(struct migrations *ms);

#endif
