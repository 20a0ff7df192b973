/* SPDX-License-Identifier: Apache-2.0 */
#include "util/histogram.h"

unsigned int histogram_bucket(uint64_t value)
{
	unsigned int shift, bucket;

	if (value < HISTOGRAM_SUB)
		return (unsigned int)value;
	shift = 63 - (unsigned int)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	bucket = (shift + 1) * HISTOGRAM_SUB + (unsigned int)((value >> shift) - HISTOGRAM_SUB);
	return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

uint64_t histogram_bucket_upper(unsigned int i)
{
	unsigned int shift;

	if (i < HISTOGRAM_SUB)
		return i;
	shift = i / HISTOGRAM_SUB - 1;
	return (((uint64_t)(i % HISTOGRAM_SUB) + HISTOGRAM_SUB + 1) << shift) - 1;
}

static void raise_max(struct histogram *h, uint64_t value)
{
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

	while (value > max &&
	       !atomic_compare_exchange_weak_explicit(&h->max, &max, value, memory_order_relaxed,
	                                              memory_order_relaxed))
		;
}

void histogram_add(struct histogram *h, uint64_t value)
{
	atomic_fetch_add_explicit(&h->buckets[histogram_bucket(value)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, value, memory_order_relaxed);
	raise_max(h, value);
	atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
}

/* How many values lie up to where that share of them ends. */
static uint64_t rank_of(uint64_t count, unsigned int permille)
{
	uint64_t rank = (count * permille + 999) / 1000;

	return rank ? rank : 1;
}

void histogram_quantiles(const struct histogram *h, const unsigned int *permille, unsigned int n,
                         uint64_t *ret)
{
	uint64_t count = atomic_load_explicit(&h->count, memory_order_relaxed);
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);
	unsigned int done = 0, i = 0;
	uint64_t seen = 0;

	for (; count && done < n; done++) {
		uint64_t rank = rank_of(count, permille[done]), upper;

		while (seen < rank && i < HISTOGRAM_BUCKETS - 1)
			seen += atomic_load_explicit(&h->buckets[i++], memory_order_relaxed);
		/* The last bucket has no end; nor may it count already what was added since. */
		if (seen < rank)
			break;
		upper = histogram_bucket_upper(i - 1);
		ret[done] = upper < max ? upper : max;
	}
	for (; done < n; done++)
		ret[done] = max;
}

uint64_t histogram_quantile(const struct histogram *h, unsigned int permille)
{
	uint64_t ret;

	histogram_quantiles(h, &permille, 1, &ret);
	return ret;
}

void histogram_merge(struct histogram *to, const struct histogram *from)
{
	/* Most are empty, and an atomic addition costs as much as many looks. */
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&from->buckets[i], memory_order_relaxed);

		if (n)
			atomic_fetch_add_explicit(&to->buckets[i], n, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&to->sum, atomic_load_explicit(&from->sum, memory_order_relaxed),
	                          memory_order_relaxed);
	raise_max(to, atomic_load_explicit(&from->max, memory_order_relaxed));
	atomic_fetch_add_explicit(&to->count,
	                          atomic_load_explicit(&from->count, memory_order_relaxed),
	                          memory_order_relaxed);
}
