/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/migrate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <openssl/crypto.h>

#include "migrate/adapter.h"
#include "migrate/admission.h"
#include "migrate/attach.h"
#include "migrate/bandwidth.h"
#include "migrate/destination/destination.h"
#include "migrate/destination/shards.h"
#include "migrate/queue.h"
#include "migrate/record/keep.h"
#include "migrate/record/saved.h"
#include "migrate/record/takeover.h"
#include "migrate/record/unread.h"
#include "migrate/source/source.h"
#include "migrate/totals.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "vmm/vmm_process.h"

/* Migrations more than the most, for root alone. */
#define ROOT_SPARE 16u

/* The newest, and rather one that has not ended. @role: 0: any. */
static struct migration *find(struct migrations *ms, const char *id, enum migration_role role)
{
	struct migration *newest = NULL;

	for (struct migration *m = ms->list; m; m = m->next) {
		if (strcmp(m->params.id, id) || (role && m->params.role != role))
			continue;
		if (!migration_state_is_final(m->state))
			return m;
		if (!newest)
			newest = m;
	}
	return newest;
}

static bool is_live(const struct migration *m)
{
	return m && !migration_state_is_final(m->state);
}

/* The VMM socket's calls. */

static int attach_role(struct migration *m, struct vmm_attach *attach, struct error *err)
{
	return m->params.role == MIGRATION_SOURCE ? source_attach(m, attach, err)
	                                          : destination_attach(m, attach, NULL, -1, err);
}

/* As if it had never attached. */
static void detach_role(struct migration *m)
{
	if (m->params.role == MIGRATION_SOURCE)
		source_stop(m);
	else
		destination_detach(m);
}

/*
 * What a VMM means that attaches anew. NULL with @err set: -ENOENT where nothing is prepared for
 * it, whatever else has been by that id, for a VMM may be started before it is prepared.
 */
static struct migration *find_attached(struct migrations *ms, const struct vmm_wire_msg *msg,
                                       struct error *err)
{
	enum migration_role role = (enum migration_role)msg->role;
	struct migration *m = find(ms, msg->id, role), *other;

	if (is_live(m))
		return m;
	other = find(ms, msg->id, 0);
	if (is_live(other))
		error_set(err, -ENOENT,
		          "migration \"%s\" is prepared here as %s alone: prepare it as %s",
		          msg->id, migration_role_name(other->params.role),
		          migration_role_name(role));
	else if (other)
		error_set(err, -ENOENT, "migration \"%s\" is %s here: prepare it again", msg->id,
		          migration_state_name(other->state));
	else
		migrations_find(ms, msg->id, role, err);
	return NULL;
}

/* Late memory is looked at when it comes. */
static int check_room(struct migration *m, const struct vmm_attach *attach, struct error *err)
{
	struct region_table table;
	int rc;

	if (!attach->msg->n_regions)
		return 0;
	rc = migration_read_table(attach->msg, &table, err);
	return rc ? rc : admission_check_memory(m, &table, attach->vmm, err);
}

/* Return: 0; or -errno with @err set, and all is as before. */
static int attach_vmm(struct migration *m, const struct vmm_conn *conn, struct vmm_attach *attach,
                      struct error *err)
{
	int rc = migration_keep_attach(m, attach, vmm_conn_uid(conn), err);

	if (!rc)
		rc = attach_role(m, attach, err);
	if (rc)
		return rc;
	/* Its files are empty now: what they held, if anything, is free. */
	rc = check_room(m, attach, err);
	if (!rc)
		rc = migration_keep_fd(m, "vmm", vmm_conn_fd(conn), err);
	if (!rc) {
		rc = migration_take_process(m, attach, err);
		if (rc)
			migration_drop_fds(m, "vmm");
	}
	if (rc)
		detach_role(m);
	return rc;
}

static int on_attach(void *arg, struct vmm_conn *conn, struct vmm_attach *attach, void **ret_owner,
                     struct error *err)
{
	struct migrations *ms = arg;
	struct migration *m;
	int rc;

	if (attach->msg->attach_flags & VMM_WIRE_ATTACH_AGAIN)
		return migration_attach_again(ms, conn, attach, ret_owner, err);
	m = find_attached(ms, attach->msg, err);
	if (!m)
		return err->code;
	if (migration_has_vmm(m))
		return error_set(err, -EBUSY, "migration \"%s\": a VMM is attached already",
		                 m->params.id);
	if (m->state != MIGRATION_PREPARED)
		return migration_refuse_now(m, "attaching", err);
	rc = migration_check_vmm(m, conn, attach, err);
	if (rc)
		return rc;
	/* Late memory is looked at when it comes. */
	if (attach->msg->n_regions)
		rc = migration_check_attach(m, attach, err);
	if (rc)
		return error_prefix(err, "migration \"%s\"", m->params.id);
	rc = attach_vmm(m, conn, attach, err);
	if (rc) {
		migration_drop_attach(m);
		return error_prefix(err, "migration \"%s\"", m->params.id);
	}
	for (uint32_t i = 0; i < attach->msg->n_regions; i++)
		m->fd_index[i] = attach->msg->regions[i].fd_index;
	m->vmm = conn;
	m->taken_over = false;
	*ret_owner = m;
	shards_plan(m, vmm_wire_has_uffd(attach->msg));
	migration_move(m, MIGRATION_ATTACHED, "%s", "");
	/* It is answered before the VMM is told that it is attached. */
	shards_offer(m);
	return 0;
}

static void on_attached_again(void *owner)
{
	migration_attached_again(owner);
}

static int on_message(void *owner, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
                      struct error *err)
{
	struct migration *m = owner;

	return m->params.role == MIGRATION_SOURCE ? source_message(m, msg, fds, err)
	                                          : destination_message(m, msg, fds, err);
}

static int on_memory(void *owner, struct vmm_attach *attach, struct error *err)
{
	return destination_memory(owner, attach, err);
}

/* MEMORY of a destination is said again by itself; LOADED and RESUMED have no descriptor. */
static void on_cut_message(void *owner, enum vmm_wire_type type, const struct error *why)
{
	struct migration *m = owner;

	if (m->params.role == MIGRATION_SOURCE)
		source_cut_message(m, type, why);
	else if (type == VMM_WIRE_SHARDS)
		shards_ask_again(m);
}

static void migration_free(struct migration *m)
{
	totals_keep_pull(m);
	totals_keep_served(m);
	pull_free(m->pull);
	page_source_unref(m->source);
	close_fd(&m->vmstate_fd);
	admission_forget_place(m);
	close_fd(&m->ahead_fd);
	shards_forget(m);
	record_deinit(&m->record);
	dialing_deinit(&m->dialing);
	takeover_forget(m);
	pthread_cond_destroy(&m->ordered);
	pthread_mutex_destroy(&m->lock);
	OPENSSL_cleanse(m->params.token, sizeof m->params.token);
	free(m);
}

/* Nothing of it is in anybody's hands: no thread, no connection, no watcher. */
static bool may_forget(const struct migration *m)
{
	return migration_state_is_final(m->state) && !m->watchers && !m->vmm &&
	       !m->conductor_runs && !m->source && !m->left && !m->must_go_on;
}

/* Out of its place in the list. */
static void forget(struct migration **place)
{
	struct migration *m = *place;

	*place = m->next;
	source_forget(m);
	migration_drop_process(m);
	migration_drop_fds(m, "record");
	migration_free(m);
}

/* Of what has ended: whose more than half of it is, if anybody's; that, and all else. */
struct ended_share {
	char client[MIGRATION_CLIENT_BYTES]; /* outlives the migration that it is of */
	bool is_known;
	unsigned int of_client, others;
};

/* The vote of Boyer and Moore, and a count of what it has come to. */
static struct ended_share find_most_ended(const struct migrations *ms)
{
	struct ended_share share = { .others = 0 };
	const char *client = "";
	unsigned int votes = 0;

	for (const struct migration *m = ms->list; m; m = m->next) {
		if (!may_forget(m))
			continue;
		if (!votes)
			client = m->params.client;
		votes += strcmp(m->params.client, client) ? -1 : 1;
	}
	for (const struct migration *m = ms->list; m; m = m->next) {
		if (may_forget(m) && !strcmp(m->params.client, client))
			share.of_client++;
		else
			share.others += may_forget(m);
	}
	share.is_known = share.of_client > share.others;
	if (!share.is_known)
		return (struct ended_share){ .others = share.others + share.of_client };
	snprintf(share.client, sizeof share.client, "%s", client);
	return share;
}

/*
 * Those that are too many, the oldest, which are last in the list; and those that are too old. Who
 * has most makes room: half is there for the others, so that nobody has theirs forgotten.
 */
static void forget_ended(struct migrations *ms)
{
	uint64_t now_ns = clock_now_ns(), timeout_ms = ms->config.ended_timeout_ms;
	struct ended_share most = find_most_ended(ms);
	unsigned int max = ms->config.max_ended, half = max / 2;
	unsigned int room = most.others < half ? max - most.others : max - half;
	unsigned int others_room = max - (most.of_client < room ? most.of_client : room);

	for (struct migration **p = &ms->list; *p;) {
		struct migration *m = *p;
		bool old = timeout_ms && (now_ns - m->ended_ns) / NSEC_PER_MSEC >= timeout_ms;
		unsigned int *left = most.is_known && !strcmp(m->params.client, most.client)
		                             ? &room
		                             : &others_room;

		if (may_forget(m) && (old || !*left)) {
			forget(p);
			continue;
		}
		*left -= may_forget(m);
		p = &m->next;
	}
}

/* Nobody came for it: what it holds is somebody else's. */
static void expire(struct migration *m)
{
	migration_move(m, MIGRATION_CANCELLED,
	               "no VMM has attached within %llu s (prepare-timeout)",
	               (unsigned long long)(m->owner->config.prepare_timeout_ms / 1000));
}

static void on_expiry(uv_timer_t *timer)
{
	struct migrations *ms = timer->data;
	uint64_t now_ms = uv_now(timer->loop), patience_ms = ms->config.prepare_timeout_ms;

	for (struct migration *m = ms->list; m; m = m->next)
		if (patience_ms && m->state == MIGRATION_PREPARED &&
		    now_ms - m->waits_since_ms >= patience_ms)
			expire(m);
	forget_ended(ms);
	if (!ms->list)
		uv_timer_stop(timer);
}

/* A quarter of the shorter time is as late as anything may be. */
static uint64_t expiry_look_ms(const struct migrations_config *c)
{
	uint64_t a = c->prepare_timeout_ms, b = c->ended_timeout_ms;

	return (!a || (b && b < a) ? b : a) / 4;
}

/* From time to time, as long as there is any. */
static void watch_expiry(struct migrations *ms)
{
	uint64_t look_ms = expiry_look_ms(&ms->config);

	if (look_ms && !uv_is_active((uv_handle_t *)&ms->expiry))
		uv_timer_start(&ms->expiry, on_expiry, look_ms, look_ms);
}

static void limit_outgoing(struct migrations *ms)
{
	if (ms->config.page_server)
		page_server_set_most(ms->config.page_server, ms->config.max_outgoing);
}

void migrations_set_limits(struct migrations *ms, const struct migrations_config *config)
{
	ms->config.prepare_timeout_ms = config->prepare_timeout_ms;
	ms->config.max_client_migrations = config->max_client_migrations;
	ms->config.max_migrations = config->max_migrations;
	ms->config.max_incoming = config->max_incoming;
	ms->config.max_outgoing = config->max_outgoing;
	ms->config.hold_timeout_ms = config->hold_timeout_ms;
	ms->config.memory_check = config->memory_check;
	ms->config.fault_threads = config->fault_threads;
	migrations_configure_bandwidth(ms, config);
	queue_look(ms);
	ms->config.max_channels = config->max_channels;
	ms->config.max_vmstate_bytes = config->max_vmstate_bytes;
	ms->config.max_ended = config->max_ended;
	ms->config.ended_timeout_ms = config->ended_timeout_ms;
	ms->config.slow_fault_ns = config->slow_fault_ns;
	ms->config.user_store_percent = config->user_store_percent;
	vmm_server_set(ms->vmm_server, &config->vmm_limits, config->vmm_groups,
	               config->n_vmm_groups);
	limit_outgoing(ms);
	forget_ended(ms);
	uv_timer_stop(&ms->expiry);
	watch_expiry(ms);
}

static void on_closed(void *owner)
{
	struct migration *m = owner;

	m->vmm = NULL;
	if (m->process)
		migration_adapter_gone(m);
	else if (m->params.role == MIGRATION_SOURCE)
		source_vmm_closed(m);
	else
		destination_vmm_closed(m);
	migration_drop_fds(m, "vmm");
}

static void on_news(uv_async_t *async)
{
	struct migrations *ms = async->data;

	for (struct migration *m = ms->list; m; m = m->next) {
		unsigned int news;

		pthread_mutex_lock(&m->lock);
		news = m->news;
		m->news = 0;
		pthread_mutex_unlock(&m->lock);
		if (!news)
			continue;
		if (m->params.role == MIGRATION_SOURCE)
			source_news(m, news);
		else
			destination_news(m, news);
	}
}

static const struct vmm_server_ops vmm_ops = {
	.attach = on_attach,
	.attached_again = on_attached_again,
	.message = on_message,
	.memory = on_memory,
	.cut_message = on_cut_message,
	.closed = on_closed,
};

int migrations_new(uv_loop_t *loop, const struct migrations_config *config, struct migrations **ret,
                   struct error *err)
{
	struct migrations *ms = calloc(1, sizeof *ms);
	const struct vmm_server_config vmm_server = {
		.fd = config->vmm_fd,
		.limits = config->vmm_limits,
		.groups = config->vmm_groups,
		.n_groups = config->n_vmm_groups,
		.ops = &vmm_ops,
		.arg = ms,
	};
	int rc;

	if (!ms)
		return error_set(err, -ENOMEM, "out of memory");
	ms->loop = loop;
	ms->config = *config;
	rc = vmm_server_new(loop, &vmm_server, &ms->vmm_server, err);
	if (rc) {
		free(ms);
		return rc;
	}
	uv_async_init(loop, &ms->news, on_news);
	uv_timer_init(loop, &ms->again);
	uv_timer_init(loop, &ms->expiry);
	uv_timer_init(loop, &ms->adapters);
	uv_timer_init(loop, &ms->waits);
	uv_timer_init(loop, &ms->queue);
	uv_timer_init(loop, &ms->trim);
	uv_timer_init(loop, &ms->offers);
	uv_timer_init(loop, &ms->bandwidth.timer);
	migrations_configure_bandwidth(ms, config);
	ms->expiry.data = ms;
	ms->news.data = ms;
	limit_outgoing(ms);
	*ret = ms;
	return 0;
}

static void stop(struct migration *m)
{
	if (m->params.role == MIGRATION_SOURCE) {
		source_stop(m);
		source_forget(m);
	} else {
		destination_stop(m);
	}
}

unsigned int migrations_drain(struct migrations *ms)
{
	unsigned int n = 0;

	ms->draining = true;
	for (struct migration *m = ms->list; m; m = m->next)
		n += migration_is_under_way(m);
	return n;
}

/* What becomes of one that has not ended. */
static void say_what_is_left(const struct migration *m)
{
	if (migration_state_is_final(m->state) || m->state == MIGRATION_PREPARED)
		return;
	if (fd_store_exists(m->owner->config.store))
		log_migration_info(m->params.id, "parked, %s: the next process goes on",
		                   migration_state_name(m->state));
	else if (migration_is_under_way(m))
		log_migration_warning(m->params.id,
		                      "%s as the daemon ends, and no service manager keeps what "
		                      "another process would need to go on",
		                      migration_state_name(m->state));
}

void migrations_stop(struct migrations *ms)
{
	/* Those that end now make room for nobody. */
	ms->draining = true;
	uv_timer_stop(&ms->again);
	uv_timer_stop(&ms->expiry);
	uv_timer_stop(&ms->adapters);
	uv_timer_stop(&ms->waits);
	uv_timer_stop(&ms->queue);
	uv_timer_stop(&ms->trim);
	uv_timer_stop(&ms->offers);
	uv_timer_stop(&ms->bandwidth.timer);
	for (struct migration *m = ms->list; m; m = m->next)
		say_what_is_left(m);
	for (struct migration *m = ms->list; m; m = m->next)
		stop(m);
	/* It tells nobody of the VMMs that it cuts off. */
	vmm_server_close(ms->vmm_server);
	for (struct migration *m = ms->list; m; m = m->next) {
		m->vmm = NULL;
		m->process = vmm_process_close(m->process);
	}
}

void migrations_close(struct migrations *ms)
{
	uv_close((uv_handle_t *)&ms->news, NULL);
	uv_close((uv_handle_t *)&ms->again, NULL);
	uv_close((uv_handle_t *)&ms->expiry, NULL);
	uv_close((uv_handle_t *)&ms->adapters, NULL);
	uv_close((uv_handle_t *)&ms->waits, NULL);
	uv_close((uv_handle_t *)&ms->queue, NULL);
	uv_close((uv_handle_t *)&ms->trim, NULL);
	uv_close((uv_handle_t *)&ms->offers, NULL);
	uv_close((uv_handle_t *)&ms->bandwidth.timer, NULL);
}

struct migrations *migrations_free(struct migrations *ms)
{
	if (!ms)
		return NULL;
	for (struct migration *m = ms->list, *next; m; m = next) {
		next = m->next;
		migration_free(m);
	}
	unread_free(ms);
	free(ms);
	return NULL;
}

static bool same_params(const struct migration_params *a, const struct migration_params *b)
{
	return !CRYPTO_memcmp(a->token, b->token, TOKEN_BYTES) &&
	       !strcmp(a->source.host, b->source.host) && !strcmp(a->source.port, b->source.port) &&
	       a->streams == b->streams && a->bandwidth_bytes_per_s == b->bandwidth_bytes_per_s &&
	       parties_equal(&a->parties, &b->parties) && a->bulk == b->bulk &&
	       a->prefetch == b->prefetch && a->weight == b->weight &&
	       a->map_given == b->map_given && a->map == b->map;
}

static int check_streams(unsigned int streams, struct error *err)
{
	if (!streams || streams > PULL_STREAMS_MAX)
		return error_set(err, -EINVAL, "streams: %u, must be 1..%u", streams,
		                 PULL_STREAMS_MAX);
	return 0;
}

static int check_params(struct migrations *ms, const struct migration_params *params,
                        struct error *err)
{
	int rc = vmm_wire_id_check(params->id, err);

	if (rc)
		return rc;
	if (params->role == MIGRATION_SOURCE && !ms->config.page_server)
		return error_set(err, -EBUSY,
		                 "this daemon can't be a source: it does not listen for page "
		                 "streams (start it with --listen)");
	return params->role == MIGRATION_DESTINATION ? check_streams(params->streams, err) : 0;
}

static int refuse_draining(struct error *err)
{
	return error_set(err, -EBUSY, "this daemon is ending: it begins no new migration");
}

/* It costs more than a line of history: a thread at least says how it ended, until that is heard.
 */
static bool costs_a_place(const struct migration *m)
{
	return !migration_state_is_final(m->state) || m->conductor_runs || m->must_go_on;
}

/* Shares of who prepares. Root gets in where limits are reached, with a few more. */
static int check_number(const struct migrations *ms, const struct migration_params *params,
                        struct error *err)
{
	unsigned int n = 0, of_client = 0, most = ms->config.max_migrations;

	for (const struct migration *m = ms->list; m; m = m->next) {
		if (!costs_a_place(m))
			continue;
		n++;
		of_client += !strcmp(m->params.client, params->client);
	}
	if (most && n >= most + (params->client_is_root ? ROOT_SPARE : 0))
		return error_set(err, -EUSERS,
		                 "%u migrations are under way or prepared (max-migrations)", n);
	most = ms->config.max_client_migrations;
	if (!most || params->client_is_root || !*params->client || of_client < most)
		return 0;
	return error_set(err, -EDQUOT,
	                 "\"%s\" has %u migrations under way or prepared "
	                 "(max-client-migrations)",
	                 params->client, of_client);
}

const struct migrations_protocols migrations_protocols = {
	.page_stream = STREAM_VERSION,
	.record = SAVED_MAJOR,
	.vmm = VMM_WIRE_VERSION,
};

bool migration_has_key(const struct migrations *ms, const char *key)
{
	for (const struct migration *m = ms->list; m; m = m->next)
		if (!strcmp(m->key, key))
			return true;
	return false;
}

/* The id, where no other of that id has it, also in the store: '@' is in no id. */
static void choose_key(const struct migrations *ms, struct migration *m)
{
	snprintf(m->key, sizeof m->key, "%s", m->params.id);
	for (unsigned int n = 2; migration_has_key(ms, m->key) || unread_has_key(ms, m->key); n++)
		snprintf(m->key, sizeof m->key, "%s@%u", m->params.id, n);
}

struct migration *migration_new(struct migrations *ms, const struct migration_params *params,
                                const char *key, struct error *err)
{
	struct migration *m = calloc(1, sizeof *m);

	if (!m) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	m->owner = ms;
	m->params = *params;
	if (key)
		snprintf(m->key, sizeof m->key, "%s", key);
	else
		choose_key(ms, m);
	m->limits = (struct migration_limits){
		.bandwidth_given = true,
		.bandwidth_bytes_per_s = params->bandwidth_bytes_per_s,
		.streams_given = true,
		.streams = params->streams,
		.bulk_given = true,
		.bulk = params->bulk,
		.prefetch_given = true,
		.prefetch = params->prefetch,
		.weight_given = true,
		.weight = params->weight,
	};
	m->seq = ++ms->last_seq;
	m->waits_since_ms = uv_now(ms->loop);
	watch_expiry(ms);
	m->prepared_real_ns = m->state_real_ns = clock_real_ns();
	m->target = params->source;
	m->vmstate_fd = m->ahead_fd = -1;
	m->record = RECORD_INIT;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->ordered, NULL);
	dialing_init(&m->dialing);
	m->next = ms->list;
	ms->list = m;
	return m;
}

/*
 * A destination is somebody, as long as its record lasts: whoever comes after it without one is
 * somebody else, and does not get its guest.
 */
static int name_holder(struct migration *m, struct error *err)
{
	if (m->params.role != MIGRATION_DESTINATION)
		return 0;
	m->holder.bound = true;
	if (getrandom(m->holder.id, sizeof m->holder.id, 0) != sizeof m->holder.id)
		return error_errno(err, -errno, "migration \"%s\": getrandom", m->params.id);
	return 0;
}

int migrations_prepare(struct migrations *ms, const struct migration_params *params,
                       struct migration **ret, struct error *err)
{
	int rc = check_params(ms, params, err);
	struct migration *m;

	if (rc)
		return rc;
	m = find(ms, params->id, params->role);
	if (is_live(m) && !same_params(&m->params, params))
		return error_set(err, -EEXIST,
		                 "migration \"%s\" exists already, with other parameters",
		                 params->id);
	if (is_live(m)) {
		*ret = m;
		return 0;
	}
	if (ms->draining)
		return refuse_draining(err);
	rc = check_number(ms, params, err);
	if (rc) {
		log_migration_warning(params->id, "refused: %s", err->text);
		return rc;
	}
	forget_ended(ms);
	m = migration_new(ms, params, NULL, err);
	if (!m)
		return -ENOMEM;
	rc = name_holder(m, err);
	if (!rc)
		rc = migration_save_first(m, err);
	if (rc) {
		ms->list = m->next;
		migration_free(m);
		return rc;
	}
	ms->totals.prepared[m->params.role - 1]++;
	log_event(LOG_LEVEL_INFO, m->params.id,
	          LOG_FIELDS({ "STATE", migration_state_name(m->state) },
	                     { "ROLE", migration_role_name(m->params.role) }),
	          "prepared as %s", migration_role_name(m->params.role));
	*ret = m;
	return 0;
}

int migration_id_check(const char *id, struct error *err)
{
	return vmm_wire_id_check(id, err);
}

struct migration *migrations_find(struct migrations *ms, const char *id, enum migration_role role,
                                  struct error *err)
{
	struct migration *m = find(ms, id, role);

	if (!m) {
		error_set(err, -ENOENT, "no migration \"%s\" here%s%s: prepare it first", id,
		          role ? " as " : "", role ? migration_role_name(role) : "");
		return NULL;
	}
	if (!role && is_live(find(ms, id, MIGRATION_SOURCE)) &&
	    is_live(find(ms, id, MIGRATION_DESTINATION))) {
		error_set(err, -EINVAL,
		          "both halves of migration \"%s\" are here: say which, source or "
		          "destination",
		          id);
		return NULL;
	}
	return m;
}

/* What keeps it from being forgotten. */
static int refuse_delete(const struct migration *m, struct error *err)
{
	const char *role = migration_role_name(m->params.role);

	if (!migration_state_is_final(m->state))
		return migration_refuse_now(m, "deleting (it has not ended: cancel it)", err);
	if (m->vmm)
		return error_set(err, -EBUSY, "migration \"%s\": the %s VMM is connected still",
		                 m->params.id, role);
	if (m->conductor_runs || m->must_go_on)
		return error_set(err, -EBUSY,
		                 "migration \"%s\": its source has not heard yet how it ended",
		                 m->params.id);
	return error_set(err, -EBUSY, "migration \"%s\": the %s is in use at this moment",
	                 m->params.id, role);
}

int migrations_delete(struct migrations *ms, const char *id, enum migration_role role,
                      unsigned int *ret_deleted, struct error *err)
{
	const struct migration *kept = NULL;

	*ret_deleted = 0;
	for (struct migration **p = &ms->list; *p;) {
		struct migration *m = *p;
		bool named = !strcmp(m->params.id, id) && (!role || m->params.role == role);

		if (named && may_forget(m)) {
			forget(p);
			++*ret_deleted;
			continue;
		}
		/* What is under way is not meant where others have ended. */
		if (named && (!kept || migration_state_is_final(m->state)))
			kept = m;
		p = &m->next;
	}
	if (kept && (migration_state_is_final(kept->state) || !*ret_deleted))
		return refuse_delete(kept, err);
	if (!*ret_deleted)
		return error_set(err, -ENOENT, "no migration \"%s\" here", id);
	log_migration_info(id, "by command: %u that have ended are forgotten", *ret_deleted);
	return 0;
}

struct migration *migrations_next(struct migrations *ms, struct migration *m)
{
	return m ? m->next : ms->list;
}

int migration_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                    const struct migration_turn_wanted *turn, struct error *err)
{
	int rc;

	if (m->params.role != MIGRATION_DESTINATION)
		return error_set(err, -EBUSY, "migration \"%s\": start it at its destination",
		                 m->params.id);
	rc = takeover_check(m, err);
	if (rc)
		return rc;
	rc = m->owner->draining && m->state == MIGRATION_ATTACHED
	             ? refuse_draining(err)
	             : destination_start(m, switchover, warm, turn, err);
	/* Who was told no may go elsewhere. */
	if (rc)
		queue_drop(m);
	return rc;
}

int migration_switchover(struct migration *m, struct error *err)
{
	if (m->params.role != MIGRATION_DESTINATION)
		return error_set(err, -EBUSY, "migration \"%s\": switch it over at its destination",
		                 m->params.id);
	return takeover_check(m, err) ? err->code : destination_switchover(m, err);
}

int migration_cancel(struct migration *m, struct error *err)
{
	if (m->state == MIGRATION_CANCELLED)
		return 0;
	if (migration_state_is_final(m->state))
		return migration_refuse_now(m, "cancelling", err);
	if (takeover_check(m, err))
		return err->code;
	return m->params.role == MIGRATION_SOURCE ? source_cancel(m, err)
	                                          : destination_cancel(m, err);
}

/* What is given of @from. */
static void merge_limits(struct migration_limits *to, const struct migration_limits *from)
{
	if (from->bandwidth_given)
		to->bandwidth_bytes_per_s = from->bandwidth_bytes_per_s;
	if (from->streams_given)
		to->streams = from->streams;
	if (from->bulk_given)
		to->bulk = from->bulk;
	if (from->prefetch_given)
		to->prefetch = from->prefetch;
	if (from->weight_given)
		to->weight = from->weight;
}

bool migration_limits_are_of_destination(const struct migration_limits *limits)
{
	return limits->bandwidth_given || limits->streams_given || limits->bulk_given ||
	       limits->prefetch_given;
}

static int check_weight(const struct migration_limits *limits, struct error *err)
{
	if (!limits->weight_given ||
	    (limits->weight >= SHARE_WEIGHT_MIN && limits->weight <= SHARE_WEIGHT_MAX))
		return 0;
	return error_set(err, -EINVAL, "weight: %u, must be %u..%u", limits->weight,
	                 SHARE_WEIGHT_MIN, SHARE_WEIGHT_MAX);
}

int migration_set_limits(struct migration *m, const struct migration_limits *limits,
                         struct error *err)
{
	int rc = check_weight(limits, err);

	if (m->params.role != MIGRATION_DESTINATION && migration_limits_are_of_destination(limits))
		return error_set(err, -EBUSY,
		                 "migration \"%s\": its limits but the weight are its "
		                 "destination's",
		                 m->params.id);
	if (!rc && limits->streams_given)
		rc = check_streams(limits->streams, err);
	if (!rc)
		rc = takeover_check(m, err);
	if (rc)
		return rc;
	merge_limits(&m->limits, limits);
	migration_save(m);
	if (!m->pull)
		return 0;
	pull_set_bandwidth(m->pull, m->limits.bandwidth_bytes_per_s);
	pull_set_bulk(m->pull, m->limits.bulk);
	pull_set_prefetch(m->pull, m->limits.prefetch);
	rc = pull_set_streams(m->pull, m->limits.streams);
	return rc ? error_errno(err, rc, "migration \"%s\": bulk threads", m->params.id) : 0;
}

int migration_set_warm(struct migration *m, const struct migration_warm *warm, struct error *err)
{
	if (m->params.role != MIGRATION_DESTINATION)
		return error_set(err, -EBUSY, "migration \"%s\": it is warmed at its destination",
		                 m->params.id);
	return takeover_check(m, err) ? err->code : destination_set_warm(m, warm, err);
}

/* Of the source that it has, and of those whose VMM has gone. */
static int refuse_source(const struct migration *m, const char *what, struct error *err)
{
	return error_set(err, -EBUSY, "migration \"%s\": %s is its destination's", m->params.id,
	                 what);
}

int migration_recover(struct migration *m, const struct conn_target *target, struct error *err)
{
	if (m->params.role != MIGRATION_DESTINATION)
		return refuse_source(m, "recovering", err);
	return takeover_check(m, err) ? err->code : destination_recover(m, target, err);
}

size_t migration_missing(struct migration *m, struct pull_place *at, struct pull_range *ret,
                         size_t max)
{
	if (m->pull && !migration_memory_is_late(m))
		return pull_missing_ranges(m->pull, at, ret, max);
	at->region = m->table.n;
	return 0;
}

static bool was_poisoned(struct migration *m)
{
	int code;

	pthread_mutex_lock(&m->lock);
	code = m->error.code;
	pthread_mutex_unlock(&m->lock);
	return m->state == MIGRATION_FAILED && code == -EHWPOISON;
}

int migration_poison(struct migration *m, struct error *err)
{
	if (m->params.role != MIGRATION_DESTINATION)
		return refuse_source(m, "poisoning", err);
	/* By a call whose answer got lost: who repeats it is told what has become. */
	if (was_poisoned(m))
		return 0;
	if (takeover_check(m, err))
		return err->code;
	if (m->state != MIGRATION_PAUSED)
		return migration_refuse_now(m,
		                            "poisoning what is missing (the source must be out of "
		                            "reach)",
		                            err);
	if (!migration_source_is_away(m, err))
		return error_prefix(err, "migration \"%s\": nothing is poisoned", m->params.id);
	migration_order(m, ORDER_POISON);
	return 0;
}

static int refuse_destination(const struct migration *m, const char *what, struct error *err)
{
	return error_set(err, -EBUSY, "migration \"%s\": %s is its source's", m->params.id, what);
}

int migration_set_token(struct migration *m, const uint8_t token[TOKEN_BYTES], struct error *err)
{
	if (m->params.role != MIGRATION_SOURCE)
		return refuse_destination(m, "another token", err);
	return takeover_check(m, err) ? err->code : source_set_token(m, token, err);
}

int migration_run_on(struct migration *m, struct error *err)
{
	if (m->params.role != MIGRATION_SOURCE)
		return refuse_destination(m, "running on", err);
	return source_run_on(m, err);
}

int migration_release(struct migration *m, struct error *err)
{
	if (m->params.role != MIGRATION_SOURCE)
		return refuse_destination(m, "releasing", err);
	return source_release(m, err);
}

static void watch(struct migration_watcher **list, struct migration_watcher *w)
{
	w->next = *list;
	*list = w;
}

static void unwatch(struct migration_watcher **list, const struct migration_watcher *w)
{
	for (struct migration_watcher **p = list; *p; p = &(*p)->next)
		if (*p == w) {
			*p = w->next;
			return;
		}
}

void migration_watch(struct migration *m, struct migration_watcher *w)
{
	watch(&m->watchers, w);
}

void migration_unwatch(struct migration *m, struct migration_watcher *w)
{
	unwatch(&m->watchers, w);
}

void migrations_watch(struct migrations *ms, struct migration_watcher *w)
{
	watch(&ms->watchers, w);
}

void migrations_unwatch(struct migrations *ms, struct migration_watcher *w)
{
	unwatch(&ms->watchers, w);
}
