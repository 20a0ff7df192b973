/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control plane as it is configured: the gRPC service on its unix socket, for root, for the
 * daemon's own user and group and for the members of other groups; and over TCP with mutual TLS,
 * where that is asked for.
 */
#ifndef POSTCOPYD_CONTROL_H
#define POSTCOPYD_CONTROL_H

#include <uv.h>

#include "grpc/server.h"
#include "postcopyd/options.h"

struct control;
struct groups;
struct migrations;
struct rpc;
struct rpc_reload;
struct stalls;
struct tls_context;

struct control_config {
	const struct options *options; /* must outlive it, as the migrations */
	int unix_fd;                   /* the listening unix socket; taken over in any case */
	struct tcp_listening tcp;      /* for gRPC; none: as configured; taken over as well */
	struct migrations *migrations;
	const struct stalls *stalls;
	const char *pages_address; /* where page streams are served; empty: this can be no source */
	const struct tcp_listening
	        *pages; /* the same as sockets, until control_close(); may be NULL */
	int64_t (*certificate_expiry_s)(void *arg); /* as rpc/service.h has it; may be NULL */
	const struct rpc_reload *reload;            /* as rpc/service.h has it */
	const char *config_error; /* why what runs is not what is configured; empty: it is */
	bool may_lack_tcp;        /* gRPC over TCP that can't be had is no reason to fail */
	/* At the end of each call, as grpc/server.h has it; may be NULL. */
	void (*finished)(void *arg, const struct grpc_peer *peer, const char *path,
	                 enum grpc_code code, uint64_t duration_ns);
	void *arg;
};

/*
 * control_new() - listen
 *
 * Return: 0, or a negative errno with @err naming what can't be had; @ret is then to be closed and
 * freed as well, where it is not NULL.
 */
int control_new(uv_loop_t *loop, const struct control_config *config, struct control **ret,
                struct error *err);

/* Have it go by other groups and limits, for those who connect and what is prepared from now on. */
void control_set(struct control *c, const struct options *o, const struct groups *operators,
                 const struct groups *readers);

/* The TCP port; 0: none. */
unsigned int control_port(const struct control *c);

/* The same as @o has it now. Return: what control_tls() is to be reloaded with. */
const struct tls_config *control_tls_config(struct control *c, const struct options *o);

struct rpc *control_rpc(struct control *c);

/* What TCP connections are opened with; NULL: there are none. */
struct tls_context *control_tls(const struct control *c);

/* Ends all calls; control_free() when the loop has run on. Both allow NULL. */
void control_close(struct control *c);
struct control *control_free(struct control *c);

#endif
