/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/probe_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "util/kernel_abi.h"

static const struct {
	const char *name;
	uint64_t bits;
} modes[PROBE_MODES] = {
	[PROBE_MODE_MISSING_MINOR] = { "MISSING|MINOR",
	                               UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR },
	[PROBE_MODE_MINOR] = { "MINOR", UFFDIO_REGISTER_MODE_MINOR },
	[PROBE_MODE_MISSING] = { "MISSING", UFFDIO_REGISTER_MODE_MISSING },
};

static void row_set(struct probe_row *row, bool ok, const char *fmt, va_list ap)
{
	row->ok = ok;
	vsnprintf(row->detail, sizeof row->detail, fmt, ap);
}

void probe_row_yes(struct probe_row *row, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	row_set(row, true, fmt, ap);
	va_end(ap);
}

void probe_row_no(struct probe_row *row, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	row_set(row, false, fmt, ap);
	va_end(ap);
}

/* What is missing of KVM is a result, not a failure of the probe. */
static void env_open_kvm(struct probe_env *env)
{
	env->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (env->kvm < 0) {
		error_set(&env->kvm_err, -errno, "/dev/kvm: %s%s", probe_errno_name(-errno),
		          errno == EACCES ? " (add this user to the group kvm)"
		          : errno == ENOENT
		                  ? " (no KVM here: virtualization is off or nested is not "
		                    "allowed)"
		                  : "");
		return;
	}
	env->vm = ioctl(env->kvm, KVM_CREATE_VM, 0);
	if (env->vm < 0)
		error_set(&env->kvm_err, -errno, "KVM_CREATE_VM: %s", probe_errno_name(-errno));
}

int probe_env_init(struct probe_env *env, struct error *err)
{
	*env = (struct probe_env){ .copy_fd = -1, .kvm = -1, .vm = -1 };
	env->copy_fd = memfd_create("probe-copy", MFD_CLOEXEC);
	if (env->copy_fd < 0)
		return error_errno(err, -errno, "probing the kernel: memfd_create");
	env_open_kvm(env);
	return 0;
}

void probe_env_deinit(struct probe_env *env)
{
	close_fd(&env->vm);
	close_fd(&env->kvm);
	close_fd(&env->copy_fd);
}

int probe_backend_run(enum probe_backend_id id, struct probe_backend *ret, struct error *err)
{
	_cleanup_(probe_env_deinit) struct probe_env env;
	int r = probe_env_init(&env, err);

	if (r)
		return r;
	probe_backend_fill(&env, id, ret);
	return 0;
}

int probe_run(struct probe *ret, struct error *err)
{
	_cleanup_(probe_env_deinit) struct probe_env env;
	int r = probe_env_init(&env, err);

	if (r)
		return r;
	probe_host_fill(&env, ret->facts);
	for (enum probe_backend_id id = 0; id < PROBE_BACKENDS; id++)
		probe_backend_fill(&env, id, &ret->backends[id]);
	return 0;
}

const struct probe_row *probe_row_at(const struct probe *probe, size_t i)
{
	if (i < PROBE_FACTS)
		return &probe->facts[i];
	i -= PROBE_FACTS;
	if (i >= 2 * PROBE_BACKENDS)
		return NULL;
	return i % 2 ? &probe->backends[i / 2].destination : &probe->backends[i / 2].source;
}

int probe_mode_check(const struct probe_backend *backend, uint64_t uffd_mode, struct error *err)
{
	const struct probe_mode_result *m;

	for (enum probe_mode mode = 0; mode < PROBE_MODES; mode++) {
		if (modes[mode].bits != uffd_mode)
			continue;
		m = &backend->modes[mode];
		if (m->ok)
			return 0;
		return error_set(err, -EOPNOTSUPP, "%s memory: %s", probe_backend_name(backend->id),
		                 m->reason);
	}
	return error_set(err, -EINVAL, "%s memory: unknown userfaultfd mode 0x%llx",
	                 probe_backend_name(backend->id), (unsigned long long)uffd_mode);
}

uint64_t probe_mode_bits(enum probe_mode mode)
{
	return mode < PROBE_MODES ? modes[mode].bits : 0;
}

const char *probe_backend_name(enum probe_backend_id id)
{
	static const char *const names[PROBE_BACKENDS] = {
		[PROBE_MEMFD] = "memfd",           [PROBE_HUGETLB_2M] = "hugetlb 2M",
		[PROBE_HUGETLB_1G] = "hugetlb 1G", [PROBE_GUEST_MEMFD] = "guest_memfd",
		[PROBE_ANONYMOUS] = "anonymous",
	};

	return id < PROBE_BACKENDS ? names[id] : "unknown";
}

const char *probe_mode_name(enum probe_mode mode)
{
	return mode < PROBE_MODES ? modes[mode].name : "none";
}

const char *probe_absent_name(enum probe_absent absent)
{
	switch (absent) {
	case PROBE_ABSENT_UNKNOWN:
		return "not tried";
	case PROBE_ABSENT_SILENT:
		return "no event";
	case PROBE_ABSENT_MISSING:
		return "MISSING event";
	case PROBE_ABSENT_MINOR:
		return "MINOR event";
	}
	return "unknown";
}

const char *probe_write_name(enum probe_write write)
{
	switch (write) {
	case PROBE_WRITE_NONE:
		return "no";
	case PROBE_WRITE_EXCLUSIVE:
		return "exclusive";
	case PROBE_WRITE_OVERWRITING:
		return "overwriting";
	}
	return "unknown";
}

const char *probe_resolve_name(unsigned int resolve)
{
	static const char *const names[8] = {
		[0] = "none",
		[PROBE_RESOLVE_CONTINUE] = "CONTINUE",
		[PROBE_RESOLVE_COPY] = "COPY",
		[PROBE_RESOLVE_CONTINUE | PROBE_RESOLVE_COPY] = "CONTINUE, COPY",
		[PROBE_RESOLVE_ZEROPAGE] = "ZEROPAGE",
		[PROBE_RESOLVE_CONTINUE | PROBE_RESOLVE_ZEROPAGE] = "CONTINUE, ZEROPAGE",
		[PROBE_RESOLVE_COPY | PROBE_RESOLVE_ZEROPAGE] = "COPY, ZEROPAGE",
		[PROBE_RESOLVE_CONTINUE | PROBE_RESOLVE_COPY | PROBE_RESOLVE_ZEROPAGE] =
		        "CONTINUE, COPY, ZEROPAGE",
	};

	return names[resolve % 8];
}

const char *probe_gmem_abi_name(enum probe_gmem_abi abi)
{
	switch (abi) {
	case PROBE_GMEM_NONE:
		return "none";
	case PROBE_GMEM_MINOR:
		return "minor (an absent page is allocated, then raises MINOR)";
	case PROBE_GMEM_MISSING_MINOR:
		return "missing|minor";
	case PROBE_GMEM_MINOR_PRESENT_ONLY:
		return "minor-present-only (dangerous, refused)";
	}
	return "unknown";
}
