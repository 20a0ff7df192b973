/* SPDX-License-Identifier: Apache-2.0 */
/* The half of taking over that takes up. */
#include "migrate/takeover.h"

#include <errno.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/log.h"

#define RECORD_PREFIX "record."

/* A record that was read, until a migration has been made of it. */
struct left {
	struct left *next;
	struct record record;
	struct saved saved;
};

static struct left *left_free(struct left *l)
{
	while (l) {
		struct left *next = l->next;

		record_deinit(&l->record);
		explicit_bzero(&l->saved, sizeof l->saved);
		free(l);
		l = next;
	}
	return NULL;
}
DEFINE_CLEANUP(struct left *, left_free);

/* Return: 0 with the record read; or what is wrong with it, with @err set. */
static int read_record(int fd, struct left **ret, struct error *err)
{
	_cleanup_free_ uint8_t *buf = malloc(RECORD_BYTES_MAX);
	_cleanup_(left_free_p) struct left *l = calloc(1, sizeof *l);
	size_t len;
	int rc;

	if (!buf || !l) {
		close(fd);
		return error_set(err, -ENOMEM, "record: out of memory");
	}
	l->record = RECORD_INIT;
	rc = record_adopt(&l->record, fd, buf, &len, err);
	if (rc) {
		close(fd);
		return rc;
	}
	rc = saved_decode(buf, len, &l->saved, err);
	explicit_bzero(buf, RECORD_BYTES_MAX);
	if (!rc)
		*ret = steal_ptr(&l);
	return rc;
}

/* In the order in which they were prepared. */
static void insert(struct left **list, struct left *l)
{
	while (*list && (*list)->saved.times.prepared_real_ns <= l->saved.times.prepared_real_ns)
		list = &(*list)->next;
	l->next = *list;
	*list = l;
}

/* All records, before anything is done about any of them. */
static int read_records(struct fd_store *store, struct left **ret, struct error *err)
{
	_cleanup_(left_free_p) struct left *list = NULL;
	const char *name;

	while ((name = fd_store_name(store, RECORD_PREFIX, 0))) {
		struct left *l = NULL;
		int fd = fd_store_take(store, name);
		int rc = read_record(fd, &l, err);

		if (!rc) {
			insert(&list, l);
			continue;
		}
		/* Not ours to judge: whoever wrote it can go on from it. */
		if (rc == -EPROTONOSUPPORT || rc == -ENOMEM)
			return error_prefix(err, "\"%s\"", name);
		log_error("\"%s\" is of no use: %s", name, err->text);
		fd_store_remove(store, name);
	}
	*ret = steal_ptr(&list);
	return 0;
}

static void fill_message(const struct saved *s, struct vmm_wire_msg *msg)
{
	msg->type = VMM_WIRE_ATTACH;
	msg->role = (enum vmm_wire_role)s->params.role;
	memcpy(msg->id, s->params.id, sizeof msg->id);
	msg->n_regions = s->n_regions;
	memcpy(msg->regions, s->regions, sizeof msg->regions);
}

/* The descriptors of the ATTACH from the store. Return: 0, or -ENOENT with @err naming one. */
static int take_fds(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	size_t first = m->params.role == MIGRATION_DESTINATION;
	char name[MIGRATION_ID_MAX + 32];

	attach->n_fds = first;
	for (uint32_t i = 0; i < attach->msg->n_regions; i++) {
		uint32_t index = attach->msg->regions[i].fd_index;

		if (index != VMM_WIRE_NO_FD && index >= VMM_WIRE_FDS_MAX)
			return error_set(err, -EPROTO, "its record names descriptor %u", index);
		if (index != VMM_WIRE_NO_FD && index >= attach->n_fds)
			attach->n_fds = index + 1;
	}
	m->n_fds = attach->n_fds;
	for (size_t i = 0; i < attach->n_fds; i++) {
		if (i < first)
			snprintf(name, sizeof name, "uffd.%s", m->params.id);
		else
			snprintf(name, sizeof name, "mem%zu.%s", i, m->params.id);
		attach->fds[i] = fd_store_take(store, name);
		if (attach->fds[i] < 0)
			return error_set(err, -ENOENT, "\"%s\" is not among the descriptors", name);
	}
	return 0;
}

int migration_take_fd(struct migration *m, const char *kind)
{
	char name[MIGRATION_ID_MAX + 32];

	snprintf(name, sizeof name, "%s.%s", kind, m->params.id);
	return fd_store_take(m->owner->config.store, name);
}

/* Guest memory and what belongs to it. */
static int take_memory(struct migration *m, const struct saved *s, struct vmm_wire_msg *msg,
                       struct error *err)
{
	int fds[VMM_WIRE_FDS_MAX];
	struct vmm_attach attach = { .msg = msg, .fds = fds };
	int rc;

	for (size_t i = 0; i < VMM_WIRE_FDS_MAX; i++)
		fds[i] = -1;
	rc = take_fds(m, &attach, err);
	if (!rc)
		rc = m->params.role == MIGRATION_SOURCE ? source_take_over(m, &attach, s, err)
		                                        : destination_take_over(m, &attach, err);
	for (size_t i = 0; i < VMM_WIRE_FDS_MAX; i++)
		close_fd(&fds[i]);
	return rc;
}

static void restore(struct migration *m, const struct saved *s)
{
	m->state = s->state;
	memcpy(m->reason, s->reason, sizeof m->reason);
	m->taken_over = true;
	m->switchover = s->switchover;
	m->started_ns = s->times.started_ns;
	m->ended_ns = s->times.ended_ns;
	m->pause_sent_ns = s->times.pause_sent_ns;
	m->loaded_ns = s->times.loaded_ns;
	m->resumed_ns = s->times.resumed_ns;
	m->prepared_real_ns = s->times.prepared_real_ns;
	m->state_real_ns = s->times.state_real_ns;
	m->resumed_real_ns = s->times.resumed_real_ns;
	m->switch_sent_ns = s->times.switch_sent_ns;
	m->vmstate_received_ns = s->times.vmstate_received_ns;
	m->source_pause_ns = s->pause_ns;
	m->vmstate_len = s->vmstate_len;
	m->epoch = s->epoch;
	m->holder = s->holder;
	m->farewell = s->farewell;
	m->limits = s->limits;
	m->target = s->target;
	for (uint32_t i = 0; i < s->n_regions; i++)
		m->fd_index[i] = s->regions[i].fd_index;
}

static void adopt_vmm(struct migration *m)
{
	int fd = migration_take_fd(m, "vmm");

	if (fd >= 0 && vmm_server_adopt(m->owner->vmm_server, fd, m, &m->vmm))
		log_migration_error(m->params.id, "the VMM's socket can't be taken up");
}

/* Each role's normal course from where it was. */
static void go_on(struct migration *m)
{
	adopt_vmm(m);
	if (m->params.role == MIGRATION_SOURCE)
		source_go_on(m);
	else
		destination_go_on(m);
}

static void take_over(struct migrations *ms, struct left *l)
{
	const struct saved *s = &l->saved;
	struct vmm_wire_msg *msg = calloc(1, sizeof *msg);
	struct error err = ERROR_INIT;
	struct migration *m = migration_new(ms, &s->params, NULL);
	int rc = 0;

	if (!m || !msg) {
		log_migration_error(s->params.id, "out of memory: left in the store");
		free(msg);
		return;
	}
	m->record = l->record;
	l->record = RECORD_INIT;
	restore(m, s);
	fill_message(s, msg);
	if (s->n_regions)
		rc = migration_read_table(msg, &m->table, &err);
	if (!rc && m->state != MIGRATION_PREPARED && !migration_state_is_final(m->state))
		rc = take_memory(m, s, msg, &err);
	free(msg);
	log_migration_info(m->params.id, "taken over as %s, %s",
	                   m->params.role == MIGRATION_SOURCE ? "source" : "destination",
	                   migration_state_name(m->state));
	if (rc)
		migration_move(m, MIGRATION_FAILED, "it can't be taken over: %s", err.text);
	go_on(m);
}

/* What belongs to no migration: its record was not there yet, or not any more. */
static void drop_strays(struct fd_store *store)
{
	static const char *const kinds[] = { "vmm.",   "mem",      "uffd.",
		                             "pages.", "vmstate.", "channel." };

	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		const char *name;

		while ((name = fd_store_name(store, kinds[i], 0))) {
			log_warning("descriptor \"%s\" belongs to no migration: dropped", name);
			fd_store_remove(store, name);
		}
	}
}

int migrations_take_over(struct migrations *ms, struct error *err)
{
	_cleanup_(left_free_p) struct left *list = NULL;
	int rc = read_records(ms->config.store, &list, err);

	if (rc)
		return rc;
	for (struct left *l = list; l; l = l->next)
		take_over(ms, l);
	drop_strays(ms->config.store);
	return 0;
}
