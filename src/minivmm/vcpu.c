/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "minivmm/dirty.h"
#include "minivmm/fail.h"
#include "minivmm/guest/abi.h"
#include "minivmm/userfault.h"
#include "minivmm/vm.h"

#define KICK_SIGNAL SIGUSR1
#define IDLE_MS 20
#define MSR_TSC 0x10
#define MSR_EFER_LME (1ull << 8)
#define MSR_EFER_LMA (1ull << 10)
#define CR0_PE (1ull << 0)
#define CR0_PG (1ull << 31)
#define CR4_PAE (1ull << 5)
#define RFLAGS_RESERVED (1ull << 1)
#define RFLAGS_IOPL_3 (3ull << 12)
#define CPUID_ENTRIES 256

static int set_cpuid(struct vcpu *v, struct postcopy_error *err)
{
	struct kvm_cpuid2 *cpuid =
	        calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof *cpuid->entries);
	int rc = 0;

	if (!cpuid)
		return fail(err, -ENOMEM, "no memory for CPUID");
	cpuid->nent = CPUID_ENTRIES;
	if (ioctl(v->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid) ||
	    ioctl(v->fd, KVM_SET_CPUID2, cpuid))
		rc = fail_errno(err, -errno, "vCPU %u: can't set CPUID", v->index);
	free(cpuid);
	return rc;
}

int vcpu_new(struct vm *vm, unsigned int index, struct vcpu *ret, struct postcopy_error *err)
{
	int size = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct vcpu v = { .vm = vm, .index = index };
	int rc;

	if (size < 0)
		return fail_errno(err, -errno, "KVM_GET_VCPU_MMAP_SIZE");
	v.run_bytes = (size_t)size;
	v.fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
	if (v.fd < 0)
		return fail_errno(err, -errno, "can't create vCPU %u", index);
	v.run = mmap(NULL, v.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v.fd, 0);
	if (v.run == MAP_FAILED) {
		rc = fail_errno(err, -errno, "can't map vCPU %u", index);
		close(v.fd);
		return rc;
	}
	*ret = v;
	rc = dirty_add_vcpu(ret, err);
	return rc ? rc : set_cpuid(ret, err);
}

static void on_kick(int sig)
{
	(void)sig; /* its work is done: KVM_RUN returns EINTR */
}

/* In KVM_RUN; NULL: this thread is outside. Volatile, for a signal handler reads it. */
static _Thread_local struct vcpu *volatile entered;

/* The kernel's word that a page is poisoned, to the thread that has touched it. */
static void on_bus(int sig, siginfo_t *info, void *context)
{
	struct vcpu *v = entered;

	(void)context;
	if (info->si_code == BUS_MCEERR_AO)
		return; /* nobody has touched it yet */
	if (v && info->si_code == BUS_MCEERR_AR)
		v->lost = info->si_addr;
	else /* ours, not the guest's: made again, that access ends the process */
		signal(sig, SIG_DFL);
}

/* Return: 0 or -errno. */
static int enter(struct vcpu *v)
{
	int rc;

	entered = v;
	rc = ioctl(v->fd, KVM_RUN, 0) ? -errno : 0;
	entered = NULL;
	return rc;
}

/* What the guest says with `out`. Return: whether it has anything more to do. */
static bool handle_out(struct vcpu *v)
{
	const struct kvm_run *run = v->run;
	uint32_t what;

	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != GUEST_PORT ||
	    run->io.size != sizeof what || run->io.count != 1) {
		fail(&v->error, -EIO, "vCPU %u: the guest used port %#x", v->index, run->io.port);
		return false;
	}
	memcpy(&what, (const char *)run + run->io.data_offset, sizeof what);
	if (what == GUEST_OUT_TICK) {
		vm_idle(v->vm, IDLE_MS);
		return true;
	}
	if (what == GUEST_OUT_READY) {
		vm_lock(v->vm);
		v->ready = true;
		vm_unlock_and_tell(v->vm);
		return true;
	}
	if (what != GUEST_OUT_DONE)
		fail(&v->error, -EIO, "vCPU %u: the guest said %u", v->index, what);
	return false;
}

/*
 * Nothing can give the page back. A guest that has a handler is told by KVM_X86_SET_MCE; this one
 * has none, and without one a processor shuts down.
 */
static int machine_check(struct vcpu *v, uint64_t gpa, const char *how)
{
	return fail(&v->error, -EHWPOISON,
	            "vCPU %u: machine check: the guest's memory at %#llx is lost (%s)", v->index,
	            (unsigned long long)gpa, how);
}

/*
 * A page that is not here yet; or never will be. Where the daemon is gone for good nobody brings
 * it, and the vCPU waits, as it would in its fault on an ordinary memslot.
 */
static void resolve(struct vcpu *v)
{
	uint64_t gpa;
	int rc = userfault_resolve(v, &gpa, &v->error);

	if (rc == -EHWPOISON)
		machine_check(v, gpa, "its fetch says so");
	if (rc == -EPIPE) {
		v->error.code = 0;
		vm_idle(v->vm, IDLE_MS);
	}
}

static int exit_failed(struct vcpu *v)
{
	struct kvm_regs regs = { 0 };
	const struct kvm_run *run = v->run;

	/* Where KVM emulates an instruction it takes memory that it can't read for a device's. */
	if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr < v->vm->memory.size)
		return machine_check(v, run->mmio.phys_addr, "KVM_EXIT_MMIO within its memory");

	ioctl(v->fd, KVM_GET_REGS, &regs);
	return fail(&v->error, -EIO, "vCPU %u: unexpected KVM exit %u at rip %#llx", v->index,
	            v->run->exit_reason, (unsigned long long)regs.rip);
}

/*
 * An `out` ends with the guest's next entry: only then has its rip moved on. Enter
 * with immediate_exit set (vm_pause() did) to complete it without running the guest.
 */
static void complete_out(struct vcpu *v)
{
	if (!ioctl(v->fd, KVM_RUN, 0) || errno != EINTR)
		fail(&v->error, -EIO, "vCPU %u: can't complete its last exit", v->index);
}

static void park(struct vcpu *v, bool out_pending)
{
	if (out_pending)
		complete_out(v);
	vm_lock(v->vm);
	vm_park(v->vm, v);
	vm_unlock(v->vm);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	bool out_pending = false, going = true;
	int rc;

	atomic_store(&v->tid, gettid());
	while (going && !v->error.code) {
		if (!vm_running(v->vm)) {
			park(v, out_pending);
			out_pending = false;
			continue;
		}
		out_pending = false;
		rc = enter(v);
		if (v->lost) {
			machine_check(v, (uint64_t)(v->lost - (char *)v->vm->memory.addr),
			              "SIGBUS");
		} else if (rc == -EFAULT && userfault_is_exit(v)) {
			resolve(v);
		} else if (rc) {
			if (rc != -EINTR && rc != -EAGAIN)
				fail_errno(&v->error, rc, "vCPU %u: KVM_RUN", v->index);
		} else if (dirty_is_exit(v)) {
			dirty_drain(v, &v->error);
		} else if (v->run->exit_reason != KVM_EXIT_IO) {
			exit_failed(v);
		} else {
			out_pending = true;
			going = handle_out(v);
		}
	}
	vm_lock(v->vm);
	v->done = true;
	v->parked = true;
	vm_unlock_and_tell(v->vm);
	return NULL;
}

int vcpu_start(struct vcpu *v, struct postcopy_error *err)
{
	struct sigaction kick = { .sa_handler = on_kick }; /* no SA_RESTART */
	struct sigaction bus = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	int rc;

	sigaction(KICK_SIGNAL, &kick, NULL);
	sigaction(SIGBUS, &bus, NULL);
	rc = pthread_create(&v->thread, NULL, vcpu_main, v);
	if (rc)
		return fail_errno(err, -rc, "can't start the thread of vCPU %u", v->index);
	v->started = true;
	return 0;
}

void vcpu_kick(struct vcpu *v)
{
	if (v->started)
		pthread_kill(v->thread, KICK_SIGNAL);
}

static struct kvm_segment flat_segment(uint8_t type, uint16_t selector)
{
	return (struct kvm_segment){ .limit = UINT32_MAX,
		                     .selector = selector | 3,
		                     .type = type,
		                     .present = 1,
		                     .dpl = 3,
		                     .s = 1,
		                     .g = 1 };
}

/*
 * Ring 3, where no hypervisor has to emulate the guest, with I/O privilege level 3, so
 * that `out` exits to us. There is no descriptor table: any exception shuts it down.
 */
int vcpu_initial_state(struct vcpu *v, struct vcpu_state *ret, struct postcopy_error *err)
{
	struct kvm_sregs *s = &ret->sregs;
	int rc = vcpu_save(v, ret, err);

	if (rc)
		return rc;
	s->cs = flat_segment(0xb, 0x08); /* code, execute and read, accessed */
	s->cs.l = 1;
	s->ss = s->ds = s->es = s->fs = s->gs = flat_segment(0x3, 0x10); /* data, write */
	s->ss.db = 1;
	s->cr0 = CR0_PE | CR0_PG;
	s->cr3 = GUEST_PML4;
	s->cr4 = CR4_PAE;
	s->efer = MSR_EFER_LME | MSR_EFER_LMA;
	s->idt.limit = s->gdt.limit = 0;
	memset(&ret->regs, 0, sizeof ret->regs);
	ret->regs.rip = GUEST_CODE;
	ret->regs.rsp = GUEST_STACK + (v->index + 1) * GUEST_STACK_STRIDE;
	ret->regs.rdi = GUEST_VCPU + v->index * GUEST_VCPU_STRIDE;
	ret->regs.rflags = RFLAGS_RESERVED | RFLAGS_IOPL_3;
	return 0;
}

bool vcpu_access_msr(struct vcpu *v, unsigned long request, uint32_t index, uint64_t *value)
{
	_Alignas(struct kvm_msrs) char
	        buf[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)] = { 0 };
	struct kvm_msrs *msrs = (struct kvm_msrs *)buf;

	msrs->nmsrs = 1;
	msrs->entries[0].index = index;
	msrs->entries[0].data = *value;
	if (ioctl(v->fd, request, msrs) != 1)
		return false;
	*value = msrs->entries[0].data;
	return true;
}

int vcpu_save(struct vcpu *v, struct vcpu_state *ret, struct postcopy_error *err)
{
	ret->tsc = 0;
	if (ioctl(v->fd, KVM_GET_REGS, &ret->regs) || ioctl(v->fd, KVM_GET_SREGS, &ret->sregs) ||
	    !vcpu_access_msr(v, KVM_GET_MSRS, MSR_TSC, &ret->tsc))
		return fail_errno(err, -errno, "vCPU %u: can't save its registers", v->index);
	return 0;
}

int vcpu_load(struct vcpu *v, const struct vcpu_state *state, struct postcopy_error *err)
{
	uint64_t tsc = state->tsc;

	if (ioctl(v->fd, KVM_SET_SREGS, &state->sregs) ||
	    ioctl(v->fd, KVM_SET_REGS, &state->regs) ||
	    !vcpu_access_msr(v, KVM_SET_MSRS, MSR_TSC, &tsc))
		return fail_errno(err, -errno, "vCPU %u: can't load its registers", v->index);
	return 0;
}
