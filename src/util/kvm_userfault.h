/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM userfault: a vCPU's access of a page that is not here ends KVM_RUN. It is what a memslot that
 * is bound to guest_memfd needs, for its vCPUs go around userfaultfd.
 *
 * Not merged. Its flag's bit may be another feature's tomorrow, and its capability's number is
 * others' already: so whether a kernel has it is found by doing it.
 */
#ifndef UTIL_KVM_USERFAULT_H
#define UTIL_KVM_USERFAULT_H

#include "util/error.h"

/*
 * kvm_userfault_try() - does it work, on a VM of one page that is thrown away?
 * @kvm: /dev/kvm; borrowed
 *
 * Return: 0; -EOPNOTSUPP with @err saying what this kernel does instead; or the errno of what
 * failed before it could be tried.
 */
int kvm_userfault_try(int kvm, struct error *err);

#endif
