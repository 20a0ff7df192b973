/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record's two slots, damaged. Input: pairs of 3 bytes (a place among what the two slots use,
 * and what is written there), behind a byte with the lengths of what they hold. Whatever is
 * damaged: what is read is one of the two versions, whole, and the older one only where the newer
 * is not.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "util/record.h"

#define HEADER_BYTES 32u
#define SLOT_BYTES (HEADER_BYTES + RECORD_BYTES_MAX)
#define CONTENT_MAX 64u

const unsigned int fuzz_rounds = 50000;

/* Slot 1 has the first version, slot 0 the second. */
static uint8_t slots[2][HEADER_BYTES + CONTENT_MAX], whole[2][HEADER_BYTES + CONTENT_MAX];

static struct record record = RECORD_INIT;

static void write_both(size_t older, size_t newer)
{
	uint8_t content[CONTENT_MAX];

	if (record.fd < 0)
		FUZZ_CHECK(!record_init(&record));
	record.sequence = 0;
	memset(content, 'a', sizeof content);
	FUZZ_CHECK(!record_write(&record, content, older));
	memset(content, 'b', sizeof content);
	FUZZ_CHECK(!record_write(&record, content, newer));
	for (unsigned int i = 0; i < 2; i++) {
		FUZZ_CHECK(pread(record.fd, slots[i], sizeof slots[i], i * SLOT_BYTES) >=
		           (ssize_t)HEADER_BYTES);
		memcpy(whole[i], slots[i], sizeof slots[i]);
	}
}

/* Beyond its content a slot may be anything. */
static bool is_whole(unsigned int i, size_t len)
{
	return !memcmp(slots[i], whole[i], HEADER_BYTES + len);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	size_t older = size ? data[0] % 8 : 0, newer = size ? data[0] / 8 : 0;
	static uint8_t got[RECORD_BYTES_MAX];
	struct error err = ERROR_INIT;
	struct record r = RECORD_INIT;
	size_t len = 0;
	int rc;

	write_both(older, newer);
	for (size_t i = 1; i + 3 <= size; i += 3)
		slots[data[i] % 2][((size_t)data[i] / 2) % sizeof slots[0]] =
		        data[i + 1] ^ data[i + 2];
	for (unsigned int i = 0; i < 2; i++)
		FUZZ_CHECK(pwrite(record.fd, slots[i], sizeof slots[i], i * SLOT_BYTES) ==
		           sizeof slots[i]);
	rc = record_adopt(&r, record.fd, got, &len, &err);
	if (rc) {
		FUZZ_CHECK(err.code == rc && *err.text && r.fd == -1);
		FUZZ_CHECK(!is_whole(0, newer) && !is_whole(1, older));
		return 0;
	}
	FUZZ_CHECK(r.fd == record.fd && len <= sizeof got);
	if (is_whole(0, newer))
		FUZZ_CHECK(r.sequence == 2 && len == newer && (!len || got[len - 1] == 'b'));
	else if (is_whole(1, older))
		FUZZ_CHECK(r.sequence == 1 && len == older && (!len || got[len - 1] == 'a'));
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const uint8_t seeds[][7] = {
		{ 0x3a, 0, 1, 1, 0, 1, 1 },       /* nothing but what is there */
		{ 0x3a, 0, 9, 9, 2, 9, 9 },       /* the newer magic */
		{ 0x3a, 48, 5, 0, 48, 5, 0 },     /* the newer checksum */
		{ 0x3a, 49, 5, 0, 64, 'c', 0 },   /* the older checksum, the newer content */
		{ 0x3a, 32, 255, 0, 33, 255, 0 }, /* both lengths */
	};

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	memcpy(buf, seeds[i], sizeof seeds[i]);
	return sizeof seeds[i];
}
