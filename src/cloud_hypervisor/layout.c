/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "util/cleanup.h"

#define PAGE_4K 4096ull
#define PAGE_2M (2ull << 20)
#define PAGE_1G (1ull << 30)
/* A guest physical address has 52 bits at most, a file's offset 63. */
#define ADDR_MAX (1ull << 52)

static void json_put(struct json_object **object)
{
	json_object_put(*object);
}

static void tokener_free(struct json_tokener **tokener)
{
	if (*tokener)
		json_tokener_free(*tokener);
}

int ch_layout_add(struct ch_layout *layout, const struct ch_slot *slot, struct error *err)
{
	if (layout->n == CH_SLOTS_MAX)
		return error_set(err, -E2BIG, "more than %d memory slots", CH_SLOTS_MAX);
	if (slot->page_size != PAGE_4K && slot->page_size != PAGE_2M && slot->page_size != PAGE_1G)
		return error_set(err, -EINVAL, "memory slot %u: pages of %llu bytes", slot->slot,
		                 (unsigned long long)slot->page_size);
	if (!slot->size || slot->size > ADDR_MAX || slot->guest_phys_addr > ADDR_MAX - slot->size ||
	    slot->file_offset > ADDR_MAX - slot->size ||
	    (slot->size | slot->guest_phys_addr | slot->file_offset) % slot->page_size)
		return error_set(err, -EINVAL,
		                 "memory slot %u: %#llx bytes at %#llx, file offset %#llx: not "
		                 "whole pages within 52 bits",
		                 slot->slot, (unsigned long long)slot->size,
		                 (unsigned long long)slot->guest_phys_addr,
		                 (unsigned long long)slot->file_offset);
	for (size_t i = 0; i < layout->n; i++) {
		const struct ch_slot *other = &layout->slots[i];

		if (other->slot == slot->slot ||
		    (other->guest_phys_addr < slot->guest_phys_addr + slot->size &&
		     slot->guest_phys_addr < other->guest_phys_addr + other->size))
			return error_set(err, -EINVAL,
			                 "memory slots %u and %u overlap, or are the same",
			                 other->slot, slot->slot);
	}
	layout->slots[layout->n++] = *slot;
	return 0;
}

/* A whole number that is not negative. Return: whether there is one of that name. */
static bool get_number(struct json_object *object, const char *name, uint64_t *ret)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, name, &value) ||
	    !json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
		return false;
	*ret = json_object_get_uint64(value);
	return true;
}

static int read_mapping(struct json_object *mapping, struct ch_layout *ret, struct error *err)
{
	struct ch_slot slot = { .page_size = PAGE_4K };
	uint64_t number;

	if (!json_object_is_type(mapping, json_type_object) ||
	    !get_number(mapping, "slot", &number) || number > UINT32_MAX ||
	    !get_number(mapping, "gpa", &slot.guest_phys_addr) ||
	    !get_number(mapping, "size", &slot.size) ||
	    !get_number(mapping, "file_offset", &slot.file_offset))
		return error_set(err, -EPROTO,
		                 "Config: a guest_ram_mapping lacks one of slot, gpa, size, "
		                 "file_offset");
	slot.slot = (uint32_t)number;
	return ch_layout_add(ret, &slot, err);
}

int ch_layout_read(const char *config, size_t len, struct ch_layout *ret, struct error *err)
{
	_cleanup_(tokener_free) struct json_tokener *tokener = json_tokener_new();
	_cleanup_(json_put) struct json_object *root = NULL;
	struct json_object *manager, *mappings;
	int rc = 0;

	if (!tokener)
		return error_set(err, -ENOMEM, "Config: out of memory");
	if (len > INT32_MAX)
		return error_set(err, -EPROTO, "Config of %zu bytes", len);
	root = json_tokener_parse_ex(tokener, config, (int)len);
	if (!root)
		return error_set(err, -EPROTO, "Config is no JSON: %s",
		                 json_tokener_error_desc(json_tokener_get_error(tokener)));
	if (!json_object_is_type(root, json_type_object) ||
	    !json_object_object_get_ex(root, "memory_manager_data", &manager) ||
	    !json_object_is_type(manager, json_type_object) ||
	    !json_object_object_get_ex(manager, "guest_ram_mappings", &mappings) ||
	    !json_object_is_type(mappings, json_type_array) || !json_object_array_length(mappings))
		return error_set(err, -EPROTO,
		                 "Config has no memory_manager_data.guest_ram_mappings: this "
		                 "adapter knows that of Cloud Hypervisor 54");
	*ret = (struct ch_layout){ .n = 0 };
	for (size_t i = 0; i < json_object_array_length(mappings) && !rc; i++)
		rc = read_mapping(json_object_array_get_idx(mappings, i), ret, err);
	return rc;
}

int ch_slot_take_file(struct ch_slot *slot, int fd, struct error *err)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return error_errno(err, -errno, "memory slot %u: its file", slot->slot);
	if (fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC)
		return error_set(err, -EINVAL,
		                 "memory slot %u: its file is neither of a memfd, a tmpfs nor a "
		                 "hugetlbfs",
		                 slot->slot);
	slot->page_size = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : PAGE_4K;
	return 0;
}

int ch_slot_make_file(const struct ch_slot *slot, int *ret_fd, struct error *err)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	_cleanup_close_ int fd = -1;
	char name[32];

	if (slot->page_size != PAGE_4K)
		flags |= MFD_HUGETLB | (slot->page_size == PAGE_1G ? MFD_HUGE_1GB : MFD_HUGE_2MB);
	snprintf(name, sizeof name, "postcopy-slot-%u", slot->slot);
	fd = memfd_create(name, flags);
	if (fd < 0 || ftruncate(fd, (off_t)(slot->file_offset + slot->size)) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return error_errno(err, -errno,
		                   "memory slot %u: a file of %#llx bytes, pages of %llu",
		                   slot->slot, (unsigned long long)(slot->file_offset + slot->size),
		                   (unsigned long long)slot->page_size);
	*ret_fd = steal_fd(&fd);
	return 0;
}

struct postcopy_region ch_slot_region(const struct ch_slot *slot, int fd)
{
	return (struct postcopy_region){
		.memory = slot->page_size == PAGE_4K ? POSTCOPY_MEMORY_MEMFD
		                                     : POSTCOPY_MEMORY_HUGETLB,
		.guest_phys_addr = slot->guest_phys_addr,
		.size = slot->size,
		.page_size = slot->page_size,
		.fd = fd,
		.fd_offset = slot->file_offset,
	};
}

const struct ch_slot *ch_layout_find(const struct ch_layout *layout, uint64_t guest_phys_addr,
                                     uint64_t len)
{
	for (size_t i = 0; i < layout->n; i++) {
		const struct ch_slot *s = &layout->slots[i];
		uint64_t offset = guest_phys_addr - s->guest_phys_addr;

		if (guest_phys_addr >= s->guest_phys_addr && offset < s->size &&
		    len <= s->size - offset)
			return s;
	}
	return NULL;
}
