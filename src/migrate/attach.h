/* SPDX-License-Identifier: Apache-2.0 */
/* What a VMM hands over when it attaches: judged before it is used, or kept by anybody. */
#ifndef MIGRATE_ATTACH_H
#define MIGRATE_ATTACH_H

#include "migrate/migration.h"

struct memory;

/*
 * migration_read_table() - the region table of an ATTACH, checked
 * @fds: what each region is to be opened with is found by its fd_index
 */
int migration_read_table(const struct vmm_wire_msg *msg, struct region_table *ret,
                         struct error *err);

/* Whether who attaches, or attaches again, is one that Prepare named. As parties_check_vmm(). */
int migration_check_vmm(const struct migration *m, const struct vmm_conn *conn,
                        const struct vmm_attach *attach, struct error *err);

/*
 * migration_check_attach() - whether a VMM may attach with what it hands over
 *
 * Before anything else is done with its descriptors. Nothing is changed.
 * Return: 0; -EINVAL, -EBUSY with @err set.
 */
int migration_check_attach(const struct migration *m, const struct vmm_attach *attach,
                           struct error *err);

/*
 * migration_open_memories() - the memory behind each region that is not private
 * @memories: REGIONS_MAX entries, all NULL
 *
 * Return: 0; or -errno with @err set, and what is opened is the caller's to free.
 */
int migration_open_memories(struct migration *m, const struct vmm_attach *attach,
                            const struct region_table *table, struct memory **memories,
                            struct error *err);
void migration_free_memories(struct memory **memories);

#endif
