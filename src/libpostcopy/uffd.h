/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's userfaultfd: created in the VMM's process (it traps the memory
 * of the process that created it), by us or for us, then shared with the daemon.
 */
#ifndef LIBPOSTCOPY_UFFD_H
#define LIBPOSTCOPY_UFFD_H

#include <stdint.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

/*
 * uffd_open() - a userfaultfd that traps the kernel's own accesses (KVM's) too
 * @ret_features: what the kernel has granted of what postcopy can use
 *
 * Return: 0, or -EPERM and others with what to do in @err.
 */
int uffd_open(int *ret_fd, uint64_t *ret_features, struct error *err);

/*
 * uffd_adopt() - one that was made in the VMM's process by somebody else
 *
 * Where it has not been asked for its features yet, for the same as uffd_open().
 */
int uffd_adopt(int fd, uint64_t *ret_features, struct error *err);

/*
 * uffd_open_to_log(), uffd_adopt_to_log() - one that lets all writes pass, and has them noted
 *
 * By who made it likewise, where it was not asked for its features yet.
 *
 * Return: 0; -EOPNOTSUPP before Linux 6.7; -EPERM and others; with @err set.
 */
int uffd_open_to_log(int *ret_fd, struct error *err);
int uffd_adopt_to_log(int fd, struct error *err);

/*
 * uffd_trap() - trap a region's absent pages, in whichever process the userfaultfd is of
 *
 * As uffd_register(), and nothing of what only that process can do to its own mappings.
 */
int uffd_trap(int fd, const struct postcopy_region *region, size_t index, uint32_t *ret_mode,
              struct error *err);

/* Discard what a region's file holds. Return: 0 or -errno with @err set. */
int uffd_empty_file(const struct postcopy_region *region, size_t index, struct error *err);

/*
 * uffd_register() - empty a region, trap its absent pages, and keep it from children
 * @index: of the region, for the error
 * @ret_mode: the UFFDIO_REGISTER_MODE_* that the kernel took
 *
 * Return: 0, or -EOPNOTSUPP where this kernel can't trap this kind of memory.
 */
int uffd_register(int fd, const struct postcopy_region *region, size_t index, uint32_t *ret_mode,
                  struct error *err);

/* Part of a region that was, and is trapped by nobody at the moment. Return: 0 or -errno. */
int uffd_trap_again(int fd, void *addr, uint64_t size, uint32_t mode);

void uffd_unregister(int fd, const void *addr, uint64_t size);

#endif
