/* SPDX-License-Identifier: Apache-2.0 */
#include "minivmm/spare.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "minivmm/dirty.h"
#include "minivmm/fail.h"

#define RUN_PAGES_MAX 8u
#define ANSWER_TIMEOUT_MS 100
/* While threads of a VMM discard without a pause the kernel refuses every fill. */
#define PAUSE_NS 1000000
#define CAME 0xb5
#define WRITTEN 0x5a

static char *page_at(const struct memory *m, uint64_t page)
{
	return (char *)m->addr + GUEST_SPARE + page * GUEST_PAGE_BYTES;
}

void spare_fill(const struct memory *m)
{
	memset(page_at(m, 0), CAME, GUEST_SPARE_BYTES);
}

int spare_lose(const struct memory *m, uint64_t pages, struct postcopy_error *err)
{
	if (pages && munmap(page_at(m, 0), pages * GUEST_PAGE_BYTES))
		return fail_errno(err, -errno, "can't unmap %llu pages", (unsigned long long)pages);
	return 0;
}

/* One piece. Return: 0, or -ETIMEDOUT where nobody has answered yet. */
static int discard_some(struct spare *sp)
{
	bool anonymous = sp->memory->kind == POSTCOPY_MEMORY_ANONYMOUS;
	uint64_t random = guest_mix(++sp->random);
	uint64_t n = 1 + (random >> 32) % RUN_PAGES_MAX;
	uint64_t first = random % (SPARE_PAGES - n + 1);
	uint64_t len = n * GUEST_PAGE_BYTES;
	int rc = sp->channel ? postcopy_discard(sp->channel, GUEST_SPARE + first * GUEST_PAGE_BYTES,
	                                        len, ANSWER_TIMEOUT_MS, &sp->err)
	                     : 0;

	if (rc)
		return rc;
	if (madvise(page_at(sp->memory, first), len, anonymous ? MADV_DONTNEED : MADV_REMOVE))
		return fail_errno(&sp->err, -errno, "madvise of %llu spare pages",
		                  (unsigned long long)n);
	for (uint64_t i = first; i < first + n; i++)
		sp->states[i] = SPARE_DISCARDED;
	sp->discards++;
	if (random >> 63) {
		memset(page_at(sp->memory, first), WRITTEN, GUEST_PAGE_BYTES);
		sp->states[first] = SPARE_WRITTEN;
	}
	/* Afterwards: who is told of it before could read what it was. */
	for (uint64_t i = first; i < first + n; i++)
		atomic_fetch_or(&sp->changed[i / 64], 1ull << i % 64);
	return 0;
}

static void *spare_main(void *arg)
{
	struct spare *sp = arg;
	int rc = 0;

	while (!rc && !atomic_load(&sp->stop)) {
		struct timespec pause = { .tv_nsec = PAUSE_NS };

		rc = discard_some(sp);
		if (rc == -ETIMEDOUT) /* a daemon that is away: the same again, some time */
			rc = 0;
		nanosleep(&pause, NULL);
	}
	return (void *)(intptr_t)rc;
}

void spare_take(struct spare *sp, const struct memory *m, const uint8_t states[SPARE_PAGES])
{
	memcpy(sp->states, states, sizeof sp->states);
	/* Where the source has discarded none they are not looked at. */
	for (uint64_t i = 0; i < SPARE_PAGES; i++)
		if (states[i] != SPARE_AS_IT_CAME)
			sp->memory = m;
}

void spare_report(struct spare *sp, uint64_t *bitmap)
{
	for (uint64_t word = 0; word < SPARE_PAGES / 64; word++) {
		uint64_t changed = atomic_exchange(&sp->changed[word], 0);

		for (uint64_t i = 0; i < 64; i++)
			if (changed >> i & 1)
				dirty_mark(bitmap,
				           GUEST_SPARE + (word * 64 + i) * GUEST_PAGE_BYTES);
	}
}

int spare_start(struct spare *sp, const struct memory *m, struct postcopy *p, uint64_t seed,
                struct postcopy_error *err)
{
	int rc = p ? postcopy_channel_open(p, &sp->channel, err) : 0;

	if (rc)
		return rc;
	sp->memory = m;
	sp->random = guest_mix(seed + sp->discards);
	atomic_store(&sp->stop, false);
	rc = -pthread_create(&sp->thread, NULL, spare_main, sp);
	if (rc) {
		sp->channel = postcopy_channel_close(sp->channel);
		return fail_errno(err, rc, "can't start the thread that discards");
	}
	sp->running = true;
	return 0;
}

int spare_stop(struct spare *sp, struct postcopy_error *err)
{
	void *rc;

	if (!sp->running)
		return 0;
	atomic_store(&sp->stop, true);
	pthread_join(sp->thread, &rc);
	sp->running = false;
	sp->channel = postcopy_channel_close(sp->channel);
	if (rc)
		return fail(err, (int)(intptr_t)rc, "discarding: %.300s", sp->err.text);
	return 0;
}

uint64_t spare_check(const struct spare *sp, uint64_t *ret_first_bad)
{
	static const uint8_t due[] = {
		[SPARE_AS_IT_CAME] = CAME,
		[SPARE_DISCARDED] = 0,
		[SPARE_WRITTEN] = WRITTEN,
	};
	uint8_t want[GUEST_PAGE_BYTES];
	uint64_t bad = 0;

	for (uint64_t i = 0; sp->memory && i < SPARE_PAGES; i++) {
		memset(want, due[sp->states[i]], sizeof want);
		if (!memcmp(page_at(sp->memory, i), want, sizeof want))
			continue;
		if (!bad++)
			*ret_first_bad = GUEST_SPARE / GUEST_PAGE_BYTES + i;
	}
	return bad;
}
