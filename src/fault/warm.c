/* SPDX-License-Identifier: Apache-2.0 */
/* The pull while the guest runs at the source; and what came then, when it runs here. */
#include <errno.h>

#include "fault/prefill.h"
#include "fault/pull_internal.h"
#include "fault/runs.h"
#include "util/clock.h"

/* A bulk connection that owes an answer for so long is cut, and what it owes asked anew. */
#define HOLD_MS 2000u
/* How often it is looked whether nobody fills: whoever is last says so. */
#define HOLD_LOOK_MS 100u

static int check_memory(const struct pull *p, struct error *err)
{
	const struct region_table *table = &p->config.table;

	for (uint32_t i = 0; i < table->n; i++)
		if (!prefill_can(table->regions[i].memory))
			return error_set(err, -EOPNOTSUPP,
			                 "region %u is %s memory, which can be filled once only, "
			                 "when the guest is here",
			                 i, memory_name(table->regions[i].memory));
	return 0;
}

int pull_warm(struct pull *p, struct error *err)
{
	int rc = check_memory(p, err);

	if (rc)
		return rc;
	pull_warm_hold(p);
	pull_warm_forget(p);
	atomic_store(&p->warm, true);
	pthread_mutex_lock(&p->lock);
	p->started = p->bulk_started = true;
	rc = pull_start_bulk_locked(p);
	if (rc && p->bulks[0].runs)
		rc = 0;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	return rc ? error_errno(err, rc, "threads for bulk") : 0;
}

static void cut_bulk_locked(struct pull *p)
{
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		if (p->bulks[i].conn)
			conn_shutdown(p->bulks[i].conn);
}

void pull_warm_hold(struct pull *p)
{
	uint64_t cut_ns = clock_now_ns() + HOLD_MS * NSEC_PER_MSEC;

	scheduler_hold(p->scheduler);
	pull_work_changed(p);
	pthread_mutex_lock(&p->lock);
	while (!scheduler_is_idle(p->scheduler) && !atomic_load(&p->stopping)) {
		uint64_t now_ns = clock_now_ns(), at_ns = now_ns + HOLD_LOOK_MS * NSEC_PER_MSEC;
		const struct timespec at = { .tv_sec = (time_t)(at_ns / NSEC_PER_SEC),
			                     .tv_nsec = (long)(at_ns % NSEC_PER_SEC) };

		if (now_ns >= cut_ns)
			cut_bulk_locked(p);
		pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at);
	}
	pthread_mutex_unlock(&p->lock);
}

uint64_t pull_warm_renew(struct pull *p, uint32_t region, uint64_t first, uint64_t n)
{
	uint64_t renewed = 0;

	for (uint64_t unit = first, end = first + n; unit < end;) {
		unsigned int from = unit % WORD_UNITS;
		uint64_t in_word = end - unit < WORD_UNITS - from ? end - unit : WORD_UNITS - from;
		uint64_t mask = run_mask(from, in_word);

		renewed += (uint64_t)__builtin_popcountll(
		        page_state_renew(p->state, region, unit / WORD_UNITS, mask));
		unit += in_word;
	}
	return renewed;
}

void pull_warm_forget(struct pull *p)
{
	for (uint32_t i = 0; i < p->config.table.n; i++)
		pull_warm_renew(p, i, 0, p->config.table.regions[i].units);
	scheduler_forget(p->scheduler);
}

bool pull_is_visible(const struct pull *p)
{
	return p->state && page_state_is_visible(p->state);
}

void pull_warm_go(struct pull *p)
{
	scheduler_go_round(p->scheduler);
	pull_work_changed(p);
}

void pull_warm_go_on(struct pull *p)
{
	scheduler_go_on(p->scheduler);
	pull_work_changed(p);
}

bool pull_warm_is_over(struct pull *p)
{
	return scheduler_is_over(p->scheduler);
}

void pull_warm_end(struct pull *p)
{
	/* What could not be had ahead is asked for again, and is then dealt with. */
	page_state_drop_claims(p->state);
	atomic_store(&p->warm, false);
}

void pull_warm_stop(struct pull *p)
{
	pull_warm_hold(p);
	atomic_store(&p->dismissed, true);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		dialing_interrupt(&p->bulks[i].dialing);
	pthread_mutex_lock(&p->lock);
	p->started = p->bulk_started = false;
	p->work++;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++) {
		if (p->bulks[i].runs)
			pthread_join(p->bulks[i].thread, NULL);
		p->bulks[i].runs = false;
	}
	atomic_store(&p->dismissed, false);
	pull_warm_end(p);
}

/* The region of the @word-th of all words; and which word of it that is. */
static bool find_word(const struct region_table *table, uint64_t *word, uint32_t *ret_region)
{
	for (uint32_t i = 0; i < table->n; i++) {
		if (*word < table->regions[i].words) {
			*ret_region = i;
			return true;
		}
		*word -= table->regions[i].words;
	}
	return false;
}

/* What of a word may have come before the guest ran here, of pages that it begins. */
static uint64_t came_ahead(const struct pull *p, uint32_t region, uint64_t word)
{
	const struct region *r = &p->config.table.regions[region];
	uint64_t per_page = region_units_per_page(r), written = 0;

	/* Private memory is the fault thread's: who else maps it puts a discarded page back. */
	if (r->memory == POSTCOPY_MEMORY_ANONYMOUS || word * WORD_UNITS % per_page)
		return 0;
	/* What is a hole stays one. */
	if (per_page == 1)
		return page_state_written(p->state, region, word);
	/* A larger page is mapped as a whole, by its first word. */
	for (uint64_t i = 0; i < per_page / WORD_UNITS && !written; i++)
		written = page_state_written(p->state, region, word + i);
	return written ? UINT64_MAX : 0;
}

bool pull_map_ahead(struct pull *p, const struct resolver_caller *caller)
{
	uint64_t word = atomic_fetch_add(&p->maps_word, 1), present;
	uint32_t region;

	if (!find_word(&p->config.table, &word, &region)) {
		atomic_store(&p->maps, false);
		return false;
	}
	present = page_state_present(p->state, region, word) & came_ahead(p, region, word);
	/* What can't be mapped now is left for its fault. */
	(void)resolver_map_ahead(caller, region, word, present);
	return true;
}
