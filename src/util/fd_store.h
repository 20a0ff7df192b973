/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors that outlive the process: the service manager's file-descriptor store.
 *
 * Theory of operation
 * -------------------
 * systemd (sd_notify(3), FDSTORE=1) keeps copies of descriptors that a service hands to it, each
 * by a name, and gives them back to the service's next process, whatever ended the one before.
 * While a copy lies there, closing ours closes nothing: a socket's peer sees no end and what it
 * says waits in the socket. So whoever gives a descriptor here also takes it out again when its
 * life is really over.
 *
 * Sockets that the manager listens on for us (socket activation) come the same way.
 *
 * A name may stand for several descriptors. Without a manager there is no store: nothing is
 * kept, nothing is there to be taken, and no call fails.
 *
 * Threads: all calls on one thread.
 */
#ifndef UTIL_FD_STORE_H
#define UTIL_FD_STORE_H

#include <stdbool.h>

#include "util/error.h"

struct fd_store;

/*
 * fd_store_new() - take what the manager has given to this process
 *
 * Once in a process: afterwards the environment says nothing of it any more.
 *
 * Return: 0, or -ENOMEM and other errnos with @err set.
 */
int fd_store_new(struct fd_store **ret, struct error *err);

/* Closes what nobody has taken; in the manager's hands it stays. */
struct fd_store *fd_store_free(struct fd_store *store);

/* Whether what is added will be there for the next process. NULL: no. */
bool fd_store_exists(const struct fd_store *store);

/*
 * fd_store_take() - a descriptor of that name, if there is one left
 *
 * The caller's from now on; the manager keeps its copy.
 *
 * Return: the descriptor, O_CLOEXEC, or -1.
 */
int fd_store_take(struct fd_store *store, const char *name);

/* The name of one that nobody has taken, beginning with @prefix, after @n such; or NULL. */
const char *fd_store_name(const struct fd_store *store, const char *prefix, unsigned int n);

/* Keep a copy of @fd by this name: printable ASCII without ':'. Return: 0 or -errno. */
int fd_store_add(struct fd_store *store, const char *name, int fd);

/* Let go of all of that name, here and at the manager. */
void fd_store_remove(struct fd_store *store, const char *name);

#endif
