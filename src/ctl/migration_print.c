/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/commands.h"

#include <stdio.h>
#include <string.h>

#include "ctl/json.h"
#include "ctl/units.h"

static void print_string(struct json_object *m, const char *label, const char *path)
{
	const char *s = json_string_or(m, path, "");

	if (*s)
		printf("  %-12s %s\n", label, s);
}

static void print_memory(struct json_object *m)
{
	uint64_t bytes, page;

	if (!json_count(m, "memory_bytes", &bytes))
		return;
	printf("  %-12s %s %s", "memory", text_bytes((double)bytes).s,
	       json_string_or(m, "backend", ""));
	if (json_count(m, "page_bytes", &page))
		printf(" in pages of %s", text_bytes((double)page).s);
	putchar('\n');
}

static void print_limits(struct json_object *m)
{
	uint64_t streams, cap;

	if (!json_count(m, "limits.streams", &streams))
		return;
	cap = json_count_or(m, "limits.bandwidth_bytes_per_s", 0);
	printf("  %-12s %s streams", "limits", text_count(streams).s);
	if (cap)
		printf(", %s/s", text_bytes((double)cap).s);
	if (json_count_or(m, "bandwidth.share_bytes_per_s", 0))
		printf(", %s/s of the host's",
		       text_bytes((double)json_count_or(m, "bandwidth.share_bytes_per_s", 0)).s);
	printf(", bulk %s, prefetch %s\n",
	       json_object_get_boolean(json_find(m, "limits.bulk")) ? "on" : "off",
	       json_object_get_boolean(json_find(m, "limits.prefetch")) ? "on" : "off");
}

static void print_pages(struct json_object *m)
{
	uint64_t present, total, zero;

	if (!json_count(m, "pages_present", &present) || !json_count(m, "pages_total", &total))
		return;
	printf("  %-12s %s of %s", "pages", text_count(present).s, text_count(total).s);
	if (total)
		printf(" (%.1f %%)", 100.0 * (double)present / (double)total);
	if (json_count(m, "pages_zero", &zero))
		printf(", %s of them zero", text_count(zero).s);
	if (json_count_or(m, "pages_poisoned", 0))
		printf(", %s POISONED", text_count(json_count_or(m, "pages_poisoned", 0)).s);
	putchar('\n');
}

static void print_downtime(struct json_object *m)
{
	static const char *const parts[] = { "pause", "send", "load", "resume" };
	double us;

	if (!json_number(m, "downtime_us.total", &us))
		return;
	printf("  %-12s %s =", "downtime", text_duration(us).s);
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
		char path[32];

		snprintf(path, sizeof path, "downtime_us.%s", parts[i]);
		if (json_number(m, path, &us))
			printf("%s %s %s", i ? " +" : "", parts[i], text_duration(us).s);
	}
	putchar('\n');
}

static void print_speed(struct json_object *m)
{
	double ms, rate;

	if (json_number(m, "eta_ms", &ms))
		printf("  %-12s %s until the source may be switched off\n", "left",
		       text_duration(ms * 1000).s);
	if (json_number(m, "total_ms", &ms))
		printf("  %-12s %s\n", "total", text_duration(ms * 1000).s);
	if (json_number(m, "bulk_bytes_per_s", &rate))
		printf("  %-12s %s/s\n", "bulk", text_bytes(rate).s);
}

static void print_faults(struct json_object *m)
{
	uint64_t total;
	double p50, p99, max;

	if (!json_count(m, "faults.total", &total))
		return;
	printf("  %-12s %s, %s of them remote", "faults", text_count(total).s,
	       text_count(json_count_or(m, "faults.remote", 0)).s);
	if (json_number(m, "fault_us.p50", &p50) && json_number(m, "fault_us.p99", &p99) &&
	    json_number(m, "fault_us.max", &max))
		printf(": p50 %s, p99 %s, max %s", text_duration(p50).s, text_duration(p99).s,
		       text_duration(max).s);
	putchar('\n');
}

/* What was brought by a guess. How good they were is known where pages are mapped when touched. */
static void print_prefetch(struct json_object *m)
{
	uint64_t units = json_count_or(m, "prefetch.units", 0);

	if (!units)
		return;
	printf("  %-12s %s pages by guess", "prefetch", text_count(units).s);
	if (json_count_or(m, "prefetch.watched", 0))
		printf(", %s hit, %s not touched",
		       text_count(json_count_or(m, "prefetch.hit", 0)).s,
		       text_count(json_count_or(m, "prefetch.wasted", 0)).s);
	printf(", %s faults were faster\n", text_count(json_count_or(m, "prefetch.late", 0)).s);
}

static void print_served(struct json_object *m)
{
	uint64_t requests;

	if (json_count(m, "served.requests", &requests))
		printf("  %-12s %s in %s pages for %s requests\n", "served",
		       text_bytes(json_number_or(m, "served.bytes", 0)).s,
		       text_count(json_count_or(m, "served.pages", 0)).s, text_count(requests).s);
	if (json_count_or(m, "served.unreadable_pages", 0))
		printf("  %-12s %s pages can't be read: the destination poisons them\n", "",
		       text_count(json_count_or(m, "served.unreadable_pages", 0)).s);
}

/* Why bulk is not faster than it is. */
static void print_pace(struct json_object *m)
{
	uint64_t rate;

	if (!json_count(m, "pace.bytes_per_s", &rate))
		return;
	printf("  %-12s bulk held at %s/s, below what the network carries; round trip %s\n", "pace",
	       text_bytes((double)rate).s,
	       text_duration(json_number_or(m, "pace.round_trip_us", 0)).s);
}

static void print_holder(struct json_object *m)
{
	const char *holder = json_string_or(m, "holder", ""), *name;
	double silent_ms;

	if (!*holder)
		return;
	printf("  %-12s %s", "holder", holder);
	name = json_string_or(m, "holder_name", "");
	if (*name)
		printf(" (%s)", name);
	if (json_number(m, "holder_silent_ms", &silent_ms))
		printf(", heard %s ago", text_duration(silent_ms * 1e3).s);
	putchar('\n');
}

/* Who may attach, and who the other daemon is. */
static void print_parties(struct json_object *m)
{
	struct json_object *uids = json_find(m, "parties.uids");
	size_t n = uids ? json_object_array_length(uids) : 0;
	double pid;

	if (n)
		printf("  %-12s %s", "VMM's user", n == 1 ? "uid" : "uids");
	for (size_t i = 0; i < n; i++)
		printf(" %lld%s",
		       (long long)json_object_get_int64(json_object_array_get_idx(uids, i)),
		       i + 1 < n ? "," : "\n");
	if (json_number(m, "parties.pid", &pid))
		printf("  %-12s %lld\n", "VMM's pid", (long long)pid);
	print_string(m, "VMM's cgroup", "parties.cgroup");
	print_string(m, "peer", "parties.peer");
}

/* What it stands still for, and for how long. */
static void print_waiting(struct json_object *m)
{
	static const char *const whats[][2] = {
		{ "source", "the source" },
		{ "pause", "its VMM to pause the guest" },
		{ "vmstate", "the source to pause the guest" },
		{ "load", "its VMM to load the vmstate" },
		{ "resume", "its VMM to run the guest" },
		{ "memory", "memory for pages that have come" },
		{ "destination", "the destination" },
		{ "turn", "its turn to come in" },
		{ "switchover", "somebody to say switchover" },
	};
	const char *what = json_string_or(m, "waiting.for", "");
	uint64_t tries = json_count_or(m, "waiting.tries", 0);
	double ms;

	if (!*what)
		return;
	for (size_t i = 0; i < sizeof whats / sizeof *whats; i++)
		if (!strcmp(what, whats[i][0]))
			what = whats[i][1];
	printf("  %-12s %s, for %s", "waits for", what,
	       text_duration(json_number_or(m, "waiting.elapsed_ms", 0) * 1e3).s);
	if (tries)
		printf(": tried %s times", text_count(tries).s);
	if (json_number(m, "waiting.next_try_ms", &ms))
		printf(", again in %s", text_duration(ms * 1e3).s);
	putchar('\n');
}

/* What was copied while the guest ran at the source, and what is to be expected. */
static void print_warm(struct json_object *m)
{
	double ms, catch_up_ms;

	print_string(m, "not warmed", "warm.refused");
	if (!json_number(m, "warm.warm_ms", &ms))
		return;
	printf("  %-12s %s, %s rounds, %s copied; dirty %s, %s/s\n", "warm",
	       text_duration(ms * 1e3).s, text_count(json_count_or(m, "warm.rounds", 0)).s,
	       text_bytes(json_number_or(m, "warm.bytes", 0)).s,
	       text_bytes(json_number_or(m, "warm.dirty_bytes", 0)).s,
	       text_bytes(json_number_or(m, "warm.dirty_bytes_per_s", 0)).s);
	if (json_count_or(m, "warm.given_up_percent", 0))
		printf("  %-12s given up: %s %% of memory would have been dirty again\n", "",
		       text_count(json_count_or(m, "warm.given_up_percent", 0)).s);
	if (!strcmp(json_string_or(m, "state", ""), "warming") &&
	    json_number(m, "warm.catch_up_ms", &catch_up_ms))
		printf("  %-12s what is missing now would be here in %s\n", "",
		       text_duration(catch_up_ms * 1e3).s);
}

void migration_print(struct json_object *m)
{
	printf("%s: %s, %s\n", json_string_or(m, "id", "?"), json_string_or(m, "role", "?"),
	       json_string_or(m, "state", "?"));
	print_string(m, "reason", "reason");
	print_waiting(m);
	print_string(m, "token", "token");
	print_memory(m);
	print_parties(m);
	print_string(m, "source", "source_address");
	print_string(m, "peer version", "peer_version");
	print_string(m, "TLS", "tls");
	print_limits(m);
	print_pages(m);
	print_warm(m);
	print_downtime(m);
	print_speed(m);
	print_faults(m);
	print_prefetch(m);
	print_served(m);
	print_pace(m);
	print_holder(m);
}
