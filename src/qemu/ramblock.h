/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU's monitor for people says of RAM. No command of QMP has host addresses, so these texts
 * are read; what is read wrongly is found by /proc/PID/maps (qemu/blocks.h). QEMU 10.0 and later
 * print a block's host address; of 7.2 it is where the flat view has the block, and "gpa2hva".
 */
#ifndef QEMU_RAMBLOCK_H
#define QEMU_RAMBLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

/* As a region's name may have. */
#define RAMBLOCK_NAME_BYTES 256

struct ramblock {
	char name[RAMBLOCK_NAME_BYTES];
	uint64_t page_size;
	uint64_t used;      /* bytes */
	uint64_t total;     /* bytes that it may grow to; for RAM the same */
	uint64_t host_addr; /* 0: not said */
};

/*
 * ramblock_parse() - "info ramblock"
 *
 * Return: 0; -EPROTO with @err naming the line; -E2BIG beyond @max.
 */
int ramblock_parse(const char *text, struct ramblock *list, size_t max, size_t *ret_n,
                   struct error *err);

/*
 * flatview_find() - "info mtree -f": where a block is in guest memory
 * @ret_gpa: of a piece of it, and
 * @ret_offset: where in the block that begins
 *
 * Return: 0, or -ENOENT.
 */
int flatview_find(const char *text, const char *block, uint64_t *ret_gpa, uint64_t *ret_offset);

/* "gpa2hva", of that block. Return: 0, or -EPROTO. */
int gpa2hva_parse(const char *text, const char *block, uint64_t *ret_addr);

#endif
