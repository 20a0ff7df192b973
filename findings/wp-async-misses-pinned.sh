#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Write tracking by userfaultfd (UFFD_FEATURE_WP_ASYNC) and PAGEMAP_SCAN does not tell of what the kernel
# writes to a page that was pinned before it was protected again: here by io_uring's registered
# buffers, whose reads change the page, of the tracking process itself and by its own mapping. A
# vCPU's memory that a VMM reads disks into (registered buffers, O_DIRECT) is such memory.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   written by the CPU: told; read into by io_uring READ_FIXED: not told (reads 0)
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Linux 6.7; older headers lack them. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
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

static char *page;

static void need(int ok, const char *what)
{
	if (ok)
		return;
	printf("can't be tried: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* Whether the page is told as written; and protect it again. */
static int told(void)
{
	static int pagemap;
	struct page_region found;
	struct pm_scan_arg arg = { .size = sizeof arg,
		                   .flags = PM_WP_MATCHING | PM_CHECK_WPASYNC,
		                   .start = (unsigned long)page,
		                   .end = (unsigned long)page + PAGE,
		                   .vec = (unsigned long)&found,
		                   .vec_len = 1,
		                   .category_mask = IS_WRITTEN,
		                   .return_mask = IS_WRITTEN };
	int n;

	if (!pagemap)
		pagemap = open("/proc/self/pagemap", O_RDONLY);
	n = ioctl(pagemap, PAGEMAP_SCAN, &arg);
	need(n >= 0, "PAGEMAP_SCAN (Linux 6.7)");
	return n;
}

static void track(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API,
		                  .features = UFFD_FEATURE_WP_ASYNC |
		                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	struct uffdio_register reg = { .range = { (unsigned long)page, PAGE },
		                       .mode = UFFDIO_REGISTER_MODE_WP };

	need(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "userfaultfd with WP_ASYNC");
	need(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
}

/* Zeroes into the page, that has been a registered buffer since @ring was made. */
static void read_fixed(int ring, const struct io_uring_params *p)
{
	char *sq = mmap(NULL, p->sq_off.array + p->sq_entries * 4, PROT_READ | PROT_WRITE,
	                MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe),
	                PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *e = mmap(NULL, p->sq_entries * sizeof *e, PROT_READ | PROT_WRITE,
	                              MAP_SHARED, ring, IORING_OFF_SQES);
	const struct io_uring_cqe *c = (const void *)(cq + p->cq_off.cqes);

	need(sq != MAP_FAILED && cq != MAP_FAILED && e != MAP_FAILED, "rings");
	memset(e, 0, sizeof *e);
	e->opcode = IORING_OP_READ_FIXED;
	e->fd = open("/dev/zero", O_RDONLY);
	e->addr = (unsigned long)page;
	e->len = PAGE;
	*(unsigned int *)(sq + p->sq_off.array) = 0;
	__atomic_store_n((unsigned int *)(sq + p->sq_off.tail), 1, __ATOMIC_RELEASE);
	need(syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1 &&
	             c->res == PAGE,
	     "READ_FIXED");
}

int main(void)
{
	struct io_uring_params p = { 0 };
	int by_cpu, by_kernel, ring = (int)syscall(__NR_io_uring_setup, 4, &p);
	struct iovec iov;

	need(ring >= 0, "io_uring_setup");
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	*page = 'x';
	track();
	iov = (struct iovec){ page, PAGE };
	need(!syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1), "register");
	told();
	*page = 'y';
	by_cpu = told();
	read_fixed(ring, &p);
	by_kernel = told();
	printf("written by the CPU: %s; read into by io_uring READ_FIXED: %s (reads %d)\n",
	       by_cpu ? "told" : "not told", by_kernel ? "told" : "not told", *page);
	return !by_cpu || by_kernel || *page;
}
EOF
gcc -O1 -Wall -Wextra -o "$dir/t" "$dir/t.c"
"$dir/t"
