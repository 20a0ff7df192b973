/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page state that the process before has left, with its journal of events. Input: pairs of a
 * place (u16, in units of 4 bytes) and what stands there (u32), over what a process in the middle
 * of a migration leaves. The memory stays mapped; now and then it is mapped anew, as a process does
 * that takes over.
 */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault/events.h"
#include "util/bytes.h"
#include "util/log.h"

#define PATCH_BYTES 6u
#define PATCHES_MAX 64u

const unsigned int fuzz_rounds = 50000;

static struct {
	struct region_table table;
	struct page_state *state; /* made by ourselves; nobody has gone on from it */
	size_t bytes;
	uint8_t *good, *now; /* its memfd, as it was and as it is */
} f;

static void set_up(void)
{
	const struct region regions[] = {
		{ .memory = POSTCOPY_MEMORY_ANONYMOUS, .size = 100 * UNIT_BYTES },
		{ .memory = POSTCOPY_MEMORY_MEMFD,
		  .guest_phys_addr = 1u << 30,
		  .size = 64 * UNIT_BYTES },
	};

	log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_LOGFMT);
	for (uint64_t i = 0; i < 2; i++) {
		struct region r = regions[i];

		r.page_size = UNIT_BYTES;
		r.host_addr = (i + 1) << 32;
		FUZZ_CHECK(!region_table_add(&f.table, &r, NULL));
	}
	FUZZ_CHECK(!page_state_new(&f.table, &f.state, NULL));
	page_state_claim(f.state, 0, 0, 0xff);
	page_state_publish(f.state, 0, 0, 0x0f);
	f.bytes = (size_t)lseek(page_state_fd(f.state), 0, SEEK_END);
	f.now = mmap(NULL, f.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, page_state_fd(f.state), 0);
	f.good = malloc(f.bytes);
	FUZZ_CHECK(f.now != MAP_FAILED && f.good);
}

static void check_map(const struct addrmap *map)
{
	FUZZ_CHECK(map->n <= ADDRMAP_PIECES_MAX);
	for (uint32_t i = 0; i < map->n; i++) {
		const struct addrmap_piece *p = &map->pieces[i];

		FUZZ_CHECK(p->region < f.table.n);
		FUZZ_CHECK(p->offset + p->len <= f.table.regions[p->region].size);
	}
}

/* As a process does it that takes over: of one of two shards. Return: whether it took it. */
static bool take_up(struct page_state *state, unsigned int shard)
{
	static struct pull_stats stats;
	struct memory *memories[REGIONS_MAX] = { NULL };
	struct resolver r = {
		.table = &f.table, .memories = memories, .shards[0].uffd = -1, .stats = &stats
	};
	struct error err = ERROR_INIT;
	struct events e = { 0 };
	bool taken;

	FUZZ_CHECK(!resolver_init(&r) && !events_init(&e, &r, shard, "fuzz"));
	r.state = state;
	taken = !events_open(&e, page_state_room(state), &err);
	if (taken) {
		events_take_up(&e);
		check_map(&r.shards[shard].addrmap);
		if (shard) {
			events_keep_part(&e, 2);
			check_map(&r.shards[1].addrmap);
			/* They are small: each is one's as a whole. */
			for (uint32_t i = 0; i < r.shards[1].addrmap.n; i++)
				FUZZ_CHECK(r.shards[1].addrmap.pieces[i].region == 1);
		}
	} else {
		FUZZ_CHECK(err.code < 0 && *err.text);
	}
	events_deinit(&e);
	resolver_deinit(&r);
	return taken;
}

static void apply_patches(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < PATCHES_MAX && size >= PATCH_BYTES; i++, size -= PATCH_BYTES) {
		struct reader in = reader_init(data, PATCH_BYTES);
		const uint8_t *place = get_bytes(&in, 2);
		size_t at = 4u * (place[0] | (size_t)place[1] << 8);

		if (at + 4 <= f.bytes)
			memcpy(f.now + at, data + 2, 4);
		data += PATCH_BYTES;
	}
}

static void check_state(struct page_state *state)
{
	FUZZ_CHECK(page_state_missing(state) <= f.table.units);
	take_up(state, 0);
	take_up(state, 1);
	FUZZ_CHECK(page_state_missing(state) <= f.table.units);
	for (uint32_t i = 0; i < f.table.n; i++)
		for (uint64_t word = 0; word < f.table.regions[i].words; word++)
			FUZZ_CHECK(!(page_state_present(state, i, word) &
			             ~region_word_mask(&f.table.regions[i], word)));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct error err = ERROR_INIT;
	struct page_state *state = NULL;
	bool anew = size && data[0] == UINT8_MAX;
	int rc;

	if (!f.state) {
		set_up();
		FUZZ_CHECK(take_up(f.state, 0));
		memcpy(f.good, f.now, f.bytes);
	}
	memcpy(f.now, f.good, f.bytes);
	apply_patches(data, size);
	rc = anew ? page_state_adopt(&f.table, page_state_fd(f.state), &state, &err)
	          : page_state_take_stock(f.state, &f.table, &err);
	if (rc)
		FUZZ_CHECK(err.code == rc && *err.text);
	else
		check_state(anew ? state : f.state);
	page_state_free(state);
	return 0;
}

static uint8_t *put_patch(uint8_t *p, size_t at, uint32_t value)
{
	*p++ = (uint8_t)(at / 4);
	*p++ = (uint8_t)(at / 4 >> 8);
	return put_u32(p, value);
}

/* An event in the journal's first slot, behind the header's page. */
static uint8_t *put_event(uint8_t *p, uint32_t event, uint64_t from, uint64_t to)
{
	p = put_patch(p, 4096, event);
	p = put_patch(p, 4096 + 8, (uint32_t)from);
	p = put_patch(p, 4096 + 12, (uint32_t)(from >> 32));
	p = put_patch(p, 4096 + 16, (uint32_t)to);
	return put_patch(p, 4096 + 20, (uint32_t)(to >> 32));
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	const uint64_t start = 1ull << 32;
	const size_t after_slots = 4096 + EVENTS_MAX * sizeof(struct uffd_msg);
	uint8_t *p = buf;

	switch (i) {
	case 0:
		return (size_t)(put_event(p, UFFD_EVENT_REMOVE, start, start + 8 * UNIT_BYTES) -
		                buf);
	case 1:
		return (size_t)(put_event(p, UFFD_EVENT_UNMAP, start, start + 8 * UNIT_BYTES) -
		                buf);
	case 2:
		p = put_event(p, UFFD_EVENT_REMAP, start, start << 4);
		p = put_patch(p, 4096 + 24, 8 * UNIT_BYTES);
		return (size_t)(p - buf);
	case 3:
		return (size_t)(put_patch(p, after_slots + 4, 7) - buf); /* current */
	case 4:
		return (size_t)(put_patch(p, after_slots + 16, UINT32_MAX) - buf); /* pieces */
	case 5:
		return (size_t)(put_patch(p, 0, 0) - buf); /* magic */
	case 6:
		return (size_t)(put_event(p, UFFD_EVENT_FORK, 3, 0) - buf);
	default:
		return 0;
	}
}
