/* SPDX-License-Identifier: Apache-2.0 */
/* The map of guest memory: one cell for each part of it, coloured by when it arrived. */
#include "bench/report_charts.h"

#include <math.h>

#include "ctl/json.h"
#include "ctl/units.h"

#define WIDTH 920.0
#define COLUMNS 64
#define LEVELS 10
#define LEGEND_HEIGHT 44.0

struct cell {
	double pages, mean_ms, fault_pages;
};

static bool cell_at(struct json_object *cells, size_t i, struct cell *ret)
{
	struct json_object *a = json_object_array_get_idx(cells, i);

	if (!json_object_is_type(a, json_type_array) || json_object_array_length(a) < 3)
		return false;
	ret->pages = json_object_get_double(json_object_array_get_idx(a, 0));
	ret->mean_ms = json_object_get_double(json_object_array_get_idx(a, 1));
	ret->fault_pages = json_object_get_double(json_object_array_get_idx(a, 2));
	return ret->pages > 0 && isfinite(ret->mean_ms) && isfinite(ret->pages);
}

static double latest_ms(struct json_object *cells, size_t n)
{
	double latest = 0;
	struct cell c;

	for (size_t i = 0; i < n; i++)
		if (cell_at(cells, i, &c) && c.mean_ms > latest)
			latest = c.mean_ms;
	return latest;
}

/* 0, the earliest, to LEVELS - 1. */
static int level_of(double ms, double latest)
{
	int level = latest > 0 && ms > 0 ? (int)(ms / latest * LEVELS) : 0;

	return level < LEVELS ? level : LEVELS - 1;
}

static void draw_cell(FILE *f, const struct cell *c, double x, double y, double size, double latest)
{
	/* Most of it came because the guest waited for it: a dot in the cell. */
	bool by_faults = c->fault_pages * 2 > c->pages;

	fprintf(f,
	        "<rect class=\"heat%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
	        level_of(c->mean_ms, latest), x, y, size - 1, size - 1);
	if (by_faults)
		fprintf(f, "<circle class=\"part4\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>\n",
		        x + (size - 1) / 2, y + (size - 1) / 2, size / 5);
}

static void draw_legend(FILE *f, double y, double latest)
{
	for (int i = 0; i < LEVELS; i++)
		fprintf(f,
		        "<rect class=\"heat%d\" x=\"%.1f\" y=\"%.1f\" width=\"30\" "
		        "height=\"12\"/>\n",
		        i, 200 + 30.0 * i, y);
	fprintf(f,
	        "<text text-anchor=\"end\" x=\"192\" y=\"%.1f\">with the resume</text>"
	        "<text x=\"508\" y=\"%.1f\">after %s</text>\n",
	        y + 10, y + 10, text_duration(latest * 1000).s);
	fprintf(f,
	        "<circle class=\"part4\" cx=\"650\" cy=\"%.1f\" r=\"4\"/>"
	        "<text x=\"660\" y=\"%.1f\">mostly brought by faults</text>\n",
	        y + 6, y + 10);
}

void chart_arrival(FILE *f, struct json_object *report)
{
	struct json_object *cells = json_find(report, "arrival");
	size_t n =
	        json_object_is_type(cells, json_type_array) ? json_object_array_length(cells) : 0;
	double latest = latest_ms(cells, n), size = WIDTH / COLUMNS;
	double height = size * (double)((n + COLUMNS - 1) / COLUMNS);
	struct cell c;

	if (!n || latest <= 0) {
		fprintf(f, "<p class=\"note\">The daemon recorded no arrivals.</p>\n");
		return;
	}
	fprintf(f,
	        "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
	        "aria-label=\"guest memory by time of arrival\">\n",
	        WIDTH, height + LEGEND_HEIGHT);
	for (size_t i = 0; i < n; i++)
		if (cell_at(cells, i, &c))
			draw_cell(f, &c, size * (double)(i % COLUMNS), size * (double)(i / COLUMNS),
			          size, latest);
	draw_legend(f, height + 16, latest);
	fprintf(f, "</svg>\n");
}
