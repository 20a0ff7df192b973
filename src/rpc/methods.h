/* SPDX-License-Identifier: Apache-2.0 */
/* What the methods share. Of grpc/server.h they use calls only, so that tests can fake those. */
#ifndef RPC_METHODS_H
#define RPC_METHODS_H

#include "migrate/migrate.h"
#include "rpc/check.h"
#include "rpc/descriptors.h"
#include "rpc/message.h"
#include "rpc/service.h"

#define RPC_METHODS_MAX 32
/* Streams that last, over all connections: each costs the loop some time at every interval. */
#define RPC_STREAMS_MAX 1024u

struct health_watch;

struct rpc {
	uv_loop_t *loop;
	struct rpc_config config;
	struct grpc_server *server;
	struct grpc_method methods[RPC_METHODS_MAX + 1]; /* ended by a path of NULL */
	struct descriptors descriptors;
	uint64_t started_real_ns;
	bool draining;
	const struct grpc_peer *peer; /* whose unary call it is, while it lasts */
	unsigned int n_streams;
	struct health_watch *health_watches;
	struct check check;
};

/* All but the server. */
int rpc_init(struct rpc *rpc, uv_loop_t *loop, const struct rpc_config *config, struct error *err);
void rpc_deinit(struct rpc *rpc);

/* A service's methods, ended by a path of NULL; each with the role that it takes. */
extern const struct grpc_method migrations_methods[];
extern const struct grpc_method host_methods[];
extern const struct grpc_method health_methods[];
extern const struct grpc_method reflection_methods[];

/*
 * rpc_unary() - a unary call, from its bytes to its end
 * @fn: the method; its @request is of @type. Return: 0 with the answer, or -errno with @e set
 */
void rpc_unary(struct rpc *rpc, struct grpc_call *call, const ProtobufCMessageDescriptor *type,
               int (*fn)(struct rpc *rpc, const void *request, struct rpc_answer *ret,
                         struct rpc_error *e),
               const uint8_t *bytes, size_t len);

/* Defines fn_call() for a method's table. */
#define RPC_UNARY(fn, type)                                                                        \
	static void fn##_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *rpc) \
	{                                                                                          \
		rpc_unary(rpc, call, &type, fn, bytes, len);                                       \
	}                                                                                          \
	struct cleanup_semicolon

/* In the place of a method that the caller may not call: as struct grpc_server_config has it. */
void rpc_denied(struct grpc_call *call, const uint8_t *bytes, size_t len, void *rpc);

/* End a call that failed. */
void rpc_fail(struct grpc_call *call, const struct rpc_error *e);

/* One more stream that lasts. Return: 0 or -EUSERS with @e set. */
int rpc_stream_begin(struct rpc *rpc, struct rpc_error *e);

/* 0 where it says none. Return: 0 or -EINVAL with @e set. */
int rpc_parse_role(Postcopy__V1__Role role, enum migration_role *ret, struct rpc_error *e);

/* Check an id and a role, and find what they name. NULL with @e set. */
struct migration *rpc_find(struct rpc *rpc, const char *id, Postcopy__V1__Role role,
                           struct rpc_error *e);

/* Migrations.Watch. */
void watch_call(struct grpc_call *call, const uint8_t *bytes, size_t len, void *rpc);

/* Health streams are told; and forgotten, when all calls are gone. */
void health_changed(struct rpc *rpc);
void health_deinit(struct rpc *rpc);

#endif
