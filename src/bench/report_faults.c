/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report_faults.h"

#include <stdio.h>
#include <string.h>

#include "bench/report_charts.h"
#include "bench/report_html.h"
#include "ctl/json.h"
#include "ctl/units.h"

#define SLOWEST_SHOWN 10

/* What the phases are, for people. */
static const struct {
	const char *name, *text;
} phases[] = {
	{ "entry", "entry: the kernel raises it until the daemon reads it" },
	{ "queue", "queue: until it can be asked for" },
	{ "request", "request: until it is on the wire" },
	{ "answer", "answer: the network and the source" },
	{ "fill", "fill: the page gets its content" },
	{ "map", "map: the page is mapped, the vCPU woken" },
	{ "wakeup", "wakeup: until the vCPU runs" },
};

static const char *phase_text(const char *name)
{
	for (size_t i = 0; i < sizeof phases / sizeof *phases; i++)
		if (!strcmp(phases[i].name, name))
			return phases[i].text;
	return "another phase";
}

static size_t phase_names(struct json_object *report, struct json_object **ret)
{
	size_t n;

	*ret = json_find(report, "phases");
	n = json_object_is_type(*ret, json_type_array) ? json_object_array_length(*ret) : 0;
	return n < REPORT_PHASES_MAX ? n : REPORT_PHASES_MAX;
}

static const char *phase_name(struct json_object *names, size_t i)
{
	const char *name = json_object_get_string(json_object_array_get_idx(names, i));

	return name ? name : "?";
}

/* Which phase is the @i-th of a fault: the report has the kernel's after the daemon's. */
static size_t phase_in_time(struct json_object *names, size_t n, size_t i)
{
	size_t entry = 0;

	while (entry < n && strcmp(phase_name(names, entry), "entry"))
		entry++;
	if (entry == n || i > entry)
		return i;
	return i ? i - 1 : entry;
}

static struct json_object *phase_latency(struct json_object *report, const char *name)
{
	return json_find(json_find(report, "fault_phases_us"), name);
}

static void write_phase_row(FILE *f, const char *name, struct json_object *latency)
{
	static const char *const columns[] = { "p50", "p90", "p99", "p999", "max" };
	double us;

	fprintf(f, "<tr><td>");
	html_text(f, phase_text(name));
	fprintf(f, "</td>");
	for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
		fprintf(f, "<td>%s</td>",
		        json_number(latency, columns[i], &us) ? text_duration(us).s : "");
	fprintf(f, "</tr>\n");
}

void report_faults_write_phases(FILE *f, struct json_object *report)
{
	struct chart_part parts[REPORT_PHASES_MAX];
	struct json_object *names;
	size_t n = phase_names(report, &names), used = 0;

	for (size_t i = 0; i < n; i++) {
		size_t phase = phase_in_time(names, n, i);
		const char *name = phase_name(names, phase);
		double us;

		/* phase_text() is ours: it needs no escaping. */
		if (json_number(phase_latency(report, name), "p50", &us) && us >= 0)
			parts[used++] = (struct chart_part){ (int)phase, phase_text(name), us };
	}
	if (!used)
		return;
	fprintf(f,
	        "<h2>Where a fault's time goes</h2>\n<p class=\"note\">The median of each phase of "
	        "a remote fault, side by side.</p>\n");
	chart_parts(f, "the phases of a fault", parts, used);
	fprintf(f,
	        "<div class=\"wide\"><table><tr><th>phase</th><th>p50</th><th>p90</th><th>p99</th>"
	        "<th>p99.9</th><th>max</th></tr>\n");
	for (size_t i = 0; i < n; i++) {
		const char *name = phase_name(names, phase_in_time(names, n, i));

		if (phase_latency(report, name))
			write_phase_row(f, name, phase_latency(report, name));
	}
	fprintf(f, "</table></div>\n");
}

static void write_slow_fault(FILE *f, struct json_object *fault, struct json_object *names,
                             size_t n_phases)
{
	struct json_object *us = json_find(fault, "phases_us");
	uint64_t tid = json_count_or(fault, "tid", 0);

	fprintf(f, "<tr><td>%s</td><td>%s</td><td>%#llx</td><td>",
	        text_duration(json_number_or(fault, "us", 0)).s,
	        text_duration(json_number_or(fault, "at_ms", 0) * 1000).s,
	        (unsigned long long)json_count_or(fault, "address", 0));
	if (tid)
		fprintf(f, "%llu", (unsigned long long)tid);
	fprintf(f, "</td>");
	for (size_t i = 0; i < n_phases; i++) {
		struct json_object *v =
		        json_object_is_type(us, json_type_array)
		                ? json_object_array_get_idx(us, phase_in_time(names, n_phases, i))
		                : NULL;
		double phase_us = v ? json_object_get_double(v) : -1;

		fprintf(f, "<td>%s</td>", phase_us >= 0 ? text_duration(phase_us).s : "");
	}
	fprintf(f, "</tr>\n");
}

void report_faults_write_slowest(FILE *f, struct json_object *report)
{
	struct json_object *faults = json_find(report, "slow_faults"), *names;
	size_t n =
	        json_object_is_type(faults, json_type_array) ? json_object_array_length(faults) : 0;
	size_t n_phases = phase_names(report, &names);

	if (!n)
		return;
	fprintf(f, "<h2>The slowest faults</h2>\n<div class=\"wide\"><table "
	           "class=\"dense\"><tr><th>took</th>"
	           "<th>resolved after</th><th>address</th><th>vCPU thread</th>");
	for (size_t i = 0; i < n_phases; i++) {
		fprintf(f, "<th>");
		html_text(f, phase_name(names, phase_in_time(names, n_phases, i)));
		fprintf(f, "</th>");
	}
	fprintf(f, "</tr>\n");
	for (size_t i = 0; i < n && i < SLOWEST_SHOWN; i++)
		write_slow_fault(f, json_object_array_get_idx(faults, i), names, n_phases);
	fprintf(f, "</table></div>\n");
}
