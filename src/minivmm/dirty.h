/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest writes while it runs, as KVM tells it: by a log that is read and cleared, or by
 * rings, one a vCPU, from which the entries are taken.
 */
#ifndef MINIVMM_DIRTY_H
#define MINIVMM_DIRTY_H

#include <stdbool.h>

#include "minivmm/vm.h"

enum dirty_log {
	DIRTY_LOG_NONE, /* nobody is told: postcopy alone */
	DIRTY_LOG_KVM,  /* KVM_GET_DIRTY_LOG */
	DIRTY_LOG_RING, /* KVM_CAP_DIRTY_LOG_RING_ACQ_REL */
	DIRTY_LOG_WP, /* write protection: the kernel tells the daemon, and nothing here is used */
};

/* Before there are vCPUs. Return: 0, or -EOPNOTSUPP where this KVM has no such log. */
int dirty_prepare(struct vm *vm, enum dirty_log how, struct postcopy_error *err);

/* All writes from now on are logged. Return: 0 or -errno. */
int dirty_start(struct vm *vm, struct postcopy_error *err);

/*
 * dirty_harvest() - what was written since: into @bitmap, a bit a page
 * @runs_on: it goes on writing, and is logged again. Of one that stands still it is the last: to
 *           protect its pages again would be downtime
 *
 * Return: 0 or -errno.
 */
int dirty_harvest(struct vm *vm, bool runs_on, uint64_t *bitmap, size_t words,
                  struct postcopy_error *err);

/* What the VMM itself has written: a page of it. */
void dirty_mark(uint64_t *bitmap, uint64_t guest_phys_addr);

/* Waits for a grace period of the kernel's, tens of ms on a busy host: not for the downtime. */
int dirty_stop(struct vm *vm, struct postcopy_error *err);

/* For the vCPU threads: map the ring of a new vCPU; and whether the last exit was for a full one.
 */
int dirty_add_vcpu(struct vcpu *v, struct postcopy_error *err);
bool dirty_is_exit(const struct vcpu *v);

/* Take what is in it, so that the guest can go on. Return: 0 or -errno. */
int dirty_drain(struct vcpu *v, struct postcopy_error *err);

#endif
