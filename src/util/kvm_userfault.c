/* SPDX-License-Identifier: Apache-2.0 */
#include "util/kvm_userfault.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#include "util/cleanup.h"
#include "util/kernel_abi.h"

#define PAGE_BYTES 4096u
#define HLT 0xf4

/* A VM with one vCPU in real mode at address 0, and one page of guest_memfd there: `hlt`. */
struct scratch {
	int vm;
	int vcpu;
	int memory;
	uint8_t *page;
	struct kvm_run *run;
	size_t run_bytes;
	uint64_t bitmap; /* of the memslot: its one page */
};

static void scratch_deinit(struct scratch *s)
{
	if (s->run)
		munmap(s->run, s->run_bytes);
	if (s->page)
		munmap(s->page, PAGE_BYTES);
	close_fd(&s->memory);
	close_fd(&s->vcpu);
	close_fd(&s->vm);
}

static int failed(const char *what, struct error *err)
{
	return error_errno(err, -errno, "%s", what);
}

static int make_memory(struct scratch *s, struct error *err)
{
	struct kvm_create_guest_memfd create = {
		.size = PAGE_BYTES, .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
	};
	void *at;

	s->memory = ioctl(s->vm, KVM_CREATE_GUEST_MEMFD, &create);
	if (s->memory < 0)
		return error_set(err, -EOPNOTSUPP,
		                 "this kernel has no guest_memfd that can be mapped (Linux 6.18)");
	at = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->memory, 0);
	if (at == MAP_FAILED)
		return failed("mmap of guest_memfd", err);
	s->page = at;
	s->page[0] = HLT;
	return 0;
}

static int make_vcpu(struct scratch *s, int kvm, struct error *err)
{
	int bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	void *at;

	s->vcpu = ioctl(s->vm, KVM_CREATE_VCPU, 0);
	if (bytes <= 0 || s->vcpu < 0)
		return failed("KVM_CREATE_VCPU", err);
	at = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->vcpu, 0);
	if (at == MAP_FAILED)
		return failed("mmap of a vCPU", err);
	s->run = at;
	s->run_bytes = (size_t)bytes;
	if (ioctl(s->vcpu, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS", err);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(s->vcpu, KVM_SET_SREGS, &sregs) || ioctl(s->vcpu, KVM_SET_REGS, &regs))
		return failed("KVM_SET_SREGS", err);
	return 0;
}

static int bind_memory(struct scratch *s, struct error *err)
{
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_USERFAULT,
		.memory_size = PAGE_BYTES,
		.userspace_addr = (uintptr_t)s->page,
		.guest_memfd = (uint32_t)s->memory,
	};
	uint64_t address = (uintptr_t)&s->bitmap;

	s->bitmap = 1;
	/* userfault_bitmap, as proposed: the first word after pad1 */
	memcpy((char *)&slot + offsetof(struct kvm_userspace_memory_region2, guest_memfd) + 8,
	       &address, sizeof address);
	if (!ioctl(s->vm, KVM_SET_USER_MEMORY_REGION2, &slot))
		return 0;
	return error_set(err, -EOPNOTSUPP,
	                 "a memslot with KVM_MEM_USERFAULT: %s (needs the KVM userfault series, "
	                 "not merged; faults of memslots bound to guest_memfd can't be trapped)",
	                 strerrorname_np(errno));
}

/* Whether KVM_RUN ends for the page, as its bit says. */
static bool leaves_for_page(struct scratch *s)
{
	uint64_t fault[2] = { 0 }; /* struct memory_fault of Linux 6.8: flags, gpa, size */

	if (!ioctl(s->vcpu, KVM_RUN, 0) || errno != EFAULT ||
	    s->run->exit_reason != KVM_EXIT_MEMORY_FAULT)
		return false;
	memcpy(fault, s->run->padding, sizeof fault);
	return fault[0] & KVM_MEMORY_EXIT_FLAG_USERFAULT && !fault[1];
}

static bool runs_on(struct scratch *s)
{
	__atomic_store_n(&s->bitmap, 0, __ATOMIC_RELEASE);
	return !ioctl(s->vcpu, KVM_RUN, 0) && s->run->exit_reason == KVM_EXIT_HLT;
}

int kvm_userfault_try(int kvm, struct error *err)
{
	_cleanup_(scratch_deinit) struct scratch s = { .vm = -1, .vcpu = -1, .memory = -1 };
	int rc;

	s.vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (s.vm < 0)
		return failed("KVM_CREATE_VM", err);
	rc = make_memory(&s, err);
	if (!rc)
		rc = bind_memory(&s, err);
	if (!rc)
		rc = make_vcpu(&s, kvm, err);
	if (rc)
		return rc;
	if (!leaves_for_page(&s))
		return error_set(err, -EOPNOTSUPP,
		                 "dangerous, refused: a memslot with KVM_MEM_USERFAULT was "
		                 "accepted, but a vCPU's access of a page that is marked absent "
		                 "causes no exit: the guest would read zeroes");
	if (!runs_on(&s))
		return error_set(err, -EOPNOTSUPP,
		                 "a vCPU does not go on after its page's bit in the userfault "
		                 "bitmap was cleared (exit reason %u)",
		                 s.run->exit_reason);
	return 0;
}
