/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's RAM blocks, and how each of them moves.
 *
 * Theory of operation
 * -------------------
 * QEMU keeps the guest's memory in RAM blocks, each one mapping. With its capability
 * x-ignore-shared a migration of QEMU's own leaves out those that are a memory backend with
 * share=on of a named file (memory-backend-file; before 8.1 any file): their pages the daemon
 * moves, one region a block. All others (ROMs, video memory) are part of the vmstate, which travels
 * while the guest stands still; so a large one of these is a reason against.
 *
 * A block is a region as a whole, with the parts of it that no guest address leads to: QEMU itself
 * may use them. Its name is the region's. Where it is mapped QEMU says; that this is true, and
 * which file it is, /proc/PID/maps does.
 */
#ifndef QEMU_BLOCKS_H
#define QEMU_BLOCKS_H

#include <postcopy/postcopy.h>

#include "qemu/mapping.h"
#include "qemu/qmp.h"
#include "qemu/ramblock.h"

#define BLOCKS_MAX 128
#define BLOCK_WHY_BYTES 240

enum block_way {
	BLOCK_MOVED,      /* page by page, by the daemon */
	BLOCK_IN_VMSTATE, /* small, by QEMU */
	BLOCK_REFUSED,    /* @why says why not */
};

struct block {
	struct ramblock ram;
	struct mapping mapping; /* MOVED */
	int fd;                 /* MOVED; else -1 */
	enum postcopy_memory memory;
	enum block_way way;
	char why[BLOCK_WHY_BYTES];
};

struct blocks {
	struct block list[BLOCKS_MAX];
	size_t n;
};

/*
 * blocks_read() - all of them
 *
 * A block that can't be moved is no failure: it says so itself.
 *
 * Return: 0; -errno with @err where QEMU's answers or /proc can't be read.
 */
int blocks_read(struct qmp *q, pid_t pid, int pidfd, struct blocks *ret, struct error *err);

void blocks_close(struct blocks *b);

/*
 * blocks_regions() - those that are moved, as a table for libpostcopy
 *
 * Guest physical addresses are made up, in the order of names: these are the same on both sides.
 */
size_t blocks_regions(const struct blocks *b, struct postcopy_region ret[POSTCOPY_REGIONS_MAX]);

#endif
