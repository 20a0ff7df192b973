/* SPDX-License-Identifier: Apache-2.0 */
/* Guest memory: one region of it, of any kind that postcopy moves. */
#ifndef MINIVMM_MEMORY_H
#define MINIVMM_MEMORY_H

#include <postcopy/postcopy.h>
#include <stdbool.h>
#include <stdint.h>

struct memory {
	enum postcopy_memory kind;
	void *addr;
	uint64_t size;
	uint64_t page_size;
	uint64_t guest_phys_addr; /* 0 and ... */
	uint32_t flags;           /* ... none, unless the owner says otherwise */
	int fd;                   /* -1 for anonymous memory */
};

/*
 * memory_new() - empty guest memory
 * @no_direct_map: guest_memfd that the kernel itself can't reach
 * @vm_fd: of KVM, which makes guest_memfd
 *
 * Nothing gives it back but the end of the process: while it is registered for a
 * migration, unmapping it would wait for the daemon.
 *
 * Return: 0, -EOPNOTSUPP where this host has no such memory, or another errno.
 */
int memory_new(enum postcopy_memory kind, uint64_t size, uint64_t page_size, bool no_direct_map,
               int vm_fd, struct memory *ret, struct postcopy_error *err);

/* As libpostcopy wants it. */
struct postcopy_region memory_region(const struct memory *m);

#endif
