/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The faults in flight: one entry for each host page that some vCPU waits for.
 *
 * A fixed, dense array: there are about as many as the guest has vCPUs, so looking
 * through them is cheaper than hashing, and nothing is allocated while guests run.
 *
 * Pages that the VMM asks for itself (fault/fetch.h), maybe far ahead of the guest, take a part
 * of it only: the rest is there for faults. Where even that is full (more threads wait than there
 * are entries), a fault is left out, and the table says so: its thread sleeps, and raises its
 * event anew when it is woken, which the fault thread does as soon as there is room again. So
 * events are read at all times: behind a fault that has no place may come the event of a
 * madvise() or munmap(), for which the VMM, and every fill, waits.
 *
 * Owned by the fault thread.
 */
#ifndef FAULT_FAULT_TABLE_H
#define FAULT_FAULT_TABLE_H

#include "fault/phases.h"

#define FAULT_TABLE_MAX 1024u
/* Of these, pages that the VMM asks for itself: as many as one fetch may name. */
#define FAULT_TABLE_FETCHED_MAX 512u
/* When faults were left out, so many entries must be free before they are raised again. */
#define FAULT_TABLE_ROOM (FAULT_TABLE_MAX / 4)

struct fault {
	uint32_t region;
	bool seen;           /* counted, as minor or as remote */
	bool waited;         /* by a vCPU at the mapping, and not only asked for by the VMM */
	uint64_t first_unit; /* of the host page */
	uint64_t next_unit;  /* what to ask for next; the page's end when all is asked */
	uint32_t asked;      /* GETs in flight */
	struct fault_record record;
};

struct fault_table {
	unsigned int n;
	unsigned int n_fetched; /* of these, with FAULT_FETCHED */
	bool left_out;          /* faults that found no room: who waits for them is to be woken */
	struct fault faults[FAULT_TABLE_MAX];
};

static inline bool fault_table_full(const struct fault_table *t)
{
	return t->n == FAULT_TABLE_MAX;
}

/* The same for pages that the VMM asks for itself. */
static inline bool fault_table_fetched_full(const struct fault_table *t)
{
	return fault_table_full(t) || t->n_fetched == FAULT_TABLE_FETCHED_MAX;
}

/* The fault on that page, or NULL. */
static inline struct fault *fault_table_find(struct fault_table *t, uint32_t region,
                                             uint64_t first_unit)
{
	for (unsigned int i = 0; i < t->n; i++)
		if (t->faults[i].first_unit == first_unit && t->faults[i].region == region)
			return &t->faults[i];
	return NULL;
}

/* A new entry for a page that has none; the table must not be full. @flags: of its record. */
static inline struct fault *fault_table_add(struct fault_table *t, uint32_t region,
                                            uint64_t first_unit, uint32_t flags)
{
	struct fault *f = &t->faults[t->n++];

	*f = (struct fault){ .region = region,
		             .first_unit = first_unit,
		             .next_unit = first_unit,
		             .waited = !(flags & FAULT_FETCHED),
		             .record.flags = flags };
	if (flags & FAULT_FETCHED)
		t->n_fetched++;
	return f;
}

/* Moves the last entry into its place. */
static inline void fault_table_remove(struct fault_table *t, struct fault *f)
{
	if (f->record.flags & FAULT_FETCHED)
		t->n_fetched--;
	*f = t->faults[--t->n];
}

#endif
