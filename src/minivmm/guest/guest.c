/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest: fills its data pages, works on them, and says whether each of them is right.
 *
 * Runs in ring 3 without an operating system, one guest_main() a vCPU, each on pages
 * of its own. It learns nothing of the migration: the host may stop it between any two
 * instructions and let it run on elsewhere.
 */
#include "minivmm/guest/abi.h"

#define INDEX_FACTOR 0x9e3779b97f4a7c15ull
#define HOT_RUN 16u  /* hot pages lie in runs of so many ... */
#define HOT_EVERY 5u /* ... each fifth run */
#define HOT_ACCESS_PERCENT 80u
#define ROW_PAGES 256u /* stride: of the matrix that is read by columns */
#define CALIBRATIONS 32u
#define CALIBRATION_STEPS 10000u
#define READ_WORDS 4u /* of a page that is read, beside its first two */

struct guest {
	const struct guest_boot *boot;
	struct guest_vcpu *vcpu;
	uint64_t rng;
	uint64_t next;  /* sequential, stride: the page to come */
	uint64_t steps; /* of computing, between two accesses */
};

void guest_main(struct guest_vcpu *vcpu);

static void host_call(uint32_t what)
{
	__asm__ volatile("outl %0, %w1" : : "a"(what), "Nd"((uint16_t)GUEST_PORT) : "memory");
}

/* Fenced on both sides: what lies between two of them is what is timed. */
static uint64_t ticks(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

/* xorshift64* */
static uint64_t random_below(struct guest *g, uint64_t n)
{
	g->rng ^= g->rng >> 12;
	g->rng ^= g->rng << 25;
	g->rng ^= g->rng >> 27;
	return (uint64_t)(((unsigned __int128)(g->rng * 0x2545f4914f6cdd1dull) * n) >> 64);
}

static volatile uint64_t *page_words(const struct guest *g, uint64_t page)
{
	return (volatile uint64_t *)(g->boot->data_start + page * GUEST_PAGE_BYTES);
}

static uint64_t page_frame(const struct guest *g, uint64_t page)
{
	return g->boot->data_start / GUEST_PAGE_BYTES + page;
}

static volatile uint32_t *page_generation(uint64_t page)
{
	return (volatile uint32_t *)GUEST_GENERATIONS + page;
}

static bool page_begins_zero(const struct guest *g, uint64_t page)
{
	return guest_mix(g->boot->seed ^ guest_mix(page)) % 100 < g->boot->zero_percent;
}

static bool page_stays_zero(const struct guest *g, uint64_t page)
{
	return g->boot->workload != GUEST_ZEROES && page_begins_zero(g, page);
}

/* What is never written has none; what is zero for now has one that says so. */
static uint32_t first_generation(const struct guest *g, uint64_t page)
{
	if (page_stays_zero(g, page))
		return 0;
	return page_begins_zero(g, page) ? 2 : 1;
}

/* Of a page of this generation nothing is to be seen. */
static bool generation_is_zero(const struct guest *g, uint32_t generation)
{
	return !generation || (g->boot->workload == GUEST_ZEROES && !(generation & 1));
}

/* The page's share of the vCPU's digest. */
static uint64_t digest_of(uint64_t page, uint32_t generation)
{
	return guest_mix(guest_mix(page + 1) ^ generation);
}

static uint64_t page_base(const struct guest *g, uint64_t page, uint32_t generation)
{
	return guest_mix(g->boot->seed + guest_mix(page << 32 ^ generation));
}

/* Word @i of 2 to 510; the first two say whose page it is, the last sums all others. */
static uint64_t page_word(uint64_t base, uint32_t i)
{
	return base ^ (i * INDEX_FACTOR);
}

static void page_write(const struct guest *g, uint64_t page, uint32_t generation)
{
	volatile uint64_t *words = page_words(g, page);
	uint64_t base = page_base(g, page, generation);
	uint64_t sum = page_frame(g, page) + generation;

	if (generation_is_zero(g, generation)) {
		for (uint32_t i = 0; i < GUEST_PAGE_WORDS; i++)
			words[i] = 0;
		return;
	}
	words[0] = page_frame(g, page);
	words[1] = generation;
	for (uint32_t i = 2; i < GUEST_PAGE_WORDS - 1; i++) {
		uint64_t word = page_word(base, i);

		words[i] = word;
		sum += word;
	}
	words[GUEST_PAGE_WORDS - 1] = sum;
}

static bool page_all_zero(const volatile uint64_t *words)
{
	uint64_t any = 0;

	for (uint32_t i = 0; i < GUEST_PAGE_WORDS; i++)
		any |= words[i];
	return !any;
}

/* Every word. */
static bool page_right(const struct guest *g, uint64_t page, uint32_t generation)
{
	const volatile uint64_t *words = page_words(g, page);
	uint64_t base = page_base(g, page, generation);
	uint64_t sum = page_frame(g, page) + generation;
	uint64_t wrong;

	if (generation_is_zero(g, generation))
		return page_all_zero(words);
	wrong = (words[0] ^ page_frame(g, page)) | (words[1] ^ generation);
	for (uint32_t i = 2; i < GUEST_PAGE_WORDS - 1; i++) {
		wrong |= words[i] ^ page_word(base, i);
		sum += words[i];
	}
	return !(wrong | (words[GUEST_PAGE_WORDS - 1] ^ sum));
}

/* Whose page it is, and a few words of it. */
static bool page_sample_right(struct guest *g, uint64_t page, uint32_t generation)
{
	const volatile uint64_t *words = page_words(g, page);
	bool zero = generation_is_zero(g, generation);
	uint64_t base = page_base(g, page, generation);
	uint64_t wrong = words[0] ^ (zero ? 0 : page_frame(g, page));

	wrong |= words[1] ^ (zero ? 0 : generation);
	for (uint32_t n = 0; n < READ_WORDS; n++) {
		uint32_t i = 2 + (uint32_t)random_below(g, GUEST_PAGE_WORDS - 3);

		wrong |= words[i] ^ (zero ? 0 : page_word(base, i));
	}
	return !wrong;
}

static void init_pages(struct guest *g)
{
	struct guest_vcpu *v = g->vcpu;

	for (uint64_t page = v->first; page < v->first + v->pages; page++) {
		uint32_t generation = first_generation(g, page);

		if (!generation_is_zero(g, generation))
			page_write(g, page, generation);
		*page_generation(page) = generation;
		v->digest += digest_of(page, generation);
	}
}

static void count_bad(struct guest *g, uint64_t frame)
{
	g->vcpu->pages_bad++;
	if (frame < g->vcpu->first_bad)
		g->vcpu->first_bad = frame;
}

static uint32_t ticks_bucket(uint64_t value)
{
	uint32_t shift, bucket;

	if (value < GUEST_HIST_SUB)
		return (uint32_t)value;
	shift = 63 - (uint32_t)__builtin_clzll(value) - GUEST_HIST_SUB_BITS;
	bucket = (shift + 1) * GUEST_HIST_SUB + (uint32_t)((value >> shift) - GUEST_HIST_SUB);
	return bucket < GUEST_HIST_BUCKETS ? bucket : GUEST_HIST_BUCKETS - 1;
}

/*
 * The page's first touch, timed: what a fault costs the guest, as the guest feels it.
 * One that the pause fell into is not timed: its two ends are two hosts' clocks.
 */
static void touch(struct guest *g, uint64_t page, bool write)
{
	uint32_t phase = g->vcpu->phase;
	uint64_t start = ticks();
	uint64_t took;
	struct guest_stats *stats;

	(void)page_words(g, page)[0];
	took = ticks() - start;
	stats = &g->vcpu->stats[g->vcpu->phase & 1];
	stats->accesses++;
	stats->writes += write;
	if (g->vcpu->phase != phase)
		return;
	stats->timed++;
	stats->buckets[ticks_bucket(took)]++;
	if (took > stats->max_ticks)
		stats->max_ticks = took;
}

/* Counts a page's first access since the pause. Return: what is noted of it now. */
static uint32_t note_touched(struct guest_vcpu *v, uint64_t page, uint32_t noted)
{
	if (!v->phase || noted & GUEST_GENERATION_TOUCHED)
		return noted;
	v->touched++;
	noted |= GUEST_GENERATION_TOUCHED;
	*page_generation(page) = noted;
	return noted;
}

/*
 * A write checks the whole page first, lest it hide what was wrong with it. A page
 * found bad is marked and left as it is: the verification at the end counts it, once.
 */
static void access_page(struct guest *g, uint64_t page)
{
	struct guest_vcpu *v = g->vcpu;
	uint32_t noted = *page_generation(page);
	uint32_t generation = noted & ~GUEST_GENERATION_FLAGS;
	bool write;

	if (noted & GUEST_GENERATION_BAD)
		return;
	write = generation && random_below(g, 100) < g->boot->write_percent;
	touch(g, page, write);
	noted = note_touched(v, page, noted);
	if (!(write ? page_right(g, page, generation) : page_sample_right(g, page, generation))) {
		*page_generation(page) = noted | GUEST_GENERATION_BAD;
		return;
	}
	if (!write)
		return;
	v->digest -= digest_of(page, generation);
	generation = (generation + 1) & ~GUEST_GENERATION_FLAGS;
	generation += !generation;
	page_write(g, page, generation);
	*page_generation(page) = generation | (noted & GUEST_GENERATION_TOUCHED);
	v->digest += digest_of(page, generation);
}

static uint64_t hotcold_page(struct guest *g)
{
	uint64_t pages = g->vcpu->pages;
	uint64_t runs = pages / HOT_RUN / HOT_EVERY;
	uint64_t page;

	if (!runs || random_below(g, 100) >= HOT_ACCESS_PERCENT)
		do
			page = random_below(g, pages);
		while (runs && page / HOT_RUN % HOT_EVERY == HOT_EVERY / 2);
	else
		page = (random_below(g, runs) * HOT_EVERY + HOT_EVERY / 2) * HOT_RUN +
		       random_below(g, HOT_RUN);
	return page;
}

/* Down the column; from its end to the top of the next one. */
static uint64_t next_in_column(uint64_t page, uint64_t pages)
{
	if (page + ROW_PAGES < pages)
		return page + ROW_PAGES;
	page = (page % ROW_PAGES + 1) % ROW_PAGES;
	return page < pages ? page : 0;
}

/* What a guest does that is not all memory. */
static void compute(uint64_t steps)
{
	uint64_t x = steps;

	for (uint64_t i = 0; i < steps; i++)
		x = guest_mix(x);
	__asm__ volatile("" : : "r"(x));
}

/*
 * How many steps it can do in the time that it is to think. Steps and not time, for who waits for
 * a clock thinks on while it has no core. The best of some tries: in it nobody came between.
 */
static uint64_t steps_to_think(const struct guest *g)
{
	uint64_t best = UINT64_MAX;

	if (!g->boot->think_ticks)
		return 0;
	for (uint32_t i = 0; i < CALIBRATIONS; i++) {
		uint64_t start = ticks(), took;

		compute(CALIBRATION_STEPS);
		took = ticks() - start;
		best = took < best ? took : best;
	}
	return best ? g->boot->think_ticks * CALIBRATION_STEPS / best : 0;
}

static void work(struct guest *g)
{
	uint64_t first = g->vcpu->first;

	switch (g->boot->workload) {
	case GUEST_SEQUENTIAL:
		access_page(g, first + g->next);
		g->next = (g->next + 1) % g->vcpu->pages;
		break;
	case GUEST_RANDOM:
	case GUEST_ZEROES:
		access_page(g, first + random_below(g, g->vcpu->pages));
		break;
	case GUEST_HOTCOLD:
		access_page(g, first + hotcold_page(g));
		break;
	case GUEST_STRIDE:
		access_page(g, first + g->next);
		g->next = next_in_column(g->next, g->vcpu->pages);
		break;
	case GUEST_LIGHT:
		access_page(g, first + random_below(g, g->vcpu->pages));
		host_call(GUEST_OUT_TICK);
		break;
	default:
		host_call(GUEST_OUT_TICK);
	}
}

static void verify(struct guest *g)
{
	struct guest_vcpu *v = g->vcpu;
	uint64_t digest = 0;

	for (uint64_t page = v->first; page < v->first + v->pages; page++) {
		uint32_t noted = *page_generation(page);
		uint32_t generation = noted & ~GUEST_GENERATION_FLAGS;

		/* Known from the hash too: a lost table page must not turn pages to zero ones. */
		if (noted & GUEST_GENERATION_BAD || page_stays_zero(g, page) != !generation ||
		    !page_right(g, page, generation))
			count_bad(g, page_frame(g, page));
		digest += digest_of(page, generation);
		v->pages_checked++;
	}
	if (digest != v->digest)
		count_bad(g, (GUEST_GENERATIONS + v->first * 4) / GUEST_PAGE_BYTES);
}

void guest_main(struct guest_vcpu *vcpu)
{
	struct guest g = { .boot = (const struct guest_boot *)GUEST_BOOT, .vcpu = vcpu };

	g.rng = guest_mix(g.boot->seed + vcpu->index + 1) | 1;
	init_pages(&g);
	g.steps = steps_to_think(&g);
	host_call(GUEST_OUT_READY);
	while (!vcpu->stop) {
		work(&g);
		compute(g.steps);
	}
	verify(&g);
	for (;;)
		host_call(GUEST_OUT_DONE);
}
