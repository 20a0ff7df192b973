/* SPDX-License-Identifier: Apache-2.0 */
/* grpc.health.v1.Health: SERVING, or NOT_SERVING once the daemon drains. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "rpc/methods.h"

#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

/* "" is the daemon as a whole. */
static const char *const services[] = { "", "postcopy.v1.Migrations", "postcopy.v1.Host" };
#define N_SERVICES (sizeof services / sizeof *services)

struct health_watch {
	struct health_watch *next;
	struct rpc *rpc;
	struct grpc_call *call; /* NULL: it is gone; freed by who walks the list */
	bool known;
};

static bool is_known(const char *service)
{
	for (size_t i = 0; i < N_SERVICES; i++)
		if (!strcmp(service, services[i]))
			return true;
	return false;
}

static Grpc__Health__V1__HealthCheckResponse health_message(const struct rpc *rpc, bool known)
{
	Grpc__Health__V1__HealthCheckResponse answer =
	        GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;

	answer.status = rpc->draining ? STATUS(NOT_SERVING) : STATUS(SERVING);
	if (!known)
		answer.status = STATUS(SERVICE_UNKNOWN);
	return answer;
}

static int check(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	const Grpc__Health__V1__HealthCheckRequest *r = request;
	Grpc__Health__V1__HealthCheckResponse answer = health_message(rpc, true);

	if (is_known(r->service))
		return message_pack(&answer.base, ret, e);
	return rpc_error_set(e, -ENOENT, POSTCOPY__V1__ERROR_REASON__ERROR_REASON_SERVICE_UNKNOWN,
	                     "no service \"%s\" here", r->service);
}

static int list(struct rpc *rpc, const void *request, struct rpc_answer *ret, struct rpc_error *e)
{
	Grpc__Health__V1__HealthListResponse answer = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
	Grpc__Health__V1__HealthListResponse__StatusesEntry entries[N_SERVICES];
	Grpc__Health__V1__HealthListResponse__StatusesEntry *pointers[N_SERVICES];
	Grpc__Health__V1__HealthCheckResponse status = health_message(rpc, true);

	(void)request;
	for (size_t i = 0; i < N_SERVICES; i++) {
		grpc__health__v1__health_list_response__statuses_entry__init(&entries[i]);
		entries[i].key = (char *)services[i];
		entries[i].value = &status;
		pointers[i] = &entries[i];
	}
	answer.n_statuses = N_SERVICES;
	answer.statuses = pointers;
	return message_pack(&answer.base, ret, e);
}

/* Its call is over. Memory goes later: it may be in the list that is being walked. */
static void health_lost(struct health_watch *w)
{
	w->call = NULL;
	w->rpc->n_streams--;
}

static void health_show(struct health_watch *w)
{
	Grpc__Health__V1__HealthCheckResponse answer = health_message(w->rpc, w->known);
	struct rpc_error e = RPC_ERROR_INIT;

	struct grpc_call *call = w->call;

	if (!message_send(call, &answer.base, &e) || !w->call)
		return;
	health_lost(w);
	rpc_fail(call, &e);
}

/* Forget those whose calls are gone. */
static void sweep(struct rpc *rpc)
{
	for (struct health_watch **p = &rpc->health_watches, *w; (w = *p);) {
		if (w->call) {
			p = &w->next;
			continue;
		}
		*p = w->next;
		free(w);
	}
}

void health_changed(struct rpc *rpc)
{
	for (struct health_watch *w = rpc->health_watches; w; w = w->next)
		if (w->call && w->known)
			health_show(w);
	sweep(rpc);
}

void health_deinit(struct rpc *rpc)
{
	sweep(rpc);
}

static void on_gone(struct grpc_call *call, void *arg)
{
	(void)call;
	health_lost(arg);
}

static int watch_begin(struct rpc *rpc, struct grpc_call *call, const char *service,
                       struct rpc_error *e)
{
	struct health_watch *w;
	int rc;

	sweep(rpc);
	rc = rpc_stream_begin(rpc, e);
	if (rc)
		return rc;
	w = malloc(sizeof *w);
	if (!w) {
		rpc->n_streams--;
		return error_set(&e->error, -ENOMEM, "out of memory");
	}
	*w = (struct health_watch){ .next = rpc->health_watches, .rpc = rpc, .call = call };
	w->known = is_known(service);
	rpc->health_watches = w;
	grpc_call_watch(call, on_gone, NULL, w);
	health_show(w);
	return 0;
}

static void health_watch_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *rpc)
{
	_cleanup_message_ ProtobufCMessage *request = NULL;
	struct rpc_error e = RPC_ERROR_INIT;
	Grpc__Health__V1__HealthCheckRequest *r;

	if (message_unpack(&grpc__health__v1__health_check_request__descriptor, bytes, len,
	                   &request, &e)) {
		rpc_fail(call, &e);
		return;
	}
	r = (Grpc__Health__V1__HealthCheckRequest *)request;
	if (watch_begin(rpc, call, r->service, &e))
		rpc_fail(call, &e);
}

RPC_UNARY(check, grpc__health__v1__health_check_request__descriptor);
RPC_UNARY(list, grpc__health__v1__health_list_request__descriptor);

const struct grpc_method health_methods[] = {
	{ .path = "/grpc.health.v1.Health/Check", .role = GRPC_READER, .call = check_call },
	{ .path = "/grpc.health.v1.Health/List", .role = GRPC_READER, .call = list_call },
	{ .path = "/grpc.health.v1.Health/Watch", .role = GRPC_READER, .call = health_watch_call },
	{ .path = NULL },
};
