/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/chart.h"

#include <math.h>

double chart_step(double range, unsigned int n)
{
	double raw = range > 0 && n ? range / n : 1;
	double power = pow(10, floor(log10(raw)));
	double digit = raw / power;

	/* A rounding error must not make 1.0000001 into 2. */
	digit = digit <= 1.000001 ? 1 : digit <= 2.000001 ? 2 : digit <= 5.000001 ? 5 : 10;
	return digit * power;
}

struct log_scale log_scale_init(double min, double max)
{
	struct log_scale s;

	min = min > 0 ? min : 1;
	max = max > min ? max : min;
	s.min = pow(10, floor(log10(min)));
	s.max = pow(10, ceil(log10(max)));
	if (s.max <= s.min)
		s.max = s.min * 10;
	return s;
}

unsigned int log_scale_ticks(const struct log_scale *s)
{
	return (unsigned int)lround(log10(s->max / s->min)) + 1;
}

double log_scale_tick(const struct log_scale *s, unsigned int i)
{
	return s->min * pow(10, i);
}

double log_scale_at(const struct log_scale *s, double v)
{
	if (!(v > s->min))
		return 0;
	if (v >= s->max)
		return 1;
	return log(v / s->min) / log(s->max / s->min);
}

double log_bins_lower(size_t i)
{
	return exp2((double)i / LOG_BINS_PER_OCTAVE);
}

void log_bins_add(struct log_bins *b, double value, double count)
{
	double at = value > 1 ? floor(log2(value) * LOG_BINS_PER_OCTAVE) : 0;
	size_t i = at < LOG_BINS_MAX ? (size_t)at : LOG_BINS_MAX - 1;

	if (!(count > 0))
		return;
	b->count[i] += count;
	if (b->count[i] > b->max_count)
		b->max_count = b->count[i];
	if (b->first == b->end) {
		b->first = i;
		b->end = i + 1;
	}
	b->first = i < b->first ? i : b->first;
	b->end = i + 1 > b->end ? i + 1 : b->end;
}
