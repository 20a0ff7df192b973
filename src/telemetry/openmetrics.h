/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes metrics as text: OpenMetrics 1.0, or Prometheus' older text format (0.0.4) for those
 * who ask for it. A family is opened, then its samples are added; names and labels' names are
 * ours and valid, labels' values are escaped. The text grows as needed; a failure is sticky
 * and told at the end.
 */
#ifndef TELEMETRY_OPENMETRICS_H
#define TELEMETRY_OPENMETRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/histogram.h"

#define OPENMETRICS_CONTENT_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
#define OPENMETRICS_CLASSIC_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

enum openmetrics_type {
	OPENMETRICS_COUNTER,
	OPENMETRICS_GAUGE,
	OPENMETRICS_HISTOGRAM,
	OPENMETRICS_INFO,
};

struct openmetrics {
	bool classic; /* 0.0.4 */
	bool failed;
	char *text;
	size_t len;
	size_t size;
	const struct openmetrics_family *family; /* that is open */
};

struct openmetrics_family {
	const char *name; /* without _total, _info, _bucket; ends with the unit */
	enum openmetrics_type type;
	const char *unit; /* "seconds", "bytes"; NULL: a number of things */
	const char *help; /* one line */
};

struct openmetrics_label {
	const char *name;
	const char *value;
};

/* A list of labels, or OPENMETRICS_NO_LABELS. */
#define OPENMETRICS_LABELS(...) ((const struct openmetrics_label[]){ __VA_ARGS__, { NULL, NULL } })
#define OPENMETRICS_NO_LABELS ((const struct openmetrics_label *)NULL)

void openmetrics_init(struct openmetrics *om, bool classic);
void openmetrics_deinit(struct openmetrics *om);

/* @family: static */
void openmetrics_open(struct openmetrics *om, const struct openmetrics_family *family);

/* One sample of a counter, gauge or info. */
void openmetrics_integer(struct openmetrics *om, const struct openmetrics_label *labels,
                         uint64_t value);
void openmetrics_number(struct openmetrics *om, const struct openmetrics_label *labels,
                        double value);

/*
 * openmetrics_histogram() - one histogram
 * @h: of nanoseconds
 *
 * Its buckets are the same always: two to each power of two nanoseconds, from 1.024 us to
 * 17 s. They lie on bounds of @h's own, so nothing is counted in the wrong one.
 */
void openmetrics_histogram(struct openmetrics *om, const struct openmetrics_label *labels,
                           const struct histogram *h);

/*
 * openmetrics_finish() - the end of the text
 *
 * Return: the text, the caller's to free, and its length; NULL where memory was short.
 */
char *openmetrics_finish(struct openmetrics *om, size_t *ret_len);

#endif
