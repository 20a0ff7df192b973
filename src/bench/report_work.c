/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's own progress before, while and after it moves; what lies below the line is lost. */
#include <string.h>

#include "bench/plot.h"
#include "bench/report_charts.h"
#include "ctl/json.h"
#include "ctl/units.h"

/* More than this share of the steady state is not worth the room. */
#define SHARE_MAX 1.5
#define PHASES_MAX 4

static const struct {
	const char *name, *text;
	int colour;
	const char *part; /* of the work that is lost */
} phases[] = {
	{ "connect", "before the pause: the daemons connect", 5, "before" },
	{ "warm", "warm: memory is copied while the guest runs at the source", 1, "before" },
	{ "switchover", "switchover: the guest runs nowhere", 4, "switchover" },
	{ "postcopy", "postcopy: the guest runs here, its memory follows", 2, "postcopy" },
};

#define N_PHASES (sizeof phases / sizeof *phases)

struct phase {
	size_t kind; /* of phases[] */
	double from_ms, to_ms;
};

static bool phase_at(struct json_object *course, size_t i, struct phase *ret)
{
	struct json_object *a = json_object_array_get_idx(course, i);
	const char *name;

	if (!json_object_is_type(a, json_type_array) || json_object_array_length(a) < 3)
		return false;
	name = json_object_get_string(json_object_array_get_idx(a, 0));
	for (ret->kind = 0; ret->kind < N_PHASES; ret->kind++)
		if (name && !strcmp(phases[ret->kind].name, name))
			break;
	ret->from_ms = json_object_get_double(json_object_array_get_idx(a, 1));
	ret->to_ms = json_object_get_double(json_object_array_get_idx(a, 2));
	return ret->kind < N_PHASES && ret->to_ms >= ret->from_ms;
}

static size_t phases_of(struct json_object *report, struct phase ret[PHASES_MAX])
{
	struct json_object *course;
	size_t n_course = plot_series(report, "course", &course), n = 0;

	for (size_t i = 0; i < n_course && n < PHASES_MAX; i++)
		n += phase_at(course, i, &ret[n]);
	return n;
}

static double clip(const struct plot *p, double ms)
{
	return ms < p->x_min ? p->x_min : ms > p->x_max ? p->x_max : ms;
}

static void draw_phases(FILE *f, const struct plot *p, const struct phase *all, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		double from = plot_x(p, clip(p, all[i].from_ms));
		double width = plot_x(p, clip(p, all[i].to_ms)) - from;

		/* A switchover of a millisecond is seen as well. */
		fprintf(f,
		        "<rect class=\"part%d\" fill-opacity=\".22\" x=\"%.1f\" y=\"%.1f\" "
		        "width=\"%.1f\" height=\"%.1f\"/>\n",
		        phases[all[i].kind].colour, from, p->top, width > 1.5 ? width : 1.5,
		        p->bottom - p->top);
	}
}

/* Of one phase, where it is known. */
static void say_lost_in(FILE *f, struct json_object *report, const struct phase *phase)
{
	char path[48];
	double ms;

	snprintf(path, sizeof path, "work_lost_parts_ms.%s", phases[phase->kind].part);
	if (json_number(report, path, &ms))
		fprintf(f, ", of which %s%s is lost", ms < 0 ? "&#8722;" : "",
		        text_duration((ms < 0 ? -ms : ms) * 1000).s);
}

static void draw_legend(FILE *f, struct json_object *report, const struct phase *all, size_t n)
{
	fprintf(f, "<ul class=\"legend\">\n");
	for (size_t i = 0; i < n; i++) {
		fprintf(f, "<li><i class=\"part%d\"></i>%s <b>%s</b>", phases[all[i].kind].colour,
		        phases[all[i].kind].text,
		        text_duration((all[i].to_ms - all[i].from_ms) * 1000).s);
		say_lost_in(f, report, &all[i]);
		fprintf(f, "</li>\n");
	}
	fprintf(f, "</ul>\n");
}

static double share_y(const struct plot *p, double share)
{
	share = share < 0 ? 0 : share;
	return plot_y(p, share < SHARE_MAX ? share / SHARE_MAX : 1);
}

static void draw_rate(FILE *f, const struct plot *p, struct json_object *work, size_t n)
{
	double ms, share, last_ms = p->x_min;

	fprintf(f, "<path class=\"area\" d=\"M%.1f %.1f", plot_x(p, p->x_min), p->bottom);
	for (size_t i = 0; i < n; i++) {
		if (!plot_pair(work, i, &ms, &share))
			continue;
		fprintf(f, "L%.1f %.1f", plot_x(p, clip(p, ms)), share_y(p, share));
		last_ms = clip(p, ms);
	}
	fprintf(f, "L%.1f %.1fZ\"/>\n", plot_x(p, last_ms), p->bottom);
	fprintf(f, "<line class=\"mark\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
	        PLOT_LEFT, PLOT_RIGHT, share_y(p, 1), share_y(p, 1));
}

static void draw(FILE *f, const struct plot *p, struct json_object *work, size_t n_work,
                 const struct phase *all, size_t n)
{
	plot_open(f, p->bottom + 30, "the guest's own progress over time");
	plot_title(f, p, "accesses a second, as a share of the steady state before");
	for (int percent = 0; percent <= 150; percent += 50) {
		char label[16];

		snprintf(label, sizeof label, "%d %%", percent);
		plot_grid_line(f, share_y(p, percent / 100.0), label);
	}
	plot_time_axis(f, p);
	draw_phases(f, p, all, n);
	draw_rate(f, p, work, n_work);
	fprintf(f, "</svg>\n");
}

static void say_lost(FILE *f, struct json_object *report)
{
	double lost_ms, gap_us;

	if (json_number(report, "work_lost_ms", &lost_ms))
		fprintf(f,
		        "<p>Work lost: <b>%s%s</b>. So much longer would the guest have to run at "
		        "the speed from before to get as far.",
		        lost_ms < 0 ? "&#8722;" : "",
		        text_duration((lost_ms < 0 ? -lost_ms : lost_ms) * 1000).s);
	else
		return;
	if (json_number(report, "longest_gap_us", &gap_us))
		fprintf(f, " The longest time in which it got nothing done: <b>%s</b>.",
		        text_duration(gap_us).s);
	fprintf(f, "</p>\n");
}

void chart_work(FILE *f, struct json_object *report)
{
	struct plot p = { .top = 30, .bottom = 190 };
	struct phase all[PHASES_MAX];
	struct json_object *work;
	size_t n_work = plot_series(report, "work", &work), n = phases_of(report, all);
	double ms, share;

	if (!n_work || !n || !plot_pair(work, 0, &ms, &share))
		return;
	p.x_min = ms;
	p.x_max = plot_series_x_max(work, n_work, ms);
	if (p.x_max <= p.x_min)
		return;
	fprintf(f, "<h2>What the guest got done</h2>\n<p class=\"note\">Counted by the guest "
	           "itself. Time 0 is when it resumed on the destination; the dashed line is its "
	           "steady state, and what is missing below it is lost.</p>\n");
	say_lost(f, report);
	draw(f, &p, work, n_work, all, n);
	draw_legend(f, report, all, n);
}
