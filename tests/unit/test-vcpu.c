/* SPDX-License-Identifier: Apache-2.0 */
/* A real vCPU on memory of which a page is lost: the VMM says machine check, and does not die. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmocka.h>
#include "minivmm/image.h"
#include "minivmm/vm.h"
#include "util/kernel_abi.h"

#define LOST_PAGE 3 /* of the guest's data */
#define LIMIT_MS 60000

static struct guest_boot boot = { .memory_bytes = GUEST_MEMORY_MIN, .seed = 1, .vcpus = 1 };

/* Return: 0, or why it can't be had here. */
static int poison(const struct memory *m, uint64_t offset)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_POISON };
	struct uffdio_register reg = {
		.range = { (uintptr_t)m->addr + offset, GUEST_PAGE_BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_poison lost = { .range = reg.range };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	    ioctl(uffd, UFFDIO_POISON, &lost))
		return -errno;
	return 0;
}

static void new_guest(struct vm *vm)
{
	struct postcopy_error err;
	struct vcpu_state state;

	if (vm_open(vm, &err)) {
		print_message("skipped: %s\n", err.text);
		skip();
	}
	image_layout(&boot);
	assert_int_equal(memory_new(POSTCOPY_MEMORY_ANONYMOUS, boot.memory_bytes, GUEST_PAGE_BYTES,
	                            false, vm->vm_fd, &vm->memory, &err),
	                 0);
	assert_int_equal(vm_add_memory(vm, &err), 0);
	assert_int_equal(vm_add_vcpus(vm, 1, &err), 0);
	image_load(&vm->memory, &boot);
	assert_int_equal(vcpu_initial_state(&vm->vcpus[0], &state, &err), 0);
	assert_int_equal(vcpu_load(&vm->vcpus[0], &state, &err), 0);
}

static void a_lost_page_is_a_machine_check(void **state)
{
	static struct vm vm;
	struct vm_status status;
	struct postcopy_error err;
	uint64_t lost;
	int rc;

	(void)state;
	new_guest(&vm);
	lost = boot.data_start + LOST_PAGE * GUEST_PAGE_BYTES;
	rc = poison(&vm.memory, lost);
	if (rc) {
		print_message("skipped: UFFDIO_POISON: %s\n", strerror(-rc));
		skip();
	}
	assert_int_equal(vm_run(&vm, &err), 0);
	while (!(rc = vm_status(&vm, &status, &err)) && !status.ready) {
		struct pollfd news = { .fd = vm.event_fd, .events = POLLIN };
		uint64_t count;

		assert_int_equal(poll(&news, 1, LIMIT_MS), 1);
		assert_int_equal(read(vm.event_fd, &count, sizeof count), sizeof count);
	}
	pthread_join(vm.vcpus[0].thread, NULL);
	assert_int_equal(rc, -EHWPOISON);
	assert_non_null(strstr(err.text, "machine check"));
	assert_int_equal(vm.vcpus[0].lost - (char *)vm.memory.addr, lost);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lost_page_is_a_machine_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
