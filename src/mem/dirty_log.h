/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which units of a running source guest's memory were written to.
 *
 * Theory of operation
 * -------------------
 * While the guest still runs here, its pages are copied over and over. What was written since it
 * was copied is told by a bitmap of one bit a unit, region after region, in a memfd:
 *
 *   by the VMM     it sets bits from KVM's dirty log, from its devices, and whatever else writes;
 *                  when it is asked it has set all that was written until then (postcopy.h).
 *   by the kernel  the guest's mapping is write-protected by a userfaultfd that lets each write
 *                  pass and remembers it (WP_ASYNC); PAGEMAP_SCAN tells which, and protects them
 *                  again, in one step for each page (Linux 6.7). We set the bits. It sees what
 *                  writes by that mapping, KVM's vCPUs too; it sees neither a pwrite(), nor another
 *                  process's mapping, nor what is written to pinned pages, nor a hole that is
 *                  punched into shared memory.
 *
 * Clear before read: a bit is cleared here, and the page protected again, before the unit is said
 * to be dirty, and so before anybody reads it. What is written while it is read is in the next
 * harvest. A read may be torn: only what is clean in the last harvest is the guest's.
 *
 * The last harvest comes when the guest stands still, and nothing is cleared any more: it may be
 * asked for any number of times, also by another process of the daemon, that has the memfd. Where
 * it can't be had, for the VMM has died or the process before was killed within it, all is dirty:
 * that costs bandwidth only.
 *
 * Threads: harvests are taken by one thread at a time; dirty_log_stop() may come from another. All
 * of them may wait for the VMM's memory map, which is not for the loop; but for dirty_log_new().
 */
#ifndef MEM_DIRTY_LOG_H
#define MEM_DIRTY_LOG_H

#include "mem/region.h"

enum dirty_log_how {
	DIRTY_LOG_BY_VMM = 1,
	DIRTY_LOG_BY_KERNEL = 2,
};

/* Which descriptors a log has: of the VMM; the bitmap of ours where we set the bits. */
enum dirty_log_fd {
	DIRTY_LOG_FD_BITMAP,
	DIRTY_LOG_FD_UFFD,    /* by the kernel: of the VMM's process, with WP_ASYNC */
	DIRTY_LOG_FD_PAGEMAP, /* and its /proc/PID/pagemap */
	DIRTY_LOG_FDS,
};

struct dirty_log;

/* Bytes of the memfd: one bit a unit, each region begins with a word of its own. */
uint64_t dirty_log_bytes(const struct region_table *table);

/*
 * dirty_log_new() - from what a VMM hands over, or another process has left
 * @table: copied
 * @fds: by enum dirty_log_fd, -1 for none; taken over on success only. By the kernel a bitmap of -1
 *       is made here.
 *
 * Return: 0; -EINVAL, -EOPNOTSUPP with @err saying what is wrong with a descriptor; -errno.
 */
int dirty_log_new(const struct region_table *table, enum dirty_log_how how,
                  const int fds[DIRTY_LOG_FDS], struct dirty_log **ret, struct error *err);

/*
 * What dirty_log_start() has begun goes on where somebody else has the userfaultfd still: the
 * store, for another process. NULL is allowed.
 */
struct dirty_log *dirty_log_free(struct dirty_log *log);

const struct region_table *dirty_log_table(const struct dirty_log *log);

enum dirty_log_how dirty_log_how(const struct dirty_log *log);

/* Borrowed, for the store; -1 where it has none. */
int dirty_log_fd(const struct dirty_log *log, enum dirty_log_fd which);

/*
 * dirty_log_start() - from here on what is written is noted, and what was before is forgotten
 *
 * By the VMM: before it is asked to begin. Return: 0; -EOPNOTSUPP, -ESRCH and others with @err set.
 */
int dirty_log_start(struct dirty_log *log, struct error *err);

/* Bring the bitmap up to date. By the VMM: it has just done so. Return: 0 or -errno with @err. */
int dirty_log_harvest(struct dirty_log *log, struct error *err);

/* The same for the last time, of a guest that stands still. It can't fail. */
void dirty_log_finish(struct dirty_log *log);

/* Nothing is protected any more, and the guest runs as if nothing had been; also after another
 * process had begun it. */
void dirty_log_stop(struct dirty_log *log);

/*
 * dirty_log_take() - what was harvested of a region: a bit a unit
 * @keep: it is the last harvest: another may ask for it again
 *
 * Return: the region's words, valid until they are taken again; no bit is beyond its units.
 */
const uint64_t *dirty_log_take(struct dirty_log *log, uint32_t region, bool keep);

#endif
