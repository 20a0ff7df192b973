/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gRPC client: blocking, one connection, one call at a time. HTTP/2 by nghttp2.
 *
 * Threads: one.
 */
#ifndef GRPC_CLIENT_H
#define GRPC_CLIENT_H

#include "grpc/status.h"
#include "tls/tls.h"

/* The largest message that is taken. */
#define GRPC_CLIENT_MESSAGE_MAX (64u << 20)

struct grpc_client;

/*
 * grpc_client_new() - connect
 * @target: "unix:/path", a path that begins with "/", or "host:port"
 * @tls: for host:port, ALPN "h2"; must outlive the client; NULL for a unix socket
 * @cancel_fd: a descriptor that ends any wait with -ECANCELED once it is readable, or -1;
 *             borrowed for the client's life
 *
 * Return: 0; -ENOENT, -ECONNREFUSED where no daemon listens; -EACCES; -ETIMEDOUT; with @err set.
 */
int grpc_client_new(const char *target, struct tls_context *tls, int cancel_fd,
                    struct grpc_client **ret, struct error *err);
struct grpc_client *grpc_client_free(struct grpc_client *c);

/* Give a call up with -ETIMEDOUT where the server is silent for so long; 0, the default: never. */
void grpc_client_set_idle_timeout(struct grpc_client *c, unsigned int timeout_ms);

/*
 * grpc_client_call() - one request; every message of the answer
 * @timeout_ms: sent as grpc-timeout, and kept here; 0: none
 * @on_message: called for each; a negative return cancels the call and is returned
 * @ret_status: how the server ended the call, where 0 is returned
 *
 * Return: 0 where the server has ended the call, well or not; else -EPIPE, -ETIMEDOUT,
 * -EPROTO, -ECANCELED or what @on_message returned, with @err set, after which the client is of no
 * use.
 */
int grpc_client_call(struct grpc_client *c, const char *path, const void *request, size_t len,
                     unsigned int timeout_ms,
                     int (*on_message)(const uint8_t *message, size_t len, void *arg,
                                       struct error *err),
                     void *arg, struct grpc_status *ret_status, struct error *err);

#endif
