/* SPDX-License-Identifier: Apache-2.0 */
/* Which pages of another process are there: what it has mapped, or swapped out. */
#ifndef MEM_PAGEMAP_H
#define MEM_PAGEMAP_H

#include <stdint.h>
#include <sys/types.h>

/*
 * pagemap_find() - the first page of [start, end) that is there
 * @deadline_ns: where it takes longer, the search ends (thread_own_time_ns())
 * @ret_addr: its address
 *
 * Return: 0; -ENOENT where there is none; -EACCES where this process may not look; -ETIMEDOUT.
 */
int pagemap_find(pid_t pid, uint64_t start, uint64_t end, uint64_t deadline_ns, uint64_t *ret_addr);

#endif
