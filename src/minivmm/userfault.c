/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/kvm_abi.h"

#define WORD_BITS 64u

static int make_bitmap(struct vm *vm, struct postcopy_error *err)
{
	uint64_t pages = vm->memory.size / GUEST_PAGE_BYTES;

	vm->userfault_words = (pages + WORD_BITS - 1) / WORD_BITS;
	vm->userfault_bitmap = malloc(vm->userfault_words * sizeof *vm->userfault_bitmap);
	if (!vm->userfault_bitmap)
		return fail(err, -ENOMEM, "no memory for the userfault bitmap");
	memset(vm->userfault_bitmap, 0xff, vm->userfault_words * sizeof *vm->userfault_bitmap);
	return 0;
}

int userfault_add_memory(struct vm *vm, bool absent, struct postcopy_error *err)
{
	struct kvm_abi_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD | (absent ? KVM_MEM_USERFAULT : 0),
		.memory_size = vm->memory.size,
		.userspace_addr = (uintptr_t)vm->memory.addr,
		.guest_memfd = (uint32_t)vm->memory.fd,
	};
	int rc = absent ? make_bitmap(vm, err) : 0;

	if (rc)
		return rc;
	vm->memory.flags |= POSTCOPY_REGION_BOUND;
	slot.userfault_bitmap = (uintptr_t)vm->userfault_bitmap;
	if (!ioctl(vm->vm_fd, KVM_ABI_SET_USER_MEMORY_REGION2, &slot))
		return 0;
	rc = -errno;
	if (rc != -EINVAL && rc != -ENOTTY)
		return fail_errno(err, rc, "can't give the guest its guest_memfd memory");
	if (!absent)
		return fail(err, -EOPNOTSUPP,
		            "--bound: this kernel can't bind a memslot to guest_memfd");
	return fail(err, -EOPNOTSUPP,
	            "--bound: this kernel has no KVM userfault (it refuses a memslot with "
	            "KVM_MEM_USERFAULT; the series is not merged): run without it, on an ordinary "
	            "memslot");
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

void userfault_present(struct vm *vm, uint64_t addr, uint64_t len)
{
	if (!vm->userfault_bitmap)
		return;
	for (uint64_t page = addr / GUEST_PAGE_BYTES; page < (addr + len) / GUEST_PAGE_BYTES;
	     page++)
		clear_bit(vm, page);
}

/* A system call reads it: what is poisoned is an error, and no signal. */
static bool is_readable(const void *at)
{
	int fds[2];
	bool readable;

	if (pipe2(fds, O_CLOEXEC))
		return false;
	readable = write(fds[1], at, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return readable;
}

/*
 * A page that is not in the file is zero, and made when it is touched; or it was given up, when all
 * that ever comes had come. Poison is in the mapping alone.
 */
static bool is_here(const struct vm *vm, uint64_t addr, uint64_t len)
{
	for (; len; addr += GUEST_PAGE_BYTES, len -= GUEST_PAGE_BYTES) {
		char *page = (char *)vm->memory.addr + addr;
		unsigned char resident;

		if (mincore(page, GUEST_PAGE_BYTES, &resident) ||
		    (!(resident & 1) && !is_readable(page)))
			return false;
	}
	return true;
}

int userfault_resolve(struct vcpu *v, uint64_t *ret_gpa, struct postcopy_error *err)
{
	struct kvm_abi_memory_fault fault = memory_fault(v);
	int rc;

	*ret_gpa = fault.gpa;
	if (!fault.size || (fault.gpa | fault.size) % GUEST_PAGE_BYTES ||
	    fault.gpa >= v->vm->memory.size || fault.size > v->vm->memory.size - fault.gpa)
		return fail(err, -EIO, "vCPU %u: memory fault at %#llx, %llu bytes", v->index,
		            (unsigned long long)fault.gpa, (unsigned long long)fault.size);
	rc = postcopy_channel_fetch(v->channel, fault.gpa, fault.size, -1, err);
	if (!rc && !is_here(v->vm, fault.gpa, fault.size))
		rc = fail(err, -EHWPOISON, "all of the guest is here, but for this page");
	if (rc)
		return rc;
	atomic_fetch_add(&v->userfaults, 1);
	userfault_present(v->vm, fault.gpa, fault.size);
	return 0;
}

/* What was given up is in no file: its bit stays, and whoever touches it finds out. */
int userfault_all_present(struct vm *vm, struct postcopy_error *err)
{
	uint64_t step = WORD_BITS * GUEST_PAGE_BYTES;

	for (uint64_t addr = 0; vm->userfault_bitmap && addr < vm->memory.size; addr += step) {
		uint64_t left = vm->memory.size - addr, absent = 0;
		unsigned char resident[WORD_BITS];

		left = left < step ? left : step;
		if (mincore((char *)vm->memory.addr + addr, left, resident))
			return fail_errno(err, -errno, "mincore of guest memory at %#llx",
			                  (unsigned long long)addr);
		for (uint64_t i = 0; i < left / GUEST_PAGE_BYTES; i++)
			absent |= resident[i] & 1 ? 0 : 1ull << i;
		__atomic_fetch_and(&vm->userfault_bitmap[addr / step], absent, __ATOMIC_RELEASE);
	}
	return 0;
}
