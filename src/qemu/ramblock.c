/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/ramblock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LINE_BYTES 512

/* The next line into @line, without its end. Return: whether there was one. */
static bool next_line(const char **text, char line[LINE_BYTES])
{
	size_t len = strcspn(*text, "\n");
	size_t kept = len < LINE_BYTES ? len : LINE_BYTES - 1;

	if (!**text)
		return false;
	memcpy(line, *text, kept);
	if (kept && line[kept - 1] == '\r')
		kept--;
	line[kept] = 0;
	*text += len + ((*text)[len] == '\n');
	return true;
}

/* "                ram0    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
 * 0x00007f00..  rw" */
static bool parse_line(const char *line, struct ramblock *b)
{
	uint64_t size, offset;
	char unit[8];
	int shift, n;

	*b = (struct ramblock){ 0 };
	n = sscanf(line,
	           " %255s %" SCNu64 " %7s 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64 " 0x%" SCNx64,
	           b->name, &size, unit, &offset, &b->used, &b->total, &b->host_addr);
	if (n < 6)
		return false;
	shift = !strcmp(unit, "B")     ? 0
	        : !strcmp(unit, "KiB") ? 10
	        : !strcmp(unit, "MiB") ? 20
	        : !strcmp(unit, "GiB") ? 30
	                               : -1;
	b->page_size = shift < 0 ? 0 : size << shift;
	return b->page_size && !(b->page_size & (b->page_size - 1)) && b->used <= b->total;
}

int ramblock_parse(const char *text, struct ramblock *list, size_t max, size_t *ret_n,
                   struct error *err)
{
	char line[LINE_BYTES];
	bool head = false;
	size_t n = 0;

	while (next_line(&text, line)) {
		struct ramblock b;

		if (!line[strspn(line, " ")])
			continue;
		if (!head) {
			head = strstr(line, "Block Name") != NULL;
			if (!head)
				break;
			continue;
		}
		if (!parse_line(line, &b))
			return error_set(err, -EPROTO,
			                 "QEMU's \"info ramblock\" has a line that is not known: "
			                 "\"%s\"",
			                 line);
		if (n == max)
			return error_set(err, -E2BIG, "QEMU has more than %zu RAM blocks", max);
		list[n++] = b;
	}
	if (!head)
		return error_set(err, -EPROTO, "QEMU does not know \"info ramblock\"");
	*ret_n = n;
	return 0;
}

/* "  0000000000100000-0000000007ffffff (prio 0, ram): ram0 @0000000000100000 KVM" */
static bool parse_piece(const char *line, const char *block, uint64_t *ret_gpa,
                        uint64_t *ret_offset)
{
	size_t len = strlen(block);
	const char *name;
	uint64_t gpa, end;

	if (sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio ", &gpa, &end) != 2)
		return false;
	name = strstr(line, "ram): ");
	if (!name)
		return false;
	name += strlen("ram): ");
	if (strncmp(name, block, len) || (name[len] && name[len] != ' '))
		return false;
	*ret_offset = 0;
	(void)sscanf(name + len, " @%" SCNx64, ret_offset);
	*ret_gpa = gpa;
	return true;
}

/* Of the view that the vCPUs and "gpa2hva" have. */
int flatview_find(const char *text, const char *block, uint64_t *ret_gpa, uint64_t *ret_offset)
{
	static const char memory[] = " AS \"memory\", root: system";
	char line[LINE_BYTES];
	bool inside = false;

	while (next_line(&text, line)) {
		if (!strncmp(line, "FlatView #", strlen("FlatView #")))
			inside = false;
		else if (!strncmp(line, memory, strlen(memory)))
			inside = true;
		else if (inside && parse_piece(line, block, ret_gpa, ret_offset))
			return 0;
	}
	return -ENOENT;
}

/* "Host virtual address for 0x0 (ram0) is 0x7ff45ffff000" */
int gpa2hva_parse(const char *text, const char *block, uint64_t *ret_addr)
{
	char name[RAMBLOCK_NAME_BYTES];
	uint64_t gpa, addr;

	if (sscanf(text, "Host virtual address for 0x%" SCNx64 " (%255[^)]) is 0x%" SCNx64, &gpa,
	           name, &addr) != 3 ||
	    strcmp(name, block))
		return -EPROTO;
	*ret_addr = addr;
	return 0;
}
