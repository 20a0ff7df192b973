/* SPDX-License-Identifier: Apache-2.0 */
/* The half of taking over that leaves things behind. */
#include <stdlib.h>
#include <string.h>

#include "migrate/takeover.h"
#include "util/log.h"

#define NAME_MAX_BYTES (MIGRATION_ID_MAX + 32)

static void put_regions(const struct migration *m, struct saved *s)
{
	s->n_regions = m->table.n;
	for (uint32_t i = 0; i < m->table.n; i++) {
		const struct region *r = &m->table.regions[i];

		s->regions[i] = (struct vmm_wire_region){
			.memory = r->memory,
			.flags = r->flags,
			.guest_phys_addr = r->guest_phys_addr,
			.size = r->size,
			.page_size = r->page_size,
			.host_addr = r->host_addr,
			.fd_offset = r->fd_offset,
			.fd_index = m->fd_index[i],
			.uffd_mode = r->uffd_mode,
		};
	}
}

static void put_all(struct migration *m, struct saved *s)
{
	bool source = m->params.role == MIGRATION_SOURCE;

	s->params = m->params;
	s->limits = m->limits;
	s->state = m->state;
	memcpy(s->reason, m->reason, sizeof s->reason);
	put_regions(m, s);
	s->switchover = m->switchover;
	s->vmm_resumed = source && m->state == MIGRATION_POSTCOPY;
	s->times.started_ns = m->started_ns;
	s->times.ended_ns = m->ended_ns;
	s->times.pause_sent_ns = m->pause_sent_ns;
	s->times.loaded_ns = m->loaded_ns;
	s->times.resumed_ns = m->resumed_ns;
	s->times.prepared_real_ns = m->prepared_real_ns;
	s->times.state_real_ns = m->state_real_ns;
	s->times.resumed_real_ns = m->resumed_real_ns;
	pthread_mutex_lock(&m->lock);
	s->target = m->target;
	s->epoch = m->epoch;
	s->holder = m->holder;
	s->farewell = m->farewell;
	s->vmstate_held = source ? m->paused : m->may_have_run && !m->resumed_ns;
	s->vmstate_len = m->vmstate_len;
	s->pause_ns = m->source_pause_ns;
	s->times.switch_sent_ns = m->switch_sent_ns;
	s->times.vmstate_received_ns = m->vmstate_received_ns;
	pthread_mutex_unlock(&m->lock);
}

void migration_save(struct migration *m)
{
	struct saved *s;
	uint8_t buf[RECORD_BYTES_MAX];
	int rc = -ENOMEM;

	if (m->record.fd < 0)
		return;
	s = calloc(1, sizeof *s);
	if (s) {
		put_all(m, s);
		rc = record_write(&m->record, buf, saved_encode(s, buf));
		explicit_bzero(s, sizeof *s);
		explicit_bzero(buf, sizeof buf);
	}
	free(s);
	if (rc)
		log_migration_error(m->params.id,
		                    "its record can't be written: %s; a daemon that takes over "
		                    "goes on from the last one",
		                    strerror(-rc));
}

int migration_save_first(struct migration *m, struct error *err)
{
	int rc;

	if (!fd_store_exists(m->owner->config.store))
		return 0;
	rc = record_init(&m->record);
	if (rc)
		return error_errno(err, rc, "migration \"%s\": record", m->params.id);
	migration_save(m);
	migration_keep_fd(m, "record", m->record.fd);
	return 0;
}

static void name_fd(const struct migration *m, const char *kind, char name[NAME_MAX_BYTES])
{
	snprintf(name, NAME_MAX_BYTES, "%s.%s", kind, m->params.id);
}

void migration_keep_fd(struct migration *m, const char *kind, int fd)
{
	char name[NAME_MAX_BYTES];
	int rc;

	name_fd(m, kind, name);
	rc = fd_store_add(m->owner->config.store, name, fd);
	if (rc)
		log_migration_error(m->params.id, "the service manager does not keep \"%s\": %s",
		                    name, strerror(-rc));
}

void migration_drop_fds(struct migration *m, const char *kind)
{
	char name[NAME_MAX_BYTES];

	name_fd(m, kind, name);
	fd_store_remove(m->owner->config.store, name);
}

void migration_keep_attach(struct migration *m, const struct vmm_attach *attach)
{
	size_t first = m->params.role == MIGRATION_DESTINATION;

	if (first)
		migration_keep_fd(m, "uffd", attach->fds[0]);
	for (size_t i = first; i < attach->n_fds; i++) {
		char kind[32];

		snprintf(kind, sizeof kind, "mem%zu", i);
		migration_keep_fd(m, kind, attach->fds[i]);
	}
	m->n_fds = attach->n_fds;
}

void migration_drop_attach(struct migration *m)
{
	for (size_t i = 0; i < m->n_fds; i++) {
		char kind[32];

		snprintf(kind, sizeof kind, "mem%zu", i);
		migration_drop_fds(m, kind);
	}
	if (m->n_fds && m->params.role == MIGRATION_DESTINATION) {
		migration_drop_fds(m, "uffd");
		migration_drop_fds(m, "pages");
		migration_drop_fds(m, "channel");
	}
	m->n_fds = 0;
}
