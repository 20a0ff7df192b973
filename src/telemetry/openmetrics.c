/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/openmetrics.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/clock.h"

#define INITIAL_BYTES 32768u
/* Nanoseconds: 2^10 is a little more than 1 us, 2^34 are 17 s. */
#define FIRST_OCTAVE 10u
#define LAST_OCTAVE 34u

static const char *const type_names[] = {
	[OPENMETRICS_COUNTER] = "counter",
	[OPENMETRICS_GAUGE] = "gauge",
	[OPENMETRICS_HISTOGRAM] = "histogram",
	[OPENMETRICS_INFO] = "info",
};

void openmetrics_init(struct openmetrics *om, bool classic)
{
	*om = (struct openmetrics){ .classic = classic };
}

void openmetrics_deinit(struct openmetrics *om)
{
	free(om->text);
	om->text = NULL;
}

/* Return: whether @len more bytes fit, and a NUL behind them. */
static bool make_room(struct openmetrics *om, size_t len)
{
	size_t size = om->size ? om->size : INITIAL_BYTES;
	char *text;

	while (size <= om->len + len)
		size *= 2;
	if (om->failed || size == om->size)
		return !om->failed;
	text = realloc(om->text, size);
	om->failed = !text;
	if (!text)
		return false;
	om->text = text;
	om->size = size;
	return true;
}

static void put(struct openmetrics *om, const char *text, size_t len)
{
	if (!make_room(om, len))
		return;
	memcpy(om->text + om->len, text, len);
	om->len += len;
	om->text[om->len] = 0;
}

/* For what is short: names, numbers. */
__attribute__((format(printf, 2, 3))) static void put_format(struct openmetrics *om,
                                                             const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (len < 0 || len >= (int)sizeof text)
		om->failed = true;
	else
		put(om, text, (size_t)len);
}

static void put_escaped(struct openmetrics *om, const char *s)
{
	for (; *s; s++) {
		if (*s == '\n')
			put(om, "\\n", 2);
		else if (*s == '"' || *s == '\\')
			put_format(om, "\\%c", *s);
		else
			put(om, s, 1);
	}
}

static const char *suffix(const struct openmetrics *om)
{
	switch (om->family->type) {
	case OPENMETRICS_COUNTER:
		return "_total";
	case OPENMETRICS_INFO:
		return "_info";
	default:
		return "";
	}
}

/* The older format knows no info, and names a counter with its suffix. */
void openmetrics_open(struct openmetrics *om, const struct openmetrics_family *family)
{
	const char *type = type_names[family->type];
	const char *name_suffix;

	om->family = family;
	name_suffix = om->classic ? suffix(om) : "";
	if (om->classic && family->type == OPENMETRICS_INFO)
		type = type_names[OPENMETRICS_GAUGE];
	put_format(om, "# TYPE %s%s %s\n", family->name, name_suffix, type);
	if (!om->classic && family->unit)
		put_format(om, "# UNIT %s %s\n", family->name, family->unit);
	put_format(om, "# HELP %s%s ", family->name, name_suffix);
	put(om, family->help, strlen(family->help));
	put(om, "\n", 1);
}

/* "name_suffix{labels,le="..."} "; @le may be NULL. */
static void put_name(struct openmetrics *om, const char *name_suffix,
                     const struct openmetrics_label *labels, const char *le)
{
	const char *separator = "{";

	put_format(om, "%s%s", om->family->name, name_suffix);
	for (; labels && labels->name; labels++) {
		put_format(om, "%s%s=\"", separator, labels->name);
		put_escaped(om, labels->value);
		put(om, "\"", 1);
		separator = ",";
	}
	if (le) {
		put_format(om, "%sle=\"%s\"", separator, le);
		separator = ",";
	}
	put_format(om, *separator == ',' ? "} " : " ");
}

void openmetrics_integer(struct openmetrics *om, const struct openmetrics_label *labels,
                         uint64_t value)
{
	put_name(om, suffix(om), labels, NULL);
	put_format(om, "%llu\n", (unsigned long long)value);
}

void openmetrics_number(struct openmetrics *om, const struct openmetrics_label *labels,
                        double value)
{
	put_name(om, suffix(om), labels, NULL);
	put_format(om, "%.15g\n", value);
}

/* Values below @bound_ns. Return: how many, from bucket *@i of @h on, which is moved. */
static uint64_t count_below(const struct histogram *h, unsigned int *i, uint64_t bound_ns)
{
	uint64_t n = 0;

	for (; *i < HISTOGRAM_BUCKETS && histogram_bucket_upper(*i) < bound_ns; (*i)++)
		n += atomic_load_explicit(&h->buckets[*i], memory_order_relaxed);
	return n;
}

void openmetrics_histogram(struct openmetrics *om, const struct openmetrics_label *labels,
                           const struct histogram *h)
{
	uint64_t sum_ns = atomic_load_explicit(&h->sum, memory_order_relaxed);
	uint64_t n = 0;
	unsigned int i = 0;

	for (unsigned int half = 2 * FIRST_OCTAVE; half <= 2 * LAST_OCTAVE; half++) {
		uint64_t bound_ns = (half % 2 ? 3ull : 2ull) << (half / 2 - 1);
		char le[32];

		snprintf(le, sizeof le, "%.12g", (double)bound_ns / 1e9);
		n += count_below(h, &i, bound_ns);
		put_name(om, "_bucket", labels, le);
		put_format(om, "%llu\n", (unsigned long long)n);
	}
	/* h->count may be ahead of the buckets, or behind: this must be the same as +Inf. */
	n += count_below(h, &i, UINT64_MAX);
	put_name(om, "_bucket", labels, "+Inf");
	put_format(om, "%llu\n", (unsigned long long)n);
	put_name(om, "_sum", labels, NULL);
	put_format(om, "%.15g\n", (double)sum_ns / (double)NSEC_PER_SEC);
	put_name(om, "_count", labels, NULL);
	put_format(om, "%llu\n", (unsigned long long)n);
}

char *openmetrics_finish(struct openmetrics *om, size_t *ret_len)
{
	char *text;

	if (!om->classic)
		put_format(om, "# EOF\n");
	if (om->failed)
		return NULL;
	text = om->text;
	om->text = NULL;
	*ret_len = om->len;
	return text;
}
