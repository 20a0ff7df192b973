/* SPDX-License-Identifier: Apache-2.0 */
/* HELLO and HELLO_REPLY: what a peer says before anything else, to whom nothing is known of it. */
#include "fuzz.h"

#include <string.h>

#include "stream/hello.h"

const unsigned int fuzz_rounds = 100000;

static void check_table(const struct region_table *t)
{
	uint64_t units = 0;

	FUZZ_CHECK(t->n <= REGIONS_MAX);
	for (uint32_t i = 0; i < t->n; i++) {
		const struct region *r = &t->regions[i];

		FUZZ_CHECK(r->page_size && r->size && r->size % r->page_size == 0);
		FUZZ_CHECK(r->units == r->size / UNIT_BYTES);
		FUZZ_CHECK(r->words == (r->units + WORD_UNITS - 1) / WORD_UNITS);
		units += r->units;
	}
	FUZZ_CHECK(t->units == units);
}

/* What was accepted is accepted again when we say it ourselves, and is the same. */
static void check_hello(struct hello *hello)
{
	static uint8_t frame[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	static struct hello back;
	size_t len;

	FUZZ_CHECK(hello->role >= STREAM_CONTROL && hello->role <= STREAM_BULK);
	FUZZ_CHECK(*hello->migration_id && strlen(hello->migration_id) <= MIGRATION_ID_MAX);
	check_table(&hello->regions);
	len = hello_encode(hello, hello->proof, frame);
	FUZZ_CHECK(len <= sizeof frame);
	FUZZ_CHECK(
	        !hello_decode(frame + FRAME_HEADER_BYTES, len - FRAME_HEADER_BYTES, &back, NULL));
	FUZZ_CHECK(back.role == hello->role && back.epoch == hello->epoch);
	FUZZ_CHECK(!strcmp(back.migration_id, hello->migration_id));
	FUZZ_CHECK(!memcmp(back.proof, hello->proof, PROOF_BYTES));
	FUZZ_CHECK(!region_table_same_guest(&back.regions, &hello->regions, NULL));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static struct hello_reply reply;
	static struct hello hello;
	struct error err = ERROR_INIT;

	memset(&hello, 0, sizeof hello);
	memset(&reply, 0, sizeof reply);
	if (!hello_decode(data, size, &hello, &err))
		check_hello(&hello);
	else
		FUZZ_CHECK(err.code < 0 && *err.text);
	err = ERROR_INIT;
	if (!hello_reply_decode(data, size, &reply, &err))
		check_table(&reply.regions);
	else
		FUZZ_CHECK(err.code < 0 && *err.text);
	return 0;
}

static void fill_table(struct region_table *table, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct region r = {
			.memory = i % 2 ? POSTCOPY_MEMORY_HUGETLB : POSTCOPY_MEMORY_MEMFD,
			.guest_phys_addr = (uint64_t)i << 32,
			.size = 1ull << 30,
			.page_size = i % 2 ? 1u << 21 : UNIT_BYTES,
		};

		region_table_add(table, &r, NULL);
	}
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static uint8_t frame[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	static struct hello_reply reply;
	static struct hello hello;
	size_t len;

	hello = (struct hello){ .role = STREAM_CONTROL, .migration_id = "vm-7" };
	reply = (struct hello_reply){ .epoch = 0x0123456789abcdef };
	memset(hello.proof, 0xa5, sizeof hello.proof);
	switch (i) {
	case 0:
		fill_table(&hello.regions, 2);
		len = hello_encode(&hello, hello.proof, frame);
		break;
	case 1:
		fill_table(&hello.regions, REGIONS_MAX);
		len = hello_encode(&hello, hello.proof, frame);
		break;
	case 2:
		hello.role = STREAM_BULK;
		hello.epoch = UINT64_MAX;
		len = hello_encode(&hello, hello.proof, frame);
		break;
	case 3:
		fill_table(&reply.regions, 3);
		len = hello_reply_encode(&reply, frame);
		break;
	default:
		return 0;
	}
	memcpy(buf, frame + FRAME_HEADER_BYTES, len - FRAME_HEADER_BYTES);
	return len - FRAME_HEADER_BYTES;
}
