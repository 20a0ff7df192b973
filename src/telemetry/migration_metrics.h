/* SPDX-License-Identifier: Apache-2.0 */
/* The families about migrations. */
#ifndef TELEMETRY_MIGRATION_METRICS_H
#define TELEMETRY_MIGRATION_METRICS_H

#include "migrate/migrate.h"
#include "telemetry/metrics.h"
#include "telemetry/openmetrics.h"

/* Where @stall's source is NULL or "daemon" the daemon's own times stand in. */
void migration_metrics_put(struct openmetrics *om, const struct migrations_totals *t,
                           const struct migrations_budget *budget,
                           const struct metrics_stall *stall);

#endif
