/* SPDX-License-Identifier: Apache-2.0 */
/* The families that every Prometheus client has of its process, by their usual names. */
#ifndef TELEMETRY_PROCESS_METRICS_H
#define TELEMETRY_PROCESS_METRICS_H

#include "telemetry/openmetrics.h"

/* @started_s: when the daemon began, seconds since 1970 */
void process_metrics_put(struct openmetrics *om, double started_s);

#endif
