/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory, as the daemon sees it.
 *
 * Theory of operation
 * -------------------
 * A guest is a table of regions: contiguous ranges of guest physical memory, each
 * of one kind of memory and one page size. All state and all traffic count in units
 * of 4 KiB whatever the page size is; a host page is resolved when all of its units
 * are there. 64 units in a row, aligned, are a word: one uint64_t of each bitmap.
 *
 *   region.h      the table and its checks: nothing from outside is used before it
 *   page_state.h  what has arrived: claimed, present, wanted
 *   descriptor.h  what a descriptor from outside is, before it is used
 *   inspect.h     what a VMM's own mappings tell, where we may look
 *   memory.h      the memory behind a region: reading it and filling it
 *   dirty_log.h   what a running source guest has written
 *   addrmap.h     where a region is mapped in the VMM, as it moves
 *   probe.h       what this kernel can do, found by doing it
 */
#ifndef MEM_REGION_H
#define MEM_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

#define UNIT_SHIFT 12
#define UNIT_BYTES (1u << UNIT_SHIFT)
#define WORD_UNITS 64u
#define WORD_BYTES ((uint64_t)WORD_UNITS * UNIT_BYTES)

#define REGIONS_MAX POSTCOPY_REGIONS_MAX
/* Those that the daemon hears of: POSTCOPY_REGION_BOUND is between a VMM and the library. */
#define REGION_FLAGS (POSTCOPY_REGION_PRIVATE | POSTCOPY_REGION_ASKED)
/* No guest is larger: 52 bits of physical address. */
#define GUEST_BYTES_MAX (1ull << 52)

struct region {
	enum postcopy_memory memory;
	uint32_t flags;                          /* POSTCOPY_REGION_* */
	uint64_t guest_phys_addr;                /* bytes */
	uint64_t size;                           /* bytes, multiple of page_size */
	uint64_t page_size;                      /* bytes */
	uint64_t host_addr;                      /* in the VMM; 0 in a table that a peer sent */
	uint64_t fd_offset;                      /* bytes */
	uint32_t uffd_mode;                      /* UFFDIO_REGISTER_MODE_*, destination only */
	char name[POSTCOPY_REGION_NAME_MAX + 1]; /* what its VMM calls it; empty: it has none */
	uint64_t units;                          /* derived: size / UNIT_BYTES */
	uint64_t words;                          /* derived: units / WORD_UNITS, rounded up */
};

struct region_table {
	uint32_t n;
	struct region regions[REGIONS_MAX];
	uint64_t units;      /* of all regions */
	uint64_t size_bytes; /* of all regions */
};

/*
 * region_table_add() - check a region and append it
 *
 * Names are all there or none, and come in their order (strcmp()): so they are unique, and two
 * tables with the same names have the same order.
 *
 * @region: all but the derived members; @region->host_addr may be 0 (not mapped)
 *
 * Return: 0; -EINVAL with @err naming the region by its index and the member that is
 * wrong; -E2BIG where the table is full. The table is unchanged on failure.
 */
int region_table_add(struct region_table *table, const struct region *region, struct error *err);

/*
 * region_table_same_guest() - do two tables describe the same guest memory?
 *
 * Kind, page size and host address may differ; number, order, guest physical address
 * and size may not.
 *
 * Return: 0 or -EINVAL with @err naming the first difference ("here" is @ours).
 */
int region_table_same_guest(const struct region_table *ours, const struct region_table *theirs,
                            struct error *err);

/* Whether a destination's VMM asks for each page; all of its regions are flagged so then. */
static inline bool region_table_is_asked(const struct region_table *table)
{
	return table->n && table->regions[0].flags & POSTCOPY_REGION_ASKED;
}

/*
 * region_table_check_readable() - can all of a guest's memory be copied?
 *
 * Return: 0, or -EOPNOTSUPP with @err naming the first region that can't.
 */
int region_table_check_readable(const struct region_table *table, struct error *err);

/* The units that exist in a word of a region: all ones but for a last, partial word. */
uint64_t region_word_mask(const struct region *region, uint64_t word);

static inline uint64_t region_units_per_page(const struct region *region)
{
	return region->page_size >> UNIT_SHIFT;
}

/*
 * Private memory of huge pages: UFFDIO_COPY alone fills it, and a whole page at a time. So its
 * units gather in a file beside it until a page is whole (mem/memory.h).
 */
static inline bool region_is_staged(const struct region *region)
{
	return region->memory == POSTCOPY_MEMORY_ANONYMOUS && region->page_size != UNIT_BYTES;
}

/* Of ranges whose ends don't overflow. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

const char *memory_name(enum postcopy_memory memory);

#endif
