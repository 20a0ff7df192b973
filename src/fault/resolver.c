/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/resolver.h"

#include <errno.h>

#include "fault/runs.h"
#include "fault/uffd.h"
#include "util/clock.h"
#include "util/probes.h"

/* Units that are claimed at a time. */
#define CLAIM_UNITS 16u
#define CLAIM_MASK ((1ull << CLAIM_UNITS) - 1)

/* Who writes goes first: readers come one after the other, and each is short. */
static int init_map_lock(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;
	int rc;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	rc = -pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	return rc;
}

int resolver_init(struct resolver *r)
{
	int rc = 0;

	atomic_init(&r->n_shards, 1);
	addrmap_init(&r->shards[0].addrmap, r->table);
	for (unsigned int i = 0; i < SHARDS_MAX && !rc; i++) {
		if (i)
			r->shards[i].uffd = -1;
		rc = init_map_lock(&r->shards[i].map_lock);
	}
	return rc;
}

void resolver_deinit(struct resolver *r)
{
	for (unsigned int i = 0; i < SHARDS_MAX; i++)
		pthread_rwlock_destroy(&r->shards[i].map_lock);
}

static struct shards_region shards_region(const struct resolver *r, uint32_t region)
{
	const struct region *of = &r->table->regions[region];

	return (struct shards_region){ .index = region,
		                       .size = of->size,
		                       .page_size = of->page_size };
}

struct resolver_shard *resolver_shard_of(struct resolver *r, uint32_t region, uint64_t unit)
{
	unsigned int n = atomic_load(&r->n_shards);
	struct shards_region of = shards_region(r, region);

	return &r->shards[n == 1 ? 0 : shards_of(n, &of, unit << UNIT_SHIFT)];
}

void resolver_part(const struct resolver *r, unsigned int shard, uint32_t region,
                   uint64_t *ret_first, uint64_t *ret_end)
{
	struct shards_region of = shards_region(r, region);
	uint64_t begin, end;

	shards_part(atomic_load(&r->n_shards), &of, shard, &begin, &end);
	*ret_first = begin >> UNIT_SHIFT;
	*ret_end = end >> UNIT_SHIFT;
}

/* The same by bytes. */
static struct resolver_shard *shard_at(struct resolver *r, uint32_t region, uint64_t offset)
{
	return resolver_shard_of(r, region, offset >> UNIT_SHIFT);
}

const uint8_t resolver_zeroes[UNIT_BYTES];

/*
 * Have the kernel make the absent page at @addr, zeroed. A page that turns out to be there
 * is left alone. Return: UFFD_DONE where it is mapped as well, UFFD_EXISTS where it has to be
 * mapped still, or as uffd_zeropage().
 */
static int make_zero_page(struct resolver *r, int uffd, uint32_t region, uint64_t offset,
                          uint64_t addr, uint64_t len)
{
	int rc = memory_touch(r->memories[region], offset);
	uint64_t done;

	if (rc == -EOPNOTSUPP)
		return uffd_zeropage(uffd, addr, len, &done);
	return rc ? rc : UFFD_EXISTS;
}

/* Who touches the page at @addr gets SIGBUS. Return: as the ioctls. */
static int poison_once(int uffd, uint64_t addr, uint64_t len)
{
	uint64_t done;
	int rc = uffd_poison(uffd, addr, len, &done);

	/* It is poisoned already; or its file has been truncated, and who touches it gets the same.
	 */
	return rc == UFFD_EXISTS || rc == UFFD_ABSENT ? uffd_wake(uffd, addr, len) : rc;
}

/* A page of private memory that is whole, from its stage. Return: as the ioctls. */
static int place_staged(struct resolver *r, int uffd, uint32_t region, uint64_t offset,
                        uint64_t addr, uint64_t len)
{
	struct memory *m = r->memories[region];
	uint64_t done;
	int rc = uffd_copy(uffd, addr, memory_staged(m, offset), len, &done);

	if (rc == UFFD_DONE)
		stat_add(&r->stats->fill_copy, len >> UNIT_SHIFT);
	if (rc == UFFD_DONE || rc == UFFD_EXISTS)
		memory_unstage(m, offset, len);
	return rc == UFFD_EXISTS ? uffd_wake(uffd, addr, len) : rc;
}

/* One try at one mapped page. Return: as the ioctls. */
static int map_once(struct resolver *r, int uffd, uint32_t region, uint64_t offset, uint64_t addr,
                    uint64_t len)
{
	bool anonymous = r->table->regions[region].memory == POSTCOPY_MEMORY_ANONYMOUS;
	uint64_t done;
	int rc;

	if (page_state_page_poisoned(r->state, region, offset >> UNIT_SHIFT))
		return poison_once(uffd, addr, len);
	if (region_is_staged(&r->table->regions[region]))
		return place_staged(r, uffd, region, offset, addr, len);
	/* Anonymous memory has no page cache: what is present is mapped, or zero. */
	if (anonymous) {
		rc = uffd_zeropage(uffd, addr, len, &done);
		return rc == UFFD_EXISTS ? uffd_wake(uffd, addr, len) : rc;
	}
	rc = uffd_continue(uffd, addr, len, &done);
	if (rc == UFFD_ABSENT) {
		rc = make_zero_page(r, uffd, region, offset, addr, len);
		if (rc == UFFD_EXISTS)
			rc = uffd_continue(uffd, addr, len, &done);
	}
	return rc == UFFD_EXISTS ? uffd_wake(uffd, addr, len) : rc;
}

/*
 * The memory behind a page that was whole is broken (CONTINUE: EIO): it is lost like one that the
 * source can't read. Return: whether it was not known.
 */
static bool lose_page(struct resolver *r, uint32_t region, uint64_t first_unit)
{
	uint64_t end = first_unit + region_units_per_page(&r->table->regions[region]);

	if (page_state_page_poisoned(r->state, region, first_unit))
		return false;
	for (uint64_t unit = first_unit; unit < end; unit++)
		page_state_note_poisoned(r->state, region, unit / WORD_UNITS,
		                         1ull << (unit % WORD_UNITS));
	stat_add(&r->stats->pages_poisoned, end - first_unit);
	return true;
}

int resolver_map_page(const struct resolver_caller *caller, uint32_t region, uint64_t first_unit)
{
	struct resolver *r = caller->resolver;
	uint64_t len = r->table->regions[region].page_size;
	uint64_t offset = first_unit << UNIT_SHIFT;
	uint64_t addr, skip;
	int rc;

	for (;;) {
		struct resolver_shard *s = resolver_shard_of(r, region, first_unit);

		pthread_rwlock_rdlock(&s->map_lock);
		rc = addrmap_locate(&s->addrmap, region, offset, len, &addr, &skip) == len
		             ? map_once(r, s->uffd, region, offset, addr, len)
		             : UFFD_UNMAPPED;
		pthread_rwlock_unlock(&s->map_lock);
		if (rc == UFFD_AGAIN) {
			if (!caller->again(caller->arg))
				return -ECANCELED;
		} else if (rc != -EIO || !lose_page(r, region, first_unit)) {
			break;
		}
	}
	if (rc == UFFD_VMM_GONE)
		return -ESRCH;
	return rc < 0 ? rc : 0;
}

/*
 * Map ahead: one CONTINUE over as much as it takes, going around what is mapped already.
 * What can't be mapped now is left for its fault.
 */
static int map_run(const struct resolver_caller *caller, uint32_t region, uint64_t offset,
                   uint64_t len)
{
	struct resolver_shard *s = shard_at(caller->resolver, region, offset);
	int rc = UFFD_DONE;

	while (len && rc >= 0 && rc != UFFD_VMM_GONE) {
		uint64_t addr, skip, done = 0, mapped;

		pthread_rwlock_rdlock(&s->map_lock);
		mapped = addrmap_locate(&s->addrmap, region, offset, len, &addr, &skip);
		rc = mapped ? uffd_continue(s->uffd, addr, mapped, &done) : UFFD_DONE;
		if (rc == UFFD_UNMAPPED && mapped > UNIT_BYTES)
			rc = uffd_continue(s->uffd, addr, UNIT_BYTES, &done);
		pthread_rwlock_unlock(&s->map_lock);
		if (!mapped)
			break;
		done += skip;
		/* A memory error: of this page alone. */
		if (rc == -EIO)
			rc = resolver_map_page(caller, region, (offset + done) >> UNIT_SHIFT)
			             ? UFFD_UNMAPPED
			             : UFFD_EXISTS;
		if (rc == UFFD_EXISTS || rc == UFFD_ABSENT || rc == UFFD_UNMAPPED)
			done += UNIT_BYTES;
		else if (rc == UFFD_AGAIN && done == skip && !caller->again(caller->arg))
			return -ECANCELED;
		offset += done;
		len -= done < len ? done : len;
	}
	if (rc == UFFD_VMM_GONE)
		return -ESRCH;
	return rc < 0 ? rc : 0;
}

/*
 * Whether a region's units are filled by UFFDIO_COPY, which fills, maps and wakes in one.
 *
 * For anonymous memory nothing else does. For memfd it is also the better way wherever the page
 * is to be mapped at once: pwrite() holds the file's lock, so that two bulk threads would not
 * get on side by side, and a fault would wait behind both. And it makes the one page, where a
 * pwrite() may make a huge one, with zeroes around; and none where the file has been truncated,
 * where pwrite() would make it longer again.
 */
static bool fills_by_copy(const struct resolver *r, const struct resolver_batch *b)
{
	const struct region *region = &r->table->regions[b->region];

	if (region_table_is_asked(r->table))
		return false;
	switch (region->memory) {
	case POSTCOPY_MEMORY_ANONYMOUS:
		return !region_is_staged(region);
	case POSTCOPY_MEMORY_MEMFD:
		return b->for_fault || r->map == RESOLVER_MAP_EAGER ||
		       memory_writes_huge(r->memories[b->region]) ||
		       memory_may_shrink(r->memories[b->region]);
	default:
		return false;
	}
}

bool resolver_shows_touch(const struct resolver *r, uint32_t region)
{
	const struct resolver_batch ahead = { .region = region };

	if (region_table_is_asked(r->table))
		return true;
	return r->map == RESOLVER_MAP_LAZY && !region_is_staged(&r->table->regions[region]) &&
	       !fills_by_copy(r, &ahead);
}

/* Whether the VMM has the unit mapped, as far as its events have told. */
static bool is_mapped(struct resolver *r, uint32_t region, uint64_t offset)
{
	struct resolver_shard *s = shard_at(r, region, offset);
	uint64_t addr, skip, len;

	pthread_rwlock_rdlock(&s->map_lock);
	len = addrmap_locate(&s->addrmap, region, offset, UNIT_BYTES, &addr, &skip);
	pthread_rwlock_unlock(&s->map_lock);
	return len;
}

/* The units of a stretch that lies within one word. */
static uint64_t units_of(uint64_t offset, uint64_t len)
{
	uint64_t n = len >> UNIT_SHIFT;

	return (n == WORD_UNITS ? UINT64_MAX : (1ull << n) - 1)
	       << (offset >> UNIT_SHIFT) % WORD_UNITS;
}

static void note_no_copy(struct resolver *r, uint32_t region, uint64_t offset, uint64_t len)
{
	page_state_note_no_copy(r->state, region, (offset >> UNIT_SHIFT) / WORD_UNITS,
	                        units_of(offset, len));
}

/*
 * One unit that UFFDIO_COPY can't place, by @result: the VMM has unmapped it, or its file has the
 * page already (somebody has read the hole; it is not mapped, for the claim is ours). Shared
 * memory gets its content all the same. Anonymous memory that is unmapped has no place left;
 * where only the kernel says so, it may have moved, and the event that tells where to is on its
 * way: the unit is missing as before and is tried again.
 */
static int fill_behind(struct resolver *r, uint32_t region, uint64_t offset, int result,
                       const uint8_t *data, struct memory_filled *filled)
{
	if (r->table->regions[region].memory == POSTCOPY_MEMORY_ANONYMOUS)
		return result == UFFD_UNMAPPED && is_mapped(r, region, offset) ? -EAGAIN : 0;
	note_no_copy(r, region, offset, UNIT_BYTES);
	return memory_fill(r->memories[region], offset, data, UNIT_BYTES, true, filled);
}

/* How many bytes of a stretch within one word come before the first unit that is present. */
static uint64_t missing_front(const struct resolver *r, uint32_t region, uint64_t offset,
                              uint64_t len)
{
	uint64_t unit = offset >> UNIT_SHIFT;
	uint64_t present =
	        page_state_present(r->state, region, unit / WORD_UNITS) >> unit % WORD_UNITS;
	uint64_t front = present ? (uint64_t)__builtin_ctzll(present) << UNIT_SHIFT : len;

	return front < len ? front : len;
}

/*
 * One ioctl over the front of a run. Return: as uffd_copy(), UFFD_UNMAPPED where nothing is. What
 * was discarded since it was claimed counts as there (UFFD_EXISTS): between this look and the ioctl
 * no discard can be read, for who reads them is who fills.
 */
static int copy_front(struct resolver *r, uint32_t region, uint64_t offset, const uint8_t *data,
                      uint64_t len, uint64_t *ret_done)
{
	struct resolver_shard *s = shard_at(r, region, offset);
	uint64_t addr, skip, mapped;
	int rc = UFFD_UNMAPPED;

	*ret_done = 0;
	pthread_rwlock_rdlock(&s->map_lock);
	len = missing_front(r, region, offset, len);
	mapped = addrmap_locate(&s->addrmap, region, offset, len, &addr, &skip);
	if (!len)
		rc = UFFD_EXISTS;
	else if (mapped && !skip)
		rc = uffd_copy(s->uffd, addr, data, mapped, ret_done);
	/* The kernel takes no range that two VMAs share (madvise() on a part makes them two). */
	if (rc == UFFD_UNMAPPED && !skip && mapped > UNIT_BYTES)
		rc = uffd_copy(s->uffd, addr, data, UNIT_BYTES, ret_done);
	pthread_rwlock_unlock(&s->map_lock);
	stat_add(&r->stats->fill_copy, *ret_done >> UNIT_SHIFT);
	return rc;
}

/*
 * Fill a run by UFFDIO_COPY. Return: 0 or -errno; *@ret_done is how many bytes are filled in any
 * case: they may be visible, so their claims are kept.
 */
static int copy_run(const struct resolver_caller *caller, uint32_t region, uint64_t offset,
                    const uint8_t *data, uint64_t len, struct memory_filled *filled,
                    uint64_t *ret_done)
{
	struct resolver *r = caller->resolver;
	int rc = 0;

	*ret_done = 0;
	while (*ret_done < len) {
		uint64_t done;
		int result = copy_front(r, region, offset + *ret_done, data + *ret_done,
		                        len - *ret_done, &done);

		*ret_done += done;
		if (result == UFFD_EXISTS || result == UFFD_UNMAPPED) {
			rc = fill_behind(r, region, offset + *ret_done, result, data + *ret_done,
			                 filled);
			if (!rc)
				*ret_done += UNIT_BYTES;
		} else if (result == UFFD_AGAIN && !done) {
			rc = caller->again(caller->arg) ? 0 : -ECANCELED;
		} else if (result == UFFD_VMM_GONE) {
			rc = -ESRCH;
		} else if (result == UFFD_ABSENT) {
			/* The file ends before it; or, for a moment, did so. */
			rc = memory_is_cut_off(r->memories[region], offset + *ret_done, UNIT_BYTES)
			             ? -EIO
			             : -EFAULT;
		} else if (result < 0) {
			rc = result;
		}
		if (rc)
			return rc;
	}
	return 0;
}

/*
 * The same for a run that may have pages in its file already (somebody has read the hole): these
 * get their content by other means. So whoever takes over from us knows: of what was being copied
 * nothing was there before.
 */
static int copy_to_holes(const struct resolver_caller *caller, uint32_t region, uint64_t offset,
                         const uint8_t *data, uint64_t len, struct memory_filled *filled,
                         uint64_t *ret_done)
{
	struct resolver *r = caller->resolver;
	int rc = 0;

	for (*ret_done = 0; *ret_done < len && !rc;) {
		uint64_t at = offset + *ret_done, done;
		uint64_t hole = memory_hole(r->memories[region], at, len - *ret_done);

		if (hole) {
			page_state_note_copy(r->state, region, (at >> UNIT_SHIFT) / WORD_UNITS,
			                     units_of(at, hole));
			rc = copy_run(caller, region, at, data + *ret_done, hole, filled, &done);
		} else {
			rc = fill_behind(r, region, at, UFFD_EXISTS, data + *ret_done, filled);
			done = rc ? 0 : UNIT_BYTES;
		}
		*ret_done += done;
	}
	return rc;
}

static int fill_run(const struct resolver_caller *caller, const struct resolver_batch *b,
                    struct run run, struct memory_filled *filled, uint64_t *ret_done)
{
	struct resolver *r = caller->resolver;
	uint64_t offset = (b->word * WORD_UNITS + run.first) << UNIT_SHIFT;
	const uint8_t *data = run_data(b->data, b->data_mask, run);
	size_t len = (size_t)run.n * UNIT_BYTES;
	int rc;

	if (fills_by_copy(r, b))
		return copy_to_holes(caller, b->region, offset, data, len, filled, ret_done);
	note_no_copy(r, b->region, offset, len);
	rc = memory_fill(r->memories[b->region], offset, data, len, b->for_fault, filled);
	*ret_done = rc ? 0 : len;
	return rc;
}

/* What has become of claimed units that have data. */
struct fill_result {
	uint64_t done;   /* filled */
	uint64_t broken; /* their memory here does not work: EIO */
	bool behind;     /* some of them are filled by other means than UFFDIO_COPY */
};

/* The units of a run from @first on, one by one: one of them has memory that does not work. */
static int fill_singly(const struct resolver_caller *caller, const struct resolver_batch *b,
                       struct run run, struct memory_filled *filled, struct fill_result *ret)
{
	for (unsigned int i = run.first; i < run.first + run.n; i++) {
		uint64_t bytes;
		int rc = fill_run(caller, b, (struct run){ .first = i, .n = 1 }, filled, &bytes);

		if (!rc)
			ret->done |= 1ull << i;
		else if (rc == -EIO)
			ret->broken |= 1ull << i;
		else
			return rc;
	}
	return 0;
}

/* What can't be filled is missing again, but for what was discarded meanwhile. */
static void give_back(struct resolver *r, const struct resolver_batch *b, uint64_t claimed)
{
	page_state_unclaim(r->state, b->region, b->word,
	                   claimed & ~page_state_present(r->state, b->region, b->word));
}

/*
 * Fill the claimed units that have data. On failure gives back the claims of what was not
 * filled. Return: 0 or -errno.
 */
static int fill_claimed(const struct resolver_caller *caller, const struct resolver_batch *b,
                        uint64_t claimed, struct fill_result *ret)
{
	struct resolver *r = caller->resolver;
	struct memory_filled filled = { 0 };
	uint64_t left = claimed & b->data_mask;
	int rc = 0;

	*ret = (struct fill_result){ 0 };
	while (left && !rc) {
		struct run run = next_run(&left);
		uint64_t bytes;

		rc = fill_run(caller, b, run, &filled, &bytes);
		ret->done |= run_mask(run.first, bytes >> UNIT_SHIFT);
		run.first += (unsigned int)(bytes >> UNIT_SHIFT);
		run.n -= (unsigned int)(bytes >> UNIT_SHIFT);
		if (rc == -EIO)
			rc = fill_singly(caller, b, run, &filled, ret);
	}
	if (rc)
		give_back(r, b, claimed & b->data_mask & ~(ret->done | ret->broken));
	stat_add(&r->stats->fill_write, filled.write);
	stat_add(&r->stats->fill_memcpy, filled.memcpy);
	ret->behind = filled.write || filled.memcpy;
	return rc;
}

/*
 * Claimed units that are zero now, and where bytes were put before the guest ran here
 * (fault/prefill.h): these are written over. Those whose memory does not work are told in @result;
 * what else can't be is given back. Return: 0 or -errno.
 */
static int clear_stale(struct resolver *r, const struct resolver_batch *b, uint64_t stale,
                       struct fill_result *result)
{
	struct memory_filled filled = { 0 };
	uint64_t done = 0, broken = 0;
	int rc = 0;

	for (uint64_t left = stale; left && !rc; left &= left - 1) {
		uint64_t unit = b->word * WORD_UNITS + (uint64_t)__builtin_ctzll(left);

		rc = memory_fill(r->memories[b->region], unit << UNIT_SHIFT, resolver_zeroes,
		                 UNIT_BYTES, true, &filled);
		if (!rc) {
			done |= left & -left;
		} else if (rc == -EIO) {
			broken |= left & -left;
			rc = 0;
		}
	}
	if (rc)
		give_back(r, b, stale & ~(done | broken));
	stat_add(&r->stats->fill_write, filled.write);
	stat_add(&r->stats->fill_memcpy, filled.memcpy);
	result->done |= done;
	result->broken |= broken;
	result->behind |= done != 0;
	return rc;
}

/* The host pages that have units in @mask of a word, as the units they begin with: in turn. */
static uint64_t next_page(const struct region *region, uint64_t word, uint64_t *mask)
{
	uint64_t per_page = region_units_per_page(region);
	uint64_t unit = word * WORD_UNITS + (uint64_t)__builtin_ctzll(*mask);

	/* Page sizes are 1 unit or whole words of them. */
	*mask = per_page >= WORD_UNITS ? 0 : *mask & (*mask - 1);
	return unit - unit % per_page;
}

static int map_pages(const struct resolver_caller *caller, uint32_t region, uint64_t word,
                     uint64_t mask)
{
	struct resolver *r = caller->resolver;
	int rc = 0;

	while (mask && !rc) {
		uint64_t unit = next_page(&r->table->regions[region], word, &mask);

		if (page_state_page_present(r->state, region, unit))
			rc = resolver_map_page(caller, region, unit);
	}
	return rc;
}

int resolver_map_ahead(const struct resolver_caller *caller, uint32_t region, uint64_t word,
                       uint64_t present)
{
	int rc = 0;

	if (caller->resolver->table->regions[region].page_size != UNIT_BYTES)
		return map_pages(caller, region, word, present);
	while (present && !rc) {
		struct run run = next_run(&present);

		rc = map_run(caller, region, (word * WORD_UNITS + run.first) << UNIT_SHIFT,
		             (uint64_t)run.n << UNIT_SHIFT);
	}
	return rc;
}

/*
 * Poison the host pages of claimed units that have no content, which wakes who waits for them.
 * Of a larger host page the rest may be missing still: it is poisoned for good. What can't be
 * poisoned is given back.
 *
 * Return: 0 (also where the kernel can't do it), or -errno; *@ret_done are those that are.
 */
static int poison_claimed(const struct resolver_caller *caller, const struct resolver_batch *b,
                          uint64_t lost, uint64_t *ret_done)
{
	struct resolver *r = caller->resolver;
	uint64_t poisoned;
	int rc = 0;

	*ret_done = 0;
	for (uint64_t left = lost; left && !rc; left &= left - 1) {
		uint64_t bit = left & -left, mask = bit;
		uint64_t unit = next_page(&r->table->regions[b->region], b->word, &mask);

		/* It was discarded meanwhile, and is zero. */
		if (page_state_present(r->state, b->region, b->word) & bit)
			continue;
		page_state_note_poisoned(r->state, b->region, b->word, bit);
		rc = region_table_is_asked(r->table) ? -EINVAL
		                                     : resolver_map_page(caller, b->region, unit);
		if (!rc)
			*ret_done |= bit;
		else
			page_state_note_sound(r->state, b->region, b->word, bit);
		if (rc == -EINVAL || rc == -ENOTTY) {
			stat_add(&r->stats->pages_unpoisoned, 1);
			rc = 0;
		}
	}
	give_back(r, b, lost & ~*ret_done);
	poisoned = *ret_done & page_state_poisoned(r->state, b->region, b->word);
	stat_add(&r->stats->pages_poisoned, (uint64_t)__builtin_popcountll(poisoned));
	return rc;
}

static int map_filled(const struct resolver_caller *caller, const struct resolver_batch *b,
                      uint64_t data, uint64_t wanted, bool filled_behind)
{
	struct resolver *r = caller->resolver;
	const struct region *region = &r->table->regions[b->region];
	int rc;

	/*
	 * UFFDIO_COPY has mapped and woken; a wanted page that it could not is looked at again.
	 * What was there from before the guest ran here it could not.
	 */
	if (fills_by_copy(r, b)) {
		wanted &= filled_behind ? UINT64_MAX : ~data;
		data &= page_state_written(r->state, b->region, b->word);
	}
	if (r->map == RESOLVER_MAP_LAZY && !region_is_staged(region))
		return map_pages(caller, b->region, b->word, wanted);
	if (region->page_size != UNIT_BYTES)
		return map_pages(caller, b->region, b->word, data | wanted);
	rc = resolver_map_ahead(caller, b->region, b->word, data);
	return rc ? rc : map_pages(caller, b->region, b->word, wanted & ~data);
}

/* Tell the caller whom it has woken: of the pages that have units in @wanted those that are whole.
 */
static void tell_woken(const struct resolver_caller *caller, const struct resolver_batch *b,
                       uint64_t wanted, uint64_t filled_ns)
{
	const struct resolver *r = caller->resolver;
	uint64_t mapped_ns = clock_now_ns();

	while (wanted) {
		uint64_t unit = next_page(&r->table->regions[b->region], b->word, &wanted);

		if (page_state_page_present(r->state, b->region, unit))
			caller->woken(caller->arg, b->region, unit, filled_ns, mapped_ns);
	}
}

/* Claim, fill, publish, map: for the units in @part. What was filled is added to *@filled. */
static int fill_part(const struct resolver_caller *caller, const struct resolver_batch *b,
                     uint64_t part, uint64_t *filled)
{
	struct resolver *r = caller->resolver;
	uint64_t claimed = page_state_claim(r->state, b->region, b->word,
	                                    (b->data_mask | b->zero_mask | b->error_mask) & part);
	uint64_t stale = claimed & b->zero_mask & page_state_written(r->state, b->region, b->word);
	uint64_t zero = claimed & b->zero_mask & ~stale;
	uint64_t lost, discarded, wanted, filled_ns;
	struct fill_result result;
	int rc, zero_rc, poison_rc, map_rc;

	if (!claimed)
		return 0;
	rc = fill_claimed(caller, b, claimed, &result);
	zero_rc = clear_stale(r, b, stale, &result);
	poison_rc = poison_claimed(caller, b, (claimed & b->error_mask) | result.broken, &lost);
	/* These nobody has mapped. */
	discarded = claimed & page_state_present(r->state, b->region, b->word);
	wanted = page_state_publish(r->state, b->region, b->word, result.done | zero | lost);
	filled_ns = wanted ? clock_now_ns() : 0;
	if (wanted)
		probe_fault_filled(b->region, b->word, wanted);
	stat_add(&r->stats->fill_zero, (uint64_t)__builtin_popcountll(zero));
	*filled |= result.done | zero | lost;
	map_rc = map_filled(caller, b, result.done & ~discarded, wanted, result.behind);
	if (wanted && !map_rc && caller->woken)
		tell_woken(caller, b, wanted, filled_ns);
	if (rc || zero_rc)
		return rc ? rc : zero_rc;
	return poison_rc ? poison_rc : map_rc;
}

/*
 * Part by part: a fault on a page that is claimed waits for its claimer, and a bulk thread may
 * lose its core at any moment. So it holds few claims, and for some 30 us.
 */
int resolver_fill(const struct resolver_caller *caller, const struct resolver_batch *b,
                  uint64_t *ret_filled)
{
	int rc = 0;

	*ret_filled = 0;
	for (unsigned int first = 0; first < WORD_UNITS && !rc; first += CLAIM_UNITS)
		rc = fill_part(caller, b, CLAIM_MASK << first, ret_filled);
	return rc;
}

/* The units of a word that lie in [first, end), which touches it. */
static uint64_t units_in_word(uint64_t word, uint64_t first, uint64_t end)
{
	uint64_t start = word * WORD_UNITS;
	uint64_t mask = UINT64_MAX;

	if (first > start)
		mask &= UINT64_MAX << (first - start);
	if (end < start + WORD_UNITS)
		mask &= (1ull << (end - start)) - 1;
	return mask;
}

uint64_t resolver_discard_units(struct page_state *state, uint32_t region, uint64_t first,
                                uint64_t end, bool claimed_too)
{
	uint64_t n = 0;

	for (uint64_t word = first / WORD_UNITS; word * WORD_UNITS < end; word++) {
		uint64_t units = units_in_word(word, first, end);
		uint64_t mine = page_state_claim(state, region, word, units);

		if (claimed_too)
			mine = units & ~page_state_present(state, region, word);
		page_state_publish(state, region, word, mine);
		page_state_note_sound(state, region, word, units);
		n += (uint64_t)__builtin_popcountll(mine);
	}
	return n;
}

/* Only its fault thread changes an addrmap, and this is it: no lock to read it. */
void resolver_discard(struct resolver *r, struct resolver_shard *s, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < s->addrmap.n; i++) {
		const struct addrmap_piece *p = &s->addrmap.pieces[i];
		uint64_t from = start > p->host_addr ? start : p->host_addr;
		uint64_t to = end < p->host_addr + p->len ? end : p->host_addr + p->len;

		if (from >= to || r->table->regions[p->region].memory != POSTCOPY_MEMORY_ANONYMOUS)
			continue;
		from = (p->offset + (from - p->host_addr)) >> UNIT_SHIFT;
		to = (p->offset + (to - p->host_addr)) >> UNIT_SHIFT;
		if (region_is_staged(&r->table->regions[p->region]))
			memory_unstage(r->memories[p->region], from << UNIT_SHIFT,
			               (to - from) << UNIT_SHIFT);
		stat_add(&r->stats->fill_zero,
		         resolver_discard_units(r->state, p->region, from, to, true));
	}
}

int resolver_place_staged(const struct resolver_caller *caller, uint32_t *region, uint64_t *offset)
{
	struct resolver *r = caller->resolver;
	const struct region *regions = r->table->regions;
	uint64_t page_size;
	int rc;

	while (*region < r->table->n && !(region_is_staged(&regions[*region]) &&
	                                  memory_next_staged(r->memories[*region], offset))) {
		++*region;
		*offset = 0;
	}
	if (*region == r->table->n)
		return 0;
	page_size = regions[*region].page_size;
	*offset -= *offset % page_size;
	rc = resolver_map_page(caller, *region, *offset >> UNIT_SHIFT);
	if (rc)
		return rc;
	/* Also where it is not mapped any more, or poisoned. */
	memory_unstage(r->memories[*region], *offset, page_size);
	*offset += page_size;
	return 1;
}

static void settle_word(struct resolver *r, uint32_t region, uint64_t word)
{
	uint64_t left = page_state_doubtful(r->state, region, word);

	for (; left; left &= left - 1) {
		uint64_t unit = word * WORD_UNITS + (uint64_t)__builtin_ctzll(left);
		uint64_t bit = left & -left;

		/*
		 * It was a hole when the copy was begun (copy_to_holes()): what is there now has
		 * come by it, and is the guest's. Anonymous memory counts as a hole: where a
		 * page of it is, UFFDIO_COPY says so itself, and leaves it alone.
		 */
		if (memory_hole(r->memories[region], unit << UNIT_SHIFT, UNIT_BYTES))
			page_state_unclaim(r->state, region, word, bit);
		else
			page_state_publish(r->state, region, word, bit);
	}
}

void resolver_settle(struct resolver *r)
{
	for (uint32_t i = 0; i < r->table->n; i++)
		for (uint64_t word = 0; word < r->table->regions[i].words; word++)
			settle_word(r, i, word);
}

void resolver_wake_all(struct resolver_shard *s)
{
	pthread_rwlock_rdlock(&s->map_lock);
	for (uint32_t i = 0; i < s->addrmap.n; i++)
		uffd_wake(s->uffd, s->addrmap.pieces[i].host_addr, s->addrmap.pieces[i].len);
	pthread_rwlock_unlock(&s->map_lock);
}

/* Of a range that is not all of one kind, what is registered still. */
static int unregister_parts(int uffd, uint64_t addr, uint64_t len, uint64_t page_size)
{
	uint64_t half = len / page_size / 2 * page_size;
	int rc = uffd_unregister(uffd, addr, len);

	if (rc != UFFD_UNMAPPED || !half)
		return rc;
	rc = unregister_parts(uffd, addr, half, page_size);
	if (rc < 0 || rc == UFFD_VMM_GONE)
		return rc;
	return unregister_parts(uffd, addr + half, len - half, page_size);
}

int resolver_unregister(struct resolver *r, struct resolver_shard *s, bool by_parts)
{
	int rc = 0;

	pthread_rwlock_rdlock(&s->map_lock);
	for (uint32_t i = 0; i < s->addrmap.n; i++) {
		const struct addrmap_piece *p = &s->addrmap.pieces[i];
		uint64_t page_size = r->table->regions[p->region].page_size;
		int result = by_parts ? unregister_parts(s->uffd, p->host_addr, p->len, page_size)
		                      : uffd_unregister(s->uffd, p->host_addr, p->len);

		if (result < 0 && rc >= 0)
			rc = result;
		else if (result == UFFD_UNMAPPED && !rc)
			rc = UFFD_UNMAPPED;
	}
	pthread_rwlock_unlock(&s->map_lock);
	return rc;
}

uint64_t resolver_map_changes(struct resolver_shard *s)
{
	uint64_t changes;

	pthread_rwlock_rdlock(&s->map_lock);
	changes = s->map_changes;
	pthread_rwlock_unlock(&s->map_lock);
	return changes;
}
