/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/top.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/units.h"
#include "util/clock.h"

#define LINE_BYTES 1024
/* The title, the columns' names, and the line for a notice. */
#define FRAME_LINES 3

#define ID_WIDTH 16
#define BAR_WIDTH 12

/* Updates. */

static void history_add(struct top_history *h, double value)
{
	if (h->n == TOP_HISTORY)
		memmove(h->values, h->values + 1, (--h->n) * sizeof *h->values);
	h->values[h->n++] = value;
}

static bool is_final(struct json_object *m)
{
	const char *state = json_string_or(m, "state", "");

	return !strcmp(state, "complete") || !strcmp(state, "failed") ||
	       !strcmp(state, "cancelled");
}

static void take_served(struct top_row *row, uint64_t served, uint64_t now_ns)
{
	if (row->last_ns && now_ns > row->last_ns && served >= row->last_served) {
		row->bytes_per_s = (double)(served - row->last_served) * NSEC_PER_SEC /
		                   (double)(now_ns - row->last_ns);
		row->rate_known = true;
	}
	row->last_ns = now_ns;
	row->last_served = served;
}

static void row_update(struct top_row *row, struct json_object *m, uint64_t now_ns)
{
	uint64_t served;
	double p99;

	json_object_put(row->migration);
	row->migration = json_object_get(m);
	if (json_count(m, "served.bytes", &served)) {
		take_served(row, served, now_ns);
	} else if (is_final(m)) {
		row->rate_known = json_number(m, "bulk_bytes_per_s", &row->bytes_per_s);
		return;
	} else {
		progress_update(&row->progress, m, now_ns);
		row->bytes_per_s = row->progress.bytes_per_s;
		row->rate_known = row->bytes_per_s >= 1 ||
		                  json_number(m, "bulk_bytes_per_s", &row->bytes_per_s);
	}
	history_add(&row->rates, row->rate_known ? row->bytes_per_s : 0);
	if (json_number(m, "fault_us.p99", &p99))
		history_add(&row->p99s_us, p99);
}

/* The row of @m's id, with its past; an empty one where it is new. */
static struct top_row row_take(struct top *t, struct json_object *m)
{
	const char *id = json_string_or(m, "id", "");

	for (size_t i = 0; i < t->n_rows; i++) {
		struct top_row row = t->rows[i];

		if (!row.migration || strcmp(json_string_or(row.migration, "id", ""), id))
			continue;
		t->rows[i] = (struct top_row){ .migration = NULL };
		return row;
	}
	return (struct top_row){ .migration = NULL };
}

int top_update(struct top *t, struct json_object *migrations, uint64_t now_ns)
{
	size_t n = json_object_is_type(migrations, json_type_array)
	                   ? json_object_array_length(migrations)
	                   : 0;
	struct top_row *rows = calloc(n + 1, sizeof *rows);
	size_t used = 0;

	if (!rows)
		return -ENOMEM;
	/* Those that run before those that have ended. */
	for (int final = 0; final < 2; final++) {
		for (size_t i = 0; i < n; i++) {
			struct json_object *m = json_object_array_get_idx(migrations, i);

			if (is_final(m) != final)
				continue;
			rows[used] = row_take(t, m);
			row_update(&rows[used++], m, now_ns);
		}
	}
	top_deinit(t);
	*t = (struct top){ rows, used };
	return 0;
}

void top_deinit(struct top *t)
{
	for (size_t i = 0; i < t->n_rows; i++)
		json_object_put(t->rows[i].migration);
	free(t->rows);
	*t = (struct top){ .rows = NULL };
}

/* Drawing. */

struct layout {
	unsigned int spark; /* columns of each of the two curves */
	bool memory;
	bool bar;
};

/* What there is no room for is left out, the dearest last. */
static struct layout layout_for(unsigned int columns)
{
	/* All the columns that are always there, with the blanks between them. */
	unsigned int left = columns > 76 ? columns - 76 : 0;
	struct layout l = { .memory = left >= 20 };

	left -= l.memory ? 10 : 0;
	l.bar = left >= 30;
	left -= l.bar ? BAR_WIDTH + 1 : 0;
	l.spark = left / 2 < TOP_HISTORY ? left / 2 : TOP_HISTORY;
	return l;
}

struct line {
	char text[LINE_BYTES];
	size_t len;
};

static void __attribute__((format(printf, 2, 3))) add(struct line *l, const char *fmt, ...)
{
	size_t room = sizeof l->text - l->len;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(l->text + l->len, room, fmt, ap);
	va_end(ap);
	if (n > 0)
		l->len += (size_t)n < room ? (size_t)n : room - 1;
}

/* @text in @columns, to the left or to the right; what others wrote moves no cursor. */
static void add_field(struct line *l, const char *text, unsigned int columns, bool right)
{
	char field[256];
	unsigned int width;

	snprintf(field, sizeof field, "%s", text);
	for (char *p = field; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	text_cut(field, columns);
	width = text_columns(field);
	add(l, "%*s%s%*s", right ? (int)(columns - width) : 0, "", field,
	    right ? 0 : (int)(columns - width), "");
}

static void add_spark(struct line *l, const struct top_history *h, unsigned int width)
{
	static const char *const blocks[] = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" };
	size_t n = h->n < width ? h->n : width;
	const double *from = h->values + h->n - n;
	double max = 0;

	for (size_t i = 0; i < n; i++)
		max = from[i] > max ? from[i] : max;
	add(l, "%*s", (int)(width - n), "");
	for (size_t i = 0; i < n; i++) {
		int level = max > 0 && from[i] > 0 ? (int)(from[i] / max * 7.999) : 0;

		add(l, "%s", blocks[level]);
	}
}

static void add_bar(struct line *l, double share)
{
	unsigned int full = (unsigned int)(share * (BAR_WIDTH - 2) + 0.5);

	add(l, "[");
	for (unsigned int i = 0; i < BAR_WIDTH - 2; i++)
		add(l, "%s", i < full ? "#" : ".");
	add(l, "] ");
}

static void add_present(struct line *l, struct json_object *m, bool bar)
{
	uint64_t present, total;
	double share;

	if (!json_count(m, "pages_present", &present) || !json_count(m, "pages_total", &total) ||
	    !total) {
		add(l, "%*s", bar ? BAR_WIDTH + 9 : 8, "- ");
		return;
	}
	share = (double)present / (double)total;
	share = share < 1 ? share : 1;
	if (bar)
		add_bar(l, share);
	/* Cut, not rounded: 100.0 % is said when nothing is missing. */
	add(l, "%5.1f %% ", (double)(uint64_t)(share * 1000) / 10);
}

/* "40 s" for "about 40 s", "<1 s" for "under 1 s". */
static struct text brief(struct text range)
{
	struct text t = range;

	if (!strncmp(range.s, "about ", 6))
		snprintf(t.s, sizeof t.s, "%s", range.s + 6);
	else if (!strncmp(range.s, "under ", 6))
		snprintf(t.s, sizeof t.s, "<%s", range.s + 6);
	return t;
}

/* Its throughput and its faults, and when it will be done. */
static void add_measured(struct line *l, const struct top_row *row, const struct layout *layout)
{
	const struct progress_limit *limit = progress_limit(row->migration);
	struct json_object *m = row->migration;
	struct progress_left left;
	double us;

	add_field(l, row->rate_known ? text_bytes(row->bytes_per_s).s : "-", 9, true);
	add(l, "%s %-3s ", row->rate_known ? "/s" : "  ", limit ? limit->brief : "");
	add_spark(l, &row->rates, layout->spark);
	add(l, " ");
	if (progress_is_warming(m))
		add_field(l, text_bytes(json_number_or(m, "warm.dirty_bytes_per_s", 0)).s, 8, true);
	else
		add_field(l, json_number(m, "fault_us.p99", &us) ? text_duration(us).s : "-", 8,
		          true);
	add(l, " ");
	add_spark(l, &row->p99s_us, layout->spark);
	add(l, " ");
	if (!is_final(m) && progress_get_left(&row->progress, m, &left))
		add_field(l, brief(text_duration_range(left.low_us, left.high_us)).s, 9, true);
	else
		add_field(l, "-", 9, true);
}

static void add_state(struct line *l, struct json_object *m)
{
	char warm[32];

	snprintf(warm, sizeof warm, "warm r%llu",
	         (unsigned long long)json_count_or(m, "warm.rounds", 0) + 1);
	add_field(l, progress_is_warming(m) ? warm : json_string_or(m, "state", "?"), 9, false);
}

static void row_text(struct line *l, const struct top_row *row, const struct layout *layout)
{
	struct json_object *m = row->migration;
	const char *reason = json_string_or(m, "reason", "");
	uint64_t memory;

	add_field(l, json_string_or(m, "id", "?"), ID_WIDTH, false);
	add(l, " ");
	add_field(l, !strcmp(json_string_or(m, "role", ""), "source") ? "src" : "dst", 3, false);
	add(l, " ");
	add_state(l, m);
	add(l, " ");
	if (layout->memory && json_count(m, "memory_bytes", &memory))
		add(l, "%9s ", text_bytes((double)memory).s);
	else if (layout->memory)
		add(l, "%9s ", "-");
	add_present(l, m, layout->bar);
	/* Where something is wrong nothing moves: what is wrong is worth the room. */
	if (*reason)
		add_field(l, reason, text_columns(reason), false);
	else
		add_measured(l, row, layout);
}

static const char *row_colour(const struct top_row *row)
{
	const char *state = json_string_or(row->migration, "state", "");

	if (!strcmp(state, "failed"))
		return "\033[31m";
	if (!strcmp(state, "paused"))
		return "\033[33m";
	if (!strcmp(state, "complete"))
		return "\033[32m";
	return is_final(row->migration) ? "\033[2m" : "";
}

/* One line of the screen, in the colour given ("" for none). */
static void put_line(struct line *l, const char *colour, const struct top_screen *s, FILE *f)
{
	size_t len;

	text_cut(l->text, s->columns);
	if (s->terminal) {
		/* In raw mode a newline only goes down. */
		fprintf(f, "%s%s%s\033[K\r\n", colour, l->text, *colour ? "\033[0m" : "");
		return;
	}
	len = strlen(l->text);
	while (len && l->text[len - 1] == ' ')
		len--;
	fprintf(f, "%.*s\n", (int)len, l->text);
}

static void put_title(const struct top *t, struct json_object *info, const struct top_screen *s,
                      FILE *f)
{
	struct line l = { .len = 0 };
	size_t running = 0;

	for (size_t i = 0; i < t->n_rows; i++)
		running += !is_final(t->rows[i].migration);
	add(&l, "postcopyd %s%s", json_string_or(info, "version", ""),
	    json_find(info, "hostname") ? " on " : "");
	add_field(&l, json_string_or(info, "hostname", ""),
	          text_columns(json_string_or(info, "hostname", "")), false);
	add(&l, ": %zu running, %zu ended%s", running, t->n_rows - running,
	    json_object_get_boolean(json_find(info, "draining")) ? ", draining" : "");
	put_line(&l, "\033[1m", s, f);
}

static void put_names(const struct layout *layout, const struct top_screen *s, FILE *f)
{
	struct line l = { .len = 0 };

	add(&l, "%-*s %-3s %-9s ", ID_WIDTH, "ID", "", "STATE");
	if (layout->memory)
		add(&l, "%9s ", "MEMORY");
	add(&l, "%*s %11s %-3s %*s %8s %*s %9s", layout->bar ? BAR_WIDTH + 8 : 7, "PRESENT", "RATE",
	    "BY", (int)layout->spark, "", "P99", (int)layout->spark, "", "DONE IN");
	put_line(&l, "\033[7m", s, f);
}

void top_draw(const struct top *t, struct json_object *info, const char *notice,
              const struct top_screen *s, FILE *f)
{
	struct layout layout = layout_for(s->columns);
	size_t room = s->lines > FRAME_LINES ? s->lines - FRAME_LINES : s->lines ? 0 : t->n_rows;
	size_t shown = t->n_rows <= room ? t->n_rows : room ? room - 1 : 0;
	struct line last = { .len = 0 };

	put_title(t, info, s, f);
	put_names(&layout, s, f);
	for (size_t i = 0; i < shown; i++) {
		struct line l = { .len = 0 };

		row_text(&l, &t->rows[i], &layout);
		put_line(&l, row_colour(&t->rows[i]), s, f);
	}
	if (shown < t->n_rows) {
		struct line l = { .len = 0 };

		add(&l, "... and %zu more", t->n_rows - shown);
		put_line(&l, "", s, f);
	}
	if (!notice)
		return;
	add_field(&last, notice, s->columns, false);
	text_cut(last.text, s->columns ? s->columns - 1 : 0);
	fprintf(f, "%s%s", last.text, s->terminal ? "\033[K" : "\n");
}
