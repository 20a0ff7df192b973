/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "minivmm/fail.h"
#include "minivmm/image.h"

int vm_open(struct vm *vm, struct postcopy_error *err)
{
	*vm = (struct vm){ .kvm_fd = -1, .vm_fd = -1, .event_fd = -1 };
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	vm->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->event_fd < 0)
		return fail_errno(err, -errno, "can't create an eventfd");
	vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm_fd < 0)
		return fail_errno(err, errno == ENOENT || errno == ENODEV ? -EOPNOTSUPP : -errno,
		                  "can't open /dev/kvm");
	if (ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION ||
	    ioctl(vm->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0)
		return fail(err, -EOPNOTSUPP, "/dev/kvm is too old: it lacks immediate_exit");
	vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->vm_fd < 0)
		return fail_errno(err, -errno, "can't create a KVM virtual machine");
	return 0;
}

int vm_set_memory(struct vm *vm, uint32_t flags, struct postcopy_error *err)
{
	struct kvm_userspace_memory_region slot = {
		.flags = flags,
		.guest_phys_addr = 0,
		.memory_size = vm->memory.size,
		.userspace_addr = (uintptr_t)vm->memory.addr,
	};

	if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot))
		return fail_errno(err, -errno,
		                  flags ? "KVM can't log writes to this memory"
		                        : "can't give the guest its memory");
	return 0;
}

int vm_add_memory(struct vm *vm, struct postcopy_error *err)
{
	return vm_set_memory(vm, 0, err);
}

int vm_add_vcpus(struct vm *vm, unsigned int n, struct postcopy_error *err)
{
	int khz;

	for (unsigned int i = 0; i < n; i++) {
		int rc = vcpu_new(vm, i, &vm->vcpus[i], err);

		if (rc)
			return rc;
		vm->n_vcpus = i + 1;
	}
	khz = ioctl(vm->vcpus[0].fd, KVM_GET_TSC_KHZ, 0);
	if (khz <= 0)
		return fail(err, -EOPNOTSUPP, "KVM does not tell the frequency of the TSC");
	vm->tsc_khz = (unsigned int)khz;
	return 0;
}

void vm_lock(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
}

void vm_unlock(struct vm *vm)
{
	pthread_mutex_unlock(&vm->lock);
}

void vm_unlock_and_tell(struct vm *vm)
{
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	eventfd_write(vm->event_fd, 1);
}

bool vm_running(struct vm *vm)
{
	bool running;

	vm_lock(vm);
	running = vm->running;
	vm_unlock(vm);
	return running;
}

void vm_idle(struct vm *vm, unsigned int ms)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += ms * 1000000l;
	until.tv_sec += until.tv_nsec / 1000000000l;
	until.tv_nsec %= 1000000000l;
	vm_lock(vm);
	while (vm->running && !vm->stopping && !rc)
		rc = pthread_cond_clockwait(&vm->changed, &vm->lock, CLOCK_MONOTONIC, &until);
	vm_unlock(vm);
}

void vm_park(struct vm *vm, struct vcpu *v)
{
	v->parked = true;
	pthread_cond_broadcast(&vm->changed);
	while (!vm->running)
		pthread_cond_wait(&vm->changed, &vm->lock);
	v->parked = false;
}

static void set_immediate_exit(struct vm *vm, uint8_t value)
{
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		__atomic_store_n(&vm->vcpus[i].run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

int vm_run(struct vm *vm, struct postcopy_error *err)
{
	int rc = 0;

	vm_lock(vm);
	set_immediate_exit(vm, 0);
	vm->running = true;
	pthread_cond_broadcast(&vm->changed);
	vm_unlock(vm);
	for (unsigned int i = 0; !rc && i < vm->n_vcpus; i++)
		if (!vm->vcpus[i].started)
			rc = vcpu_start(&vm->vcpus[i], err);
	return rc;
}

/*
 * A vCPU in the guest is brought out by the signal; one that is just about to enter
 * finds immediate_exit set; one that is outside finds running unset. So one kick is enough.
 */
int vm_pause(struct vm *vm, struct postcopy_error *err)
{
	struct vm_status status;

	vm_lock(vm);
	vm->running = false;
	pthread_cond_broadcast(&vm->changed);
	set_immediate_exit(vm, 1);
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		if (!vm->vcpus[i].parked)
			vcpu_kick(&vm->vcpus[i]);
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		while (!vm->vcpus[i].parked)
			pthread_cond_wait(&vm->changed, &vm->lock);
	vm_unlock(vm);
	return vm_status(vm, &status, err);
}

int vm_status(struct vm *vm, struct vm_status *ret, struct postcopy_error *err)
{
	struct vm_status status = { 0 };
	int rc = 0;

	vm_lock(vm);
	for (unsigned int i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *v = &vm->vcpus[i];

		/* A thread writes its error only before it is parked or done. */
		if ((v->done || v->parked) && v->error.code && !rc) {
			*err = v->error;
			rc = v->error.code;
		}
		status.ready += v->ready;
		status.done += v->done;
	}
	vm_unlock(vm);
	*ret = status;
	return rc;
}

void vm_stop_workload(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->n_vcpus; i++)
		image_vcpu(&vm->memory, i)->stop = 1;
	vm_lock(vm);
	vm->stopping = true;
	pthread_cond_broadcast(&vm->changed);
	vm_unlock(vm);
}
