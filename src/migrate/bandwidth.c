/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/bandwidth.h"

#include <errno.h>

#include "util/clock.h"
#include "util/log.h"

#define LOOK_MS 100u
/* What is seen in less tells no rate. */
#define LOOK_MIN_NS (LOOK_MS / 2 * NSEC_PER_MSEC)
/* Of a rate and the one that was seen last, which comes in answers of 256 KiB. */
#define OLD_PARTS 3u

static bool moves(const struct migration *m)
{
	return m->state >= MIGRATION_WARMING && m->state <= MIGRATION_PAUSED &&
	       (m->pull || m->source);
}

static uint64_t bulk_bytes(const struct migration *m)
{
	return m->pull ? stat_get(&pull_stats(m->pull)->bulk_bytes)
	               : atomic_load(&page_source_stats(m->source)->bulk_bytes);
}

/* A destination counts what it asks for: what is zero costs less. */
static uint64_t fault_bytes(const struct migration *m)
{
	return m->pull ? stat_get(&pull_stats(m->pull)->fault_units) << UNIT_SHIFT
	               : atomic_load(&page_source_stats(m->source)->fault_bytes);
}

static bool was_held(struct migration *m)
{
	return m->pull ? pull_was_held(m->pull) : page_source_was_held(m->source);
}

static uint64_t smooth(uint64_t before, uint64_t bytes, uint64_t ns)
{
	uint64_t rate = (uint64_t)((unsigned __int128)bytes * NSEC_PER_SEC / ns);

	return (before * OLD_PARTS + rate) / (OLD_PARTS + 1);
}

/* A source whose VMM has attached anew counts from 0. */
static uint64_t since(uint64_t *seen, uint64_t now)
{
	uint64_t bytes = now >= *seen ? now - *seen : now;

	*seen = now;
	return bytes;
}

static void measure(struct migration *m, uint64_t ns)
{
	struct bandwidth_part *p = &m->bandwidth;
	uint64_t bulk = since(&p->bulk_seen, bulk_bytes(m));
	uint64_t faults = since(&p->faults_seen, fault_bytes(m));

	p->now.bulk_bytes_per_s = smooth(p->now.bulk_bytes_per_s, bulk, ns);
	p->now.fault_bytes_per_s = smooth(p->now.fault_bytes_per_s, faults, ns);
	p->share.held = was_held(m);
}

static void set_share(struct migration *m, uint64_t bytes_per_s)
{
	m->bandwidth.now.share_bytes_per_s = bytes_per_s;
	if (m->pull)
		pull_set_share(m->pull, bytes_per_s);
	else
		page_source_set_share(m->source, bytes_per_s);
}

/* All of one role. @limit: 0: none. */
static void divide(struct migrations *ms, enum migration_role role, uint64_t limit)
{
	struct share *list = NULL;
	uint64_t faults = 0;

	for (struct migration *m = ms->list; m; m = m->next) {
		struct bandwidth_part *p = &m->bandwidth;

		if (m->params.role != role || !moves(m))
			continue;
		faults += p->now.fault_bytes_per_s;
		p->share.weight = m->limits.weight;
		p->share.cap = m->limits.bandwidth_bytes_per_s;
		p->share.used = p->now.bulk_bytes_per_s;
		p->share.next = list;
		list = &p->share;
	}
	if (limit)
		share_divide(share_of_bulk(limit, faults), list);
	for (struct migration *m = ms->list; m; m = m->next)
		if (m->params.role == role && moves(m))
			set_share(m, limit ? m->bandwidth.share.bytes_per_s : 0);
}

/* Return: whether anything moves. */
static bool look(struct migrations *ms)
{
	uint64_t now_ns = clock_now_ns(), ns = now_ns - ms->bandwidth.looked_ns;
	bool any = false;

	for (struct migration *m = ms->list; m; m = m->next) {
		if (moves(m) && ns >= LOOK_MIN_NS)
			measure(m, ns);
		else if (!moves(m))
			m->bandwidth.now = (struct migration_bandwidth){ 0 };
		any |= moves(m);
	}
	if (ns >= LOOK_MIN_NS)
		ms->bandwidth.looked_ns = now_ns;
	divide(ms, MIGRATION_DESTINATION, ms->bandwidth.in_bytes_per_s);
	divide(ms, MIGRATION_SOURCE, ms->bandwidth.out_bytes_per_s);
	return any;
}

static void on_look(uv_timer_t *timer)
{
	if (!look(timer->data))
		uv_timer_stop(timer);
}

void migrations_watch_bandwidth(struct migrations *ms)
{
	uv_timer_t *timer = &ms->bandwidth.timer;

	timer->data = ms;
	if (!uv_is_active((uv_handle_t *)timer))
		uv_timer_start(timer, on_look, LOOK_MS, LOOK_MS);
	look(ms);
}

/* What an operator has said stays where the file says what it said before. */
static void configure(uint64_t *limit, uint64_t *configured, uint64_t now)
{
	if (*configured != now)
		*limit = now;
	*configured = now;
}

void migrations_configure_bandwidth(struct migrations *ms, const struct migrations_config *config)
{
	configure(&ms->bandwidth.in_bytes_per_s, &ms->bandwidth.configured_in,
	          config->bandwidth_in);
	configure(&ms->bandwidth.out_bytes_per_s, &ms->bandwidth.configured_out,
	          config->bandwidth_out);
	look(ms);
}

void migrations_set_bandwidth(struct migrations *ms, const uint64_t *in, const uint64_t *out)
{
	if (in)
		ms->bandwidth.in_bytes_per_s = *in;
	if (out)
		ms->bandwidth.out_bytes_per_s = *out;
	log_info("by command: page streams take at most %llu bytes/s in and %llu out (0: no limit)",
	         (unsigned long long)ms->bandwidth.in_bytes_per_s,
	         (unsigned long long)ms->bandwidth.out_bytes_per_s);
	look(ms);
}

void migrations_get_bandwidth(const struct migrations *ms, struct migrations_bandwidth ret[2])
{
	for (unsigned int i = 0; i < 2; i++)
		ret[i] = (struct migrations_bandwidth){ 0 };
	ret[MIGRATION_SOURCE - 1].limit_bytes_per_s = ms->bandwidth.out_bytes_per_s;
	ret[MIGRATION_DESTINATION - 1].limit_bytes_per_s = ms->bandwidth.in_bytes_per_s;
	for (const struct migration *m = ms->list; m; m = m->next) {
		struct migrations_bandwidth *b = &ret[m->params.role - 1];

		if (!moves(m))
			continue;
		b->bulk_bytes_per_s += m->bandwidth.now.bulk_bytes_per_s;
		b->fault_bytes_per_s += m->bandwidth.now.fault_bytes_per_s;
	}
}
