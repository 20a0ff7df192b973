/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/image.h"

#include <string.h>

#include "minivmm/spare.h"

#define PTE_PRESENT (1ull << 0)
#define PTE_WRITE (1ull << 1)
#define PTE_USER (1ull << 2)
#define PTE_ACCESSED (1ull << 5)
#define PTE_DIRTY (1ull << 6)
#define PTE_HUGE (1ull << 7)
/* Accessed and dirty are set ahead, so that the processor never writes to these pages. */
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED)
#define PTE_2M (PTE_TABLE | PTE_DIRTY | PTE_HUGE)
#define BYTES_2M (2ull << 20)
#define BYTES_1G (1ull << 30)
#define TABLE_ENTRIES 512u

extern const uint8_t guest_code[], guest_code_end[];

static uint64_t round_up(uint64_t value, uint64_t to)
{
	return (value + to - 1) / to * to;
}

void image_layout(struct guest_boot *boot)
{
	uint64_t generations = boot->memory_bytes / GUEST_PAGE_BYTES * sizeof(uint32_t);

	boot->data_start = round_up(GUEST_GENERATIONS + generations, GUEST_DATA_ALIGN);
	boot->data_pages = (boot->memory_bytes - boot->data_start) / GUEST_PAGE_BYTES;
}

static void fill_tables(const struct guest_boot *boot, uint64_t addr, uint64_t *page)
{
	uint64_t gib = (addr - GUEST_PD) / GUEST_PAGE_BYTES;

	if (addr == GUEST_PML4) {
		page[0] = GUEST_PDPT | PTE_TABLE;
		return;
	}
	for (uint64_t i = 0; i < TABLE_ENTRIES; i++) {
		if (addr == GUEST_PDPT && i * BYTES_1G < boot->memory_bytes)
			page[i] = (GUEST_PD + i * GUEST_PAGE_BYTES) | PTE_TABLE;
		else if (addr != GUEST_PDPT && gib * BYTES_1G + i * BYTES_2M < boot->memory_bytes)
			page[i] = (gib * BYTES_1G + i * BYTES_2M) | PTE_2M;
	}
}

static uint64_t tables_end(const struct guest_boot *boot)
{
	return GUEST_PD + round_up(boot->memory_bytes, BYTES_1G) / BYTES_1G * GUEST_PAGE_BYTES;
}

/* What belongs at @addr, which is one of the host's pages. */
static void fill_page(const struct guest_boot *boot, uint64_t addr, void *page)
{
	uint64_t code_bytes = (uint64_t)(guest_code_end - guest_code);

	memset(page, 0, GUEST_PAGE_BYTES);
	if (addr >= GUEST_PML4 && addr < tables_end(boot)) {
		fill_tables(boot, addr, page);
	} else if (addr >= GUEST_CODE && addr < GUEST_CODE + code_bytes) {
		uint64_t left = GUEST_CODE + code_bytes - addr;

		memcpy(page, guest_code + (addr - GUEST_CODE),
		       left < GUEST_PAGE_BYTES ? left : GUEST_PAGE_BYTES);
	} else if (addr == GUEST_BOOT) {
		memcpy(page, boot, sizeof *boot);
	}
}

static void load_vcpu(const struct memory *m, const struct guest_boot *boot, unsigned int i)
{
	struct guest_vcpu *v = image_vcpu(m, i);

	v->index = i;
	v->first = boot->data_pages * i / boot->vcpus;
	v->pages = boot->data_pages * (i + 1) / boot->vcpus - v->first;
	v->first_bad = GUEST_NO_PAGE;
}

void image_load(const struct memory *m, const struct guest_boot *boot)
{
	for (uint64_t addr = 0; addr < GUEST_VCPU; addr += GUEST_PAGE_BYTES)
		fill_page(boot, addr, (char *)m->addr + addr);
	for (unsigned int i = 0; i < boot->vcpus; i++)
		load_vcpu(m, boot, i);
	spare_fill(m);
}

uint64_t image_check(const struct memory *m, const struct guest_boot *boot, uint64_t *ret_first_bad)
{
	_Alignas(8) uint8_t want[GUEST_PAGE_BYTES];
	uint64_t bad = 0;

	for (uint64_t addr = 0; addr < GUEST_VCPU; addr += GUEST_PAGE_BYTES) {
		fill_page(boot, addr, want);
		if (!memcmp(want, (char *)m->addr + addr, sizeof want))
			continue;
		if (!bad++)
			*ret_first_bad = addr / GUEST_PAGE_BYTES;
	}
	return bad;
}

unsigned int image_needed(const struct guest_boot *boot, struct image_range ret[IMAGE_NEEDED_MAX])
{
	uint64_t code_bytes = (uint64_t)(guest_code_end - guest_code);
	unsigned int n = 0;

	ret[n++] = (struct image_range){ GUEST_PML4, tables_end(boot) - GUEST_PML4 };
	ret[n++] = (struct image_range){ GUEST_CODE, round_up(code_bytes, GUEST_PAGE_BYTES) };
	ret[n++] = (struct image_range){ GUEST_BOOT, GUEST_PAGE_BYTES };
	for (unsigned int i = 0; i < boot->vcpus; i++) {
		ret[n++] = (struct image_range){
			GUEST_VCPU + i * GUEST_VCPU_STRIDE,
			round_up(sizeof(struct guest_vcpu), GUEST_PAGE_BYTES),
		};
		/* A stack grows down from the end of its place. */
		ret[n++] = (struct image_range){
			GUEST_STACK + (i + 1) * GUEST_STACK_STRIDE - GUEST_PAGE_BYTES,
			GUEST_PAGE_BYTES,
		};
	}
	return n;
}

struct image_range image_generations(const struct guest_boot *boot)
{
	return (struct image_range){
		GUEST_GENERATIONS,
		round_up(boot->memory_bytes / GUEST_PAGE_BYTES * sizeof(uint32_t), GUEST_PAGE_BYTES)
	};
}

uint64_t image_touched(const struct memory *m, unsigned int vcpus)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < vcpus; i++)
		sum += ((volatile struct guest_vcpu *)image_vcpu(m, i))->touched;
	return sum;
}

struct guest_vcpu *image_vcpu(const struct memory *m, unsigned int index)
{
	return (struct guest_vcpu *)((char *)m->addr + GUEST_VCPU + index * GUEST_VCPU_STRIDE);
}
