/* SPDX-License-Identifier: Apache-2.0 */
/* What Debian 12's headers (Linux 6.1) lack of KVM. Each with where it comes from. */
#ifndef MINIVMM_KVM_ABI_H
#define MINIVMM_KVM_ABI_H

#include <linux/kvm.h>

/* include/uapi/linux/kvm.h, Linux 6.8 */
#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif

/* include/uapi/linux/kvm.h, Linux 6.1 */
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif

/* include/uapi/linux/kvm.h, Linux 6.11 */
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
	__u64 gpa;
	__u64 size;
	__u64 flags;
	__u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

/* include/uapi/linux/kvm.h, Linux 6.18 */
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

/* Not merged: pages that the kernel itself has no mapping of (v8 to v12, April 2026) */
#ifndef GUEST_MEMFD_FLAG_NO_DIRECT_MAP
#define GUEST_MEMFD_FLAG_NO_DIRECT_MAP (1ULL << 2)
#endif

/*
 * Not merged: faults as KVM exits (J. Houghton, "KVM: Introduce KVM Userfault", v3, June
 * 2025). A header that has it gives the bits; else they are as proposed.
 */
#ifndef KVM_MEM_USERFAULT
#define KVM_MEM_USERFAULT (1UL << 3)
#endif
#ifndef KVM_MEMORY_EXIT_FLAG_USERFAULT
#define KVM_MEMORY_EXIT_FLAG_USERFAULT (1ULL << 4)
#endif

/*
 * struct kvm_userspace_memory_region2 with the proposal's member, which older headers have as
 * padding; so its size, and the number of its ioctl, are the same.
 */
struct kvm_abi_memory_region2 {
	__u32 slot;
	__u32 flags;
	__u64 guest_phys_addr;
	__u64 memory_size;
	__u64 userspace_addr;
	__u64 guest_memfd_offset;
	__u32 guest_memfd;
	__u32 pad1;
	__u64 userfault_bitmap;
	__u64 pad2[13];
};
#define KVM_ABI_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_abi_memory_region2)

/* kvm_run.memory_fault, Linux 6.8; at the place of all exits' members */
struct kvm_abi_memory_fault {
	__u64 flags;
	__u64 gpa;
	__u64 size;
};

#endif
