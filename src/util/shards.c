/* SPDX-License-Identifier: Apache-2.0 */
#include "util/shards.h"

/* No bound is finer: a transparent huge page; and 64 pages of 4 KiB, a word, fit into it. */
#define ALIGN_MIN (2ull << 20)

/* How many pieces a region has between which it may be cut; what is left over is the last one's. */
static uint64_t pieces(const struct shards_region *r, uint64_t *ret_bytes)
{
	*ret_bytes = r->page_size > ALIGN_MIN ? r->page_size : ALIGN_MIN;
	return r->size / *ret_bytes;
}

void shards_part(unsigned int n, const struct shards_region *r, unsigned int shard,
                 uint64_t *ret_begin, uint64_t *ret_end)
{
	uint64_t bytes, count = pieces(r, &bytes);

	if (count < n) {
		*ret_begin = 0;
		*ret_end = r->index % n == shard ? r->size : 0;
		return;
	}
	*ret_begin = count * shard / n * bytes;
	*ret_end = shard + 1 == n ? r->size : count * (shard + 1) / n * bytes;
}

unsigned int shards_of(unsigned int n, const struct shards_region *r, uint64_t offset)
{
	uint64_t bytes, count = pieces(r, &bytes), piece;

	if (n == 1)
		return 0;
	if (count < n)
		return r->index % n;
	piece = offset / bytes;
	/* The last piece that a shard has is below count * (shard + 1) / n, rounded down. */
	return piece < count ? (unsigned int)(((piece + 1) * n + count - 1) / count - 1) : n - 1;
}
