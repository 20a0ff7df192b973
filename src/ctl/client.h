/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's control service, seen from its client. What it says is in
 * rpc/control.h; how it is said stays in client.c, so that another wire replaces
 * that file and nothing else.
 *
 * A client is one connection and does one call at a time.
 */
#ifndef CTL_CLIENT_H
#define CTL_CLIENT_H

#include <json-c/json.h>

#include "util/error.h"

struct client;

/*
 * client_new() - connect
 * @path: of the daemon's control socket
 * @cancel_fd: a descriptor that ends any wait with -ECANCELED once it is readable,
 *             or -1. Borrowed for the client's life.
 *
 * Return: 0; -ENOENT / -ECONNREFUSED where no daemon listens; -EACCES
 */
int client_new(const char *path, int cancel_fd, struct client **ret, struct error *err);

/* NULL is allowed. Return: NULL */
struct client *client_free(struct client *c);

/*
 * client_call() - one request, one answer
 * @params: the method's, or NULL for none; borrowed
 * @ret: the result, the caller's to put; may be NULL
 *
 * Return: 0; the daemon's refusal as errno (-ENOENT for NOT_FOUND, -EINVAL, -EBUSY for
 * FAILED_PRECONDITION, -EEXIST, -EACCES, -EOPNOTSUPP, -EAGAIN for UNAVAILABLE, -EIO for any
 * other) with its message in @err; -EPIPE, -ETIMEDOUT, -EPROTO, -ECANCELED.
 */
int client_call(struct client *c, const char *method, struct json_object *params,
                struct json_object **ret, struct error *err);

/*
 * client_watch() - follow a migration to its end
 * @on_update: for each update; a negative return ends the watch with it. It says why in the
 *             @err it is given.
 * @ret: the migration in its last state; may be NULL
 *
 * Errors as client_call(). After a failure the connection is of no more use.
 */
int client_watch(struct client *c, const char *id, unsigned int interval_ms,
                 int (*on_update)(struct json_object *migration, void *userdata, struct error *err),
                 void *userdata, struct json_object **ret, struct error *err);

#endif
