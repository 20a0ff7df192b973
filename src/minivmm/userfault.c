/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/userfault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "minivmm/fail.h"
#include "minivmm/kvm_abi.h"

#define WORD_BITS 64u

int userfault_add_memory(struct vm *vm, struct postcopy_error *err)
{
	uint64_t pages = vm->memory.size / GUEST_PAGE_BYTES;
	struct kvm_abi_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_USERFAULT,
		.memory_size = vm->memory.size,
		.userspace_addr = (uintptr_t)vm->memory.addr,
		.guest_memfd = (uint32_t)vm->memory.fd,
	};
	int rc;

	vm->userfault_words = (pages + WORD_BITS - 1) / WORD_BITS;
	vm->userfault_bitmap = malloc(vm->userfault_words * sizeof *vm->userfault_bitmap);
	if (!vm->userfault_bitmap)
		return fail(err, -ENOMEM, "no memory for the userfault bitmap");
	memset(vm->userfault_bitmap, 0xff, vm->userfault_words * sizeof *vm->userfault_bitmap);
	slot.userfault_bitmap = (uintptr_t)vm->userfault_bitmap;
	if (!ioctl(vm->vm_fd, KVM_ABI_SET_USER_MEMORY_REGION2, &slot))
		return 0;
	rc = -errno;
	free(vm->userfault_bitmap);
	vm->userfault_bitmap = NULL;
	if (rc == -EINVAL || rc == -ENOTTY)
		return fail(err, -EOPNOTSUPP,
		            "--userfault: this kernel has no KVM userfault (it refuses a memslot "
		            "with KVM_MEM_USERFAULT; the series is not merged): run without it, "
		            "on an ordinary memslot");
	return fail_errno(err, rc, "can't give the guest its guest_memfd memory");
}

static struct kvm_abi_memory_fault memory_fault(const struct vcpu *v)
{
	struct kvm_abi_memory_fault fault;

	memcpy(&fault, &v->run->hw, sizeof fault);
	return fault;
}

bool userfault_is_exit(const struct vcpu *v)
{
	return v->run->exit_reason == KVM_EXIT_MEMORY_FAULT && v->channel &&
	       memory_fault(v).flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

/*
 * The release orders the page's content before the cleared bit for a vCPU that reads it; the
 * rest of the word belongs to other vCPUs' pages, which their threads may be clearing.
 */
static void clear_bit(struct vm *vm, uint64_t page)
{
	__atomic_fetch_and(&vm->userfault_bitmap[page / WORD_BITS], ~(1ull << (page % WORD_BITS)),
	                   __ATOMIC_RELEASE);
}

int userfault_resolve(struct vcpu *v, struct postcopy_error *err)
{
	struct kvm_abi_memory_fault fault = memory_fault(v);
	uint64_t first = fault.gpa / GUEST_PAGE_BYTES;
	uint64_t end = (fault.gpa + fault.size + GUEST_PAGE_BYTES - 1) / GUEST_PAGE_BYTES;
	int rc;

	if (!fault.size || end > v->vm->memory.size / GUEST_PAGE_BYTES || first >= end)
		return fail(err, -EIO, "vCPU %u: memory fault at %#llx, %llu bytes", v->index,
		            (unsigned long long)fault.gpa, (unsigned long long)fault.size);
	rc = postcopy_channel_fetch(v->channel, first * GUEST_PAGE_BYTES,
	                            (end - first) * GUEST_PAGE_BYTES, -1, err);
	for (uint64_t page = first; !rc && page < end; page++)
		clear_bit(v->vm, page);
	return rc;
}

void userfault_all_present(struct vm *vm)
{
	for (size_t i = 0; vm->userfault_bitmap && i < vm->userfault_words; i++)
		__atomic_store_n(&vm->userfault_bitmap[i], 0, __ATOMIC_RELEASE);
}
