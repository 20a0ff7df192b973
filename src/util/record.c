/* SPDX-License-Identifier: Apache-2.0 */
#include "util/record.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "util/bytes.h"
#include "util/cleanup.h"

/* Bumped with each change of what a slot looks like; the content has versions of its own. */
#define SLOT_MAGIC 0x3230726370747370ull /* "pstpcr02" */
/* u64 magic, u64 sequence, u64 length, u64 checksum */
#define SLOT_HEADER_BYTES 32u
#define SLOT_BYTES (SLOT_HEADER_BYTES + RECORD_BYTES_MAX)

struct slot {
	uint64_t sequence;
	uint64_t len;
	bool foreign; /* there is something, but not of this layout */
};

/* FNV-1a: it has to tell a torn write, not an enemy. */
static uint64_t mix(uint64_t sum, const void *data, size_t len)
{
	const uint8_t *byte = data;

	while (len--)
		sum = (sum ^ *byte++) * 0x100000001b3ull;
	return sum;
}

static uint64_t checksum(const uint8_t *slot, size_t len)
{
	uint64_t sum = mix(0xcbf29ce484222325ull, slot, SLOT_HEADER_BYTES - sizeof(uint64_t));

	return mix(sum, slot + SLOT_HEADER_BYTES, len);
}

int record_init(struct record *r)
{
	int fd = memfd_create("postcopy-record", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	*r = (struct record){ .fd = fd };
	return 0;
}

void record_deinit(struct record *r)
{
	close_fd(&r->fd);
}

int record_write(struct record *r, const void *data, size_t len)
{
	uint8_t slot[SLOT_BYTES], *to = slot;
	uint64_t sequence = r->sequence + 1;
	ssize_t n;

	if (len > RECORD_BYTES_MAX)
		return -EMSGSIZE;
	to = put_u64(to, SLOT_MAGIC);
	to = put_u64(to, sequence);
	to = put_u64(to, len);
	memcpy(slot + SLOT_HEADER_BYTES, data, len);
	put_u64(to, checksum(slot, len));
	n = pwrite(r->fd, slot, SLOT_HEADER_BYTES + len, (off_t)(sequence % 2 * SLOT_BYTES));
	if (n != (ssize_t)(SLOT_HEADER_BYTES + len))
		return n < 0 ? -errno : -ENOSPC;
	r->sequence = sequence;
	return 0;
}

/* Return: whether the slot is whole; @ret->foreign where it is somebody else's. */
static bool read_slot(int fd, unsigned int index, uint8_t *slot, struct slot *ret)
{
	ssize_t n = pread(fd, slot, SLOT_BYTES, (off_t)(index * SLOT_BYTES));
	struct reader r = reader_init(slot, n < 0 ? 0 : (size_t)n);
	uint64_t magic = get_u64(&r), sum;

	*ret = (struct slot){ .foreign = false };
	ret->sequence = get_u64(&r);
	ret->len = get_u64(&r);
	sum = get_u64(&r);
	if (n < (ssize_t)SLOT_HEADER_BYTES || !magic)
		return false;
	ret->foreign = magic != SLOT_MAGIC;
	return !ret->foreign && ret->len <= (uint64_t)n - SLOT_HEADER_BYTES &&
	       sum == checksum(slot, ret->len);
}

int record_adopt(struct record *r, int fd, void *ret_data, size_t *ret_len, struct error *err)
{
	_cleanup_free_ uint8_t *slots = malloc(2 * SLOT_BYTES);
	struct slot slot[2];
	bool whole[2];
	unsigned int newest;

	if (!slots)
		return error_set(err, -ENOMEM, "record: out of memory");
	for (unsigned int i = 0; i < 2; i++)
		whole[i] = read_slot(fd, i, slots + i * SLOT_BYTES, &slot[i]);
	if (!whole[0] && !whole[1])
		return slot[0].foreign || slot[1].foreign
		               ? error_set(err, -EPROTO,
		                           "record: of another layout than this "
		                           "daemon's")
		               : error_set(err, -ENODATA, "record: no version of it is whole");
	newest = whole[1] && (!whole[0] || slot[1].sequence > slot[0].sequence);
	*r = (struct record){ .fd = fd, .sequence = slot[newest].sequence };
	memcpy(ret_data, slots + newest * SLOT_BYTES + SLOT_HEADER_BYTES, slot[newest].len);
	*ret_len = slot[newest].len;
	return 0;
}
