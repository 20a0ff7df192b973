/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record's two slots, damaged. Input: a byte with the lengths of what they hold; how much of
 * either slot is missing at its end; then groups of 3 bytes, a place among what the two slots use
 * and what is written there. Whatever is damaged: what is read is one of the two versions, whole,
 * and the older one only where the newer is not. Some go by way of a memfd.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "util/record.h"

#define HEADER_BYTES 32u
#define SLOT_BYTES (HEADER_BYTES + RECORD_BYTES_MAX)
#define CONTENT_MAX 64u
#define USED_BYTES (HEADER_BYTES + CONTENT_MAX)
#define LENGTHS 256u

const unsigned int fuzz_rounds = 100000;

/* Slot 1 has the first version, slot 0 the second. */
struct slots {
	uint8_t bytes[2][USED_BYTES];
	bool known;
};

static struct record record = RECORD_INIT;

/* As record_write() leaves them, by the lengths of both versions. */
static const struct slots *good_slots(uint8_t lengths)
{
	static struct slots made[LENGTHS];
	struct slots *s = &made[lengths];
	uint8_t content[CONTENT_MAX];

	if (s->known)
		return s;
	if (record.fd < 0)
		FUZZ_CHECK(!record_init(&record));
	FUZZ_CHECK(!ftruncate(record.fd, 0));
	record.sequence = 0;
	memset(content, 'a', sizeof content);
	FUZZ_CHECK(!record_write(&record, content, lengths % 8));
	memset(content, 'b', sizeof content);
	FUZZ_CHECK(!record_write(&record, content, lengths / 8));
	for (unsigned int i = 0; i < 2; i++)
		FUZZ_CHECK(pread(record.fd, s->bytes[i], USED_BYTES, i * SLOT_BYTES) >=
		           (ssize_t)HEADER_BYTES);
	s->known = true;
	return s;
}

/* What there is of them lies at the very end of each. */
static uint8_t newer_room[USED_BYTES], older_room[USED_BYTES];

static uint8_t *slot_at(unsigned int i, size_t have)
{
	return (i ? older_room : newer_room) + USED_BYTES - have;
}

static void check_newest(const struct slots *good, const size_t have[2], const size_t lens[2])
{
	const uint8_t *const slots[2] = { slot_at(0, have[0]), slot_at(1, have[1]) };
	struct record_version got = { 0 };
	struct error err = ERROR_INIT;
	bool whole[2];
	int rc = record_newest(slots, have, &got, &err);

	/* Beyond its content a slot may be anything. */
	for (unsigned int i = 0; i < 2; i++)
		whole[i] = have[i] >= HEADER_BYTES + lens[i] &&
		           !memcmp(slots[i], good->bytes[i], HEADER_BYTES + lens[i]);
	if (rc) {
		FUZZ_CHECK(err.code == rc && *err.text);
		FUZZ_CHECK(!whole[0] && !whole[1]);
		return;
	}
	FUZZ_CHECK(got.data == slots[0] + HEADER_BYTES || got.data == slots[1] + HEADER_BYTES);
	if (whole[0])
		FUZZ_CHECK(got.sequence == 2 && got.len == lens[0]);
	else if (whole[1])
		FUZZ_CHECK(got.sequence == 1 && got.len == lens[1]);
}

/* By way of a file, where slot 0 goes on with a hole. */
static void check_adopt(const size_t have[2])
{
	const uint8_t *const slots[2] = { slot_at(0, have[0]), slot_at(1, have[1]) };
	static uint8_t got[RECORD_BYTES_MAX];
	struct record_version newest;
	struct record r = RECORD_INIT;
	size_t len = 0;
	int rc;

	FUZZ_CHECK(!ftruncate(record.fd, 0));
	for (unsigned int i = 0; i < 2; i++)
		FUZZ_CHECK(pwrite(record.fd, slots[i], have[i], i * SLOT_BYTES) ==
		           (ssize_t)have[i]);
	rc = record_adopt(&r, record.fd, got, &len, NULL);
	if (!record_newest(slots, have, &newest, NULL))
		FUZZ_CHECK(!rc && r.fd == record.fd && r.sequence == newest.sequence &&
		           len == newest.len && !memcmp(got, newest.data, len));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	const struct slots *good;
	size_t have[2], lens[2];

	if (size < 3)
		return 0;
	good = good_slots(data[0]);
	lens[0] = data[0] / 8;
	lens[1] = data[0] % 8;
	for (unsigned int i = 0; i < 2; i++) {
		have[i] = USED_BYTES - data[1 + i] % (USED_BYTES + 1);
		memcpy(slot_at(i, have[i]), good->bytes[i], have[i]);
	}
	for (size_t i = 3; i + 3 <= size; i += 3) {
		unsigned int which = data[i] % 2;
		size_t at = data[i] / 2 % USED_BYTES;

		if (at < have[which])
			slot_at(which, have[which])[at] = data[i + 1] ^ data[i + 2];
	}
	check_newest(good, have, lens);
	/* A file costs more than a hundred looks. */
	if (data[0] == UINT8_MAX && !data[1])
		check_adopt(have);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const uint8_t seeds[][9] = {
		{ 0x3a, 0, 0, 0, 'p', 0, 1, 'p', 0 },   /* nothing but what is there */
		{ 0x3a, 0, 0, 0, 9, 9, 2, 9, 9 },       /* the newer magic */
		{ 0x3a, 0, 0, 48, 5, 0, 48, 5, 0 },     /* the newer checksum */
		{ 0x3a, 0, 0, 49, 5, 0, 64, 'c', 0 },   /* the older checksum, the newer content */
		{ 0x3a, 0, 0, 32, 255, 0, 33, 255, 0 }, /* both lengths */
		{ 0x3a, 90, 62, 0, 'p', 0, 1, 'p', 0 }, /* the newer one cut off */
		{ 0xff, 0, 0, 48, 5, 0, 0, 'p', 0 },    /* by a memfd */
	};

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	memcpy(buf, seeds[i], sizeof seeds[i]);
	return sizeof seeds[i];
}
