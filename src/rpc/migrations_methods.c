/* SPDX-License-Identifier: Apache-2.0 */
/* postcopy.v1.Migrations: its unary methods. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rpc/methods.h"
#include "rpc/migration_message.h"
#include "rpc/page_token.h"
#include "rpc/report_message.h"
#include "util/clock.h"

#define STREAMS_DEFAULT_MAX 4
#define LIST_PAGE_DEFAULT 100u
#define LIST_PAGE_MAX 1000u
#define MISSING_PAGE_DEFAULT 1000u
#define MISSING_PAGE_MAX 10000u
#define WARM_MAX_S (24 * 3600)

#define REASON(name) POSTCOPY__V1__ERROR_REASON__ERROR_REASON_##name

static int answer_migration(struct rpc *rpc, struct migration *m, struct rpc_answer *ret,
                            struct rpc_error *e)
{
	struct migration_message t;

	migration_message_init(&t, m, rpc->config.stalls);
	return message_pack(&t.message.base, ret, e);
}

/* What migrate has refused: the state is what a program wants to know. */
static int refused(struct migration *m, int rc, struct rpc_error *e)
{
	struct migration_info info;

	migration_get_info(m, &info);
	if (rc == -EBUSY && !e->key)
		rpc_error_metadata(e, "state", "%s", migration_state_name(info.state));
	return rc;
}

/* Whether it is one half of a migration that has not ended. */
static bool is_live(struct migration *m, enum migration_role role)
{
	struct migration_info info;

	if (!m)
		return false;
	migration_get_info(m, &info);
	return info.role == role && !migration_state_is_final(info.state);
}

/* By id, for a call that is one half's; what the other half has left behind is not meant. */
static struct migration *find_half(struct rpc *rpc, const char *id, enum migration_role role,
                                   struct rpc_error *e)
{
	bool source = role == MIGRATION_SOURCE;
	enum migration_role other_role = source ? MIGRATION_DESTINATION : MIGRATION_SOURCE;
	struct migration *m = migrations_find(rpc->config.migrations, id, role, NULL);
	struct migration *other = migrations_find(rpc->config.migrations, id, other_role, NULL);

	if (m && (is_live(m, role) || !is_live(other, other_role)))
		return m;
	if (!other)
		return rpc_find(rpc, id, POSTCOPY__V1__ROLE__ROLE_UNSPECIFIED, e);
	rpc_error_set(e, -EBUSY, REASON(WRONG_ROLE), "migration \"%s\": this is its %s; ask its %s",
	              id, migration_role_name(other_role), migration_role_name(role));
	rpc_error_metadata(e, "role", "%s", migration_role_name(other_role));
	return NULL;
}

static struct migration *find_destination(struct rpc *rpc, const char *id, struct rpc_error *e)
{
	return find_half(rpc, id, MIGRATION_DESTINATION, e);
}

/* More bulk threads than CPUs bring little, and faults wait behind them for a core. */
static unsigned int default_streams(const struct rpc *rpc)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int n =
	        cpus > 0 && cpus < STREAMS_DEFAULT_MAX ? (unsigned int)cpus : STREAMS_DEFAULT_MAX;

	return n < rpc->config.max_streams ? n : rpc->config.max_streams;
}

static int parse_map(Postcopy__V1__MapPolicy map, struct migration_params *p, struct rpc_error *e)
{
	p->map = map == POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY ? RESOLVER_MAP_LAZY
	                                                          : RESOLVER_MAP_EAGER;
	p->map_given = map != POSTCOPY__V1__MAP_POLICY__MAP_POLICY_UNSPECIFIED;
	if (protobuf_c_enum_descriptor_get_value(&postcopy__v1__map_policy__descriptor, (int)map))
		return 0;
	return rpc_error_field(e, "map", "%d is no MapPolicy", (int)map);
}

/* What a request says of the limits; @l may be NULL. */
static int parse_limits(struct rpc *rpc, const Postcopy__V1__Limits *l,
                        struct migration_limits *ret, struct rpc_error *e)
{
	*ret = (struct migration_limits){ .streams_given = false };
	if (!l)
		return 0;
	if (l->optional_streams_case == POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS) {
		ret->streams_given = true;
		ret->streams = l->streams;
		if (!l->streams || l->streams > rpc->config.max_streams)
			return rpc_error_field(e, "limits.streams", "%u, must be 1..%u", l->streams,
			                       rpc->config.max_streams);
	}
	ret->bandwidth_given = l->optional_bandwidth_case ==
	                       POSTCOPY__V1__LIMITS__OPTIONAL_BANDWIDTH_BANDWIDTH_BYTES_PER_S;
	ret->bandwidth_bytes_per_s = ret->bandwidth_given ? l->bandwidth_bytes_per_s : 0;
	ret->bulk_given = l->optional_bulk_case == POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
	ret->bulk = ret->bulk_given && l->bulk;
	ret->prefetch_given =
	        l->optional_prefetch_case == POSTCOPY__V1__LIMITS__OPTIONAL_PREFETCH_PREFETCH;
	ret->prefetch = ret->prefetch_given && l->prefetch;
	ret->weight_given = l->optional_weight_case == POSTCOPY__V1__LIMITS__OPTIONAL_WEIGHT_WEIGHT;
	ret->weight = ret->weight_given ? l->weight : 0;
	if (ret->weight_given && (l->weight < SHARE_WEIGHT_MIN || l->weight > SHARE_WEIGHT_MAX))
		return rpc_error_field(e, "limits.weight", "%u, must be %u..%u", l->weight,
		                       SHARE_WEIGHT_MIN, SHARE_WEIGHT_MAX);
	return 0;
}

/* The limits to begin with: the daemon's own where the request says nothing. */
static int parse_first_limits(struct rpc *rpc, const Postcopy__V1__Limits *l,
                              struct migration_params *p, struct rpc_error *e)
{
	struct migration_limits limits;
	int rc = parse_limits(rpc, l, &limits, e);

	p->streams = limits.streams_given ? limits.streams : default_streams(rpc);
	p->bandwidth_bytes_per_s = limits.bandwidth_given ? limits.bandwidth_bytes_per_s
	                                                  : rpc->config.bandwidth_bytes_per_s;
	p->bulk = !limits.bulk_given || limits.bulk;
	p->prefetch = !limits.prefetch_given || limits.prefetch;
	p->weight = limits.weight_given ? limits.weight : SHARE_WEIGHT_DEFAULT;
	return rc;
}

static int parse_source(const char *address, struct conn_target *ret, struct rpc_error *e)
{
	struct error why = ERROR_INIT;

	if (!*address)
		return rpc_error_field(e, "source_address",
		                       "a destination needs the source's host:port");
	if (conn_target_parse(address, ret, &why))
		return rpc_error_field(e, "source_address", "%s", why.text);
	if (!strtoul(ret->port, NULL, 10))
		return rpc_error_field(e, "source_address", "port 0 is none");
	return 0;
}

/* What a source has no use for is a mistake that is better found now. */
static int parse_source_fields(struct rpc *rpc, const Postcopy__V1__PrepareRequest *r,
                               struct migration_params *p, struct rpc_error *e)
{
	struct migration_limits limits;
	int rc = parse_limits(rpc, r->limits, &limits, e);

	if (*r->source_address)
		return rpc_error_field(e, "source_address", "is for a destination only");
	if (r->map)
		return rpc_error_field(e, "map", "is for a destination only");
	if (migration_limits_are_of_destination(&limits))
		return rpc_error_field(e, "limits", "but the weight are for a destination only");
	p->weight = limits.weight_given ? limits.weight : SHARE_WEIGHT_DEFAULT;
	return rc;
}

static int compare_uids(const void *a, const void *b)
{
	uid_t x = *(const uid_t *)a, y = *(const uid_t *)b;

	return (x > y) - (x < y);
}

/* In order: so the same users are the same, however they are written. */
static int parse_uids(const uint32_t *uids, size_t n, struct parties *p, struct rpc_error *e)
{
	if (n > PARTIES_UIDS_MAX)
		return rpc_error_field(e, "parties.uids", "%zu users, at most %u", n,
		                       PARTIES_UIDS_MAX);
	for (size_t i = 0; i < n; i++) {
		if (uids[i] == (uid_t)-1)
			return rpc_error_field(e, "parties.uids", "%u is no user", uids[i]);
		p->uids[i] = uids[i];
	}
	p->n_uids = n;
	qsort(p->uids, n, sizeof *p->uids, compare_uids);
	return 0;
}

static int parse_parties(const Postcopy__V1__Parties *m, struct parties *p, struct rpc_error *e)
{
	struct error why = ERROR_INIT;

	if (!m)
		return 0;
	if (parse_uids(m->uids, m->n_uids, p, e))
		return e->error.code;
	if (m->pid < 0 || m->pid > INT_MAX)
		return rpc_error_field(e, "parties.pid", "%lld is no process", (long long)m->pid);
	p->pid = (pid_t)m->pid;
	if (*m->cgroup && parties_check_cgroup(m->cgroup, &why))
		return rpc_error_field(e, "parties.cgroup", "%s", why.text);
	snprintf(p->cgroup, sizeof p->cgroup, "%s", m->cgroup);
	if (*m->peer && tls_name_check(m->peer, &why))
		return rpc_error_field(e, "parties.peer", "%s", why.text);
	snprintf(p->peer, sizeof p->peer, "%s", m->peer);
	return 0;
}

/* Of the token nothing but this is ever told: it is a secret. */
static int parse_token(const ProtobufCBinaryData *token, uint8_t ret[TOKEN_BYTES],
                       struct rpc_error *e)
{
	static const uint8_t none[TOKEN_BYTES];

	if (token->len != TOKEN_BYTES)
		return rpc_error_field(e, "token", "must be %d bytes, not %zu", TOKEN_BYTES,
		                       token->len);
	/* What a client has that forgot to make one is no secret. */
	if (!memcmp(token->data, none, TOKEN_BYTES))
		return rpc_error_field(e, "token",
		                       "is all zero, which everybody can guess: it takes %d random "
		                       "bytes (openssl rand -hex %d)",
		                       TOKEN_BYTES, TOKEN_BYTES);
	memcpy(ret, token->data, TOKEN_BYTES);
	return 0;
}

static int parse_prepare(struct rpc *rpc, const Postcopy__V1__PrepareRequest *r,
                         struct migration_params *p, struct rpc_error *e)
{
	struct error why = ERROR_INIT;
	int rc;

	if (migration_id_check(r->id, &why))
		return rpc_error_field(e, "id", "%s", why.text);
	strcpy(p->id, r->id);
	if (parse_token(&r->token, p->token, e) || parse_parties(r->parties, &p->parties, e))
		return e->error.code;
	switch (r->role) {
	case POSTCOPY__V1__ROLE__ROLE_SOURCE:
		p->role = MIGRATION_SOURCE;
		return parse_source_fields(rpc, r, p, e);
	case POSTCOPY__V1__ROLE__ROLE_DESTINATION:
		p->role = MIGRATION_DESTINATION;
		rc = parse_source(r->source_address, &p->source, e);
		if (!rc)
			rc = parse_map(r->map, p, e);
		return rc ? rc : parse_first_limits(rpc, r->limits, p, e);
	default:
		return rpc_error_field(e, "role", "must be ROLE_SOURCE or ROLE_DESTINATION");
	}
}

static void name_client(const struct grpc_peer *peer, struct migration_params *params)
{
	snprintf(params->client, sizeof params->client, "%s", peer->name);
	params->client_is_root = peer->local && !peer->uid;
}

static enum prepare_refusal prepare_refusal(int rc, const struct rpc_error *e)
{
	switch (rc) {
	case -EINVAL:
		return PREPARE_REFUSED_PARAMETERS;
	case -EEXIST:
		return PREPARE_REFUSED_EXISTS;
	case -EBUSY:
		return e->reason == REASON(DRAINING) ? PREPARE_REFUSED_DRAINING
		                                     : PREPARE_REFUSED_ROLE;
	case -EDQUOT:
		return PREPARE_REFUSED_CLIENT;
	case -EUSERS:
		return PREPARE_REFUSED_LIMIT;
	default:
		return PREPARE_REFUSED_RESOURCES;
	}
}

static int prepare(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                   struct rpc_error *e)
{
	const Postcopy__V1__PrepareRequest *r = request;
	struct migration_params params = { 0 };
	struct migration *m;
	int rc = parse_prepare(rpc, r, &params, e);

	if (!rc && rpc->draining &&
	    !is_live(migrations_find(rpc->config.migrations, r->id, params.role, NULL),
	             params.role))
		rc = rpc_error_set(e, -EBUSY, REASON(DRAINING),
		                   "this daemon is ending: it takes no new migrations");
	name_client(rpc->peer, &params);
	if (!rc) {
		rc = migrations_prepare(rpc->config.migrations, &params, &m, &e->error);
		if (rc == -EBUSY)
			e->reason = REASON(ROLE_UNAVAILABLE);
	}
	explicit_bzero(params.token, sizeof params.token);
	if (rc)
		migrations_note_refusal(rpc->config.migrations, prepare_refusal(rc, e));
	return rc ? rc : answer_migration(rpc, m, ret, e);
}

static int set_token(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                     struct rpc_error *e)
{
	const Postcopy__V1__SetTokenRequest *r = request;
	struct migration *m = find_half(rpc, r->id, MIGRATION_SOURCE, e);
	uint8_t token[TOKEN_BYTES];
	int rc = m ? parse_token(&r->token, token, e) : e->error.code;

	if (rc)
		return rc;
	rc = migration_set_token(m, token, &e->error);
	explicit_bzero(token, sizeof token);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

/* Absent: 0. Below a day, so that nothing overflows. */
static int parse_duration(const Google__Protobuf__Duration *d, const char *field, uint64_t *ret_ns,
                          struct rpc_error *e)
{
	*ret_ns = 0;
	if (!d)
		return 0;
	if (d->nanos < 0 || d->nanos >= (int32_t)NSEC_PER_SEC || d->seconds < 0 ||
	    d->seconds >= WARM_MAX_S)
		return rpc_error_field(e, field, "must be 0 .. 24 h");
	*ret_ns = (uint64_t)d->seconds * NSEC_PER_SEC + (uint64_t)d->nanos;
	return 0;
}

/* @w may be NULL. */
static int parse_warm(const Postcopy__V1__Warm *w, struct migration_warm *ret, struct rpc_error *e)
{
	*ret = (struct migration_warm){ .wanted = w };
	if (!w)
		return 0;
	ret->max_rounds = w->max_rounds;
	ret->dirty_bytes = w->dirty_bytes;
	if (parse_duration(w->max_time, "warm.max_time", &ret->max_ns, e))
		return e->error.code;
	return parse_duration(w->catch_up, "warm.catch_up", &ret->catch_up_ns, e);
}

static bool was_started(struct migration *m)
{
	struct migration_info info;

	migration_get_info(m, &info);
	return info.started_ns;
}

static int start(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__StartRequest *r = request;
	struct migration *m = find_destination(rpc, r->id, e);
	const struct migration_turn_wanted turn = { r->queue, r->priority };
	struct migration_warm warm;
	int rc = m ? parse_warm(r->warm, &warm, e) : e->error.code;

	if (!rc && r->priority > (r->queue ? MIGRATION_PRIORITY_MAX : 0))
		rc = rpc_error_field(e, "priority", "%u, must be 0..%u, and with queue alone",
		                     r->priority, MIGRATION_PRIORITY_MAX);
	if (rc)
		return rc;
	rc = migration_start(m, !r->hold_switchover, &warm, &turn, &e->error);
	if (rc == -EBUSY && rpc->draining && !was_started(m))
		e->reason = REASON(DRAINING);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

static int switchover(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                      struct rpc_error *e)
{
	const Postcopy__V1__SwitchoverRequest *r = request;
	struct migration *m = find_destination(rpc, r->id, e);
	int rc = m ? migration_switchover(m, &e->error) : e->error.code;

	if (!m || rc)
		return m ? refused(m, rc, e) : rc;
	return answer_migration(rpc, m, ret, e);
}

static int cancel(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__CancelRequest *r = request;
	struct migration *m = rpc_find(rpc, r->id, r->role, e);
	int rc = m ? migration_cancel(m, &e->error) : e->error.code;

	if (!m || rc)
		return m ? refused(m, rc, e) : rc;
	return answer_migration(rpc, m, ret, e);
}

static int get(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__GetRequest *r = request;
	struct migration *m = rpc_find(rpc, r->id, r->role, e);

	return m ? answer_migration(rpc, m, ret, e) : e->error.code;
}

static int get_report(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                      struct rpc_error *e)
{
	const Postcopy__V1__GetReportRequest *r = request;
	struct migration *m = rpc_find(rpc, r->id, r->role, e);

	return m ? report_pack(m, rpc->config.stalls, ret, e) : e->error.code;
}

/* Where the id is a source's alone, its weight can be set. */
static struct migration *find_limited(struct rpc *rpc, const Postcopy__V1__SetLimitsRequest *r,
                                      const struct migration_limits *limits, struct rpc_error *e)
{
	bool of_destination = r->warm || migration_limits_are_of_destination(limits);
	struct migrations *ms = rpc->config.migrations;

	if (of_destination || !migrations_find(ms, r->id, MIGRATION_SOURCE, NULL) ||
	    is_live(migrations_find(ms, r->id, MIGRATION_DESTINATION, NULL), MIGRATION_DESTINATION))
		return find_destination(rpc, r->id, e);
	return find_half(rpc, r->id, MIGRATION_SOURCE, e);
}

static int set_limits(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                      struct rpc_error *e)
{
	const Postcopy__V1__SetLimitsRequest *r = request;
	struct migration_limits limits;
	struct migration_warm warm;
	struct migration *m;
	int rc = parse_limits(rpc, r->limits, &limits, e);

	if (rc)
		return rc;
	m = find_limited(rpc, r, &limits, e);
	if (!m)
		return e->error.code;
	if (!r->limits && !r->warm)
		return rpc_error_field(e, "limits", "says nothing");
	rc = parse_warm(r->warm, &warm, e);
	if (rc)
		return rc;
	if (r->warm)
		rc = migration_set_warm(m, &warm, &e->error);
	if (!rc)
		rc = migration_set_limits(m, &limits, &e->error);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

static int recover(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                   struct rpc_error *e)
{
	const Postcopy__V1__RecoverRequest *r = request;
	struct migration *m = find_destination(rpc, r->id, e);
	bool moved = *r->source_address;
	struct conn_target target;
	int rc;

	if (!m || (moved && parse_source(r->source_address, &target, e)))
		return e->error.code;
	rc = migration_recover(m, moved ? &target : NULL, &e->error);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

static uint64_t missing_bytes(const struct migration_info *info)
{
	return (info->pages_total - info->pages_present) * UNIT_BYTES;
}

/* A place in guest memory as a page token has it. */
#define PLACE_REGION_SHIFT 56
#define PLACE_OFFSET_MASK ((1ull << PLACE_REGION_SHIFT) - 1)

static int pack_missing(const struct migration_info *info, const struct pull_range *ranges,
                        size_t n, const char *token, struct rpc_answer *ret, struct rpc_error *e)
{
	Postcopy__V1__ListMissingResponse answer = POSTCOPY__V1__LIST_MISSING_RESPONSE__INIT;
	_cleanup_free_ Postcopy__V1__MissingRange *messages = calloc(n + 1, sizeof *messages);
	_cleanup_free_ Postcopy__V1__MissingRange **pointers =
	        calloc(n + 1, sizeof(Postcopy__V1__MissingRange *));

	if (!messages || !pointers)
		return error_set(&e->error, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const struct region *region = &info->regions->regions[ranges[i].region];

		messages[i] = (Postcopy__V1__MissingRange)POSTCOPY__V1__MISSING_RANGE__INIT;
		messages[i].region = ranges[i].region;
		messages[i].guest_phys_addr = region->guest_phys_addr + ranges[i].offset;
		messages[i].size_bytes = ranges[i].len;
		pointers[i] = &messages[i];
	}
	answer.n_ranges = n;
	answer.ranges = pointers;
	answer.missing_bytes = missing_bytes(info);
	answer.next_page_token = (char *)token;
	return message_pack(&answer.base, ret, e);
}

static int list_missing(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                        struct rpc_error *e)
{
	const Postcopy__V1__ListMissingRequest *r = request;
	struct migration *m = find_destination(rpc, r->id, e);
	size_t max = r->page_size ? r->page_size : MISSING_PAGE_DEFAULT, n;
	_cleanup_free_ struct pull_range *ranges = NULL;
	char token[PAGE_TOKEN_MAX] = "";
	struct page_position from;
	struct pull_place at;
	struct migration_info info;

	if (!m)
		return e->error.code;
	migration_get_info(m, &info);
	from = (struct page_position){ .key = rpc->started_real_ns + info.seq };
	if (page_token_parse(r->page_token, &from, e))
		return e->error.code;
	max = max < MISSING_PAGE_MAX ? max : MISSING_PAGE_MAX;
	ranges = calloc(max + 1, sizeof *ranges);
	if (!ranges)
		return error_set(&e->error, -ENOMEM, "out of memory");
	at = (struct pull_place){ (uint32_t)(from.at >> PLACE_REGION_SHIFT),
		                  from.at & PLACE_OFFSET_MASK };
	n = migration_missing(m, &at, ranges, max + 1);
	if (n > max) {
		at = (struct pull_place){ ranges[max].region, ranges[max].offset };
		n = max;
	}
	if (at.region < info.regions->n) {
		from.at = (uint64_t)at.region << PLACE_REGION_SHIFT | at.offset;
		page_token_print(&from, token);
	}
	return pack_missing(&info, ranges, n, token, ret, e);
}

static int poison(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__PoisonRequest *r = request;
	struct migration *m = find_destination(rpc, r->id, e);
	struct migration_info info;
	int rc;

	if (!m)
		return e->error.code;
	migration_get_info(m, &info);
	if (info.state == MIGRATION_PAUSED && r->confirm_missing_bytes != missing_bytes(&info)) {
		rpc_error_set(e, -EBUSY, REASON(CONFIRMATION),
		              "migration \"%s\": %llu bytes are missing, and %llu were confirmed",
		              r->id, (unsigned long long)missing_bytes(&info),
		              (unsigned long long)r->confirm_missing_bytes);
		rpc_error_metadata(e, "missing_bytes", "%llu",
		                   (unsigned long long)missing_bytes(&info));
		return -EBUSY;
	}
	rc = migration_poison(m, &e->error);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

/* Who says which destination is gone has looked which one it is, and means this very one. */
static int check_confirmed(struct migration *m, const char *confirmed, struct rpc_error *e)
{
	char holder[STREAM_HOLDER_HEX_MAX];
	struct migration_info info;

	migration_get_info(m, &info);
	stream_holder_hex(&info.holder, holder);
	if (info.role != MIGRATION_SOURCE || migration_state_is_final(info.state) ||
	    !info.holder.bound || !strcmp(holder, confirmed))
		return 0;
	rpc_error_set(e, -EBUSY, REASON(CONFIRMATION),
	              "migration \"%s\": its holder is %s, and \"%s\" was confirmed", info.id,
	              holder, confirmed);
	rpc_error_metadata(e, "holder", "%s", holder);
	return -EBUSY;
}

static int run_on(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__RunOnRequest *r = request;
	struct migration *m = find_half(rpc, r->id, MIGRATION_SOURCE, e);
	int rc = m ? check_confirmed(m, r->confirm_holder, e) : e->error.code;

	if (rc)
		return rc;
	rc = migration_run_on(m, &e->error);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

static int release(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                   struct rpc_error *e)
{
	const Postcopy__V1__ReleaseRequest *r = request;
	struct migration *m = find_half(rpc, r->id, MIGRATION_SOURCE, e);
	int rc = m ? check_confirmed(m, r->confirm_holder, e) : e->error.code;

	if (rc)
		return rc;
	rc = migration_release(m, &e->error);
	return rc ? refused(m, rc, e) : answer_migration(rpc, m, ret, e);
}

static int delete (struct rpc *rpc, const void *request, struct rpc_answer *ret,
                   struct rpc_error *e)
{
	const Postcopy__V1__DeleteRequest *r = request;
	Postcopy__V1__DeleteResponse answer = POSTCOPY__V1__DELETE_RESPONSE__INIT;
	struct error why = ERROR_INIT;
	enum migration_role role;
	int rc = rpc_parse_role(r->role, &role, e);

	if (rc)
		return rc;
	if (migration_id_check(r->id, &why))
		return rpc_error_field(e, "id", "%s", why.text);
	rc = migrations_delete(rpc->config.migrations, r->id, role, &answer.deleted, &e->error);
	return rc ? rc : message_pack(&answer.base, ret, e);
}

/* The states that a List asks for, as bits; all where it names none. */
static int parse_states(const Postcopy__V1__ListRequest *r, uint32_t *ret, struct rpc_error *e)
{
	uint32_t states = 0;

	for (size_t i = 0; i < r->n_states; i++) {
		int state = (int)r->states[i];

		if (!state ||
		    !protobuf_c_enum_descriptor_get_value(&postcopy__v1__state__descriptor, state))
			return rpc_error_field(e, "states", "%d is no state", state);
		states |= 1u << state;
	}
	*ret = r->n_states ? states : UINT32_MAX;
	return 0;
}

struct list_page {
	struct migration_message *messages;
	Postcopy__V1__Migration **pointers;
	size_t n;
	uint64_t next_seq; /* of the last one here, where there are more; else 0 */
};

/* Up to @max of them that were prepared before @before_seq. */
static void fill_page(struct rpc *rpc, uint32_t states, uint64_t before_seq, size_t max,
                      struct list_page *page)
{
	struct migrations *ms = rpc->config.migrations;
	uint64_t last_seq = 0;

	for (struct migration *m = migrations_next(ms, NULL); m; m = migrations_next(ms, m)) {
		struct migration_message *t = &page->messages[page->n];
		struct migration_info info;

		migration_get_info(m, &info);
		if (info.seq >= before_seq || !(states & 1u << state_message(info.state)))
			continue;
		if (page->n == max) {
			page->next_seq = last_seq;
			return;
		}
		migration_message_init(t, m, rpc->config.stalls);
		page->pointers[page->n++] = &t->message;
		last_seq = info.seq;
	}
}

static size_t count_migrations(struct migrations *ms)
{
	size_t n = 0;

	for (struct migration *m = migrations_next(ms, NULL); m; m = migrations_next(ms, m))
		n++;
	return n;
}

static int list(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Postcopy__V1__ListRequest *r = request;
	Postcopy__V1__ListResponse answer = POSTCOPY__V1__LIST_RESPONSE__INIT;
	_cleanup_free_ struct migration_message *messages = NULL;
	_cleanup_free_ Postcopy__V1__Migration **pointers = NULL;
	size_t have = count_migrations(rpc->config.migrations);
	size_t max = r->page_size ? r->page_size : LIST_PAGE_DEFAULT;
	char token[PAGE_TOKEN_MAX] = "";
	struct page_position from = { .key = rpc->started_real_ns, .at = UINT64_MAX };
	struct list_page page = { 0 };
	int rc = parse_states(r, &from.filter, e);

	if (!rc)
		rc = page_token_parse(r->page_token, &from, e);
	if (rc)
		return rc;
	max = max < LIST_PAGE_MAX ? max : LIST_PAGE_MAX;
	messages = calloc(have + 1, sizeof *messages);
	pointers = calloc(have + 1, sizeof(Postcopy__V1__Migration *));
	if (!messages || !pointers)
		return error_set(&e->error, -ENOMEM, "out of memory");
	page.messages = messages;
	page.pointers = pointers;
	fill_page(rpc, from.filter, from.at, max, &page);
	if (page.next_seq) {
		from.at = page.next_seq;
		page_token_print(&from, token);
	}
	answer.n_migrations = page.n;
	answer.migrations = pointers;
	answer.next_page_token = token;
	return message_pack(&answer.base, ret, e);
}

RPC_UNARY(prepare, postcopy__v1__prepare_request__descriptor);
RPC_UNARY(set_token, postcopy__v1__set_token_request__descriptor);
RPC_UNARY(start, postcopy__v1__start_request__descriptor);
RPC_UNARY(switchover, postcopy__v1__switchover_request__descriptor);
RPC_UNARY(get, postcopy__v1__get_request__descriptor);
RPC_UNARY(list, postcopy__v1__list_request__descriptor);
RPC_UNARY(delete, postcopy__v1__delete_request__descriptor);
RPC_UNARY(cancel, postcopy__v1__cancel_request__descriptor);
RPC_UNARY(recover, postcopy__v1__recover_request__descriptor);
RPC_UNARY(set_limits, postcopy__v1__set_limits_request__descriptor);
RPC_UNARY(get_report, postcopy__v1__get_report_request__descriptor);
RPC_UNARY(list_missing, postcopy__v1__list_missing_request__descriptor);
RPC_UNARY(poison, postcopy__v1__poison_request__descriptor);
RPC_UNARY(run_on, postcopy__v1__run_on_request__descriptor);
RPC_UNARY(release, postcopy__v1__release_request__descriptor);

const struct grpc_method migrations_methods[] = {
	{ .path = "/postcopy.v1.Migrations/Prepare", .role = GRPC_OPERATOR, .call = prepare_call },
	{ .path = "/postcopy.v1.Migrations/SetToken",
	  .role = GRPC_OPERATOR,
	  .call = set_token_call },
	{ .path = "/postcopy.v1.Migrations/Start", .role = GRPC_OPERATOR, .call = start_call },
	{ .path = "/postcopy.v1.Migrations/Switchover",
	  .role = GRPC_OPERATOR,
	  .call = switchover_call },
	{ .path = "/postcopy.v1.Migrations/Get", .role = GRPC_READER, .call = get_call },
	{ .path = "/postcopy.v1.Migrations/List", .role = GRPC_READER, .call = list_call },
	{ .path = "/postcopy.v1.Migrations/Watch", .role = GRPC_READER, .call = watch_call },
	{ .path = "/postcopy.v1.Migrations/Delete", .role = GRPC_OPERATOR, .call = delete_call },
	{ .path = "/postcopy.v1.Migrations/Cancel", .role = GRPC_OPERATOR, .call = cancel_call },
	{ .path = "/postcopy.v1.Migrations/Recover", .role = GRPC_OPERATOR, .call = recover_call },
	{ .path = "/postcopy.v1.Migrations/SetLimits",
	  .role = GRPC_OPERATOR,
	  .call = set_limits_call },
	{ .path = "/postcopy.v1.Migrations/GetReport",
	  .role = GRPC_READER,
	  .call = get_report_call },
	{ .path = "/postcopy.v1.Migrations/ListMissing",
	  .role = GRPC_READER,
	  .call = list_missing_call },
	{ .path = "/postcopy.v1.Migrations/Poison", .role = GRPC_OPERATOR, .call = poison_call },
	{ .path = "/postcopy.v1.Migrations/RunOn", .role = GRPC_OPERATOR, .call = run_on_call },
	{ .path = "/postcopy.v1.Migrations/Release", .role = GRPC_OPERATOR, .call = release_call },
	{ .path = NULL },
};
