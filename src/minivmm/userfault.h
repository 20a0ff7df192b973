/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vCPU faults as KVM exits: a memslot bound to guest_memfd, with KVM userfault.
 *
 * Each page of the memslot has a bit in a bitmap that KVM reads: where it is set, a vCPU's
 * access ends KVM_RUN. The vCPU's thread then has the page fetched, clears the bit, and enters
 * the guest again. Written after the proposal (kvm_abi.h), which no released kernel has.
 */
#ifndef MINIVMM_USERFAULT_H
#define MINIVMM_USERFAULT_H

#include "minivmm/vm.h"

/* As vm_add_memory(), bound to guest_memfd. Return: 0, -EOPNOTSUPP where KVM has no userfault. */
int userfault_add_memory(struct vm *vm, struct postcopy_error *err);

/* After KVM_RUN has failed with EFAULT: is it a page that is not here yet? */
bool userfault_is_exit(const struct vcpu *v);

/* Has that page fetched. On the vCPU's thread. */
int userfault_resolve(struct vcpu *v, struct postcopy_error *err);

/* No access ends KVM_RUN any more. Nothing where the memslot is an ordinary one. */
void userfault_all_present(struct vm *vm);

#endif
