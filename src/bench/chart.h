/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of charts: scales, ticks, bins. No drawing.
 */
#ifndef BENCH_CHART_H
#define BENCH_CHART_H

#include <stddef.h>

/* The round distance (1, 2 or 5 times a power of ten) that divides @range in at most @n steps. */
double chart_step(double range, unsigned int n);

/* A logarithmic scale over whole decades. */
struct log_scale {
	double min, max; /* powers of ten, min < max */
};

/* The scale on which all of [min, max] lies; what is not above 0 counts as 1. */
struct log_scale log_scale_init(double min, double max);

/* The scale's ticks, one a decade: tick 0 is its min, the last, tick n - 1, its max. */
unsigned int log_scale_ticks(const struct log_scale *s);
double log_scale_tick(const struct log_scale *s, unsigned int i);

/* Where @v lies: 0 at the scale's min, 1 at its max; values outside are put on the edge. */
double log_scale_at(const struct log_scale *s, double v);

#define LOG_BINS_PER_OCTAVE 4
#define LOG_BINS_MAX 160 /* 40 octaves from 1 on */

/* Counts by size: bin i holds the values from 2^(i/4) up to 2^((i+1)/4). */
struct log_bins {
	double count[LOG_BINS_MAX];
	double max_count;
	size_t first, end; /* the bins in use: first <= i < end; none where equal */
};

void log_bins_add(struct log_bins *b, double value, double count);

/* The smallest value of bin @i. */
double log_bins_lower(size_t i);

#endif
