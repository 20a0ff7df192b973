/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/region.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SIZE_2M (2ull << 20)
#define SIZE_1G (1ull << 30)

const char *memory_name(enum postcopy_memory memory)
{
	switch (memory) {
	case POSTCOPY_MEMORY_MEMFD:
		return "memfd";
	case POSTCOPY_MEMORY_HUGETLB:
		return "hugetlb";
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return "guest_memfd";
	case POSTCOPY_MEMORY_ANONYMOUS:
		return "anon";
	}
	return "unknown";
}

static bool page_size_fits(enum postcopy_memory memory, uint64_t page_size)
{
	switch (memory) {
	case POSTCOPY_MEMORY_HUGETLB:
		return page_size == SIZE_2M || page_size == SIZE_1G;
	case POSTCOPY_MEMORY_ANONYMOUS:
		return page_size == UNIT_BYTES || page_size == SIZE_2M;
	case POSTCOPY_MEMORY_MEMFD:
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return page_size == UNIT_BYTES;
	}
	return false;
}

/* One number of a region: a multiple of the page size that doesn't wrap with its length. */
static int check_span(uint32_t index, const char *what, uint64_t start, const struct region *r,
                      struct error *err)
{
	uint64_t end;

	if (start % r->page_size)
		return error_set(
		        err, -EINVAL, "region %u: %s %#llx is not a multiple of its page size %llu",
		        index, what, (unsigned long long)start, (unsigned long long)r->page_size);
	if (__builtin_add_overflow(start, r->size, &end))
		return error_set(err, -EINVAL, "region %u: %s %#llx plus size %#llx overflows",
		                 index, what, (unsigned long long)start,
		                 (unsigned long long)r->size);
	return 0;
}

static int check_region(uint32_t index, const struct region *r, struct error *err)
{
	int rc;

	if (!page_size_fits(r->memory, r->page_size))
		return error_set(err, -EINVAL, "region %u: memory %u (%s) with page size %llu",
		                 index, (unsigned int)r->memory, memory_name(r->memory),
		                 (unsigned long long)r->page_size);
	if (r->flags & ~REGION_FLAGS)
		return error_set(err, -EINVAL, "region %u: unknown flags %#x", index,
		                 r->flags & ~REGION_FLAGS);
	if (!r->size || r->size % r->page_size)
		return error_set(
		        err, -EINVAL,
		        "region %u: size %#llx is not a positive multiple of its page size %llu",
		        index, (unsigned long long)r->size, (unsigned long long)r->page_size);
	if (r->size > GUEST_BYTES_MAX || r->guest_phys_addr > GUEST_BYTES_MAX - r->size)
		return error_set(
		        err, -EINVAL,
		        "region %u: guest physical address %#llx, size %#llx beyond 52 bits", index,
		        (unsigned long long)r->guest_phys_addr, (unsigned long long)r->size);
	rc = check_span(index, "guest physical address", r->guest_phys_addr, r, err);
	if (!rc)
		rc = check_span(index, "host address", r->host_addr, r, err);
	if (!rc)
		rc = check_span(index, "descriptor offset", r->fd_offset, r, err);
	if (!rc && r->fd_offset + r->size > INT64_MAX)
		rc = error_set(err, -EINVAL,
		               "region %u: descriptor offset %#llx is beyond any file", index,
		               (unsigned long long)r->fd_offset);
	return rc;
}

/* Who asks for pages traps all of its memory itself: for no part of it is there a userfaultfd. */
static int check_asked(uint32_t index, const struct region *r, const struct region *before,
                       struct error *err)
{
	if (before && (before->flags ^ r->flags) & POSTCOPY_REGION_ASKED)
		return error_set(err, -EINVAL,
		                 "region %u: all of a guest's regions are asked for "
		                 "(POSTCOPY_REGION_ASKED), or none is",
		                 index);
	if (!(r->flags & POSTCOPY_REGION_ASKED))
		return 0;
	if (r->memory != POSTCOPY_MEMORY_MEMFD && r->memory != POSTCOPY_MEMORY_HUGETLB)
		return error_set(err, -EINVAL,
		                 "region %u: %s can't be asked for: only a file can be filled "
		                 "without the userfaultfd that traps it",
		                 index, memory_name(r->memory));
	if (r->host_addr || r->flags & POSTCOPY_REGION_PRIVATE)
		return error_set(err, -EINVAL,
		                 "region %u: asked for, and %s: it is a file, and nothing else",
		                 index, r->host_addr ? "with a host address" : "private");
	return 0;
}

/* @before: the region before it; NULL: it is the first. */
static int check_name(uint32_t index, const struct region *r, const struct region *before,
                      struct error *err)
{
	if (before && !*before->name != !*r->name)
		return error_set(err, -EINVAL,
		                 "region %u: %s; all of a guest's regions have one, or "
		                 "none has",
		                 index, *r->name ? "it has a name" : "it has no name");
	for (const char *c = r->name; *c; c++)
		if (*c < ' ' || *c > '~')
			return error_set(err, -EINVAL,
			                 "region %u: its name is not of printable ASCII", index);
	if (before && *r->name && strcmp(before->name, r->name) >= 0)
		return error_set(
		        err, -EINVAL,
		        "region %u: its name, \"%s\", does not come after \"%s\": names are "
		        "unique, and in their order",
		        index, r->name, before->name);
	return 0;
}

int region_table_add(struct region_table *table, const struct region *region, struct error *err)
{
	uint32_t index = table->n;
	struct region *added;
	int rc;

	if (index == REGIONS_MAX)
		return error_set(err, -E2BIG, "more than %u regions", REGIONS_MAX);
	rc = check_region(index, region, err);
	if (!rc)
		rc = check_asked(index, region, index ? &table->regions[index - 1] : NULL, err);
	if (!rc)
		rc = check_name(index, region, index ? &table->regions[index - 1] : NULL, err);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < index; i++) {
		const struct region *other = &table->regions[i];

		if (ranges_overlap(region->guest_phys_addr, region->size, other->guest_phys_addr,
		                   other->size))
			return error_set(err, -EINVAL,
			                 "regions %u and %u overlap in guest physical memory", i,
			                 index);
		if (region->host_addr && other->host_addr &&
		    ranges_overlap(region->host_addr, region->size, other->host_addr, other->size))
			return error_set(err, -EINVAL, "regions %u and %u overlap in host memory",
			                 i, index);
	}
	added = &table->regions[table->n++];
	*added = *region;
	added->units = region->size >> UNIT_SHIFT;
	added->words = (added->units + WORD_UNITS - 1) / WORD_UNITS;
	table->units += added->units;
	table->size_bytes += added->size;
	return 0;
}

static bool has_names(const struct region_table *table)
{
	return table->n && *table->regions[0].name;
}

/* "a, b, c", cut to what fits. */
static void list_names(const struct region_table *table, char *buf, size_t size)
{
	size_t len = 0;

	for (uint32_t i = 0; i < table->n && len < size; i++)
		len += (size_t)snprintf(buf + len, size - len, "%s%s", i ? ", " : "",
		                        table->regions[i].name);
	if (len >= size)
		memcpy(buf + size - 4, "...", 4);
}

/* Sorted, so that the same names are at the same places. */
static int same_names(const struct region_table *ours, const struct region_table *theirs,
                      struct error *err)
{
	char here[100], there[100];
	uint32_t i = 0;

	while (i < ours->n && i < theirs->n &&
	       !strcmp(ours->regions[i].name, theirs->regions[i].name)) {
		if (ours->regions[i].size != theirs->regions[i].size)
			return error_set(
			        err, -EINVAL,
			        "region \"%s\" has %#llx bytes here, %#llx on the other side",
			        ours->regions[i].name, (unsigned long long)ours->regions[i].size,
			        (unsigned long long)theirs->regions[i].size);
		i++;
	}
	if (i == ours->n && i == theirs->n)
		return 0;
	list_names(ours, here, sizeof here);
	list_names(theirs, there, sizeof there);
	return error_set(err, -EINVAL, "regions %s here, %s on the other side", here, there);
}

int region_table_same_guest(const struct region_table *ours, const struct region_table *theirs,
                            struct error *err)
{
	if (has_names(ours) && has_names(theirs))
		return same_names(ours, theirs, err);
	if (ours->n != theirs->n)
		return error_set(err, -EINVAL, "%u regions here, %u on the other side", ours->n,
		                 theirs->n);
	for (uint32_t i = 0; i < ours->n; i++) {
		const struct region *a = &ours->regions[i], *b = &theirs->regions[i];

		if (a->guest_phys_addr != b->guest_phys_addr || a->size != b->size)
			return error_set(
			        err, -EINVAL,
			        "region %u: %#llx+%#llx here, %#llx+%#llx on the other side", i,
			        (unsigned long long)a->guest_phys_addr, (unsigned long long)a->size,
			        (unsigned long long)b->guest_phys_addr,
			        (unsigned long long)b->size);
	}
	return 0;
}

int region_table_check_readable(const struct region_table *table, struct error *err)
{
	for (uint32_t i = 0; i < table->n; i++)
		if (table->regions[i].flags & POSTCOPY_REGION_PRIVATE)
			return error_set(
			        err, -EOPNOTSUPP,
			        "region %u is private guest memory (KVM memory "
			        "attributes), which the source host can't read; have the "
			        "guest share it, or migrate it by its platform's own means",
			        i);
	return 0;
}

uint64_t region_word_mask(const struct region *region, uint64_t word)
{
	uint64_t left = region->units - word * WORD_UNITS;

	return left >= WORD_UNITS ? UINT64_MAX : (1ull << left) - 1;
}
