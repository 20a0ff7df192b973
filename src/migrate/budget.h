/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest takes of a host: the arithmetic of admission.h, and what the kernel's files say.
 *
 * Theory of operation
 * -------------------
 * Memory comes out of **pools**: ordinary memory is one, huge pages of each size are another. Of
 * ordinary memory each page is also **charged** to a cgroup and all those above it: to the cgroup
 * of who put it there. UFFDIO_COPY charges the VMM, whose mapping it is; a write, and a touch of
 * the daemon's own mapping, charge the daemon, and stay charged to it. Huge pages count in no
 * memory.max.
 *
 * A guest is **promised** what it has still to receive: what is here already the kernel counts.
 *
 * Nothing here opens a file or allocates.
 */
#ifndef MIGRATE_BUDGET_H
#define MIGRATE_BUDGET_H

#include "mem/region.h"

/* No limit; nothing known. */
#define BUDGET_ANY UINT64_MAX

/* What a guest has still to receive, and how. */
struct budget_guest {
	const struct region_table *table;
	uint64_t missing_bytes;
	bool lazy; /* pages are mapped when they are touched: bulk writes them */
	bool warm; /* it is copied while it runs at its source: written as well */
};

/* Of one region: UNIT_BYTES for ordinary memory, else the size of its huge pages. */
uint64_t budget_pool(const struct region *region);

/* So much of a pool it has still to receive at most. */
uint64_t budget_need(const struct budget_guest *g, uint64_t pool);

/* Of that of ordinary memory, what its VMM's cgroup is charged, or else the daemon's. */
uint64_t budget_charge(const struct budget_guest *g, bool to_daemon);

/* Sums that stop at BUDGET_ANY, and differences that stop at 0. */
uint64_t budget_add(uint64_t a, uint64_t b);
uint64_t budget_left(uint64_t of, uint64_t taken);

/* What a cgroup's files say. What is not there is BUDGET_ANY for a limit, and else 0. */
struct budget_cgroup {
	uint64_t max;
	uint64_t high;
	uint64_t current;
	uint64_t inactive_file; /* of current: the kernel takes it back before anybody is killed */
};

uint64_t budget_cgroup_limit(const struct budget_cgroup *c);
uint64_t budget_cgroup_room(const struct budget_cgroup *c);

/*
 * budget_find_cgroup() - where the memory of a process is counted
 * @text: of /proc/PID/cgroup; is cut
 * @ret_legacy: in the hierarchy of version 1
 *
 * Return: its path there; NULL where it is none, or lies outside of what this process sees.
 */
const char *budget_find_cgroup(char *text, bool *ret_legacy);

/* "MemAvailable:    1024 kB". Return: bytes; BUDGET_ANY where the kernel does not say so. */
uint64_t budget_parse_available(const char *meminfo);

/* "max", or a number of bytes. Return: @otherwise where it is neither. */
uint64_t budget_parse_bytes(const char *text, uint64_t otherwise);

/* "KEY N" in a line of its own. Return: 0 where it is not there. */
uint64_t budget_parse_stat(const char *stat, const char *key);

#endif
