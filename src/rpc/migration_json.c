/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/migration_json.h"

#include <stdlib.h>

#include "util/clock.h"

static void put_int(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static void put_string(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

/* Nanoseconds as microseconds with their fraction. */
static struct json_object *us(uint64_t ns)
{
	return json_object_new_double((double)(ns / 100) / 10);
}

static struct json_object *ms(uint64_t ns)
{
	return json_object_new_double((double)(ns / NSEC_PER_USEC) / 1000);
}

static struct json_object *histogram_json(const struct histogram *h)
{
	static const struct {
		const char *name;
		unsigned int permille;
	} quantiles[] = { { "p50", 500 }, { "p90", 900 }, { "p99", 990 }, { "p999", 999 } };
	struct json_object *o = json_object_new_object();

	put_int(o, "count", atomic_load(&h->count));
	for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++)
		json_object_object_add(o, quantiles[i].name,
		                       us(histogram_quantile(h, quantiles[i].permille)));
	json_object_object_add(o, "max", us(atomic_load(&h->max)));
	return o;
}

static void put_downtime(struct json_object *o, const struct migration_downtime *d)
{
	struct json_object *parts;

	if (!d->known) {
		json_object_object_add(o, "downtime_us", NULL);
		return;
	}
	parts = json_object_new_object();
	json_object_object_add(parts, "total", us(d->total_ns));
	json_object_object_add(parts, "pause", us(d->pause_ns));
	json_object_object_add(parts, "send", us(d->send_ns));
	json_object_object_add(parts, "load", us(d->load_ns));
	json_object_object_add(parts, "resume", us(d->resume_ns));
	json_object_object_add(o, "downtime_us", parts);
}

static void put_bulk(struct json_object *o, const struct migration_info *info)
{
	uint64_t bytes = info->pull ? stat_get(&info->pull->bulk_bytes) : 0;
	uint64_t end_ns = info->ended_ns ? info->ended_ns : clock_now_ns();
	uint64_t first_ns = info->pull ? stat_get(&info->pull->bulk_first_ns) : 0;
	uint64_t last_ns = info->pull ? stat_get(&info->pull->bulk_last_ns) : 0;
	uint64_t ns = last_ns > first_ns ? last_ns - first_ns : 0;

	put_int(o, "bulk_bytes", bytes);
	json_object_object_add(
	        o, "bulk_bytes_per_s",
	        ns ? json_object_new_int64((int64_t)((double)bytes * 1e9 / (double)ns)) : NULL);
	json_object_object_add(o, "total_ms",
	                       info->started_ns ? ms(end_ns - info->started_ns) : NULL);
	put_int(o, "pages_total", info->pages_total);
	put_int(o, "pages_present", info->pages_present);
}

static void put_counters(struct json_object *o, const struct pull_stats *s)
{
	struct json_object *fill = json_object_new_object();
	struct json_object *faults = json_object_new_object();
	struct json_object *prefetch = json_object_new_object();

	put_int(o, "pages_zero", stat_get(&s->fill_zero));
	put_int(fill, "write", stat_get(&s->fill_write));
	put_int(fill, "memcpy", stat_get(&s->fill_memcpy));
	put_int(fill, "copy", stat_get(&s->fill_copy));
	put_int(fill, "zero", stat_get(&s->fill_zero));
	json_object_object_add(o, "fill", fill);
	put_int(faults, "total", stat_get(&s->faults));
	put_int(faults, "remote", stat_get(&s->faults_remote));
	put_int(faults, "minor", stat_get(&s->faults_minor));
	put_int(faults, "coalesced", stat_get(&s->faults_coalesced));
	json_object_object_add(o, "faults", faults);
	put_int(prefetch, "hit", stat_get(&s->prefetch_hit));
	put_int(prefetch, "late", stat_get(&s->prefetch_late));
	put_int(prefetch, "wasted", stat_get(&s->prefetch_wasted));
	json_object_object_add(o, "prefetch", prefetch);
	put_int(o, "reconnects", stat_get(&s->reconnects));
}

/* Both kinds of fault together. The caller frees it. */
static struct histogram *all_faults(const struct pull_stats *s)
{
	struct histogram *all = calloc(1, sizeof *all);

	if (all) {
		histogram_merge(all, &s->fault_idle_ns);
		histogram_merge(all, &s->fault_bulk_ns);
	}
	return all;
}

static struct json_object *phases_json(const struct pull_stats *s)
{
	struct json_object *o = json_object_new_object();

	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		json_object_object_add(o, fault_phase_name(i),
		                       histogram_json(&s->fault_phase_ns[i]));
	return o;
}

static void put_latencies(struct json_object *o, const struct pull_stats *s)
{
	struct histogram *all = all_faults(s);
	struct json_object *stall;

	if (!all)
		return;
	json_object_object_add(o, "fault_us", histogram_json(all));
	json_object_object_add(o, "fault_idle_us", histogram_json(&s->fault_idle_ns));
	json_object_object_add(o, "fault_bulk_us", histogram_json(&s->fault_bulk_ns));
	json_object_object_add(o, "fault_minor_us", histogram_json(&s->fault_minor_ns));
	json_object_object_add(o, "fault_phases_us", phases_json(s));
	put_int(o, "faults_slow", stat_get(&s->faults_slow));
	stall = histogram_json(all);
	put_string(stall, "source", "daemon");
	json_object_object_add(o, "guest_stall_us", stall);
	free(all);
}

static void put_destination(struct json_object *o, const struct migration_info *info)
{
	put_int(o, "streams", info->limits.streams);
	put_int(o, "bandwidth_bytes_per_s", info->limits.bandwidth_bytes_per_s);
	put_string(o, "tls", info->tls);
	put_string(o, "map", info->map_eager ? "eager" : "lazy");
	put_downtime(o, &info->downtime);
	put_bulk(o, info);
	if (info->pull) {
		put_counters(o, info->pull);
		put_latencies(o, info->pull);
	}
}

static void put_source(struct json_object *o, const struct migration_info *info)
{
	struct json_object *served = json_object_new_object();

	put_int(served, "requests", info->served.requests);
	put_int(served, "pages", info->served.pages);
	put_int(served, "zero_pages", info->served.zero_pages);
	put_int(served, "bytes", info->served.bytes);
	json_object_object_add(o, "served", served);
}

struct json_object *migration_json(struct migration *m)
{
	struct json_object *o = json_object_new_object();
	struct migration_info info;

	migration_get_info(m, &info);
	put_string(o, "id", info.id);
	put_string(o, "role", migration_role_name(info.role));
	put_string(o, "state", migration_state_name(info.state));
	put_string(o, "reason", info.reason);
	put_int(o, "memory_bytes", info.memory_bytes);
	put_int(o, "page_bytes", info.page_bytes);
	put_string(o, "backend", info.backend);
	if (info.role == MIGRATION_SOURCE)
		put_source(o, &info);
	else
		put_destination(o, &info);
	return o;
}

static struct json_object *add_pair(struct json_object *array, struct json_object *a,
                                    struct json_object *b)
{
	struct json_object *pair = json_object_new_array_ext(3);

	json_object_array_add(pair, a);
	json_object_array_add(pair, b);
	json_object_array_add(array, pair);
	return pair;
}

static void put_timeline(struct json_object *o, struct migration *m, uint64_t origin_ns)
{
	struct migration_point *points = calloc(MIGRATION_TIMELINE_MAX, sizeof *points);
	struct json_object *array = json_object_new_array();
	size_t n = points ? migration_get_timeline(m, points) : 0;

	for (size_t i = 0; i < n; i++)
		if (points[i].at_ns >= origin_ns)
			add_pair(array, ms(points[i].at_ns - origin_ns),
			         json_object_new_int64((int64_t)points[i].present));
	free(points);
	json_object_object_add(o, "timeline", array);
}

/* @s may be NULL: nothing has happened yet. */
static void put_dots(struct json_object *o, const struct pull_stats *s, uint64_t origin_ns)
{
	struct json_object *array = json_object_new_array();
	uint64_t n = s ? atomic_load(&s->records.n) : 0;

	for (uint64_t i = s ? fault_ring_first(&s->records) : 0; i < n; i++) {
		struct fault_durations d;
		struct fault_record r;
		struct json_object *dot;
		enum fault_phase longest;

		if (!fault_ring_get(&s->records, i, &r) || (r.flags & FAULT_MINOR) ||
		    r.mapped_ns < origin_ns)
			continue;
		longest = fault_record_durations(&r, &d);
		dot = add_pair(array, ms(r.mapped_ns - origin_ns), us(d.total_ns));
		json_object_array_add(dot, json_object_new_int((int)longest));
	}
	json_object_object_add(o, "fault_dots", array);
}

static void put_histogram(struct json_object *o, const struct pull_stats *s)
{
	struct json_object *array = json_object_new_array();
	struct histogram *all = s ? all_faults(s) : NULL;

	for (unsigned int i = 0; all && i < HISTOGRAM_BUCKETS; i++) {
		uint64_t count = atomic_load(&all->buckets[i]);

		if (count)
			add_pair(array, us(histogram_bucket_upper(i)),
			         json_object_new_int64((int64_t)count));
	}
	free(all);
	json_object_object_add(o, "fault_histogram", array);
}

static void put_phase_names(struct json_object *o)
{
	struct json_object *array = json_object_new_array();

	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		json_object_array_add(array, json_object_new_string(fault_phase_name(i)));
	json_object_object_add(o, "phases", array);
}

static struct json_object *slow_json(const struct fault_record *r, uint64_t origin_ns)
{
	struct json_object *o = json_object_new_object(), *phases = json_object_new_array();
	struct fault_durations d;

	fault_record_durations(r, &d);
	json_object_object_add(o, "at_ms",
	                       ms(r->mapped_ns > origin_ns ? r->mapped_ns - origin_ns : 0));
	json_object_object_add(o, "us", us(d.total_ns));
	put_int(o, "address", r->addr);
	put_int(o, "tid", r->tid);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		json_object_array_add(phases, us(d.ns[i]));
	json_object_object_add(o, "phases_us", phases);
	return o;
}

static void put_slow(struct json_object *o, const struct pull_stats *s, uint64_t origin_ns)
{
	struct json_object *array = json_object_new_array();
	struct fault_record slow[FAULT_SLOW_MAX];
	size_t n = s ? fault_slow_get(&s->slow, slow) : 0;

	for (size_t i = 0; i < n; i++)
		json_object_array_add(array, slow_json(&slow[i], origin_ns));
	json_object_object_add(o, "slow_faults", array);
}

static void put_arrival(struct json_object *o, struct migration *m)
{
	struct migration_arrival_cell *cells = calloc(ARRIVAL_CELLS_MAX, sizeof *cells);
	struct json_object *array = json_object_new_array();
	uint64_t units_per_cell;
	size_t n = cells ? migration_get_arrival(m, cells, &units_per_cell) : 0;

	for (size_t i = 0; i < n; i++) {
		const struct migration_arrival_cell *c = &cells[i];
		uint64_t bytes = c->bytes_by_fault + c->bytes_by_bulk;
		struct json_object *cell =
		        add_pair(array, json_object_new_int64((int64_t)(bytes / UNIT_BYTES)),
		                 ms(c->mean_us * NSEC_PER_USEC));

		json_object_array_add(
		        cell, json_object_new_int64((int64_t)(c->bytes_by_fault / UNIT_BYTES)));
	}
	free(cells);
	json_object_object_add(o, "arrival", array);
}

struct json_object *migration_report_json(struct migration *m)
{
	struct json_object *o = migration_json(m);
	struct migration_info info;

	migration_get_info(m, &info);
	put_timeline(o, m, info.resumed_ns);
	put_dots(o, info.pull, info.resumed_ns);
	put_histogram(o, info.pull);
	put_phase_names(o);
	put_slow(o, info.pull, info.resumed_ns);
	put_arrival(o, m);
	return o;
}
