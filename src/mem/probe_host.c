/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/probe_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <linux/tls.h>

#include "util/kernel_abi.h"
#include "util/kvm_userfault.h"

#define PAGE_BYTES 4096u

static void fact_kernel(const struct probe_env *env, struct probe_row *row)
{
	struct utsname u;

	(void)env;
	uname(&u);
	probe_row_yes(row, "%s %s %s", u.sysname, u.release, u.machine);
}

static void fact_kvm(const struct probe_env *env, struct probe_row *row)
{
	if (env->vm < 0)
		probe_row_no(row, "%s", env->kvm_err.text);
	else
		probe_row_yes(row, "/dev/kvm, API %d", ioctl(env->kvm, KVM_GET_API_VERSION, 0));
}

static void fact_userfaultfd(const struct probe_env *env, struct probe_row *row)
{
	struct error err = ERROR_INIT;
	const char *way = NULL;
	_cleanup_close_ int fd = probe_uffd_open(&way, &err);

	(void)env;
	if (fd < 0)
		probe_row_no(row, "%s", err.text);
	else
		probe_row_yes(row, "%s", way);
}

/* A poisoned page must fail to be read, and at once. */
static void fact_poison(const struct probe_env *env, struct probe_row *row)
{
	_cleanup_(scratch_deinit) struct scratch mem = SCRATCH_INIT;
	_cleanup_(trap_deinit) struct trap trap = TRAP_INIT;
	struct error err = ERROR_INIT;
	struct uffdio_poison poison;
	char got[PROBE_COPY_BYTES];
	int e;

	if (scratch_init(&mem, env, PROBE_ANONYMOUS, 0, &err) || trap_init(&trap, &mem, &err)) {
		probe_row_no(row, "%s", err.text);
		return;
	}
	e = trap_register(&trap, UFFDIO_REGISTER_MODE_MISSING);
	if (e) {
		probe_row_no(row, "UFFDIO_REGISTER MISSING: %s", probe_errno_name(e));
		return;
	}
	poison = (struct uffdio_poison){ .range = { (uintptr_t)trap.map, trap.len } };
	if (ioctl(trap.uffd, UFFDIO_POISON, &poison)) {
		probe_row_no(row, "UFFDIO_POISON: %s (needs Linux 6.6)", probe_errno_name(-errno));
		return;
	}
	/* poison stays when the registration goes; an absent page would read as zeroes */
	trap_release(&trap);
	e = probe_copy(env, got, trap.map);
	if (e)
		probe_row_yes(row, "a poisoned page can't be read");
	else
		probe_row_no(row, "UFFDIO_POISON was accepted, but the page reads as zeroes");
}

/* A VM with a vCPU and one page of memory at guest address 0. */
struct vm {
	int fd;
	int vcpu;
	uint8_t *page;
};

#define VM_INIT ((struct vm){ .fd = -1, .vcpu = -1 })

static void vm_deinit(struct vm *vm)
{
	close_fd(&vm->vcpu);
	close_fd(&vm->fd);
	if (vm->page)
		munmap(vm->page, PAGE_BYTES);
	vm->page = NULL;
}

static int vm_init(struct vm *vm, const struct probe_env *env, struct error *err)
{
	void *page;

	*vm = VM_INIT;
	if (env->vm < 0)
		return error_set(err, env->kvm_err.code, "%s", env->kvm_err.text);
	vm->fd = ioctl(env->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		return error_set(err, -errno, "KVM_CREATE_VM: %s", probe_errno_name(-errno));
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	if (vm->vcpu < 0)
		return error_set(err, -errno, "KVM_CREATE_VCPU: %s", probe_errno_name(-errno));
	page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return error_set(err, -errno, "mmap: %s", probe_errno_name(-errno));
	vm->page = page;
	return 0;
}

static void fact_pre_fault(const struct probe_env *env, struct probe_row *row)
{
	_cleanup_(vm_deinit) struct vm vm = VM_INIT;
	struct kvm_pre_fault_memory pre_fault = { .gpa = 0, .size = PAGE_BYTES };
	struct kvm_userspace_memory_region slot = { .memory_size = PAGE_BYTES };
	struct error err = ERROR_INIT;

	if (vm_init(&vm, env, &err)) {
		probe_row_no(row, "%s", err.text);
		return;
	}
	slot.userspace_addr = (uintptr_t)vm.page;
	if (ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &slot))
		probe_row_no(row, "KVM_SET_USER_MEMORY_REGION: %s", probe_errno_name(-errno));
	else if (ioctl(vm.vcpu, KVM_PRE_FAULT_MEMORY, &pre_fault))
		probe_row_no(row,
		             "KVM_PRE_FAULT_MEMORY: %s (needs Linux 6.11 and a KVM with "
		             "two-dimensional paging)",
		             probe_errno_name(-errno));
	else
		probe_row_yes(row, "KVM_PRE_FAULT_MEMORY maps ahead");
}

/* Some VM types only: those that may have private memory. */
static int attributes_try(int kvm, int type)
{
	struct kvm_memory_attributes a = { .size = PAGE_BYTES,
		                           .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE };
	_cleanup_close_ int vm = ioctl(kvm, KVM_CREATE_VM, type);

	if (vm < 0)
		return -errno;
	return ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &a) ? -errno : 0;
}

static void fact_attributes(const struct probe_env *env, struct probe_row *row)
{
	int plain, protected;

	if (env->vm < 0) {
		probe_row_no(row, "%s", env->kvm_err.text);
		return;
	}
	plain = attributes_try(env->kvm, 0);
	if (!plain) {
		probe_row_yes(row, "private ranges, VMs of the default type");
		return;
	}
	protected = attributes_try(env->kvm, KVM_X86_SW_PROTECTED_VM);
	if (!protected)
		probe_row_yes(row, "private ranges, VMs of type KVM_X86_SW_PROTECTED_VM");
	else
		probe_row_no(row,
		             "KVM_SET_MEMORY_ATTRIBUTES private: %s on a default VM, %s on "
		             "KVM_X86_SW_PROTECTED_VM (needs Linux 6.8 and a VM type with private "
		             "memory)",
		             probe_errno_name(plain), probe_errno_name(protected));
}

static void fact_kvm_userfault(const struct probe_env *env, struct probe_row *row)
{
	struct error err = ERROR_INIT;

	if (env->vm < 0)
		probe_row_no(row, "%s", env->kvm_err.text);
	else if (kvm_userfault_try(env->kvm, &err))
		probe_row_no(row, "%s", err.text);
	else
		probe_row_yes(row, "faults of memslots bound to guest_memfd arrive as KVM exits");
}

/* Two connected ends over loopback. Return: 0 or a negative errno. */
static int tcp_pair(int ret[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	_cleanup_close_ int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	_cleanup_close_ int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int server;

	if (listener < 0 || client < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&a, &len) ||
	    connect(client, (struct sockaddr *)&a, sizeof a))
		return -errno;
	server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (server < 0)
		return -errno;
	ret[0] = steal_fd(&client);
	ret[1] = server;
	return 0;
}

static void fact_ktls(const struct probe_env *env, struct probe_row *row)
{
	struct tls12_crypto_info_aes_gcm_128 key = {
		.info = { .version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128 },
	};
	_cleanup_close_ int client = -1, server = -1;
	int fds[2] = { -1, -1 }, e;

	(void)env;
	e = tcp_pair(fds);
	if (e) {
		probe_row_no(row, "can't be tried: TCP over 127.0.0.1: %s", probe_errno_name(e));
		return;
	}
	client = fds[0];
	server = fds[1];
	if (setsockopt(client, SOL_TCP, TCP_ULP, "tls", sizeof "tls"))
		probe_row_no(row, "TCP_ULP \"tls\": %s%s", probe_errno_name(-errno),
		             errno == ENOENT ? " (modprobe tls, or a kernel with CONFIG_TLS)" : "");
	else if (setsockopt(client, SOL_TLS, TLS_TX, &key, sizeof key))
		probe_row_no(row, "TLS_TX with TLS 1.3 AES-128-GCM: %s", probe_errno_name(-errno));
	else
		probe_row_yes(row, "TLS 1.3 AES-128-GCM");
}

static void huge_fill(struct probe_row *row, unsigned long kib)
{
	_cleanup_fclose_ FILE *f = NULL;
	unsigned long n_free;
	char path[96];

	snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%lukB/free_hugepages", kib);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%lu", &n_free) != 1)
		probe_row_no(row, "this kernel or processor has no such pages (%s)", path);
	else if (!n_free)
		probe_row_no(
		        row,
		        "none free: echo N > /sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages",
		        kib);
	else
		probe_row_yes(row, "%lu free", n_free);
}

static void fact_huge_2m(const struct probe_env *env, struct probe_row *row)
{
	(void)env;
	huge_fill(row, 2ul << 10);
}

static void fact_huge_1g(const struct probe_env *env, struct probe_row *row)
{
	(void)env;
	huge_fill(row, 1ul << 20);
}

void probe_host_fill(const struct probe_env *env, struct probe_row rows[PROBE_FACTS])
{
	static const struct {
		const char *name;
		void (*fill)(const struct probe_env *env, struct probe_row *row);
	} facts[PROBE_FACTS] = {
		[PROBE_KERNEL] = { "kernel", fact_kernel },
		[PROBE_KVM] = { "KVM", fact_kvm },
		[PROBE_USERFAULTFD] = { "userfaultfd", fact_userfaultfd },
		[PROBE_UFFDIO_POISON] = { "UFFDIO_POISON", fact_poison },
		[PROBE_HOLES] = { "absent pages", probe_collapse_fill },
		[PROBE_WRITE_PROTECTION] = { "write protection", probe_write_protection_fill },
		[PROBE_KVM_LOG] = { "KVM dirty log", probe_kvm_log_fill },
		[PROBE_KVM_PRE_FAULT] = { "KVM pre-fault", fact_pre_fault },
		[PROBE_KVM_MEMORY_ATTRIBUTES] = { "KVM memory attributes", fact_attributes },
		[PROBE_KVM_USERFAULT] = { "KVM userfault", fact_kvm_userfault },
		[PROBE_NO_DIRECT_MAP] = { "guest_memfd, no direct map", probe_no_direct_map_fill },
		[PROBE_KTLS] = { "kTLS", fact_ktls },
		[PROBE_HUGE_2M] = { "2 MiB pages", fact_huge_2m },
		[PROBE_HUGE_1G] = { "1 GiB pages", fact_huge_1g },
	};

	for (size_t i = 0; i < PROBE_FACTS; i++) {
		rows[i] = (struct probe_row){ .name = facts[i].name };
		facts[i].fill(env, &rows[i]);
	}
}
