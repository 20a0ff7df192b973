/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/migration_json.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "ctl/json.h"

#define N_STATES 10

static const char *const states[N_STATES] = {
	"unknown",  "prepared", "attached", "warming", "switching",
	"postcopy", "paused",   "complete", "failed",  "cancelled",
};

unsigned int migration_json_state(const char *name)
{
	for (unsigned int i = 1; i < N_STATES; i++)
		if (!strcmp(states[i], name))
			return i;
	return 0;
}

static void set_null(struct json_object *o, const char *key)
{
	json_object_object_add(o, key, NULL);
}

/* 0 is how these say that they are not known. */
static void set_count_or_null(struct json_object *o, const char *key, uint64_t n)
{
	if (n)
		json_set_count(o, key, n);
	else
		set_null(o, key);
}

static struct json_object *number(double value)
{
	char text[32];

	snprintf(text, sizeof text, "%.3f", value);
	return json_object_new_double_s(value, text);
}

static struct json_object *us_of_ns(uint64_t ns)
{
	return number((double)ns / 1e3);
}

static struct json_object *ms_of_ns(uint64_t ns)
{
	return number((double)ns / 1e6);
}

/* @unit_per_s: 1e6 for microseconds. */
static void set_duration(struct json_object *o, const char *key,
                         const Google__Protobuf__Duration *d, double unit_per_s)
{
	if (d)
		json_set_number(o, key, ((double)d->seconds + (double)d->nanos / 1e9) * unit_per_s);
	else
		set_null(o, key);
}

static void set_time(struct json_object *o, const char *key, const Google__Protobuf__Timestamp *t)
{
	time_t seconds = t ? (time_t)t->seconds : 0;
	char text[64];
	struct tm tm;
	size_t len;

	if (!t || !gmtime_r(&seconds, &tm)) {
		set_null(o, key);
		return;
	}
	len = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + len, sizeof text - len, ".%03dZ", (int)(t->nanos / 1000000) % 1000);
	json_set_string(o, key, text);
}

static struct json_object *latency_json(const Postcopy__V1__Latency *l)
{
	struct json_object *o;

	if (!l)
		return NULL;
	o = json_object_new_object();
	json_set_count(o, "count", l->count);
	json_object_object_add(o, "p50", us_of_ns(l->p50_ns));
	json_object_object_add(o, "p90", us_of_ns(l->p90_ns));
	json_object_object_add(o, "p99", us_of_ns(l->p99_ns));
	json_object_object_add(o, "p999", us_of_ns(l->p999_ns));
	json_object_object_add(o, "max", us_of_ns(l->max_ns));
	return o;
}

static void add_latencies(struct json_object *o, const Postcopy__V1__DestinationStatus *d)
{
	struct json_object *phases = json_object_new_object();
	struct json_object *stall = latency_json(d->guest_stall);

	json_object_object_add(o, "fault_us", latency_json(d->fault_latency));
	json_object_object_add(o, "fault_idle_us", latency_json(d->fault_latency_idle));
	json_object_object_add(o, "fault_bulk_us", latency_json(d->fault_latency_bulk));
	for (size_t i = 0; i < d->n_fault_phases; i++)
		json_object_object_add(phases, d->fault_phases[i]->phase,
		                       latency_json(d->fault_phases[i]->latency));
	json_object_object_add(o, "fault_phases_us", phases);
	if (stall)
		json_set_string(stall, "source", d->guest_stall_source);
	json_object_object_add(o, "guest_stall_us", stall);
	json_object_object_add(o, "stall_joined_us", latency_json(d->stall_joined));
	json_object_object_add(o, "stall_phases_us", latency_json(d->stall_phases));
}

static void add_counters(struct json_object *o, const Postcopy__V1__DestinationStatus *d)
{
	static const Postcopy__V1__Fill no_fill = POSTCOPY__V1__FILL__INIT;
	static const Postcopy__V1__Faults no_faults = POSTCOPY__V1__FAULTS__INIT;
	static const Postcopy__V1__Prefetch no_prefetch = POSTCOPY__V1__PREFETCH__INIT;
	const Postcopy__V1__Fill *f = d->fill ? d->fill : &no_fill;
	const Postcopy__V1__Faults *n = d->faults ? d->faults : &no_faults;
	const Postcopy__V1__Prefetch *p = d->prefetch ? d->prefetch : &no_prefetch;
	struct json_object *fill = json_object_new_object();
	struct json_object *faults = json_object_new_object();
	struct json_object *prefetch = json_object_new_object();

	json_set_count(o, "pages_zero", f->zero);
	json_set_count(fill, "write", f->write);
	json_set_count(fill, "memcpy", f->memcpy);
	json_set_count(fill, "copy", f->copy);
	json_set_count(fill, "zero", f->zero);
	json_object_object_add(o, "fill", fill);
	json_set_count(faults, "total", n->total);
	json_set_count(faults, "remote", n->remote);
	json_set_count(faults, "minor", n->minor);
	json_set_count(faults, "coalesced", n->coalesced);
	json_object_object_add(o, "faults", faults);
	json_set_count(prefetch, "units", p->units);
	json_set_count(prefetch, "watched", p->watched);
	json_set_count(prefetch, "hit", p->hit);
	json_set_count(prefetch, "late", p->late);
	json_set_count(prefetch, "wasted", p->wasted);
	json_set_count(prefetch, "hot", p->hot);
	json_set_count(prefetch, "around", p->around);
	json_set_count(prefetch, "stride", p->stride);
	json_set_count(prefetch, "recent", p->recent);
	json_set_count(prefetch, "duplicate", p->duplicate);
	json_object_object_add(o, "prefetch", prefetch);
	json_set_count(o, "reconnects", d->reconnects);
}

static void add_downtime(struct json_object *o, const Postcopy__V1__Downtime *d)
{
	struct json_object *parts;

	if (!d) {
		set_null(o, "downtime_us");
		return;
	}
	parts = json_object_new_object();
	set_duration(parts, "total", d->total, 1e6);
	set_duration(parts, "pause", d->pause, 1e6);
	set_duration(parts, "send", d->send, 1e6);
	set_duration(parts, "load", d->load, 1e6);
	set_duration(parts, "resume", d->resume, 1e6);
	json_object_object_add(o, "downtime_us", parts);
}

/* @l may be NULL. */
static void add_limits(struct json_object *o, const Postcopy__V1__Limits *l)
{
	struct json_object *limits = json_object_new_object();

	set_null(limits, "bandwidth_bytes_per_s");
	set_null(limits, "streams");
	set_null(limits, "bulk");
	set_null(limits, "prefetch");
	set_null(limits, "weight");
	if (l && l->optional_bandwidth_case)
		json_set_count(limits, "bandwidth_bytes_per_s", l->bandwidth_bytes_per_s);
	if (l && l->optional_streams_case)
		json_set_count(limits, "streams", l->streams);
	if (l && l->optional_bulk_case)
		json_set_bool(limits, "bulk", l->bulk);
	if (l && l->optional_prefetch_case)
		json_set_bool(limits, "prefetch", l->prefetch);
	if (l && l->optional_weight_case)
		json_set_count(limits, "weight", l->weight);
	json_copy(o, "streams", limits, "streams");
	json_object_object_add(o, "limits", limits);
}

/* @w may be NULL: it was not asked for. */
static void add_warm(struct json_object *o, const Postcopy__V1__WarmStatus *w)
{
	static const Postcopy__V1__Warm no_policy = POSTCOPY__V1__WARM__INIT;
	struct json_object *warm, *policy;
	const Postcopy__V1__Warm *p;

	if (!w) {
		set_null(o, "warm");
		return;
	}
	p = w->policy ? w->policy : &no_policy;
	policy = json_object_new_object();
	json_set_count(policy, "max_rounds", p->max_rounds);
	set_duration(policy, "max_time_ms", p->max_time, 1e3);
	json_set_count(policy, "dirty_bytes", p->dirty_bytes);
	set_duration(policy, "catch_up_ms", p->catch_up, 1e3);
	warm = json_object_new_object();
	json_object_object_add(warm, "policy", policy);
	json_set_string(warm, "refused", w->refused);
	set_duration(warm, "warm_ms", w->elapsed, 1e3);
	json_set_count(warm, "rounds", w->rounds);
	json_set_count(warm, "bytes", w->bytes);
	json_set_count(warm, "dirty_bytes", w->dirty_bytes);
	json_set_count(warm, "dirty_bytes_per_s", w->dirty_bytes_per_s);
	json_set_count(warm, "bytes_per_s", w->bytes_per_s);
	set_duration(warm, "catch_up_ms", w->catch_up, 1e3);
	json_set_count(warm, "dirty_pages_at_switchover", w->pages_at_switchover);
	json_set_count(warm, "given_up_percent", w->given_up_percent);
	json_object_object_add(o, "warm", warm);
}

static const char *map_name(Postcopy__V1__MapPolicy map)
{
	switch (map) {
	case POSTCOPY__V1__MAP_POLICY__MAP_POLICY_EAGER:
		return "eager";
	case POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY:
		return "lazy";
	default:
		return "auto";
	}
}

static void add_destination(struct json_object *o, const Postcopy__V1__DestinationStatus *d)
{
	json_set_string(o, "source_address", d->source_address);
	json_set_string(o, "holder", d->holder);
	json_set_string(o, "tls", d->tls);
	json_set_string(o, "map", map_name(d->map));
	add_limits(o, d->limits);
	add_warm(o, d->warm);
	add_downtime(o, d->downtime);
	set_time(o, "resume_time", d->resume_time);
	set_duration(o, "total_ms", d->elapsed, 1e3);
	set_duration(o, "eta_ms", d->time_to_complete, 1e3);
	json_set_count(o, "bulk_bytes", d->bulk_bytes);
	if (d->optional_rate_case)
		json_set_count(o, "bulk_bytes_per_s", d->bulk_bytes_per_s);
	else
		set_null(o, "bulk_bytes_per_s");
	json_set_count(o, "pages_total", d->pages_total);
	json_set_count(o, "pages_present", d->pages_present);
	json_set_count(o, "pages_poisoned", d->pages_poisoned);
	add_counters(o, d);
	add_latencies(o, d);
}

static void add_pace(struct json_object *o, const Postcopy__V1__BulkPace *p)
{
	struct json_object *pace = p ? json_object_new_object() : NULL;

	json_object_object_add(o, "pace", pace);
	if (!p)
		return;
	if (p->bytes_per_s)
		json_set_count(pace, "bytes_per_s", p->bytes_per_s);
	else
		set_null(pace, "bytes_per_s");
	json_set_count(pace, "in_flight_bytes", p->in_flight_bytes);
	set_duration(pace, "round_trip_us", p->round_trip, 1e6);
	set_duration(pace, "queued_us", p->queued, 1e6);
}

static void add_source(struct json_object *o, const Postcopy__V1__SourceStatus *s)
{
	struct json_object *served = json_object_new_object();

	json_set_count(served, "requests", s->requests);
	json_set_count(served, "pages", s->pages);
	json_set_count(served, "zero_pages", s->zero_pages);
	json_set_count(served, "unreadable_pages", s->unreadable_pages);
	json_set_count(served, "bytes", s->bytes);
	json_set_bool(served, "connected", s->connected);
	json_object_object_add(o, "served", served);
	add_pace(o, s->pace);
	json_set_string(o, "holder", s->holder);
	json_set_string(o, "holder_name", s->holder_name);
	set_duration(o, "holder_silent_ms", s->holder_silent, 1e3);
}

static const char *role_name(Postcopy__V1__Role role)
{
	switch (role) {
	case POSTCOPY__V1__ROLE__ROLE_SOURCE:
		return "source";
	case POSTCOPY__V1__ROLE__ROLE_DESTINATION:
		return "destination";
	default:
		return "unknown";
	}
}

/* Null where none are named. */
static void add_parties(struct json_object *o, const Postcopy__V1__Parties *p)
{
	struct json_object *parties, *uids;

	if (!p) {
		set_null(o, "parties");
		return;
	}
	parties = json_object_new_object();
	uids = json_object_new_array_ext((int)p->n_uids);
	for (size_t i = 0; i < p->n_uids; i++)
		json_object_array_add(uids, json_object_new_uint64(p->uids[i]));
	json_object_object_add(parties, "uids", uids);
	set_count_or_null(parties, "pid", (uint64_t)p->pid);
	json_set_string(parties, "cgroup", p->cgroup);
	json_set_string(parties, "peer", p->peer);
	json_object_object_add(o, "parties", parties);
}

/* @b may be NULL: it has ended, or an older daemon says it. */
static void add_bandwidth(struct json_object *o, const Postcopy__V1__Bandwidth *b)
{
	struct json_object *bandwidth;

	if (!b) {
		set_null(o, "bandwidth");
		return;
	}
	bandwidth = json_object_new_object();
	json_set_count(bandwidth, "share_bytes_per_s", b->share_bytes_per_s);
	json_set_count(bandwidth, "bulk_bytes_per_s", b->bulk_bytes_per_s);
	json_set_count(bandwidth, "fault_bytes_per_s", b->fault_bytes_per_s);
	json_set_count(bandwidth, "weight", b->weight);
	json_object_object_add(o, "bandwidth", bandwidth);
}

/* Null where it waits for nothing. */
static void add_waiting(struct json_object *o, const Postcopy__V1__Waiting *w)
{
	static const char *const whats[] = { "unknown", "source",    "pause",  "vmstate",
		                             "load",    "resume",    "memory", "destination",
		                             "turn",    "switchover" };
	unsigned int what = w ? (unsigned int)w->what : 0;
	struct json_object *waiting;

	if (!w) {
		set_null(o, "waiting");
		return;
	}
	waiting = json_object_new_object();
	json_set_string(waiting, "for", whats[what < sizeof whats / sizeof *whats ? what : 0]);
	set_duration(waiting, "elapsed_ms", w->elapsed, 1e3);
	json_set_count(waiting, "tries", w->tries);
	set_duration(waiting, "next_try_ms", w->next_try, 1e3);
	set_count_or_null(waiting, "place", w->place);
	json_object_object_add(o, "waiting", waiting);
}

/* Null where it is not known. */
static void add_limited_by(struct json_object *o, Postcopy__V1__LimitedBy by)
{
	static const char *const whats[] = { NULL,         "network", "cap", "destination-cpu",
		                             "source-cpu", "faults" };
	unsigned int what = (unsigned int)by;

	if (what < sizeof whats / sizeof *whats && whats[what])
		json_set_string(o, "limited_by", whats[what]);
	else
		set_null(o, "limited_by");
}

struct json_object *migration_json(const Postcopy__V1__Migration *m)
{
	struct json_object *o = json_object_new_object();
	unsigned int state = (unsigned int)m->state;

	json_set_string(o, "id", m->id);
	json_set_string(o, "role", role_name(m->role));
	json_set_string(o, "state", states[state < N_STATES ? state : 0]);
	set_time(o, "state_time", m->state_time);
	set_time(o, "prepare_time", m->prepare_time);
	json_set_string(o, "reason", m->reason);
	set_count_or_null(o, "memory_bytes", m->memory_bytes);
	set_count_or_null(o, "page_bytes", m->page_bytes);
	json_set_string(o, "backend", m->backend);
	set_count_or_null(o, "vmm_pid", (uint64_t)m->vmm_pid);
	json_set_string(o, "peer_version", m->peer_version);
	add_parties(o, m->parties);
	add_waiting(o, m->waiting);
	add_limited_by(o, m->limited_by);
	add_bandwidth(o, m->bandwidth);
	if (m->half_case == POSTCOPY__V1__MIGRATION__HALF_DESTINATION)
		add_destination(o, m->destination);
	else if (m->half_case == POSTCOPY__V1__MIGRATION__HALF_SOURCE)
		add_source(o, m->source);
	return o;
}

/* Reports. */

static struct json_object *pair(struct json_object *a, struct json_object *b)
{
	struct json_object *array = json_object_new_array_ext(2);

	json_object_array_add(array, a);
	json_object_array_add(array, b);
	return array;
}

static struct json_object *timeline_json(const Postcopy__V1__Report *r)
{
	struct json_object *array = json_object_new_array_ext((int)r->n_timeline);

	for (size_t i = 0; i < r->n_timeline; i++)
		json_object_array_add(array,
		                      pair(ms_of_ns(r->timeline[i]->at_ns),
		                           json_object_new_uint64(r->timeline[i]->pages_present)));
	return array;
}

static bool is_kernel_phase(const char *name)
{
	return !strcmp(name, "entry") || !strcmp(name, "wakeup");
}

/*
 * What may be said of a fault: the phases of all, in the daemon's order, and then those which the
 * kernel saw ("entry", "wakeup") where it was asked.
 */
static struct json_object *phases_json(const Postcopy__V1__Report *r)
{
	const Postcopy__V1__Migration *m = r->migration;
	struct json_object *array = json_object_new_array_ext((int)r->n_phases);

	for (size_t i = 0; i < r->n_phases; i++)
		json_object_array_add(array, json_object_new_string(r->phases[i]));
	if (!m || m->half_case != POSTCOPY__V1__MIGRATION__HALF_DESTINATION)
		return array;
	for (size_t i = 0; i < m->destination->n_fault_phases; i++)
		if (is_kernel_phase(m->destination->fault_phases[i]->phase))
			json_object_array_add(
			        array,
			        json_object_new_string(m->destination->fault_phases[i]->phase));
	return array;
}

/* Its index in the report's phases; -1 where it is not known. */
static int dominant_phase(const Postcopy__V1__Report *r, const Postcopy__V1__FaultDot *f)
{
	for (size_t i = 0; i < r->n_phases; i++)
		if (!strcmp(r->phases[i], f->dominant_phase))
			return (int)i;
	return -1;
}

static struct json_object *dots_json(const Postcopy__V1__Report *r)
{
	struct json_object *array = json_object_new_array_ext((int)r->n_faults);

	for (size_t i = 0; i < r->n_faults; i++) {
		const Postcopy__V1__FaultDot *f = r->faults[i];
		struct json_object *dot = pair(ms_of_ns(f->at_ns), us_of_ns(f->latency_ns));

		json_object_array_add(dot, json_object_new_int(dominant_phase(r, f)));
		json_object_array_add(array, dot);
	}
	return array;
}

/* A fault's nanoseconds in the phase of that name; NULL where they are not known. */
static struct json_object *phase_us(const Postcopy__V1__Report *r, const Postcopy__V1__FaultDot *f,
                                    const char *name)
{
	for (size_t i = 0; i < r->n_phases && i < f->n_phase_ns; i++)
		if (!strcmp(r->phases[i], name))
			return us_of_ns(f->phase_ns[i]);
	if (!f->stall || !is_kernel_phase(name))
		return NULL;
	return us_of_ns(strcmp(name, "entry") ? f->stall->wakeup_ns : f->stall->entry_ns);
}

static struct json_object *slow_fault_json(const Postcopy__V1__Report *r,
                                           const Postcopy__V1__FaultDot *f,
                                           struct json_object *phases)
{
	struct json_object *o = json_object_new_object(), *us = json_object_new_array();

	json_object_object_add(o, "at_ms", ms_of_ns(f->at_ns));
	json_object_object_add(o, "us", us_of_ns(f->latency_ns));
	json_object_object_add(o, "stall_us", f->stall ? us_of_ns(f->stall->total_ns) : NULL);
	json_set_count(o, "address", f->address);
	set_count_or_null(o, "tid", (uint64_t)f->tid);
	json_set_string(o, "phase", f->dominant_phase);
	json_set_bool(o, "during_bulk", f->during_bulk);
	json_set_bool(o, "minor", f->minor);
	for (size_t i = 0; i < json_object_array_length(phases); i++)
		json_object_array_add(
		        us, phase_us(r, f,
		                     json_object_get_string(json_object_array_get_idx(phases, i))));
	json_object_object_add(o, "phases_us", us);
	return o;
}

static struct json_object *slow_faults_json(const Postcopy__V1__Report *r,
                                            struct json_object *phases)
{
	struct json_object *array = json_object_new_array_ext((int)r->n_slow_faults);

	for (size_t i = 0; i < r->n_slow_faults; i++)
		json_object_array_add(array, slow_fault_json(r, r->slow_faults[i], phases));
	return array;
}

static struct json_object *histogram_json(Postcopy__V1__HistogramBucket *const *buckets, size_t n)
{
	struct json_object *array = json_object_new_array_ext((int)n);

	for (size_t i = 0; i < n; i++)
		json_object_array_add(array, pair(us_of_ns(buckets[i]->upper_ns),
		                                  json_object_new_uint64(buckets[i]->count)));
	return array;
}

static struct json_object *arrival_json(const Postcopy__V1__Report *r)
{
	struct json_object *array = json_object_new_array_ext((int)r->n_arrival);

	for (size_t i = 0; i < r->n_arrival; i++) {
		const Postcopy__V1__ArrivalCell *a = r->arrival[i];
		struct json_object *cell =
		        pair(json_object_new_uint64(a->pages), ms_of_ns(a->mean_ns));

		json_object_array_add(cell, json_object_new_uint64(a->fault_pages));
		json_object_array_add(array, cell);
	}
	return array;
}

struct json_object *report_json(const Postcopy__V1__Report *r)
{
	struct json_object *o =
	        r->migration ? migration_json(r->migration) : json_object_new_object();
	struct json_object *phases = phases_json(r);

	json_object_object_add(o, "phases", phases);
	json_object_object_add(o, "timeline", timeline_json(r));
	json_object_object_add(o, "fault_dots", dots_json(r));
	set_count_or_null(o, "fault_dots_every", r->faults_every);
	json_object_object_add(o, "fault_histogram",
	                       histogram_json(r->fault_histogram, r->n_fault_histogram));
	json_object_object_add(o, "stall_histogram",
	                       histogram_json(r->stall_histogram, r->n_stall_histogram));
	json_object_object_add(o, "slow_faults", slow_faults_json(r, phases));
	json_object_object_add(o, "arrival", arrival_json(r));
	return o;
}

/* The others. */

struct json_object *missing_range_json(const Postcopy__V1__MissingRange *range)
{
	struct json_object *o = json_object_new_object();

	json_set_count(o, "region", range->region);
	json_set_count(o, "guest_phys_addr", range->guest_phys_addr);
	json_set_count(o, "size_bytes", range->size_bytes);
	return o;
}

/* As `check` has it of this host. */
static struct json_object *backend_json(const Postcopy__V1__BackendCapability *b)
{
	struct json_object *o = json_object_new_object();

	json_set_bool(o, "source", b->source);
	json_set_bool(o, "destination", b->destination);
	json_set_count(o, "page_bytes", b->page_bytes);
	json_set_string(o, "mode", b->mode);
	json_set_string(o, "write", b->write);
	json_set_string(o, "resolve", b->resolve);
	return o;
}

struct json_object *check_response_json(const Postcopy__V1__CheckResponse *check)
{
	struct json_object *o = json_object_new_object();
	struct json_object *rows = json_object_new_array_ext((int)check->n_capabilities);
	struct json_object *backends = json_object_new_object();

	for (size_t i = 0; i < check->n_capabilities; i++) {
		struct json_object *row = json_object_new_object();

		json_set_string(row, "name", check->capabilities[i]->name);
		json_set_bool(row, "ok", check->capabilities[i]->available);
		json_set_string(row, "detail", check->capabilities[i]->detail);
		json_object_array_add(rows, row);
	}
	for (size_t i = 0; i < check->n_backends; i++)
		json_object_object_add(backends, check->backends[i]->name,
		                       backend_json(check->backends[i]));
	json_set_string(o, "kernel", check->kernel);
	json_set_bool(o, "destination", check->can_migrate);
	json_object_object_add(o, "checks", rows);
	json_object_object_add(o, "backends", backends);
	return o;
}

static struct json_object *reload_json(const Postcopy__V1__Reload *reload)
{
	struct json_object *o = json_object_new_object();

	set_time(o, "time", reload->time);
	json_set_string(o, "error", reload->error);
	return o;
}

static struct json_object *bandwidth_json(const Postcopy__V1__HostBandwidth *b)
{
	struct json_object *o = json_object_new_object();

	json_set_count(o, "limit_bytes_per_s", b->limit_bytes_per_s);
	json_set_count(o, "bulk_bytes_per_s", b->bulk_bytes_per_s);
	json_set_count(o, "fault_bytes_per_s", b->fault_bytes_per_s);
	return o;
}

struct json_object *budget_json(const Postcopy__V1__Budget *b)
{
	struct json_object *o = json_object_new_object();
	struct json_object *pools = json_object_new_array();

	json_set_bool(o, "memory_check", b->memory_check);
	json_set_count(o, "memory_available_bytes", b->memory_available_bytes);
	json_set_count(o, "memory_promised_bytes", b->memory_promised_bytes);
	json_object_object_add(o, "huge_pages", pools);
	for (size_t i = 0; i < b->n_huge_pages; i++) {
		struct json_object *pool = json_object_new_object();

		json_set_count(pool, "page_bytes", b->huge_pages[i]->page_bytes);
		json_set_count(pool, "free_bytes", b->huge_pages[i]->free_bytes);
		json_set_count(pool, "promised_bytes", b->huge_pages[i]->promised_bytes);
		json_object_array_add(pools, pool);
	}
	json_set_count(o, "incoming", b->incoming);
	json_set_count(o, "max_incoming", b->max_incoming);
	json_set_count(o, "queued", b->queued);
	json_set_count(o, "held", b->held);
	json_set_count(o, "outgoing", b->outgoing);
	json_set_count(o, "max_outgoing", b->max_outgoing);
	json_set_count(o, "descriptors", b->descriptors);
	json_set_count(o, "max_descriptors", b->max_descriptors);
	if (b->bandwidth_in)
		json_object_object_add(o, "bandwidth_in", bandwidth_json(b->bandwidth_in));
	if (b->bandwidth_out)
		json_object_object_add(o, "bandwidth_out", bandwidth_json(b->bandwidth_out));
	return o;
}

static struct json_object *protocols_json(const Postcopy__V1__Protocols *p)
{
	struct json_object *o = json_object_new_object();

	json_set_count(o, "page_stream", p->page_stream);
	json_set_count(o, "record", p->record);
	json_set_count(o, "vmm", p->vmm);
	return o;
}

static struct json_object *strings_json(char *const *strings, size_t n)
{
	struct json_object *list = json_object_new_array_ext((int)n);

	for (size_t i = 0; i < n; i++)
		json_object_array_add(list, json_object_new_string(strings[i]));
	return list;
}

struct json_object *host_info_json(const Postcopy__V1__HostInfo *info)
{
	struct json_object *o = json_object_new_object();

	json_set_string(o, "version", info->version);
	json_set_string(o, "kernel", info->kernel);
	json_set_string(o, "hostname", info->hostname);
	json_set_count(o, "cpus", info->cpus);
	json_set_string(o, "pages_address", info->pages_address);
	set_time(o, "start_time", info->start_time);
	json_set_bool(o, "draining", info->draining);
	json_set_count(o, "migrations_active", info->migrations_active);
	json_set_count(o, "records_left", info->records_left);
	set_time(o, "certificate_expiry", info->certificate_expiry);
	if (*info->config_error)
		json_set_string(o, "config_error", info->config_error);
	if (info->last_reload)
		json_object_object_add(o, "last_reload", reload_json(info->last_reload));
	json_object_object_add(o, "needs_restart",
	                       strings_json(info->needs_restart, info->n_needs_restart));
	json_object_object_add(o, "pages_addresses",
	                       strings_json(info->pages_addresses, info->n_pages_addresses));
	json_object_object_add(o, "control_addresses",
	                       strings_json(info->control_addresses, info->n_control_addresses));
	if (info->budget)
		json_object_object_add(o, "budget", budget_json(info->budget));
	if (info->protocols)
		json_object_object_add(o, "protocols", protocols_json(info->protocols));
	return o;
}
