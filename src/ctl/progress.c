/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/units.h"
#include "util/clock.h"

/* What pages are counted in, whatever the host's pages are. */
#define UNIT_BYTES 4096

/* How much a new measurement counts against the smoothed one. */
#define RATE_WEIGHT 0.3
/* Of the rate itself: a forecast has an end, four times what the mean says. */
#define DEVIATION_MAX 0.75

/* Columns of the bar, with the brackets and the blank before them. */
#define BAR_MIN 13u
#define BAR_MAX 33u

#define PART_BYTES 768

static void note_rate(struct progress *p, double rate)
{
	double off = rate - p->bytes_per_s;

	/* What was nothing is no mean that it could be off. */
	if (p->bytes_per_s <= 0) {
		p->bytes_per_s = rate;
		return;
	}
	p->deviation += RATE_WEIGHT * ((off < 0 ? -off : off) - p->deviation);
	p->bytes_per_s += RATE_WEIGHT * off;
}

void progress_update(struct progress *p, struct json_object *migration, uint64_t now_ns)
{
	uint64_t present;
	double rate;

	if (!json_count(migration, "pages_present", &present))
		return;
	if (!p->first_ns || present < p->last_present) {
		*p = (struct progress){ .first_ns = now_ns, .first_present = present };
	} else if (now_ns > p->last_ns) {
		rate = (double)((present - p->last_present) * UNIT_BYTES) * NSEC_PER_SEC /
		       (double)(now_ns - p->last_ns);
		note_rate(p, rate);
	}
	p->last_ns = now_ns;
	p->last_present = present;
}

struct line {
	char *buf;
	size_t len, size;
	unsigned int columns; /* that are left; 0 of what has no end */
	bool is_bounded;
};

/* What does not fit is left out whole. Return: whether it is there. */
static bool __attribute__((format(printf, 2, 3))) line_add(struct line *l, const char *fmt, ...)
{
	char part[PART_BYTES];
	unsigned int width;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(part, sizeof part, fmt, ap);
	va_end(ap);
	width = text_columns(part);
	if (n < 0 || (l->is_bounded && width > l->columns))
		return false;
	n = snprintf(l->buf + l->len, l->size - l->len, "%s", part);
	l->len = l->len + (size_t)n < l->size ? l->len + (size_t)n : l->size - 1;
	l->columns -= l->is_bounded ? width : 0;
	return true;
}

/* With its brackets and the blank before them. */
static void print_bar(double share, unsigned int columns, char *buf)
{
	unsigned int width = columns - 3, full = (unsigned int)(share * width + 0.5);

	buf += sprintf(buf, " [");
	for (unsigned int i = 0; i < width; i++)
		*buf++ = i < full ? '#' : '.';
	strcpy(buf, "]");
}

bool progress_get_left(const struct progress *p, struct json_object *m, struct progress_left *ret)
{
	uint64_t present, total;
	double ms, us, low = 1, high = 1;

	if (json_number(m, "eta_ms", &ms)) {
		us = ms * 1000;
	} else if (p->bytes_per_s < 1 || !json_count(m, "pages_present", &present) ||
	           !json_count(m, "pages_total", &total) || present >= total) {
		return false;
	} else {
		us = 1e6 * (double)((total - present) * UNIT_BYTES) / p->bytes_per_s;
	}
	if (p->bytes_per_s > 0) {
		low = p->bytes_per_s / (p->bytes_per_s + p->deviation);
		/* What comes now and then comes in the end. */
		high = p->deviation < DEVIATION_MAX * p->bytes_per_s
		               ? p->bytes_per_s / (p->bytes_per_s - p->deviation)
		               : 1 / (1 - DEVIATION_MAX);
	}
	*ret = (struct progress_left){ low * us, high * us };
	return true;
}

const struct progress_limit *progress_limit(struct json_object *m)
{
	static const struct progress_limit limits[] = {
		{ "network", "network", "net" },          { "cap", "cap", "cap" },
		{ "destination-cpu", "CPU here", "cpu" }, { "source-cpu", "CPU here", "cpu" },
		{ "faults", "bulk off", "off" },
	};
	const char *by = json_string_or(m, "limited_by", "");

	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
		if (!strcmp(by, limits[i].name))
			return &limits[i];
	return NULL;
}

bool progress_is_warming(struct json_object *m)
{
	return !strcmp(json_string_or(m, "state", ""), "warming") && json_find(m, "warm.warm_ms");
}

/* While memory is copied that the guest goes on writing to. */
static void add_warm(struct line *l, struct json_object *m)
{
	double catch_up_ms;

	line_add(l, "  round %s", text_count(json_count_or(m, "warm.rounds", 0) + 1).s);
	line_add(l, "  dirty %s/s", text_bytes(json_number_or(m, "warm.dirty_bytes_per_s", 0)).s);
	if (json_number(m, "warm.catch_up_ms", &catch_up_ms))
		line_add(l, "  caught up in %s", text_duration(catch_up_ms * 1e3).s);
}

static void add_rate(struct line *l, const struct progress *p, struct json_object *m)
{
	const struct progress_limit *limit = progress_limit(m);
	struct progress_left left;

	if (p->bytes_per_s >= 1 && line_add(l, "  %s/s", text_bytes(p->bytes_per_s).s) && limit)
		line_add(l, " (%s)", limit->words);
	if (progress_is_warming(m))
		add_warm(l, m);
	else if (progress_get_left(p, m, &left))
		line_add(l, "  source off in %s", text_duration_range(left.low_us, left.high_us).s);
}

static void add_faults(struct line *l, struct json_object *m)
{
	double p50, p99;

	if (!json_number(m, "fault_us.p50", &p50) || !json_number(m, "fault_us.p99", &p99))
		return;
	if (!line_add(l, "  fault p50 %s p99 %s", text_duration(p50).s, text_duration(p99).s))
		line_add(l, "  p99 %s", text_duration(p99).s);
}

static void add_reason(struct line *l, struct json_object *m)
{
	const char *reason = json_string_or(m, "reason", "");

	/* Cut rather than left out. */
	l->is_bounded = false;
	if (*reason)
		line_add(l, "  %s", reason);
}

void progress_format(const struct progress *p, struct json_object *m, unsigned int columns,
                     char *buf, size_t size)
{
	char head[192], tail[2 * PART_BYTES] = "", bar[BAR_MAX + 1] = "";
	struct line l = { .buf = head, .size = sizeof head };
	uint64_t present, total = 0;
	double share = 0;

	line_add(&l, "%s %s", json_string_or(m, "id", "?"), json_string_or(m, "state", "?"));
	l = (struct line){ .buf = tail, .size = sizeof tail, .is_bounded = columns };
	l.columns = columns > text_columns(head) ? columns - text_columns(head) : 0;
	if (json_count(m, "pages_present", &present) && json_count(m, "pages_total", &total) &&
	    total) {
		share = (double)present / (double)total;
		share = share < 1 ? share : 1;
		/* Cut, not rounded: 100.0 % is said when nothing is missing. */
		line_add(&l, " %5.1f %%", (double)(uint64_t)(share * 1000) / 10);
		add_rate(&l, p, m);
	}
	add_faults(&l, m);
	if (total && l.columns >= BAR_MIN)
		print_bar(share, l.columns < BAR_MAX ? l.columns : BAR_MAX, bar);
	add_reason(&l, m);
	snprintf(buf, size, "%s%s%s", head, bar, tail);
	if (columns)
		text_cut(buf, columns);
}
