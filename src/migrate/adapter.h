/* SPDX-License-Identifier: Apache-2.0 */
/* A VMM that an adapter speaks for (adapter.c says how). */
#ifndef MIGRATE_ADAPTER_H
#define MIGRATE_ADAPTER_H

#include "migrate/migration.h"

/* Whether there is a VMM, be it that its adapter is away. */
bool migration_has_vmm(const struct migration *m);
bool migration_adapter_is_away(const struct migration *m);

/* The VMM's process, not its adapter's; 0 where it is not known. */
pid_t migration_vmm_pid(const struct migration *m);

/*
 * The process of a VMM that an adapter speaks for: it is watched and kept, from ATTACH on, or by a
 * process of ours before. Nothing where there is none. Return: 0 or -errno with @err set.
 */
int migration_take_process(struct migration *m, struct vmm_attach *attach, struct error *err);
int migration_take_over_process(struct migration *m, struct error *err);
void migration_drop_process(struct migration *m);

/* The adapter's connection has ended, and the VMM lives. */
void migration_adapter_gone(struct migration *m);

/* Something waits for an adapter that is away, if it is: not for ever. */
void migration_await_adapter(struct migration *m);

/* It attaches again; it has been told so. */
int migration_attach_again(struct migrations *ms, struct vmm_conn *conn, struct vmm_attach *attach,
                           void **ret_owner, struct error *err);
void migration_attached_again(struct migration *m);

#endif
