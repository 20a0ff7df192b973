/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A latency histogram: log-linear buckets, 16 to each power of two, so that any
 * value is known to within 1/16. Fixed size, no allocation; one writer or many
 * (relaxed atomics), any number of readers at any time.
 */
#ifndef UTIL_HISTOGRAM_H
#define UTIL_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_SUB_BITS 4
#define HISTOGRAM_SUB (1u << HISTOGRAM_SUB_BITS)
/* Values up to 2^40 ns, about 18 minutes; larger ones count in the last bucket. */
#define HISTOGRAM_OCTAVES 37
#define HISTOGRAM_BUCKETS (HISTOGRAM_OCTAVES * HISTOGRAM_SUB)

struct histogram {
	_Atomic uint64_t count;
	_Atomic uint64_t sum;
	_Atomic uint64_t max;
	_Atomic uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value);

/* The bucket a value counts in, and the largest value that counts in bucket @i. */
unsigned int histogram_bucket(uint64_t value);
uint64_t histogram_bucket_upper(unsigned int i);

/*
 * histogram_quantile() - the value below which a share of all values lies
 * @permille: 0..1000
 *
 * Return: the upper bound of the bucket in which that value fell (so never too
 * good), at most the largest value seen; 0 for an empty histogram.
 */
uint64_t histogram_quantile(const struct histogram *h, unsigned int permille);

/* The same of @n shares, in ascending order, in one go: of hundreds of histograms it shows. */
void histogram_quantiles(const struct histogram *h, const unsigned int *permille, unsigned int n,
                         uint64_t *ret);

/* Adds all of @from to @to. */
void histogram_merge(struct histogram *to, const struct histogram *from);

#endif
