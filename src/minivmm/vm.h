/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtual machine: KVM's descriptors, guest memory, vCPUs; running or paused as a
 * whole. The main thread commands, the vCPU threads follow and tell it by an eventfd.
 */
#ifndef MINIVMM_VM_H
#define MINIVMM_VM_H

#include <pthread.h>
#include <stdbool.h>

#include "minivmm/guest/abi.h"
#include "minivmm/memory.h"
#include "minivmm/vcpu.h"

struct vm {
	int kvm_fd;
	int vm_fd;
	int event_fd; /* readable when a vCPU has something to tell */
	unsigned int tsc_khz;
	struct memory memory;
	unsigned int n_vcpus;
	struct vcpu vcpus[GUEST_VCPUS_MAX];
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool running;  /* under lock */
	bool stopping; /* under lock: the workload is told to stop */
	/* One bit a page that vCPUs may not have yet; NULL where faults are no KVM exits. */
	uint64_t *userfault_bitmap;
	size_t userfault_words;
	/* What the guest writes, where that is logged (dirty.c). */
	struct {
		unsigned int how; /* enum dirty_log */
		bool manual;      /* reading KVM's log does not clear it */
		pthread_mutex_t lock;
		uint64_t *found; /* under it: taken from KVM, not reported yet */
	} dirty;
};

/* Opens KVM; no memory and no vCPU yet. */
int vm_open(struct vm *vm, struct postcopy_error *err);

/* Puts vm->memory, which the caller has made, at guest physical address 0. */
int vm_add_memory(struct vm *vm, struct postcopy_error *err);

/* The same again with other flags: KVM_MEM_LOG_DIRTY_PAGES or none. */
int vm_set_memory(struct vm *vm, uint32_t flags, struct postcopy_error *err);

int vm_add_vcpus(struct vm *vm, unsigned int n, struct postcopy_error *err);

/* Let the vCPUs run, with their threads started where they are not. */
int vm_run(struct vm *vm, struct postcopy_error *err);

/* Returns when every vCPU is parked with its last exit completed. */
int vm_pause(struct vm *vm, struct postcopy_error *err);

/* How many vCPUs are ready / done; the first vCPU's failure, if any. */
struct vm_status {
	unsigned int ready;
	unsigned int done;
};
int vm_status(struct vm *vm, struct vm_status *ret, struct postcopy_error *err);

/* Tells the guest to stop its workload and to verify its pages. */
void vm_stop_workload(struct vm *vm);

/* For the vCPU threads. */
void vm_lock(struct vm *vm);
void vm_unlock(struct vm *vm);
void vm_unlock_and_tell(struct vm *vm);
bool vm_running(struct vm *vm);
void vm_park(struct vm *vm, struct vcpu *v);  /* with the lock held; returns when it runs */
void vm_idle(struct vm *vm, unsigned int ms); /* sleep; a pause or stop ends it at once */

#endif
