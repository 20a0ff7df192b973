/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host's bandwidth: what all page streams together may take, in and out.
 *
 * Theory of operation
 * -------------------
 * While anything moves, the loop looks ten times a second at what each migration has taken, bulk
 * and faults, and tells each what its bulk may take from now on (migrate/share.h). It is held to
 * that by its own throttle (stream/throttle.h): at a destination where it asks, at a source where
 * it answers. So no thread of one migration ever waits for one of another, and nothing is shared
 * but a number.
 *
 * Faults are never held back. What they take is taken off what there is for bulk, of which a
 * sixteenth stays: a migration whose bulk stands still never ends.
 *
 * What begins to move has a page a second until it was seen to wait, a tenth of a second later.
 *
 * The limits are the configuration's, until an operator says otherwise (migrations_set_bandwidth())
 * or the configuration changes.
 */
#ifndef MIGRATE_BANDWIDTH_H
#define MIGRATE_BANDWIDTH_H

#include "migrate/migration.h"

/* From now on look after those that move, as long as there are any. */
void migrations_watch_bandwidth(struct migrations *ms);

/* By role - 1. */
void migrations_get_bandwidth(const struct migrations *ms, struct migrations_bandwidth ret[2]);

/* What the configuration says, at the start and whenever it is read anew. */
void migrations_configure_bandwidth(struct migrations *ms, const struct migrations_config *config);

#endif
