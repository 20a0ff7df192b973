/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/migration_message.h"

#include <stdio.h>
#include <string.h>

#include "telemetry/stalls.h"
#include "util/clock.h"
#include "util/utf8.h"

/* The present rate is that of so long. */
#define RATE_WINDOW_NS NSEC_PER_SEC

#define STATE(name) POSTCOPY__V1__STATE__STATE_##name

static const Postcopy__V1__State states[MIGRATION_STATES] = {
	[MIGRATION_PREPARED] = STATE(PREPARED),   [MIGRATION_ATTACHED] = STATE(ATTACHED),
	[MIGRATION_WARMING] = STATE(WARMING),     [MIGRATION_SWITCHING] = STATE(SWITCHING),
	[MIGRATION_POSTCOPY] = STATE(POSTCOPY),   [MIGRATION_PAUSED] = STATE(PAUSED),
	[MIGRATION_COMPLETE] = STATE(COMPLETE),   [MIGRATION_FAILED] = STATE(FAILED),
	[MIGRATION_CANCELLED] = STATE(CANCELLED),
};

Postcopy__V1__State state_message(enum migration_state state)
{
	return states[state];
}

Google__Protobuf__Timestamp timestamp_message(uint64_t real_ns)
{
	Google__Protobuf__Timestamp t = GOOGLE__PROTOBUF__TIMESTAMP__INIT;

	t.seconds = (int64_t)(real_ns / NSEC_PER_SEC);
	t.nanos = (int32_t)(real_ns % NSEC_PER_SEC);
	return t;
}

Google__Protobuf__Duration duration_message(uint64_t ns)
{
	Google__Protobuf__Duration d = GOOGLE__PROTOBUF__DURATION__INIT;

	d.seconds = (int64_t)(ns / NSEC_PER_SEC);
	d.nanos = (int32_t)(ns % NSEC_PER_SEC);
	return d;
}

void all_faults(const struct pull_stats *s, struct histogram *ret)
{
	memset(ret, 0, sizeof *ret);
	histogram_merge(ret, &s->fault_idle_ns);
	histogram_merge(ret, &s->fault_bulk_ns);
}

static Postcopy__V1__Latency latency_message(const struct histogram *h)
{
	static const unsigned int shares[] = { 500, 900, 990, 999 };
	Postcopy__V1__Latency l = POSTCOPY__V1__LATENCY__INIT;
	uint64_t ns[4];

	histogram_quantiles(h, shares, 4, ns);
	l.count = atomic_load(&h->count);
	l.p50_ns = ns[0];
	l.p90_ns = ns[1];
	l.p99_ns = ns[2];
	l.p999_ns = ns[3];
	l.max_ns = atomic_load(&h->max);
	return l;
}

static void set_downtime(struct migration_message *t, const struct migration_downtime *d)
{
	t->downtime = (Postcopy__V1__Downtime)POSTCOPY__V1__DOWNTIME__INIT;
	t->downtime_total = duration_message(d->total_ns);
	t->pause = duration_message(d->pause_ns);
	t->send = duration_message(d->send_ns);
	t->load = duration_message(d->load_ns);
	t->resume = duration_message(d->resume_ns);
	t->downtime.total = &t->downtime_total;
	t->downtime.pause = &t->pause;
	t->downtime.send = &t->send;
	t->downtime.load = &t->load;
	t->downtime.resume = &t->resume;
	t->destination.downtime = &t->downtime;
}

/*
 * Nanoseconds until every page is here, as it went in the last second; 0: not known. The
 * timeline's first points are the mean since the guest resumed.
 */
static uint64_t time_to_complete(struct migration *m, const struct migration_info *info)
{
	struct migration_point points[MIGRATION_TIMELINE_MAX];
	size_t n = migration_get_timeline(m, points);
	uint64_t now_ns = clock_now_ns(), arrived;

	while (n > 1 && points[n - 1].at_ns + RATE_WINDOW_NS > now_ns)
		n--;
	if (!n || points[n - 1].at_ns >= now_ns || info->pages_present <= points[n - 1].present)
		return 0;
	arrived = info->pages_present - points[n - 1].present;
	return (uint64_t)((double)(now_ns - points[n - 1].at_ns) *
	                  (double)(info->pages_total - info->pages_present) / (double)arrived);
}

static void set_times(struct migration_message *t, struct migration *m,
                      const struct migration_info *info)
{
	uint64_t end_ns = info->ended_ns ? info->ended_ns : clock_now_ns(), left_ns;

	if (info->started_ns) {
		t->elapsed = duration_message(end_ns - info->started_ns);
		t->destination.elapsed = &t->elapsed;
	}
	if (info->resumed_real_ns) {
		t->resume_time = timestamp_message(info->resumed_real_ns);
		t->destination.resume_time = &t->resume_time;
	}
	if (info->state != MIGRATION_POSTCOPY)
		return;
	left_ns = time_to_complete(m, info);
	if (left_ns) {
		t->time_to_complete = duration_message(left_ns);
		t->destination.time_to_complete = &t->time_to_complete;
	}
}

static void set_limits(struct migration_message *t, const struct migration_limits *from)
{
	Postcopy__V1__Limits *l = &t->limits;

	*l = (Postcopy__V1__Limits)POSTCOPY__V1__LIMITS__INIT;
	l->optional_bandwidth_case = POSTCOPY__V1__LIMITS__OPTIONAL_BANDWIDTH_BANDWIDTH_BYTES_PER_S;
	l->bandwidth_bytes_per_s = from->bandwidth_bytes_per_s;
	l->optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
	l->streams = from->streams;
	l->optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	l->bulk = from->bulk;
	l->optional_prefetch_case = POSTCOPY__V1__LIMITS__OPTIONAL_PREFETCH_PREFETCH;
	l->prefetch = from->prefetch;
	l->optional_weight_case = POSTCOPY__V1__LIMITS__OPTIONAL_WEIGHT_WEIGHT;
	l->weight = from->weight;
	t->destination.limits = l;
}

static void set_warm_policy(struct migration_message *t, const struct migration_warm *from)
{
	Postcopy__V1__Warm *w = &t->warm_policy;

	*w = (Postcopy__V1__Warm)POSTCOPY__V1__WARM__INIT;
	w->max_rounds = from->max_rounds;
	w->dirty_bytes = from->dirty_bytes;
	t->max_time = duration_message(from->max_ns);
	w->max_time = from->max_ns ? &t->max_time : NULL;
	t->policy_catch_up = duration_message(from->catch_up_ns);
	w->catch_up = from->catch_up_ns ? &t->policy_catch_up : NULL;
	t->warm.policy = w;
}

static void set_warm(struct migration_message *t, const struct migration_info *info)
{
	const struct migration_warm_info *from = &info->warmed;
	uint64_t end_ns = from->ended_ns ? from->ended_ns : clock_now_ns();
	Postcopy__V1__WarmStatus *w = &t->warm;

	*w = (Postcopy__V1__WarmStatus)POSTCOPY__V1__WARM_STATUS__INIT;
	set_warm_policy(t, &info->warm);
	snprintf(t->warm_refused, sizeof t->warm_refused, "%s", from->refused);
	utf8_clean(t->warm_refused);
	w->refused = t->warm_refused;
	t->warm_elapsed = duration_message(from->began_ns ? end_ns - from->began_ns : 0);
	w->elapsed = from->began_ns ? &t->warm_elapsed : NULL;
	w->rounds = from->rounds;
	w->bytes = from->bytes;
	w->dirty_bytes = from->dirty_bytes;
	w->dirty_bytes_per_s = from->dirty_bytes_per_s;
	w->bytes_per_s = from->bytes_per_s;
	t->catch_up = duration_message(from->catch_up_ns);
	w->catch_up = from->bytes_per_s ? &t->catch_up : NULL;
	w->pages_at_switchover = from->switched_dirty_units;
	w->given_up_percent = from->given_up_percent;
	t->destination.warm = w;
}

static void set_counters(struct migration_message *t, const struct pull_stats *s)
{
	Postcopy__V1__DestinationStatus *d = &t->destination;

	t->fill = (Postcopy__V1__Fill)POSTCOPY__V1__FILL__INIT;
	t->fill.write = stat_get(&s->fill_write);
	t->fill.memcpy = stat_get(&s->fill_memcpy);
	t->fill.copy = stat_get(&s->fill_copy);
	t->fill.zero = stat_get(&s->fill_zero);
	d->fill = &t->fill;
	t->faults = (Postcopy__V1__Faults)POSTCOPY__V1__FAULTS__INIT;
	t->faults.total = stat_get(&s->faults);
	t->faults.remote = stat_get(&s->faults_remote);
	t->faults.minor = stat_get(&s->faults_minor);
	t->faults.coalesced = stat_get(&s->faults_coalesced);
	d->faults = &t->faults;
	t->prefetch = (Postcopy__V1__Prefetch)POSTCOPY__V1__PREFETCH__INIT;
	t->prefetch.hit = stat_get(&s->prefetch_hit);
	t->prefetch.late = stat_get(&s->prefetch_late);
	t->prefetch.wasted = stats_wasted(s);
	t->prefetch.units = stats_guessed(s);
	t->prefetch.watched = stat_get(&s->prefetch_watched);
	t->prefetch.hot = stat_get(&s->bulk_by[SCHEDULER_HOT]);
	t->prefetch.around = stat_get(&s->bulk_by[SCHEDULER_AROUND]);
	t->prefetch.stride = stat_get(&s->bulk_by[SCHEDULER_STRIDE]);
	t->prefetch.recent = stat_get(&s->bulk_by[SCHEDULER_RECENT]);
	t->prefetch.duplicate = stat_get(&s->bulk_twice);
	d->prefetch = &t->prefetch;
	d->reconnects = stat_get(&s->reconnects);
}

static void set_bulk(struct migration_message *t, const struct pull_stats *s)
{
	Postcopy__V1__DestinationStatus *d = &t->destination;
	uint64_t first_ns = stat_get(&s->bulk_first_ns), last_ns = stat_get(&s->bulk_last_ns);

	d->bulk_bytes = stat_get(&s->bulk_bytes);
	if (last_ns <= first_ns)
		return;
	d->optional_rate_case = POSTCOPY__V1__DESTINATION_STATUS__OPTIONAL_RATE_BULK_BYTES_PER_S;
	d->bulk_bytes_per_s = (uint64_t)((double)d->bulk_bytes * (double)NSEC_PER_SEC /
	                                 (double)(last_ns - first_ns));
}

static void add_phase(struct migration_message *t, const char *name, const struct histogram *h)
{
	size_t i = t->destination.n_fault_phases++;

	t->phase_latencies[i] = latency_message(h);
	t->phases[i] = (Postcopy__V1__PhaseLatency)POSTCOPY__V1__PHASE_LATENCY__INIT;
	t->phases[i].phase = (char *)name;
	t->phases[i].latency = &t->phase_latencies[i];
	t->phase_pointers[i] = &t->phases[i];
	t->destination.fault_phases = t->phase_pointers;
}

static void set_phases(struct migration_message *t, const struct pull_stats *s,
                       const struct stall_info *stall)
{
	if (stall)
		add_phase(t, "entry", &stall->entry_ns);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		add_phase(t, fault_phase_name((enum fault_phase)i), &s->fault_phase_ns[i]);
	if (stall)
		add_phase(t, "wakeup", &stall->wakeup_ns);
}

static void set_latencies(struct migration_message *t, const struct pull_stats *s)
{
	struct histogram all;

	all_faults(s, &all);
	t->fault = latency_message(&all);
	t->fault_idle = latency_message(&s->fault_idle_ns);
	t->fault_bulk = latency_message(&s->fault_bulk_ns);
	t->destination.fault_latency = &t->fault;
	t->destination.fault_latency_idle = &t->fault_idle;
	t->destination.fault_latency_bulk = &t->fault_bulk;
}

static void set_stall(struct migration_message *t, const struct stalls *stalls,
                      const struct stall_info *stall)
{
	/* What the daemon itself can know: a vCPU stood still for as long as its fault took. */
	t->stall = stall ? latency_message(&stall->stall_ns) : t->fault;
	t->destination.guest_stall = &t->stall;
	t->destination.guest_stall_source = (char *)(stall ? stalls_source(stalls) : "daemon");
	if (!stall)
		return;
	t->stall_joined = latency_message(&stall->joined_ns);
	t->stall_phases = latency_message(&stall->phases_ns);
	t->destination.stall_joined = &t->stall_joined;
	t->destination.stall_phases = &t->stall_phases;
}

static void set_source_address(struct migration_message *t, const struct conn_target *source)
{
	if (strchr(source->host, ':'))
		snprintf(t->source_address, sizeof t->source_address, "[%s]:%s", source->host,
		         source->port);
	else
		snprintf(t->source_address, sizeof t->source_address, "%s:%s", source->host,
		         source->port);
	t->destination.source_address = t->source_address;
}

static void set_destination(struct migration_message *t, struct migration *m,
                            const struct migration_info *info, const struct stalls *stalls)
{
	const struct stall_info *stall = stalls ? stalls_find(stalls, info->seq) : NULL;
	Postcopy__V1__DestinationStatus *d = &t->destination;

	*d = (Postcopy__V1__DestinationStatus)POSTCOPY__V1__DESTINATION_STATUS__INIT;
	set_source_address(t, info->source_target);
	stream_holder_hex(&info->holder, t->holder);
	d->holder = t->holder;
	d->tls = (char *)info->tls;
	d->map = info->map_eager ? POSTCOPY__V1__MAP_POLICY__MAP_POLICY_EAGER
	                         : POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY;
	set_limits(t, &info->limits);
	if (info->warm.wanted)
		set_warm(t, info);
	if (info->downtime.known)
		set_downtime(t, &info->downtime);
	set_times(t, m, info);
	d->pages_total = info->pages_total;
	d->pages_present = info->pages_present;
	if (info->pull) {
		d->pages_poisoned = stat_get(&info->pull->pages_poisoned);
		set_bulk(t, info->pull);
		set_counters(t, info->pull);
		set_latencies(t, info->pull);
		set_phases(t, info->pull, stall);
		set_stall(t, stalls, stall);
	}
	t->message.half_case = POSTCOPY__V1__MIGRATION__HALF_DESTINATION;
	t->message.destination = d;
}

static void set_pace(struct migration_message *t, const struct migration_pace *p)
{
	if (!p->rtt_us)
		return;
	t->pace = (Postcopy__V1__BulkPace)POSTCOPY__V1__BULK_PACE__INIT;
	t->pace.bytes_per_s = p->bytes_per_s;
	t->pace.in_flight_bytes = p->in_flight_bytes;
	t->round_trip = duration_message(p->rtt_us * NSEC_PER_USEC);
	t->queued = duration_message(p->queue_us * NSEC_PER_USEC);
	t->pace.round_trip = &t->round_trip;
	t->pace.queued = &t->queued;
	t->source.pace = &t->pace;
}

static void set_source(struct migration_message *t, const struct migration_info *info)
{
	t->source = (Postcopy__V1__SourceStatus)POSTCOPY__V1__SOURCE_STATUS__INIT;
	t->source.requests = info->served.requests;
	t->source.pages = info->served.pages;
	t->source.zero_pages = info->served.zero_pages;
	t->source.unreadable_pages = info->served.unreadable_pages;
	t->source.bytes = info->served.bytes;
	t->source.connected = info->connected;
	stream_holder_hex(&info->holder, t->holder);
	t->source.holder = t->holder;
	snprintf(t->holder_name, sizeof t->holder_name, "%s",
	         info->holder.bound ? info->holder.name : "");
	utf8_clean(t->holder_name);
	t->source.holder_name = t->holder_name;
	if (info->holder_heard_ns) {
		t->holder_silent = duration_message(clock_now_ns() - info->holder_heard_ns);
		t->source.holder_silent = &t->holder_silent;
	}
	set_pace(t, &info->pace);
	t->message.half_case = POSTCOPY__V1__MIGRATION__HALF_SOURCE;
	t->message.source = &t->source;
}

static void set_parties(struct migration_message *t, const struct parties *p)
{
	if (!parties_are_named(p))
		return;
	t->parties = (Postcopy__V1__Parties)POSTCOPY__V1__PARTIES__INIT;
	t->parties.n_uids = p->n_uids;
	t->parties.uids = (uint32_t *)p->uids;
	t->parties.cgroup = (char *)p->cgroup;
	t->parties.pid = p->pid;
	t->parties.peer = (char *)p->peer;
	t->message.parties = &t->parties;
}

#define WAITS_FOR(name) POSTCOPY__V1__WAITS_FOR__WAITS_FOR_##name

static void set_waiting(struct migration_message *t, const struct migration_wait *from)
{
	static const Postcopy__V1__WaitsFor whats[MIGRATION_WAITS] = {
		[MIGRATION_WAITS_NOT] = WAITS_FOR(UNSPECIFIED),
		[MIGRATION_WAITS_SOURCE] = WAITS_FOR(SOURCE),
		[MIGRATION_WAITS_PAUSE] = WAITS_FOR(PAUSE),
		[MIGRATION_WAITS_VMSTATE] = WAITS_FOR(VMSTATE),
		[MIGRATION_WAITS_LOAD] = WAITS_FOR(LOAD),
		[MIGRATION_WAITS_RESUME] = WAITS_FOR(RESUME),
		[MIGRATION_WAITS_MEMORY] = WAITS_FOR(MEMORY),
		[MIGRATION_WAITS_DESTINATION] = WAITS_FOR(DESTINATION),
		[MIGRATION_WAITS_TURN] = WAITS_FOR(TURN),
		[MIGRATION_WAITS_SWITCHOVER] = WAITS_FOR(SWITCHOVER),
	};
	uint64_t now_ns = clock_now_ns();

	if (from->what == MIGRATION_WAITS_NOT)
		return;
	t->waiting = (Postcopy__V1__Waiting)POSTCOPY__V1__WAITING__INIT;
	t->waiting.what = whats[from->what];
	t->waiting.tries = from->tries;
	t->waiting.place = from->place;
	t->waiting_elapsed = duration_message(now_ns - from->since_ns);
	t->waiting.elapsed = &t->waiting_elapsed;
	if (from->next_ns > now_ns) {
		t->waiting_next = duration_message(from->next_ns - now_ns);
		t->waiting.next_try = &t->waiting_next;
	}
	t->message.waiting = &t->waiting;
}

#define LIMITED_BY(name) POSTCOPY__V1__LIMITED_BY__LIMITED_BY_##name

static Postcopy__V1__LimitedBy limited_message(enum migration_limited limited_by)
{
	static const Postcopy__V1__LimitedBy whats[MIGRATION_LIMITED_REASONS] = {
		[MIGRATION_LIMITED_UNKNOWN] = LIMITED_BY(UNSPECIFIED),
		[MIGRATION_LIMITED_NETWORK] = LIMITED_BY(NETWORK),
		[MIGRATION_LIMITED_CAP] = LIMITED_BY(CAP),
		[MIGRATION_LIMITED_DESTINATION_CPU] = LIMITED_BY(DESTINATION_CPU),
		[MIGRATION_LIMITED_SOURCE_CPU] = LIMITED_BY(SOURCE_CPU),
		[MIGRATION_LIMITED_FAULTS] = LIMITED_BY(FAULTS),
	};

	return whats[limited_by];
}

static void set_bandwidth(struct migration_message *t, const struct migration_info *info)
{
	const struct migration_bandwidth *b = &info->bandwidth;

	if (migration_state_is_final(info->state))
		return;
	t->bandwidth = (Postcopy__V1__Bandwidth)POSTCOPY__V1__BANDWIDTH__INIT;
	t->bandwidth.share_bytes_per_s = b->share_bytes_per_s;
	t->bandwidth.bulk_bytes_per_s = b->bulk_bytes_per_s;
	t->bandwidth.fault_bytes_per_s = b->fault_bytes_per_s;
	t->bandwidth.weight = info->limits.weight;
	t->message.bandwidth = &t->bandwidth;
}

void migration_message_init(struct migration_message *t, struct migration *m,
                            const struct stalls *stalls)
{
	Postcopy__V1__Migration *message = &t->message;
	struct migration_info info;

	migration_get_info(m, &info);
	*message = (Postcopy__V1__Migration)POSTCOPY__V1__MIGRATION__INIT;
	message->id = (char *)info.id;
	message->role = info.role == MIGRATION_SOURCE ? POSTCOPY__V1__ROLE__ROLE_SOURCE
	                                              : POSTCOPY__V1__ROLE__ROLE_DESTINATION;
	message->state = state_message(info.state);
	/* It may be what the peer or the VMM has said. */
	snprintf(t->reason, sizeof t->reason, "%s", info.reason);
	utf8_clean(t->reason);
	message->reason = t->reason;
	t->state_time = timestamp_message(info.state_real_ns);
	message->state_time = &t->state_time;
	t->prepare_time = timestamp_message(info.prepared_real_ns);
	message->prepare_time = &t->prepare_time;
	message->memory_bytes = info.memory_bytes;
	message->page_bytes = info.page_bytes;
	message->backend = (char *)info.backend;
	message->vmm_pid = info.vmm_pid;
	message->peer_version = (char *)info.peer_version;
	set_parties(t, info.parties);
	set_waiting(t, &info.wait);
	message->limited_by = limited_message(info.limited_by);
	set_bandwidth(t, &info);
	if (info.role == MIGRATION_SOURCE)
		set_source(t, &info);
	else
		set_destination(t, m, &info, stalls);
}
