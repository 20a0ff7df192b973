/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of guest memory are poisoned in the VMM's process (UFFDIO_POISON).
 *
 * The mark lies in that process's page table and nowhere else: read by the memory's descriptor
 * such a page is a hole, zeroes. A guest that came here by a migration that lost pages, and moves
 * on, must not find zeroes there.
 */
#ifndef LIBPOSTCOPY_POISON_H
#define LIBPOSTCOPY_POISON_H

#include <sys/types.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

/*
 * poison_find() - as a sealed memfd of records (libpostcopy/poison_wire.h)
 * @pid: the VMM; 0: this process
 * @ret_fd: -1 where there are none
 *
 * Walks the page table (PAGEMAP_SCAN, Linux 6.7; before that none are found): off the downtime.
 * Anonymous memory is left out: reading it fails where it is poisoned.
 *
 * Return: 0; -E2BIG or the errno of what failed, with @err set.
 */
int poison_find(const struct postcopy_region *regions, size_t n_regions, pid_t pid, int *ret_fd,
                struct error *err);

#endif
