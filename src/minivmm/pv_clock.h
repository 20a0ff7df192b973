/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's own accesses of guest memory: it writes each vCPU's clock (kvmclock) there when the vCPU is
 * entered. At a destination it finds that page as absent as a vCPU would, and waits for it inside
 * of its ioctl. Beside the clock lies a mark, by which a page is known that KVM wrote to before it
 * was there. The guest looks at neither.
 */
#ifndef MINIVMM_PV_CLOCK_H
#define MINIVMM_PV_CLOCK_H

#include "minivmm/vm.h"

/* At the source, before the guest runs: the marks. */
void pv_clock_mark(struct vm *vm, uint64_t seed);

/* From its next entry on KVM writes the clock of @v. May wait for the page. */
int pv_clock_start(struct vcpu *v, struct postcopy_error *err);

/* How many of the pages lack their mark, or a clock that was written. */
uint64_t pv_clock_check(const struct vm *vm, uint64_t seed, uint64_t *ret_first_bad);

#endif
