/* SPDX-License-Identifier: Apache-2.0 */
/* What postcopyctl --json prints of the service's messages, and top's screen made of that. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/migration_json.h"
#include "ctl/top.h"
#include "util/clock.h"

static double number(struct json_object *o, const char *path)
{
	double d = -1;

	assert_true(json_number(o, path, &d));
	return d;
}

/* An absent member, or one that is null. */
static void assert_unknown(struct json_object *o, const char *path)
{
	assert_null(json_find(o, path));
}

/* A destination in postcopy, as JSON, of which all is known that is looked at here. */
static struct json_object *full_destination(void)
{
	Google__Protobuf__Timestamp time = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	Google__Protobuf__Duration total = GOOGLE__PROTOBUF__DURATION__INIT, left = total;
	Postcopy__V1__Downtime downtime = POSTCOPY__V1__DOWNTIME__INIT;
	Postcopy__V1__Latency latency = POSTCOPY__V1__LATENCY__INIT;
	Postcopy__V1__PhaseLatency phase = POSTCOPY__V1__PHASE_LATENCY__INIT;
	Postcopy__V1__PhaseLatency *phases[] = { &phase };
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;
	Postcopy__V1__Fill fill = POSTCOPY__V1__FILL__INIT;
	Postcopy__V1__DestinationStatus d = POSTCOPY__V1__DESTINATION_STATUS__INIT;
	Postcopy__V1__Migration m = POSTCOPY__V1__MIGRATION__INIT;

	time.seconds = 1800000000;
	time.nanos = 7000000;
	total.nanos = 14600000;
	left.seconds = 3;
	left.nanos = 500000000;
	downtime.total = &total;
	latency.count = 100;
	latency.p99_ns = 1234567;
	phase.phase = (char *)"answer";
	phase.latency = &latency;
	limits.optional_bandwidth_case =
	        POSTCOPY__V1__LIMITS__OPTIONAL_BANDWIDTH_BANDWIDTH_BYTES_PER_S;
	limits.optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
	limits.streams = 4;
	limits.optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	fill.zero = 5;
	d.downtime = &downtime;
	d.time_to_complete = &left;
	d.fault_latency = d.guest_stall = &latency;
	d.stall_joined = d.stall_phases = &latency;
	d.guest_stall_source = (char *)"tracepoint";
	d.n_fault_phases = 1;
	d.fault_phases = phases;
	d.limits = &limits;
	d.fill = &fill;
	d.map = POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY;
	m.id = (char *)"vm7";
	m.role = POSTCOPY__V1__ROLE__ROLE_DESTINATION;
	m.state = POSTCOPY__V1__STATE__STATE_POSTCOPY;
	m.state_time = &time;
	m.vmm_pid = 4711;
	m.half_case = POSTCOPY__V1__MIGRATION__HALF_DESTINATION;
	m.destination = &d;
	return migration_json(&m);
}

static void test_full_destination(void **state)
{
	_cleanup_json_ struct json_object *o = full_destination();

	(void)state;
	assert_string_equal(json_string_or(o, "state", ""), "postcopy");
	assert_string_equal(json_string_or(o, "role", ""), "destination");
	assert_string_equal(json_string_or(o, "map", ""), "lazy");
	assert_string_equal(json_string_or(o, "state_time", ""), "2027-01-15T08:00:00.007Z");
	assert_true(number(o, "vmm_pid") == 4711);
	assert_true(number(o, "downtime_us.total") == 14600);
	assert_unknown(o, "downtime_us.pause");
	assert_true(number(o, "eta_ms") == 3500);
	assert_true(number(o, "fault_us.p99") == 1234.567);
	assert_true(number(o, "fault_phases_us.answer.p99") == 1234.567);
	assert_string_equal(json_string_or(o, "guest_stall_us.source", ""), "tracepoint");
	assert_true(number(o, "stall_joined_us.p99") == 1234.567);
	assert_true(number(o, "stall_phases_us.count") == 100);
	assert_true(number(o, "limits.bandwidth_bytes_per_s") == 0);
	assert_true(number(o, "streams") == 4);
	assert_false(json_object_get_boolean(json_find(o, "limits.bulk")));
	assert_unknown(o, "limits.prefetch");
	assert_true(number(o, "pages_zero") == 5);
}

/* Nothing is known yet, and a daemon of another day may have states of its own. */
static void test_what_is_not_known_is_null(void **state)
{
	static const char *const unknown[] = {
		"state_time",       "memory_bytes",   "vmm_pid",         "downtime_us",
		"bulk_bytes_per_s", "total_ms",       "eta_ms",          "fault_us",
		"streams",          "guest_stall_us", "stall_joined_us", "stall_phases_us"
	};
	Postcopy__V1__DestinationStatus d = POSTCOPY__V1__DESTINATION_STATUS__INIT;
	Postcopy__V1__Migration m = POSTCOPY__V1__MIGRATION__INIT;
	_cleanup_json_ struct json_object *o = NULL;

	(void)state;
	m.state = (Postcopy__V1__State)77;
	m.role = (Postcopy__V1__Role)-1;
	m.half_case = POSTCOPY__V1__MIGRATION__HALF_DESTINATION;
	m.destination = &d;
	o = migration_json(&m);
	for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
		assert_true(json_object_object_get_ex(o, unknown[i], NULL));
		assert_unknown(o, unknown[i]);
	}
	assert_string_equal(json_string_or(o, "state", ""), "unknown");
	assert_string_equal(json_string_or(o, "role", ""), "unknown");
	assert_true(number(o, "faults.remote") == 0);
}

static void test_source_tells_what_it_served(void **state)
{
	Postcopy__V1__SourceStatus s = POSTCOPY__V1__SOURCE_STATUS__INIT;
	Postcopy__V1__Migration m = POSTCOPY__V1__MIGRATION__INIT;
	_cleanup_json_ struct json_object *o = NULL;

	(void)state;
	s.bytes = UINT64_MAX;
	s.connected = true;
	m.half_case = POSTCOPY__V1__MIGRATION__HALF_SOURCE;
	m.source = &s;
	o = migration_json(&m);
	assert_true(json_object_get_uint64(json_find(o, "served.bytes")) == UINT64_MAX);
	assert_true(json_object_get_boolean(json_find(o, "served.connected")));
	assert_unknown(o, "pages_total");
}

static void test_report_has_its_series(void **state)
{
	Postcopy__V1__TimelinePoint point = POSTCOPY__V1__TIMELINE_POINT__INIT;
	Postcopy__V1__TimelinePoint *points[] = { &point };
	uint64_t phase_ns[] = { 1000, 41500 };
	Postcopy__V1__FaultDot dot = POSTCOPY__V1__FAULT_DOT__INIT, plain = dot;
	Postcopy__V1__FaultDot *dots[] = { &dot, &plain };
	char *phases[] = { (char *)"queue", (char *)"answer" };
	Postcopy__V1__PhaseLatency all[] = { POSTCOPY__V1__PHASE_LATENCY__INIT,
		                             POSTCOPY__V1__PHASE_LATENCY__INIT };
	Postcopy__V1__PhaseLatency *known[] = { &all[0], &all[1] };
	Postcopy__V1__DestinationStatus d = POSTCOPY__V1__DESTINATION_STATUS__INIT;
	Postcopy__V1__Migration m = POSTCOPY__V1__MIGRATION__INIT;
	Postcopy__V1__Stall stall = POSTCOPY__V1__STALL__INIT;
	Postcopy__V1__Report r = POSTCOPY__V1__REPORT__INIT;
	_cleanup_json_ struct json_object *o = NULL;
	const char *text;

	(void)state;
	point.at_ns = 2500000;
	point.pages_present = 9;
	dot.at_ns = 1000000;
	dot.latency_ns = 42500;
	dot.dominant_phase = (char *)"answer";
	dot.n_phase_ns = 2;
	dot.phase_ns = phase_ns;
	all[0].phase = (char *)"entry";
	all[1].phase = (char *)"queue";
	d.n_fault_phases = 2;
	d.fault_phases = known;
	m.half_case = POSTCOPY__V1__MIGRATION__HALF_DESTINATION;
	m.destination = &d;
	r.migration = &m;
	stall.total_ns = 50000;
	stall.entry_ns = 7000;
	dot.stall = &stall;
	r.n_timeline = 1;
	r.timeline = points;
	r.n_faults = 2;
	r.faults = dots;
	r.faults_every = 8;
	r.n_slow_faults = 2;
	r.slow_faults = dots;
	r.n_phases = 2;
	r.phases = phases;
	o = report_json(&r);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	assert_non_null(strstr(text, "\"phases\":[\"queue\",\"answer\",\"entry\"]"));
	assert_non_null(strstr(text, "\"timeline\":[[2.500,9]]"));
	assert_non_null(strstr(text, "\"fault_dots\":[[1.000,42.500,1],[0.000,0.000,-1]]"));
	assert_non_null(strstr(text, "\"fault_dots_every\":8"));
	assert_non_null(strstr(text, "\"phases_us\":[1.000,41.500,7.000]"));
	assert_non_null(strstr(text, "\"stall_us\":50.000"));
	/* The other one is not known in its phases. */
	assert_non_null(strstr(text, "\"phases_us\":[null,null,null]"));
	assert_non_null(strstr(text, "\"arrival\":[]"));
}

static void test_states_have_names(void **state)
{
	(void)state;
	assert_int_equal(migration_json_state("postcopy"), POSTCOPY__V1__STATE__STATE_POSTCOPY);
	assert_int_equal(migration_json_state("cancelled"), POSTCOPY__V1__STATE__STATE_CANCELLED);
	assert_int_equal(migration_json_state("unknown"), 0);
	assert_int_equal(migration_json_state(""), 0);
}

/* top */

static const char running[] =
        "{\"id\": \"vm7\", \"role\": \"destination\", \"state\": \"postcopy\", "
        "\"memory_bytes\": 1073741824, \"pages_total\": 262144, \"pages_present\": %u, "
        "\"fault_us\": {\"p99\": %u}, \"reason\": \"\"}";

static const char others[] =
        "{\"id\": \"old\", \"role\": \"destination\", \"state\": \"failed\", "
        "\"pages_total\": 100, \"pages_present\": 50, \"reason\": \"the \\u001b[2Jguest died\"},"
        "{\"id\": \"a-source-with-a-long-name\", \"role\": \"source\", \"state\": \"postcopy\", "
        "\"served\": {\"bytes\": %u}}";

static struct json_object *snapshot(unsigned int present, unsigned int p99, unsigned int served)
{
	char text[1024];
	size_t len;
	struct json_object *o;

	len = (size_t)snprintf(text, sizeof text, "[");
	len += (size_t)snprintf(text + len, sizeof text - len, others, served);
	len += (size_t)snprintf(text + len, sizeof text - len, ",");
	len += (size_t)snprintf(text + len, sizeof text - len, running, present, p99);
	snprintf(text + len, sizeof text - len, "]");
	o = json_tokener_parse(text);
	assert_non_null(o);
	return o;
}

static void take(struct top *t, unsigned int second, unsigned int present, unsigned int p99)
{
	_cleanup_json_ struct json_object *list = snapshot(present, p99, second << 20);

	assert_int_equal(top_update(t, list, second * NSEC_PER_SEC), 0);
}

/*
 * The screen as text, the caller's to free. Inlined, gcc 12 would take it for a pointer to what is
 * on the stack here.
 */
static __attribute__((noinline)) char *screen(const struct top *t, unsigned int columns,
                                              unsigned int lines, bool terminal)
{
	const struct top_screen s = { columns, lines, terminal };
	_cleanup_json_ struct json_object *info =
	        json_tokener_parse("{\"version\": \"1.2\", \"hostname\": \"h1\"}");
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	top_draw(t, info, terminal ? "a notice" : NULL, &s, f);
	fclose(f);
	return text;
}

static void test_top_shows_the_recent_past(void **state)
{
	struct top t = { .rows = NULL };
	char *text, *row;

	(void)state;
	take(&t, 1, 0, 100);
	take(&t, 2, 65536, 800);
	take(&t, 3, 131072, 400);
	text = screen(&t, 132, 0, false);
	assert_non_null(strstr(text, "postcopyd 1.2 on h1: 2 running, 1 ended\n"));
	row = strstr(text, "\nvm7 ");
	assert_non_null(row);
	row = strndup(row + 1, strcspn(row + 1, "\n"));
	assert_non_null(strstr(row, "dst postcopy"));
	assert_non_null(strstr(row, "[#####.....]  50.0 %"));
	assert_non_null(strstr(row, "256 MiB/s"));
	assert_non_null(strstr(row, "▁██"));
	assert_non_null(strstr(row, "400 µs"));
	assert_non_null(strstr(row, "▁█▄"));
	assert_non_null(strstr(row, "2 s"));
	/* Those that have ended come last, and what a peer wrote moves no cursor. */
	assert_true(strstr(text, "\nold ") > strstr(text, "\nvm7 "));
	assert_non_null(strstr(text, "the ?[2Jguest"));
	assert_non_null(strstr(text, "a-source-with-a- src postcopy"));
	assert_non_null(strstr(text, " 1 MiB/s"));
	free(row);
	free(text);
	top_deinit(&t);
}

static unsigned int visible_columns(const char *line, size_t len)
{
	unsigned int n = 0;

	for (size_t i = 0; i < len; i++) {
		if (line[i] == '\033') {
			while (i < len && !strchr("mKHJ", line[i]))
				i++;
			continue;
		}
		n += (line[i] & 0xc0) != 0x80 && line[i] != '\r';
	}
	return n;
}

/* Whatever the window's size: no line wraps, and the screen does not scroll. */
static void test_top_fits_its_window(void **state)
{
	struct top t = { .rows = NULL };

	(void)state;
	for (unsigned int i = 1; i < 60; i++)
		take(&t, i, 1000 * i, 100);
	for (unsigned int columns = 1; columns < 240; columns++) {
		for (unsigned int lines = 4; lines < 8; lines++) {
			char *text = screen(&t, columns, lines, true);
			unsigned int n = 1;

			for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
				assert_true(visible_columns(p, strcspn(p, "\n")) <= columns);
				n += p[strcspn(p, "\n")] == '\n';
			}
			assert_true(n <= lines);
			if (lines < 6 && columns > 20)
				assert_non_null(strstr(text, "more"));
			free(text);
		}
	}
	top_deinit(&t);
}

static void test_top_forgets_who_is_gone(void **state)
{
	_cleanup_json_ struct json_object *none = json_object_new_array();
	struct top t = { .rows = NULL };
	char *text;

	(void)state;
	take(&t, 1, 0, 100);
	assert_int_equal(top_update(&t, none, 2 * NSEC_PER_SEC), 0);
	text = screen(&t, 100, 0, false);
	assert_non_null(strstr(text, "0 running, 0 ended"));
	assert_null(strstr(text, "vm7"));
	free(text);
	/* Who comes back begins anew. */
	take(&t, 3, 65536, 100);
	assert_int_equal(t.rows[1].rates.n, 1);
	top_deinit(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full_destination),
		cmocka_unit_test(test_what_is_not_known_is_null),
		cmocka_unit_test(test_source_tells_what_it_served),
		cmocka_unit_test(test_report_has_its_series),
		cmocka_unit_test(test_states_have_names),
		cmocka_unit_test(test_top_shows_the_recent_past),
		cmocka_unit_test(test_top_fits_its_window),
		cmocka_unit_test(test_top_forgets_who_is_gone),
	};

	return cmocka_run_group_tests_name("migration-json", tests, NULL, NULL);
}
