/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory behind a region.
 *
 * On the source it is only read. On the destination it is filled, behind the back of
 * the guest's registered mapping, through the descriptor or through a mapping of the
 * daemon's own (the alias), which no userfaultfd watches:
 *
 *   memory       source reads by      fill                            make a zero page
 *   memfd        pread()              pwrite(), or UFFDIO_COPY        UFFDIO_ZEROPAGE
 *                                     by the resolver
 *   hugetlb      pread()              memcpy to the alias             touch the alias
 *   guest_memfd  memcpy from alias    bulk: pwrite() where the        touch the alias
 *                                     kernel has it, else memcpy;
 *                                     fault: memcpy to the alias
 *   anonymous    pread() of the       UFFDIO_COPY, by the resolver    UFFDIO_ZEROPAGE
 *                VMM's /proc/PID/mem
 *   the same, of               memcpy to the alias of a file     UFFDIO_COPY from
 *   huge pages                 beside it (the stage)             the stage
 *   memfd that   pread()              bulk: pwrite(); fault: memcpy   nobody: a hole stays one
 *   is asked for                      to the alias
 *
 * pread() rather than a mapping on the source: a hole is read as zeroes without being
 * allocated, a truncated file is an error and not a signal, and the daemon's resident
 * size does not grow with the guest.
 *
 * A file that can't be sealed against truncation (of a tmpfs, of a hugetlbfs, a memfd without
 * MFD_ALLOW_SEALING) is filled through mappings only: UFFDIO_COPY and the alias, under the guard of
 * util/guard.h. What is cut off is lost, like memory that is broken.
 *
 * What a descriptor is was established before it is asked anything (mem/descriptor.h).
 *
 * Threads: after opening, all calls are safe from any thread; who may fill what is
 * page_state's business.
 */
#ifndef MEM_MEMORY_H
#define MEM_MEMORY_H

#include "mem/region.h"

struct memory;

/* What put the bytes in place. */
enum memory_fill {
	MEMORY_FILL_WRITE,  /* pwrite() */
	MEMORY_FILL_MEMCPY, /* through the alias */
	MEMORY_FILL_COPY,   /* UFFDIO_COPY: not here, the resolver does it */
};

/* Units filled, by what did it. */
struct memory_filled {
	uint64_t write;
	uint64_t memcpy;
};

/*
 * memory_open_source() - check a descriptor against its region and make it readable
 * @index: of the region, for messages
 * @fd: taken over on success only. memfd: sealed F_SEAL_SHRINK here, if it can be. anonymous: an
 * open /proc/PID/mem, with region->fd_offset the address in that process.
 *
 * Return: 0; -EINVAL, -EBADF, -EPERM with @err saying what is wrong with the descriptor;
 * or the errno of what failed.
 */
int memory_open_source(const struct region *region, uint32_t index, int fd, struct memory **ret,
                       struct error *err);

/*
 * memory_open_destination() - the same, for filling
 * @fd: -1 for anonymous memory; else taken over on success only
 */
int memory_open_destination(const struct region *region, uint32_t index, int fd,
                            struct memory **ret, struct error *err);

/*
 * memory_empty() - have the destination's memory be all holes, before any of it is filled
 * @deadline_ns: where it takes longer it is given up (thread_own_time_ns())
 *
 * What is there before the guest has come would be taken for the guest's, or for a page that
 * arrived. A file's pages are discarded, also those that are only allocated, which no SEEK_DATA
 * nor mincore() tells of. Anonymous memory is out of reach: mem/inspect.h looks at it.
 *
 * Return: 0; -EFBIG with @err naming the place from where on it was too much; or the errno of
 * fallocate().
 */
int memory_empty(struct memory *m, uint32_t index, uint64_t deadline_ns, struct error *err);

struct memory *memory_free(struct memory *m);

/*
 * memory_read() - read guest memory on the source
 * @offset: bytes into the region; @offset + @len lies within it
 *
 * Return: 0; -EFAULT, -EIO, -EHWPOISON where this part can't be had (gone, poisoned, private);
 * -ESRCH where the VMM that anonymous memory is read from is gone, and all of it with it.
 */
int memory_read(struct memory *m, uint64_t offset, void *buf, size_t len);

/*
 * memory_fill() - put content in place, invisible until UFFDIO_CONTINUE
 * @for_fault: the guest waits for this unit (else: ahead of the guest)
 * @filled: what was done is added here
 *
 * Return: 0; -ENOSPC, -ENOMEM, -EFAULT where the memory can't be had; -EIO where it never can.
 */
int memory_fill(struct memory *m, uint64_t offset, const void *buf, size_t len, bool for_fault,
                struct memory_filled *filled);

/*
 * memory_hole() - how much of a stretch has no page in its memfd, from its front on
 *
 * Return: bytes; 0 where there is a page, or where that can't be told; @len for anonymous memory,
 * where UFFDIO_COPY itself leaves alone what is there.
 */
uint64_t memory_hole(const struct memory *m, uint64_t offset, uint64_t len);

/*
 * memory_touch() - have the host page at @offset exist, zeroed where it did not
 *
 * Never changes a page that exists. Return: 0; -EOPNOTSUPP where only the userfaultfd can
 * (memfd, anonymous: UFFDIO_ZEROPAGE); -EFAULT.
 */
int memory_touch(struct memory *m, uint64_t offset);

/*
 * Whether a write of one page makes more than that present, for the kernel has huge pages for
 * memfds (/sys/kernel/mm/transparent_hugepage/shmem_enabled). UFFDIO_COPY makes one.
 */
bool memory_writes_huge(const struct memory *m);

/*
 * Whether the file may be truncated under us, for it could not be sealed. pwrite() would make it
 * longer again, over pages that have gone with the truncation; what goes by a mapping does not.
 */
bool memory_may_shrink(const struct memory *m);

/* Whether a stretch is beyond the end of such a file by now: it is lost. Logged once. */
bool memory_is_cut_off(struct memory *m, uint64_t offset, uint64_t len);

/* How memory_fill() would fill: MEMORY_FILL_COPY means that it can't. */
enum memory_fill memory_fill_method(const struct memory *m, bool for_fault);

/*
 * The stage of private huge pages (region_is_staged()): a file as large, where a page's units
 * gather. What of it is a hole is zero.
 */
const void *memory_staged(const struct memory *m, uint64_t offset);

/* What was staged is in place, or not wanted any more. */
void memory_unstage(const struct memory *m, uint64_t offset, uint64_t len);

/* Whether anything is staged from @*offset on, which then is where. */
bool memory_next_staged(const struct memory *m, uint64_t *offset);

/* The descriptor, -1 for none; borrowed. */
int memory_fd(const struct memory *m);

#endif
