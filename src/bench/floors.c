/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors.h"

#include <stdio.h>
#include <stdlib.h>

#include "bench/process.h"
#include "ctl/json.h"
#include "util/clock.h"

#define BYTES_PER_GIB ((double)(1ull << 30))

static uint64_t cpu_ns(pid_t other)
{
	return process_cpu_ns(0) + (other ? process_cpu_ns(other) : 0);
}

struct floor_meter floor_meter_start(pid_t other)
{
	return (struct floor_meter){ clock_now_ns(), cpu_ns(other), other };
}

struct floor_rate floor_meter_rate(const struct floor_meter *m, uint64_t bytes)
{
	double wall_s = (double)(clock_now_ns() - m->wall_ns) / NSEC_PER_SEC;
	double cpu_s = (double)(cpu_ns(m->other) - m->cpu_ns) / NSEC_PER_SEC;

	return (struct floor_rate){ (double)bytes / wall_s, cpu_s * BYTES_PER_GIB / (double)bytes };
}

static struct json_object *quantiles(const struct histogram *ns)
{
	struct json_object *o = json_object_new_object();

	json_set_number(o, "p50", (double)histogram_quantile(ns, 500) / NSEC_PER_USEC);
	json_set_number(o, "p99", (double)histogram_quantile(ns, 990) / NSEC_PER_USEC);
	return o;
}

/* One measurement of a throughput. */
struct rate_floor {
	const char *name;
	int (*measure)(const struct rate_floor *f, struct floor_rate *ret, struct error *err);
	const char *pki_dir;
	unsigned int streams;
};

static int measure_tls(const struct rate_floor *f, struct floor_rate *ret, struct error *err)
{
	return floor_tls_throughput(f->pki_dir, f->streams, ret, err);
}

static int measure_pwrite(const struct rate_floor *f, struct floor_rate *ret, struct error *err)
{
	(void)f;
	return floor_pwrite(ret, err);
}

static int measure_memcpy(const struct rate_floor *f, struct floor_rate *ret, struct error *err)
{
	(void)f;
	return floor_memcpy(ret, err);
}

static int compare(const void *a, const void *b)
{
	double x = ((const struct floor_rate *)a)->bytes_per_s;
	double y = ((const struct floor_rate *)b)->bytes_per_s;

	return (x > y) - (x < y);
}

/* The middle one of three, so that a neighbour's burst doesn't lower the bar. */
static int add_rate(struct json_object *o, const struct rate_floor *f, struct error *err)
{
	struct floor_rate rates[3];
	char key[48];

	for (size_t i = 0; i < 3; i++) {
		int r = f->measure(f, &rates[i], err);

		if (r < 0)
			return r;
	}
	qsort(rates, 3, sizeof *rates, compare);
	snprintf(key, sizeof key, "%s_bytes_per_s", f->name);
	json_set_number(o, key, rates[1].bytes_per_s);
	snprintf(key, sizeof key, "%s_cpu_s_per_gib", f->name);
	json_set_number(o, key, rates[1].cpu_s_per_gib);
	return 0;
}

int floors_measure(const char *pki_dir, unsigned int streams, struct json_object **ret,
                   struct error *err)
{
	const struct rate_floor rates[] = {
		{ "tls", measure_tls, pki_dir, streams },
		{ "pwrite", measure_pwrite, NULL, 0 },
		{ "memcpy", measure_memcpy, NULL, 0 },
	};
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct histogram pingpong = { .count = 0 }, resolve = { .count = 0 };
	int r = floor_tls_pingpong(pki_dir, &pingpong, err);

	if (!r)
		r = floor_uffd_resolve(&resolve, err);
	for (size_t i = 0; !r && i < sizeof rates / sizeof *rates; i++)
		r = add_rate(o, &rates[i], err);
	if (r < 0)
		return r;
	json_object_object_add(o, "tls_pingpong_us", quantiles(&pingpong));
	json_object_object_add(o, "uffd_resolve_us", quantiles(&resolve));
	*ret = steal_ptr(&o);
	return 0;
}
