/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The resolver: the one place where pages are filled, mapped and their waiters woken.
 *
 * Theory of operation
 * -------------------
 * Whatever brings pages (an answer to a fault, a bulk answer, a discard) comes through
 * resolver_fill(): claim the units, put their content in place behind the guest's back,
 * publish them, and only then map. That order is the invariant "content before wake";
 * the claim is "one fill". A page that somebody else claimed is dropped.
 *
 * Mapping is UFFDIO_CONTINUE. Eager: over each filled run at once, which spares the
 * guest a minor fault a page. Lazy: only the pages that a fault waits for. A zero unit
 * is not filled; its page stays a hole until it is touched, and is then made by the
 * kernel (UFFDIO_ZEROPAGE, or a read of the alias), never by writing, for by then a
 * guest's write may already be in it.
 *
 * What came while the guest ran at the source is in place and not mapped (fault/prefill.h): a fault
 * on it is mapped at once, and bulk threads map it ahead. Where such bytes are stale the unit is
 * missing, and filled like any other, by writing over them: also where it is zero now.
 *
 * A unit without content (the source can't read it, or the memory here is broken) is poisoned
 * in that place of the order: claimed, noted as poisoned, UFFDIO_POISON over its host page,
 * published. From then on the page is poisoned wherever others would be mapped. Where the
 * kernel can't poison it, it stays missing.
 *
 * Memory that its VMM asks for (POSTCOPY_REGION_ASKED) is filled and published; nobody is woken,
 * and nothing mapped or poisoned, for what traps it is not ours: the address map is empty.
 *
 * Anonymous memory that the VMM discards is zero once its madvise() has returned, and the kernel
 * lets that go as soon as its event is read. So it is filled by one thread, the one that reads
 * events: no ioctl is under way while one is read, and none comes before it is applied. Where the
 * kernel makes a fill wait for an event, the discard takes units that the fill has claimed: it
 * finds them present, and leaves them. Of shared memory a madvise() discards nothing.
 *
 * Shards: guest memory may be watched by several userfaultfds, each its part (util/shards.h). Each
 * has its address map, of its part alone. An ioctl goes by the userfaultfd of the unit: it would
 * work by any other, for the kernel looks at the place only, but would wake nobody. Anonymous
 * memory is filled by the fault thread of its shard.
 *
 * Threads: the fault threads and, but for anonymous memory, the bulk threads, each with its own
 * resolver_caller.
 * map_lock guards the addrmap: readers hold it over one ioctl, its shard's fault thread writes.
 */
#ifndef FAULT_RESOLVER_H
#define FAULT_RESOLVER_H

#include <pthread.h>

#include "fault/stats.h"
#include "mem/addrmap.h"
#include "mem/memory.h"
#include "mem/page_state.h"
#include "util/shards.h"

enum resolver_map {
	RESOLVER_MAP_EAGER,
	RESOLVER_MAP_LAZY,
};

/* A userfaultfd, and where the part of guest memory is mapped that it watches (util/shards.h). */
struct resolver_shard {
	int uffd; /* set at birth; -1: its VMM asks for its pages */

	pthread_rwlock_t map_lock;
	struct addrmap addrmap;
	uint64_t map_changes; /* how often the VMM has changed its mappings */
};

struct resolver {
	/* Set at birth. */
	const struct region_table *table;
	struct page_state *state;
	struct memory *const *memories;
	enum resolver_map map;
	struct pull_stats *stats;

	_Atomic unsigned int n_shards; /* 1; then perhaps more, once */
	struct resolver_shard shards[SHARDS_MAX];
};

/*
 * Who calls. The kernel refuses (EAGAIN) while the VMM is in munmap() and the like, until the
 * fault thread has read the event that announces it. So the fault thread reads events
 * in @again, and any other thread gives way to it. @again returns false where the pull is to stop:
 * then what was begun is given up, with -ECANCELED.
 */
struct resolver_caller {
	struct resolver *resolver;
	bool (*again)(void *arg);
	/*
	 * A fill has woken whoever waited for this host page: when its content was in place, and
	 * when it was mapped. May be NULL.
	 */
	void (*woken)(void *arg, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
	              uint64_t mapped_ns);
	void *arg;
};

/* Units of one word, as they arrived. */
struct resolver_batch {
	uint32_t region;
	uint64_t word;
	uint64_t data_mask; /* units whose bytes are in @data, lowest first */
	uint64_t zero_mask;
	uint64_t error_mask; /* the source can't read them */
	const uint8_t *data;
	bool for_fault; /* an answer to a fault, not ahead of it */
};

/* A unit of them. */
extern const uint8_t resolver_zeroes[UNIT_BYTES];

/*
 * resolver_place_staged() - the next page that lies on the stage of private huge pages still
 * @region, @offset: where to look from; go past it
 *
 * When every unit is present, and before the memory is unregistered: a page whose last unit was
 * zero waits there for its fault. Events are held, but by the fault thread: a discard that was read
 * and not applied has zapped a page that would come back by this.
 *
 * Return: 1: it is placed; 0: there is none; -ENOMEM: try again; -ESRCH; -ECANCELED: as
 * resolver_map_page().
 */
int resolver_place_staged(const struct resolver_caller *caller, uint32_t *region, uint64_t *offset);

/*
 * All that is set at birth is set by the caller. There is one shard, which has all regions where
 * the table says. Return: 0 or -errno.
 */
int resolver_init(struct resolver *r);
void resolver_deinit(struct resolver *r);

/*
 * Whose a unit is. A word, and a host page, is one shard's as a whole: whatever works on such a
 * stretch asks for its shard once.
 */
struct resolver_shard *resolver_shard_of(struct resolver *r, uint32_t region, uint64_t unit);

/* The units of a region that one of them has: [*@ret_first, *@ret_end), or none. */
void resolver_part(const struct resolver *r, unsigned int shard, uint32_t region,
                   uint64_t *ret_first, uint64_t *ret_end);

/*
 * resolver_fill() - fill, publish, map and wake what is still missing of a batch
 * @ret_filled: the units that this call filled; the others were there
 *
 * Units that turn out to have no place that works (EIO: a memory error here) are poisoned like
 * those that the source can't read. What can't be poisoned is missing as before.
 *
 * Return: 0; -ESRCH where the VMM is gone; -ENOMEM, -ENOSPC, -EFAULT where the memory
 * can't be had, -ECANCELED: what was not filled is missing as before.
 */
int resolver_fill(const struct resolver_caller *caller, const struct resolver_batch *batch,
                  uint64_t *ret_filled);

/*
 * Whether what is filled there ahead of the guest is mapped only when it is touched, so that its
 * first touch is a fault.
 */
bool resolver_shows_touch(const struct resolver *r, uint32_t region);

/*
 * resolver_map_page() - map a host page all of whose units are present, and wake its waiters
 *
 * One that is poisoned is poisoned again.
 *
 * Return: 0 (also where it was mapped, or the VMM has unmapped it), -ESRCH, -ECANCELED or -errno.
 */
int resolver_map_page(const struct resolver_caller *caller, uint32_t region, uint64_t first_unit);

/*
 * resolver_map_ahead() - map pages of a word before they are touched, as far as they can be now
 * @present: units that are; of a larger host page it is mapped when all of it is
 *
 * Return: 0, -ESRCH, -ECANCELED or -errno.
 */
int resolver_map_ahead(const struct resolver_caller *caller, uint32_t region, uint64_t word,
                       uint64_t present);

/*
 * resolver_discard() - UFFD_EVENT_REMOVE of a range of host addresses, from a shard's userfaultfd
 *
 * What is missing of anonymous memory is zero from now on, and present: also what is claimed. Of
 * shared memory the event proves nothing: MADV_DONTNEED leaves the file's content, which is the
 * source's, MADV_FREE fails, and so does MADV_REMOVE under a seal; there a page is discarded by
 * resolver_discard_units() only. By the shard's fault thread.
 */
void resolver_discard(struct resolver *r, struct resolver_shard *s, uint64_t start, uint64_t end);

/*
 * resolver_discard_units() - what is missing of [@first, @end) of a region is zero from now on
 * @claimed_too: also what is claimed; else that is left to who fills it
 *
 * Return: how many are zero.
 */
uint64_t resolver_discard_units(struct page_state *state, uint32_t region, uint64_t first,
                                uint64_t end, bool claimed_too);

/*
 * resolver_settle() - after a page state was taken over: what the process before was copying
 *
 * UFFDIO_COPY shows a page to the guest at once. Where it got there, the page is the guest's and is
 * never filled again; where it did not, the page is missing. In a memfd the page itself tells, for
 * it is copied only to where none was: memory is empty at attach, and what turns up later (somebody
 * has read a hole) is filled by other means.
 */
void resolver_settle(struct resolver *r);

/* Have every thread that waits look again: those whose page is missing raise a new event. */
void resolver_wake_all(struct resolver_shard *s);

/*
 * resolver_unregister() - every page is present: no more watching
 * @by_parts: what the kernel does not take as one piece is tried in halves, down to its pages
 *
 * The rest of the holes read as zeroes. May be repeated. Return: 0, also where the VMM is gone;
 * UFFD_UNMAPPED where nothing was done about some piece, for the kernel has something else there
 * than the address map says; or -errno.
 */
int resolver_unregister(struct resolver *r, struct resolver_shard *s, bool by_parts);

uint64_t resolver_map_changes(struct resolver_shard *s);

#endif
