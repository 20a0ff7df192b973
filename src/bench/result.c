/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/units.h"
#include "util/clock.h"

static const char *const series[] = { "phases",
	                              "timeline",
	                              "fault_dots",
	                              "fault_dots_every",
	                              "fault_histogram",
	                              "stall_histogram",
	                              "slow_faults",
	                              "arrival",
	                              "work",
	                              "course" };

/* Of fewer faults than this a quantile says nothing, and its ratio less. */
#define FAULTS_MIN 100

/* What minivmm takes. */
#define THINK_US_MAX 1000000

#define N_SERIES (sizeof series / sizeof *series)

uint64_t bench_think_us(const struct bench_options *o)
{
	/* Of the accesses that would write, those to pages that stay zero don't. */
	double written =
	        (double)o->write_percent / 100 * (1 - (double)o->zero_percent / 100) * 4096;
	double us = o->dirty_bytes_per_s
	                    ? (double)o->vcpus * written * 1e6 / (double)o->dirty_bytes_per_s
	                    : 0;

	return us < THINK_US_MAX ? (uint64_t)us : THINK_US_MAX;
}

static void add_options(struct json_object *result, const struct bench_options *o,
                        struct json_object *report)
{
	json_set_string(result, "workload", o->workload);
	json_set_string(result, "trace", o->trace);
	/* Where the daemon says what "auto" came to, that. */
	json_set_string(result, "map", json_string_or(report, "map", o->map));
	json_set_count(result, "vcpus", o->vcpus);
	json_set_count(result, "write_percent", o->write_percent);
	json_set_count(result, "zero_percent", o->zero_percent);
	json_set_count(result, "dirty_bytes_per_s", o->dirty_bytes_per_s);
	json_set_count(result, "bandwidth_bytes_per_s", o->bandwidth_bytes_per_s);
	json_set_count(result, "seed", o->seed);
	json_set_count(result, "vmstate_pad_bytes", o->vmstate_pad_bytes);
	json_set_count(result, "idle_faults", o->idle_faults);
	json_set_count(result, "fault_threads", o->fault_threads);
}

/* The daemon's, and those that users ask for: before switchover no guest is there to have one. */
static void add_faults(struct json_object *result, struct json_object *report)
{
	struct json_object *faults = json_find(report, "faults");

	if (!json_object_is_type(faults, json_type_object))
		return;
	json_copy(faults, "after_switchover", faults, "remote");
	json_copy(result, "faults", report, "faults");
}

struct json_object *bench_result_new(const struct bench_options *o, struct json_object *report,
                                     struct json_object *source, struct json_object *verdict)
{
	static const char *const copied[] = {
		"id",
		"state",
		"backend",
		"memory_bytes",
		"page_bytes",
		"streams",
		"tls",
		"downtime_us",
		"total_ms",
		"bulk_bytes",
		"bulk_bytes_per_s",
		"pages_total",
		"pages_poisoned",
		"pages_zero",
		"fill",
		"fault_us",
		"fault_idle_us",
		"fault_bulk_us",
		"fault_phases_us",
		"guest_stall_us",
		"stall_joined_us",
		"stall_phases_us",
		"prefetch",
		"reconnects",
	};
	struct json_object *result = json_object_new_object();
	struct json_object *integrity = json_object_new_object();

	for (size_t i = 0; i < sizeof copied / sizeof *copied; i++)
		json_copy(result, copied[i], report, copied[i]);
	for (size_t i = 0; i < N_SERIES; i++)
		json_copy(result, series[i], report, series[i]);
	/* Absent where it is cold: there is nothing to say. */
	if (json_find(report, "warm"))
		json_copy(result, "warm", report, "warm");
	json_copy(result, "served", source, "served");
	json_copy(result, "pace", source, "pace");
	json_copy(result, "bytes_moved", source, "served.bytes");
	json_copy(result, "pages_touched", verdict, "touched");
	add_faults(result, report);
	add_options(result, o, report);
	json_copy(integrity, "pages_checked", verdict, "pages_checked");
	json_copy(integrity, "pages_bad", verdict, "pages_bad");
	json_copy(integrity, "first_bad", verdict, "first_bad");
	json_object_object_add(result, "integrity", integrity);
	json_object_object_add(result, "vmm", json_object_get(verdict));
	json_object_object_add(result, "host", host_describe());
	return result;
}

/* How much of a fault beside bulk the same fault without bulk does not take. */
static void add_queue_share(struct json_object *link, struct json_object *result)
{
	double idle, busy;

	if (json_count_or(result, "fault_idle_us.count", 0) >= FAULTS_MIN &&
	    json_count_or(result, "fault_bulk_us.count", 0) >= FAULTS_MIN &&
	    json_number(result, "fault_idle_us.p50", &idle) &&
	    json_number(result, "fault_bulk_us.p50", &busy) && busy > 0)
		json_set_number(link, "queue_share", busy > idle ? 1 - idle / busy : 0);
	else
		json_object_object_add(link, "queue_share", NULL);
}

void bench_result_add_link(struct json_object *result, const struct bench_options *o,
                           uint64_t sent_bytes, uint64_t took_ns)
{
	double could = (double)o->link_mbit * 1e6 / 8 * (double)took_ns / NSEC_PER_SEC;
	struct json_object *link = json_object_new_object();

	json_set_count(link, "mbit", o->link_mbit);
	json_set_count(link, "rtt_us", o->rtt_us);
	json_set_count(link, "queue_ms", o->queue_ms);
	json_set_count(link, "cross_mbit", o->cross_mbit);
	json_set_string(link, "qdisc", o->qdisc);
	json_set_number(link, "used", could > 0 ? (double)sent_bytes / could : 0);
	add_queue_share(link, result);
	json_object_object_add(result, "link", link);
}

static void set_ratio(struct json_object *ratios, const char *key, bool known, double value,
                      double floor)
{
	if (known && floor > 0)
		json_set_number(ratios, key, value / floor);
	else
		json_object_object_add(ratios, key, NULL);
}

/* To send, encrypted, and to receive a GiB, and to fill memory with it the cheaper way. */
static void add_cpu_floor(struct json_object *result, struct json_object *floors)
{
	struct json_object *cpu = json_find(result, "cpu_s_per_gib");
	double tls, fill, other;

	if (!cpu || !json_number(floors, "tls_cpu_s_per_gib", &tls) ||
	    !json_number(floors, "pwrite_cpu_s_per_gib", &fill) ||
	    !json_number(floors, "memcpy_cpu_s_per_gib", &other))
		return;
	json_set_number(cpu, "floor", tls + (fill < other ? fill : other));
}

void bench_result_add_floors(struct json_object *result, struct json_object *floors)
{
	struct json_object *ratios = json_object_new_object();
	double fault = json_number_or(floors, "tls_pingpong_us.p50", 0) +
	               json_number_or(floors, "uffd_resolve_us.p50", 0);
	double bulk = 0, idle = 0, busy = 0;
	bool known;

	json_object_object_add(result, "floors", json_object_get(floors));
	add_cpu_floor(result, floors);
	known = json_number(result, "bulk_bytes_per_s", &bulk);
	set_ratio(ratios, "bulk_to_tls", known, bulk, json_number_or(floors, "tls_bytes_per_s", 0));
	known = json_count_or(result, "fault_idle_us.count", 0) >= FAULTS_MIN &&
	        json_number(result, "fault_idle_us.p50", &idle);
	set_ratio(ratios, "idle_fault_to_floor", known, idle, fault);
	known = json_count_or(result, "fault_bulk_us.count", 0) >= FAULTS_MIN &&
	        json_number(result, "fault_bulk_us.p99", &busy);
	set_ratio(ratios, "busy_fault_p99_to_floor", known, busy, fault);
	json_object_object_add(result, "ratios", ratios);
}

bool bench_result_good(struct json_object *result, struct error *err)
{
	uint64_t checked, bad;

	if (!json_count(result, "integrity.pages_checked", &checked) ||
	    !json_count(result, "integrity.pages_bad", &bad)) {
		error_set(err, -EBADMSG, "the guest gave no verdict on its pages");
		return false;
	}
	if (bad) {
		error_set(err, -EBADMSG, "%s of %s pages are wrong", text_count(bad).s,
		          text_count(checked).s);
		return false;
	}
	if (!checked) {
		error_set(err, -EBADMSG, "the guest checked no page");
		return false;
	}
	return true;
}

void bench_result_drop_series(struct json_object *result)
{
	for (size_t i = 0; i < N_SERIES; i++)
		json_object_object_del(result, series[i]);
}

static bool is_number(struct json_object *o)
{
	return json_object_is_type(o, json_type_int) || json_object_is_type(o, json_type_double);
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static struct json_object *median_number(struct json_object *const *peers, size_t n)
{
	bool whole = true;
	size_t count = 0;
	struct json_object *o;
	double *values = calloc(n + 1, sizeof *values);
	double median;

	for (size_t i = 0; values && i < n; i++) {
		if (!is_number(peers[i]))
			continue;
		values[count++] = json_object_get_double(peers[i]);
		whole = whole && json_object_is_type(peers[i], json_type_int);
	}
	if (!count) {
		free(values);
		return NULL;
	}
	qsort(values, count, sizeof *values, compare_doubles);
	median = (values[(count - 1) / 2] + values[count / 2]) / 2;
	o = whole ? json_object_new_int64((int64_t)median) : json_object_new_double(median);
	free(values);
	return o;
}

/* Peers stand at the same place of their results; the first says what they are. */
static struct json_object *median_any(struct json_object *const *peers, size_t n)
{
	struct json_object *o, *first = NULL;
	struct json_object **children;

	for (size_t i = 0; i < n && !first; i++)
		first = peers[i];
	if (is_number(first))
		return median_number(peers, n);
	if (!json_object_is_type(first, json_type_object))
		return json_object_get(first);
	o = json_object_new_object();
	children = calloc(n + 1, sizeof(*children));
	json_object_object_foreach(first, key, value)
	{
		(void)value;
		for (size_t i = 0; children && i < n; i++)
			children[i] = json_find(peers[i], key);
		if (children)
			json_object_object_add(o, key, median_any(children, n));
	}
	free(children);
	return o;
}

static void sum_integrity(struct json_object *results, struct json_object *median)
{
	struct json_object *integrity = json_find(median, "integrity");
	uint64_t checked = 0, bad = 0;

	for (size_t i = 0; i < json_object_array_length(results); i++) {
		struct json_object *r = json_object_array_get_idx(results, i);

		checked += json_count_or(r, "integrity.pages_checked", 0);
		bad += json_count_or(r, "integrity.pages_bad", 0);
	}
	if (integrity) {
		json_set_count(integrity, "pages_checked", checked);
		json_set_count(integrity, "pages_bad", bad);
	}
}

struct json_object *bench_result_median(struct json_object *results)
{
	size_t n = json_object_array_length(results);
	_cleanup_free_ struct json_object **peers = calloc(n + 1, sizeof(*peers));
	struct json_object *median;

	for (size_t i = 0; peers && i < n; i++)
		peers[i] = json_object_array_get_idx(results, i);
	if (!peers)
		return json_object_get(json_object_array_get_idx(results, 0));
	median = median_any(peers, n);
	sum_integrity(results, median);
	return median;
}
