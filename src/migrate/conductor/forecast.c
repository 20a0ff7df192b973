/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/conductor/forecast.h"

/* How much has come before each of them: of the second's time is twice the first's. */
static const unsigned int due_percent[FORECAST_LOOKS] = { 6, 18 };

bool forecast_is_due(const struct forecast *f, uint64_t copied_units, uint64_t memory_units)
{
	return f->looks < FORECAST_LOOKS &&
	       (double)copied_units * 100 >= (double)memory_units * due_percent[f->looks];
}

void forecast_note(struct forecast *f, uint64_t ns, uint64_t units)
{
	if (f->looks == FORECAST_LOOKS)
		return;
	f->ns[f->looks] = (double)ns;
	f->units[f->looks] = (double)units;
	f->looks++;
}

static double least(double a, double b)
{
	return a < b ? a : b;
}

/* Below the line from (t, w) to the end, that rises by @slope until it meets @top. */
static double area_beyond(double t, double w, double slope, double end, double top)
{
	double meets = slope > 0 ? least(t + (top - w) / slope, end) : end;
	double at_meeting = w + slope * (meets - t);

	return (meets - t) * (w + at_meeting) / 2 + (end - meets) * top;
}

unsigned int forecast_percent(const struct forecast *f, uint64_t round_ns, uint64_t memory_units)
{
	double end = (double)round_ns, top = (double)memory_units;
	double t = 0, w = 0, slope = 0, area = 0;

	for (unsigned int i = 0; i < f->looks && f->ns[i] > t && f->ns[i] < end; i++) {
		/* Fewer in a longer time: it wrote less, and what is known is known. */
		double next = f->units[i] > w ? least(f->units[i], top) : w;

		/* Of the first alone nothing tells how it goes on. */
		slope = i ? (next - w) / (f->ns[i] - t) : 0;
		area += (f->ns[i] - t) * (w + next) / 2;
		t = f->ns[i];
		w = next;
	}
	if (!memory_units || !round_ns)
		return 0;
	area += area_beyond(t, w, slope, end, top);
	return (unsigned int)(100 * area / end / top);
}
