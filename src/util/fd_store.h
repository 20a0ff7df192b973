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
 * The manager drops two things without a word: a second descriptor of an open file that it has,
 * whatever its name, and what is beyond FileDescriptorStoreMax=. So we keep the books: a copy of
 * all that it has, by which kcmp(2) finds what is there already (it asks no filesystem), and
 * their number. One open file is one **entry** at the manager; names may share an entry, which
 * goes with the last of them. An entry is called as the first name that had it. Who has to find it
 * again by another name asks fd_store_entry() and tells the next process, which says
 * fd_store_link().
 *
 * Room that will be needed when there is no way back any more is held beforehand, and counts.
 *
 * Sockets that the manager listens on for us (socket activation) come the same way.
 *
 * Without a manager there is no store: nothing is kept, nothing is there to be had, and no call
 * fails.
 *
 * Threads: all calls on one thread.
 */
#ifndef UTIL_FD_STORE_H
#define UTIL_FD_STORE_H

#include <stdbool.h>

#include "util/error.h"

/* A name with its end: what sd_notify(3) allows is more. */
#define FD_STORE_NAME_BYTES 128

struct fd_store;

/*
 * fd_store_new() - take what the manager has given to this process
 *
 * Once in a process: afterwards the environment says nothing of it any more.
 *
 * Return: 0, or -ENOMEM and other errnos with @err set.
 */
int fd_store_new(struct fd_store **ret, struct error *err);

/* Closes our copies; in the manager's hands they stay. */
struct fd_store *fd_store_free(struct fd_store *store);

/* Whether what is added will be there for the next process. NULL: no. */
bool fd_store_exists(const struct fd_store *store);

/* How many entries the manager keeps, where it does not say so itself (before systemd 254). */
void fd_store_set_max(struct fd_store *store, unsigned int max);

/* Entries that are kept or held; and how many there may be, 0 without a store. */
unsigned int fd_store_count(const struct fd_store *store);
unsigned int fd_store_max(const struct fd_store *store);

/*
 * fd_store_check_room() - would @n more fit, and @spare besides?
 *
 * Return: 0; -EUSERS with @err naming the numbers and the setting.
 */
int fd_store_check_room(const struct fd_store *store, unsigned int n, unsigned int spare,
                        struct error *err);

/*
 * fd_store_get() - a copy of the descriptor of that name
 *
 * The caller's; the store has its own. From now on the name counts as used.
 *
 * Where the manager has given several by one name, the others are called NAME+1, NAME+2...
 *
 * Return: the descriptor, O_CLOEXEC; -ENOENT; or the errno of fcntl(2), -EMFILE.
 */
int fd_store_get(struct fd_store *store, const char *name);

/* The same, borrowed and only to be looked at: the name does not count as used. Return: or -1. */
int fd_store_look(const struct fd_store *store, const char *name);

/* The name beginning with @prefix, after @n such; or NULL. Valid until it is removed. */
const char *fd_store_name(const struct fd_store *store, const char *prefix, unsigned int n);

/* The same of names that nobody has used: neither got, linked nor added. */
const char *fd_store_unused(const struct fd_store *store, const char *prefix, unsigned int n);

/* The same, one after the other: *@at is 0 before the first. */
const char *fd_store_next_unused(const struct fd_store *store, const char *prefix,
                                 unsigned int *at);

/*
 * fd_store_add() - keep a copy of @fd by this name: printable ASCII without ':'; with '+', as
 * fd_store_get() numbers them
 *
 * Adding what the name stands for already changes nothing. Where the manager can't be told the
 * name is here all the same.
 *
 * Return: 0; -EEXIST where the name stands for another file; or -errno.
 */
int fd_store_add(struct fd_store *store, const char *name, int fd);

/* Whether this open file is kept, by whatever name: then that name, or else NULL. */
const char *fd_store_find(const struct fd_store *store, int fd);

/* What the manager calls it; NULL where there is no such name. */
const char *fd_store_entry(const struct fd_store *store, const char *name);

/*
 * fd_store_link() - have @name stand for what the manager calls @entry
 *
 * Return: 0; -ENOENT where the manager has given no such thing; -ENOMEM.
 */
int fd_store_link(struct fd_store *store, const char *name, const char *entry);

/* Hold room for a name that will be added. Nothing happens where it is there. */
int fd_store_hold(struct fd_store *store, const char *name);

/* Let go of that name, here, and of its entry at the manager where no other name has it. */
void fd_store_remove(struct fd_store *store, const char *name);

/* A socket of that name whose other end is closed. */
bool fd_store_hung_up(const struct fd_store *store, const char *name);

#endif
