/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/page_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"

/* Bumped with each change of what lies in the memfd. */
#define STATE_MAGIC 0x3530737063747370ull   /* "pstcps05" */
#define STATE_MAGIC_4 0x3430737063747370ull /* "pstcps04": without the last bitmap */
#define STATE_BITMAPS 6u
#define STATE_BITMAPS_4 5u
#define STATE_PAGE_BYTES 4096
/* The header's page, and the room. */
#define STATE_HEADER_BYTES (STATE_PAGE_BYTES + PAGE_STATE_ROOM_BYTES)

/* At the start of the memfd. */
struct state_header {
	uint64_t magic;
	uint64_t units;
	uint64_t words;
	_Atomic uint64_t missing;
	_Atomic uint64_t visible; /* the last generation: page_state_note_visible() */
};

struct region_state {
	uint64_t units;
	uint64_t units_per_page;
	_Atomic uint64_t *claimed;
	_Atomic uint64_t *present;
	_Atomic uint64_t *wanted;
	_Atomic uint64_t *copying;
	_Atomic uint64_t *poisoned;
	_Atomic uint64_t *written;
	uint64_t words;
};

struct page_state {
	int fd;
	size_t map_bytes;
	struct state_header *header;
	uint32_t n_regions;
	struct region_state regions[REGIONS_MAX];
};

struct page_state *page_state_free(struct page_state *ps)
{
	if (!ps)
		return NULL;
	if (ps->header)
		munmap(ps->header, ps->map_bytes);
	close_fd(&ps->fd);
	free(ps);
	return NULL;
}
DEFINE_CLEANUP(struct page_state *, page_state_free);

static size_t state_bytes(uint64_t words, unsigned int bitmaps)
{
	return STATE_HEADER_BYTES + bitmaps * words * sizeof(uint64_t);
}

static void lay_out(struct page_state *ps, const struct region_table *table, uint64_t words)
{
	_Atomic uint64_t *bits = (_Atomic uint64_t *)((char *)ps->header + STATE_HEADER_BYTES);

	for (uint32_t i = 0; i < table->n; i++) {
		const struct region *r = &table->regions[i];

		ps->regions[i] = (struct region_state){
			.units = r->units,
			.units_per_page = region_units_per_page(r),
			.claimed = bits,
			.present = bits + words,
			.wanted = bits + 2 * words,
			.copying = bits + 3 * words,
			.poisoned = bits + 4 * words,
			.written = bits + 5 * words,
			.words = r->words,
		};
		bits += r->words;
	}
	ps->n_regions = table->n;
}

static uint64_t words_of(const struct region_table *table)
{
	uint64_t words = 0;

	for (uint32_t i = 0; i < table->n; i++)
		words += table->regions[i].words;
	return words;
}

/* Map @fd, which is taken over. */
static int map_state(const struct region_table *table, int fd, struct page_state **ret,
                     struct error *err)
{
	_cleanup_(page_state_free_p) struct page_state *ps = calloc(1, sizeof *ps);
	uint64_t words = words_of(table);

	if (!ps) {
		close(fd);
		return error_set(err, -ENOMEM, "page state: out of memory");
	}
	ps->fd = fd;
	ps->map_bytes = state_bytes(words, STATE_BITMAPS);
	ps->header = mmap(NULL, ps->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ps->header == MAP_FAILED) {
		ps->header = NULL;
		return error_errno(err, -errno, "page state: mmap of %zu bytes", ps->map_bytes);
	}
	lay_out(ps, table, words);
	*ret = steal_ptr(&ps);
	return 0;
}

int page_state_new(const struct region_table *table, struct page_state **ret, struct error *err)
{
	_cleanup_close_ int fd =
	        memfd_create("postcopy-page-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t words = words_of(table);
	int rc;

	if (fd < 0)
		return error_errno(err, -errno, "page state: memfd_create");
	if (ftruncate(fd, (off_t)state_bytes(words, STATE_BITMAPS)))
		return error_errno(err, -errno, "page state: %zu bytes",
		                   state_bytes(words, STATE_BITMAPS));
	rc = map_state(table, steal_fd(&fd), ret, err);
	if (rc)
		return rc;
	(*ret)->header->magic = STATE_MAGIC;
	(*ret)->header->units = table->units;
	(*ret)->header->words = words;
	atomic_store(&(*ret)->header->missing, table->units);
	return 0;
}

int page_state_take_stock(struct page_state *ps, const struct region_table *table,
                          struct error *err)
{
	uint64_t missing = table->units;

	if (ps->header->magic != STATE_MAGIC)
		return error_set(err, -EINVAL, "page state: of another version (%#llx, not %#llx)",
		                 (unsigned long long)ps->header->magic, STATE_MAGIC);
	if (ps->header->units != table->units || ps->header->words != words_of(table))
		return error_set(err, -EINVAL, "page state: of another guest");
	for (uint32_t i = 0; i < table->n; i++)
		for (uint64_t word = 0; word < table->regions[i].words; word++) {
			struct region_state *r = &ps->regions[i];
			uint64_t exist = region_word_mask(&table->regions[i], word);
			uint64_t present = atomic_fetch_and(&r->present[word], exist) & exist;
			uint64_t copying = atomic_fetch_and(&r->copying[word], exist) & exist;

			atomic_fetch_and(&r->claimed[word], present | copying);
			atomic_fetch_and(&r->poisoned[word], present);
			atomic_fetch_and(&r->written[word], exist);
			missing -= (uint64_t)__builtin_popcountll(present);
		}
	atomic_store(&ps->header->missing, missing);
	return 0;
}

/* One of the version before gets its last bitmap: nothing was written then, in this sense. */
static int check_size(int fd, uint64_t words, struct error *err)
{
	uint64_t magic = 0;
	struct stat st;

	if (fstat(fd, &st) || pread(fd, &magic, sizeof magic, 0) != sizeof magic)
		return error_set(err, -EINVAL, "page state: the memfd can't be read");
	if (magic == STATE_MAGIC_4 && (uint64_t)st.st_size == state_bytes(words, STATE_BITMAPS_4)) {
		magic = STATE_MAGIC;
		if (ftruncate(fd, (off_t)state_bytes(words, STATE_BITMAPS)) ||
		    pwrite(fd, &magic, sizeof magic, 0) != sizeof magic)
			return error_errno(err, -errno, "page state: making it larger");
	} else if ((uint64_t)st.st_size != state_bytes(words, STATE_BITMAPS)) {
		return error_set(err, -EINVAL, "page state: the memfd is not of this guest's size");
	}
	return 0;
}

int page_state_adopt(const struct region_table *table, int fd, struct page_state **ret,
                     struct error *err)
{
	_cleanup_(page_state_free_p) struct page_state *ps = NULL;
	uint64_t words = words_of(table);
	int copy, rc = check_size(fd, words, err);

	if (rc)
		return rc;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return error_errno(err, -errno, "page state: descriptor");
	rc = map_state(table, copy, &ps, err);
	if (rc)
		return rc;
	rc = page_state_take_stock(ps, table, err);
	if (!rc)
		*ret = steal_ptr(&ps);
	return rc;
}

int page_state_fd(const struct page_state *ps)
{
	return ps->fd;
}

void *page_state_room(struct page_state *ps)
{
	return (char *)ps->header + STATE_PAGE_BYTES;
}

uint64_t page_state_claim(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	return mask & ~atomic_fetch_or(&ps->regions[region].claimed[word], mask);
}

void page_state_unclaim(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	atomic_fetch_and(&ps->regions[region].claimed[word], ~mask);
}

void page_state_note_copy(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	atomic_fetch_or(&ps->regions[region].copying[word], mask);
}

void page_state_note_no_copy(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	struct region_state *r = &ps->regions[region];

	if (atomic_load(&r->copying[word]) & mask)
		atomic_fetch_and(&r->copying[word], ~mask);
}

void page_state_note_written(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	if (mask)
		atomic_fetch_or(&ps->regions[region].written[word], mask);
}

uint64_t page_state_written(const struct page_state *ps, uint32_t region, uint64_t word)
{
	return atomic_load(&ps->regions[region].written[word]);
}

void page_state_note_visible(struct page_state *ps)
{
	atomic_store(&ps->header->visible, 1);
}

bool page_state_is_visible(const struct page_state *ps)
{
	return atomic_load(&ps->header->visible);
}

/* Present goes first: a process that ends in between leaves a claim, which is nothing. */
uint64_t page_state_renew(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	struct region_state *r = &ps->regions[region];
	uint64_t was = atomic_load(&r->present[word]) & mask;

	if (page_state_is_visible(ps))
		return 0;
	if (was) {
		atomic_fetch_and(&r->present[word], ~mask);
		atomic_fetch_add(&ps->header->missing, (uint64_t)__builtin_popcountll(was));
	}
	if (atomic_load(&r->claimed[word]) & mask)
		atomic_fetch_and(&r->claimed[word], ~mask);
	return was;
}

void page_state_drop_claims(struct page_state *ps)
{
	for (uint32_t i = 0; i < ps->n_regions; i++)
		for (uint64_t word = 0; word < ps->regions[i].words; word++)
			page_state_renew(ps, i, word, ~page_state_present(ps, i, word));
}

void page_state_note_poisoned(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	atomic_fetch_or(&ps->regions[region].poisoned[word], mask);
}

void page_state_note_sound(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	struct region_state *r = &ps->regions[region];

	if (atomic_load(&r->poisoned[word]) & mask)
		atomic_fetch_and(&r->poisoned[word], ~mask);
}

uint64_t page_state_poisoned(const struct page_state *ps, uint32_t region, uint64_t word)
{
	return atomic_load(&ps->regions[region].poisoned[word]);
}

uint64_t page_state_count_poisoned(const struct page_state *ps)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < ps->n_regions; i++)
		for (uint64_t word = 0; word < ps->regions[i].words; word++)
			n += (uint64_t)__builtin_popcountll(page_state_poisoned(ps, i, word));
	return n;
}

uint64_t page_state_doubtful(const struct page_state *ps, uint32_t region, uint64_t word)
{
	const struct region_state *r = &ps->regions[region];

	return atomic_load(&r->claimed[word]) & ~atomic_load(&r->present[word]);
}

uint64_t page_state_publish(struct page_state *ps, uint32_t region, uint64_t word, uint64_t mask)
{
	struct region_state *r = &ps->regions[region];
	uint64_t before = atomic_fetch_or(&r->present[word], mask);

	atomic_fetch_sub(&ps->header->missing, (uint64_t)__builtin_popcountll(mask & ~before));
	return mask & atomic_load(&r->wanted[word]);
}

/* The bits that the host page at @unit has in the word it lies in. */
static uint64_t page_mask(const struct region_state *r, uint64_t unit)
{
	if (r->units_per_page >= WORD_UNITS)
		return UINT64_MAX;
	return ((1ull << r->units_per_page) - 1) << (unit % WORD_UNITS);
}

bool page_state_page_present(const struct page_state *ps, uint32_t region, uint64_t first_unit)
{
	const struct region_state *r = &ps->regions[region];
	uint64_t mask = page_mask(r, first_unit);

	for (uint64_t unit = first_unit; unit < first_unit + r->units_per_page; unit += WORD_UNITS)
		if (mask & ~atomic_load(&r->present[unit / WORD_UNITS]))
			return false;
	return true;
}

bool page_state_page_poisoned(const struct page_state *ps, uint32_t region, uint64_t first_unit)
{
	const struct region_state *r = &ps->regions[region];
	uint64_t mask = page_mask(r, first_unit);

	for (uint64_t unit = first_unit; unit < first_unit + r->units_per_page; unit += WORD_UNITS)
		if (mask & atomic_load(&r->poisoned[unit / WORD_UNITS]))
			return true;
	return false;
}

bool page_state_want(struct page_state *ps, uint32_t region, uint64_t first_unit)
{
	struct region_state *r = &ps->regions[region];
	uint64_t mask = page_mask(r, first_unit);

	for (uint64_t unit = first_unit; unit < first_unit + r->units_per_page; unit += WORD_UNITS)
		atomic_fetch_or(&r->wanted[unit / WORD_UNITS], mask);
	return page_state_page_present(ps, region, first_unit);
}

uint64_t page_state_claimed(const struct page_state *ps, uint32_t region, uint64_t word)
{
	return atomic_load(&ps->regions[region].claimed[word]);
}

uint64_t page_state_present(const struct page_state *ps, uint32_t region, uint64_t word)
{
	return atomic_load(&ps->regions[region].present[word]);
}

uint64_t page_state_wanted(const struct page_state *ps, uint32_t region, uint64_t word)
{
	return atomic_load(&ps->regions[region].wanted[word]);
}

uint64_t page_state_missing(const struct page_state *ps)
{
	return atomic_load(&ps->header->missing);
}
