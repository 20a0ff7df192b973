/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/addrmap.h"

#include <errno.h>

void addrmap_init(struct addrmap *map, const struct region_table *table)
{
	map->n = 0;
	/* Where its VMM asks for pages, mapping them is the VMM's business. */
	if (region_table_is_asked(table))
		return;
	for (uint32_t i = 0; i < table->n; i++)
		map->pieces[map->n++] = (struct addrmap_piece){
			.host_addr = table->regions[i].host_addr,
			.len = table->regions[i].size,
			.region = i,
		};
}

const struct addrmap_piece *addrmap_find(const struct addrmap *map, uint64_t host_addr)
{
	for (uint32_t i = 0; i < map->n; i++) {
		const struct addrmap_piece *p = &map->pieces[i];

		if (host_addr >= p->host_addr && host_addr - p->host_addr < p->len)
			return p;
	}
	return NULL;
}

uint64_t addrmap_locate(const struct addrmap *map, uint32_t region, uint64_t offset, uint64_t len,
                        uint64_t *ret_host_addr, uint64_t *ret_skip)
{
	uint64_t end = offset + len;
	uint64_t best = end, best_len = 0;

	for (uint32_t i = 0; i < map->n; i++) {
		const struct addrmap_piece *p = &map->pieces[i];
		uint64_t first = p->offset > offset ? p->offset : offset;
		uint64_t last = p->offset + p->len < end ? p->offset + p->len : end;

		if (p->region != region || first >= last || first >= best)
			continue;
		best = first;
		best_len = last - first;
		*ret_host_addr = p->host_addr + (first - p->offset);
	}
	*ret_skip = best - offset;
	return best_len;
}

/* Return: false where nothing is left. */
static bool clip(struct addrmap_piece *p, uint64_t begin, uint64_t end)
{
	uint64_t first = p->offset > begin ? p->offset : begin;
	uint64_t last = p->offset + p->len < end ? p->offset + p->len : end;

	if (first >= last)
		return false;
	p->host_addr += first - p->offset;
	p->offset = first;
	p->len = last - first;
	return true;
}

void addrmap_keep(struct addrmap *map, uint32_t region, uint64_t begin, uint64_t end)
{
	for (uint32_t i = 0; i < map->n;) {
		if (map->pieces[i].region == region && !clip(&map->pieces[i], begin, end))
			map->pieces[i] = map->pieces[--map->n];
		else
			i++;
	}
}

/* Cut a piece in two at @at, which lies inside it. */
static int split(struct addrmap *map, uint32_t i, uint64_t at)
{
	struct addrmap_piece *p = &map->pieces[i];
	uint64_t head = at - p->host_addr;

	if (map->n == ADDRMAP_PIECES_MAX)
		return -ENOSPC;
	map->pieces[map->n++] = (struct addrmap_piece){
		.host_addr = at,
		.len = p->len - head,
		.offset = p->offset + head,
		.region = p->region,
	};
	p->len = head;
	return 0;
}

/* Have no piece reach across @at. */
static int split_at(struct addrmap *map, uint64_t at)
{
	for (uint32_t i = 0; i < map->n; i++) {
		const struct addrmap_piece *p = &map->pieces[i];

		if (at > p->host_addr && at - p->host_addr < p->len)
			return split(map, i, at);
	}
	return 0;
}

static bool within(const struct addrmap_piece *p, uint64_t start, uint64_t end)
{
	return p->host_addr >= start && p->host_addr < end;
}

int addrmap_unmap(struct addrmap *map, uint64_t start, uint64_t end)
{
	int rc = split_at(map, start);

	if (!rc)
		rc = split_at(map, end);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < map->n;) {
		if (within(&map->pieces[i], start, end))
			map->pieces[i] = map->pieces[--map->n];
		else
			i++;
	}
	return 0;
}

int addrmap_move(struct addrmap *map, uint64_t from, uint64_t to, uint64_t len)
{
	int rc = addrmap_unmap(map, to, to + len);

	if (!rc)
		rc = split_at(map, from);
	if (!rc)
		rc = split_at(map, from + len);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < map->n; i++)
		if (within(&map->pieces[i], from, from + len))
			map->pieces[i].host_addr += to - from;
	return 0;
}
