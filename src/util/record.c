/* SPDX-License-Identifier: Apache-2.0 */
#include "util/record.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "util/bytes.h"
#include "util/cleanup.h"
#include "util/secret.h"

/* Bumped with each change of what a slot looks like; the content has versions of its own. */
#define SLOT_MAGIC 0x3230726370747370ull /* "pstpcr02" */
/* u64 magic, u64 sequence, u64 length, u64 checksum */
#define SLOT_HEADER_BYTES 32u
#define SLOT_BYTES (SLOT_HEADER_BYTES + RECORD_BYTES_MAX)

struct slot {
	struct record_version version;
	bool whole;
	bool empty;   /* nothing was ever written there */
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
	/* What it is about has a secret. */
	explicit_bzero(slot, SLOT_HEADER_BYTES + len);
	if (n != (ssize_t)(SLOT_HEADER_BYTES + len))
		return n < 0 ? -errno : -ENOSPC;
	r->sequence = sequence;
	return 0;
}

/* @n bytes of a slot are there. */
static struct slot look_at_slot(const uint8_t *data, size_t n)
{
	struct reader r = reader_init(data, n);
	uint64_t magic = get_u64(&r), sequence = get_u64(&r), len = get_u64(&r);
	uint64_t sum = get_u64(&r);
	struct slot s = { .version = { .sequence = sequence, .len = len } };

	s.empty = !n || (n >= sizeof magic && !magic);
	if (n < SLOT_HEADER_BYTES || !magic)
		return s;
	s.foreign = magic != SLOT_MAGIC;
	s.whole = !s.foreign && len <= n - SLOT_HEADER_BYTES && sum == checksum(data, len);
	s.version.data = data + SLOT_HEADER_BYTES;
	return s;
}

int record_newest(const uint8_t *const slots[2], const size_t have[2], struct record_version *ret,
                  struct error *err)
{
	struct slot first = look_at_slot(slots[0], have[0]);
	struct slot second = look_at_slot(slots[1], have[1]);
	bool by_second =
	        second.whole && (!first.whole || second.version.sequence > first.version.sequence);

	if (first.empty && second.empty)
		return error_set(err, -ENODATA, "record: nothing was written into it");
	if (!first.whole && !second.whole)
		return error_set(err, -EPROTO, "record: %s",
		                 first.foreign || second.foreign
		                         ? "of another layout than this daemon's"
		                         : "no version of it is whole");
	*ret = by_second ? second.version : first.version;
	return 0;
}

int record_adopt(struct record *r, int fd, void *ret_data, size_t *ret_len, struct error *err)
{
	_cleanup_secret_ uint8_t *both = malloc(2 * SLOT_BYTES);
	const uint8_t *const slots[2] = { both, both + SLOT_BYTES };
	struct record_version newest;
	size_t have[2];
	int rc;

	if (!both)
		return error_set(err, -ENOMEM, "record: out of memory");
	for (unsigned int i = 0; i < 2; i++) {
		ssize_t n = pread(fd, both + i * SLOT_BYTES, SLOT_BYTES, (off_t)(i * SLOT_BYTES));

		if (n < 0)
			return error_errno(err, -errno, "record");
		have[i] = (size_t)n;
	}
	rc = record_newest(slots, have, &newest, err);
	if (rc)
		return rc;
	*r = (struct record){ .fd = fd, .sequence = newest.sequence };
	memcpy(ret_data, newest.data, newest.len);
	*ret_len = newest.len;
	return 0;
}
