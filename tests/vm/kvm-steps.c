/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What KVM does in the test kernel, step by step, on a memslot that is bound to guest_memfd and on
 * an ordinary one. Exits 1 at the first step that is otherwise.
 *
 *   kvm-steps userfault        KVM userfault (kernel/kvm-userfault.patch)
 *   kvm-steps no-direct-map    memory that the kernel can't reach (kernel/gmem-no-direct-map.patch)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "util/kernel_abi.h"

#define PAGE 4096u
#define SIZE (2 * PAGE)
#define CONTENT 0x5a

/* Real mode, at 0: mov al, [0x1000]; hlt; and again. */
static const uint8_t code[] = { 0xa0, 0x00, 0x10, 0xf4, 0xeb, 0xfa };

struct machine {
	bool bound;
	bool no_direct_map;
	int vm;
	int vcpu;
	int memory; /* of what the memslot shows */
	uint8_t *map;
	struct kvm_run *run;
	uint64_t bitmap[2]; /* of which the first is the memslot's */
};

static struct kvm_userspace_memory_region2 slot_of(const struct machine *m, uint32_t flags,
                                                   const void *bitmap)
{
	struct kvm_userspace_memory_region2 slot = {
		.flags = flags | (m->bound ? KVM_MEM_GUEST_MEMFD : 0),
		.memory_size = SIZE,
		.userspace_addr = (uintptr_t)m->map,
		.guest_memfd = (uint32_t)m->memory,
	};
	uint64_t address = (uintptr_t)bitmap;

	memcpy((char *)&slot + offsetof(struct kvm_userspace_memory_region2, guest_memfd) + 8,
	       &address, sizeof address);
	return slot;
}

/* Return: 0 or a negative errno. */
static int set_slot(const struct machine *m, uint32_t flags, const void *bitmap)
{
	struct kvm_userspace_memory_region2 slot = slot_of(m, flags, bitmap);

	return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION2, &slot) ? -errno : 0;
}

static void need(bool good, const struct machine *m, const char *what)
{
	printf("%s, %s: %s\n", m->bound ? "bound" : "ordinary", what, good ? "yes" : "NO");
	if (!good)
		exit(1);
}

/* Whether a run ends for the page at @gpa. */
static bool stops_at(const struct machine *m, uint64_t gpa)
{
	uint64_t fault[3]; /* struct memory_fault of Linux 6.8: flags, gpa, size */

	if (!ioctl(m->vcpu, KVM_RUN, 0) || errno != EFAULT ||
	    m->run->exit_reason != KVM_EXIT_MEMORY_FAULT)
		return false;
	memcpy(fault, m->run->padding, sizeof fault);
	return fault[0] == KVM_MEMORY_EXIT_FLAG_USERFAULT && fault[1] == gpa && fault[2] == PAGE;
}

/* Whether it reads what page 1 has, and halts. */
static bool reads(const struct machine *m)
{
	struct kvm_regs regs = { 0 };

	return !ioctl(m->vcpu, KVM_RUN, 0) && m->run->exit_reason == KVM_EXIT_HLT &&
	       !ioctl(m->vcpu, KVM_GET_REGS, &regs) && (uint8_t)regs.rax == CONTENT;
}

static bool is_resident(const struct machine *m, unsigned int page)
{
	unsigned char resident = 0;

	mincore(m->map + page * PAGE, PAGE, &resident);
	return resident & 1;
}

static int pre_fault(const struct machine *m, uint64_t gpa)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = PAGE };

	return ioctl(m->vcpu, KVM_PRE_FAULT_MEMORY, &range) ? -errno : 0;
}

static void make(struct machine *m, int kvm)
{
	struct kvm_create_guest_memfd create = {
		.size = SIZE,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
		         (m->no_direct_map ? GUEST_MEMFD_FLAG_NO_DIRECT_MAP : 0),
	};
	bool gmem = m->bound || m->no_direct_map;
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;

	m->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	m->memory = gmem ? ioctl(m->vm, KVM_CREATE_GUEST_MEMFD, &create)
	                 : memfd_create("memory", MFD_CLOEXEC);
	need(m->vm >= 0 && m->memory >= 0 && (gmem || !ftruncate(m->memory, SIZE)), m,
	     "memory is made");
	m->map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->memory, 0);
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	m->run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
	              MAP_SHARED, m->vcpu, 0);
	need(m->map != MAP_FAILED && m->run != MAP_FAILED && !ioctl(m->vcpu, KVM_GET_SREGS, &sregs),
	     m, "a vCPU is made");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(!ioctl(m->vcpu, KVM_SET_SREGS, &sregs) && !ioctl(m->vcpu, KVM_SET_REGS, &regs), m,
	     "it is at 0");
}

static void clear(struct machine *m, unsigned int page)
{
	__atomic_fetch_and(&m->bitmap[0], ~(1ull << page), __ATOMIC_RELEASE);
}

static void check_userfault(bool bound, int kvm)
{
	struct machine m = { .bound = bound };

	make(&m, kvm);
	need(set_slot(&m, KVM_MEM_USERFAULT, (char *)m.bitmap + 1) == -EINVAL, &m,
	     "a bitmap that is not aligned is refused");
	m.bitmap[0] = 3;
	need(!set_slot(&m, KVM_MEM_USERFAULT, m.bitmap), &m, "a memslot with a bitmap is taken");
	need(stops_at(&m, 0), &m, "an absent page ends the run");
	need(!is_resident(&m, 0), &m, "nothing was allocated for it");
	memcpy(m.map, code, sizeof code);
	need(stops_at(&m, 0), &m, "what counts is the bit");
	clear(&m, 0);
	need(stops_at(&m, PAGE), &m, "so does the next");
	need(pre_fault(&m, PAGE) == -EFAULT, &m, "nor is it mapped ahead");
	need(!is_resident(&m, 1), &m, "nor allocated");
	m.map[PAGE] = CONTENT;
	clear(&m, 1);
	need(!pre_fault(&m, PAGE), &m, "with its bit cleared it is mapped ahead");
	need(reads(&m), &m, "and read");

	need(set_slot(&m, KVM_MEM_USERFAULT, &m.bitmap[1]) == -EINVAL, &m,
	     "the bitmap stays where it is");
	need(!set_slot(&m, 0, NULL), &m, "the flag is taken away");
	m.bitmap[0] = 2;
	need(reads(&m), &m, "and no bit counts");
	need(!set_slot(&m, KVM_MEM_USERFAULT, m.bitmap), &m, "it is given again");
	need(stops_at(&m, PAGE), &m, "what was mapped is not any more");
	clear(&m, 1);
	need(reads(&m), &m, "until its bit is cleared");
	need(set_slot(&m, KVM_MEM_USERFAULT | KVM_MEM_READONLY, m.bitmap) == -EINVAL, &m,
	     "no other flag comes along");
}

/* Page 1 of it: write(), then what a mapping has made of it. */
static void check_filling(const struct machine *m)
{
	static uint8_t page[PAGE] = { CONTENT };
	uint8_t *at = m->map + PAGE;
	struct iovec piece = { at, PAGE };
	int pipes[2];

	need(madvise(at, PAGE, MADV_POPULATE_WRITE) && (errno == EFAULT || errno == EINVAL), m,
	     "MADV_POPULATE_WRITE is refused");
	need(!is_resident(m, 1), m, "and has allocated nothing");
	need(pwrite(m->memory, page, PAGE, PAGE) == PAGE, m, "write() of an absent page");
	need(at[0] == CONTENT, m, "is seen by a mapping");
	need(pwrite(m->memory, page, PAGE, PAGE) < 0 && errno == EEXIST, m,
	     "then write() is EEXIST");
	memset(at, CONTENT, PAGE);
	need(at[1] == CONTENT, m, "memcpy by the mapping goes on");
	need(!pipe2(pipes, O_CLOEXEC), m, "a pipe is made");
	need(write(pipes[1], at, 1) == 1, m, "a system call that copies can read it");
	need(vmsplice(pipes[1], &piece, 1, 0) < 0 && errno == EFAULT, m, "vmsplice() is EFAULT");
	close(pipes[0]);
	close(pipes[1]);
}

static void check_no_direct_map(bool bound, int kvm)
{
	struct machine m = { .bound = bound, .no_direct_map = true };

	make(&m, kvm);
	check_filling(&m);
	memcpy(m.map, code, sizeof code);
	need(!set_slot(&m, 0, NULL), &m, "a memslot of it is taken");
	if (bound)
		need(reads(&m), &m, "its vCPU runs");
	else
		need(ioctl(m.vcpu, KVM_RUN, 0) && errno == EFAULT, &m, "its vCPU's run is EFAULT");
}

int main(int argc, char **argv)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	void (*check)(bool bound, int kvm) = argc > 1 && !strcmp(argv[1], "no-direct-map")
	                                             ? check_no_direct_map
	                                             : check_userfault;

	if (kvm < 0) {
		perror("/dev/kvm");
		return 1;
	}
	check(true, kvm);
	check(false, kvm);
	return 0;
}
