/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mem/region.h"
#include "util/cleanup.h"
#include "util/kernel_abi.h"
#include "util/thread.h"

/* Of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst). */
#define ENTRY_PRESENT (1ull << 63)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRIES 8192u

/* Goes around what has no page table at all. Return: as pagemap_find(), -ENOTTY before Linux 6.7.
 */
static int scan(int fd, uint64_t start, uint64_t end, uint64_t *ret_addr)
{
	struct page_region found = { 0 };
	struct pm_scan_arg arg = {
		.size = sizeof arg,
		.start = start,
		.end = end,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.max_pages = 1,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};
	int n = ioctl(fd, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	*ret_addr = found.start;
	return n ? 0 : -ENOENT;
}

/* Page by page. */
static int read_entries(int fd, uint64_t start, uint64_t end, uint64_t deadline_ns,
                        uint64_t *ret_addr)
{
	_cleanup_free_ uint64_t *entries = malloc(ENTRIES * sizeof *entries);

	if (!entries)
		return -ENOMEM;
	while (start < end) {
		uint64_t left = (end - start) >> UNIT_SHIFT;
		size_t n = left < ENTRIES ? left : ENTRIES;
		ssize_t len = pread(fd, entries, n * sizeof *entries,
		                    (off_t)((start >> UNIT_SHIFT) * sizeof *entries));

		if (len < (ssize_t)sizeof *entries)
			return len < 0 ? -errno : -ENOENT;
		n = (size_t)len / sizeof *entries;
		for (size_t i = 0; i < n; i++)
			if (entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) {
				*ret_addr = start + (i << UNIT_SHIFT);
				return 0;
			}
		start += (uint64_t)n << UNIT_SHIFT;
		if (start < end && thread_own_time_ns() > deadline_ns)
			return -ETIMEDOUT;
	}
	return -ENOENT;
}

int pagemap_find(pid_t pid, uint64_t start, uint64_t end, uint64_t deadline_ns, uint64_t *ret_addr)
{
	_cleanup_close_ int fd = -1;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* One that we may not look into may be hidden from us as well. */
	if (fd < 0)
		return errno == EMFILE || errno == ENFILE ? -errno : -EACCES;
	rc = scan(fd, start, end, ret_addr);
	if (rc == -ENOTTY || rc == -EINVAL)
		rc = read_entries(fd, start, end, deadline_ns, ret_addr);
	return rc;
}
