/* SPDX-License-Identifier: Apache-2.0 */
/* What QEMU's monitor for people has said: 7.2.22, 10.0.13 and 11.1.3 of Debian. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "qemu/ramblock.h"

#define N(list) (sizeof(list) / sizeof *(list))

static const char ramblock_7_2[] =
        "              Block Name    PSize              Offset               Used              "
        "Total\r\n"
        "                    ram0    4 KiB  0x0000000000000000 0x0000000008000000 "
        "0x0000000008000000\r\n"
        "   0000:00:02.0/vga.vram    4 KiB  0x0000000008080000 0x0000000001000000 "
        "0x0000000001000000\r\n"
        "    /rom@etc/acpi/tables    4 KiB  0x00000000090c0000 0x0000000000020000 "
        "0x0000000000200000\r\n"
        "                 pc.bios    4 KiB  0x0000000008000000 0x0000000000040000 "
        "0x0000000000040000\r\n";

/* 11.1 says the same. */
static const char ramblock_10_0[] =
        "              Block Name    PSize              Offset               Used              "
        "Total                HVA  RO\r\n"
        "                    ram0    2 MiB  0x0000000000000000 0x0000000008000000 "
        "0x0000000008000000 0x00007f0047fff000  rw\r\n"
        "    /rom@etc/acpi/tables    4 KiB  0x00000000090c0000 0x0000000000020000 "
        "0x0000000000200000 0x00007f0094c00000  ro\r\n";

static const char flat_view[] =
        "FlatView #0\r\n"
        " AS \"I/O\", root: io\r\n"
        " Root memory region: io\r\n"
        "  0000000000000000-0000000000000007 (prio 0, ram): ram0 @0000000000000123\r\n"
        "\r\n"
        "FlatView #1\r\n"
        " AS \"memory\", root: system\r\n"
        " AS \"cpu-memory-0\", root: system\r\n"
        " Root memory region: system\r\n"
        "  0000000000000000-000000000009ffff (prio 0, ram): ram01\r\n"
        "  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r\n"
        "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\r\n"
        "  0000000000100000-0000000007ffffff (prio 0, ram): ram0 @0000000000100000 KVM\r\n"
        "  0000000100000000-000000013fffffff (prio 0, ram): high KVM\r\n"
        "\r\n"
        "FlatView #2\r\n"
        " AS \"VGA\", root: bus master container\r\n"
        "  0000000000000000-000000000009ffff (prio 0, ram): other\r\n";

static void blocks_of_7_2_have_no_address(void **state)
{
	struct ramblock list[8];
	struct error err = ERROR_INIT;
	size_t n = 0;

	(void)state;
	assert_int_equal(ramblock_parse(ramblock_7_2, list, N(list), &n, &err), 0);
	assert_int_equal(n, 4);
	assert_string_equal(list[0].name, "ram0");
	assert_int_equal(list[0].page_size, 4096);
	assert_int_equal(list[0].total, 128 << 20);
	assert_int_equal(list[0].host_addr, 0);
	assert_string_equal(list[1].name, "0000:00:02.0/vga.vram");
	assert_int_equal(list[2].used, 0x20000);
	assert_int_equal(list[2].total, 0x200000);
}

static void blocks_of_10_0_say_where_they_are(void **state)
{
	struct ramblock list[8];
	struct error err = ERROR_INIT;
	size_t n = 0;

	(void)state;
	assert_int_equal(ramblock_parse(ramblock_10_0, list, N(list), &n, &err), 0);
	assert_int_equal(n, 2);
	assert_int_equal(list[0].page_size, 2 << 20);
	assert_int_equal(list[0].host_addr, 0x7f0047fff000);
	assert_int_equal(list[1].host_addr, 0x7f0094c00000);
}

static void what_is_not_known_is_told(void **state)
{
	static const char *const texts[] = {
		"unknown command: 'info ramblock'\r\n",
		"Block Name\r\nram0\r\n",
		"Block Name\r\nram0 4 KiB 0x0 0x10\r\n",
		"Block Name\r\nram0 4 KB 0x0 0x10 0x10\r\n",
		"Block Name\r\nram0 3 KiB 0x0 0x10 0x10\r\n",
		"Block Name\r\nram0 4 KiB 0x0 0x20 0x10\r\n",
		"",
	};
	struct ramblock list[2];
	size_t n = 77;

	(void)state;
	for (size_t i = 0; i < N(texts); i++) {
		struct error err = ERROR_INIT;

		assert_int_equal(ramblock_parse(texts[i], list, N(list), &n, &err), -EPROTO);
		assert_int_equal(n, 77);
		assert_true(*err.text);
	}
	assert_int_equal(ramblock_parse(ramblock_7_2, list, N(list), &n, NULL), -E2BIG);
}

static void a_block_is_found_in_the_view_of_the_vcpus(void **state)
{
	uint64_t gpa = 0, offset = 0;

	(void)state;
	assert_int_equal(flatview_find(flat_view, "ram0", &gpa, &offset), 0);
	assert_int_equal(gpa, 0x100000);
	assert_int_equal(offset, 0x100000);
	assert_int_equal(flatview_find(flat_view, "high", &gpa, &offset), 0);
	assert_int_equal(gpa, 4ull << 30);
	assert_int_equal(offset, 0);
	assert_int_equal(flatview_find(flat_view, "other", &gpa, &offset), -ENOENT);
	assert_int_equal(flatview_find(flat_view, "ram", &gpa, &offset), -ENOENT);
	assert_int_equal(flatview_find(flat_view, "pc.rom", &gpa, &offset), -ENOENT);
}

static void an_address_is_that_blocks(void **state)
{
	static const char answer[] = "Host virtual address for 0x0 (ram0) is 0x7ff45ffff000\r\n";
	uint64_t addr = 0;

	(void)state;
	assert_int_equal(gpa2hva_parse(answer, "ram0", &addr), 0);
	assert_int_equal(addr, 0x7ff45ffff000);
	assert_int_equal(gpa2hva_parse(answer, "ram1", &addr), -EPROTO);
	assert_int_equal(gpa2hva_parse("No memory is mapped at address 0x0\r\n", "ram0", &addr),
	                 -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocks_of_7_2_have_no_address),
		cmocka_unit_test(blocks_of_10_0_say_where_they_are),
		cmocka_unit_test(what_is_not_known_is_told),
		cmocka_unit_test(a_block_is_found_in_the_view_of_the_vcpus),
		cmocka_unit_test(an_address_is_that_blocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
