/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What never comes: the source is gone for good. Which ranges are missing, and poisoning them, so
 * that who touches one gets a machine check rather than to wait for ever.
 *
 * Nothing is filled any more by then: a fault that is resolved, or a fill that comes late, would
 * put a page in the place of the poison. Events are read to the end: what the VMM moves or discards
 * meanwhile counts, and it waits for nobody.
 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <sched.h>

#include "fault/uffd.h"

/* Bitmap words (256 KiB each) that one call looks at: some milliseconds. */
#define LOOK_WORDS (1ull << 19)

/* One ioctl poisons at most 64 MiB, or a page: so long no event is read, and the VMM may wait. */
#define POISON_UNITS (1ull << 14)

static uint64_t missing_in_word(const struct pull *p, uint32_t region, uint64_t word)
{
	return region_word_mask(&p->config.table.regions[region], word) &
	       ~page_state_present(p->state, region, word);
}

/*
 * The first unit from @unit on that is missing (or not); the region's end where there is none; or
 * as far as @words went, which are used up.
 */
static uint64_t find_unit(const struct pull *p, uint32_t region, uint64_t unit, bool missing,
                          uint64_t *words)
{
	const struct region *r = &p->config.table.regions[region];

	while (unit < r->units && *words) {
		uint64_t mask = missing_in_word(p, region, unit / WORD_UNITS);

		mask = (missing ? mask : ~mask) & UINT64_MAX << (unit % WORD_UNITS);
		if (mask) {
			unit = unit - unit % WORD_UNITS + (uint64_t)__builtin_ctzll(mask);
			break;
		}
		unit += WORD_UNITS - unit % WORD_UNITS;
		--*words;
	}
	return unit < r->units ? unit : r->units;
}

/* Of one region. */
static size_t missing_in_region(const struct pull *p, struct pull_place *at, struct pull_range *ret,
                                size_t max, uint64_t *words)
{
	uint64_t unit = at->offset >> UNIT_SHIFT, end = p->config.table.regions[at->region].units;
	size_t n = 0;

	while (n < max && *words && unit < end) {
		uint64_t first = find_unit(p, at->region, unit, true, words);

		unit = first;
		if (first == end || !*words)
			break;
		unit = find_unit(p, at->region, first, false, words);
		ret[n++] = (struct pull_range){
			.region = at->region,
			.offset = first << UNIT_SHIFT,
			.len = (unit - first) << UNIT_SHIFT,
		};
	}
	at->offset = unit << UNIT_SHIFT;
	return n;
}

size_t pull_missing_ranges(const struct pull *p, struct pull_place *at, struct pull_range *ret,
                           size_t max)
{
	const struct region_table *table = &p->config.table;
	uint64_t words = LOOK_WORDS;
	size_t n = 0;

	if (!p->state)
		at->region = table->n;
	while (at->region < table->n && n < max && words) {
		const struct region *r = &table->regions[at->region];

		/* It is neither read nor written: nothing of it is ever brought. */
		if (!(r->flags & POSTCOPY_REGION_PRIVATE)) {
			n += missing_in_region(p, at, ret + n, max - n, &words);
			if (at->offset >> UNIT_SHIFT < r->units)
				break;
		}
		*at = (struct pull_place){ .region = at->region + 1 };
	}
	return n;
}

/*
 * The first of the pages from @*unit on and before @end that lack something, as many as lie
 * together and one ioctl takes; @*unit goes past them. A host page of which a part is here is
 * mapped nowhere: it is poisoned whole.
 *
 * Events are held: by those that were read the pages are missing and lie where the map says, and of
 * those that were not the kernel knows (UFFD_AGAIN).
 *
 * Return: as the ioctls.
 */
static int poison_front(struct pull *p, struct resolver_shard *s, uint32_t region, uint64_t *unit,
                        uint64_t end)
{
	uint64_t page_size = p->config.table.regions[region].page_size;
	uint64_t per_page = page_size >> UNIT_SHIFT, all = UINT64_MAX;
	uint64_t most = per_page > POISON_UNITS ? per_page : POISON_UNITS;
	uint64_t first = find_unit(p, region, *unit, true, &all);
	uint64_t there, addr, skip, mapped, done = 0;
	int rc = UFFD_UNMAPPED;

	*unit = first;
	if (first >= end)
		return UFFD_DONE;
	there = find_unit(p, region, first, false, &all);
	first -= first % per_page;
	if (end - first > most)
		end = first + most;
	if (there < end) /* in mid-page: that page is poisoned, too */
		end = there + (per_page - there % per_page) % per_page;
	pthread_rwlock_rdlock(&s->map_lock);
	mapped = addrmap_locate(&s->addrmap, region, first << UNIT_SHIFT,
	                        (end - first) << UNIT_SHIFT, &addr, &skip);
	if (mapped)
		rc = uffd_poison(s->uffd, addr, mapped, &done);
	/* The kernel takes no range that two VMAs share (madvise() on a part makes them two). */
	if (mapped > page_size && rc == UFFD_UNMAPPED)
		rc = uffd_poison(s->uffd, addr, page_size, &done);
	pthread_rwlock_unlock(&s->map_lock);
	/* Absent is what lies behind the end of a truncated file: it is as good as poisoned. */
	if (!mapped) /* nobody can touch it */
		*unit = end;
	else if (rc == UFFD_EXISTS || rc == UFFD_UNMAPPED || rc == UFFD_ABSENT)
		*unit = first + ((skip + done) >> UNIT_SHIFT) + per_page;
	else if (done)
		*unit = first + ((skip + done) >> UNIT_SHIFT);
	return rc;
}

/* All pages of one shard that lack something, from @unit on and before @end. */
static int poison_part(struct pull *p, struct fault_thread *ft, uint32_t region, uint64_t unit,
                       uint64_t end)
{
	int rc = UFFD_DONE;

	while (unit < end && rc >= 0 && rc != UFFD_VMM_GONE) {
		events_hold(&ft->events);
		rc = poison_front(p, ft->shard, region, &unit, end);
		events_let_go(&ft->events);
		if (rc == UFFD_AGAIN)
			sched_yield(); /* the fault thread reads the event */
	}
	if (rc == UFFD_VMM_GONE)
		return -ESRCH;
	return rc < 0 ? rc : 0;
}

/* The same of all shards. Return: 0 or -errno. */
static int poison_range(struct pull *p, uint32_t region, uint64_t unit, uint64_t end)
{
	int rc = 0;

	for (unsigned int i = 0; i < pull_n_faults(p) && !rc; i++) {
		uint64_t first, past;

		resolver_part(&p->resolver, i, region, &first, &past);
		rc = poison_part(p, &p->faults[i], region, first > unit ? first : unit,
		                 past < end ? past : end);
	}
	return rc;
}

/*
 * What was missing of it counts as here from now on; and as poisoned, for a process that takes over
 * before anybody was told would find a guest that lacks nothing.
 */
static uint64_t give_up_word(struct pull *p, uint32_t region, uint64_t word)
{
	uint64_t missing = missing_in_word(p, region, word);

	page_state_note_poisoned(p->state, region, word, missing);
	page_state_publish(p->state, region, word, missing);
	return (uint64_t)__builtin_popcountll(missing);
}

static int poison_region(struct pull *p, uint32_t region, uint64_t *units)
{
	const struct region *r = &p->config.table.regions[region];
	int rc = poison_range(p, region, 0, r->units);

	for (uint64_t word = 0; word < r->words && !rc; word++)
		*units += give_up_word(p, region, word);
	return rc;
}

/*
 * One page, while all else goes on: whether the kernel can do it at all. It is claimed, so nobody
 * fills it, and not published, so nobody maps it.
 */
static int try_first(struct pull *p)
{
	struct pull_place at = { .region = 0 };
	struct pull_range first;
	uint64_t unit, per_page, mask, mine;
	int rc;

	while (!pull_missing_ranges(p, &at, &first, 1))
		if (at.region == p->config.table.n)
			return 0;
	per_page = region_units_per_page(&p->config.table.regions[first.region]);
	unit = first.offset >> UNIT_SHIFT;
	mask = missing_in_word(p, first.region, unit / WORD_UNITS) & 1ull << (unit % WORD_UNITS);
	mine = page_state_claim(p->state, first.region, unit / WORD_UNITS, mask);
	rc = poison_range(p, first.region, unit, unit - unit % per_page + per_page);
	if (rc)
		page_state_unclaim(p->state, first.region, unit / WORD_UNITS, mine);
	return rc;
}

int pull_poison(struct pull *p, uint64_t *ret_units, struct error *err)
{
	int rc;

	*ret_units = 0;
	if (region_table_is_asked(&p->config.table))
		return error_set(err, -EOPNOTSUPP,
		                 "its VMM asks for its pages, and has not given its userfaultfd: "
		                 "nothing of it can be poisoned. End the VMM, or run on at the "
		                 "source");
	rc = try_first(p);
	if (rc == -EINVAL || rc == -ENOTTY)
		return error_set(err, -EOPNOTSUPP,
		                 "this kernel has no UFFDIO_POISON for this memory (Linux 6.6 has "
		                 "it for some)");
	pull_stop_filling(p);
	for (uint32_t i = 0; i < p->config.table.n && !rc; i++)
		if (!(p->config.table.regions[i].flags & POSTCOPY_REGION_PRIVATE))
			rc = poison_region(p, i, ret_units);
	return rc ? error_errno(err, rc, "UFFDIO_POISON") : 0;
}
