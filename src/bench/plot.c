/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/plot.h"

#include <math.h>

#include "bench/chart.h"
#include "ctl/json.h"
#include "ctl/units.h"

double plot_x(const struct plot *p, double v)
{
	return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * (v - p->x_min) / (p->x_max - p->x_min);
}

double plot_y(const struct plot *p, double share)
{
	return p->bottom - (p->bottom - p->top) * share;
}

/* Both numbers of element @i of an array of pairs. */
bool plot_pair(struct json_object *array, size_t i, double *a, double *b)
{
	struct json_object *pair = json_object_array_get_idx(array, i);

	if (!json_object_is_type(pair, json_type_array) || json_object_array_length(pair) < 2)
		return false;
	*a = json_object_get_double(json_object_array_get_idx(pair, 0));
	*b = json_object_get_double(json_object_array_get_idx(pair, 1));
	return isfinite(*a) && isfinite(*b);
}

size_t plot_series(struct json_object *report, const char *path, struct json_object **ret)
{
	*ret = json_find(report, path);
	return json_object_is_type(*ret, json_type_array) ? json_object_array_length(*ret) : 0;
}

double plot_series_x_max(struct json_object *array, size_t n, double x_max)
{
	for (size_t i = 0; i < n; i++) {
		double x, y;

		if (plot_pair(array, i, &x, &y) && x > x_max)
			x_max = x;
	}
	return x_max;
}

void plot_open(FILE *f, double height, const char *label)
{
	fprintf(f, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", PLOT_WIDTH,
	        height, label);
}

void plot_grid_line(FILE *f, double y, const char *label)
{
	fprintf(f,
	        "<line class=\"grid\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>"
	        "<text class=\"tick\" text-anchor=\"end\" x=\"%.0f\" y=\"%.1f\">%s</text>\n",
	        PLOT_LEFT, PLOT_RIGHT, y, y, PLOT_LEFT - 8, y + 4, label);
}

void plot_title(FILE *f, const struct plot *p, const char *title)
{
	fprintf(f, "<text class=\"axis\" x=\"%.0f\" y=\"%.1f\">%s</text>\n", PLOT_LEFT, p->top - 10,
	        title);
}

/* Ticks of time in ms below a plot. */
void plot_time_axis(FILE *f, const struct plot *p)
{
	double step = chart_step(p->x_max - p->x_min, 8), slack = step * 0.0001;

	for (double i = ceil(p->x_min / step); i * step <= p->x_max + slack; i++) {
		double ms = i * step, x = plot_x(p, ms);

		fprintf(f,
		        "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
		        "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" "
		        "y=\"%.1f\">%s%s</text>\n",
		        x, x, p->top, p->bottom, x, p->bottom + 17, i < 0 ? "&#8722;" : "",
		        i != 0 ? text_duration(fabs(ms) * 1000).s : "0");
	}
}
