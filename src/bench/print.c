/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include <math.h>
#include <stdio.h>

#include "ctl/json.h"
#include "ctl/units.h"

/* @per: how many of @format's units one of the member's is */
static struct text number_at(struct json_object *r, const char *path,
                             struct text (*format)(double v), double per)
{
	struct text unknown = { "?" };
	double v;

	return json_number(r, path, &v) ? format(v * per) : unknown;
}

static struct text duration_at(struct json_object *r, const char *path)
{
	return number_at(r, path, text_duration, 1);
}

static struct text seconds_at(struct json_object *r, const char *path)
{
	return number_at(r, path, text_duration, 1e6);
}

static struct text bytes_at(struct json_object *r, const char *path)
{
	return number_at(r, path, text_bytes, 1);
}

static struct text count_at(struct json_object *r, const char *path)
{
	struct text unknown = { "?" };
	uint64_t n;

	return json_count(r, path, &n) ? text_count(n) : unknown;
}

static void print_setting(struct json_object *r, size_t runs)
{
	double share, rate;

	printf("  guest      %s of %s in pages of %s, %s vCPUs, %s workload, %s %% writes\n",
	       bytes_at(r, "memory_bytes").s, json_string_or(r, "backend", "?"),
	       bytes_at(r, "page_bytes").s, count_at(r, "vcpus").s,
	       json_string_or(r, "workload", "?"), count_at(r, "write_percent").s);
	printf("  stream     %s bulk connections and urgent ones, %s, map %s\n",
	       count_at(r, "streams").s, json_string_or(r, "tls", "?"),
	       json_string_or(r, "map", "?"));
	if (json_find(r, "beside"))
		printf("  beside     %s more: fault p99 of the worst %s, total of the slowest "
		       "%s\n",
		       count_at(r, "beside.guests").s, duration_at(r, "beside.fault_p99_us").s,
		       number_at(r, "beside.total_ms", text_duration, 1000).s);
	if (json_find(r, "link"))
		printf("  link       %s Mbit/s, round trip %s, queue of %s ms (%s), used %.0f %%\n",
		       count_at(r, "link.mbit").s, duration_at(r, "link.rtt_us").s,
		       count_at(r, "link.queue_ms").s, json_string_or(r, "link.qdisc", "?"),
		       json_number_or(r, "link.used", 0) * 100);
	if (json_number(r, "pace.bytes_per_s", &rate))
		printf("  pace       bulk was held at %s/s, below what the link carries\n",
		       text_bytes(rate).s);
	if (json_number(r, "link.queue_share", &share))
		printf("  queue      is %.0f %% of a fault beside bulk\n", share * 100);
	printf("  host       Linux %s, %s CPUs, %s\n", json_string_or(r, "host.kernel", "?"),
	       count_at(r, "host.cpus").s, json_string_or(r, "host.cpu_model", "?"));
	if (runs > 1)
		printf("  runs       %zu: medians follow, integrity is the sum\n", runs);
	putchar('\n');
}

/* May be less than nothing. */
static struct text text_lost(double ms)
{
	struct text t;

	snprintf(t.s, sizeof t.s, "%s%.*s", ms < 0 ? "-" : "", (int)sizeof t.s - 2,
	         text_duration(fabs(ms) * 1000).s);
	return t;
}

/* What the guest's users feel of it. */
static struct text sum_of_causes(struct json_object *r, const char *cause)
{
	static const char *const phases[] = { "before", "switchover", "postcopy" };
	double sum_ms = 0;

	for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
		char path[64];

		snprintf(path, sizeof path, "work_lost_causes_ms.%s.%s", phases[i], cause);
		sum_ms += json_number_or(r, path, 0);
	}
	return text_lost(sum_ms);
}

static void print_work(struct json_object *r)
{
	double lost_ms, touched = json_number_or(r, "pages_touched", 0);
	double faults = json_number_or(r, "faults.after_switchover", 0);

	if (json_number(r, "work_lost_ms", &lost_ms))
		printf("  work lost  %s = before %s + switchover %s + postcopy %s, longest gap "
		       "%s\n",
		       text_lost(lost_ms).s,
		       number_at(r, "work_lost_parts_ms.before", text_lost, 1).s,
		       number_at(r, "work_lost_parts_ms.switchover", text_lost, 1).s,
		       number_at(r, "work_lost_parts_ms.postcopy", text_lost, 1).s,
		       duration_at(r, "longest_gap_us").s);
	if (json_find(r, "work_lost_causes_ms"))
		printf("  because    no core %s, stalled %s, slower %s\n",
		       sum_of_causes(r, "cores").s, sum_of_causes(r, "stalled").s,
		       sum_of_causes(r, "slower").s);
	if (touched > 0)
		printf("  touched    %s pages, network faults for %.3f of them\n",
		       count_at(r, "pages_touched").s, faults / touched);
}

static void print_warm(struct json_object *r)
{
	const char *refused = json_string_or(r, "warm.refused", "");

	if (!json_find(r, "warm"))
		return;
	if (*refused)
		printf("  warm       refused: %s\n", refused);
	else
		printf("  warm       %s rounds in %s, %s copied, %s pages missing at switchover\n",
		       count_at(r, "warm.rounds").s,
		       number_at(r, "warm.warm_ms", text_duration, 1000).s,
		       bytes_at(r, "warm.bytes").s,
		       count_at(r, "warm.dirty_pages_at_switchover").s);
	if (json_count_or(r, "warm.given_up_percent", 0))
		printf("             given up: %s %% of memory would have been dirty again\n",
		       count_at(r, "warm.given_up_percent").s);
}

static void print_prefetch(struct json_object *r)
{
	printf("  prefetch   %s by guess: %s hot, %s around faults, %s by stride, %s recent\n",
	       count_at(r, "prefetch.units").s, count_at(r, "prefetch.hot").s,
	       count_at(r, "prefetch.around").s, count_at(r, "prefetch.stride").s,
	       count_at(r, "prefetch.recent").s);
	/* Mapped ahead, nobody can tell. */
	if (json_count_or(r, "prefetch.watched", 0))
		printf("             of %s watched %s hit, %s wasted; ",
		       count_at(r, "prefetch.watched").s, count_at(r, "prefetch.hit").s,
		       count_at(r, "prefetch.wasted").s);
	else
		printf("             ");
	printf("%s late, %s brought twice\n\n", count_at(r, "prefetch.late").s,
	       count_at(r, "prefetch.duplicate").s);
}

static void print_course(struct json_object *r)
{
	double total_ms = json_number_or(r, "total_ms", 0) * 1000;

	printf("  downtime   %s = pause %s + send %s + load %s + resume %s\n",
	       duration_at(r, "downtime_us.total").s, duration_at(r, "downtime_us.pause").s,
	       duration_at(r, "downtime_us.send").s, duration_at(r, "downtime_us.load").s,
	       duration_at(r, "downtime_us.resume").s);
	print_warm(r);
	print_work(r);
	printf("  total      %s, bulk %s/s, %s moved\n", text_duration(total_ms).s,
	       bytes_at(r, "bulk_bytes_per_s").s, bytes_at(r, "bytes_moved").s);
	printf("  pages      %s, filled by write %s, memcpy %s, copy %s, zero %s\n",
	       count_at(r, "pages_total").s, count_at(r, "fill.write").s,
	       count_at(r, "fill.memcpy").s, count_at(r, "fill.copy").s,
	       count_at(r, "fill.zero").s);
	printf("  faults     %s: %s remote, %s minor, %s coalesced\n",
	       count_at(r, "faults.total").s, count_at(r, "faults.remote").s,
	       count_at(r, "faults.minor").s, count_at(r, "faults.coalesced").s);
	print_prefetch(r);
}

static void print_latency(struct json_object *r, const char *label, const char *path)
{
	static const char *const columns[] = { "p50", "p90", "p99", "p999", "max" };
	struct json_object *o = json_find(r, path);
	uint64_t count;
	double us;

	if (!o)
		return;
	printf("  %-24s %12s", label, json_count(o, "count", &count) ? text_count(count).s : "");
	for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
		printf(" %9s", json_number(o, columns[i], &us) ? text_number(us).s : "-");
	putchar('\n');
}

static void print_latencies(struct json_object *r)
{
	printf("  %-24s %12s %9s %9s %9s %9s %9s\n", "latency in us", "count", "p50", "p90", "p99",
	       "p99.9", "max");
	print_latency(r, "remote fault", "fault_us");
	print_latency(r, "  no bulk in flight", "fault_idle_us");
	print_latency(r, "  beside bulk", "fault_bulk_us");
	print_latency(r, "stall of a vCPU", "guest_stall_us");
	print_latency(r, "access, by the guest", "vmm.guest_access_us");
	putchar('\n');
}

static void print_ratio(struct json_object *r, const char *path, const char *what)
{
	double v;

	if (json_number(r, path, &v))
		printf(": %s is %.2f of it", what, v);
	putchar('\n');
}

static void print_floors(struct json_object *r)
{
	double fault, v;

	if (!json_find(r, "floors"))
		return;
	fault = json_number_or(r, "floors.tls_pingpong_us.p50", 0) +
	        json_number_or(r, "floors.uffd_resolve_us.p50", 0);
	printf("  floor      TLS with as many connections %s/s",
	       bytes_at(r, "floors.tls_bytes_per_s").s);
	print_ratio(r, "ratios.bulk_to_tls", "bulk");
	printf("  floor      ping-pong %s + local fault %s = %s",
	       duration_at(r, "floors.tls_pingpong_us.p50").s,
	       duration_at(r, "floors.uffd_resolve_us.p50").s, text_duration(fault).s);
	print_ratio(r, "ratios.idle_fault_to_floor", "fault p50 without bulk");
	if (json_number(r, "ratios.busy_fault_p99_to_floor", &v))
		printf("  floor      the same against fault p99 beside bulk: %.2f of it\n", v);
	printf("  floor      filling memory: pwrite %s/s, memcpy %s/s\n",
	       bytes_at(r, "floors.pwrite_bytes_per_s").s,
	       bytes_at(r, "floors.memcpy_bytes_per_s").s);
}

static void print_cpu(struct json_object *r)
{
	if (!json_find(r, "cpu_s_per_gib"))
		return;
	printf("  daemons    CPU for a GiB %s source, %s destination",
	       seconds_at(r, "cpu_s_per_gib.source").s,
	       seconds_at(r, "cpu_s_per_gib.destination").s);
	if (json_find(r, "cpu_s_per_gib.floor"))
		printf(", floor of both %s", seconds_at(r, "cpu_s_per_gib.floor").s);
	putchar('\n');
}

static void print_verdict(struct json_object *r)
{
	struct error err = ERROR_INIT;

	print_cpu(r);
	printf("  daemons    peak memory %s source, %s destination\n",
	       bytes_at(r, "rss_bytes.source").s, bytes_at(r, "rss_bytes.destination").s);
	if (bench_result_good(r, &err))
		printf("  integrity  %s pages checked by the guest itself: all right\n",
		       count_at(r, "integrity.pages_checked").s);
	else
		printf("  integrity  BAD: %s, first %s\n", err.text,
		       count_at(r, "integrity.first_bad").s);
}

void bench_print(struct json_object *r, size_t runs)
{
	printf("postcopy migration of a running guest on this host\n\n");
	print_setting(r, runs);
	print_course(r);
	print_latencies(r);
	print_floors(r);
	print_verdict(r);
}

void bench_print_run(struct json_object *r, size_t n)
{
	printf("run %-4zu downtime %s total %s bulk %s/s, fault p50 %s p99 %s bad pages %s\n",
	       n + 1, text_pad(duration_at(r, "downtime_us.total"), 8).s,
	       text_pad(text_duration(json_number_or(r, "total_ms", 0) * 1000), 8).s,
	       bytes_at(r, "bulk_bytes_per_s").s, text_pad(duration_at(r, "fault_us.p50"), 7).s,
	       text_pad(duration_at(r, "fault_us.p99"), 8).s, count_at(r, "integrity.pages_bad").s);
	fflush(stdout);
}
