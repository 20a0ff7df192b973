/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the allocator keeps. Each thread has an arena of it, and what was freed there stays
 * with the process: after 64 guests some 12 MiB at a destination, half of that at a source. So when
 * nothing moves any more it is given back, on the loop: it takes some milliseconds (1 to 6 after 64
 * guests), and holds each arena's lock meanwhile, which no guest's data path may wait for.
 */
#ifndef MIGRATE_TRIM_H
#define MIGRATE_TRIM_H

#include "migrate/migration.h"

/* One has ended, or its conductor has: memory is given back a while after the last one. */
void migrations_trim_later(struct migrations *ms);

#endif
