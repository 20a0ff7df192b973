/* SPDX-License-Identifier: Apache-2.0 */
/* The report's figures: each writes one <svg> element, or a sentence where there is no data. */
#ifndef BENCH_REPORT_CHARTS_H
#define BENCH_REPORT_CHARTS_H

#include <json-c/json.h>
#include <stddef.h>
#include <stdio.h>

/* The colours .part0 to .part7 of the page; a fault's phases have the first seven. */
#define REPORT_PHASES_MAX 7

/* One piece of a bar, and its line in the legend. */
struct chart_part {
	int colour;
	const char *text; /* HTML */
	double us;
};

/* Pages present and faults over time, one above the other. */
void chart_timeline(FILE *f, struct json_object *report);

/*
 * chart_histogram() - how often which latency was seen
 * @series: the member with [[upper µs, count]...]
 * @quantiles: the object whose p50 and p99 are marked
 */
void chart_histogram(FILE *f, struct json_object *report, const char *series,
                     const char *quantiles);

/* Parts side by side as one bar, with a legend. */
void chart_parts(FILE *f, const char *label, const struct chart_part *parts, size_t n);

/*
 * What the guest got done, before, meanwhile and after, with its heading: of a benchmark. Nothing
 * where nobody counted.
 */
void chart_work(FILE *f, struct json_object *report);

/* Guest memory as a map: when each part of it arrived. */
void chart_arrival(FILE *f, struct json_object *report);

/* The parts of the downtime as one bar with its legend. */
void chart_downtime(FILE *f, struct json_object *report);

#endif
