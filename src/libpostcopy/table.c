/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/table.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "util/maps.h"

#define PAGE_4K 4096ull
#define PAGE_2M (2ull << 20)
#define PAGE_1G (1ull << 30)

const char *table_memory_name(enum postcopy_memory memory)
{
	switch (memory) {
	case POSTCOPY_MEMORY_MEMFD:
		return "memfd";
	case POSTCOPY_MEMORY_HUGETLB:
		return "hugetlb";
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return "guest_memfd";
	case POSTCOPY_MEMORY_ANONYMOUS:
		return "anonymous";
	}
	return "unknown memory";
}

static int check_page_size(const struct postcopy_region *r, size_t i, struct error *err)
{
	bool huge = r->page_size == PAGE_2M || r->page_size == PAGE_1G;

	if (r->memory == POSTCOPY_MEMORY_HUGETLB ? huge : r->page_size == PAGE_4K)
		return 0;
	if (r->memory == POSTCOPY_MEMORY_ANONYMOUS && r->page_size == PAGE_2M)
		return 0;
	return error_set(err, -EINVAL, "region %zu: page_size %llu; %s memory has %s", i,
	                 (unsigned long long)r->page_size, table_memory_name(r->memory),
	                 r->memory == POSTCOPY_MEMORY_HUGETLB ? "2097152 or 1073741824" : "4096");
}

static int check_multiple(uint64_t value, const char *what, const struct postcopy_region *r,
                          size_t i, struct error *err)
{
	uint64_t end;

	if (value & (r->page_size - 1))
		return error_set(err, -EINVAL,
		                 "region %zu: %s %#llx is not a multiple of page_size %#llx", i,
		                 what, (unsigned long long)value, (unsigned long long)r->page_size);
	if (__builtin_add_overflow(value, r->size, &end))
		return error_set(err, -EINVAL, "region %zu: %s %#llx + size %#llx overflows", i,
		                 what, (unsigned long long)value, (unsigned long long)r->size);
	return 0;
}

/* By the source's file the daemon sees what the guest does, and by the destination's the other way.
 */
static int check_shared(const struct postcopy_region *r, size_t i, pid_t pid, struct error *err)
{
	uint64_t start = (uintptr_t)r->host_addr, addr;
	struct stat st;

	if (r->fd < 0 || fstat(r->fd, &st) ||
	    maps_find_private(pid, start, start + r->size, st.st_dev, st.st_ino, &addr))
		return 0;
	return error_set(err, -EINVAL,
	                 "region %zu: host_addr is mapped MAP_PRIVATE: what the guest writes there "
	                 "is not in fd %d; map it MAP_SHARED",
	                 i, r->fd);
}

static int check_name(const struct postcopy_region *r, size_t i, struct error *err)
{
	size_t len = r->name ? strnlen(r->name, POSTCOPY_REGION_NAME_MAX + 1) : 0;

	if (!r->name)
		return 0;
	if (!len || len > POSTCOPY_REGION_NAME_MAX)
		return error_set(err, -EINVAL, "region %zu: its name is %s: give 1 to %d bytes", i,
		                 len ? "too long" : "empty", POSTCOPY_REGION_NAME_MAX);
	for (const char *c = r->name; *c; c++)
		if (*c < ' ' || *c > '~')
			return error_set(err, -EINVAL,
			                 "region %zu: its name is not of printable ASCII", i);
	return 0;
}

static int check_region(const struct postcopy_region *r, size_t i, pid_t pid, struct error *err)
{
	bool anonymous = r->memory == POSTCOPY_MEMORY_ANONYMOUS;
	int rc;

	if (r->memory < POSTCOPY_MEMORY_MEMFD || r->memory > POSTCOPY_MEMORY_ANONYMOUS)
		return error_set(err, -EINVAL, "region %zu: unknown kind of memory %d", i,
		                 (int)r->memory);
	if (r->flags & ~POSTCOPY_REGION_FLAGS)
		return error_set(err, -EINVAL, "region %zu: flags %#x are not known", i,
		                 r->flags & ~POSTCOPY_REGION_FLAGS);
	if (r->flags & POSTCOPY_REGION_BOUND && r->memory != POSTCOPY_MEMORY_GUEST_MEMFD)
		return error_set(err, -EINVAL,
		                 "region %zu: no memslot can be bound to %s memory, but to "
		                 "guest_memfd",
		                 i, table_memory_name(r->memory));
	rc = check_page_size(r, i, err);
	if (rc)
		return rc;
	if (!r->size || r->size & (r->page_size - 1))
		return error_set(err, -EINVAL,
		                 "region %zu: size %#llx is not a multiple of page_size %#llx "
		                 "above 0",
		                 i, (unsigned long long)r->size, (unsigned long long)r->page_size);
	if (!r->host_addr != !!(r->flags & POSTCOPY_REGION_ASKED))
		return error_set(err, -EINVAL, "region %zu: host_addr is %sNULL", i,
		                 r->host_addr ? "not " : "");
	if (anonymous != (r->fd < 0))
		return error_set(err, -EINVAL, "region %zu: fd is %d; %s", i, r->fd,
		                 anonymous ? "anonymous memory has none, set -1"
		                           : "give the memory's descriptor");
	if (anonymous && r->fd_offset)
		return error_set(err, -EINVAL,
		                 "region %zu: fd_offset %#llx, but anonymous memory has no fd", i,
		                 (unsigned long long)r->fd_offset);
	rc = check_multiple(r->guest_phys_addr, "guest_phys_addr", r, i, err);
	if (!rc)
		rc = check_multiple((uintptr_t)r->host_addr, "host_addr", r, i, err);
	if (!rc)
		rc = check_multiple(r->fd_offset, "fd_offset", r, i, err);
	if (!rc)
		rc = check_shared(r, i, pid, err);
	if (!rc)
		rc = check_name(r, i, err);
	return rc;
}

/* Ends don't overflow: each region has passed check_region(). */
static bool overlap(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

/* Whatever their descriptors' numbers are. */
static bool same_file(const struct postcopy_region *a, const struct postcopy_region *b)
{
	struct stat st_a, st_b;

	return a->fd >= 0 && b->fd >= 0 && !fstat(a->fd, &st_a) && !fstat(b->fd, &st_b) &&
	       st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
}

static int check_pair(const struct postcopy_region *regions, size_t i, size_t j, struct error *err)
{
	const struct postcopy_region *a = &regions[i], *b = &regions[j];

	if (!a->name != !b->name)
		return error_set(err, -EINVAL,
		                 "regions %zu and %zu: one has a name, the other has not", i, j);
	if (a->name && !strcmp(a->name, b->name))
		return error_set(err, -EINVAL, "regions %zu and %zu are both called \"%s\"", i, j,
		                 a->name);
	if (overlap(a->guest_phys_addr, a->size, b->guest_phys_addr, b->size))
		return error_set(err, -EINVAL, "regions %zu and %zu overlap in guest memory", i, j);
	if ((a->flags ^ b->flags) & POSTCOPY_REGION_ASKED)
		return error_set(err, -EINVAL, "regions %zu and %zu: one is asked for, one is not",
		                 i, j);
	if (a->host_addr &&
	    overlap((uintptr_t)a->host_addr, a->size, (uintptr_t)b->host_addr, b->size))
		return error_set(err, -EINVAL, "regions %zu and %zu overlap at host_addr", i, j);
	if (!((a->flags | b->flags) & POSTCOPY_REGION_PRIVATE) &&
	    overlap(a->fd_offset, a->size, b->fd_offset, b->size) && same_file(a, b))
		return error_set(err, -EINVAL, "regions %zu and %zu overlap in their file", i, j);
	return 0;
}

int table_check(const struct postcopy_region *regions, size_t n_regions, pid_t pid,
                struct error *err)
{
	if (!regions || !n_regions || n_regions > POSTCOPY_REGIONS_MAX)
		return error_set(err, -EINVAL, "%zu regions; give 1 to %d", regions ? n_regions : 0,
		                 POSTCOPY_REGIONS_MAX);
	for (size_t i = 0; i < n_regions; i++) {
		int rc = check_region(&regions[i], i, pid, err);

		for (size_t j = 0; !rc && j < i; j++)
			rc = check_pair(regions, j, i, err);
		if (rc)
			return rc;
	}
	return 0;
}
