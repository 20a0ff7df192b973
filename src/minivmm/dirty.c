/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/kvm_abi.h"

#define WORD_BITS 64u
#define RING_ENTRIES 4096u

static size_t words_of(const struct vm *vm)
{
	return (vm->memory.size / GUEST_PAGE_BYTES + WORD_BITS - 1) / WORD_BITS;
}

static int enable(struct vm *vm, uint32_t cap, uint64_t arg, const char *what,
                  struct postcopy_error *err)
{
	struct kvm_enable_cap enable = { .cap = cap, .args = { arg } };

	if (ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, cap) <= 0)
		return fail(err, -EOPNOTSUPP, "this host's KVM has no %s", what);
	if (ioctl(vm->vm_fd, KVM_ENABLE_CAP, &enable))
		return fail_errno(err, -errno, "can't enable KVM's %s", what);
	return 0;
}

int dirty_prepare(struct vm *vm, enum dirty_log how, struct postcopy_error *err)
{
	int rc = 0;

	pthread_mutex_init(&vm->dirty.lock, NULL);
	vm->dirty.how = how;
	if (how != DIRTY_LOG_KVM && how != DIRTY_LOG_RING)
		return 0;
	vm->dirty.found = calloc(words_of(vm), sizeof *vm->dirty.found);
	if (!vm->dirty.found)
		return fail(err, -ENOMEM, "no memory for the dirty log");
	if (how == DIRTY_LOG_RING)
		rc = enable(vm, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		            RING_ENTRIES * sizeof(struct kvm_dirty_gfn), "dirty ring", err);
	else
		/* Without it reading the log clears it, for all of the guest at once. */
		vm->dirty.manual = !enable(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		                           KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, "manual log", err);
	return rc;
}

int dirty_add_vcpu(struct vcpu *v, struct postcopy_error *err)
{
	void *at;

	if (v->vm->dirty.how != DIRTY_LOG_RING)
		return 0;
	at = mmap(NULL, RING_ENTRIES * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE,
	          MAP_SHARED, v->fd, (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));
	if (at == MAP_FAILED)
		return fail_errno(err, -errno, "can't map the dirty ring of vCPU %u", v->index);
	v->dirty_ring = at;
	return 0;
}

bool dirty_is_exit(const struct vcpu *v)
{
	return v->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL;
}

/* Under the log's lock. */
static void take_ring(struct vm *vm, struct vcpu *v)
{
	struct kvm_dirty_gfn *e = &v->dirty_ring[v->dirty_next % RING_ENTRIES];

	while (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY) {
		if (e->offset / WORD_BITS < words_of(vm))
			vm->dirty.found[e->offset / WORD_BITS] |= 1ull << e->offset % WORD_BITS;
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		e = &v->dirty_ring[++v->dirty_next % RING_ENTRIES];
	}
}

/*
 * Taken first, protected again then, where the guest @runs_on; reported after both. Under the log's
 * lock.
 */
static int take_rings(struct vm *vm, bool runs_on, struct postcopy_error *err)
{
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		take_ring(vm, &vm->vcpus[i]);
	if (runs_on && ioctl(vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0) < 0)
		return fail_errno(err, -errno, "KVM_RESET_DIRTY_RINGS");
	return 0;
}

int dirty_drain(struct vcpu *v, struct postcopy_error *err)
{
	int rc;

	pthread_mutex_lock(&v->vm->dirty.lock);
	rc = take_rings(v->vm, true, err);
	pthread_mutex_unlock(&v->vm->dirty.lock);
	return rc;
}

/* The log into vm->dirty.found, which it overwrites. @runs_on: as take_rings() */
static int take_log(struct vm *vm, bool runs_on, struct postcopy_error *err)
{
	struct kvm_dirty_log get = { .dirty_bitmap = vm->dirty.found };
	struct kvm_clear_dirty_log clear = { .num_pages =
		                                     (uint32_t)(vm->memory.size / GUEST_PAGE_BYTES),
		                             .dirty_bitmap = vm->dirty.found };

	if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &get))
		return fail_errno(err, -errno, "KVM_GET_DIRTY_LOG");
	/* What is written in between stays in the log, or is in what we have. */
	if (runs_on && vm->dirty.manual && ioctl(vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear))
		return fail_errno(err, -errno, "KVM_CLEAR_DIRTY_LOG");
	return 0;
}

static int take(struct vm *vm, bool runs_on, struct postcopy_error *err)
{
	return vm->dirty.how == DIRTY_LOG_RING ? take_rings(vm, runs_on, err)
	                                       : take_log(vm, runs_on, err);
}

int dirty_harvest(struct vm *vm, bool runs_on, uint64_t *bitmap, size_t words,
                  struct postcopy_error *err)
{
	int rc;

	pthread_mutex_lock(&vm->dirty.lock);
	rc = take(vm, runs_on, err);
	for (size_t i = 0; !rc && i < words && i < words_of(vm); i++) {
		if (vm->dirty.found[i])
			__atomic_fetch_or(&bitmap[i], vm->dirty.found[i], __ATOMIC_RELEASE);
		vm->dirty.found[i] = 0;
	}
	pthread_mutex_unlock(&vm->dirty.lock);
	return rc;
}

void dirty_mark(uint64_t *bitmap, uint64_t guest_phys_addr)
{
	uint64_t page = guest_phys_addr / GUEST_PAGE_BYTES;

	__atomic_fetch_or(&bitmap[page / WORD_BITS], 1ull << page % WORD_BITS, __ATOMIC_RELEASE);
}

int dirty_start(struct vm *vm, struct postcopy_error *err)
{
	return vm_set_memory(vm, KVM_MEM_LOG_DIRTY_PAGES, err);
}

int dirty_stop(struct vm *vm, struct postcopy_error *err)
{
	int rc = vm_set_memory(vm, 0, err);

	/* What is in the rings still would make them full when they are used again. */
	if (!rc && vm->dirty.how == DIRTY_LOG_RING) {
		pthread_mutex_lock(&vm->dirty.lock);
		rc = take_rings(vm, true, err);
		for (size_t i = 0; i < words_of(vm); i++)
			vm->dirty.found[i] = 0;
		pthread_mutex_unlock(&vm->dirty.lock);
	}
	return rc;
}
