/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/totals.h"

#include <stdatomic.h>
#include <string.h>

static void add_pull(struct migrations_totals *t, const struct pull_stats *s)
{
	t->fill_write += stat_get(&s->fill_write);
	t->fill_memcpy += stat_get(&s->fill_memcpy);
	t->fill_copy += stat_get(&s->fill_copy);
	t->fill_zero += stat_get(&s->fill_zero);
	t->fills_failed += stat_get(&s->fills_failed);
	t->faults += stat_get(&s->faults);
	t->faults_remote += stat_get(&s->faults_remote);
	t->faults_minor += stat_get(&s->faults_minor);
	t->faults_coalesced += stat_get(&s->faults_coalesced);
	t->faults_slow += stat_get(&s->faults_slow);
	t->pages_poisoned += stat_get(&s->pages_poisoned);
	t->bulk_bytes += stat_get(&s->bulk_bytes);
	t->prefetched += stats_guessed(s);
	t->prefetch_hit += stat_get(&s->prefetch_hit);
	t->prefetch_late += stat_get(&s->prefetch_late);
	t->bulk_twice += stat_get(&s->bulk_twice);
	t->reconnects += stat_get(&s->reconnects);
	histogram_merge(&t->fault_ns, &s->fault_idle_ns);
	histogram_merge(&t->fault_ns, &s->fault_bulk_ns);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		histogram_merge(&t->fault_phase_ns[i], &s->fault_phase_ns[i]);
}

static void add_served(struct migrations_totals *t, const struct migration_served *s)
{
	t->served.requests += s->requests;
	t->served.pages += s->pages;
	t->served.zero_pages += s->zero_pages;
	t->served.unreadable_pages += s->unreadable_pages;
	t->served.bytes += s->bytes;
}

void totals_keep_pull(struct migration *m)
{
	if (!m->pull)
		return;
	add_pull(&m->owner->totals, pull_stats(m->pull));
	/* What was not touched when all was there. */
	m->owner->totals.prefetch_wasted += stats_wasted(pull_stats(m->pull));
}

void totals_keep_served(struct migration *m)
{
	struct migration_info info;

	migration_get_info(m, &info);
	add_served(&m->owner->totals, &info.served);
}

void totals_note_downtime(struct migration *m)
{
	struct histogram *parts = m->owner->totals.downtime_ns;

	histogram_add(&parts[DOWNTIME_TOTAL], m->downtime.total_ns);
	histogram_add(&parts[DOWNTIME_PAUSE], m->downtime.pause_ns);
	histogram_add(&parts[DOWNTIME_SEND], m->downtime.send_ns);
	histogram_add(&parts[DOWNTIME_LOAD], m->downtime.load_ns);
	histogram_add(&parts[DOWNTIME_RESUME], m->downtime.resume_ns);
}

void totals_note_end(struct migration *m)
{
	m->owner->totals.states[m->params.role - 1][m->state]++;
}

static void add_live(struct migrations_totals *t, struct migration *m)
{
	struct migration_info info;

	migration_get_info(m, &info);
	if (info.pull)
		add_pull(t, info.pull);
	add_served(t, &info.served);
	/* Once its threads have ended it stays what totals_keep_pull() will add. */
	if (info.pull && migration_state_is_final(m->state) && !m->conductor_runs)
		t->prefetch_wasted += stats_wasted(info.pull);
	if (migration_state_is_final(m->state))
		return;
	t->states[m->params.role - 1][m->state]++;
	if (info.pull) {
		t->pages_missing += info.pages_total - info.pages_present;
		t->bulk_in_flight += stat_get(&info.pull->bulk_in_flight);
	}
}

const char *prepare_refusal_name(enum prepare_refusal refusal)
{
	static const char *const names[PREPARE_REFUSALS] = {
		[PREPARE_REFUSED_PARAMETERS] = "parameters",
		[PREPARE_REFUSED_EXISTS] = "exists",
		[PREPARE_REFUSED_ROLE] = "role",
		[PREPARE_REFUSED_DRAINING] = "draining",
		[PREPARE_REFUSED_CLIENT] = "client",
		[PREPARE_REFUSED_LIMIT] = "limit",
		[PREPARE_REFUSED_RESOURCES] = "resources",
	};

	return names[refusal];
}

void migrations_note_refusal(struct migrations *ms, enum prepare_refusal refusal)
{
	ms->totals.prepares_refused[refusal]++;
}

void migrations_get_totals(struct migrations *ms, struct migrations_totals *ret)
{
	memcpy(ret, &ms->totals, sizeof *ret);
	ret->store_entries = fd_store_count(ms->config.store);
	ret->store_max = fd_store_max(ms->config.store);
	for (struct migration *m = ms->list; m; m = m->next)
		add_live(ret, m);
}
