/* SPDX-License-Identifier: Apache-2.0 */
#include "telemetry/migration_metrics.h"

#include <string.h>

#define COUNTOF(array) (sizeof(array) / sizeof *(array))

static const enum migration_role roles[] = { MIGRATION_SOURCE, MIGRATION_DESTINATION };

/* One value of a family's only label. */
struct labelled {
	const char *label;
	uint64_t n;
};

static void put_one(struct openmetrics *om, const struct openmetrics_family *family, uint64_t n)
{
	openmetrics_open(om, family);
	openmetrics_integer(om, OPENMETRICS_NO_LABELS, n);
}

static void put_labelled(struct openmetrics *om, const struct openmetrics_family *family,
                         const char *name, const struct labelled *samples, size_t n)
{
	openmetrics_open(om, family);
	for (size_t i = 0; i < n; i++)
		openmetrics_integer(om, OPENMETRICS_LABELS({ name, samples[i].label }),
		                    samples[i].n);
}

/* Those states that are final, or those that are not. */
static void put_states(struct openmetrics *om, const struct openmetrics_family *family,
                       const char *label, bool final, const struct migrations_totals *t)
{
	openmetrics_open(om, family);
	for (size_t r = 0; r < COUNTOF(roles); r++)
		for (enum migration_state s = 0; s < MIGRATION_STATES; s++)
			if (migration_state_is_final(s) == final)
				openmetrics_integer(
				        om,
				        OPENMETRICS_LABELS(
				                { "role", migration_role_name(roles[r]) },
				                { label, migration_state_name(s) }),
				        t->states[roles[r] - 1][s]);
}

static void put_migrations(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family active = {
		"postcopyd_migrations_active",
		OPENMETRICS_GAUGE,
		NULL,
		"Migrations that are not over, by role and state.",
	};
	static const struct openmetrics_family ended = {
		"postcopyd_migrations",
		OPENMETRICS_COUNTER,
		NULL,
		"Migrations that are over, by role and how they ended.",
	};
	static const struct openmetrics_family prepared = {
		"postcopyd_migrations_prepared",
		OPENMETRICS_COUNTER,
		NULL,
		"Migrations that were announced, by role.",
	};

	put_states(om, &active, "state", false, t);
	put_states(om, &ended, "result", true, t);
	openmetrics_open(om, &prepared);
	for (size_t r = 0; r < COUNTOF(roles); r++)
		openmetrics_integer(om,
		                    OPENMETRICS_LABELS({ "role", migration_role_name(roles[r]) }),
		                    t->prepared[roles[r] - 1]);
}

static void put_refusals(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family refused = {
		"postcopyd_prepares_refused",
		OPENMETRICS_COUNTER,
		NULL,
		"Migrations that were not prepared, by reason.",
	};

	openmetrics_open(om, &refused);
	for (enum prepare_refusal r = 0; r < PREPARE_REFUSALS; r++)
		openmetrics_integer(om, OPENMETRICS_LABELS({ "reason", prepare_refusal_name(r) }),
		                    t->prepares_refused[r]);
}

static void put_admission(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family refused = {
		"postcopyd_admissions_refused",
		OPENMETRICS_COUNTER,
		NULL,
		"Guests that were not let in, for want of room or by a limit, by what was lacking.",
	};

	openmetrics_open(om, &refused);
	for (enum admission_refusal r = 0; r < ADMISSION_REFUSALS; r++)
		openmetrics_integer(om, OPENMETRICS_LABELS({ "reason", admission_refusal_name(r) }),
		                    t->admissions_refused[r]);
}

static void put_budget(struct openmetrics *om, const struct migrations_budget *b)
{
	static const struct openmetrics_family available = {
		"postcopyd_memory_available_bytes",
		OPENMETRICS_GAUGE,
		"bytes",
		"What is free of the host's memory, without huge pages; 0: not known.",
	};
	static const struct openmetrics_family promised = {
		"postcopyd_memory_promised_bytes",
		OPENMETRICS_GAUGE,
		"bytes",
		"What guests that were started on their way here have still to receive of it.",
	};

	static const struct openmetrics_family queued = {
		"postcopyd_migrations_queued",
		OPENMETRICS_GAUGE,
		NULL,
		"Migrations that wait for their turn to come in (max-incoming).",
	};

	static const struct openmetrics_family held = {
		"postcopyd_migrations_held",
		OPENMETRICS_GAUGE,
		NULL,
		"Of those that come in, that wait for somebody to say Switchover.",
	};

	put_one(om, &queued, b->queued);
	put_one(om, &held, b->held);
	put_one(om, &available, b->available_bytes);
	put_one(om, &promised, b->promised_bytes);
}

static const char *const directions[] = {
	[MIGRATION_SOURCE - 1] = "out",
	[MIGRATION_DESTINATION - 1] = "in",
};

static void put_bandwidth(struct openmetrics *om, const struct migrations_bandwidth b[2])
{
	static const struct openmetrics_family limit = {
		"postcopyd_bandwidth_limit_bytes_per_second",
		OPENMETRICS_GAUGE,
		NULL,
		"What all page streams of the host may take, by direction; 0: no limit.",
	};
	static const struct openmetrics_family used = {
		"postcopyd_bandwidth_bytes_per_second",
		OPENMETRICS_GAUGE,
		NULL,
		"What they take of late, by direction and by bulk and faults.",
	};

	openmetrics_open(om, &limit);
	for (unsigned int i = 0; i < 2; i++)
		openmetrics_integer(om, OPENMETRICS_LABELS({ "direction", directions[i] }),
		                    b[i].limit_bytes_per_s);
	openmetrics_open(om, &used);
	for (unsigned int i = 0; i < 2; i++) {
		openmetrics_integer(
		        om, OPENMETRICS_LABELS({ "direction", directions[i] }, { "by", "bulk" }),
		        b[i].bulk_bytes_per_s);
		openmetrics_integer(
		        om, OPENMETRICS_LABELS({ "direction", directions[i] }, { "by", "faults" }),
		        b[i].fault_bytes_per_s);
	}
}

static void put_store(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family entries = {
		"postcopyd_fd_store_entries",
		OPENMETRICS_GAUGE,
		NULL,
		"Descriptors that the service manager keeps for the next process, or has room for.",
	};
	static const struct openmetrics_family max = {
		"postcopyd_fd_store_entries_max",
		OPENMETRICS_GAUGE,
		NULL,
		"How many it keeps at most; 0: there is no such store.",
	};

	put_one(om, &entries, t->store_entries);
	put_one(om, &max, t->store_max);
}

static void put_downtime(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family downtime = {
		"postcopyd_downtime_seconds",
		OPENMETRICS_HISTOGRAM,
		"seconds",
		"Guest paused to guest resumed, in total and in parts that add up to it.",
	};
	static const char *const parts[DOWNTIME_PARTS] = {
		[DOWNTIME_TOTAL] = "total", [DOWNTIME_PAUSE] = "pause",   [DOWNTIME_SEND] = "send",
		[DOWNTIME_LOAD] = "load",   [DOWNTIME_RESUME] = "resume",
	};

	openmetrics_open(om, &downtime);
	for (size_t i = 0; i < DOWNTIME_PARTS; i++)
		openmetrics_histogram(om, OPENMETRICS_LABELS({ "part", parts[i] }),
		                      &t->downtime_ns[i]);
}

/* How pages came here. */
static void put_pages(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family pages = {
		"postcopyd_pages",
		OPENMETRICS_COUNTER,
		NULL,
		"Pages of 4 KiB filled at the destination, by what filled them.",
	};
	static const struct openmetrics_family missing = {
		"postcopyd_pages_missing",
		OPENMETRICS_GAUGE,
		NULL,
		"Pages of 4 KiB that destinations under way still lack.",
	};
	static const struct openmetrics_family bulk = {
		"postcopyd_bulk_bytes",
		OPENMETRICS_COUNTER,
		"bytes",
		"Bytes of pages received by bulk connections.",
	};
	static const struct openmetrics_family in_flight = {
		"postcopyd_bulk_requests_in_flight",
		OPENMETRICS_GAUGE,
		NULL,
		"Requests of bulk connections that have no answer yet.",
	};
	static const struct openmetrics_family prefetch = {
		"postcopyd_prefetch_units",
		OPENMETRICS_COUNTER,
		NULL,
		"Pages of 4 KiB fetched by a guess: all, touched in time, faults that were faster, "
		"never touched.",
	};
	static const struct openmetrics_family twice = {
		"postcopyd_bulk_duplicate_units",
		OPENMETRICS_COUNTER,
		NULL,
		"Pages of 4 KiB that bulk received when they were there already.",
	};
	const struct labelled fills[] = {
		{ "write", t->fill_write },      { "memcpy", t->fill_memcpy },
		{ "copy", t->fill_copy },        { "zero", t->fill_zero },
		{ "poison", t->pages_poisoned },
	};
	const struct labelled results[] = {
		{ "fetched", t->prefetched },
		{ "hit", t->prefetch_hit },
		{ "late", t->prefetch_late },
		{ "wasted", t->prefetch_wasted },
	};

	put_labelled(om, &pages, "fill", fills, COUNTOF(fills));
	put_one(om, &missing, t->pages_missing);
	put_one(om, &bulk, t->bulk_bytes);
	put_one(om, &in_flight, t->bulk_in_flight);
	put_one(om, &twice, t->bulk_twice);
	put_labelled(om, &prefetch, "result", results, COUNTOF(results));
}

static void put_served(struct openmetrics *om, const struct migrations_totals *t)
{
	static const struct openmetrics_family requests = {
		"postcopyd_served_requests",
		OPENMETRICS_COUNTER,
		NULL,
		"Requests for pages that sources have answered.",
	};
	static const struct openmetrics_family pages = {
		"postcopyd_served_pages",
		OPENMETRICS_COUNTER,
		NULL,
		"Pages of 4 KiB that sources have answered with, by content.",
	};
	static const struct openmetrics_family bytes = {
		"postcopyd_served_bytes",
		OPENMETRICS_COUNTER,
		"bytes",
		"Bytes of pages that sources have sent.",
	};
	const struct labelled contents[] = {
		{ "data", t->served.pages },
		{ "zero", t->served.zero_pages },
		{ "unreadable", t->served.unreadable_pages },
	};

	put_one(om, &requests, t->served.requests);
	put_labelled(om, &pages, "content", contents, COUNTOF(contents));
	put_one(om, &bytes, t->served.bytes);
}

static void put_stalls(struct openmetrics *om, const struct metrics_stall *stall,
                       const struct histogram *daemons)
{
	static const struct openmetrics_family stalls = {
		"postcopyd_guest_stall_seconds",
		OPENMETRICS_HISTOGRAM,
		"seconds",
		"How long vCPUs stood still for a page, as the source measures it.",
	};
	static const struct openmetrics_family unpaired = {
		"postcopyd_guest_stalls_unpaired",
		OPENMETRICS_COUNTER,
		NULL,
		"Stalls whose end was not seen; they are in no histogram.",
	};
	static const struct openmetrics_family lost = {
		"postcopyd_guest_stalls_lost",
		OPENMETRICS_COUNTER,
		NULL,
		"Stalls, or the events of single ones, that had no room.",
	};
	const char *source = stall->source ? stall->source : "daemon";
	bool measured = strcmp(source, "daemon");

	openmetrics_open(om, &stalls);
	openmetrics_histogram(om, OPENMETRICS_LABELS({ "source", source }),
	                      measured ? &stall->stall_ns : daemons);
	put_one(om, &unpaired, stall->unpaired);
	put_one(om, &lost, stall->lost);
}

static void put_faults(struct openmetrics *om, const struct migrations_totals *t,
                       const struct metrics_stall *stall)
{
	static const struct openmetrics_family faults = {
		"postcopyd_faults",
		OPENMETRICS_COUNTER,
		NULL,
		"Faults of guests: asked from the source, there already, or joined to another.",
	};
	static const struct openmetrics_family durations = {
		"postcopyd_fault_duration_seconds",
		OPENMETRICS_HISTOGRAM,
		"seconds",
		"Remote faults, from the event read to the vCPU woken, in total and by phase.",
	};
	static const struct openmetrics_family slow = {
		"postcopyd_faults_slow",
		OPENMETRICS_COUNTER,
		NULL,
		"Faults of any kind that took longer than the migration's threshold.",
	};
	static const struct openmetrics_family failed = {
		"postcopyd_fills_failed",
		OPENMETRICS_COUNTER,
		NULL,
		"Pages that had come and for which there was no memory, each time that was tried.",
	};
	static const struct openmetrics_family reconnects = {
		"postcopyd_reconnects",
		OPENMETRICS_COUNTER,
		NULL,
		"Connections that were lost and opened anew.",
	};
	static const struct openmetrics_family pauses = {
		"postcopyd_pauses",
		OPENMETRICS_COUNTER,
		NULL,
		"Times that a destination under way lost all connections to its source.",
	};
	const struct labelled kinds[] = {
		{ "remote", t->faults_remote },
		{ "minor", t->faults_minor },
		{ "coalesced", t->faults_coalesced },
	};

	put_labelled(om, &faults, "kind", kinds, COUNTOF(kinds));
	openmetrics_open(om, &durations);
	openmetrics_histogram(om, OPENMETRICS_LABELS({ "phase", "total" }), &t->fault_ns);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		openmetrics_histogram(om, OPENMETRICS_LABELS({ "phase", fault_phase_name(i) }),
		                      &t->fault_phase_ns[i]);
	put_one(om, &slow, t->faults_slow);
	put_one(om, &failed, t->fills_failed);
	put_stalls(om, stall, &t->fault_ns);
	put_one(om, &reconnects, t->reconnects);
	put_one(om, &pauses, t->pauses);
}

void migration_metrics_put(struct openmetrics *om, const struct migrations_totals *t,
                           const struct migrations_budget *budget,
                           const struct metrics_stall *stall)
{
	put_migrations(om, t);
	put_downtime(om, t);
	put_pages(om, t);
	put_faults(om, t, stall);
	put_served(om, t);
	put_store(om, t);
	put_refusals(om, t);
	put_admission(om, t);
	put_budget(om, budget);
	put_bandwidth(om, budget->bandwidth);
}
