/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/clean.h"
#include "ctl/json.h"
#include "ctl/migration_json.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "grpc/client.h"
#include "util/cleanup.h"
#include "util/secret.h"
#include "util/clock.h"

#define MIGRATIONS "/postcopy.v1.Migrations/"
#define HOST "/postcopy.v1.Host/"
#define LIST_PAGE 1000
#define MISSING_PAGE 10000
/* A daemon that never came to its last page would keep us for ever. */
#define PAGES_MAX 100000

struct client {
	struct tls_config tls_config;
	const char *server_name;
	struct tls_context *tls;
	struct grpc_client *grpc;
	unsigned int timeout_ms;
	struct client_refusal refusal;
};

static void free_message(ProtobufCMessage *m)
{
	protobuf_c_message_free_unpacked(m, NULL);
}

DEFINE_CLEANUP(ProtobufCMessage *, free_message);
#define _cleanup_message_ _cleanup_(free_message_p)

static int open_tls(struct client *c, const struct client_target *t, struct error *err)
{
	if (!t->cert || !t->key || !t->ca)
		return error_set(err, -EINVAL,
		                 "control address \"%s\" takes --cert, --key and --ca", t->control);
	c->tls_config = (struct tls_config){
		.alpn = "h2", .cert_path = t->cert, .key_path = t->key, .ca_path = t->ca
	};
	c->server_name = t->server_name;
	if (c->server_name) {
		if (tls_name_check(c->server_name, err))
			return error_prefix(err, "--server-name");
		c->tls_config.allowed_names = &c->server_name;
		c->tls_config.n_allowed_names = 1;
	}
	return tls_context_new(&c->tls_config, &c->tls, err);
}

int client_new(const struct client_target *target, int cancel_fd, struct client **ret,
               struct error *err)
{
	struct client *c = calloc(1, sizeof *c);
	bool local = *target->control == '/' || !strncmp(target->control, "unix:", 5);
	int r = 0;

	if (!c)
		return error_errno(err, -ENOMEM, "control client");
	c->timeout_ms = target->timeout_ms ? target->timeout_ms : CLIENT_TIMEOUT_MS;
	if (!local)
		r = open_tls(c, target, err);
	if (!r)
		r = grpc_client_new(target->control, c->tls, cancel_fd, &c->grpc, err);
	if (r < 0) {
		client_free(c);
		return r;
	}
	grpc_client_set_idle_timeout(c->grpc, c->timeout_ms);
	*ret = c;
	return 0;
}

struct client *client_free(struct client *c)
{
	if (c) {
		grpc_client_free(c->grpc);
		tls_context_free(c->tls);
		free(c);
	}
	return NULL;
}

const struct client_refusal *client_refusal(const struct client *c)
{
	return &c->refusal;
}

/* Refusals. */

static int errno_of(enum grpc_code code)
{
	switch (code) {
	case GRPC_OK:
		return 0;
	case GRPC_NOT_FOUND:
		return -ENOENT;
	case GRPC_INVALID_ARGUMENT:
	case GRPC_OUT_OF_RANGE:
		return -EINVAL;
	case GRPC_FAILED_PRECONDITION:
		return -EBUSY;
	case GRPC_ALREADY_EXISTS:
		return -EEXIST;
	case GRPC_PERMISSION_DENIED:
	case GRPC_UNAUTHENTICATED:
		return -EACCES;
	case GRPC_UNIMPLEMENTED:
		return -EOPNOTSUPP;
	case GRPC_UNAVAILABLE:
		return -EAGAIN;
	case GRPC_DEADLINE_EXCEEDED:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

/* The reason in the first ErrorInfo; @ret stays where there is none. */
static void take_reason(const struct grpc_status *s, char *ret, size_t size)
{
	static const char error_info[] = "/google.rpc.ErrorInfo";
	Google__Rpc__Status *details =
	        google__rpc__status__unpack(NULL, s->details_len, s->details);

	for (size_t i = 0; details && i < details->n_details && !*ret; i++) {
		const Google__Protobuf__Any *any = details->details[i];
		size_t len = strlen(any->type_url);
		Google__Rpc__ErrorInfo *info;

		if (len < strlen(error_info) ||
		    strcmp(any->type_url + len - strlen(error_info), error_info))
			continue;
		info = google__rpc__error_info__unpack(NULL, any->value.len, any->value.data);
		if (info)
			snprintf(ret, size, "%s", info->reason);
		text_clean(ret);
		google__rpc__error_info__free_unpacked(info, NULL);
	}
	google__rpc__status__free_unpacked(details, NULL);
}

static int refused(struct client *c, const struct grpc_status *s, struct error *err)
{
	char message[sizeof s->message];

	snprintf(c->refusal.code, sizeof c->refusal.code, "%s", grpc_code_name(s->code));
	if (s->details_len)
		take_reason(s, c->refusal.reason, sizeof c->refusal.reason);
	snprintf(message, sizeof message, "%s", s->message);
	text_clean(message);
	return error_set(err, errno_of(s->code), "%s",
	                 *message ? message : "refused without reason");
}

/* Calls. */

static int call(struct client *c, const char *path, const ProtobufCMessage *request,
                unsigned int timeout_ms,
                int (*on_message)(const uint8_t *message, size_t len, void *arg, struct error *err),
                void *arg, struct error *err)
{
	size_t len = protobuf_c_message_get_packed_size(request);
	_cleanup_secret_ uint8_t *packed = malloc(len + 1);
	struct grpc_status status;
	int r;

	if (!packed)
		return error_errno(err, -ENOMEM, "a request");
	protobuf_c_message_pack(request, packed);
	c->refusal = (struct client_refusal){ .code = "" };
	r = grpc_client_call(c->grpc, path, packed, len, timeout_ms, on_message, arg, &status, err);
	if (r < 0)
		return r;
	return status.code ? refused(c, &status, err) : 0;
}

struct answer {
	const ProtobufCMessageDescriptor *type;
	ProtobufCMessage *message;
};

static int unpack(const ProtobufCMessageDescriptor *type, const uint8_t *message, size_t len,
                  ProtobufCMessage **ret, struct error *err)
{
	*ret = protobuf_c_message_unpack(type, NULL, len, message);
	if (!*ret)
		return error_set(err, -EPROTO, "an answer that is no %s", type->name);
	message_clean(*ret);
	return 0;
}

static int take_answer(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	struct answer *a = arg;

	if (a->message)
		return error_set(err, -EPROTO, "two answers to one call");
	return unpack(a->type, message, len, &a->message, err);
}

/* One request, one answer. @ret: to be given to free_message() */
static int call_unary(struct client *c, const char *path, const ProtobufCMessage *request,
                      const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret,
                      struct error *err)
{
	struct answer a = { .type = type };
	int r = call(c, path, request, c->timeout_ms, take_answer, &a, err);

	if (!r && !a.message)
		r = error_set(err, -EPROTO, "success, and no answer");
	if (r < 0) {
		free_message(a.message);
		return r;
	}
	*ret = a.message;
	return 0;
}

/* The many that answer with the migration as it is now. */
static int call_migration(struct client *c, const char *path, const ProtobufCMessage *request,
                          struct json_object **ret, struct error *err)
{
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r = call_unary(c, path, request, &postcopy__v1__migration__descriptor, &answer, err);

	if (!r && ret)
		*ret = migration_json((const Postcopy__V1__Migration *)answer);
	return r;
}

/* Fills @to, which must be initialised. */
static void put_limits(Postcopy__V1__Limits *to, const struct client_limits *from)
{
	if (from->bandwidth_bytes_per_s >= 0) {
		to->optional_bandwidth_case =
		        POSTCOPY__V1__LIMITS__OPTIONAL_BANDWIDTH_BANDWIDTH_BYTES_PER_S;
		to->bandwidth_bytes_per_s = (uint64_t)from->bandwidth_bytes_per_s;
	}
	if (from->streams) {
		to->optional_streams_case = POSTCOPY__V1__LIMITS__OPTIONAL_STREAMS_STREAMS;
		to->streams = from->streams;
	}
	if (from->bulk >= 0) {
		to->optional_bulk_case = POSTCOPY__V1__LIMITS__OPTIONAL_BULK_BULK;
		to->bulk = from->bulk;
	}
	if (from->prefetch >= 0) {
		to->optional_prefetch_case = POSTCOPY__V1__LIMITS__OPTIONAL_PREFETCH_PREFETCH;
		to->prefetch = from->prefetch;
	}
	if (from->weight) {
		to->optional_weight_case = POSTCOPY__V1__LIMITS__OPTIONAL_WEIGHT_WEIGHT;
		to->weight = from->weight;
	}
}

static Postcopy__V1__MapPolicy map_of(const char *name)
{
	if (name && !strcmp(name, "eager"))
		return POSTCOPY__V1__MAP_POLICY__MAP_POLICY_EAGER;
	if (name && !strcmp(name, "lazy"))
		return POSTCOPY__V1__MAP_POLICY__MAP_POLICY_LAZY;
	return POSTCOPY__V1__MAP_POLICY__MAP_POLICY_UNSPECIFIED;
}

/* NULL: none. */
static Postcopy__V1__Role role_of(const char *name)
{
	if (name && !strcmp(name, "source"))
		return POSTCOPY__V1__ROLE__ROLE_SOURCE;
	if (name && !strcmp(name, "destination"))
		return POSTCOPY__V1__ROLE__ROLE_DESTINATION;
	return POSTCOPY__V1__ROLE__ROLE_UNSPECIFIED;
}

/* Return: NULL where none are named. */
static Postcopy__V1__Parties *put_parties(Postcopy__V1__Parties *to,
                                          const struct client_parties *from)
{
	to->n_uids = from->n_uids;
	to->uids = (uint32_t *)from->uids;
	to->pid = from->pid;
	to->cgroup = (char *)(from->cgroup ? from->cgroup : "");
	to->peer = (char *)(from->peer ? from->peer : "");
	return to->n_uids || to->pid || *to->cgroup || *to->peer ? to : NULL;
}

int client_prepare(struct client *c, const struct client_prepare *p, struct json_object **ret,
                   struct error *err)
{
	Postcopy__V1__PrepareRequest request = POSTCOPY__V1__PREPARE_REQUEST__INIT;
	Postcopy__V1__Parties parties = POSTCOPY__V1__PARTIES__INIT;
	Postcopy__V1__Limits limits = POSTCOPY__V1__LIMITS__INIT;

	request.id = (char *)p->id;
	request.parties = put_parties(&parties, &p->parties);
	request.token = (ProtobufCBinaryData){ sizeof p->token, (uint8_t *)p->token };
	request.role = POSTCOPY__V1__ROLE__ROLE_SOURCE;
	if (p->destination) {
		request.role = POSTCOPY__V1__ROLE__ROLE_DESTINATION;
		request.source_address = (char *)p->source;
		request.map = map_of(p->map);
		put_limits(&limits, &p->limits);
		request.limits = &limits;
	}
	return call_migration(c, MIGRATIONS "Prepare", &request.base, ret, err);
}

int client_set_token(struct client *c, const char *id, const uint8_t token[CLIENT_TOKEN_BYTES],
                     struct json_object **ret, struct error *err)
{
	Postcopy__V1__SetTokenRequest request = POSTCOPY__V1__SET_TOKEN_REQUEST__INIT;

	request.id = (char *)id;
	request.token = (ProtobufCBinaryData){ CLIENT_TOKEN_BYTES, (uint8_t *)token };
	return call_migration(c, MIGRATIONS "SetToken", &request.base, ret, err);
}

/* What a Warm is made of. */
struct warm_message {
	Postcopy__V1__Warm warm;
	Google__Protobuf__Duration max_time, catch_up;
};

static Google__Protobuf__Duration duration_of(uint64_t ms)
{
	Google__Protobuf__Duration d = GOOGLE__PROTOBUF__DURATION__INIT;

	d.seconds = (int64_t)(ms / 1000);
	d.nanos = (int32_t)(ms % 1000 * NSEC_PER_MSEC);
	return d;
}

/* @from may be NULL. */
static Postcopy__V1__Warm *put_warm(struct warm_message *to, const struct client_warm *from)
{
	if (!from)
		return NULL;
	to->warm = (Postcopy__V1__Warm)POSTCOPY__V1__WARM__INIT;
	to->warm.max_rounds = from->max_rounds;
	to->warm.dirty_bytes = from->dirty_bytes;
	to->max_time = duration_of(from->max_ms);
	to->warm.max_time = from->max_ms ? &to->max_time : NULL;
	to->catch_up = duration_of(from->catch_up_ms);
	to->warm.catch_up = from->catch_up_ms ? &to->catch_up : NULL;
	return &to->warm;
}

int client_start(struct client *c, const char *id, bool hold, const struct client_warm *warm,
                 const struct client_queue *queue, struct json_object **ret, struct error *err)
{
	Postcopy__V1__StartRequest request = POSTCOPY__V1__START_REQUEST__INIT;
	struct warm_message message;

	request.warm = put_warm(&message, warm);
	request.id = (char *)id;
	request.hold_switchover = hold;
	request.queue = queue != NULL;
	request.priority = queue ? queue->priority : 0;
	return call_migration(c, MIGRATIONS "Start", &request.base, ret, err);
}

int client_switchover(struct client *c, const char *id, struct json_object **ret, struct error *err)
{
	Postcopy__V1__SwitchoverRequest request = POSTCOPY__V1__SWITCHOVER_REQUEST__INIT;

	request.id = (char *)id;
	return call_migration(c, MIGRATIONS "Switchover", &request.base, ret, err);
}

int client_get(struct client *c, const char *id, const char *role, struct json_object **ret,
               struct error *err)
{
	Postcopy__V1__GetRequest request = POSTCOPY__V1__GET_REQUEST__INIT;

	request.id = (char *)id;
	request.role = role_of(role);
	return call_migration(c, MIGRATIONS "Get", &request.base, ret, err);
}

int client_cancel(struct client *c, const char *id, const char *role, struct json_object **ret,
                  struct error *err)
{
	Postcopy__V1__CancelRequest request = POSTCOPY__V1__CANCEL_REQUEST__INIT;

	request.id = (char *)id;
	request.role = role_of(role);
	return call_migration(c, MIGRATIONS "Cancel", &request.base, ret, err);
}

int client_recover(struct client *c, const char *id, const char *source, struct json_object **ret,
                   struct error *err)
{
	Postcopy__V1__RecoverRequest request = POSTCOPY__V1__RECOVER_REQUEST__INIT;

	request.id = (char *)id;
	if (source)
		request.source_address = (char *)source;
	return call_migration(c, MIGRATIONS "Recover", &request.base, ret, err);
}

int client_set_limits(struct client *c, const char *id, const struct client_limits *limits,
                      struct json_object **ret, struct error *err)
{
	Postcopy__V1__SetLimitsRequest request = POSTCOPY__V1__SET_LIMITS_REQUEST__INIT;
	Postcopy__V1__Limits wanted = POSTCOPY__V1__LIMITS__INIT;

	put_limits(&wanted, limits);
	request.id = (char *)id;
	request.limits = &wanted;
	return call_migration(c, MIGRATIONS "SetLimits", &request.base, ret, err);
}

int client_poison(struct client *c, const char *id, uint64_t confirm_bytes,
                  struct json_object **ret, struct error *err)
{
	Postcopy__V1__PoisonRequest request = POSTCOPY__V1__POISON_REQUEST__INIT;

	request.id = (char *)id;
	request.confirm_missing_bytes = confirm_bytes;
	return call_migration(c, MIGRATIONS "Poison", &request.base, ret, err);
}

int client_run_on(struct client *c, const char *id, const char *holder, struct json_object **ret,
                  struct error *err)
{
	Postcopy__V1__RunOnRequest request = POSTCOPY__V1__RUN_ON_REQUEST__INIT;

	request.id = (char *)id;
	request.confirm_holder = (char *)holder;
	return call_migration(c, MIGRATIONS "RunOn", &request.base, ret, err);
}

int client_release(struct client *c, const char *id, const char *holder, struct json_object **ret,
                   struct error *err)
{
	Postcopy__V1__ReleaseRequest request = POSTCOPY__V1__RELEASE_REQUEST__INIT;

	request.id = (char *)id;
	request.confirm_holder = (char *)holder;
	return call_migration(c, MIGRATIONS "Release", &request.base, ret, err);
}

int client_get_report(struct client *c, const char *id, const char *role, struct json_object **ret,
                      struct error *err)
{
	Postcopy__V1__GetReportRequest request = POSTCOPY__V1__GET_REPORT_REQUEST__INIT;
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r;

	request.id = (char *)id;
	request.role = role_of(role);
	r = call_unary(c, MIGRATIONS "GetReport", &request.base, &postcopy__v1__report__descriptor,
	               &answer, err);
	if (!r && ret)
		*ret = report_json((const Postcopy__V1__Report *)answer);
	return r;
}

int client_delete(struct client *c, const char *id, const char *role, struct json_object **ret,
                  struct error *err)
{
	Postcopy__V1__DeleteRequest request = POSTCOPY__V1__DELETE_REQUEST__INIT;
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r;

	request.id = (char *)id;
	request.role = role_of(role);
	r = call_unary(c, MIGRATIONS "Delete", &request.base,
	               &postcopy__v1__delete_response__descriptor, &answer, err);
	if (!r && ret) {
		*ret = json_object_new_object();
		json_set_count(*ret, "deleted",
		               ((const Postcopy__V1__DeleteResponse *)answer)->deleted);
	}
	return r;
}

int client_check(struct client *c, struct json_object **ret, struct error *err)
{
	Postcopy__V1__CheckRequest request = POSTCOPY__V1__CHECK_REQUEST__INIT;
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r = call_unary(c, HOST "Check", &request.base,
	                   &postcopy__v1__check_response__descriptor, &answer, err);

	if (!r && ret)
		*ret = check_response_json((const Postcopy__V1__CheckResponse *)answer);
	return r;
}

int client_get_info(struct client *c, struct json_object **ret, struct error *err)
{
	Postcopy__V1__GetInfoRequest request = POSTCOPY__V1__GET_INFO_REQUEST__INIT;
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r = call_unary(c, HOST "GetInfo", &request.base, &postcopy__v1__host_info__descriptor,
	                   &answer, err);

	if (!r && ret)
		*ret = host_info_json((const Postcopy__V1__HostInfo *)answer);
	return r;
}

int client_set_host_limits(struct client *c, int64_t in, int64_t out, struct json_object **ret,
                           struct error *err)
{
	Postcopy__V1__SetHostLimitsRequest request = POSTCOPY__V1__SET_HOST_LIMITS_REQUEST__INIT;
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	int r;

	if (in >= 0) {
		request.optional_in_case =
		        POSTCOPY__V1__SET_HOST_LIMITS_REQUEST__OPTIONAL_IN_BANDWIDTH_IN_BYTES_PER_S;
		request.bandwidth_in_bytes_per_s = (uint64_t)in;
	}
	if (out >= 0) {
		request.optional_out_case =
		        POSTCOPY__V1__SET_HOST_LIMITS_REQUEST__OPTIONAL_OUT_BANDWIDTH_OUT_BYTES_PER_S;
		request.bandwidth_out_bytes_per_s = (uint64_t)out;
	}
	r = call_unary(c, HOST "SetHostLimits", &request.base, &postcopy__v1__budget__descriptor,
	               &answer, err);
	if (!r && ret)
		*ret = budget_json((const Postcopy__V1__Budget *)answer);
	return r;
}

/* Lists. */

/* One page into @to. @answer: kept for the token of the next one. */
static int list_page(struct client *c, Postcopy__V1__ListRequest *request, struct json_object *to,
                     ProtobufCMessage **answer, struct error *err)
{
	ProtobufCMessage *page;
	const Postcopy__V1__ListResponse *list;
	int r = call_unary(c, MIGRATIONS "List", &request->base,
	                   &postcopy__v1__list_response__descriptor, &page, err);

	if (r < 0)
		return r;
	free_message(*answer);
	*answer = page;
	list = (const Postcopy__V1__ListResponse *)page;
	for (size_t i = 0; i < list->n_migrations; i++)
		json_object_array_add(to, migration_json(list->migrations[i]));
	request->page_token = list->next_page_token;
	return 0;
}

int client_list(struct client *c, uint32_t states, struct json_object **ret, struct error *err)
{
	Postcopy__V1__ListRequest request = POSTCOPY__V1__LIST_REQUEST__INIT;
	_cleanup_json_ struct json_object *migrations = json_object_new_array();
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	Postcopy__V1__State wanted[32];
	unsigned int pages = 0;

	request.page_size = LIST_PAGE;
	request.states = wanted;
	for (unsigned int i = 0; i < 32; i++)
		if (states & 1u << i)
			wanted[request.n_states++] = (Postcopy__V1__State)i;
	do {
		int r = list_page(c, &request, migrations, &answer, err);

		if (r < 0)
			return r;
		if (++pages > PAGES_MAX)
			return error_set(err, -EPROTO, "a list without an end");
	} while (*request.page_token);
	if (ret) {
		*ret = json_object_new_object();
		json_object_object_add(*ret, "migrations", steal_ptr(&migrations));
	}
	return 0;
}

/* As list_page(). */
static int missing_page(struct client *c, Postcopy__V1__ListMissingRequest *request,
                        struct json_object *to, ProtobufCMessage **answer, struct error *err)
{
	ProtobufCMessage *page;
	const Postcopy__V1__ListMissingResponse *list;
	int r = call_unary(c, MIGRATIONS "ListMissing", &request->base,
	                   &postcopy__v1__list_missing_response__descriptor, &page, err);

	if (r < 0)
		return r;
	free_message(*answer);
	*answer = page;
	list = (const Postcopy__V1__ListMissingResponse *)page;
	for (size_t i = 0; i < list->n_ranges; i++)
		json_object_array_add(to, missing_range_json(list->ranges[i]));
	request->page_token = list->next_page_token;
	return 0;
}

int client_list_missing(struct client *c, const char *id, struct json_object **ret,
                        struct error *err)
{
	Postcopy__V1__ListMissingRequest request = POSTCOPY__V1__LIST_MISSING_REQUEST__INIT;
	_cleanup_json_ struct json_object *ranges = json_object_new_array();
	_cleanup_message_ ProtobufCMessage *answer = NULL;
	unsigned int pages = 0;

	request.id = (char *)id;
	request.page_size = MISSING_PAGE;
	do {
		int r = missing_page(c, &request, ranges, &answer, err);

		if (r < 0)
			return r;
		if (++pages > PAGES_MAX)
			return error_set(err, -EPROTO, "a list without an end");
	} while (*request.page_token);
	if (ret) {
		*ret = json_object_new_object();
		json_set_count(*ret, "missing_bytes",
		               ((Postcopy__V1__ListMissingResponse *)answer)->missing_bytes);
		json_object_object_add(*ret, "ranges", steal_ptr(&ranges));
	}
	return 0;
}

/* Watch. */

struct watch {
	int (*on_update)(struct json_object *migration, void *userdata, struct error *err);
	void *userdata;
	struct json_object *last;
};

static int take_update(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	struct watch *w = arg;
	_cleanup_message_ ProtobufCMessage *m = NULL;
	int r = unpack(&postcopy__v1__migration__descriptor, message, len, &m, err);

	if (r < 0)
		return r;
	json_object_put(w->last);
	w->last = migration_json((const Postcopy__V1__Migration *)m);
	return w->on_update(w->last, w->userdata, err);
}

int client_watch(struct client *c, const char *id, const char *role, unsigned int interval_ms,
                 int (*on_update)(struct json_object *migration, void *userdata, struct error *err),
                 void *userdata, struct json_object **ret, struct error *err)
{
	Postcopy__V1__WatchRequest request = POSTCOPY__V1__WATCH_REQUEST__INIT;
	Google__Protobuf__Duration interval = GOOGLE__PROTOBUF__DURATION__INIT;
	struct watch w = { .on_update = on_update, .userdata = userdata };
	int r;

	interval.seconds = interval_ms / 1000;
	interval.nanos = (int32_t)(interval_ms % 1000 * NSEC_PER_MSEC);
	request.id = (char *)id;
	request.role = role_of(role);
	request.interval = &interval;
	r = call(c, MIGRATIONS "Watch", &request.base, 0, take_update, &w, err);
	if (!r && !w.last)
		r = error_set(err, -EPROTO, "a watch that ended without a word");
	if (!r && ret)
		*ret = steal_ptr(&w.last);
	json_object_put(w.last);
	return r;
}
