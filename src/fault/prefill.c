/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/prefill.h"

#include "fault/runs.h"

/* One run's bytes. Return: 0 or -errno: none of it counts. */
static int put(struct resolver *r, const struct resolver_batch *b, struct run run,
               const uint8_t *data, struct memory_filled *counts, uint64_t *filled)
{
	uint64_t offset = (b->word * WORD_UNITS + run.first) << UNIT_SHIFT;
	int rc = memory_fill(r->memories[b->region], offset, data, (size_t)run.n * UNIT_BYTES,
	                     false, counts);

	if (!rc)
		*filled |= run_mask(run.first, run.n);
	return rc;
}

int prefill(struct resolver *r, const struct resolver_batch *b, uint64_t *ret_filled)
{
	uint64_t claimed = page_state_claim(r->state, b->region, b->word,
	                                    b->data_mask | b->zero_mask | b->error_mask);
	uint64_t written = page_state_written(r->state, b->region, b->word);
	uint64_t data = claimed & b->data_mask;
	uint64_t stale = claimed & b->zero_mask & written;
	uint64_t filled = claimed & b->zero_mask & ~written;
	struct memory_filled counts = { 0 };
	int rc = 0;

	stat_add(&r->stats->fill_zero, (uint64_t)__builtin_popcountll(filled));
	/* Before it is: a fill that is interrupted is stale, too. */
	page_state_note_written(r->state, b->region, b->word, data);
	/* What fails leaves the rest. */
	while (data) {
		struct run run = next_run(&data);
		int failed = put(r, b, run, run_data(b->data, b->data_mask, run), &counts, &filled);

		rc = failed ? failed : rc;
	}
	for (; stale; stale &= stale - 1) {
		struct run unit = { .first = (unsigned int)__builtin_ctzll(stale), .n = 1 };
		int failed = put(r, b, unit, resolver_zeroes, &counts, &filled);

		rc = failed ? failed : rc;
	}
	stat_add(&r->stats->fill_write, counts.write);
	stat_add(&r->stats->fill_memcpy, counts.memcpy);
	(void)page_state_publish(r->state, b->region, b->word, filled);
	*ret_filled = filled;
	return rc;
}
