/* SPDX-License-Identifier: Apache-2.0 */
/* What Debian 12's headers (Linux 6.1) lack of KVM. Each with where it comes from. */
#ifndef MINIVMM_KVM_ABI_H
#define MINIVMM_KVM_ABI_H

#include <linux/kvm.h>

/* include/uapi/linux/kvm.h, Linux 6.8 */
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	__u64 size;
	__u64 flags;
	__u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
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

#endif
