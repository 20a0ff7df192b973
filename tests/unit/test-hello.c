/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stream/hello.h"
#include "stream.pb-c.h"

#define SIZE_2M (2ull << 20)

static void fill_table(struct region_table *table, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		/* Large numbers, so that each takes the most bytes it can. */
		struct region r = {
			.memory = i % 2 ? POSTCOPY_MEMORY_HUGETLB : POSTCOPY_MEMORY_ANONYMOUS,
			.guest_phys_addr = (1ull << 51) + ((uint64_t)i << 44),
			.size = 1ull << 44,
			.page_size = i % 2 ? 1ull << 30 : UNIT_BYTES,
		};

		assert_int_equal(region_table_add(table, &r, NULL), 0);
	}
}

static struct hello *new_hello(uint32_t n_regions)
{
	struct hello *h = calloc(1, sizeof *h);

	h->role = STREAM_CONTROL;
	memset(h->migration_id, 'm', MIGRATION_ID_MAX);
	for (int i = 0; i < PROOF_BYTES; i++)
		h->proof[i] = (uint8_t)(0xff - i);
	memset(h->holder, 0xa5, HOLDER_BYTES);
	h->epoch = UINT64_MAX;
	fill_table(&h->regions, n_regions);
	return h;
}

/* Encodes and takes the header off. Return: the payload's length. */
static size_t payload_of(const struct hello *hello, uint8_t *buf)
{
	struct frame_header h;
	size_t len = hello_encode(hello, hello->proof, buf);

	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_HELLO);
	assert_int_equal(h.payload_len + FRAME_HEADER_BYTES, len);
	memmove(buf, buf + FRAME_HEADER_BYTES, h.payload_len);
	return h.payload_len;
}

static void check_same_table(const struct region_table *a, const struct region_table *b)
{
	assert_int_equal(a->n, b->n);
	assert_int_equal(a->units, b->units);
	assert_memory_equal(a->regions, b->regions, a->n * sizeof *a->regions);
}

static void test_hello_comes_back(void **state)
{
	static const enum stream_role roles[] = { STREAM_CONTROL, STREAM_URGENT, STREAM_BULK };
	uint8_t *buf = malloc(FRAME_HEADER_BYTES + FRAME_HELLO_MAX);
	struct hello *back = calloc(1, sizeof *back);

	(void)state;
	for (uint32_t n = 0; n <= REGIONS_MAX; n += 16)
		for (size_t i = 0; i < 3; i++) {
			struct hello *hello = new_hello(n);
			struct error err = ERROR_INIT;
			size_t len;

			hello->role = roles[i];
			hello->ahead = i;
			len = payload_of(hello, buf);
			if (hello_decode(buf, len, back, &err))
				fail_msg("%s", err.text);
			assert_int_equal(back->role, roles[i]);
			assert_string_equal(back->migration_id, hello->migration_id);
			assert_memory_equal(back->proof, hello->proof, PROOF_BYTES);
			assert_memory_equal(back->holder, hello->holder, HOLDER_BYTES);
			assert_true(back->epoch == UINT64_MAX);
			assert_true(*back->daemon_version);
			assert_int_equal(back->ahead, i > 0);
			check_same_table(&back->regions, &hello->regions);
			free(hello);
		}
	free(back);
	free(buf);
}

static void test_reply_comes_back(void **state)
{
	uint8_t *buf = malloc(FRAME_HEADER_BYTES + FRAME_HELLO_MAX);
	struct hello_reply *reply = calloc(1, sizeof *reply), *back = calloc(1, sizeof *back);
	struct frame_header h;
	size_t len;

	(void)state;
	reply->epoch = 0x0123456789abcdef;
	reply->warm = true;
	reply->urgents = UINT32_MAX;
	fill_table(&reply->regions, REGIONS_MAX);
	len = hello_reply_encode(reply, buf);
	assert_int_equal(frame_header_decode(buf, &h, NULL), 0);
	assert_int_equal(h.type, FRAME_HELLO_REPLY);
	assert_int_equal(h.payload_len + FRAME_HEADER_BYTES, len);
	assert_int_equal(hello_reply_decode(buf + FRAME_HEADER_BYTES, h.payload_len, back, NULL),
	                 0);
	assert_true(back->epoch == reply->epoch);
	assert_true(back->warm);
	assert_int_equal(back->urgents, UINT32_MAX);
	assert_true(*back->daemon_version);
	check_same_table(&back->regions, &reply->regions);
	free(back);
	free(reply);
	free(buf);
}

/* What a peer says that it is goes to terminals: nothing but what a version looks like. */
static void test_a_version_is_a_word_or_nothing(void **state)
{
	static const struct {
		const char *said, *taken;
	} cases[] = {
		{ "0.1.0", "0.1.0" },
		{ "", "" },
		{ "1.0~rc1+git20261129-1", "1.0~rc1+git20261129-1" },
		{ "0123456789012345678901234567890", "0123456789012345678901234567890" },
		{ "01234567890123456789012345678901", "" },
		{ "0.1 beta", "" },
		{ "\033[2J", "" },
		{ "0.1\n", "" },
		{ "0.1\xc3\xa4", "" },
	};
	struct hello_reply *back = calloc(1, sizeof *back);

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		Postcopy__V1__StreamHelloReply m = POSTCOPY__V1__STREAM_HELLO_REPLY__INIT;
		uint8_t buf[256];
		size_t len;

		m.version = STREAM_VERSION;
		m.daemon_version = (char *)cases[i].said;
		len = postcopy__v1__stream_hello_reply__pack(&m, buf);
		assert_int_equal(hello_reply_decode(buf, len, back, NULL), 0);
		assert_string_equal(back->daemon_version, cases[i].taken);
	}
	free(back);
}

/* Where the host has it mapped is nobody else's business. */
static void test_host_addresses_do_not_travel(void **state)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	struct hello *hello = new_hello(1), *back = calloc(1, sizeof *back);
	size_t len;

	(void)state;
	hello->regions.regions[0].host_addr = 0x7f0000000000;
	hello->regions.regions[0].fd_offset = UNIT_BYTES;
	len = payload_of(hello, buf);
	assert_int_equal(hello_decode(buf, len, back, NULL), 0);
	assert_int_equal(back->regions.regions[0].host_addr, 0);
	assert_int_equal(back->regions.regions[0].fd_offset, 0);
	free(back);
	free(hello);
}

/* Cut anywhere it is an error, or a shorter message that is whole: then without the last field. */
static void test_every_truncation_is_noticed(void **state)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	struct hello *hello = new_hello(2), *back = calloc(1, sizeof *back);
	size_t len = payload_of(hello, buf);

	(void)state;
	for (size_t cut = 0; cut < len; cut++) {
		/* On the heap with its very length, so that ASan sees a read beyond it. */
		uint8_t *exact = malloc(cut ? cut : 1);
		struct error err = ERROR_INIT;
		int rc;

		memcpy(exact, buf, cut);
		rc = hello_decode(exact, cut, back, &err);
		free(exact);
		assert_int_equal(err.code, rc);
		/* Without what comes last it is one of a daemon from before. */
		if (!rc)
			assert_true(back->regions.n < 2 || !*back->daemon_version);
	}
	free(back);
	free(hello);
}

static void refuse(const uint8_t *payload, size_t len, int code, const char *needle)
{
	struct hello *back = calloc(1, sizeof *back);
	struct error err = ERROR_INIT;

	assert_int_equal(hello_decode(payload, len, back, &err), code);
	if (!strstr(err.text, needle))
		fail_msg("\"%s\" does not say \"%s\"", err.text, needle);
	free(back);
}

/*
 * Written by hand, as stream.proto numbers it: 1 version, 2 role, 3 migration_id,
 * 5 epoch, 8 proof, 7 holder. @id_len and @proof_len bytes of 'a'.
 */
static size_t raw_hello(uint8_t *p, uint8_t version, const uint8_t *role, size_t role_len,
                        uint8_t id_len, uint8_t proof_len)
{
	const uint8_t *start = p;

	*p++ = 1 << 3;
	*p++ = version;
	*p++ = 2 << 3;
	memcpy(p, role, role_len);
	p += role_len;
	*p++ = 3 << 3 | 2;
	*p++ = id_len;
	memset(p, 'a', id_len);
	p += id_len;
	*p++ = 8 << 3 | 2;
	*p++ = proof_len;
	memset(p, 'a', proof_len);
	p += proof_len;
	*p++ = 7 << 3 | 2;
	*p++ = HOLDER_BYTES;
	memset(p, 'h', HOLDER_BYTES);
	p += HOLDER_BYTES;
	return (size_t)(p - start);
}

static void test_fields_out_of_bounds_are_refused(void **state)
{
	static const uint8_t bulk[] = { 3 }, zero[] = { 0 }, four[] = { 4 };
	/* -1 as protobuf has it, and 2^32 + 3, which a careless cut makes BULK. */
	static const uint8_t minus[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1 };
	uint8_t buf[512];
	struct hello *back = calloc(1, sizeof *back);

	(void)state;
	assert_int_equal(
	        hello_decode(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 64, 32), back, NULL), 0);
	assert_int_equal(back->role, STREAM_BULK);
	assert_int_equal(strlen(back->migration_id), MIGRATION_ID_MAX);
	free(back);
	/* Who is to be upgraded is said, in words that are true wherever they are read. */
	refuse(buf, raw_hello(buf, STREAM_VERSION - 1, bulk, 1, 1, 32), -EPROTO,
	       "upgrade the destination's postcopyd");
	refuse(buf, raw_hello(buf, STREAM_VERSION + 1, bulk, 1, 1, 32), -EPROTO,
	       "upgrade the source's postcopyd");
	refuse(buf, raw_hello(buf, 0, bulk, 1, 1, 32), -EPROTO, "version 0");
	refuse(buf, raw_hello(buf, STREAM_VERSION, zero, 1, 1, 32), -EPROTO, "role");
	refuse(buf, raw_hello(buf, STREAM_VERSION, four, 1, 1, 32), -EPROTO, "role");
	refuse(buf, raw_hello(buf, STREAM_VERSION, minus, sizeof minus, 1, 32), -EPROTO, "role");
	refuse(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 0, 32), -EPROTO,
	       "migration id of 0 bytes");
	refuse(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 65, 32), -EPROTO,
	       "migration id of 65 bytes");
	refuse(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 1, 31), -EPROTO, "proof of 31 bytes");
	refuse(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 1, 33), -EPROTO, "proof of 33 bytes");
	refuse(buf, raw_hello(buf, STREAM_VERSION, bulk, 1, 1, 0), -EPROTO, "proof of 0 bytes");
	/* Nothing at all is a message to protobuf, with all fields 0. */
	refuse(buf, 0, -EPROTO, "version 0");
	refuse((const uint8_t *)"\xff\xff\xff", 3, -EPROTO, "not the message");
}

/*
 * A destination without an identity can't be told from another: two of them would be given the
 * same guest.
 */
static void test_a_hello_of_nobody_is_refused(void **state)
{
	static const uint8_t bulk[] = { 3 };
	uint8_t buf[512];
	size_t len = raw_hello(buf, STREAM_VERSION, bulk, 1, 1, 32);

	(void)state;
	memset(buf + len - HOLDER_BYTES, 0, HOLDER_BYTES);
	refuse(buf, len, -EPROTO, "HELLO of nobody");
	/* One byte less of it, and none of it. */
	buf[len - HOLDER_BYTES - 1]--;
	memset(buf + len - HOLDER_BYTES, 'h', HOLDER_BYTES);
	refuse(buf, len - 1, -EPROTO, "HELLO of nobody");
	refuse(buf, len - HOLDER_BYTES - 2, -EPROTO, "HELLO of nobody");
}

static void test_a_peers_table_is_checked(void **state)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_HELLO_MAX];
	struct hello *hello = new_hello(2);

	(void)state;
	hello->regions.regions[1].size += 1;
	refuse(buf, payload_of(hello, buf), -EINVAL, "region 1: size");
	hello->regions.regions[1] = hello->regions.regions[0];
	refuse(buf, payload_of(hello, buf), -EINVAL, "regions 0 and 1 overlap");
	hello->regions.regions[0].memory = (enum postcopy_memory)9;
	refuse(buf, payload_of(hello, buf), -EINVAL, "region 0");
	free(hello);
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* Field 6: 1 guest_phys_addr, 2 size, 3 page_size, 4 memory. */
static uint8_t *raw_region(uint8_t *p, uint64_t guest_phys_addr)
{
	uint8_t body[64], *q = body;

	*q++ = 1 << 3;
	q = put_varint(q, guest_phys_addr);
	*q++ = 2 << 3;
	q = put_varint(q, UNIT_BYTES);
	*q++ = 3 << 3;
	q = put_varint(q, UNIT_BYTES);
	*q++ = 4 << 3;
	q = put_varint(q, POSTCOPY_MEMORY_MEMFD);
	*p++ = 6 << 3 | 2;
	p = put_varint(p, (uint64_t)(q - body));
	memcpy(p, body, (size_t)(q - body));
	return p + (q - body);
}

static void test_more_regions_than_there_may_be_are_refused(void **state)
{
	static const uint8_t control[] = { 1 };
	struct hello *back = calloc(1, sizeof *back);
	uint8_t buf[4096], *p = buf;

	(void)state;
	p += raw_hello(buf, STREAM_VERSION, control, 1, 1, 32);
	for (uint64_t i = 0; i < REGIONS_MAX; i++)
		p = raw_region(p, i << 30);
	assert_int_equal(hello_decode(buf, (size_t)(p - buf), back, NULL), 0);
	assert_int_equal(back->regions.n, REGIONS_MAX);
	p = raw_region(p, 1ull << 50);
	refuse(buf, (size_t)(p - buf), -E2BIG, "64 regions");
	free(back);
}

static void test_roles_have_names(void **state)
{
	(void)state;
	assert_string_equal(stream_role_name(STREAM_CONTROL), "control");
	assert_string_equal(stream_role_name(STREAM_URGENT), "urgent");
	assert_string_equal(stream_role_name(STREAM_BULK), "bulk");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hello_comes_back),
		cmocka_unit_test(test_reply_comes_back),
		cmocka_unit_test(test_a_version_is_a_word_or_nothing),
		cmocka_unit_test(test_host_addresses_do_not_travel),
		cmocka_unit_test(test_every_truncation_is_noticed),
		cmocka_unit_test(test_fields_out_of_bounds_are_refused),
		cmocka_unit_test(test_a_hello_of_nobody_is_refused),
		cmocka_unit_test(test_a_peers_table_is_checked),
		cmocka_unit_test(test_more_regions_than_there_may_be_are_refused),
		cmocka_unit_test(test_roles_have_names),
	};

	return cmocka_run_group_tests_name("hello", tests, NULL, NULL);
}
