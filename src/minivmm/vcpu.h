/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One vCPU: a thread around KVM_RUN, and the registers that make up its state.
 *
 * A vCPU thread either runs the guest or is parked on the VM's condition. Its
 * registers may be read and written (vcpu_save(), vcpu_load()) only while it is
 * parked or before it has started.
 *
 * What a guest touches and has lost (poison) comes in two ways: as SIGBUS to its vCPU's thread;
 * and, where KVM emulates the instruction, as an exit to MMIO at an address of its memory. Both
 * are a machine check.
 */
#ifndef MINIVMM_VCPU_H
#define MINIVMM_VCPU_H

#include <linux/kvm.h>
#include <postcopy/postcopy.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct vm;

/* The guest uses general registers alone: no FPU state. */
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint64_t tsc;
};

struct vcpu {
	struct vm *vm;
	unsigned int index;
	int fd;
	struct kvm_run *run;
	size_t run_bytes;
	struct kvm_dirty_gfn *dirty_ring; /* NULL: it has none; under the log's lock, as is ... */
	uint32_t dirty_next;              /* ... the entry that comes next */
	struct postcopy_channel *channel; /* for faults that are KVM exits; else NULL */
	atomic_ulong userfaults;          /* of which there were so many */
	pthread_t thread;
	atomic_int tid;      /* of the thread; 0: it has not begun */
	char *volatile lost; /* memory that it touched, and that is poisoned; NULL: none */
	bool started;
	/* Under the VM's lock: */
	bool parked;
	bool ready; /* the guest has initialised its pages */
	bool done;  /* the guest has verified its pages */
	struct postcopy_error error;
};

int vcpu_new(struct vm *vm, unsigned int index, struct vcpu *ret, struct postcopy_error *err);

/* Starts the thread; it runs the guest as soon as the VM does. */
int vcpu_start(struct vcpu *v, struct postcopy_error *err);

/* Out of KVM_RUN, now or at its next entry. */
void vcpu_kick(struct vcpu *v);

/* At the guest's entry, in ring 3 of long mode. */
int vcpu_initial_state(struct vcpu *v, struct vcpu_state *ret, struct postcopy_error *err);

int vcpu_save(struct vcpu *v, struct vcpu_state *ret, struct postcopy_error *err);
int vcpu_load(struct vcpu *v, const struct vcpu_state *state, struct postcopy_error *err);

/* @request: KVM_GET_MSRS or KVM_SET_MSRS, of one. Return: whether KVM did. */
bool vcpu_access_msr(struct vcpu *v, unsigned long request, uint32_t index, uint64_t *value);

#endif
