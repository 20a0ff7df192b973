/* SPDX-License-Identifier: Apache-2.0 */
/* The half of taking over that leaves things behind. */
#include "migrate/record/keep.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/adapter.h"
#include "util/cleanup.h"
#include "util/log.h"

/* The manager's store is told of from so full on, and again once it was emptier than that. */
#define WARN_PERCENT 80u
#define CALM_PERCENT 70u
/* This part of the store only root's VMMs get. */
#define SPARE_PART 32u

_Static_assert(MIGRATION_KEY_BYTES + 32 < FD_STORE_NAME_BYTES, "any kind and key make a name");

bool keep_key(const char *name, char key[MIGRATION_KEY_BYTES])
{
	const char *dot = strchr(name, '.');

	if (!dot)
		return false;
	snprintf(key, MIGRATION_KEY_BYTES, "%.*s", (int)strcspn(dot + 1, "+"), dot + 1);
	return true;
}

static void name_fd(const struct migration *m, const char *kind, char name[FD_STORE_NAME_BYTES])
{
	snprintf(name, FD_STORE_NAME_BYTES, "%s.%s", kind, m->key);
}

static void name_memory(const struct migration *m, size_t index, char name[FD_STORE_NAME_BYTES])
{
	snprintf(name, FD_STORE_NAME_BYTES, "mem%zu.%s", index, m->key);
}

/* Memory that is an entry of another name: the next process can't guess that. */
static void put_entries(const struct migration *m, struct saved *s)
{
	for (size_t i = 0; i < m->n_fds; i++) {
		char name[FD_STORE_NAME_BYTES];
		const char *entry;

		name_memory(m, i, name);
		entry = fd_store_entry(m->owner->config.store, name);
		if (entry && strcmp(entry, name))
			snprintf(s->entries[i], sizeof s->entries[i], "%s", entry);
	}
}

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
		memcpy(s->regions[i].name, r->name, sizeof r->name);
	}
}

static void put_all(struct migration *m, struct saved *s)
{
	bool source = m->params.role == MIGRATION_SOURCE;
	bool over = migration_state_is_final(m->state);

	s->params = m->params;
	s->limits = m->limits;
	s->state = m->state;
	memcpy(s->reason, m->reason, sizeof s->reason);
	put_regions(m, s);
	put_entries(m, s);
	s->switchover = m->switchover;
	s->queued_ns = m->turn.since_ns;
	s->priority = m->turn.priority;
	s->turn_switchover = m->turn.switchover;
	s->memory = m->memory;
	s->shards = over ? 0 : m->shards.n;
	s->shards_offered = over ? 0 : m->shards.offered;
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
	s->warming = m->warming;
	s->epoch = m->epoch;
	s->holder = m->holder;
	s->farewell = m->farewell;
	s->vmstate_held = source ? m->paused : m->may_have_run && !m->resumed_ns;
	s->vmstate_len = m->vmstate_len;
	s->pause_ns = m->source_pause_ns;
	s->dirty_log = m->dirty_log;
	s->warm = m->warm;
	s->times.switch_sent_ns = m->switch_sent_ns;
	s->times.vmstate_received_ns = m->vmstate_received_ns;
	pthread_mutex_unlock(&m->lock);
}

void migration_save(struct migration *m)
{
	/* The loop's alone; and what comes after may rely on it: it can't lack memory. */
	static struct saved s;
	static uint8_t buf[RECORD_BYTES_MAX];
	int rc;

	/* What is not taken over yet is in the record, and not in @m. */
	if (m->record.fd < 0 || m->left)
		return;
	put_all(m, &s);
	rc = record_write(&m->record, buf, saved_encode(&s, buf));
	explicit_bzero(&s, sizeof s);
	explicit_bzero(buf, sizeof buf);
	if (rc)
		log_migration_error(m->params.id,
		                    "its record can't be written: %s; a daemon that takes over "
		                    "goes on from the last one",
		                    strerror(-rc));
}

int migration_save_first(struct migration *m, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	int rc;

	if (!fd_store_exists(store))
		return 0;
	rc = fd_store_check_room(
	        store, 1, m->params.client_is_root ? 0 : fd_store_max(store) / SPARE_PART, err);
	if (rc)
		return error_prefix(err, "migration \"%s\"", m->params.id);
	rc = record_init(&m->record);
	if (rc)
		return error_errno(err, rc, "migration \"%s\": record", m->params.id);
	migration_save(m);
	rc = migration_keep_fd(m, "record", m->record.fd, err);
	return rc ? error_prefix(err, "migration \"%s\"", m->params.id) : 0;
}

static void look_how_full(struct migrations *ms)
{
	uint64_t count = fd_store_count(ms->config.store), max = fd_store_max(ms->config.store);

	if (!max)
		return;
	if (count * 100 < max * CALM_PERCENT)
		ms->store_warned = false;
	if (count * 100 < max * WARN_PERCENT || ms->store_warned)
		return;
	ms->store_warned = true;
	log_warning("the service manager keeps %llu of %llu descriptors for this daemon: soon no "
	            "migration more fits (FileDescriptorStoreMax= of the unit)",
	            (unsigned long long)count, (unsigned long long)max);
}

static int keep(struct migration *m, const char *name, int fd, struct error *err)
{
	int rc = fd_store_add(m->owner->config.store, name, fd);

	if (rc && rc != -EEXIST)
		fd_store_remove(m->owner->config.store, name);
	if (rc)
		return error_errno(err, rc, "the service manager does not keep \"%s\"", name);
	look_how_full(m->owner);
	return 0;
}

int migration_keep_fd(struct migration *m, const char *kind, int fd, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	const char *entry = fd_store_exists(store) ? fd_store_find(store, fd) : NULL;
	char name[FD_STORE_NAME_BYTES];

	name_fd(m, kind, name);
	if (entry && !fd_store_entry(store, name))
		return error_set(err, -EEXIST,
		                 "the descriptor that is to be \"%s\" is the same open file as "
		                 "\"%s\"",
		                 name, entry);
	return keep(m, name, fd, err);
}

void migration_drop_fds(struct migration *m, const char *kind)
{
	char name[FD_STORE_NAME_BYTES];

	name_fd(m, kind, name);
	fd_store_remove(m->owner->config.store, name);
}

/* The VMM's socket and the vmstate; the page state. */
static size_t entries_beside(const struct migration *m)
{
	return 2 + (m->params.role == MIGRATION_DESTINATION);
}

/* All userfaultfds but the first, and the journals. */
static size_t entries_of_shards(unsigned int n)
{
	return n > 1 ? n : 0;
}

/* Of the store, with its VMM, which may have no memory yet: as check_room() looks for it. */
static size_t entries_of(const struct migration *m)
{
	size_t n = m->n_fds + m->n_channels + (m->process != NULL);

	if (!m->n_fds && (!migration_has_vmm(m) || migration_state_is_final(m->state)))
		return n;
	return n + entries_beside(m) + (m->dirty_log ? DIRTY_LOG_FDS : 0) +
	       entries_of_shards(m->shards.n ? m->shards.n : m->shards.offered);
}

/* Other users' guests find room as well. Return: 0; -EDQUOT with @err set. */
static int check_share(const struct migrations *ms, uid_t uid, size_t n, struct error *err)
{
	uint64_t percent = ms->config.user_store_percent;
	uint64_t most = fd_store_max(ms->config.store) * percent / 100, have = 0;

	if (!uid || !percent || !fd_store_exists(ms->config.store))
		return 0;
	for (const struct migration *m = ms->list; m; m = m->next)
		have += m->vmm_uid == uid ? entries_of(m) : 0;
	if (have + n <= most)
		return 0;
	return error_set(err, -EDQUOT,
	                 "VMMs of user %u have %llu of the %llu descriptors that the service "
	                 "manager keeps for one user: %zu more would keep others' guests out "
	                 "(max-user-store)",
	                 uid, (unsigned long long)have, (unsigned long long)most, n);
}

static int check_room(const struct migration *m, size_t n, uid_t uid, struct error *err)
{
	const struct fd_store *store = m->owner->config.store;
	int rc = check_share(m->owner, uid, n, err);

	if (rc)
		return rc;
	return fd_store_check_room(store, (unsigned int)n,
	                           uid ? fd_store_max(store) / SPARE_PART : 0, err);
}

static int hold(struct migration *m, const char *kind, struct error *err)
{
	char name[FD_STORE_NAME_BYTES];
	int rc;

	name_fd(m, kind, name);
	rc = fd_store_hold(m->owner->config.store, name);
	return rc ? error_errno(err, rc, "room for \"%s\"", name) : 0;
}

/* The vmstate is kept when there may be no way back: it must fit then. */
int migration_hold_room(struct migration *m, struct error *err)
{
	return hold(m, "vmstate", err);
}

/* The descriptors of a table. */
static int keep_memory(struct migration *m, const struct vmm_attach *attach, struct error *err)
{
	size_t first = vmm_wire_has_uffd(attach->msg);
	int rc = first ? migration_keep_fd(m, "uffd", attach->fds[0], err) : 0;

	for (size_t i = first; i < attach->n_fds && !rc; i++) {
		char name[FD_STORE_NAME_BYTES];

		/* Two of them, or another migration, may have the same open file. */
		name_memory(m, i, name);
		rc = keep(m, name, attach->fds[i], err);
	}
	m->n_fds = attach->n_fds;
	return rc;
}

int migration_keep_attach(struct migration *m, const struct vmm_attach *attach, uid_t vmm_uid,
                          struct error *err)
{
	/* With the process that is spoken for. */
	size_t n = attach->n_fds + entries_beside(m) + (attach->pidfd >= 0);
	int rc = check_room(m, n, vmm_uid, err);

	if (!rc)
		rc = migration_hold_room(m, err);
	m->vmm_uid = vmm_uid;
	return rc || !attach->msg->n_regions ? rc : keep_memory(m, attach, err);
}

int migration_keep_late(struct migration *m, const struct vmm_attach *attach, struct error *err)
{
	/* What belongs to it beside that is there since it attached. */
	int rc = check_room(m, attach->n_fds, m->vmm_uid, err);

	return rc ? rc : keep_memory(m, attach, err);
}

/* "uffd1" and so on. */
static const char *shard_kind(unsigned int shard, char kind[16])
{
	snprintf(kind, 16, "uffd%u", shard);
	return kind;
}

int migration_hold_shards(struct migration *m, unsigned int n, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	char kind[16];
	int rc;

	if (!fd_store_exists(store))
		return 0;
	rc = check_room(m, entries_of_shards(n), m->vmm_uid, err);
	for (unsigned int i = 1; i < n && !rc; i++)
		rc = hold(m, shard_kind(i, kind), err);
	if (!rc)
		rc = hold(m, "journals", err);
	m->shards.held = !rc;
	if (rc)
		migration_drop_shards(m);
	return rc;
}

int migration_keep_shards(struct migration *m, const int *uffds, unsigned int n, int journals_fd,
                          struct error *err)
{
	char kind[16];
	int rc = migration_keep_fd(m, "journals", journals_fd, err);

	for (unsigned int i = 1; i < n && !rc; i++)
		rc = migration_keep_fd(m, shard_kind(i, kind), uffds[i - 1], err);
	if (rc)
		migration_drop_shards(m);
	/* Its VMM may have made fewer than it might. */
	for (unsigned int i = n; i < SHARDS_MAX && !rc; i++)
		migration_drop_fds(m, shard_kind(i, kind));
	return rc;
}

void migration_drop_shards(struct migration *m)
{
	char kind[16];

	for (unsigned int i = 1; i < SHARDS_MAX; i++)
		migration_drop_fds(m, shard_kind(i, kind));
	migration_drop_fds(m, "journals");
	m->shards.held = false;
}

int migration_take_shards(struct migration *m, unsigned int n, int uffds[SHARDS_MAX - 1],
                          int *ret_journals_fd, struct error *err)
{
	char kind[16];
	int rc = 0;

	for (unsigned int i = 0; i < SHARDS_MAX - 1; i++)
		uffds[i] = -1;
	*ret_journals_fd = migration_take_fd(m, "journals");
	if (*ret_journals_fd < 0)
		rc = error_errno(err, *ret_journals_fd, "\"journals.%s\"", m->key);
	for (unsigned int i = 1; i < n && !rc; i++) {
		uffds[i - 1] = migration_take_fd(m, shard_kind(i, kind));
		if (uffds[i - 1] < 0)
			rc = error_errno(err, uffds[i - 1], "\"%s.%s\"", kind, m->key);
	}
	for (unsigned int i = 0; i < SHARDS_MAX - 1 && rc; i++)
		if (uffds[i] >= 0)
			close_fd(&uffds[i]);
	if (rc && *ret_journals_fd >= 0)
		close_fd(ret_journals_fd);
	return rc;
}

static const char *const log_kinds[DIRTY_LOG_FDS] = {
	[DIRTY_LOG_FD_BITMAP] = "dirty",
	[DIRTY_LOG_FD_UFFD] = "wp",
	[DIRTY_LOG_FD_PAGEMAP] = "pagemap",
};

int migration_keep_log(struct migration *m, const struct dirty_log *log, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	int rc;

	if (!fd_store_exists(store))
		return 0;
	rc = check_share(m->owner, m->vmm_uid, DIRTY_LOG_FDS, err);
	if (!rc)
		rc = fd_store_check_room(store, DIRTY_LOG_FDS,
		                         m->vmm_uid ? fd_store_max(store) / SPARE_PART : 0, err);
	for (int i = 0; i < DIRTY_LOG_FDS && !rc; i++) {
		int fd = dirty_log_fd(log, (enum dirty_log_fd)i);

		if (fd >= 0)
			rc = migration_keep_fd(m, log_kinds[i], fd, err);
	}
	if (rc)
		migration_drop_log(m);
	return rc;
}

void migration_drop_log(struct migration *m)
{
	for (int i = 0; i < DIRTY_LOG_FDS; i++)
		migration_drop_fds(m, log_kinds[i]);
}

int migration_take_log(struct migration *m, enum dirty_log_how how, struct dirty_log **ret,
                       struct error *err)
{
	int fds[DIRTY_LOG_FDS], rc;

	for (int i = 0; i < DIRTY_LOG_FDS; i++)
		fds[i] = migration_take_fd(m, log_kinds[i]);
	rc = fds[DIRTY_LOG_FD_BITMAP] < 0
	             ? error_errno(err, fds[DIRTY_LOG_FD_BITMAP], "the dirty bitmap")
	             : dirty_log_new(&m->table, how, fds, ret, err);
	for (int i = 0; i < DIRTY_LOG_FDS && rc; i++)
		if (fds[i] >= 0)
			close_fd(&fds[i]);
	return rc;
}

void migration_drop_attach(struct migration *m)
{
	for (size_t i = 0; i < m->n_fds; i++) {
		char name[FD_STORE_NAME_BYTES];

		name_memory(m, i, name);
		fd_store_remove(m->owner->config.store, name);
	}
	if (m->params.role == MIGRATION_SOURCE) {
		migration_drop_fds(m, "poison");
		migration_drop_log(m);
	}
	/* Channels are there before late memory is. */
	if (m->params.role == MIGRATION_DESTINATION) {
		const char *channel;

		migration_drop_fds(m, "uffd");
		migration_drop_shards(m);
		migration_drop_fds(m, "pages");
		while ((channel = migration_channel(m, 0)))
			fd_store_remove(m->owner->config.store, channel);
	}
	migration_drop_fds(m, "vmstate");
	m->n_fds = 0;
	m->n_channels = 0;
}

/* "channel7.KEY"; the manager may have several that it calls the same ("channel.KEY+1"). */
static bool is_channel_of(const struct migration *m, const char *name)
{
	size_t len = strlen(m->key);

	name += strlen("channel");
	while (isdigit((unsigned char)*name))
		name++;
	return *name == '.' && !strncmp(name + 1, m->key, len) &&
	       (!name[1 + len] || name[1 + len] == '+');
}

const char *migration_channel(const struct migration *m, unsigned int n)
{
	const char *name;

	for (unsigned int i = 0; (name = fd_store_name(m->owner->config.store, "channel", i)); i++)
		if (is_channel_of(m, name) && !n--)
			return name;
	return NULL;
}

/* Those whose VMM has closed them. Return: how many are left. */
static unsigned int sweep_channels(struct migration *m)
{
	struct fd_store *store = m->owner->config.store;
	unsigned int n = 0;
	const char *name;

	while ((name = migration_channel(m, n)))
		if (fd_store_hung_up(store, name))
			fd_store_remove(store, name);
		else
			n++;
	return n;
}

int migration_keep_channel(struct migration *m, int fd, struct error *err)
{
	struct fd_store *store = m->owner->config.store;
	unsigned int n = sweep_channels(m), number = 0;
	char kind[32], name[FD_STORE_NAME_BYTES];
	int rc;

	if (!fd_store_exists(store))
		return 0;
	if (n >= m->owner->config.max_channels)
		return error_set(err, -EUSERS, "a VMM has %u fetch channels at most (max-channels)",
		                 m->owner->config.max_channels);
	m->n_channels = n;
	rc = check_share(m->owner, m->vmm_uid, 1, err);
	if (rc)
		return rc;
	rc = fd_store_check_room(store, 1, fd_store_max(store) / SPARE_PART, err);
	if (rc)
		return rc;
	do {
		snprintf(kind, sizeof kind, "channel%u", number++);
		name_fd(m, kind, name);
	} while (fd_store_entry(store, name));
	rc = migration_keep_fd(m, kind, fd, err);
	m->n_channels += !rc;
	return rc;
}
