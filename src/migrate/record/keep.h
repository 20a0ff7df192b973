/* SPDX-License-Identifier: Apache-2.0 */
/* What is left for the next process (takeover.h says why): the record, and descriptors. */
#ifndef MIGRATE_RECORD_KEEP_H
#define MIGRATE_RECORD_KEEP_H

#include "migrate/migration.h"

/* The key in a name of the store, "KIND.KEY" or "KIND.KEY+N". Return: false where there is none. */
bool keep_key(const char *name, char key[MIGRATION_KEY_BYTES]);

/* Give a new migration its record. Return: 0 or -errno with @err set. */
int migration_save_first(struct migration *m, struct error *err);

/* Write what has been decided into the record. */
void migration_save(struct migration *m);

/*
 * Keep a descriptor in the store, or drop it. Return: 0; or why the next process would not have it,
 * with @err set. Whoever can still go back does.
 */
int migration_keep_fd(struct migration *m, const char *kind, int fd, struct error *err);
void migration_drop_fds(struct migration *m, const char *kind);

/* What the process before has left: the caller's from now on; -ENOENT; or another errno. */
int migration_take_fd(struct migration *m, const char *kind);

/*
 * migration_keep_attach() - what an ATTACH brought, and room for what comes later
 * @root: of root's VMM, which gets what is spared for it
 *
 * The VMM's socket is apart. Also after a failure: migration_drop_attach().
 *
 * Return: 0; -EUSERS where it does not fit; or -errno; with @err set.
 */
int migration_keep_attach(struct migration *m, const struct vmm_attach *attach, uid_t vmm_uid,
                          struct error *err);
/* The same of MEMORY, for a VMM that is attached without. */
int migration_keep_late(struct migration *m, const struct vmm_attach *attach, struct error *err);
void migration_drop_attach(struct migration *m);
int migration_hold_room(struct migration *m, struct error *err);

/*
 * Room for the userfaultfds of shards 1..@n-1 and what belongs to them; they, and a memfd for their
 * journals (fault/pull.h). Return: 0; -EUSERS, -EDQUOT and others with @err set, and then nothing
 * of it is held or kept.
 */
int migration_hold_shards(struct migration *m, unsigned int n, struct error *err);
int migration_keep_shards(struct migration *m, const int *uffds, unsigned int n, int journals_fd,
                          struct error *err);
void migration_drop_shards(struct migration *m);
/* What the process before has kept of them. Return: 0; or -errno with @err set. */
int migration_take_shards(struct migration *m, unsigned int n, int uffds[SHARDS_MAX - 1],
                          int *ret_journals_fd, struct error *err);

/*
 * The dirty log's descriptors (mem/dirty_log.h): beside the rest, for a guest can do without.
 * Return: 0; -EUSERS, -EDQUOT and others with @err set.
 */
int migration_keep_log(struct migration *m, const struct dirty_log *log, struct error *err);
void migration_drop_log(struct migration *m);
int migration_take_log(struct migration *m, enum dirty_log_how how, struct dirty_log **ret,
                       struct error *err);

/* A fetch channel. Return: as above; -EUSERS also where the VMM has enough of them. */
int migration_keep_channel(struct migration *m, int fd, struct error *err);

/* The name of its fetch channel number @n in the store, or NULL. */
const char *migration_channel(const struct migration *m, unsigned int n);

#endif
