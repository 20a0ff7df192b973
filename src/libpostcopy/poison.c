/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/poison.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "libpostcopy/internal.h"
#include "libpostcopy/poison_wire.h"
#include "util/cleanup.h"
#include "util/kernel_abi.h"

/* Ranges that one walk returns. */
#define SCAN_MAX 64

struct finder {
	int pagemap;
	int mem; /* /proc/PID/mem, from when it is needed on */
	pid_t pid;
	uint8_t *records;
	size_t n;
	struct poison_record last; /* len 0: none; not in @records yet */
};

/* Return: the descriptor or -errno. */
static int open_of(pid_t pid, const char *what)
{
	char path[64];
	int fd;

	if (pid)
		snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, what);
	else
		snprintf(path, sizeof path, "/proc/self/%s", what);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Whether a page can't be read, asked without touching it ourselves. */
static bool is_unreadable(const struct finder *f, uint64_t addr)
{
	char byte;

	return pread(f->mem, &byte, 1, (off_t)addr) < 0 && (errno == EIO || errno == EFAULT);
}

static int flush_last(struct finder *f, struct error *err)
{
	uint8_t *grown;

	if (!f->last.len)
		return 0;
	if (f->n == POISON_RECORDS_MAX)
		return error_set(err, -E2BIG,
		                 "guest memory has more than %u stretches of poisoned pages",
		                 POISON_RECORDS_MAX);
	grown = reallocarray(f->records, f->n + 1, POISON_RECORD_BYTES);
	if (!grown)
		return error_set(err, -ENOMEM, "out of memory");
	f->records = grown;
	poison_record_encode(&f->last, f->records + f->n++ * POISON_RECORD_BYTES);
	f->last.len = 0;
	return 0;
}

static int add_page(struct finder *f, uint32_t region, uint64_t offset, uint64_t len,
                    struct error *err)
{
	int rc = 0;

	if (f->last.len && f->last.region == region && f->last.offset + f->last.len == offset) {
		f->last.len += len;
		return 0;
	}
	rc = flush_last(f, err);
	if (!rc)
		f->last = (struct poison_record){ .region = region, .offset = offset, .len = len };
	return rc;
}

/* A walk's find: no page is there, but a mark. Poison is one; a page on its way elsewhere, too. */
static int look_at(struct finder *f, const struct postcopy_region *r, uint32_t index,
                   const struct page_region *found, struct error *err)
{
	uint64_t base = (uintptr_t)r->host_addr;
	int rc = 0;

	/* Who may look at another process's page table may not always read its memory (Yama). */
	if (f->mem < 0)
		f->mem = open_of(f->pid, "mem");
	if (f->mem < 0)
		return error_errno(err, f->mem,
		                   "can't open the VMM's /proc/PID/mem, to see what is poisoned");

	for (uint64_t at = found->start; at < found->end && !rc; at += r->page_size)
		if (is_unreadable(f, at))
			rc = add_page(f, index, at - base, r->page_size, err);
	return rc;
}

/* Return: 0, also where the kernel can't walk; or -errno. */
static int scan(struct finder *f, const struct postcopy_region *r, uint32_t index,
                struct error *err)
{
	struct page_region found[SCAN_MAX];
	struct pm_scan_arg arg = {
		.size = sizeof arg,
		.start = (uintptr_t)r->host_addr,
		.end = (uintptr_t)r->host_addr + r->size,
		.vec = (uintptr_t)found,
		.vec_len = SCAN_MAX,
		.category_mask = PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_SWAPPED,
	};
	int rc = 0;

	while (arg.start < arg.end && !rc) {
		int n = ioctl(f->pagemap, PAGEMAP_SCAN, &arg);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == ENOTTY)
			return 0;
		if (n < 0)
			return error_errno(err, -errno, "region %u: PAGEMAP_SCAN", index);
		for (int i = 0; i < n && !rc; i++)
			rc = look_at(f, r, index, &found[i], err);
		arg.start = arg.walk_end;
	}
	return rc;
}

static int find(struct finder *f, const struct postcopy_region *regions, size_t n_regions,
                struct error *err)
{
	int rc = 0;

	f->pagemap = open_of(f->pid, "pagemap");
	if (f->pagemap < 0)
		return error_errno(
		        err, f->pagemap,
		        "can't open the VMM's /proc/PID/pagemap, to see what is poisoned");
	for (size_t i = 0; i < n_regions && !rc; i++) {
		/* Neither is read by a descriptor of the memory. */
		if (regions[i].memory == POSTCOPY_MEMORY_ANONYMOUS ||
		    (regions[i].flags & POSTCOPY_REGION_PRIVATE))
			continue;
		rc = scan(f, &regions[i], (uint32_t)i, err);
	}
	return rc ? rc : flush_last(f, err);
}

int poison_find(const struct postcopy_region *regions, size_t n_regions, pid_t pid, int *ret_fd,
                struct error *err)
{
	struct finder f = { .pagemap = -1, .mem = -1, .pid = pid };
	int fd = -1, rc = find(&f, regions, n_regions, err);

	if (!rc && f.n)
		rc = make_sealed_memfd("postcopy-poisoned", f.records, f.n * POISON_RECORD_BYTES,
		                       &fd, err);
	close_fd(&f.pagemap);
	close_fd(&f.mem);
	free(f.records);
	if (!rc)
		*ret_fd = fd;
	return rc;
}
