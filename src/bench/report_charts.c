/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report_charts.h"

#include <math.h>
#include <string.h>

#include "bench/chart.h"
#include "bench/plot.h"
#include "ctl/json.h"
#include "ctl/units.h"

static void draw_pages(FILE *f, const struct plot *p, struct json_object *array, size_t n,
                       double pages_total)
{
	double x = 0, y = 0, last_x = 0;

	plot_title(f, p, "pages present at the destination");
	for (int percent = 0; percent <= 100; percent += 25) {
		char label[16];

		snprintf(label, sizeof label, "%d %%", percent);
		plot_grid_line(f, plot_y(p, percent / 100.0), label);
	}
	plot_time_axis(f, p);
	fprintf(f, "<path class=\"area\" d=\"M%.1f %.1f", plot_x(p, 0), p->bottom);
	for (size_t i = 0; i < n; i++) {
		if (!plot_pair(array, i, &x, &y))
			continue;
		y = pages_total > 0 ? y / pages_total : 0;
		fprintf(f, "L%.1f %.1f", plot_x(p, x), plot_y(p, y < 1 ? y : 1));
		last_x = x;
	}
	fprintf(f, "L%.1f %.1fZ\"/>\n", plot_x(p, last_x), p->bottom);
}

static struct log_scale latency_scale(struct json_object *dots, size_t n)
{
	double min = INFINITY, max = 0, x, us;

	for (size_t i = 0; i < n; i++) {
		if (!plot_pair(dots, i, &x, &us) || us <= 0)
			continue;
		min = us < min ? us : min;
		max = us > max ? us : max;
	}
	return log_scale_init(isfinite(min) ? min : 1, max);
}

/* What took most of a fault's time: the third element of its dot, or -1. */
static int dot_phase(struct json_object *dot)
{
	struct json_object *phase = json_object_array_get_idx(dot, 2);
	int i = json_object_is_type(phase, json_type_int) ? json_object_get_int(phase) : -1;

	return i < REPORT_PHASES_MAX ? i : -1;
}

static void draw_dots(FILE *f, const struct plot *p, const struct log_scale *scale,
                      struct json_object *dots, size_t n, int phase)
{
	bool open = false;
	double x, us;

	for (size_t i = 0; i < n; i++) {
		if (!plot_pair(dots, i, &x, &us) || us <= 0 || x < 0 ||
		    dot_phase(json_object_array_get_idx(dots, i)) != phase)
			continue;
		if (!open)
			fprintf(f, "<g class=\"dots part%d\">\n", phase < 0 ? 4 : phase);
		open = true;
		fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.2\"/>\n", plot_x(p, x),
		        plot_y(p, log_scale_at(scale, us)));
	}
	if (open)
		fprintf(f, "</g>\n");
}

static void draw_faults(FILE *f, const struct plot *p, struct json_object *dots, size_t n)
{
	struct log_scale scale = latency_scale(dots, n);

	plot_title(f, p,
	           "remote faults: each dot is one, the higher the longer the guest waited, "
	           "coloured by its longest phase");
	for (unsigned int i = 0; i < log_scale_ticks(&scale); i++) {
		double v = log_scale_tick(&scale, i);

		plot_grid_line(f, plot_y(p, log_scale_at(&scale, v)), text_duration(v).s);
	}
	plot_time_axis(f, p);
	/* A dot of no known phase is of phase -1. */
	for (int phase = -1; phase < REPORT_PHASES_MAX; phase++)
		draw_dots(f, p, &scale, dots, n, phase);
}

/* Which faults are dots, where these are not all of them. */
static void note_dots(FILE *f, struct json_object *report, size_t n_dots)
{
	uint64_t every = json_count_or(report, "fault_dots_every", 0), faults;

	if (!json_count(report, "fault_us.count", &faults) || faults <= n_dots)
		return;
	fprintf(f, "<p class=\"note\">");
	if (every > 1)
		fprintf(f,
		        "The %s dots are one in %s of %s faults, from the first to the last, and "
		        "the slowest of all. The histogram has each.",
		        text_count(n_dots).s, text_count(every).s, text_count(faults).s);
	else
		fprintf(f,
		        "The dots are the latest %s of %s faults: the daemon keeps no more, those "
		        "before are in the histogram only.",
		        text_count(n_dots).s, text_count(faults).s);
	fprintf(f, "</p>\n");
}

void chart_timeline(FILE *f, struct json_object *report)
{
	struct json_object *timeline, *dots;
	size_t n_timeline = plot_series(report, "timeline", &timeline);
	size_t n_dots = plot_series(report, "fault_dots", &dots);
	double x_max = plot_series_x_max(dots, n_dots, plot_series_x_max(timeline, n_timeline, 0));
	struct plot pages = { .top = 30, .bottom = 190, .x_max = x_max };
	struct plot faults = { .top = 250, .bottom = 470, .x_max = x_max };

	if (x_max <= 0) {
		fprintf(f, "<p class=\"note\">The daemon recorded no timeline.</p>\n");
		return;
	}
	plot_open(f, n_dots ? 500 : 220, "pages present and faults over time");
	draw_pages(f, &pages, timeline, n_timeline, json_number_or(report, "pages_total", 0));
	if (n_dots)
		draw_faults(f, &faults, dots, n_dots);
	fprintf(f, "</svg>\n");
	if (!n_dots)
		fprintf(f, "<p class=\"note\">No fault had to wait for the source.</p>\n");
	else
		note_dots(f, report, n_dots);
}

static void draw_bins(FILE *f, const struct plot *p, const struct log_bins *bins,
                      const struct log_scale *scale)
{
	for (size_t i = bins->first; i < bins->end; i++) {
		double x0 = plot_x(p, log_scale_at(scale, log_bins_lower(i)));
		double x1 = plot_x(p, log_scale_at(scale, log_bins_lower(i + 1)));
		double y = plot_y(p, bins->count[i] / bins->max_count);

		if (bins->count[i] > 0)
			fprintf(f,
			        "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
			        "height=\"%.1f\"><title>%s to %s: %s faults</title></rect>\n",
			        x0 + 0.5, y, x1 - x0 > 2 ? x1 - x0 - 1 : 1, p->bottom - y,
			        text_duration(log_bins_lower(i)).s,
			        text_duration(log_bins_lower(i + 1)).s,
			        text_number(bins->count[i]).s);
	}
}

static void draw_bins_axes(FILE *f, const struct plot *p, const struct log_bins *bins,
                           const struct log_scale *scale)
{
	double step = chart_step(bins->max_count, 4);

	step = step < 1 ? 1 : step;
	for (unsigned int i = 0; i * step <= bins->max_count; i++)
		plot_grid_line(f, plot_y(p, i * step / bins->max_count), text_number(i * step).s);
	for (unsigned int i = 0; i < log_scale_ticks(scale); i++) {
		double v = log_scale_tick(scale, i);

		fprintf(f,
		        "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" "
		        "y=\"%.1f\">%s</text>\n",
		        plot_x(p, log_scale_at(scale, v)), p->bottom + 17, text_duration(v).s);
	}
}

static void draw_quantile(FILE *f, const struct plot *p, const struct log_scale *scale,
                          struct json_object *report, const char *object, const char *name,
                          double label_y)
{
	char path[48];
	double us, x;

	snprintf(path, sizeof path, "%s.%s", object, name);
	if (!json_number(report, path, &us))
		return;
	x = plot_x(p, log_scale_at(scale, us));
	fprintf(f,
	        "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
	        "<text class=\"axis\" x=\"%.1f\" y=\"%.1f\">%s %s</text>\n",
	        x, x, label_y - 8, p->bottom, x + 5, label_y, name, text_duration(us).s);
}

void chart_histogram(FILE *f, struct json_object *report, const char *series, const char *quantiles)
{
	struct plot p = { .top = 50, .bottom = 230, .x_max = 1 };
	struct log_bins bins = { .max_count = 0 };
	struct log_scale scale;
	struct json_object *array;
	size_t n = plot_series(report, series, &array);
	double upper, count;

	for (size_t i = 0; i < n; i++)
		if (plot_pair(array, i, &upper, &count))
			log_bins_add(&bins, upper, count);
	if (bins.first == bins.end) {
		fprintf(f, "<p class=\"note\">No fault had to wait for the source.</p>\n");
		return;
	}
	scale = log_scale_init(log_bins_lower(bins.first), log_bins_lower(bins.end));
	plot_open(f, 260, "how often which fault latency was seen");
	draw_bins_axes(f, &p, &bins, &scale);
	draw_bins(f, &p, &bins, &scale);
	draw_quantile(f, &p, &scale, report, quantiles, "p50", 14);
	draw_quantile(f, &p, &scale, report, quantiles, "p99", 28);
	fprintf(f, "</svg>\n");
}

void chart_parts(FILE *f, const char *label, const struct chart_part *parts, size_t n)
{
	double total = 0, x = 0;

	for (size_t i = 0; i < n; i++)
		total += parts[i].us;
	plot_open(f, 40, label);
	for (size_t i = 0; i < n; i++) {
		double width = total > 0 ? PLOT_WIDTH * parts[i].us / total : 0;

		fprintf(f,
		        "<rect class=\"part%d\" x=\"%.1f\" y=\"4\" width=\"%.1f\" "
		        "height=\"32\"/>\n",
		        parts[i].colour, x, width > 1 ? width - 1 : width);
		x += width;
	}
	fprintf(f, "</svg>\n<ul class=\"legend\">\n");
	for (size_t i = 0; i < n; i++)
		fprintf(f, "<li><i class=\"part%d\"></i>%s <b>%s</b></li>\n", parts[i].colour,
		        parts[i].text, text_duration(parts[i].us).s);
	fprintf(f, "</ul>\n");
}

void chart_downtime(FILE *f, struct json_object *report)
{
	static const char *const paths[] = { "downtime_us.pause", "downtime_us.send",
		                             "downtime_us.load", "downtime_us.resume" };
	struct chart_part parts[] = {
		{ 0, "pause: stop the vCPUs, save their state", 0 },
		{ 1, "send the state", 0 },
		{ 2, "load it", 0 },
		{ 3, "start the vCPUs", 0 },
	};
	double total = 0;

	for (size_t i = 0; i < 4; i++) {
		double us = json_number_or(report, paths[i], 0);

		parts[i].us = us > 0 ? us : 0;
		total += parts[i].us;
	}
	if (total > 0)
		chart_parts(f, "downtime in parts", parts, 4);
	else
		fprintf(f, "<p class=\"note\">The downtime is not known.</p>\n");
}
