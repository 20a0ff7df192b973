/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest memory that this process has attached and whose pages are still arriving: whoever read
 * it as the source of another migration would take what has not come for zeroes. Any thread may
 * attach, so there is a lock around the list.
 */
#ifndef LIBPOSTCOPY_ARRIVING_H
#define LIBPOSTCOPY_ARRIVING_H

#include <stdbool.h>
#include <sys/types.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

struct arriving_range {
	pid_t pid; /* whose address it is */
	uint64_t host_addr, size;
	uint64_t dev, ino, offset; /* of its file; 0 where it has none */
};

/* Of one destination; its memory is the caller's. */
struct arriving {
	struct arriving *next;
	bool listed;
	char id[POSTCOPY_ID_MAX + 1];
	size_t n;
	struct arriving_range ranges[POSTCOPY_REGIONS_MAX];
};

/*
 * @regions: those that are private to the guest are left out
 * @pid: of the process whose memory it is; 0: ours
 */
void arriving_add(struct arriving *a, const char *id, const struct postcopy_region *regions,
                  size_t n_regions, pid_t pid);

/* All is there, or the destination is no more. It need not be in the list. */
void arriving_remove(struct arriving *a);

/* Return: 0, or -EBUSY with @err naming the region and the migration that fills it. */
int arriving_check(const struct postcopy_region *regions, size_t n_regions, pid_t pid,
                   struct error *err);

#endif
