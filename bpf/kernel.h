/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What fault_latency.bpf.c knows of the kernel: the few fields that it reads. libbpf finds
 * their real offsets in the running kernel's BTF when the program is loaded (CO-RE), so the
 * host that builds needs no BTF, and no vmlinux.h of 100,000 lines is generated.
 */
#ifndef BPF_KERNEL_H
#define BPF_KERNEL_H

/* Tells libbpf's headers that these are the kernel's own types, not those of the uapi. */
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
enum {
	false = 0,
	true = 1,
};
typedef _Bool bool;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* linux/sched.h: in BTF there is no trace of it. Threads that sleep have one of its bits. */
#define TASK_NORMAL 3

struct thread_struct {
	unsigned long sp; /* x86: of a task that does not run */
};

struct upid {
	int nr;
};

/* A thread's numbers, in the pid namespaces that it is in, its own at the end. */
struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct task_struct {
	unsigned int __state;
	int pid;
	int tgid;
	struct pid *thread_pid;
	char comm[16];
	struct thread_struct thread;
};

struct mm_struct {
	struct task_struct *owner; /* with CONFIG_MEMCG */
};

struct vm_area_struct {
	struct mm_struct *vm_mm;
};

enum fault_flag {
	FAULT_FLAG_RETRY_NOWAIT = 1 << 3,
};

struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long address;
	enum fault_flag flags;
};

struct wait_queue_entry {
	void *private;
	void *func;
};

struct uffd_msg {
	struct {
		struct {
			__u64 address;
		} pagefault;
	} arg;
};

/* On the stack of a thread that handle_userfault() has put to sleep. */
struct userfaultfd_wait_queue {
	struct uffd_msg msg;
	struct wait_queue_entry wq;
};

/* x86's */
struct pt_regs {
	unsigned long di;
};

#pragma clang attribute pop

#endif
