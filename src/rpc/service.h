/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control plane: the services of control.proto, gRPC's health and reflection.
 *
 * Theory of operation
 * -------------------
 * src/grpc brings requests as bytes and takes answers as bytes; here is what they mean. A
 * unary method is a function from a request to an answer or an error, and is finished before
 * it returns; it acts on src/migrate, which never blocks. Three things last longer, each a struct
 * that lives from the call to its end or to the client's:
 *
 *   watch    a stream of one migration: at each change of state and each interval, if the
 *            client has taken what was sent before; so the queue never holds more than one
 *            message, and what comes next is the newest
 *   health   a stream of one service's health
 *   check    Host.Check: the kernel is probed on a worker thread, once for all who ask meanwhile
 *
 * A method looks, or it changes something: its row in the table says which by the role that it
 * takes. Whoever changes something, or tries to, is in the log (audit.h).
 *
 * Everything in a request is checked here or in migrate, and refused by the field's name. What
 * is secret (tokens) is never sent back, neither in answers nor in errors.
 *
 * Files: methods.h what the methods share; *_methods.c, watch.c, health.c, reflection.c the
 * services; audit.h the trail; message.h bytes; errors.h failures; *_message.h answers made from
 * snapshots.
 *
 * Threads: all on the loop's, but for the probe's work.
 */
#ifndef RPC_SERVICE_H
#define RPC_SERVICE_H

#include <uv.h>

#include "grpc/server.h"

struct migrations;
struct rpc;
struct stalls;

/* How the configuration was read anew the last time. */
struct rpc_reload {
	uint64_t at_real_ns;              /* 0: never */
	const char *error;                /* empty: well */
	const char *const *needs_restart; /* keys that differ and are not in effect */
	size_t n_needs_restart;
};

struct rpc_config {
	struct migrations *migrations; /* must outlive the service, as all that is below */
	const struct stalls *stalls;   /* NULL: nobody measures them */
	const char *version;
	const char *pages_address; /* where the page server listens; empty: no source here */
	const struct tcp_listening *pages; /* the same as sockets; NULL: none */
	unsigned int max_streams;          /* of one migration; 0: as many as are possible */
	uint64_t bandwidth_bytes_per_s;    /* of one migration where it names none; 0: no cap */
	const char
	        *config_error; /* why what runs is not what is configured; empty or NULL: it is */
	const struct rpc_reload *reload; /* as it is now; NULL: it is never read anew */
	/* The end of this host's certificate, seconds since 1970; 0: not known. May be NULL. */
	int64_t (*certificate_expiry_s)(void *arg);
	/* At the end of each call, for metrics: as grpc/server.h has it. May be NULL. */
	void (*finished)(void *arg, const struct grpc_peer *peer, const char *path,
	                 enum grpc_code code, uint64_t duration_ns);
	void *arg;
};

/*
 * rpc_new() - the service, listening nowhere yet
 * @config: copied
 */
int rpc_new(uv_loop_t *loop, const struct rpc_config *config, struct rpc **ret, struct error *err);

/* As the configuration has them, for migrations that are prepared from now on. */
void rpc_set_limits(struct rpc *rpc, unsigned int max_streams, uint64_t bandwidth_bytes_per_s);

/* Where to listen, and what it has: as grpc/server.h. */
struct grpc_server *rpc_server(struct rpc *rpc);

/* From now on nothing new is prepared, and health says NOT_SERVING; all other calls go on. */
void rpc_drain(struct rpc *rpc);

/* Ends all calls and connections. rpc_free() when the loop has run on; both allow NULL. */
void rpc_close(struct rpc *rpc);
struct rpc *rpc_free(struct rpc *rpc);

#endif
