/* SPDX-License-Identifier: Apache-2.0 */
/* The half of taking over that takes up. */
#include "migrate/record/takeover.h"

#include <errno.h>
#include <string.h>

#include "migrate/adapter.h"
#include "migrate/attach.h"
#include "migrate/bandwidth.h"
#include "migrate/destination/destination.h"
#include "migrate/queue.h"
#include "migrate/record/keep.h"
#include "migrate/record/unread.h"
#include "migrate/source/source.h"
#include "migrate/wait.h"
#include "util/cleanup.h"
#include "util/log.h"

#define RECORD_PREFIX "record."

/* Between tries to take over what could not be for want of something. */
#define AGAIN_MIN_MS 50u
#define AGAIN_MAX_MS 5000u

/* A record that was read, until a migration has been made of it. */
struct left {
	struct left *next;
	char key[MIGRATION_KEY_BYTES];
	struct record record;
	struct saved saved;
	struct migration *migration; /* once there is one */
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

/* What may be there a moment later. */
static bool is_want(int rc)
{
	return rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE || rc == -EAGAIN || rc == -ENOBUFS;
}

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

/*
 * All records, before anything is done about any of them. One that makes no sense to us may do so
 * to whoever wrote it, and a guest hangs on it: without its userfaultfd it would read zeroes for
 * what has not come. It is left where it is, with all that belongs to it, and holds up no other.
 */
static int read_records(struct migrations *ms, struct left **ret, struct error *err)
{
	_cleanup_(left_free_p) struct left *list = NULL;
	struct fd_store *store = ms->config.store;
	const char *name;
	unsigned int n = 0;

	while ((name = fd_store_name(store, RECORD_PREFIX, n))) {
		struct left *l = NULL;
		int fd = fd_store_get(store, name);
		int rc = fd < 0 ? error_errno(err, fd, "descriptor") : read_record(fd, &l, err);

		if (!rc) {
			keep_key(name, l->key);
			insert(&list, l);
			n++;
			continue;
		}
		/* Not ours to judge: whoever wrote it, or has what we lack, can go on from it. */
		if (rc == -EPROTONOSUPPORT || is_want(rc))
			return error_prefix(err, "\"%s\"", name);
		/* Nothing was done by a record before it was first written. */
		if (rc == -ENODATA) {
			log_warning("\"%s\" was never written: dropped", name);
			fd_store_remove(store, name);
			continue;
		}
		log_error(
		        "\"%s\" is left as it is, with all that belongs to it, and its guest "
		        "waits: %s: install the postcopyd that wrote it, then \"systemctl restart "
		        "postcopyd\"; a stop would lose it",
		        name, err->text);
		if (unread_note(ms, name, err))
			return -ENOMEM;
		n++;
	}
	*ret = steal_ptr(&list);
	return 0;
}

bool migrations_are_left(struct fd_store *store)
{
	const char *name;

	for (unsigned int n = 0; (name = fd_store_name(store, RECORD_PREFIX, n)); n++) {
		_cleanup_(left_free_p) struct left *l = NULL;
		int fd = fd_store_get(store, name);

		if (fd < 0 || read_record(fd, &l, NULL))
			return true;
		if (!migration_state_is_final(l->saved.state) || l->saved.farewell != FAREWELL_NONE)
			return true;
	}
	return false;
}

static void fill_message(const struct saved *s, struct vmm_wire_msg *msg)
{
	msg->type = VMM_WIRE_ATTACH;
	msg->role = (enum vmm_wire_role)s->params.role;
	memcpy(msg->id, s->params.id, sizeof msg->id);
	msg->n_regions = s->n_regions;
	memcpy(msg->regions, s->regions, sizeof msg->regions);
	if (s->memory == MIGRATION_MEMORY_LATE)
		msg->attach_flags = VMM_WIRE_ATTACH_LATE;
}

/* The descriptor of an index. Return: it; or -errno with @err naming it. */
static int take_memory_fd(struct migration *m, size_t index, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	char name[FD_STORE_NAME_BYTES];
	int fd = 0;

	snprintf(name, sizeof name, "mem%zu.%s", index, m->key);
	if (*m->left->entries[index])
		fd = fd_store_link(store, name, m->left->entries[index]);
	if (!fd)
		fd = fd_store_get(store, name);
	if (fd == -ENOENT)
		return error_set(err, -ENOENT, "\"%s\" is not among the descriptors", name);
	return fd < 0 ? error_errno(err, fd, "\"%s\"", name) : fd;
}

/* The descriptors of the ATTACH from the store. Return: 0, or -ENOENT with @err naming one. */
static int take_fds(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	size_t first = vmm_wire_has_uffd(attach->msg);

	if (attach->msg->attach_flags & VMM_WIRE_ATTACH_LATE)
		return 0;
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
		int fd = i < first ? migration_take_fd(m, "uffd") : take_memory_fd(m, i, err);

		if (fd < 0 && i < first)
			return error_errno(err, fd, "\"uffd.%s\"", m->key);
		if (fd < 0)
			return fd;
		attach->fds[i] = fd;
	}
	return 0;
}

int migration_take_fd(struct migration *m, const char *kind)
{
	char name[FD_STORE_NAME_BYTES];

	snprintf(name, sizeof name, "%s.%s", kind, m->key);
	return fd_store_get(m->owner->config.store, name);
}

/* Guest memory and what belongs to it. */
static int take_memory(struct migration *m, struct vmm_wire_msg *msg, struct error *err)
{
	const struct saved *s = m->left;
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
	m->paused = s->params.role == MIGRATION_SOURCE && s->vmstate_held;
	m->switchover = s->switchover;
	m->turn = (struct migration_turn){ s->queued_ns, s->priority, s->turn_switchover };
	m->memory = s->memory;
	m->shards.n = s->shards;
	m->shards.offered = s->shards_offered;
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
	m->dirty_log = s->dirty_log;
	m->warm = s->warm;
	m->epoch = s->epoch;
	m->holder = s->holder;
	m->farewell = s->farewell;
	m->limits = s->limits;
	m->warming = s->warming;
	m->target = s->target;
	for (uint32_t i = 0; i < s->n_regions; i++)
		m->fd_index[i] = s->regions[i].fd_index;
}

int takeover_adopt_vmm(struct migration *m, struct error *err)
{
	int fd, rc;

	rc = migration_take_over_process(m, err);
	if (rc || m->vmm)
		return rc;
	fd = migration_take_fd(m, "vmm");
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return error_errno(err, fd, "the VMM's socket");
	rc = vmm_server_adopt(m->owner->vmm_server, fd, m, &m->vmm);
	if (!rc)
		m->vmm_uid = vmm_conn_uid(m->vmm);
	return rc ? error_errno(err, rc, "the VMM's socket") : 0;
}

/* All of it, or nothing. Return: 0; or -errno with @err set. */
static int take_up(struct migration *m, struct error *err)
{
	struct vmm_wire_msg *msg = calloc(1, sizeof *msg);
	bool has_memory = m->state != MIGRATION_PREPARED && !migration_state_is_final(m->state);
	int rc;

	if (!msg)
		return error_set(err, -ENOMEM, "out of memory");
	fill_message(m->left, msg);
	rc = m->left->n_regions ? migration_read_table(msg, &m->table, err) : 0;
	if (!rc && has_memory)
		rc = take_memory(m, msg, err);
	if (!rc && has_memory && !m->resumed_ns)
		rc = migration_hold_room(m, err);
	free(msg);
	if (!rc)
		rc = takeover_adopt_vmm(m, err);
	if (rc && m->params.role == MIGRATION_SOURCE)
		source_stop(m);
	else if (rc)
		m->pull = pull_free(m->pull);
	return rc;
}

void takeover_forget(struct migration *m)
{
	if (m->left)
		explicit_bzero(m->left, sizeof *m->left);
	free(m->left);
	m->left = NULL;
}

/* Each role's normal course from where it was. */
static void go_on(struct migration *m)
{
	struct error why = ERROR_INIT;
	int rc = 0;

	m->must_go_on = false;
	if (m->params.role == MIGRATION_SOURCE)
		source_go_on(m);
	else
		rc = destination_go_on(m);
	if (!rc)
		return;
	m->must_go_on = true;
	error_errno(&why, rc, "no thread to go on with");
	takeover_try_again(m, &why);
}

/*
 * A source guest that has been paused may run elsewhere. That its memory can't be had here is no
 * reason to let it run here as well: it stands still until that can be, or until somebody commands.
 */
static bool may_run_elsewhere(const struct migration *m)
{
	return m->params.role == MIGRATION_SOURCE && m->paused &&
	       !migration_state_is_final(m->state);
}

static void take_over(struct migration *m)
{
	struct error err = ERROR_INIT;
	int rc = take_up(m, &err);

	if (is_want(rc) || (rc && may_run_elsewhere(m))) {
		takeover_try_again(m, &err);
		return;
	}
	snprintf(m->reason, sizeof m->reason, "%s", m->left->reason);
	takeover_forget(m);
	log_migration_info(m->params.id, "taken over as %s, %s",
	                   m->params.role == MIGRATION_SOURCE ? "source" : "destination",
	                   migration_state_name(m->state));
	if (rc) {
		/* To be told so. */
		(void)takeover_adopt_vmm(m, NULL);
		migration_move(m, MIGRATION_FAILED, "it can't be taken over: %s", err.text);
	}
	go_on(m);
}

static bool is_due(const struct migration *m)
{
	return m->left || m->must_go_on;
}

static bool any_is_due(const struct migrations *ms)
{
	for (const struct migration *m = ms->list; m; m = m->next)
		if (is_due(m))
			return true;
	return false;
}

/* Sources that are not there yet are not unknown. */
static void tell_page_server(struct migrations *ms)
{
	bool incomplete = false;

	for (struct migration *m = ms->list; m; m = m->next)
		incomplete |= m->left && m->params.role == MIGRATION_SOURCE;
	if (ms->config.page_server)
		page_server_set_incomplete(ms->config.page_server, incomplete);
}

static void on_again(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;

	for (struct migration *m = ms->list; m; m = m->next) {
		if (m->left)
			take_over(m);
		else if (m->must_go_on)
			go_on(m);
	}
	tell_page_server(ms);
	/* It stops looking where nothing moves, and by now something may. */
	migrations_watch_bandwidth(ms);
	if (!any_is_due(ms)) {
		ms->again_ms = 0;
		return;
	}
	ms->again_ms = ms->again_ms * 2 < AGAIN_MAX_MS ? ms->again_ms * 2 : AGAIN_MAX_MS;
	uv_timer_start(&ms->again, on_again, ms->again_ms, 0);
}

void takeover_try_again(struct migration *m, const struct error *why)
{
	struct migrations *ms = m->owner;
	char reason[sizeof m->reason];

	snprintf(reason, sizeof reason, "not taken over yet, it is tried again: %.200s", why->text);
	/* Once, and not with each try. */
	if (strcmp(m->reason, reason))
		log_migration_warning(m->params.id, "%s", reason);
	memcpy(m->reason, reason, sizeof m->reason);
	if (ms->again_ms)
		return;
	ms->again_ms = AGAIN_MIN_MS;
	ms->again.data = ms;
	uv_timer_start(&ms->again, on_again, ms->again_ms, 0);
}

int takeover_check(const struct migration *m, struct error *err)
{
	if (!m->left)
		return 0;
	return error_set(err, -EAGAIN, "migration \"%s\" is %s: %s", m->params.id,
	                 migration_state_name(m->state), m->reason);
}

/* A migration in the list of each. Return: 0 or -ENOMEM with @err: nothing was touched. */
static int enlist(struct migrations *ms, struct left *list, struct error *err)
{
	for (struct left *l = list; l; l = l->next) {
		struct migration *m = migration_new(ms, &l->saved.params, l->key, err);

		if (!m)
			return -ENOMEM;
		m->left = malloc(sizeof *m->left);
		if (!m->left)
			return error_set(err, -ENOMEM, "out of memory");
		*m->left = l->saved;
		m->record = l->record;
		l->record = RECORD_INIT;
		restore(m, m->left);
		l->migration = m;
	}
	return 0;
}

/* Whether one that is to be taken over still counts on it, by its key or as another's entry. */
static bool is_wanted(const struct migrations *ms, const char *name)
{
	char key[MIGRATION_KEY_BYTES];

	if (!keep_key(name, key))
		return false;
	for (struct migration *m = ms->list; m; m = m->next) {
		if (is_due(m) && !strcmp(m->key, key))
			return true;
		for (size_t i = 0; m->left && i < VMM_WIRE_FDS_MAX; i++)
			if (!strcmp(m->left->entries[i], name))
				return true;
	}
	return false;
}

/* What belongs to no migration: its record was not there yet, or not any more. */
static void drop_strays(struct migrations *ms)
{
	static const char *const kinds[] = { "vmm.",    "mem",     "uffd",     "pages.",
		                             "dirty.",  "wp.",     "pagemap.", "vmstate.",
		                             "poison.", "channel", "process.", "journals." };

	/* Who could tell what a record that can't be read counts on? */
	if (ms->unread.n)
		return;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		unsigned int n = 0;
		const char *name;

		while ((name = fd_store_unused(ms->config.store, kinds[i], n))) {
			if (is_wanted(ms, name)) {
				n++;
				continue;
			}
			log_warning("descriptor \"%s\" belongs to no migration: dropped", name);
			fd_store_remove(ms->config.store, name);
		}
	}
}

int migrations_take_over(struct migrations *ms, struct error *err)
{
	_cleanup_(left_free_p) struct left *list = NULL;
	int rc = read_records(ms, &list, err);

	if (!rc)
		rc = unread_hold(ms, err);
	if (!rc)
		rc = enlist(ms, list, err);
	if (rc)
		return rc;
	/* As they were prepared: the list has the last one first. */
	for (struct left *l = list; l; l = l->next)
		take_over(l->migration);
	tell_page_server(ms);
	drop_strays(ms);
	migrations_watch_waits(ms);
	migrations_watch_bandwidth(ms);
	queue_look(ms);
	return 0;
}
