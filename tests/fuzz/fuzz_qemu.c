/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU's monitor for people says of its RAM, and what the kernel says of QEMU's mappings, in
 * which files have names of somebody's choice. The first byte chooses which.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>

#include "qemu/mapping.h"
#include "qemu/ramblock.h"

#define BLOCKS 8
#define ADDR 0x7f0000001000ull
#define SIZE 0x200000ull

const unsigned int fuzz_rounds = 100000;

static void check_blocks(const char *text)
{
	struct ramblock list[BLOCKS];
	size_t n = BLOCKS + 1;
	int rc = ramblock_parse(text, list, BLOCKS, &n, NULL);

	FUZZ_CHECK(rc == 0 || rc == -EPROTO || rc == -E2BIG);
	if (rc) {
		FUZZ_CHECK(n == BLOCKS + 1);
		return;
	}
	FUZZ_CHECK(n <= BLOCKS && strstr(text, "Block Name"));
	for (size_t i = 0; i < n; i++) {
		const struct ramblock *b = &list[i];

		FUZZ_CHECK(*b->name && strlen(b->name) < RAMBLOCK_NAME_BYTES);
		FUZZ_CHECK(b->page_size && !(b->page_size & (b->page_size - 1)));
		FUZZ_CHECK(b->used <= b->total);
	}
}

static void check_addresses(const char *text)
{
	uint64_t gpa = 1, offset = 2, addr = 3;

	if (flatview_find(text, "ram", &gpa, &offset))
		FUZZ_CHECK(gpa == 1 && offset == 2);
	else
		FUZZ_CHECK(strstr(text, "ram): ram"));
	if (gpa2hva_parse(text, "ram", &addr))
		FUZZ_CHECK(addr == 3);
	else
		FUZZ_CHECK(strstr(text, "(ram)"));
}

static void check_maps(const char *text, size_t size)
{
	FILE *f = fmemopen((void *)(uintptr_t)text, size, "r");
	struct mapping m = { .ino = 77 };
	int rc = mapping_search(f, ADDR, SIZE, &m);

	FUZZ_CHECK(rc == 0 || rc == -ENOENT || rc == -EXDEV);
	FUZZ_CHECK(!rc || m.ino == 77);
	FUZZ_CHECK(memchr(m.path, 0, sizeof m.path));
	fclose(f);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	char text[4096];

	if (size < 2 || size > sizeof text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = 0;
	if (data[0] % 3 == 0)
		check_blocks(text);
	else if (data[0] % 3 == 1)
		check_addresses(text);
	else
		check_maps(text, size - 1);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const seeds[] = {
		("\3"
		 "   Block Name    PSize    Offset    Used    Total    HVA  RO\r\n"
		 "   ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 "
		 "0x00007f0047fff000  rw\r\n"
		 "   vga    2 MiB  0x0000000008080000 0x0000000001000000 0x0000000001000000\r\n"),
		("\1"
		 "FlatView #1\r\n AS \"memory\", root: system\r\n Root memory region: system\r\n"
		 "  0000000000100000-0000000007ffffff (prio 0, ram): ram @0000000000100000 "
		 "KVM\r\n"),
		"\1Host virtual address for 0x0 (ram) is 0x7ff45ffff000\r\n",
		("\2"
		 "7f0000000000-7f0000101000 rw-s 00000000 00:1b 157    /dev/shm/a b\n"
		 "7f0000101000-7f0000400000 rw-s 00101000 00:1b 157    /dev/shm/a b\n"),
	};

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	memcpy(buf, seeds[i], strlen(seeds[i]));
	return strlen(seeds[i]);
}
