/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a VMM's region table makes sense, told to the VMM before anything is sent
 * or registered. The daemon checks again: it does not trust this library.
 */
#ifndef LIBPOSTCOPY_TABLE_H
#define LIBPOSTCOPY_TABLE_H

#include <sys/types.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

/*
 * @pid: of the process whose memory it is; 0: ours
 *
 * Return: 0, or -EINVAL with the region and the reason in @err.
 */
int table_check(const struct postcopy_region *regions, size_t n_regions, pid_t pid,
                struct error *err);

/* "memfd", ...; "unknown memory" for what is none of them. */
const char *table_memory_name(enum postcopy_memory memory);

#endif
