/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CTL_GUEST_PATTERN_H
#define CTL_GUEST_PATTERN_H

/*
 * What the guests write into their pages, and how they look at them.
 *
 * A page's content says which page it is and of which generation. A pass looks at every word of
 * every page, and then writes every second page anew: a page that was lost, is old, or is another
 * one's, is seen by the next pass.
 */
#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

static inline uint64_t page_word(uint64_t page, uint64_t generation, uint64_t word)
{
	uint64_t x = ((page << 24) + generation) * 0x9e3779b97f4a7c15 + word * 0xbf58476d1ce4e5b9;

	return x ^ x >> 29;
}

static inline void write_page(uint64_t *p, uint64_t page, uint64_t generation)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		p[i] = page_word(page, generation, i);
}

/* The first word that is wrong, or PAGE_WORDS. */
static inline uint64_t check_page(const uint64_t *p, uint64_t page, uint64_t generation)
{
	uint64_t i = 0;

	while (i < PAGE_WORDS && p[i] == page_word(page, generation, i))
		i++;
	return i;
}

static inline bool is_rewritten(uint64_t page)
{
	return page % 2 == 0;
}

/* Of which generation it is when pass @n, from 1, comes to it. */
static inline uint64_t generation_in_pass(uint64_t page, uint64_t n)
{
	return is_rewritten(page) ? n : 1;
}

#endif
