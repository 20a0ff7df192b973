/* SPDX-License-Identifier: Apache-2.0 */
/* What can tell what a running guest writes: write protection of its mapping, and KVM. */
#include "mem/probe_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util/kernel_abi.h"

#define FEATURES                                                                                   \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* How much of the mapping was written; what was is protected again. Return: or -errno. */
static int scan(int pagemap, const char *map, size_t len)
{
	struct page_region found = { 0 };
	struct pm_scan_arg arg = {
		.size = sizeof arg,
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)map,
		.end = (uintptr_t)map + len,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	return n < 0 ? -errno : n;
}

/* Written by the kernel, so that what can't be written is an error. */
static bool write_to(const struct probe_env *env, char *map)
{
	char content[PROBE_COPY_BYTES];

	memset(content, 'd', sizeof content);
	return !probe_copy(env, map, content);
}

/* Return: 0; or what failed, with @err set. */
static int try_kind(const struct probe_env *env, enum probe_backend_id id, int pagemap,
                    struct error *err)
{
	_cleanup_(scratch_deinit) struct scratch mem = SCRATCH_INIT;
	_cleanup_(trap_deinit) struct trap trap = TRAP_INIT;
	uint64_t flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	const char *way;
	int rc = scratch_init(&mem, env, id, id == PROBE_GUEST_MEMFD ? flags : 0, err);

	if (rc)
		return rc;
	trap.len = mem.len;
	trap.uffd = probe_uffd_open_with(FEATURES, &way, err);
	if (trap.uffd < 0)
		return trap.uffd;
	trap.map = scratch_map(&mem, err);
	if (!trap.map)
		return -ENOMEM;
	rc = trap_register(&trap, UFFDIO_REGISTER_MODE_WP);
	if (rc)
		return error_set(err, rc, "UFFDIO_REGISTER: %s", probe_errno_name(rc));
	rc = scan(pagemap, trap.map, trap.len);
	if (rc >= 0)
		rc = scan(pagemap, trap.map, trap.len);
	if (rc)
		return error_set(err, rc < 0 ? rc : -EIO, "PAGEMAP_SCAN: %s",
		                 rc < 0 ? probe_errno_name(rc)
		                        : "what is protected is told as written");
	if (!write_to(env, trap.map))
		return error_set(err, -EFAULT, "a protected page can't be written");
	rc = scan(pagemap, trap.map, trap.len);
	return rc == 1 ? 0 : error_set(err, -EIO, "PAGEMAP_SCAN does not tell of a write");
}

void probe_write_protection_fill(const struct probe_env *env, struct probe_row *row)
{
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	char yes[128] = "", no[PROBE_DETAIL_MAX] = "";
	struct error memfd = ERROR_INIT;

	for (int id = 0; id < PROBE_BACKENDS; id++) {
		struct error err = ERROR_INIT;
		int rc = try_kind(env, (enum probe_backend_id)id, pagemap, &err);
		const char *name = probe_backend_name((enum probe_backend_id)id);
		char *to = rc ? no : yes;
		size_t size = rc ? sizeof no : sizeof yes, len = strlen(to);

		if (id == PROBE_MEMFD)
			memfd = err;
		snprintf(to + len, size - len, "%s%s%s%.24s%s", len ? ", " : "", name,
		         rc ? " (" : "", rc ? err.text : "", rc ? ")" : "");
	}
	/* Where the plainest can't, the reason is the kernel's, or this process's, for all. */
	if (memfd.code)
		probe_row_no(row, "%s (needs Linux 6.7)", memfd.text);
	else
		probe_row_yes(row,
		              "of %s%s%.150s; not pwrite(), other processes' or devices' writes",
		              yes, *no ? "; not " : "", no);
}

void probe_kvm_log_fill(const struct probe_env *env, struct probe_row *row)
{
	int manual, ring;

	if (env->vm < 0) {
		probe_row_no(row, "%s", env->kvm_err.text);
		return;
	}
	manual = ioctl(env->vm, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	ring = ioctl(env->vm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
	probe_row_yes(row, "by bitmap%s%s; not of memslots bound to guest_memfd",
	              manual > 0 ? ", cleared by hand" : "", ring > 0 ? ", by rings" : "");
}
