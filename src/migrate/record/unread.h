/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records in the store that this postcopyd can't read: left for the one that wrote them, with all
 * that belongs to them.
 *
 * What does belong to them only they say. Memory that several migrations share is an entry of
 * one name, which may be another's (keep.h). So while there is one such record nothing that was in
 * the store goes but what a migration of ours takes out of it, and no key that is there is given
 * again: a migration that had it would take and drop what lies there by its name.
 */
#ifndef MIGRATE_RECORD_UNREAD_H
#define MIGRATE_RECORD_UNREAD_H

#include "mem/descriptor.h"
#include "migrate/migration.h"

/* A record of that name can't be read. Return: 0 or -ENOMEM with @err set. */
int unread_note(struct migrations *ms, const char *name, struct error *err);

/*
 * unread_hold() - when all records have been looked at, and before anything is taken
 *
 * Return: 0 or -ENOMEM with @err set.
 */
int unread_hold(struct migrations *ms, struct error *err);

/* Whether a new migration must not have this key. */
bool unread_has_key(const struct migrations *ms, const char *key);

/*
 * unread_check_attach() - is the memory that a VMM brings, whichever migration it was of, in the
 * store for one that is not taken over?
 * @files: behind each region of @table
 *
 * Its guest may have holes there, that nobody but its record knows of. Of anonymous memory the
 * store has no more than whose it is: all of that process is refused.
 *
 * Return: 0; -EBUSY with @err set.
 */
int unread_check_attach(const struct migrations *ms, pid_t vmm, const struct region_table *table,
                        const struct descriptor_file *files, struct error *err);

void unread_free(struct migrations *ms);

#endif
