/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/methods.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/audit.h"
#include "util/clock.h"

static size_t add_methods(struct rpc *rpc, size_t n, const struct grpc_method *methods)
{
	for (; methods->path && n < RPC_METHODS_MAX; methods++)
		rpc->methods[n++] = *methods;
	return n;
}

void rpc_set_limits(struct rpc *rpc, unsigned int max_streams, uint64_t bandwidth_bytes_per_s)
{
	if (!max_streams || max_streams > PULL_STREAMS_MAX)
		max_streams = PULL_STREAMS_MAX;
	rpc->config.max_streams = max_streams;
	rpc->config.bandwidth_bytes_per_s = bandwidth_bytes_per_s;
}

int rpc_init(struct rpc *rpc, uv_loop_t *loop, const struct rpc_config *config, struct error *err)
{
	size_t n = 0;

	*rpc = (struct rpc){ .loop = loop, .config = *config };
	rpc->started_real_ns = clock_real_ns();
	rpc_set_limits(rpc, config->max_streams, config->bandwidth_bytes_per_s);
	n = add_methods(rpc, n, migrations_methods);
	n = add_methods(rpc, n, host_methods);
	n = add_methods(rpc, n, health_methods);
	add_methods(rpc, n, reflection_methods);
	return descriptors_init(&rpc->descriptors, err);
}

void rpc_deinit(struct rpc *rpc)
{
	health_deinit(rpc);
	descriptors_deinit(&rpc->descriptors);
}

void rpc_fail(struct grpc_call *call, const struct rpc_error *e)
{
	struct grpc_status status;

	rpc_error_status(e, &status);
	grpc_call_finish(call, &status);
}

void rpc_unary(struct rpc *rpc, struct grpc_call *call, const ProtobufCMessageDescriptor *type,
               int (*fn)(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                         struct rpc_error *e),
               const uint8_t *bytes, size_t len)
{
	_cleanup_message_ ProtobufCMessage *request = NULL;
	struct rpc_error e = RPC_ERROR_INIT;
	struct rpc_answer answer = { 0 };
	int rc = message_unpack(type, bytes, len, &request, &e);

	rpc->peer = grpc_call_peer(call);
	if (!rc)
		rc = fn(rpc, request, &answer, &e);
	rpc->peer = NULL;
	if (!rc) {
		rc = grpc_call_send(call, answer.bytes, answer.len);
		if (rc)
			error_set(&e.error, rc, "out of memory for the answer");
	}
	free(answer.bytes);
	audit_call(call, bytes, len, rc ? rpc_error_code(e.error.code) : GRPC_OK, e.error.text);
	if (rc)
		rpc_fail(call, &e);
	else
		grpc_call_finish(call, NULL);
}

void rpc_denied(struct grpc_call *call, const uint8_t *bytes, size_t len, void *arg)
{
	const struct grpc_method *method = grpc_call_method(call);
	const struct grpc_peer *peer = grpc_call_peer(call);
	struct rpc_error e = RPC_ERROR_INIT;
	char caller[AUDIT_CALLER_MAX];

	(void)arg;
	audit_print_caller(peer, caller);
	rpc_error_set(&e, -EPERM, POSTCOPY__V1__ERROR_REASON__ERROR_REASON_PERMISSION,
	              "%s may look and change nothing: %s takes an operator (%s)", caller,
	              method->path + 1, peer->local ? "control-group" : "control-allow");
	rpc_error_metadata(&e, "role", "%s", grpc_role_name(method->role));
	audit_call(call, bytes, len, GRPC_PERMISSION_DENIED, e.error.text);
	rpc_fail(call, &e);
}

int rpc_stream_begin(struct rpc *rpc, struct rpc_error *e)
{
	if (rpc->n_streams >= RPC_STREAMS_MAX)
		return rpc_error_set(e, -EUSERS, POSTCOPY__V1__ERROR_REASON__ERROR_REASON_TOO_MANY,
		                     "%u streams are open already", rpc->n_streams);
	rpc->n_streams++;
	return 0;
}

int rpc_parse_role(Postcopy__V1__Role role, enum migration_role *ret, struct rpc_error *e)
{
	switch (role) {
	case POSTCOPY__V1__ROLE__ROLE_UNSPECIFIED:
		*ret = 0;
		return 0;
	case POSTCOPY__V1__ROLE__ROLE_SOURCE:
		*ret = MIGRATION_SOURCE;
		return 0;
	case POSTCOPY__V1__ROLE__ROLE_DESTINATION:
		*ret = MIGRATION_DESTINATION;
		return 0;
	default:
		return rpc_error_field(e, "role", "%d is no role", (int)role);
	}
}

struct migration *rpc_find(struct rpc *rpc, const char *id, Postcopy__V1__Role role,
                           struct rpc_error *e)
{
	struct error why = ERROR_INIT;
	enum migration_role wanted;
	struct migration *m;

	if (migration_id_check(id, &why)) {
		rpc_error_field(e, "id", "%s", why.text);
		return NULL;
	}
	if (rpc_parse_role(role, &wanted, e))
		return NULL;
	m = migrations_find(rpc->config.migrations, id, wanted, &why);
	if (!m && why.code == -EINVAL)
		rpc_error_field(e, "role", "%s", why.text);
	else if (!m)
		e->error = why;
	return m;
}
