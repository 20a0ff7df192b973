// SPDX-License-Identifier: Apache-2.0
/*
 * The guest for KVM where KVM runs no Linux: one vCPU that passes over all its memory (pattern.h).
 * It says on the serial port what tests/vmms/guest/linux-init.c says: ready, pass, bad.
 */
#include <stddef.h>

#include "ctl/guest/pattern.h"

#define SERIAL_PORT 0x3f8
/* what lies below: firmware, this program */
#define FIRST_PAGE (4 * 1024 * 1024 / PAGE_BYTES)
#define LAST_MAPPED_PAGE (1024 * 1024 * 1024 / PAGE_BYTES)
#define KIB_ABOVE_1_MIB_TO_PAGES(kib) (((kib) + 1024) / 4)

_Noreturn void main(uint32_t mem_upper_kib);

static _Alignas(PAGE_BYTES) volatile uint64_t progress;

static void put(char c)
{
	__asm__ volatile("outb %0, %1" : : "a"(c), "Nd"((uint16_t)SERIAL_PORT));
}

static void say(const char *text)
{
	while (*text)
		put(*text++);
}

static void say_number(uint64_t x, unsigned int base)
{
	char digits[24];
	size_t n = 0;

	do
		digits[n++] = "0123456789abcdef"[x % base];
	while (x /= base);
	while (n)
		put(digits[--n]);
}

static void say_bad(uint64_t page, uint64_t word, uint64_t holds, uint64_t wanted)
{
	say("bad 0 page ");
	say_number(page, 10);
	say(" word ");
	say_number(word, 10);
	say(" holds 0x");
	say_number(holds, 16);
	say(" not 0x");
	say_number(wanted, 16);
	say("\n");
}

static uint64_t pass(uint64_t n, uint64_t last_page)
{
	uint64_t bad = 0;

	for (uint64_t page = FIRST_PAGE; page < last_page; page++) {
		uint64_t *p = (uint64_t *)(page * PAGE_BYTES);
		uint64_t generation = generation_in_pass(page, n);
		uint64_t word = check_page(p, page, generation);

		if (word < PAGE_WORDS && bad++ < 8)
			say_bad(page, word, p[word], page_word(page, generation, word));
		if (is_rewritten(page))
			write_page(p, page, generation + 1);
		progress++;
	}
	return bad;
}

_Noreturn void main(uint32_t mem_upper_kib)
{
	uint64_t last_page = KIB_ABOVE_1_MIB_TO_PAGES((uint64_t)mem_upper_kib), bad = 0;

	if (last_page > LAST_MAPPED_PAGE)
		last_page = LAST_MAPPED_PAGE;
	for (uint64_t page = FIRST_PAGE; page < last_page; page++)
		write_page((uint64_t *)(page * PAGE_BYTES), page, 1);
	say("ready 1 workers ");
	say_number(last_page - FIRST_PAGE, 10);
	say(" pages progress 0x");
	say_number((uintptr_t)&progress, 16);
	say("\n");
	for (uint64_t n = 1;; n++) {
		bad += pass(n, last_page);
		say("pass 0 ");
		say_number(n, 10);
		say(" pages ");
		say_number(last_page - FIRST_PAGE, 10);
		say(" bad ");
		say_number(bad, 10);
		say("\n");
	}
}
