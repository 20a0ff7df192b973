/* SPDX-License-Identifier: Apache-2.0 */
/* The region table, from numbers as they come; the first byte of each region chooses its kind. */
#include "fuzz.h"

#include <string.h>

#include "mem/region.h"
#include "util/bytes.h"

/* u8 kind, u8 flags, u8 log2 of the page size, u8 ignored, then four u64. */
#define REGION_BYTES 36u

const unsigned int fuzz_rounds = 60000;

static bool overlap(uint64_t a, uint64_t b, uint64_t a_len, uint64_t b_len)
{
	return (a <= b && b - a < a_len) || (b <= a && a - b < b_len);
}

/* What all code behind the table relies on. */
static void check_table(const struct region_table *t)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < t->n; i++) {
		const struct region *a = &t->regions[i];
		uint64_t end;

		FUZZ_CHECK(a->page_size >= UNIT_BYTES && a->size && !(a->size % a->page_size));
		FUZZ_CHECK(!(a->guest_phys_addr % a->page_size));
		FUZZ_CHECK(!(a->host_addr % a->page_size) && !(a->fd_offset % a->page_size));
		FUZZ_CHECK(!__builtin_add_overflow(a->guest_phys_addr, a->size, &end));
		FUZZ_CHECK(!__builtin_add_overflow(a->host_addr, a->size, &end));
		FUZZ_CHECK(a->fd_offset <= INT64_MAX && a->fd_offset + a->size <= INT64_MAX);
		FUZZ_CHECK(a->size <= GUEST_BYTES_MAX && a->guest_phys_addr <= GUEST_BYTES_MAX);
		FUZZ_CHECK(a->words * WORD_UNITS >= a->units);
		FUZZ_CHECK(region_word_mask(a, a->words - 1));
		for (uint32_t j = 0; j < i; j++) {
			const struct region *b = &t->regions[j];

			FUZZ_CHECK(
			        !overlap(a->guest_phys_addr, b->guest_phys_addr, a->size, b->size));
			FUZZ_CHECK(!a->host_addr || !b->host_addr ||
			           !overlap(a->host_addr, b->host_addr, a->size, b->size));
		}
		bytes += a->size;
	}
	FUZZ_CHECK(t->n <= REGIONS_MAX && t->size_bytes == bytes);
	FUZZ_CHECK(t->units == bytes / UNIT_BYTES);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static struct region_table table, before;
	struct reader in = reader_init(data, size);

	memset(&table, 0, sizeof table);
	while ((size_t)(in.end - in.pos) >= REGION_BYTES) {
		const uint8_t *head = get_bytes(&in, 4);
		struct error err = ERROR_INIT;
		struct region r = {
			.memory = (enum postcopy_memory)head[0],
			.flags = head[1],
			.page_size = 1ull << head[2] % 64,
			.guest_phys_addr = get_u64(&in),
			.size = get_u64(&in),
			.host_addr = get_u64(&in),
			.fd_offset = get_u64(&in),
		};

		before = table;
		if (region_table_add(&table, &r, &err)) {
			FUZZ_CHECK(err.code < 0 && *err.text);
			FUZZ_CHECK(!memcmp(&before, &table, sizeof table));
		} else {
			FUZZ_CHECK(table.n == before.n + 1);
		}
	}
	check_table(&table);
	return 0;
}

static uint8_t *put_region(uint8_t *p, uint8_t kind, uint8_t shift, uint64_t index)
{
	*p++ = kind;
	*p++ = 0;
	*p++ = shift;
	*p++ = 0;
	p = put_u64(p, index << 31);
	p = put_u64(p, 1ull << 30);
	p = put_u64(p, 0x7f0000000000 + (index << 30));
	return put_u64(p, index << 30);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const unsigned int counts[] = { 1, 3, REGIONS_MAX, REGIONS_MAX + 3 };
	uint8_t *p = buf;

	if (i >= sizeof counts / sizeof *counts)
		return 0;
	for (unsigned int j = 0; j < counts[i]; j++)
		p = j % 3 == 1 ? put_region(p, POSTCOPY_MEMORY_HUGETLB, 30, j)
		               : put_region(p, POSTCOPY_MEMORY_MEMFD, UNIT_SHIFT, j);
	return (size_t)(p - buf);
}
