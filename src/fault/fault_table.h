/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The faults in flight: one entry for each host page that some vCPU waits for.
 *
 * A fixed, dense array: there are about as many as the guest has vCPUs, so looking
 * through them is cheaper than hashing, and nothing is allocated while guests run. Where
 * it is full the fault thread leaves further events in the kernel until there is room.
 * Owned by the fault thread.
 */
#ifndef FAULT_FAULT_TABLE_H
#define FAULT_FAULT_TABLE_H

#include "fault/phases.h"

#define FAULT_TABLE_MAX 1024u

struct fault {
	uint32_t region;
	bool seen;           /* counted, as minor or as remote */
	uint64_t first_unit; /* of the host page */
	uint64_t next_unit;  /* what to ask for next; the page's end when all is asked */
	uint32_t asked;      /* GETs in flight */
	struct fault_record record;
};

struct fault_table {
	unsigned int n;
	struct fault faults[FAULT_TABLE_MAX];
};

static inline bool fault_table_full(const struct fault_table *t)
{
	return t->n == FAULT_TABLE_MAX;
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

/* A new entry for a page that has none; the table must not be full. */
static inline struct fault *fault_table_add(struct fault_table *t, uint32_t region,
                                            uint64_t first_unit)
{
	struct fault *f = &t->faults[t->n++];

	*f = (struct fault){ .region = region, .first_unit = first_unit, .next_unit = first_unit };
	return f;
}

/* Moves the last entry into its place. */
static inline void fault_table_remove(struct fault_table *t, struct fault *f)
{
	*f = t->faults[--t->n];
}

#endif
