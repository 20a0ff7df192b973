/* SPDX-License-Identifier: Apache-2.0 */
/* What a migration says of itself: its state, its timeline, how its pages arrived. */
#include "migrate/migration.h"

#include <string.h>

#include "migrate/adapter.h"
#include "migrate/wait.h"
#include "util/clock.h"

static struct migration_served served(const struct migration *m)
{
	struct migration_served sum = m->served;
	const struct page_source_stats *stats;

	if (!m->source)
		return sum;
	stats = page_source_stats(m->source);
	sum.requests += atomic_load(&stats->requests);
	sum.pages += atomic_load(&stats->pages);
	sum.zero_pages += atomic_load(&stats->zero_pages);
	sum.unreadable_pages += atomic_load(&stats->unreadable_pages);
	sum.bytes += atomic_load(&stats->bytes);
	return sum;
}

static struct migration_pace pace(const struct migration *m)
{
	const struct pacer_view *view;

	if (!m->source)
		return m->pace;
	view = &page_source_stats(m->source)->pace;
	return (struct migration_pace){
		.bytes_per_s = atomic_load(&view->bytes_per_s),
		.in_flight_bytes = atomic_load(&view->in_flight_bytes),
		.rtt_us = atomic_load(&view->rtt_us),
		.queue_us = atomic_load(&view->queue_us),
	};
}

static enum migration_limited limited_by(const struct migration *m)
{
	static const enum migration_limited of_destination[] = {
		[LOAD_UNKNOWN] = MIGRATION_LIMITED_UNKNOWN,
		[LOAD_WAITS] = MIGRATION_LIMITED_NETWORK,
		[LOAD_CAP] = MIGRATION_LIMITED_CAP,
		[LOAD_CPU] = MIGRATION_LIMITED_DESTINATION_CPU,
	};
	/* One that waits is waited for by its destination: that says what for. */
	static const enum migration_limited of_source[] = {
		[LOAD_UNKNOWN] = MIGRATION_LIMITED_UNKNOWN,
		[LOAD_WAITS] = MIGRATION_LIMITED_UNKNOWN,
		[LOAD_CAP] = MIGRATION_LIMITED_CAP,
		[LOAD_CPU] = MIGRATION_LIMITED_SOURCE_CPU,
	};
	bool moves = m->state == MIGRATION_POSTCOPY || m->state == MIGRATION_WARMING;

	if (m->source)
		return of_source[load_limit(&page_source_stats(m->source)->load, clock_now_ns())];
	if (!moves || !m->pull)
		return MIGRATION_LIMITED_UNKNOWN;
	return pull_bulk_is_on(m->pull) ? of_destination[pull_get_limit(m->pull)]
	                                : MIGRATION_LIMITED_FAULTS;
}

const char *migration_role_name(enum migration_role role)
{
	return role == MIGRATION_SOURCE ? "source" : "destination";
}

/*
 * The pull of a migration that was complete before this process began is no more; that of one whose
 * memory is late knows nothing yet.
 */
static uint64_t pages_present(const struct migration *m)
{
	if (!m->pull || migration_memory_is_late(m))
		return m->state == MIGRATION_COMPLETE ? m->table.units : 0;
	return m->table.units - pull_missing(m->pull);
}

/* Why it is as it is. A page that can neither be brought nor poisoned keeps it from being whole. */
static const char *reason(const struct migration *m)
{
	if (!*m->reason && m->state == MIGRATION_POSTCOPY && m->pull &&
	    stat_get(&pull_stats(m->pull)->pages_unpoisoned))
		return "the source can't read some pages, and they can't be poisoned here: they "
		       "stay missing";
	return m->reason;
}

static const char *peer_version(struct migration *m)
{
	char *to = m->version_noted;

	pthread_mutex_lock(&m->lock);
	strcpy(to, m->peer_version);
	pthread_mutex_unlock(&m->lock);
	if (m->source)
		page_source_get_visitor_version(m->source, to);
	return to;
}

static void join(char *to, size_t size, const char *text)
{
	size_t len = strlen(to);

	if (*text)
		snprintf(to + len, size - len, "%s%s", len ? "; " : "", text);
}

/* With what is being tried or waited for meanwhile, and who is away. */
static const char *reason_now(struct migration *m, const struct migration_wait *wait)
{
	bool away = migration_adapter_is_away(m) && !migration_state_is_final(m->state);
	char waits[WAIT_TEXT_MAX];
	char *to = m->reason_noted;
	size_t size = sizeof m->reason_noted;

	*to = '\0';
	join(to, size, reason(m));
	pthread_mutex_lock(&m->lock);
	join(to, size, m->note);
	pthread_mutex_unlock(&m->lock);
	migration_wait_text(m, wait, waits);
	join(to, size, waits);
	join(to, size, away ? "adapter detached" : "");
	return to;
}

void migration_get_info(struct migration *m, struct migration_info *ret)
{
	const struct migration_wait wait = migration_get_wait(m);

	*ret = (struct migration_info){
		.seq = m->seq,
		.id = m->params.id,
		.role = m->params.role,
		.state = m->state,
		.reason = reason_now(m, &wait),
		.wait = wait,
		.limited_by = limited_by(m),
		.bandwidth = m->bandwidth.now,
		.memory_bytes = m->table.size_bytes,
		.page_bytes = m->table.n ? m->table.regions[0].page_size : 0,
		.backend = m->table.n ? memory_name(m->table.regions[0].memory) : "",
		.regions = &m->table,
		.vmm_pid = migration_vmm_pid(m),
		.parties = &m->params.parties,
		.peer_version = peer_version(m),
		.prepared_real_ns = m->prepared_real_ns,
		.state_real_ns = m->state_real_ns,
		.pull = m->pull ? pull_stats(m->pull) : NULL,
		.tls = m->pull ? pull_tls(m->pull) : "",
		.limits = m->limits,
		.source_target = &m->target,
		.map_eager = m->params.map == RESOLVER_MAP_EAGER,
		.downtime = m->downtime,
		.started_ns = m->started_ns,
		.resumed_ns = m->resumed_ns,
		.resumed_real_ns = m->resumed_real_ns,
		.ended_ns = m->ended_ns,
		.pages_total = m->table.units,
		.pages_present = pages_present(m),
		.served = served(m),
		.pace = pace(m),
		.connected = m->source && page_source_is_connected(m->source),
		.holder_heard_ns = m->source ? page_source_holder_heard_ns(m->source) : 0,
		.holder = m->holder,
	};
	pthread_mutex_lock(&m->lock);
	ret->warm = m->warming;
	ret->warmed = m->warmed;
	pthread_mutex_unlock(&m->lock);
}

size_t migration_get_timeline(struct migration *m,
                              struct migration_point ret[MIGRATION_TIMELINE_MAX])
{
	size_t n;

	pthread_mutex_lock(&m->lock);
	n = m->timeline_n;
	memcpy(ret, m->timeline, n * sizeof *ret);
	pthread_mutex_unlock(&m->lock);
	return n;
}

static struct migration_arrival_cell arrival_cell(const struct arrival_cell *c, uint64_t origin_ns,
                                                  uint64_t resumed_ns)
{
	uint64_t by_fault = atomic_load_explicit(&c->by_fault, memory_order_relaxed);
	uint64_t by_bulk = atomic_load_explicit(&c->by_bulk, memory_order_relaxed);
	uint64_t units = by_fault + by_bulk, mean_us = 0;
	/* The memory is served from the switchover on, a little before the guest runs. */
	uint64_t before_us = resumed_ns > origin_ns ? (resumed_ns - origin_ns) / NSEC_PER_USEC : 0;

	if (units)
		mean_us = atomic_load_explicit(&c->sum_us, memory_order_relaxed) / units;
	return (struct migration_arrival_cell){
		.bytes_by_fault = by_fault * UNIT_BYTES,
		.bytes_by_bulk = by_bulk * UNIT_BYTES,
		.mean_us = mean_us > before_us ? mean_us - before_us : 0,
	};
}

size_t migration_get_arrival(struct migration *m,
                             struct migration_arrival_cell ret[ARRIVAL_CELLS_MAX],
                             uint64_t *ret_units_per_cell)
{
	const struct arrival_map *map = m->pull ? pull_arrival(m->pull) : NULL;
	uint64_t origin_ns;

	if (!map)
		return 0;
	origin_ns = atomic_load_explicit(&map->origin_ns, memory_order_relaxed);
	for (uint32_t i = 0; i < map->n_cells; i++)
		ret[i] = arrival_cell(&map->cells[i], origin_ns, m->resumed_ns);
	*ret_units_per_cell = map->words_per_cell * WORD_UNITS;
	return map->n_cells;
}
