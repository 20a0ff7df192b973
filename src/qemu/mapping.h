/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's memory as the kernel has it: /proc/PID/maps and /proc/PID/fd. */
#ifndef QEMU_MAPPING_H
#define QEMU_MAPPING_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "util/error.h"

#define MAPPING_PATH_BYTES 256

struct mapping {
	bool is_shared;
	uint64_t dev; /* as stat(2) has it */
	uint64_t ino;
	uint64_t offset; /* into the file, of the address that was asked for */
	char path[MAPPING_PATH_BYTES];
};

/*
 * mapping_search() - what lies at [addr, addr + size): one file, without a hole
 * @maps: a /proc/PID/maps
 *
 * Return: 0; -ENOENT where not all of it is mapped; -EXDEV where it is not one mapping of one file.
 */
int mapping_search(FILE *maps, uint64_t addr, uint64_t size, struct mapping *ret);
int mapping_find(pid_t pid, uint64_t addr, uint64_t size, struct mapping *ret, struct error *err);

/*
 * mapping_open() - a copy of a descriptor of its file that the process has open
 *
 * As that is: for writing, too, where it has one that is. What the process may not write, whoever
 * asks for it, root say, does not write for it.
 *
 * Return: the descriptor; or -errno with @err.
 */
int mapping_open(pid_t pid, int pidfd, const struct mapping *m, struct error *err);

/*
 * mapping_find_other() - another process that has this file mapped
 * @ret_name: what it is called
 *
 * Return: its pid, 0 where there is none. Of those that we may not look at we know nothing.
 */
pid_t mapping_find_other(pid_t pid, const struct mapping *m, char ret_name[32]);

/*
 * descriptor_number() - which of its descriptors is this: the first whose /proc/PID/fd link is
 * @link, or begins with it where @is_prefix
 *
 * Return: the number, or -ENOENT; -errno where we may not look.
 */
int descriptor_number(pid_t pid, const char *link, bool is_prefix);

/* Its descriptor @number, in this process as well (pidfd_getfd(2)). Return: it, or -errno. */
int descriptor_copy(int pidfd, int number);

#endif
