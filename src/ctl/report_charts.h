/* SPDX-License-Identifier: Apache-2.0 */
/* The report's figures: each writes one <svg> element, or a sentence where there is no data. */
#ifndef CTL_REPORT_CHARTS_H
#define CTL_REPORT_CHARTS_H

#include <json-c/json.h>
#include <stdio.h>

/* Pages present and faults over time, one above the other. */
void chart_timeline(FILE *f, struct json_object *report);

/* How often which fault latency was seen. */
void chart_histogram(FILE *f, struct json_object *report);

/* The parts of the downtime as one bar with its legend. */
void chart_downtime(FILE *f, struct json_object *report);

#endif
