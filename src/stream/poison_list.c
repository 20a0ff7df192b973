/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/poison_list.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libpostcopy/poison_wire.h"
#include "util/cleanup.h"

struct poison_range {
	uint32_t region;
	uint64_t first, end; /* units */
};

struct poison_list {
	size_t n;
	uint64_t units;
	struct poison_range ranges[]; /* in order, none touching the next */
};
DEFINE_CLEANUP(struct poison_list *, poison_list_free);

struct poison_list *poison_list_free(struct poison_list *list)
{
	free(list);
	return NULL;
}

/* Append what a record says, if it makes sense. */
static int add_record(struct poison_list *list, const struct region_table *table,
                      const struct poison_record *p, struct error *err)
{
	const struct poison_range *last = list->n ? &list->ranges[list->n - 1] : NULL;
	struct poison_range r = {
		.region = p->region,
		.first = p->offset >> UNIT_SHIFT,
		.end = (p->offset >> UNIT_SHIFT) + (p->len >> UNIT_SHIFT),
	};

	if (p->region >= table->n || !p->len || (p->offset | p->len) % UNIT_BYTES ||
	    p->offset >= table->regions[p->region].size ||
	    p->len > table->regions[p->region].size - p->offset)
		return error_set(err, -EINVAL,
		                 "poisoned range %zu (region %u, offset %#llx, %#llx bytes) is not "
		                 "guest memory",
		                 list->n, p->region, (unsigned long long)p->offset,
		                 (unsigned long long)p->len);
	if (last && (r.region < last->region || (r.region == last->region && r.first <= last->end)))
		return error_set(err, -EINVAL, "poisoned ranges are not in order");
	list->ranges[list->n++] = r;
	list->units += r.end - r.first;
	return 0;
}

static int check_fd(int fd, uint64_t *ret_bytes, struct error *err)
{
	const int needed = F_SEAL_WRITE | F_SEAL_SHRINK;
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || (seals & needed) != needed || fstat(fd, &st))
		return error_set(
		        err, -EINVAL,
		        "poisoned ranges: not a memfd sealed against writing and shrinking");
	if (!st.st_size || st.st_size % POISON_RECORD_BYTES)
		return error_set(err, -EINVAL, "poisoned ranges: %lld bytes are no list",
		                 (long long)st.st_size);
	if (st.st_size > (off_t)POISON_RECORDS_MAX * POISON_RECORD_BYTES)
		return error_set(err, -E2BIG, "more than %u poisoned ranges", POISON_RECORDS_MAX);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

int poison_list_parse(const struct region_table *table, const void *records, size_t n,
                      struct poison_list **ret, struct error *err)
{
	_cleanup_(poison_list_free_p) struct poison_list *list =
	        calloc(1, sizeof *list + n * sizeof *list->ranges);
	const uint8_t *at = records;
	int rc = 0;

	if (!list)
		return error_set(err, -ENOMEM, "poisoned ranges: out of memory");
	for (; n && !rc; n--, at += POISON_RECORD_BYTES) {
		struct poison_record p;

		if (!poison_record_decode(at, &p))
			return error_set(err, -EINVAL, "poisoned range %zu is none", list->n);
		rc = add_record(list, table, &p, err);
	}
	if (!rc)
		*ret = steal_ptr(&list);
	return rc;
}

int poison_list_read(const struct region_table *table, int fd, struct poison_list **ret,
                     struct error *err)
{
	_cleanup_free_ void *records = NULL;
	uint64_t bytes = 0;
	int rc = check_fd(fd, &bytes, err);

	if (rc)
		return rc;
	records = malloc(bytes);
	if (!records)
		return error_set(err, -ENOMEM, "poisoned ranges: out of memory");
	if (pread(fd, records, bytes, 0) != (ssize_t)bytes)
		return error_set(err, -EINVAL, "poisoned ranges: the memfd can't be read");
	return poison_list_parse(table, records, bytes / POISON_RECORD_BYTES, ret, err);
}

/* Whether a range ends at or before this unit. */
static bool is_before(const struct poison_range *r, uint32_t region, uint64_t unit)
{
	return r->region < region || (r->region == region && r->end <= unit);
}

uint64_t poison_list_mask(const struct poison_list *list, uint32_t region, uint64_t word)
{
	uint64_t start = word * WORD_UNITS, mask = 0;
	size_t low = 0, high = list ? list->n : 0;

	/* The first range that does not lie before the word. */
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (is_before(&list->ranges[middle], region, start))
			low = middle + 1;
		else
			high = middle;
	}
	for (; list && low < list->n; low++) {
		const struct poison_range *r = &list->ranges[low];
		uint64_t from = r->first > start ? r->first - start : 0;
		uint64_t to = r->end < start + WORD_UNITS ? r->end - start : WORD_UNITS;

		if (r->region != region || r->first >= start + WORD_UNITS)
			break;
		mask |= (to - from == WORD_UNITS ? UINT64_MAX : (1ull << (to - from)) - 1) << from;
	}
	return mask;
}

uint64_t poison_list_units(const struct poison_list *list)
{
	return list ? list->units : 0;
}
