/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/units.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text text_count(uint64_t n)
{
	struct text t = { "" };
	char digits[24];
	size_t len = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n);
	char *out = t.s;

	for (size_t i = 0; i < len; i++) {
		if (i && (len - i) % 3 == 0)
			*out++ = ',';
		*out++ = digits[i];
	}
	*out = 0;
	return t;
}

struct text text_number(double v)
{
	struct text t = { "" };

	/* What no counter holds: of sums that somebody made up. */
	if (v >= 1e18)
		snprintf(t.s, sizeof t.s, "%.3g", v);
	else if (v >= 99.95)
		return text_count((uint64_t)(v + 0.5));
	else
		snprintf(t.s, sizeof t.s, v == floor(v) ? "%.0f" : "%.1f", v);
	return t;
}

struct text text_bytes(double bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	struct text t = { "" };
	size_t i = 0;

	/* What would print as 1024.0 belongs to the next unit already. */
	while (bytes >= 1023.95 && i < sizeof units / sizeof *units - 1) {
		bytes /= 1024;
		i++;
	}
	snprintf(t.s, sizeof t.s, i && bytes != floor(bytes) ? "%.1f %s" : "%.0f %s", bytes,
	         units[i]);
	return t;
}

/* Three digits that mean something; a whole number has no others. */
static void print_scaled(struct text *t, double v, const char *unit)
{
	int decimals = v == floor(v) || v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2;

	snprintf(t->s, sizeof t->s, "%.*f %s", decimals, v, unit);
}

struct text text_duration(double us)
{
	struct text t = { "" };

	if (us < 9.95 && us != floor(us))
		snprintf(t.s, sizeof t.s, "%.1f µs", us);
	else if (us < 999.5)
		snprintf(t.s, sizeof t.s, "%.0f µs", us);
	else if (us < 999.5e3)
		print_scaled(&t, us / 1e3, "ms");
	else
		print_scaled(&t, us / 1e6, "s");
	return t;
}

/* To two digits that mean something: more of a forecast are no news. */
static double round_forecast(double v)
{
	double step = 1;

	while (v / step >= 100)
		step *= 10;
	return floor(v / step + 0.5) * step;
}

struct text text_duration_range(double low_us, double high_us)
{
	static const struct {
		double us;
		const char *name;
	} units[] = { { 3600e6, "h" }, { 60e6, "min" }, { 1e6, "s" } };
	struct text t = { "" };
	double low, high;
	size_t i = 0;

	/* Twice the unit, so that a range has steps. */
	while (i < 2 && high_us < 2 * units[i].us)
		i++;
	low = round_forecast(low_us / units[i].us);
	high = round_forecast(high_us / units[i].us);
	if (high_us < 1e6)
		snprintf(t.s, sizeof t.s, "under 1 s");
	else if (low >= high)
		snprintf(t.s, sizeof t.s, "about %.0f %s", high, units[i].name);
	else if (low < 1)
		snprintf(t.s, sizeof t.s, "under %.0f %s", high, units[i].name);
	else
		snprintf(t.s, sizeof t.s, "%.0f-%.0f %s", low, high, units[i].name);
	return t;
}

/* The bytes of a character after its first begin with the bits 10. */
static bool begins_character(char c)
{
	return (c & 0xc0) != 0x80;
}

unsigned int text_columns(const char *text)
{
	unsigned int n = 0;

	for (; *text; text++)
		n += begins_character(*text);
	return n;
}

void text_cut(char *text, unsigned int columns)
{
	for (unsigned int n = 0; *text; text++) {
		if (begins_character(*text) && n++ == columns) {
			*text = 0;
			return;
		}
	}
}

struct text text_pad(struct text t, unsigned int columns)
{
	size_t len = strlen(t.s), seen = text_columns(t.s);

	for (; seen < columns && len < sizeof t.s - 1; seen++)
		t.s[len++] = ' ';
	t.s[len] = 0;
	return t;
}

static int suffix_shift(const char *suffix)
{
	static const char letters[] = "KMGT";
	const char *found;

	if (!*suffix)
		return 0;
	found = strchr(letters, toupper((unsigned char)*suffix));
	if (!found || (suffix[1] && strcasecmp(suffix + 1, "iB") && strcasecmp(suffix + 1, "B")))
		return -1;
	return 10 * (int)(found - letters + 1);
}

int parse_size(const char *text, uint64_t *ret, struct error *err)
{
	unsigned long long n;
	int shift;
	char *end;

	errno = 0;
	n = isdigit((unsigned char)*text) ? strtoull(text, &end, 10) : 0;
	shift = isdigit((unsigned char)*text) && !errno ? suffix_shift(end) : -1;
	if (shift < 0)
		return error_set(err, -EINVAL,
		                 "\"%s\" is not a size: write bytes, or e.g. 512M or 4G", text);
	if (n > UINT64_MAX >> shift)
		return error_set(err, -EINVAL, "size \"%s\" does not fit in 64 bits", text);
	*ret = (uint64_t)n << shift;
	return 0;
}

int parse_uint(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct error *err)
{
	unsigned long long n;
	char *end;

	errno = 0;
	n = isdigit((unsigned char)*text) ? strtoull(text, &end, 10) : 0;
	if (!isdigit((unsigned char)*text) || *end)
		return error_set(err, -EINVAL, "\"%s\" is not a number", text);
	if (errno || n < min || n > max)
		return error_set(err, -ERANGE, "%s is not within %" PRIu64 "..%" PRIu64, text, min,
		                 max);
	*ret = n;
	return 0;
}
