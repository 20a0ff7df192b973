/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/record/saved.h"

#include <errno.h>
#include <string.h>

#include "state.pb-c.h"
#include "util/cleanup.h"

static void message_free(Postcopy__V1__SavedMigration *m)
{
	postcopy__v1__saved_migration__free_unpacked(m, NULL);
}
DEFINE_CLEANUP(Postcopy__V1__SavedMigration *, message_free);

/* Our enums are ours to change; what is written is the protocol's. */
static const Postcopy__V1__SavedState states[MIGRATION_STATES] = {
	[MIGRATION_PREPARED] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_PREPARED,
	[MIGRATION_ATTACHED] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_ATTACHED,
	[MIGRATION_WARMING] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_WARMING,
	[MIGRATION_SWITCHING] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_SWITCHING,
	[MIGRATION_POSTCOPY] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_POSTCOPY,
	[MIGRATION_PAUSED] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_PAUSED,
	[MIGRATION_COMPLETE] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_COMPLETE,
	[MIGRATION_FAILED] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_FAILED,
	[MIGRATION_CANCELLED] = POSTCOPY__V1__SAVED_STATE__SAVED_STATE_CANCELLED,
};

static const Postcopy__V1__SavedFarewell farewells[] = {
	[FAREWELL_NONE] = POSTCOPY__V1__SAVED_FAREWELL__SAVED_FAREWELL_NONE,
	[FAREWELL_COMPLETE] = POSTCOPY__V1__SAVED_FAREWELL__SAVED_FAREWELL_COMPLETE,
	[FAREWELL_ABORT] = POSTCOPY__V1__SAVED_FAREWELL__SAVED_FAREWELL_ABORT,
};

static void put_parties(const struct parties *p, Postcopy__V1__SavedParties *m)
{
	m->n_uids = p->n_uids;
	m->uids = (uint32_t *)p->uids;
	m->pid = p->pid;
	m->cgroup = (char *)p->cgroup;
	m->peer = (char *)p->peer;
}

static void put_params(const struct migration_params *p, Postcopy__V1__SavedParams *m,
                       Postcopy__V1__SavedParties *parties)
{
	put_parties(&p->parties, parties);
	m->parties = parties_are_named(&p->parties) ? parties : NULL;
	m->id = (char *)p->id;
	m->role = p->role == MIGRATION_SOURCE ? POSTCOPY__V1__SAVED_ROLE__SAVED_ROLE_SOURCE
	                                      : POSTCOPY__V1__SAVED_ROLE__SAVED_ROLE_DESTINATION;
	m->token.data = (uint8_t *)p->token;
	m->token.len = sizeof p->token;
	m->source_host = (char *)p->source.host;
	m->source_port = (char *)p->source.port;
	m->streams = p->streams;
	m->map_given = p->map_given;
	m->map_lazy = p->map == RESOLVER_MAP_LAZY;
	m->bulk_off = !p->bulk;
	m->prefetch_off = !p->prefetch;
	m->bandwidth_bytes_per_s = p->bandwidth_bytes_per_s;
	m->weight = p->weight;
	m->client = (char *)p->client;
}

static void put_regions(const struct saved *s, Postcopy__V1__SavedRegion *messages,
                        Postcopy__V1__SavedRegion **list)
{
	for (uint32_t i = 0; i < s->n_regions; i++) {
		const struct vmm_wire_region *r = &s->regions[i];

		messages[i] = (Postcopy__V1__SavedRegion)POSTCOPY__V1__SAVED_REGION__INIT;
		messages[i].memory = r->memory;
		messages[i].flags = r->flags;
		messages[i].guest_phys_addr = r->guest_phys_addr;
		messages[i].size = r->size;
		messages[i].page_size = r->page_size;
		messages[i].host_addr = r->host_addr;
		messages[i].fd_offset = r->fd_offset;
		messages[i].fd_index = r->fd_index;
		messages[i].uffd_mode = r->uffd_mode;
		messages[i].name = (char *)r->name;
		list[i] = &messages[i];
	}
}

static size_t put_entries(const struct saved *s, Postcopy__V1__SavedEntry *messages,
                          Postcopy__V1__SavedEntry **list)
{
	size_t n = 0;

	for (uint32_t i = 0; i < VMM_WIRE_FDS_MAX; i++) {
		if (!*s->entries[i])
			continue;
		messages[n] = (Postcopy__V1__SavedEntry)POSTCOPY__V1__SAVED_ENTRY__INIT;
		messages[n].fd_index = i;
		messages[n].entry = (char *)s->entries[i];
		list[n] = &messages[n];
		n++;
	}
	return n;
}

static void put_times(const struct migration_times *t, Postcopy__V1__SavedTimes *m)
{
	m->started = t->started_ns;
	m->pause_sent = t->pause_sent_ns;
	m->switch_sent = t->switch_sent_ns;
	m->vmstate_received = t->vmstate_received_ns;
	m->loaded = t->loaded_ns;
	m->resumed = t->resumed_ns;
	m->ended = t->ended_ns;
	m->prepared_real = t->prepared_real_ns;
	m->state_real = t->state_real_ns;
	m->resumed_real = t->resumed_real_ns;
}

static void put_warm(const struct migration_warm *w, Postcopy__V1__SavedWarm *m)
{
	m->hold = w->hold;
	m->max_rounds = w->max_rounds;
	m->max_ns = w->max_ns;
	m->dirty_bytes = w->dirty_bytes;
	m->catch_up_ns = w->catch_up_ns;
}

static struct migration_warm get_warm(const Postcopy__V1__SavedWarm *m)
{
	if (!m)
		return (struct migration_warm){ .wanted = false };
	return (struct migration_warm){
		.wanted = true,
		.hold = m->hold,
		.max_rounds = m->max_rounds,
		.max_ns = m->max_ns,
		.dirty_bytes = m->dirty_bytes,
		.catch_up_ns = m->catch_up_ns,
	};
}

size_t saved_encode(const struct saved *s, void *buf)
{
	Postcopy__V1__SavedRegion regions[REGIONS_MAX], *list[REGIONS_MAX];
	Postcopy__V1__SavedEntry entries[VMM_WIRE_FDS_MAX], *entry_list[VMM_WIRE_FDS_MAX];
	Postcopy__V1__SavedMigration m = POSTCOPY__V1__SAVED_MIGRATION__INIT;
	Postcopy__V1__SavedParams params = POSTCOPY__V1__SAVED_PARAMS__INIT;
	Postcopy__V1__SavedParties parties = POSTCOPY__V1__SAVED_PARTIES__INIT;
	Postcopy__V1__SavedLimits limits = POSTCOPY__V1__SAVED_LIMITS__INIT;
	Postcopy__V1__SavedTimes times = POSTCOPY__V1__SAVED_TIMES__INIT;
	Postcopy__V1__SavedWarm warm = POSTCOPY__V1__SAVED_WARM__INIT;

	put_params(&s->params, &params, &parties);
	put_regions(s, regions, list);
	put_times(&s->times, &times);
	/* Parts of its memory are, or may be, watched by what an older daemon knows nothing of. */
	m.major = s->shards || s->shards_offered ? SAVED_MAJOR : SAVED_MAJOR_LEAST;
	m.written_by = POSTCOPY_VERSION;
	m.params = &params;
	limits.streams = s->limits.streams;
	limits.bandwidth_bytes_per_s = s->limits.bandwidth_bytes_per_s;
	limits.bulk_off = !s->limits.bulk;
	limits.prefetch_off = !s->limits.prefetch;
	limits.weight = s->limits.weight;
	m.limits = &limits;
	put_warm(&s->warming, &warm);
	m.warming = s->warming.wanted ? &warm : NULL;
	m.times = &times;
	m.queued = s->queued_ns;
	m.priority = s->priority;
	m.turn_switchover = s->turn_switchover;
	m.state = states[s->state];
	m.reason = (char *)s->reason;
	m.n_regions = s->n_regions;
	m.regions = list;
	m.n_entries = put_entries(s, entries, entry_list);
	m.entries = entry_list;
	m.epoch = s->epoch;
	if (s->holder.bound) {
		m.holder.data = (uint8_t *)s->holder.id;
		m.holder.len = sizeof s->holder.id;
	}
	m.holder_name = (char *)s->holder.name;
	m.switchover = s->switchover;
	m.memory = (Postcopy__V1__SavedMemory)s->memory;
	m.shards = s->shards;
	m.shards_offered = s->shards_offered;
	m.vmm_resumed = s->vmm_resumed;
	m.vmstate_held = s->vmstate_held;
	m.vmstate_len = s->vmstate_len;
	m.pause_ns = s->pause_ns;
	m.dirty_log = s->dirty_log;
	m.warm = s->warm;
	m.farewell = farewells[s->farewell];
	m.target_host = (char *)s->target.host;
	m.target_port = (char *)s->target.port;
	return postcopy__v1__saved_migration__pack(&m, buf);
}

_Static_assert((int)MIGRATION_MEMORY_CAME == POSTCOPY__V1__SAVED_MEMORY__SAVED_MEMORY_CAME,
               "they are the same");

static int bad(const char *what, struct error *err)
{
	return error_set(err, -EPROTO, "record: %s makes no sense", what);
}

static int get_target(const char *host, const char *port, struct conn_target *ret,
                      struct error *err)
{
	if (strlen(host) >= sizeof ret->host || strlen(port) >= sizeof ret->port)
		return bad("its source", err);
	strcpy(ret->host, host);
	strcpy(ret->port, port);
	return 0;
}

/* Those who may not must not get in by a record that could not be read. */
static int get_parties(const Postcopy__V1__SavedParties *m, struct parties *ret, struct error *err)
{
	if (!m)
		return 0;
	if (m->n_uids > PARTIES_UIDS_MAX || m->pid < 0 || strlen(m->cgroup) >= sizeof ret->cgroup ||
	    strlen(m->peer) >= sizeof ret->peer)
		return bad("its parties", err);
	for (; ret->n_uids < m->n_uids; ret->n_uids++)
		ret->uids[ret->n_uids] = m->uids[ret->n_uids];
	ret->pid = m->pid;
	strcpy(ret->cgroup, m->cgroup);
	strcpy(ret->peer, m->peer);
	return 0;
}

/* None: a daemon has written it that knew of none. */
static int get_weight(uint32_t weight, uint32_t *ret, struct error *err)
{
	if (weight > SHARE_WEIGHT_MAX)
		return bad("its weight", err);
	*ret = weight ? weight : SHARE_WEIGHT_DEFAULT;
	return 0;
}

static int get_params(const Postcopy__V1__SavedParams *m, struct migration_params *ret,
                      struct error *err)
{
	if (!m || m->token.len != TOKEN_BYTES || vmm_wire_id_check(m->id, NULL))
		return bad("its id or token", err);
	strcpy(ret->id, m->id);
	memcpy(ret->token, m->token.data, TOKEN_BYTES);
	if (m->role == POSTCOPY__V1__SAVED_ROLE__SAVED_ROLE_SOURCE)
		ret->role = MIGRATION_SOURCE;
	else if (m->role == POSTCOPY__V1__SAVED_ROLE__SAVED_ROLE_DESTINATION)
		ret->role = MIGRATION_DESTINATION;
	else
		return bad("its role", err);
	if (ret->role == MIGRATION_DESTINATION && (!m->streams || m->streams > PULL_STREAMS_MAX))
		return bad("its number of streams", err);
	ret->streams = m->streams;
	ret->map_given = m->map_given;
	ret->map = m->map_lazy ? RESOLVER_MAP_LAZY : RESOLVER_MAP_EAGER;
	ret->bulk = !m->bulk_off;
	ret->prefetch = !m->prefetch_off;
	ret->bandwidth_bytes_per_s = m->bandwidth_bytes_per_s;
	if (get_weight(m->weight, &ret->weight, err))
		return -EPROTO;
	snprintf(ret->client, sizeof ret->client, "%s", m->client);
	if (get_parties(m->parties, &ret->parties, err))
		return -EPROTO;
	return get_target(m->source_host, m->source_port, &ret->source, err);
}

static int get_limits(const Postcopy__V1__SavedLimits *m, struct saved *ret, struct error *err)
{
	const struct migration_params *p = &ret->params;

	ret->limits = (struct migration_limits){
		.streams_given = true,
		.streams = m ? m->streams : p->streams,
		.bandwidth_given = true,
		.bandwidth_bytes_per_s = m ? m->bandwidth_bytes_per_s : p->bandwidth_bytes_per_s,
		.bulk_given = true,
		.bulk = m ? !m->bulk_off : p->bulk,
		.prefetch_given = true,
		.prefetch = m ? !m->prefetch_off : p->prefetch,
		.weight_given = true,
	};
	if (get_weight(m ? m->weight : p->weight, &ret->limits.weight, err))
		return -EPROTO;
	if (p->role == MIGRATION_DESTINATION &&
	    (!ret->limits.streams || ret->limits.streams > PULL_STREAMS_MAX))
		return bad("its number of streams", err);
	return 0;
}

static int get_regions(const Postcopy__V1__SavedMigration *m, struct saved *ret, struct error *err)
{
	if (m->n_regions > REGIONS_MAX)
		return bad("its region table", err);
	for (size_t i = 0; i < m->n_regions; i++) {
		if (strlen(m->regions[i]->name) > POSTCOPY_REGION_NAME_MAX)
			return bad("its region table", err);
		ret->regions[i] = (struct vmm_wire_region){
			.memory = m->regions[i]->memory,
			.flags = m->regions[i]->flags,
			.guest_phys_addr = m->regions[i]->guest_phys_addr,
			.size = m->regions[i]->size,
			.page_size = m->regions[i]->page_size,
			.host_addr = m->regions[i]->host_addr,
			.fd_offset = m->regions[i]->fd_offset,
			.fd_index = m->regions[i]->fd_index,
			.uffd_mode = m->regions[i]->uffd_mode,
		};
		strcpy(ret->regions[i].name, m->regions[i]->name);
	}
	ret->n_regions = (uint32_t)m->n_regions;
	return 0;
}

static int get_entries(const Postcopy__V1__SavedMigration *m, struct saved *ret, struct error *err)
{
	for (size_t i = 0; i < m->n_entries; i++) {
		const Postcopy__V1__SavedEntry *e = m->entries[i];

		if (e->fd_index >= VMM_WIRE_FDS_MAX || strlen(e->entry) >= FD_STORE_NAME_BYTES)
			return bad("its list of entries", err);
		strcpy(ret->entries[e->fd_index], e->entry);
	}
	return 0;
}

static int get_state(const Postcopy__V1__SavedMigration *m, struct saved *ret, struct error *err)
{
	bool known = false;

	for (unsigned int i = 0; i < MIGRATION_STATES; i++)
		if (states[i] == m->state) {
			ret->state = (enum migration_state)i;
			known = true;
		}
	if (!known)
		return bad("its state", err);
	known = false;
	for (unsigned int i = 0; i < sizeof farewells / sizeof *farewells; i++)
		if (farewells[i] == m->farewell) {
			ret->farewell = (enum migration_farewell)i;
			known = true;
		}
	if (!known)
		return bad("its farewell", err);
	if (m->memory > POSTCOPY__V1__SAVED_MEMORY__SAVED_MEMORY_CAME)
		return bad("when its memory comes", err);
	ret->memory = (enum migration_memory)m->memory;
	return 0;
}

static bool is_shards(uint32_t n)
{
	return !n || (n >= 2 && n <= SHARDS_MAX);
}

static int get_shards(const Postcopy__V1__SavedMigration *m, struct saved *ret, struct error *err)
{
	bool any = m->shards || m->shards_offered;

	if (!is_shards(m->shards) || !is_shards(m->shards_offered) ||
	    (any && ret->params.role != MIGRATION_DESTINATION) || (m->shards && !m->n_regions))
		return bad("its number of userfaultfds", err);
	ret->shards = m->shards;
	ret->shards_offered = m->shards_offered;
	return 0;
}

static void get_times(const Postcopy__V1__SavedTimes *m, struct migration_times *ret)
{
	if (!m)
		return;
	ret->started_ns = m->started;
	ret->pause_sent_ns = m->pause_sent;
	ret->switch_sent_ns = m->switch_sent;
	ret->vmstate_received_ns = m->vmstate_received;
	ret->loaded_ns = m->loaded;
	ret->resumed_ns = m->resumed;
	ret->ended_ns = m->ended;
	ret->prepared_real_ns = m->prepared_real;
	ret->state_real_ns = m->state_real;
	ret->resumed_real_ns = m->resumed_real;
}

static int get_holder(const Postcopy__V1__SavedMigration *m, struct stream_holder *ret,
                      struct error *err)
{
	ret->bound = m->holder.len;
	if (ret->bound && m->holder.len != HOLDER_BYTES)
		return bad("its holder", err);
	if (ret->bound)
		memcpy(ret->id, m->holder.data, HOLDER_BYTES);
	snprintf(ret->name, sizeof ret->name, "%s", m->holder_name);
	return 0;
}

int saved_decode(const void *buf, size_t len, struct saved *ret, struct error *err)
{
	_cleanup_(message_free_p) Postcopy__V1__SavedMigration *m =
	        postcopy__v1__saved_migration__unpack(NULL, len, buf);
	int rc;

	memset(ret, 0, sizeof *ret);
	if (!m)
		return bad("its content", err);
	if (m->major > SAVED_MAJOR)
		return error_set(err, -EPROTONOSUPPORT,
		                 "record: postcopyd %s wrote it, in version %u; this one (%s) "
		                 "knows %d: start the newer one again",
		                 m->written_by, m->major, POSTCOPY_VERSION, SAVED_MAJOR);
	rc = get_params(m->params, &ret->params, err);
	if (!rc)
		rc = get_limits(m->limits, ret, err);
	if (!rc)
		rc = get_target(m->target_host, m->target_port, &ret->target, err);
	if (!rc)
		rc = get_regions(m, ret, err);
	if (!rc)
		rc = get_entries(m, ret, err);
	if (!rc)
		rc = get_state(m, ret, err);
	if (!rc)
		rc = get_shards(m, ret, err);
	if (rc)
		return rc;
	snprintf(ret->reason, sizeof ret->reason, "%s", m->reason);
	get_times(m->times, &ret->times);
	rc = get_holder(m, &ret->holder, err);
	if (rc)
		return rc;
	ret->epoch = m->epoch;
	ret->switchover = m->switchover;
	ret->warming = get_warm(m->warming);
	ret->vmm_resumed = m->vmm_resumed;
	ret->vmstate_held = m->vmstate_held;
	ret->vmstate_len = m->vmstate_len;
	ret->pause_ns = m->pause_ns;
	if (m->dirty_log > DIRTY_LOG_BY_KERNEL || (m->warm && !m->dirty_log))
		return bad("its dirty log", err);
	ret->dirty_log = m->dirty_log;
	ret->warm = m->warm;
	if (m->queued && (ret->params.role != MIGRATION_DESTINATION ||
	                  ret->state != MIGRATION_ATTACHED || m->priority > MIGRATION_PRIORITY_MAX))
		return bad("its place in the queue", err);
	ret->queued_ns = m->queued;
	ret->priority = m->priority;
	ret->turn_switchover = m->turn_switchover;
	return 0;
}
