#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Write tracking by userfaultfd (UFFD_FEATURE_WP_ASYNC) and PAGEMAP_SCAN: a page of anonymous memory
# that is discarded (MADV_DONTNEED) is told as written; a page of a memfd that is discarded (MADV_REMOVE
# on the tracked mapping itself, or a hole punched by the descriptor) is not, though it reads as zeroes
# from then on, and neither when it is read again. Who copies what PAGE_IS_WRITTEN names keeps the old
# content. The kernel's documentation (pagemap.rst) does not tell the two apart.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   memfd: written: told; MADV_REMOVE: not told (reads 0); hole punched: not told (reads 0)
#   anonymous: written: told; MADV_DONTNEED: told (reads 0)
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux 6.7; older headers lack them. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef PAGEMAP_SCAN
struct page_region {
	unsigned long long start, end, categories;
};
struct pm_scan_arg {
	unsigned long long size, flags, start, end, walk_end, vec, vec_len, max_pages;
	unsigned long long category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif
#define PM_WP_MATCHING 1
#define PM_CHECK_WPASYNC 2
#define IS_WRITTEN 2
#define PAGE 4096

static int pagemap;

/* Whether the page is told as written; and protect it again. */
static int told(const char *page)
{
	struct page_region found;
	struct pm_scan_arg arg = { .size = sizeof arg,
		                   .flags = PM_WP_MATCHING | PM_CHECK_WPASYNC,
		                   .start = (unsigned long)page,
		                   .end = (unsigned long)page + PAGE,
		                   .vec = (unsigned long)&found,
		                   .vec_len = 1,
		                   .category_mask = IS_WRITTEN,
		                   .return_mask = IS_WRITTEN };
	int n = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	if (n < 0) {
		printf("PAGEMAP_SCAN: %s (needs Linux 6.7)\n", strerror(errno));
		exit(2);
	}
	return n;
}

static char *track(int fd)
{
	char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE,
	               fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API,
		                  .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
		                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	struct uffdio_register reg = { .range = { (unsigned long)p, 3 * PAGE },
		                       .mode = UFFDIO_REGISTER_MODE_WP };

	if (p == MAP_FAILED || uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		printf("can't be tried: %s\n", strerror(errno));
		exit(2);
	}
	memset(p, 'x', 3 * PAGE);
	for (int i = 0; i < 3; i++)
		told(p + i * PAGE);
	return p;
}

static const char *word(int is_told)
{
	return is_told ? "told" : "not told";
}

int main(void)
{
	int fd = memfd_create("t", MFD_CLOEXEC), written, removed, punched, bad = 0;
	char *p;

	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0 || ftruncate(fd, 3 * PAGE))
		return 2;
	p = track(fd);
	p[0] = 'y';
	written = told(p);
	if (madvise(p + PAGE, PAGE, MADV_REMOVE) ||
	    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE))
		return 2;
	removed = told(p + PAGE);
	punched = told(p + 2 * PAGE);
	printf("memfd: written: %s; MADV_REMOVE: %s (reads %d); hole punched: %s (reads %d)\n",
	       word(written), word(removed), p[PAGE], word(punched), p[2 * PAGE]);
	bad |= !written || removed || punched || p[PAGE] || p[2 * PAGE] || told(p + PAGE) ||
	       told(p + 2 * PAGE);
	p = track(-1);
	p[0] = 'y';
	written = told(p);
	if (madvise(p + PAGE, PAGE, MADV_DONTNEED))
		return 2;
	removed = told(p + PAGE);
	printf("anonymous: written: %s; MADV_DONTNEED: %s (reads %d)\n", word(written),
	       word(removed), p[PAGE]);
	bad |= !written || !removed || p[PAGE];
	return bad;
}
EOF
gcc -O1 -Wall -Wextra -o "$dir/t" "$dir/t.c"
"$dir/t"
