/* SPDX-License-Identifier: Apache-2.0 */
/* What the report's figures are drawn with: an <svg>, and rectangles in it with axes. */
#ifndef BENCH_PLOT_H
#define BENCH_PLOT_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* All figures are as wide; the viewer scales them. */
#define PLOT_WIDTH 920.0
#define PLOT_LEFT 70.0
#define PLOT_RIGHT 885.0

/* A plot's rectangle, in SVG's coordinates: y grows downwards. */
struct plot {
	double top, bottom;
	double x_min, x_max; /* the values at its sides; x_min < x_max */
};

double plot_x(const struct plot *p, double v);
/* @share: 0 at the bottom, 1 at the top */
double plot_y(const struct plot *p, double share);

/* Both numbers of element @i of an array of pairs. Return: false where it is none, or not finite.
 */
bool plot_pair(struct json_object *array, size_t i, double *a, double *b);

/* The array at @path. Return: its length, 0 where there is none. */
size_t plot_series(struct json_object *report, const char *path, struct json_object **ret);

/* The largest first number of @n pairs, or @x_max. */
double plot_series_x_max(struct json_object *array, size_t n, double x_max);

/* Until </svg>. */
void plot_open(FILE *f, double height, const char *label);
void plot_grid_line(FILE *f, double y, const char *label);
void plot_title(FILE *f, const struct plot *p, const char *title);

/* Ticks of time in ms below a plot. */
void plot_time_axis(FILE *f, const struct plot *p);

#endif
