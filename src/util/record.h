/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A record that a process leaves to the next one, in a memfd.
 *
 * It has two slots, written in turn, each with a sequence number, a length and a checksum over
 * all of that and the content. A process that is killed in the middle of a write leaves the slot
 * before whole, and that is what the next one reads.
 *
 * Threads: none of its own; one owner.
 */
#ifndef UTIL_RECORD_H
#define UTIL_RECORD_H

#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

/* Of content, in one slot. */
#define RECORD_BYTES_MAX 40960u

struct record {
	int fd; /* -1: none */
	uint64_t sequence;
};

#define RECORD_INIT ((struct record){ .fd = -1 })

/* An empty one. Return: 0 or -errno. */
int record_init(struct record *r);
void record_deinit(struct record *r);

/* Write the next version of it. Return: 0; -EMSGSIZE; or -errno, with the last version kept. */
int record_write(struct record *r, const void *data, size_t len);

struct record_version {
	uint64_t sequence;
	const uint8_t *data; /* in its slot */
	size_t len;
};

/*
 * record_newest() - which version counts
 * @slots: of either slot what there is, @have bytes
 *
 * Return: 0; -ENODATA where neither was ever written; -EPROTO where none is whole, or of another
 * layout; with @err.
 */
int record_newest(const uint8_t *const slots[2], const size_t have[2], struct record_version *ret,
                  struct error *err);

/*
 * record_adopt() - read the newest whole version, and go on from it
 * @fd: a memfd that record_write() wrote; taken over on success only
 * @ret_data: RECORD_BYTES_MAX bytes
 *
 * Return: as record_newest(), -ENOMEM, or the errno of reading it; with @err.
 */
int record_adopt(struct record *r, int fd, void *ret_data, size_t *ret_len, struct error *err);

#endif
