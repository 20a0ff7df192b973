/* SPDX-License-Identifier: Apache-2.0 */
/* What the migrations of this daemon have counted, also those that are forgotten. */
#ifndef MIGRATE_TOTALS_H
#define MIGRATE_TOTALS_H

#include "migrate/migration.h"

/* Before what @m has counted is freed. */
void totals_keep_pull(struct migration *m);
void totals_keep_served(struct migration *m);

/* The downtime is known; the state has become final. */
void totals_note_downtime(struct migration *m);
void totals_note_end(struct migration *m);

#endif
