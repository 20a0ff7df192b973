/* SPDX-License-Identifier: Apache-2.0 */
/* What both halves of a migration are made of. */
#include "migrate/migration.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "migrate/attach.h"
#include "migrate/bandwidth.h"
#include "migrate/queue.h"
#include "migrate/record/keep.h"
#include "migrate/totals.h"
#include "migrate/trim.h"
#include "migrate/wait.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/probes.h"

void migration_post(struct migration *m, enum migration_news news)
{
	pthread_mutex_lock(&m->lock);
	m->news |= news;
	pthread_mutex_unlock(&m->lock);
	uv_async_send(&m->owner->news);
}

void migration_order(struct migration *m, enum conductor_order order)
{
	pthread_mutex_lock(&m->lock);
	m->orders |= order;
	pthread_cond_broadcast(&m->ordered);
	pthread_mutex_unlock(&m->lock);
}

/* A watcher may end its watch when it is told. */
static void tell(struct migration_watcher *w, struct migration *m)
{
	for (struct migration_watcher *next; w; w = next) {
		next = w->next;
		w->changed(w, m);
	}
}

void migration_move(struct migration *m, enum migration_state to, const char *reason_fmt, ...)
{
	struct error reason = ERROR_INIT;
	va_list ap;

	va_start(ap, reason_fmt);
	error_setv(&reason, 0, reason_fmt, ap);
	va_end(ap);
	if (!migration_state_allows(m->state, to)) {
		log_migration_error(m->params.id, "bug: %s -> %s is no transition (%s)",
		                    migration_state_name(m->state), migration_state_name(to),
		                    reason.text);
		return;
	}
	log_event(LOG_LEVEL_INFO, m->params.id,
	          LOG_FIELDS({ "STATE", migration_state_name(to) },
	                     { "PREVIOUS_STATE", migration_state_name(m->state) },
	                     { "ROLE", migration_role_name(m->params.role) },
	                     { "REASON", reason.text }),
	          "%s -> %s%s%s", migration_state_name(m->state), migration_state_name(to),
	          *reason.text ? ": " : "", reason.text);
	probe_migration_state(m->params.id, migration_state_name(m->state),
	                      migration_state_name(to));
	m->state = to;
	queue_leave(m);
	if (to == MIGRATION_PAUSED)
		m->owner->totals.pauses++;
	m->waits_since_ms = uv_now(m->owner->loop);
	m->state_real_ns = clock_real_ns();
	snprintf(m->reason, sizeof m->reason, "%s", reason.text);
	if (to == MIGRATION_WARMING || to == MIGRATION_SWITCHING)
		migrations_watch_waits(m->owner);
	if (to == MIGRATION_WARMING)
		migrations_watch_bandwidth(m->owner);
	if (migration_state_is_final(to)) {
		m->ended_ns = clock_now_ns();
		totals_note_end(m);
		queue_look(m->owner);
		migrations_trim_later(m->owner);
	}
	/* Before anybody hears of it. */
	migration_save(m);
	tell(m->owner->watchers, m);
	tell(m->watchers, m);
}

void migration_tell(struct migration *m, const char *reason)
{
	if (reason != m->reason)
		snprintf(m->reason, sizeof m->reason, "%s", reason);
	tell(m->owner->watchers, m);
	tell(m->watchers, m);
}

bool migration_source_is_away(struct migration *m, struct error *err)
{
	struct pull_connection c;

	pull_get_connection(m->pull, &c);
	if (!c.lost)
		error_set(err, -EBUSY, "the source is connected");
	else if (!c.away)
		error_set(err, -EBUSY,
		          "the source is being dialled, and has not failed to answer yet; or it is "
		          "connected in part; try again");
	return c.away;
}

int migration_refuse_now(const struct migration *m, const char *what, struct error *err)
{
	return error_set(err, -EBUSY, "migration \"%s\" is %s: %s is not possible now",
	                 m->params.id, migration_state_name(m->state), what);
}

int migration_read_table(const struct vmm_wire_msg *msg, struct region_table *ret,
                         struct error *err)
{
	memset(ret, 0, sizeof *ret);
	if (!msg->n_regions)
		return error_set(err, -EINVAL, "the region table is empty");
	for (uint32_t i = 0; i < msg->n_regions; i++) {
		const struct vmm_wire_region *w = &msg->regions[i];
		struct region r = {
			.memory = (enum postcopy_memory)w->memory,
			.flags = w->flags,
			.guest_phys_addr = w->guest_phys_addr,
			.size = w->size,
			.page_size = w->page_size,
			.host_addr = w->host_addr,
			.fd_offset = w->fd_offset,
			.uffd_mode = w->uffd_mode,
		};
		int rc;

		memcpy(r.name, w->name, sizeof r.name);
		rc = region_table_add(ret, &r, err);
		if (rc)
			return rc;
		if (r.flags & POSTCOPY_REGION_ASKED && msg->role != VMM_WIRE_DESTINATION)
			return error_set(err, -EINVAL,
			                 "region %u: only a destination's pages are asked for", i);
		/* Where the memory is late, its table is of the source's, which has none here. */
		if (!r.host_addr && !(r.flags & POSTCOPY_REGION_ASKED) &&
		    !(msg->attach_flags & VMM_WIRE_ATTACH_LATE))
			return error_set(err, -EINVAL, "region %u: no host address", i);
	}
	return 0;
}
