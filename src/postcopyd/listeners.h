/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sockets that the daemon listens on: from the service manager, which has them from its own
 * configuration (socket activation) or from the process before us, or else bound anew. So whoever
 * connects while no daemon runs waits, and is served by the next one.
 */
#ifndef POSTCOPYD_LISTENERS_H
#define POSTCOPYD_LISTENERS_H

#include <stddef.h>

#include "util/fd_store.h"
#include "util/tcp_listen.h"

/*
 * The socket called @name, at @path where it is bound here. Return: a listening socket, or -errno
 * with @err set.
 */
int listener_unix(struct fd_store *store, const char *name, const char *path, int type,
                  struct error *err);

/* The service manager's sockets for gRPC over TCP; their number may be 0. */
int listener_tcp(struct fd_store *store, struct tcp_listening *ret, struct error *err);

/* Where they listen: as it is configured, with the port they got; else as the kernel has the first.
 */
void listener_address(const struct tcp_listening *l, const char *configured, char *ret,
                      size_t size);

/*
 * listener_open_up() - have others than the daemon's own group connect to the socket at @path
 *
 * Credentials decide then, and not the file's mode. Where the file is the manager's and stays
 * closed to them, the log says that @key does nothing.
 */
void listener_open_up(const char *path, const char *key);

/* The page streams' sockets; @address may be NULL: there may be none, then. */
int listener_pages(struct fd_store *store, const char *address, struct tcp_listening *ret,
                   struct error *err);

#endif
