/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/trim.h"

#include <malloc.h>

#include "util/clock.h"
#include "util/log.h"

/* Until the threads of its connections have ended, and whoever moves the next has begun. */
#define TRIM_AFTER_MS 1000u

static bool any_moves(const struct migrations *ms)
{
	for (const struct migration *m = ms->list; m; m = m->next)
		if (migration_is_under_way(m))
			return true;
	return false;
}

static void on_due(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;
	uint64_t begin_ns = clock_now_ns();

	/* It is due again when that has ended. */
	if (any_moves(ms))
		return;
	(void)malloc_trim(0);
	log_debug("memory that is free was given back, in %.1f ms",
	          (double)(clock_now_ns() - begin_ns) / (double)NSEC_PER_MSEC);
}

void migrations_trim_later(struct migrations *ms)
{
	if (ms->draining)
		return;
	ms->trim.data = ms;
	uv_timer_start(&ms->trim, on_due, TRIM_AFTER_MS, 0);
}
