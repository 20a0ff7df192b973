/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has arrived, unit by unit.
 *
 * Theory of operation
 * -------------------
 * Six bitmaps a region, in one memfd, so that a process that takes over finds
 * them:
 *
 *   claimed   somebody fills this unit, or has: the one atomic bit that makes sure of
 *             one fill. Who sets it fills; everyone else drops the data.
 *   present   its whole content is in place. Only the claimer sets it, afterwards; or a discard of
 *             anonymous memory, which takes the unit from its claimer: it is zero.
 *   wanted    a fault waits (or waited) for it.
 *   poisoned  there is no content for it (the source can't read it, or its page here is
 *             broken): it counts as present, and who touches its host page gets SIGBUS.
 *   copying   its claimer fills it by UFFDIO_COPY, which shows it to the guest in the same
 *             moment: before it is present the guest may have it, and have written to it.
 *   written   bytes were put in its place before the guest ran here, in this generation or one
 *             before. Where it is not present they are stale: a unit that is zero now has to be
 *             made so.
 *
 * Before them lies some room for who reads the userfaultfd's events (fault/events.h), which has to
 * survive with them.
 *
 * missing -> claimed -> present, never back, but for a claim that its owner gives up
 * before a byte of it could be visible; and for a new generation.
 *
 * Generations: while the guest runs at the source pages may come already, of which nothing is
 * mapped here, so that nobody can have seen them. A unit that was written at the source since is
 * missing again, by page_state_renew(): by one thread, while nobody fills and no answer is under
 * way that was asked for before. From page_state_note_visible() on there is no other generation,
 * whichever process goes on.
 *
 * Who wakes the guest: a fault first sets wanted, then looks at present; a filler first
 * sets present, then looks at wanted. Both orders are sequentially consistent, so at
 * least one of the two sees the other and issues UFFDIO_CONTINUE; a second one is
 * harmless (EEXIST).
 *
 * Threads: everything here is lock-free and may be called from any thread.
 */
#ifndef MEM_PAGE_STATE_H
#define MEM_PAGE_STATE_H

#include "mem/region.h"

/* Room in the memfd that is not the page state's; zeroed at first. */
#define PAGE_STATE_ROOM_BYTES (20u * 1024u)

struct page_state;

/*
 * page_state_new() - all units missing
 * @table: copied
 *
 * Return: 0, -ENOMEM or the errno of memfd_create(), with @err set.
 */
int page_state_new(const struct region_table *table, struct page_state **ret, struct error *err);

/*
 * page_state_adopt() - go on where another process stopped
 * @fd: its memfd; a copy is kept, @fd stays the caller's
 *
 * Claims that its owner took with it are missing again: nothing of them was visible. But those
 * that it was copying stay claimed, page_state_doubtful(): whether the guest has them only the
 * memory can tell. No other process may use the memfd any more.
 *
 * Return: 0; -EINVAL with @err set where @fd holds no state of this version for this table.
 */
int page_state_adopt(const struct region_table *table, int fd, struct page_state **ret,
                     struct error *err);
struct page_state *page_state_free(struct page_state *ps);

/*
 * page_state_take_stock() - the part of page_state_adopt() that looks at what lies in the memfd
 *
 * Bits of units that do not exist are cleared, and how much is missing is counted anew.
 * Return: 0, or -EINVAL with @err set.
 */
int page_state_take_stock(struct page_state *ps, const struct region_table *table,
                          struct error *err);

/* The memfd with the bitmaps; borrowed. */
int page_state_fd(const struct page_state *ps);

/* PAGE_STATE_ROOM_BYTES, aligned to pages, as long as @ps lives. */
void *page_state_room(struct page_state *ps);

/* Return: the units of @mask that are now the caller's to fill. */
uint64_t page_state_claim(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/* Give back claims of the caller's that are not visible to anybody yet. */
void page_state_unclaim(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/* Claimed units are about to be filled by UFFDIO_COPY; or by other means after all. */
void page_state_note_copy(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);
void page_state_note_no_copy(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/* Claimed units are about to be filled while the guest does not run here. */
void page_state_note_written(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);
uint64_t page_state_written(const struct page_state *ps, uint32_t region, uint64_t word);

/*
 * page_state_note_visible() - the last harvest is applied, and pages are about to be seen here
 *
 * The VMM may touch what comes, and discard it, before anybody has written down that its guest may
 * run here. The source's guest stands still, so nothing that is here can be stale.
 */
void page_state_note_visible(struct page_state *ps);
bool page_state_is_visible(const struct page_state *ps);

/*
 * page_state_renew() - what is there of these units is not what the source has any more
 *
 * They are missing, in a new generation. While nobody fills; may be repeated. Nothing happens from
 * page_state_note_visible() on: what is here is newer by then, or what the source has still.
 * Return: those that were present, and are missing.
 */
uint64_t page_state_renew(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/* Claims that came to nothing while the guest did not run here: as page_state_renew(). */
void page_state_drop_claims(struct page_state *ps);

/*
 * Claimed units have no content: from now on their host pages are poisoned, never mapped. Before
 * they are published. Or they were discarded since, and are zero.
 */
void page_state_note_poisoned(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);
void page_state_note_sound(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/* Is any unit of the host page that begins at @first_unit poisoned? */
bool page_state_page_poisoned(const struct page_state *ps, uint32_t region, uint64_t first_unit);

/* The poisoned units of a word; and how many there are, over all regions. */
uint64_t page_state_poisoned(const struct page_state *ps, uint32_t region, uint64_t word);
uint64_t page_state_count_poisoned(const struct page_state *ps);

/*
 * page_state_doubtful() - after page_state_adopt(): what the process before was copying
 *
 * The caller's, to publish what is there and to unclaim what is not.
 */
uint64_t page_state_doubtful(const struct page_state *ps, uint32_t region, uint64_t word);

/*
 * page_state_publish() - units that the caller claimed are filled
 *
 * Return: those of @mask that a fault waits for: the caller must resolve their pages,
 * as far as all their units are present.
 */
uint64_t page_state_publish(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask);

/*
 * page_state_want() - a fault waits for a host page
 * @first_unit: of the page
 *
 * Return: true where all its units are present: the caller must resolve it.
 */
bool page_state_want(struct page_state *ps, uint32_t region, uint64_t first_unit);

/* Are all units of the host page that begins at @first_unit present? */
bool page_state_page_present(const struct page_state *ps, uint32_t region, uint64_t first_unit);

uint64_t page_state_claimed(const struct page_state *ps, uint32_t region, uint64_t word);
uint64_t page_state_present(const struct page_state *ps, uint32_t region, uint64_t word);
uint64_t page_state_wanted(const struct page_state *ps, uint32_t region, uint64_t word);

/* Units not present yet, over all regions. */
uint64_t page_state_missing(const struct page_state *ps);

#endif
