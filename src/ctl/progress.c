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
		p->bytes_per_s = p->bytes_per_s > 0
		                         ? p->bytes_per_s + RATE_WEIGHT * (rate - p->bytes_per_s)
		                         : rate;
	}
	p->last_ns = now_ns;
	p->last_present = present;
}

struct line {
	char *buf;
	size_t len, size;
};

static void __attribute__((format(printf, 2, 3))) line_add(struct line *l, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(l->buf + l->len, l->size - l->len, fmt, ap);
	va_end(ap);
	if (n > 0)
		l->len = l->len + (size_t)n < l->size ? l->len + (size_t)n : l->size - 1;
}

static void add_bar(struct line *l, double share, unsigned int width)
{
	unsigned int full = (unsigned int)(share * width + 0.5);

	line_add(l, " [");
	for (unsigned int i = 0; i < width; i++)
		line_add(l, "%c", i < full ? '#' : '.');
	line_add(l, "]");
}

bool progress_left_us(const struct progress *p, struct json_object *m, double *ret)
{
	uint64_t present, total;
	double ms;

	if (json_number(m, "eta_ms", &ms)) {
		*ret = ms * 1000;
		return true;
	}
	if (p->bytes_per_s < 1 || !json_count(m, "pages_present", &present) ||
	    !json_count(m, "pages_total", &total) || present >= total)
		return false;
	*ret = 1e6 * (double)((total - present) * UNIT_BYTES) / p->bytes_per_s;
	return true;
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
	double left_us;

	if (p->bytes_per_s >= 1)
		line_add(l, "  %s/s", text_bytes(p->bytes_per_s).s);
	if (progress_is_warming(m))
		add_warm(l, m);
	else if (progress_left_us(p, m, &left_us))
		line_add(l, "  source off in %s", text_duration(left_us).s);
}

void progress_format(const struct progress *p, struct json_object *m, unsigned int bar_width,
                     char *buf, size_t size)
{
	struct line l = { .buf = buf, .size = size };
	uint64_t present, total;
	double p50, p99;

	line_add(&l, "%s %s", json_string_or(m, "id", "?"), json_string_or(m, "state", "?"));
	if (json_count(m, "pages_present", &present) && json_count(m, "pages_total", &total) &&
	    total) {
		double share = (double)present / (double)total;

		if (bar_width)
			add_bar(&l, share < 1 ? share : 1, bar_width);
		/* Cut, not rounded: 100.0 % is said when nothing is missing. */
		line_add(&l, " %5.1f %%", (double)(uint64_t)(share * 1000) / 10);
		add_rate(&l, p, m);
	}
	if (json_number(m, "fault_us.p50", &p50) && json_number(m, "fault_us.p99", &p99))
		line_add(&l, "  fault p50 %s p99 %s", text_duration(p50).s, text_duration(p99).s);
	if (*json_string_or(m, "reason", ""))
		line_add(&l, "  %s", json_string_or(m, "reason", ""));
}
