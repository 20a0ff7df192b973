/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a guest's memory lies: Cloud Hypervisor's memory slots, one region each.
 *
 * Its Config names them (memory_manager_data.guest_ram_mappings); what their pages are made of, the
 * slots' files tell. Both travel in the vmstate (cloud_hypervisor/envelope.h), so that the
 * destination can make files of the same shape before it has told its own Cloud Hypervisor
 * anything.
 */
#ifndef CLOUD_HYPERVISOR_LAYOUT_H
#define CLOUD_HYPERVISOR_LAYOUT_H

#include <stddef.h>

#include "postcopy/postcopy.h"
#include "util/error.h"

#define CH_SLOTS_MAX POSTCOPY_REGIONS_MAX

struct ch_slot {
	uint32_t slot; /* Cloud Hypervisor's number */
	uint64_t guest_phys_addr;
	uint64_t size;        /* bytes */
	uint64_t file_offset; /* into the slot's file: zones may share one */
	uint64_t page_size;   /* 4 KiB, or the huge page of its hugetlbfs */
};

struct ch_layout {
	size_t n;
	struct ch_slot slots[CH_SLOTS_MAX];
};

/*
 * ch_layout_add() - check a slot, and append it
 *
 * Return: 0; -EINVAL or -E2BIG with @err.
 */
int ch_layout_add(struct ch_layout *layout, const struct ch_slot *slot, struct error *err);

/*
 * ch_layout_read() - the slots of a Config, as JSON; page sizes are 4 KiB
 *
 * Return: 0; -EPROTO where it is not what we know of Config; with @err.
 */
int ch_layout_read(const char *config, size_t len, struct ch_layout *ret, struct error *err);

/* What a slot's file is made of into its page_size. Return: 0, or -EINVAL with @err. */
int ch_slot_take_file(struct ch_slot *slot, int fd, struct error *err);

/* A file for a slot at the destination: empty, and of a size that nobody can change. */
int ch_slot_make_file(const struct ch_slot *slot, int *ret_fd, struct error *err);

/* The slot's region, all but the host address. @fd: of the slot's file. */
struct postcopy_region ch_slot_region(const struct ch_slot *slot, int fd);

/* The slot that all of a range lies in, or NULL. */
const struct ch_slot *ch_layout_find(const struct ch_layout *layout, uint64_t guest_phys_addr,
                                     uint64_t len);

#endif
