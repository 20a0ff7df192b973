/* SPDX-License-Identifier: Apache-2.0 */
/* What /proc/PID/maps says of a process's mappings. */
#ifndef UTIL_MAPS_H
#define UTIL_MAPS_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/*
 * maps_find_private() - a file's private mapping: what is written there is not in the file
 * @pid: 0 for this process
 * @dev, @ino: the file's
 * @ret_addr: where in [start, end) the first one begins
 *
 * Return: 0; -ENOENT where there is none; or the errno of opening it: this process may not look.
 */
int maps_find_private(pid_t pid, uint64_t start, uint64_t end, uint64_t dev, uint64_t ino,
                      uint64_t *ret_addr);

/* The same, of what is in such a file: files' names in it are of a VMM's choice. */
int maps_search(FILE *f, uint64_t start, uint64_t end, uint64_t dev, uint64_t ino,
                uint64_t *ret_addr);

#endif
