/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/report_faults.h"

#include <stdio.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/report_charts.h"
#include "ctl/report_html.h"
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

#define N_PHASES (sizeof phases / sizeof *phases)
_Static_assert(N_PHASES == REPORT_PHASES_MAX, "each phase has its colour");

int report_phase_colour(const char *name)
{
	for (size_t i = 0; i < N_PHASES; i++)
		if (!strcmp(phases[i].name, name))
			return (int)i;
	return -1;
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

static void write_phase_row(FILE *f, const char *text, struct json_object *latency)
{
	static const char *const columns[] = { "p50", "p90", "p99", "p999", "max" };
	double us;

	fprintf(f, "<tr><td>%s</td>", text);
	for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
		fprintf(f, "<td>%s</td>",
		        json_number(latency, columns[i], &us) ? text_duration(us).s : "");
	fprintf(f, "</tr>\n");
}

void report_faults_write_phases(FILE *f, struct json_object *report)
{
	struct json_object *latencies = json_find(report, "fault_phases_us");
	struct chart_part parts[N_PHASES];
	size_t used = 0;

	for (size_t i = 0; i < N_PHASES; i++) {
		double us;

		if (json_number(json_find(latencies, phases[i].name), "p50", &us) && us >= 0)
			parts[used++] = (struct chart_part){ (int)i, phases[i].text, us };
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
	for (size_t i = 0; i < used; i++)
		write_phase_row(f, parts[i].text,
		                json_find(latencies, phases[parts[i].colour].name));
	fprintf(f, "</table></div>\n");
}

static void write_time(FILE *f, double us)
{
	fprintf(f, "<td>%s</td>", us >= 0 ? text_duration(us).s : "");
}

static void write_slow_fault(FILE *f, struct json_object *fault, size_t n_phases)
{
	struct json_object *us = json_find(fault, "phases_us");
	uint64_t tid = json_count_or(fault, "tid", 0);

	/* The kernel's word where there is one, else the daemon's. */
	fprintf(f, "<tr><td>%s</td><td>%s</td><td>%#llx</td><td>",
	        text_duration(
	                json_number_or(fault, "stall_us.total", json_number_or(fault, "us", 0)))
	                .s,
	        text_duration(json_number_or(fault, "at_ms", 0) * 1000).s,
	        (unsigned long long)json_count_or(fault, "address", 0));
	if (tid)
		fprintf(f, "%llu", (unsigned long long)tid);
	fprintf(f, "</td>");
	write_time(f, json_number_or(fault, "stall_us.entry", -1));
	for (size_t i = 0; i < n_phases; i++) {
		struct json_object *v = json_object_is_type(us, json_type_array)
		                                ? json_object_array_get_idx(us, i)
		                                : NULL;

		write_time(f, v ? json_object_get_double(v) : -1);
	}
	write_time(f, json_number_or(fault, "stall_us.wakeup", -1));
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
	           "<th>resolved after</th><th>address</th><th>vCPU thread</th><th>entry</th>");
	for (size_t i = 0; i < n_phases; i++) {
		fprintf(f, "<th>");
		html_text(f, phase_name(names, i));
		fprintf(f, "</th>");
	}
	fprintf(f, "<th>wakeup</th></tr>\n");
	for (size_t i = 0; i < n && i < SLOWEST_SHOWN; i++)
		write_slow_fault(f, json_object_array_get_idx(faults, i), n_phases);
	fprintf(f, "</table></div>\n");
}
