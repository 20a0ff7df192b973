/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where guest memory is mapped in the VMM, as it moves.
 *
 * At attach each region is one piece. munmap() of part of it cuts a piece, mremap()
 * moves one; the userfaultfd's events tell. A fault's address is translated by it to
 * (region, offset), and a range of a region back to host addresses.
 *
 * Threads: none of its own; the owner holds a lock around it (fault/resolver.h).
 */
#ifndef MEM_ADDRMAP_H
#define MEM_ADDRMAP_H

#include "mem/region.h"

#define ADDRMAP_PIECES_MAX (4 * REGIONS_MAX)

struct addrmap_piece {
	uint64_t host_addr;
	uint64_t len;    /* bytes */
	uint64_t offset; /* bytes into the region */
	uint32_t region;
};

struct addrmap {
	uint32_t n;
	struct addrmap_piece pieces[ADDRMAP_PIECES_MAX]; /* in no order */
};

/* Every region of @table at its host_addr. */
void addrmap_init(struct addrmap *map, const struct region_table *table);

/* The piece that @host_addr lies in, or NULL. Valid until the map changes. */
const struct addrmap_piece *addrmap_find(const struct addrmap *map, uint64_t host_addr);

/*
 * addrmap_locate() - where a stretch of a region is mapped
 * @offset, @len: bytes of the region
 * @ret_host_addr: of the first mapped byte at or after @offset
 * @ret_skip: how many bytes before it aren't mapped
 *
 * Return: how many bytes from there on are mapped in one piece, at most up to
 * @offset + @len; 0 where nothing of the stretch is mapped.
 */
uint64_t addrmap_locate(const struct addrmap *map, uint32_t region, uint64_t offset, uint64_t len,
                        uint64_t *ret_host_addr, uint64_t *ret_skip);

/* Of a region only its bytes [begin, end). */
void addrmap_keep(struct addrmap *map, uint32_t region, uint64_t begin, uint64_t end);

/* munmap(): forget [start, end). Return: 0 or -ENOSPC where there are too many pieces. */
int addrmap_unmap(struct addrmap *map, uint64_t start, uint64_t end);

/* mremap(): [from, from + len) is now at @to; what was there is gone. Return: as above. */
int addrmap_move(struct addrmap *map, uint64_t from, uint64_t to, uint64_t len);

#endif
