/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/pv_clock.h"

#include <asm/kvm_para.h>
#include <errno.h>

#include "minivmm/fail.h"

/* arch/x86/include/asm/pvclock-abi.h: struct pvclock_vcpu_time_info, then what is ours. */
struct page {
	uint32_t version; /* odd while KVM writes */
	uint32_t pad;
	uint64_t tsc_timestamp;
	uint64_t system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags;
	uint8_t pad2[2];
	uint64_t mark;
};

static uint64_t address(unsigned int index)
{
	return GUEST_CLOCK + index * GUEST_STACK_STRIDE;
}

static struct page *page_of(const struct vm *vm, unsigned int index)
{
	return (struct page *)((char *)vm->memory.addr + address(index));
}

static uint64_t mark_of(uint64_t seed, unsigned int index)
{
	return guest_mix(seed + index) | 1;
}

void pv_clock_mark(struct vm *vm, uint64_t seed)
{
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		page_of(vm, i)->mark = mark_of(seed, i);
}

int pv_clock_start(struct vcpu *v, struct postcopy_error *err)
{
	uint64_t value = address(v->index) | KVM_MSR_ENABLED;

	if (!vcpu_access_msr(v, KVM_SET_MSRS, MSR_KVM_SYSTEM_TIME_NEW, &value))
		return fail(err, -EOPNOTSUPP, "--pv-clock: this host's KVM has no kvmclock");
	return 0;
}

uint64_t pv_clock_check(const struct vm *vm, uint64_t seed, uint64_t *ret_first_bad)
{
	uint64_t bad = 0;

	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		const volatile struct page *p = page_of(vm, i);

		/* The vCPUs have verified their pages: they are not entered any more. */
		if (p->mark == mark_of(seed, i) && p->version && !(p->version & 1) &&
		    p->tsc_to_system_mul)
			continue;
		if (!bad++)
			*ret_first_bad = address(i) / GUEST_PAGE_BYTES;
	}
	return bad;
}
