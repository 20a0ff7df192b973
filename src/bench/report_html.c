/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report_html.h"

#include <errno.h>
#include <string.h>

#include "bench/report_charts.h"
#include "bench/report_faults.h"
#include "ctl/json.h"
#include "ctl/units.h"

static const char page_style[] =
        ":root{color-scheme:light dark;--fg:#1b1f24;--dim:#5b6470;--bg:#fff;--card:#f4f6f8;"
        "--line:#dfe3e8;--a:#2f6fde;--b:#e0862b;--c:#2d9d78;--d:#9b59b6;--bad:#c0262d;"
        "--dot:#d1495b;--e:#7a8794;--g:#b8a100}\n"
        "@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--dim:#9aa4b1;--bg:#14171b;"
        "--card:#1e2329;--line:#30363d;--a:#5b93f5;--b:#f0a04b;--c:#43c59e;--d:#bb86d6;"
        "--bad:#ff6b6b;--dot:#ff7b8a;--e:#8d99a6;--g:#d8c437}}\n"
        "body{margin:0 auto;max-width:960px;padding:24px 20px 48px;background:var(--bg);"
        "color:var(--fg);font:15px/1.5 system-ui,sans-serif}\n"
        "h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 6px}\n"
        "p{margin:4px 0 10px}.note,.sub{color:var(--dim)}.bad{color:var(--bad)}\n"
        ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;"
        "margin:20px 0}\n"
        ".tile{background:var(--card);border-radius:8px;padding:12px 14px}\n"
        ".tile b{display:block;font-size:22px}.tile span{color:var(--dim);font-size:13px}\n"
        ".verdict{background:var(--card);border-left:4px solid var(--c);border-radius:4px;"
        "padding:10px 14px}.verdict.bad{border-color:var(--bad)}\n"
        "svg{width:100%;height:auto;display:block}\n"
        "svg text{font:12px system-ui,sans-serif;fill:var(--dim)}svg text.axis{fill:var(--fg)}\n"
        ".grid{stroke:var(--line);stroke-width:1}.area{fill:var(--a);fill-opacity:.35;"
        "stroke:var(--a);stroke-width:1.5}\n"
        ".dots{fill-opacity:.55}.bar{fill:var(--a)}.mark{stroke:var(--fg);"
        "stroke-dasharray:3 3}\n"
        ".part0{fill:var(--a);background:var(--a)}.part1{fill:var(--b);background:var(--b)}\n"
        ".part2{fill:var(--c);background:var(--c)}.part3{fill:var(--d);background:var(--d)}\n"
        ".part4{fill:var(--dot);background:var(--dot)}.part5{fill:var(--e);background:var(--e)}\n"
        ".part6{fill:var(--g);background:var(--g)}\n"
        ".heat0{fill:#fcefc9}.heat1{fill:#f9dc9b}.heat2{fill:#f6c26f}.heat3{fill:#f1a355}"
        ".heat4{fill:#e68250}\n"
        ".heat5{fill:#d36257}.heat6{fill:#b84863}.heat7{fill:#97366c}.heat8{fill:#73296f}"
        ".heat9{fill:#4d1f68}\n"
        ".legend{list-style:none;padding:0;margin:6px 0;display:flex;flex-wrap:wrap;gap:4px 22px}"
        "\n"
        ".legend i{display:inline-block;width:11px;height:11px;border-radius:2px;"
        "margin-right:6px}\n"
        ".wide{overflow-x:auto}table{border-collapse:collapse;width:100%}\n"
        "th,td{text-align:right;padding:4px 10px;border-bottom:1px solid var(--line);"
        "white-space:nowrap}th{font-weight:600;color:var(--dim)}\n"
        "th:first-child,td:first-child{text-align:left;white-space:normal}\n"
        "table.pairs td:last-child{text-align:left;white-space:normal}\n"
        "table.dense{font-size:13px}table.dense th,table.dense td{padding:4px 6px;"
        "white-space:nowrap}\n"
        "@media print{body{max-width:none;padding:0}h2{break-after:avoid}"
        "svg,table,.tiles{break-inside:avoid}"
        "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}\n";

void html_text(FILE *f, const char *text)
{
	for (; *text; text++) {
		switch (*text) {
		case '<':
			fputs("&lt;", f);
			break;
		case '>':
			fputs("&gt;", f);
			break;
		case '&':
			fputs("&amp;", f);
			break;
		case '"':
			fputs("&quot;", f);
			break;
		default:
			fputc(*text, f);
		}
	}
}

static void write_head(FILE *f, struct json_object *r)
{
	struct text memory = text_bytes(json_number_or(r, "memory_bytes", 0));
	const char *reason = json_string_or(r, "reason", "");

	fprintf(f, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
	           "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>Postcopy "
	           "migration ");
	html_text(f, json_string_or(r, "id", ""));
	fprintf(f,
	        "</title>\n<style>%s</style>\n</head>\n<body>\n<h1>Postcopy migration of %s</h1>\n"
	        "<p class=\"sub\">Migration ",
	        page_style, memory.s);
	html_text(f, json_string_or(r, "id", "?"));
	fprintf(f, ", state ");
	html_text(f, json_string_or(r, "state", "?"));
	if (*reason) {
		fprintf(f, ": ");
		html_text(f, reason);
	}
	fprintf(f, ". %s</p>\n",
	        json_count_or(r, "warm.bytes", 0)
	                ? "Memory was copied while the guest ran on the source; then it was "
	                  "paused, "
	                  "resumed on the destination at once, and the rest followed while it ran."
	                : "The guest was paused on the source, resumed on the destination at once, "
	                  "and its memory followed while it ran.");
}

static void tile(FILE *f, const char *value, const char *label, const char *more)
{
	fprintf(f, "<div class=\"tile\"><span>%s</span><b>%s</b><span>%s</span></div>\n", label,
	        value, more);
}

static void write_tiles(FILE *f, struct json_object *r)
{
	double v, p99 = json_number_or(r, "fault_us.p99", 0), max;
	char more[160], rate[64];

	fprintf(f, "<div class=\"tiles\">\n");
	if (json_number(r, "downtime_us.total", &v))
		tile(f, text_duration(v).s, "Downtime", "the guest ran nowhere");
	if (json_number(r, "work_lost_ms", &v) && v >= 0)
		tile(f, text_duration(v * 1000).s, "Work lost",
		     "by the guest, against its steady state");
	if (json_number(r, "total_ms", &v))
		tile(f, text_duration(v * 1000).s, "Total time", "until the last page was there");
	if (json_number(r, "bulk_bytes_per_s", &v)) {
		snprintf(more, sizeof more, "bulk, %s in all",
		         text_bytes(json_number_or(r, "bulk_bytes", 0)).s);
		snprintf(rate, sizeof rate, "%s/s", text_bytes(v).s);
		tile(f, rate, "Throughput", more);
	}
	if (json_number(r, "fault_us.p50", &v)) {
		max = json_number_or(r, "fault_us.max", 0);
		snprintf(more, sizeof more, "p99 %s, longest %s", text_duration(p99).s,
		         text_duration(max).s);
		tile(f, text_duration(v).s, "Remote fault, median", more);
	}
	fprintf(f, "</div>\n");
}

static void write_integrity(FILE *f, struct json_object *r)
{
	uint64_t checked, bad;

	if (!json_count(r, "integrity.pages_checked", &checked) ||
	    !json_count(r, "integrity.pages_bad", &bad))
		return;
	fprintf(f,
	        "<p class=\"verdict%s\"><b>Integrity:</b> %s pages checked by the guest itself: ",
	        bad ? " bad" : "", text_count(checked).s);
	if (bad)
		fprintf(f, "<b>%s are wrong</b></p>\n", text_count(bad).s);
	else
		fprintf(f, "all right</p>\n");
}

static void latency_row(FILE *f, struct json_object *r, const char *path, const char *label)
{
	static const char *const columns[] = { "p50", "p90", "p99", "p999", "max" };
	struct json_object *o = json_find(r, path);
	uint64_t count;
	double us;

	if (!o || !json_number(o, "p50", &us))
		return;
	fprintf(f, "<tr><td>%s</td><td>%s</td>", label,
	        json_count(o, "count", &count) ? text_count(count).s : "");
	for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
		fprintf(f, "<td>%s</td>",
		        json_number(o, columns[i], &us) ? text_duration(us).s : "");
	fprintf(f, "</tr>\n");
}

static void write_latencies(FILE *f, struct json_object *r)
{
	fprintf(f, "<h2>How long the guest waited</h2>\n<div class=\"wide\"><table><tr><th></th>"
	           "<th>count</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th>"
	           "</tr>\n");
	latency_row(f, r, "fault_us", "Remote fault: read by the daemon until resolved");
	latency_row(f, r, "fault_idle_us", "&#8195;of these, with no bulk in flight");
	latency_row(f, r, "fault_bulk_us", "&#8195;of these, beside bulk");
	latency_row(f, r, "guest_stall_us", "Stall of the guest's vCPU");
	latency_row(f, r, "vmm.guest_access_us", "One access, timed by the guest itself");
	fprintf(f, "</table></div>\n");
}

static void pair(FILE *f, const char *label, const char *value)
{
	fprintf(f, "<tr><td>%s</td><td>", label);
	html_text(f, value);
	fprintf(f, "</td></tr>\n");
}

static void pair_count(FILE *f, struct json_object *r, const char *label, const char *path)
{
	uint64_t n;

	if (json_count(r, path, &n))
		pair(f, label, text_count(n).s);
}

static void pair_bytes(FILE *f, struct json_object *r, const char *label, const char *path)
{
	double v;

	if (json_number(r, path, &v))
		pair(f, label, text_bytes(v).s);
}

static void pair_seconds(FILE *f, struct json_object *r, const char *label, const char *path)
{
	double v;

	if (json_number(r, path, &v))
		pair(f, label, text_duration(v * 1000000).s);
}

static void pair_string(FILE *f, struct json_object *r, const char *label, const char *path)
{
	const char *s = json_string_or(r, path, NULL);

	if (s)
		pair(f, label, s);
}

static void write_floors(FILE *f, struct json_object *r)
{
	static const struct {
		const char *ratio, *label;
	} rows[] = {
		{ "ratios.bulk_to_tls", "Bulk throughput, as a share of the TLS floor" },
		{ "ratios.idle_fault_to_floor",
		  "Median remote fault without bulk, in times of ping-pong + local fault" },
		{ "ratios.busy_fault_p99_to_floor",
		  "p99 of remote faults beside bulk, in times of the same" },
	};
	double v;

	if (!json_find(r, "floors"))
		return;
	fprintf(f, "<h2>Measured against this host's floors</h2>\n<p class=\"note\">What the same "
	           "host can do at best, measured in the same run.</p>\n<table class=\"pairs\">\n");
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		char text[32];

		if (!json_number(r, rows[i].ratio, &v))
			continue;
		snprintf(text, sizeof text, "%.2f", v);
		pair(f, rows[i].label, text);
	}
	pair_bytes(f, r, "TLS floor, bytes each second", "floors.tls_bytes_per_s");
	if (json_number(r, "floors.tls_pingpong_us.p50", &v))
		pair(f, "TLS ping-pong of 4 KiB, median", text_duration(v).s);
	if (json_number(r, "floors.uffd_resolve_us.p50", &v))
		pair(f, "A local fault, median", text_duration(v).s);
	pair_bytes(f, r, "Filling memory by pwrite(), bytes each second",
	           "floors.pwrite_bytes_per_s");
	pair_bytes(f, r, "Filling memory by memcpy(), bytes each second",
	           "floors.memcpy_bytes_per_s");
	fprintf(f, "</table>\n");
}

static void write_link(FILE *f, struct json_object *r)
{
	double share;
	char text[256];

	if (!json_find(r, "link"))
		return;
	snprintf(text, sizeof text, "%s Mbit/s, round trip %s, queue of %s ms, %.0f %% used",
	         text_count(json_count_or(r, "link.mbit", 0)).s,
	         text_duration(json_number_or(r, "link.rtt_us", 0)).s,
	         text_count(json_count_or(r, "link.queue_ms", 0)).s,
	         json_number_or(r, "link.used", 0) * 100);
	pair(f, "Link between the two sides", text);
	if (!json_number(r, "link.queue_share", &share))
		return;
	snprintf(text, sizeof text, "%.0f %%", share * 100);
	pair(f, "&#8195;its queue's share of a fault beside bulk", text);
}

struct row {
	const char *label, *path;
	void (*write)(FILE *f, struct json_object *r, const char *label, const char *path);
};

static const struct row guest_rows[] = {
	{ "Guest memory", "memory_bytes", pair_bytes },
	{ "Made of", "backend", pair_string },
	{ "Page size", "page_bytes", pair_bytes },
	{ "vCPUs", "vcpus", pair_count },
	{ "Workload", "workload", pair_string },
	{ "Bulk connections", "streams", pair_count },
	{ "TLS", "tls", pair_string },
};

static const struct row course_rows[] = {
	{ "Mapping ahead", "map", pair_string },
	{ "Rounds of copying while the guest ran at the source", "warm.rounds", pair_count },
	{ "&#8195;copied in them", "warm.bytes", pair_bytes },
	{ "&#8195;pages missing at the switchover", "warm.dirty_pages_at_switchover", pair_count },
	{ "Pages", "pages_total", pair_count },
	{ "Zero pages, sent as a bit", "pages_zero", pair_count },
	{ "Faults", "faults.total", pair_count },
	{ "&#8195;that asked the source", "faults.remote", pair_count },
	{ "&#8195;whose page was there already", "faults.minor", pair_count },
	{ "&#8195;that shared another's answer", "faults.coalesced", pair_count },
	{ "Pages that the guest touched meanwhile", "pages_touched", pair_count },
	{ "Content of pages that the source sent", "bytes_moved", pair_bytes },
	{ "Pages fetched by a guess of what the guest touches next", "prefetch.units", pair_count },
	{ "&#8195;that its VMM has named", "prefetch.hot", pair_count },
	{ "&#8195;around faults", "prefetch.around", pair_count },
	{ "&#8195;along a thread's stride", "prefetch.stride", pair_count },
	{ "&#8195;written in the last rounds", "prefetch.recent", pair_count },
	{ "Guesses of which the first touch shows", "prefetch.watched", pair_count },
	{ "&#8195;touched, and there", "prefetch.hit", pair_count },
	{ "&#8195;never touched", "prefetch.wasted", pair_count },
	{ "Faults for pages that were on their way", "prefetch.late", pair_count },
	{ "Pages that bulk brought twice", "prefetch.duplicate", pair_count },
	{ "Reconnects", "reconnects", pair_count },
	{ "CPU of the source's daemon for a GiB", "cpu_s_per_gib.source", pair_seconds },
	{ "CPU of the destination's daemon for a GiB", "cpu_s_per_gib.destination", pair_seconds },
	{ "&#8195;floor of both: TLS, and filling memory", "cpu_s_per_gib.floor", pair_seconds },
	{ "Peak memory of the source's daemon", "rss_bytes.source", pair_bytes },
	{ "Peak memory of the destination's daemon", "rss_bytes.destination", pair_bytes },
	{ "Kernel", "host.kernel", pair_string },
	{ "CPU", "host.cpu_model", pair_string },
	{ "CPUs", "host.cpus", pair_count },
};

static void write_rows(FILE *f, struct json_object *r, const struct row *rows, size_t n)
{
	for (size_t i = 0; i < n; i++)
		rows[i].write(f, r, rows[i].label, rows[i].path);
}

static void write_parameters(FILE *f, struct json_object *r)
{
	fprintf(f, "<h2>Parameters and counts</h2>\n<table class=\"pairs\">\n");
	write_rows(f, r, guest_rows, sizeof guest_rows / sizeof *guest_rows);
	write_link(f, r);
	write_rows(f, r, course_rows, sizeof course_rows / sizeof *course_rows);
	fprintf(f, "</table>\n");
}

/* What the kernel saw, where eBPF could look: it has no part of the daemon's in it. */
static void write_stalls(FILE *f, struct json_object *r)
{
	const char *source = json_string_or(r, "guest_stall_us.source", "daemon");

	if (!strcmp(source, "daemon") || !json_find(r, "stall_histogram"))
		return;
	fprintf(f, "<h2>Stalls of the guest's vCPUs</h2>\n<p class=\"note\">How long a vCPU stood "
	           "still, as the kernel saw it (eBPF, ");
	html_text(f, source);
	fprintf(f, ").</p>\n");
	chart_histogram(f, r, "stall_histogram", "guest_stall_us");
}

static void write_checks(FILE *f, struct json_object *r)
{
	struct json_object *rows = json_find(r, "host.checks");
	size_t n = json_object_is_type(rows, json_type_array) ? json_object_array_length(rows) : 0;

	if (!n)
		return;
	fprintf(f, "<h2>What this host can do</h2>\n<table class=\"pairs\">\n");
	for (size_t i = 0; i < n; i++) {
		struct json_object *row = json_object_array_get_idx(rows, i);
		bool ok = json_object_get_boolean(json_find(row, "ok"));

		fprintf(f, "<tr><td>");
		html_text(f, json_string_or(row, "name", "?"));
		fprintf(f, "</td><td><b%s>%s</b> ", ok ? "" : " class=\"bad\"", ok ? "yes" : "no");
		html_text(f, json_string_or(row, "detail", ""));
		fprintf(f, "</td></tr>\n");
	}
	fprintf(f, "</table>\n");
}

void report_html_write(FILE *f, struct json_object *r)
{
	write_head(f, r);
	write_tiles(f, r);
	write_integrity(f, r);
	fprintf(f, "<h2>Downtime in parts</h2>\n");
	chart_downtime(f, r);
	chart_work(f, r);
	fprintf(f,
	        "<h2>From resume to the last page</h2>\n<p class=\"note\">Time 0 is when the guest "
	        "resumed on the destination.</p>\n");
	chart_timeline(f, r);
	report_faults_write_phases(f, r);
	fprintf(f, "<h2>Latency of remote faults</h2>\n<p class=\"note\">How many faults took how "
	           "long; the axis is logarithmic.</p>\n");
	chart_histogram(f, r, "fault_histogram", "fault_us");
	write_stalls(f, r);
	write_latencies(f, r);
	report_faults_write_slowest(f, r);
	fprintf(f, "<h2>Guest memory by time of arrival</h2>\n<p class=\"note\">From the first "
	           "address, line by line; each cell is an equal part of guest memory.</p>\n");
	chart_arrival(f, r);
	write_floors(f, r);
	write_parameters(f, r);
	write_checks(f, r);
	fprintf(f, "</body>\n</html>\n");
}

int report_html_save(const char *path, struct json_object *report, struct error *err)
{
	FILE *f = fopen(path, "we");
	int failed;

	if (!f)
		return error_errno(err, -errno, "report \"%s\"", path);
	errno = 0;
	report_html_write(f, report);
	failed = ferror(f);
	if (fclose(f) == EOF || failed)
		return error_errno(err, errno ? -errno : -EIO, "report \"%s\"", path);
	return 0;
}
