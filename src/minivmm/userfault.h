/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memslot bound to guest_memfd, and vCPU faults as KVM exits.
 *
 * KVM takes such a memslot's pages from the file, not through the mapping: no userfaultfd sees its
 * vCPUs. So at a destination each page has a bit in a bitmap that KVM reads (KVM userfault): where
 * it is set, a vCPU's access ends KVM_RUN. The vCPU's thread then has the page fetched, clears the
 * bit, and enters the guest again. Written after the proposal (kvm_abi.h).
 *
 * KVM's own accesses go by the mapping still, and wait there as on any other memslot.
 */
#ifndef MINIVMM_USERFAULT_H
#define MINIVMM_USERFAULT_H

#include "minivmm/vm.h"

/*
 * userfault_add_memory() - as vm_add_memory(), bound to guest_memfd
 * @absent: no page is here yet
 *
 * Return: 0, -EOPNOTSUPP where KVM can't bind it, or has no userfault for what is @absent.
 */
int userfault_add_memory(struct vm *vm, bool absent, struct postcopy_error *err);

/* After KVM_RUN has failed with EFAULT: is it a page that is not here yet? */
bool userfault_is_exit(const struct vcpu *v);

/*
 * Has that page, at @ret_gpa, fetched. On the vCPU's thread. Return: 0, -EHWPOISON where it is
 * lost, or another errno.
 */
int userfault_resolve(struct vcpu *v, uint64_t *ret_gpa, struct postcopy_error *err);

/* These pages are here; bytes. Nothing where faults are no KVM exits. */
void userfault_present(struct vm *vm, uint64_t addr, uint64_t len);

/* All are that will ever be: what is not in the file is lost. */
int userfault_all_present(struct vm *vm, struct postcopy_error *err);

#endif
