/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "telemetry/openmetrics.h"

static const struct openmetrics_family bytes = {
	"x_sent_bytes",
	OPENMETRICS_COUNTER,
	"bytes",
	"Bytes that were sent.",
};
static const struct openmetrics_family open_now = {
	"x_open",
	OPENMETRICS_GAUGE,
	NULL,
	"How many are open.",
};
static const struct openmetrics_family build = {
	"x_build",
	OPENMETRICS_INFO,
	NULL,
	"The version.",
};
static const struct openmetrics_family latency = {
	"x_latency_seconds",
	OPENMETRICS_HISTOGRAM,
	"seconds",
	"How long it took.",
};

static void put_some(struct openmetrics *om, bool classic)
{
	openmetrics_init(om, classic);
	openmetrics_open(om, &bytes);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, UINT64_MAX);
	openmetrics_open(om, &open_now);
	openmetrics_integer(om, OPENMETRICS_LABELS({ "a", "1" }, { "b", "x\"y\\z\nw" }), 3);
	openmetrics_number(om, OPENMETRICS_NO_LABELS, 1.5);
	openmetrics_open(om, &build);
	openmetrics_integer(om, OPENMETRICS_LABELS({ "version", "1.2" }), 1);
}

static void check_text(struct openmetrics *om, const char *expected)
{
	size_t len;
	char *text = openmetrics_finish(om, &len);

	assert_string_equal(text, expected);
	assert_int_equal(len, strlen(expected));
	free(text);
	openmetrics_deinit(om);
}

static void test_openmetrics_text(void **state)
{
	struct openmetrics om;

	(void)state;
	put_some(&om, false);
	check_text(&om, "# TYPE x_sent_bytes counter\n"
	                "# UNIT x_sent_bytes bytes\n"
	                "# HELP x_sent_bytes Bytes that were sent.\n"
	                "x_sent_bytes_total 18446744073709551615\n"
	                "# TYPE x_open gauge\n"
	                "# HELP x_open How many are open.\n"
	                "x_open{a=\"1\",b=\"x\\\"y\\\\z\\nw\"} 3\n"
	                "x_open 1.5\n"
	                "# TYPE x_build info\n"
	                "# HELP x_build The version.\n"
	                "x_build_info{version=\"1.2\"} 1\n"
	                "# EOF\n");
}

static void test_classic_text(void **state)
{
	struct openmetrics om;

	(void)state;
	put_some(&om, true);
	check_text(&om, "# TYPE x_sent_bytes_total counter\n"
	                "# HELP x_sent_bytes_total Bytes that were sent.\n"
	                "x_sent_bytes_total 18446744073709551615\n"
	                "# TYPE x_open gauge\n"
	                "# HELP x_open How many are open.\n"
	                "x_open{a=\"1\",b=\"x\\\"y\\\\z\\nw\"} 3\n"
	                "x_open 1.5\n"
	                "# TYPE x_build_info gauge\n"
	                "# HELP x_build_info The version.\n"
	                "x_build_info{version=\"1.2\"} 1\n");
}

/* The number behind a line's beginning; fails where there is no such line. */
static double sample(const char *text, const char *line)
{
	const char *at = strstr(text, line);

	if (!at)
		fail_msg("no line \"%s\" in:\n%s", line, text);
	return strtod(at + strlen(line), NULL);
}

static void test_histogram_counts_each_value_below_its_bound(void **state)
{
	static const uint64_t values_ns[] = { 0,    1023,       1024,        1535,
		                              1536, 1000000000, 17179869183, 17179869184 };
	struct histogram *h = calloc(1, sizeof *h);
	struct openmetrics om;
	size_t len;
	char *text;

	(void)state;
	for (size_t i = 0; i < sizeof values_ns / sizeof *values_ns; i++)
		histogram_add(h, values_ns[i]);
	openmetrics_init(&om, false);
	openmetrics_open(&om, &latency);
	openmetrics_histogram(&om, OPENMETRICS_LABELS({ "phase", "total" }), h);
	text = openmetrics_finish(&om, &len);
	assert_ptr_equal(strstr(text,
	                        "# TYPE x_latency_seconds histogram\n"
	                        "# UNIT x_latency_seconds seconds\n"
	                        "# HELP x_latency_seconds How long it took.\n"
	                        "x_latency_seconds_bucket{phase=\"total\",le=\"1.024e-06\"} 2\n"
	                        "x_latency_seconds_bucket{phase=\"total\",le=\"1.536e-06\"} 4\n"
	                        "x_latency_seconds_bucket{phase=\"total\",le=\"2.048e-06\"} 5\n"),
	                 text);
	assert_int_equal(sample(text, "le=\"0.805306368\"} "), 5);
	assert_int_equal(sample(text, "le=\"1.073741824\"} "), 6);
	assert_int_equal(sample(text, "le=\"17.179869184\"} "), 7);
	assert_int_equal(sample(text, "le=\"+Inf\"} "), 8);
	assert_int_equal(sample(text, "x_latency_seconds_count{phase=\"total\"} "), 8);
	assert_float_equal(sample(text, "x_latency_seconds_sum{phase=\"total\"} "), 35.359743485,
	                   1e-6);
	free(text);
	free(h);
}

/* Readers need the counts to rise, and +Inf to be the count. */
static void test_histogram_read_while_written_is_one_in_itself(void **state)
{
	struct histogram *h = calloc(1, sizeof *h);
	struct openmetrics om;
	size_t len;
	char *text;

	(void)state;
	histogram_add(h, 5000);
	/* As a reader sees it between the steps of histogram_add(). */
	atomic_store(&h->count, 7);
	openmetrics_init(&om, true);
	openmetrics_open(&om, &latency);
	openmetrics_histogram(&om, OPENMETRICS_NO_LABELS, h);
	text = openmetrics_finish(&om, &len);
	assert_int_equal(sample(text, "le=\"+Inf\"} "), 1);
	assert_int_equal(sample(text, "x_latency_seconds_count "), 1);
	free(text);
	free(h);
}

static void test_text_grows(void **state)
{
	struct openmetrics om;
	char label[32];
	size_t len;
	char *text;

	(void)state;
	openmetrics_init(&om, false);
	openmetrics_open(&om, &open_now);
	for (unsigned int i = 0; i < 100000; i++) {
		snprintf(label, sizeof label, "%u", i);
		openmetrics_integer(&om, OPENMETRICS_LABELS({ "n", label }), i);
	}
	text = openmetrics_finish(&om, &len);
	assert_int_equal(strlen(text), len);
	assert_int_equal(sample(text, "x_open{n=\"99999\"} "), 99999);
	assert_string_equal(text + len - 6, "# EOF\n");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_openmetrics_text),
		cmocka_unit_test(test_classic_text),
		cmocka_unit_test(test_histogram_counts_each_value_below_its_bound),
		cmocka_unit_test(test_histogram_read_while_written_is_one_in_itself),
		cmocka_unit_test(test_text_grows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
