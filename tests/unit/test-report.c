/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/chart.h"
#include "bench/report_html.h"
#include "ctl/json.h"
#include "ctl/progress.h"
#include "ctl/units.h"
#include "util/clock.h"

static void test_units_read_as_people_write(void **state)
{
	(void)state;
	assert_string_equal(text_count(0).s, "0");
	assert_string_equal(text_count(999).s, "999");
	assert_string_equal(text_count(262144).s, "262,144");
	assert_string_equal(text_count(UINT64_MAX).s, "18,446,744,073,709,551,615");
	assert_string_equal(text_bytes(1023).s, "1023 B");
	assert_string_equal(text_bytes(4096).s, "4 KiB");
	assert_string_equal(text_bytes(1.5 * (1 << 30)).s, "1.5 GiB");
	assert_string_equal(text_bytes(1024 * 1024 - 1).s, "1.0 MiB");
	assert_string_equal(text_duration(83.2).s, "83 µs");
	assert_string_equal(text_duration(1.7).s, "1.7 µs");
	assert_string_equal(text_duration(1000).s, "1 ms");
	assert_string_equal(text_duration(2450).s, "2.45 ms");
	assert_string_equal(text_duration(999.7).s, "1.00 ms");
	assert_string_equal(text_duration(1530200).s, "1.53 s");
	assert_string_equal(text_pad(text_duration(83), 8).s, "83 µs   ");
	assert_string_equal(text_pad(text_duration(2000), 2).s, "2 ms");
	assert_string_equal(text_number(1234.4).s, "1,234");
	assert_string_equal(text_number(0.1).s, "0.1");
	assert_string_equal(text_number(2e19).s, "2e+19"); /* more than a counter holds */
}

static void check_size(const char *text, int want, uint64_t want_bytes)
{
	uint64_t bytes = 42;
	struct error err = ERROR_INIT;

	assert_int_equal(parse_size(text, &bytes, &err), want);
	assert_int_equal(bytes, want ? 42 : want_bytes);
	assert_true(!want || *err.text);
}

static void test_sizes_are_parsed_or_refused(void **state)
{
	uint64_t n;

	(void)state;
	check_size("4096", 0, 4096);
	check_size("512M", 0, 512ull << 20);
	check_size("1g", 0, 1ull << 30);
	check_size("2GiB", 0, 2ull << 30);
	check_size("16383P", -EINVAL, 0);
	check_size("16777215T", 0, 16777215ull << 40);
	check_size("16777216T", -EINVAL, 0);
	check_size("99999999999999999999", -EINVAL, 0);
	check_size("", -EINVAL, 0);
	check_size("-1", -EINVAL, 0);
	check_size(" 1", -EINVAL, 0);
	check_size("1 G", -EINVAL, 0);
	check_size("1Gx", -EINVAL, 0);
	assert_int_equal(parse_uint("16", 1, 16, &n, NULL), 0);
	assert_int_equal(n, 16);
	assert_int_equal(parse_uint("17", 1, 16, &n, NULL), -ERANGE);
	assert_int_equal(parse_uint("0", 1, 16, &n, NULL), -ERANGE);
	assert_int_equal(parse_uint("4x", 1, 16, &n, NULL), -EINVAL);
}

static void test_chart_scales(void **state)
{
	struct log_scale s = log_scale_init(83, 5400);
	struct log_bins bins = { .max_count = 0 };

	(void)state;
	assert_true(fabs(chart_step(1530, 8) - 200) < 1e-9);
	assert_true(fabs(chart_step(0.8, 8) - 0.1) < 1e-9);
	assert_true(chart_step(0, 8) > 0);
	assert_true(fabs(s.min - 10) < 1e-9 && fabs(s.max - 10000) < 1e-9);
	assert_true(fabs(log_scale_at(&s, 100) - 1.0 / 3) < 1e-9);
	assert_true(log_scale_at(&s, 1) == 0 && log_scale_at(&s, 1e9) == 1);
	s = log_scale_init(0, 0);
	assert_true(s.min > 0 && s.max > s.min);
	log_bins_add(&bins, 100, 3);
	log_bins_add(&bins, 101, 2);
	log_bins_add(&bins, 0, 1);
	log_bins_add(&bins, 1e300, 1);
	log_bins_add(&bins, 50, 0);
	assert_int_equal(bins.first, 0);
	assert_int_equal(bins.end, LOG_BINS_MAX);
	assert_true(bins.max_count == 5);
	assert_true(log_bins_lower(26) <= 100 && log_bins_lower(27) > 101);
	assert_true(bins.count[26] == 5);
}

static void test_json_members_may_be_missing(void **state)
{
	_cleanup_json_ struct json_object *o = json_tokener_parse(
	        "{\"a\": {\"b\": 3, \"n\": null, \"neg\": -1, \"d\": 2.6}, \"s\": \"x\"}");
	uint64_t n = 7;
	double d = 7;

	(void)state;
	assert_true(json_count(o, "a.b", &n));
	assert_int_equal(n, 3);
	assert_int_equal(json_count_or(o, "a.d", 0), 3);
	assert_false(json_count(o, "a.neg", &n));
	assert_false(json_number(o, "a.n", &d));
	assert_false(json_number(o, "s", &d));
	assert_null(json_find(o, "s.b"));
	assert_null(json_find(o, "a.b.c"));
	assert_null(json_find(NULL, "a"));
	assert_true(d == 7);
	assert_string_equal(json_string_or(o, "s", "-"), "x");
	assert_string_equal(json_string_or(o, "a", "-"), "-");
}

static struct json_object *update(const char *state, uint64_t present)
{
	struct json_object *m = json_object_new_object();

	json_set_string(m, "id", "vm7");
	json_set_string(m, "state", state);
	json_set_count(m, "page_bytes", 4096);
	json_set_count(m, "pages_total", 262144);
	json_set_count(m, "pages_present", present);
	return m;
}

static void test_progress_says_rate_and_time_left(void **state)
{
	_cleanup_json_ struct json_object *start = update("postcopy", 0);
	_cleanup_json_ struct json_object *middle = update("postcopy", 65536);
	_cleanup_json_ struct json_object *almost = update("postcopy", 262143);
	struct progress p = { .first_ns = 0 };
	char line[512];

	(void)state;
	progress_update(&p, start, NSEC_PER_SEC);
	progress_format(&p, start, 34, line, sizeof line);
	assert_string_equal(line, "vm7 postcopy [...........]   0.0 %");
	progress_update(&p, middle, 2 * NSEC_PER_SEC);
	progress_format(&p, middle, 0, line, sizeof line);
	assert_string_equal(line, "vm7 postcopy  25.0 %  256 MiB/s  source off in about 3 s");
	progress_format(&p, almost, 0, line, sizeof line);
	assert_non_null(strstr(line, " 99.9 %"));
}

/* The rate of a source that gives 64 MiB and 192 MiB in turns; 768 MiB are missing. */
static void test_progress_says_how_sure_it_is(void **state)
{
	struct progress p = { .first_ns = 0 };
	struct progress_left left;
	uint64_t present = 0;
	unsigned int i;

	(void)state;
	for (i = 1; i <= 40; i++) {
		_cleanup_json_ struct json_object *m = update("postcopy", present);

		json_set_count(m, "pages_total", present + (768 << 8));
		progress_update(&p, m, i * NSEC_PER_SEC);
		assert_int_equal(progress_get_left(&p, m, &left), i > 1);
		present += (i % 2 ? 64 : 192) << 8;
	}
	/* 768 MiB at 128 MiB/s are 6 s, give or take half. */
	assert_true(left.low_us > 3e6 && left.low_us < 5e6);
	assert_true(left.high_us > 7e6 && left.high_us < 24e6);
	/* The same every second: it gets sure. */
	for (; i <= 80; i++) {
		_cleanup_json_ struct json_object *m = update("postcopy", present);

		json_set_count(m, "pages_total", present + (768 << 8));
		progress_update(&p, m, i * NSEC_PER_SEC);
		assert_true(progress_get_left(&p, m, &left));
		present += 128 << 8;
	}
	assert_true(left.low_us > 5.9e6 && left.high_us < 6.1e6);
}

/* Whatever the window's width: nothing wraps, and what is there is whole. */
static void test_progress_fits_its_terminal(void **state)
{
	_cleanup_json_ struct json_object *start = update("postcopy", 0);
	_cleanup_json_ struct json_object *m = update("postcopy", 65536);
	_cleanup_json_ struct json_object *faults =
	        json_tokener_parse("{\"p50\": 212, \"p99\": 1250}");
	struct progress p = { .first_ns = 0 };
	char line[512];

	(void)state;
	json_object_object_add(m, "fault_us", json_object_get(faults));
	json_set_string(m, "limited_by", "destination-cpu");
	progress_update(&p, start, NSEC_PER_SEC);
	progress_update(&p, m, 2 * NSEC_PER_SEC);
	for (unsigned int columns = 1; columns < 200; columns++) {
		progress_format(&p, m, columns, line, sizeof line);
		assert_true(text_columns(line) <= columns);
	}
	progress_format(&p, m, 79, line, sizeof line);
	assert_string_equal(line,
	                    "vm7 postcopy  25.0 %  256 MiB/s (CPU here)  source off in about 3 s");
	progress_format(&p, m, 0, line, sizeof line);
	assert_string_equal(line,
	                    "vm7 postcopy  25.0 %  256 MiB/s (CPU here)  source off in about 3 s"
	                    "  fault p50 212 µs p99 1.25 ms");
	/* What is wrong is worth the room, and is cut. */
	json_set_string(m, "reason", "the source is not reached: no route to host");
	progress_format(&p, m, 79, line, sizeof line);
	assert_non_null(strstr(line, "3 s  the sou"));
}

static void test_forecasts_are_as_people_say_them(void **state)
{
	static const struct {
		double low_s, high_s;
		const char *text;
	} rows[] = {
		{ 0.2, 0.9, "under 1 s" },    { 0.3, 3.2, "under 3 s" },
		{ 39.8, 40.3, "about 40 s" }, { 30, 55, "30-55 s" },
		{ 104, 119, "100-120 s" },    { 115, 125, "about 2 min" },
		{ 90, 600, "2-10 min" },      { 3000, 7100, "50-120 min" },
		{ 7200, 90000, "2-25 h" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		assert_string_equal(
		        text_duration_range(rows[i].low_s * 1e6, rows[i].high_s * 1e6).s,
		        rows[i].text);
}

static void test_progress_says_how_warm_it_is(void **state)
{
	_cleanup_json_ struct json_object *m = update("warming", 65536);
	struct json_object *warm = json_object_new_object();
	struct progress p = { .first_ns = 0 };
	char line[512];

	(void)state;
	json_object_object_add(m, "warm", warm);
	/* It is not warmed, for a reason. */
	json_object_object_add(warm, "warm_ms", NULL);
	progress_format(&p, m, 0, line, sizeof line);
	assert_string_equal(line, "vm7 warming  25.0 %");
	json_set_number(warm, "warm_ms", 1200);
	json_set_count(warm, "rounds", 2);
	json_set_count(warm, "dirty_bytes_per_s", 64 << 20);
	json_set_number(warm, "catch_up_ms", 3000);
	progress_format(&p, m, 0, line, sizeof line);
	assert_string_equal(line, "vm7 warming  25.0 %  round 3  dirty 64 MiB/s  caught up in 3 s");
}

/* What a peer could have put into a name must not become markup. */
static void test_text_is_escaped(void **state)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	html_text(f, "<script>\"a\"&'b'");
	fclose(f);
	assert_string_equal(text, "&lt;script&gt;&quot;a&quot;&amp;'b'");
	free(text);
}

static char *page_of(const char *json)
{
	_cleanup_json_ struct json_object *report = json_tokener_parse(json);
	char *page = NULL;
	size_t len;
	FILE *f = open_memstream(&page, &len);

	assert_non_null(report);
	report_html_write(f, report);
	assert_false(ferror(f));
	fclose(f);
	return page;
}

/* Each tag that opens must close, in order; returns the number of elements. */
static size_t assert_well_formed(const char *page)
{
	char open[32][16];
	size_t depth = 0, n = 0;

	for (const char *p = page; (p = strchr(p, '<')); p++) {
		const char *end = strchr(p, '>');
		char name[16] = "";

		assert_non_null(end);
		if (p[1] == '!')
			continue;
		sscanf(p + 1 + (p[1] == '/'), "%15[a-z0-9]", name);
		assert_true(*name);
		if (p[1] == '/') {
			assert_true(depth > 0);
			assert_string_equal(open[--depth], name);
		} else if (end[-1] != '/') {
			assert_true(depth < 32);
			strcpy(open[depth++], name);
			n++;
		}
	}
	assert_int_equal(depth, 0);
	return n;
}

static const char full_report[] =
        "{\"id\": \"vm<7>\", \"state\": \"complete\", \"memory_bytes\": 1073741824,"
        "\"downtime_us\": {\"total\": 2450, \"pause\": 350, \"send\": 1100, \"load\": 620,"
        "\"resume\": 380}, \"total_ms\": 1530.2, \"bulk_bytes\": 1040000000,"
        "\"bulk_bytes_per_s\": 860000000, \"pages_total\": 262144,"
        "\"fault_us\": {\"count\": 3, \"p50\": 83, \"p90\": 90, \"p99\": 290, \"max\": 5400},"
        "\"integrity\": {\"pages_checked\": 262144, \"pages_bad\": 0},"
        "\"timeline\": [[0, 0], [700, 131072], [1530.2, 262144]],"
        "\"fault_dots\": [[10, 83], [11.5, 290, 0], [900, 5400, 1], [901, 90, 99]],"
        "\"fault_histogram\": [[83, 1], [290, 1], [5400, 1]],"
        "\"phases\": [\"queue\", \"answer\", \"<new>\"],"
        "\"fault_phases_us\": {\"queue\": {\"p50\": 3, \"p99\": 9}, \"answer\": {\"p50\": 61}},"
        "\"slow_faults\": [{\"at_ms\": 900, \"us\": 5400, \"address\": 140000000, \"tid\": 4711,"
        "\"phases_us\": [12, 5388]}],"
        "\"arrival\": [[64, 1, 0], [64, 1500, 60], [0, 0, 0], [1, \"x\"], [64, 700, 1]],"
        "\"stall_histogram\": [[91, 2], [5500, 1]],"
        "\"guest_stall_us\": {\"p50\": 91, \"p99\": 5500, \"source\": \"fentry\"},"
        "\"host\": {\"kernel\": \"6.18\", \"checks\": [{\"name\": \"KVM\", \"ok\": true, "
        "\"detail\":"
        "\"<yes>\"}, {\"name\": \"kTLS\", \"ok\": false, \"detail\": \"no module\"}]},"
        "\"floors\": {\"tls_bytes_per_s\": 1e9}, \"ratios\": {\"bulk_to_tls\": 0.86}}";

static void test_page_tells_all(void **state)
{
	char *page = page_of(full_report);

	(void)state;
	assert_true(assert_well_formed(page) > 50);
	assert_non_null(strstr(page, "262,144 pages checked by the guest itself: all right"));
	assert_non_null(strstr(page, "2.45 ms"));
	assert_non_null(strstr(page, "vm&lt;7&gt;"));
	assert_null(strstr(page, "vm<7>"));
	assert_non_null(strstr(page, "answer: the network and the source"));
	assert_non_null(strstr(page, "<g class=\"dots part1\">"));
	assert_non_null(strstr(page, "<td>4711</td>"));
	assert_non_null(strstr(page, "class=\"heat9\""));
	assert_non_null(strstr(page, "as the kernel saw it (eBPF, fentry)"));
	assert_non_null(strstr(page, "</b> &lt;yes&gt;"));
	assert_non_null(strstr(page, "<b class=\"bad\">no</b> no module"));
	assert_null(strstr(page, "nan"));
	assert_null(strstr(page, "inf"));
	free(page);
}

/* The report has the kernel's phases behind the daemon's; a person reads from left to right. */
static void test_phases_are_shown_in_the_order_of_time(void **state)
{
	char *page = page_of("{\"phases\": [\"queue\", \"map\", \"entry\", \"wakeup\"],"
	                     "\"slow_faults\": [{\"at_ms\": 1, \"us\": 100, \"phases_us\": "
	                     "[11, 22, 33, 44]}]}");

	(void)state;
	assert_non_null(strstr(page, "<th>entry</th><th>queue</th><th>map</th><th>wakeup</th>"));
	assert_non_null(strstr(page, "<td>33 µs</td><td>11 µs</td><td>22 µs</td><td>44 µs</td>"));
	free(page);
}

static void test_dots_that_are_not_all_say_so(void **state)
{
	char *all = page_of("{\"fault_us\": {\"count\": 1}, \"fault_dots\": [[10, 83, 0]]}");
	char *some = page_of("{\"fault_us\": {\"count\": 17243}, \"fault_dots\": [[10, 83, 0], "
	                     "[11, 83, 0]], \"fault_dots_every\": 16}");
	char *older = page_of("{\"fault_us\": {\"count\": 17243}, \"fault_dots\": [[10, 83, 0]], "
	                      "\"fault_dots_every\": null}");

	(void)state;
	assert_null(strstr(all, " dots are "));
	assert_non_null(strstr(some, "The 2 dots are one in 16 of 17,243 faults, from the first to "
	                             "the last, and the slowest of all"));
	assert_non_null(strstr(older, "The dots are the latest 1 of 17,243 faults"));
	free(all);
	free(some);
	free(older);
}

static void test_bad_pages_cannot_be_overlooked(void **state)
{
	char *page = page_of("{\"integrity\": {\"pages_checked\": 262144, \"pages_bad\": 7}}");

	(void)state;
	assert_non_null(strstr(page, "<b>7 are wrong</b>"));
	assert_null(strstr(page, "all right"));
	free(page);
}

static void test_page_survives_absent_and_odd_members(void **state)
{
	static const char *const reports[] = {
		"{}",
		"{\"downtime_us\": null, \"fault_us\": null, \"timeline\": [], \"fault_dots\": []}",
		"{\"timeline\": [[0, 0]], \"fault_dots\": [[0, 0]], \"fault_histogram\": [[0, 0]]}",
		("{\"timeline\": [1, [2], \"x\", [5, 5], [6, NaN], [NaN, 6]], \"fault_dots\": "
		 "{\"a\": 1},"
		 "\"fault_histogram\": [[-3, 4], [NaN, 1], [Infinity, 2]], \"pages_total\": 0}"),
		("{\"downtime_us\": {\"pause\": -5, \"send\": \"x\"}, \"integrity\": 3,"
		 "\"memory_bytes\": \"much\", \"id\": 4}"),
		("{\"work\": [[0, 1], [1, NaN], [\"x\", 2]], \"course\": [[\"postcopy\", 0, 1], 3, "
		 "[],"
		 "[\"later\", 1, 2], [null, 1, 2], [\"switchover\", 9, 1], [\"warm\", NaN, "
		 "Infinity]],"
		 "\"work_lost_ms\": -3}"),
		"{\"work\": [[5, 1]], \"course\": [[\"postcopy\", 0, 1]]}",
		"{\"work\": [[0, -2], [9, 3e300]], \"course\": [[\"postcopy\", -1e300, 1e300]]}",
	};

	(void)state;
	for (size_t i = 0; i < sizeof reports / sizeof *reports; i++) {
		char *page = page_of(reports[i]);

		assert_well_formed(page);
		assert_null(strstr(page, "nan"));
		assert_null(strstr(page, "=\"inf"));
		free(page);
	}
}

static void test_median_of_runs_sums_the_integrity(void **state)
{
	_cleanup_json_ struct json_object *runs = json_tokener_parse(
	        "[{\"backend\": \"memfd\", \"total_ms\": 10.5, \"faults\": {\"total\": 5},"
	        "  \"integrity\": {\"pages_checked\": 100, \"pages_bad\": 0}},"
	        " {\"backend\": \"memfd\", \"total_ms\": 900.5, \"faults\": {\"total\": 7},"
	        "  \"integrity\": {\"pages_checked\": 100, \"pages_bad\": 3}},"
	        " {\"backend\": \"memfd\", \"total_ms\": 11.5, \"faults\": {\"total\": 6},"
	        "  \"integrity\": {\"pages_checked\": 100, \"pages_bad\": 0}}]");
	_cleanup_json_ struct json_object *m = bench_result_median(runs);

	(void)state;
	assert_true(json_number_or(m, "total_ms", 0) == 11.5);
	assert_int_equal(json_count_or(m, "faults.total", 0), 6);
	assert_string_equal(json_string_or(m, "backend", ""), "memfd");
	assert_int_equal(json_count_or(m, "integrity.pages_checked", 0), 300);
	assert_int_equal(json_count_or(m, "integrity.pages_bad", 0), 3);
	assert_false(bench_result_good(m, NULL));
}

static bool good(const char *json)
{
	_cleanup_json_ struct json_object *o = json_tokener_parse(json);

	return bench_result_good(o, NULL);
}

static void test_no_verdict_is_no_success(void **state)
{
	(void)state;
	assert_true(good("{\"integrity\": {\"pages_checked\": 5, \"pages_bad\": 0}}"));
	assert_false(good("{\"integrity\": {\"pages_checked\": 5, \"pages_bad\": 1}}"));
	assert_false(good("{\"integrity\": {\"pages_checked\": 0, \"pages_bad\": 0}}"));
	assert_false(good("{\"integrity\": {\"pages_checked\": 5, \"pages_bad\": null}}"));
	assert_false(good("{}"));
}

static void test_ratios_need_their_faults(void **state)
{
	_cleanup_json_ struct json_object *r = json_tokener_parse(
	        "{\"bulk_bytes_per_s\": 800, \"fault_idle_us\": {\"count\": 100, \"p50\": 120},"
	        "\"fault_bulk_us\": {\"count\": 99, \"p99\": 500},"
	        "\"cpu_s_per_gib\": {\"source\": 1, \"destination\": 2, \"floor\": null}}");
	_cleanup_json_ struct json_object *floors =
	        json_tokener_parse("{\"tls_bytes_per_s\": 1000, \"tls_pingpong_us\": {\"p50\": 40},"
	                           "\"uffd_resolve_us\": {\"p50\": 20},"
	                           "\"tls_cpu_s_per_gib\": 1.5, \"pwrite_cpu_s_per_gib\": 0.5,"
	                           "\"memcpy_cpu_s_per_gib\": 0.75}");
	double v;

	(void)state;
	bench_result_add_floors(r, floors);
	assert_true(fabs(json_number_or(r, "ratios.bulk_to_tls", 0) - 0.8) < 1e-9);
	assert_true(fabs(json_number_or(r, "ratios.idle_fault_to_floor", 0) - 2) < 1e-9);
	assert_false(json_number(r, "ratios.busy_fault_p99_to_floor", &v));
	assert_true(fabs(json_number_or(r, "cpu_s_per_gib.floor", 0) - 2) < 1e-9);
}

static void link_of(const char *json, struct json_object **ret)
{
	const struct bench_options o = { .link_mbit = 80, .rtt_us = 100, .qdisc = "fifo" };

	*ret = json_tokener_parse(json);
	bench_result_add_link(*ret, &o, 5000000, NSEC_PER_SEC);
}

/* 80 Mbit/s are 10 MB in a second. */
static void test_a_link_has_its_use_and_its_queue(void **state)
{
	_cleanup_json_ struct json_object *both = NULL;
	_cleanup_json_ struct json_object *few = NULL;
	double v;

	(void)state;
	link_of("{\"fault_idle_us\": {\"count\": 100, \"p50\": 120},"
	        "\"fault_bulk_us\": {\"count\": 100, \"p50\": 480}}",
	        &both);
	assert_true(fabs(json_number_or(both, "link.used", 0) - 0.5) < 1e-9);
	assert_true(fabs(json_number_or(both, "link.queue_share", 0) - 0.75) < 1e-9);
	link_of("{\"fault_idle_us\": {\"count\": 7, \"p50\": 120}}", &few);
	assert_false(json_number(few, "link.queue_share", &v));
}

/* 50 % of 1000 accesses a second write, and a tenth of those would be to zero pages. */
static void test_a_dirty_rate_is_a_pace(void **state)
{
	struct bench_options o = { .vcpus = 2, .write_percent = 50, .zero_percent = 10 };

	(void)state;
	assert_int_equal(bench_think_us(&o), 0);
	o.dirty_bytes_per_s = 450 * 4096;
	assert_int_equal(bench_think_us(&o), 2000);
	o.write_percent = 0;
	assert_int_equal(bench_think_us(&o), 0);
	o.write_percent = 100;
	o.dirty_bytes_per_s = 1;
	assert_int_equal(bench_think_us(&o), 1000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_units_read_as_people_write),
		cmocka_unit_test(test_sizes_are_parsed_or_refused),
		cmocka_unit_test(test_chart_scales),
		cmocka_unit_test(test_json_members_may_be_missing),
		cmocka_unit_test(test_progress_says_rate_and_time_left),
		cmocka_unit_test(test_progress_says_how_sure_it_is),
		cmocka_unit_test(test_progress_fits_its_terminal),
		cmocka_unit_test(test_forecasts_are_as_people_say_them),
		cmocka_unit_test(test_progress_says_how_warm_it_is),
		cmocka_unit_test(test_text_is_escaped),
		cmocka_unit_test(test_page_tells_all),
		cmocka_unit_test(test_phases_are_shown_in_the_order_of_time),
		cmocka_unit_test(test_dots_that_are_not_all_say_so),
		cmocka_unit_test(test_bad_pages_cannot_be_overlooked),
		cmocka_unit_test(test_page_survives_absent_and_odd_members),
		cmocka_unit_test(test_median_of_runs_sums_the_integrity),
		cmocka_unit_test(test_no_verdict_is_no_success),
		cmocka_unit_test(test_ratios_need_their_faults),
		cmocka_unit_test(test_a_link_has_its_use_and_its_queue),
		cmocka_unit_test(test_a_dirty_rate_is_a_pace),
	};

	return cmocka_run_group_tests_name("report", tests, NULL, NULL);
}
