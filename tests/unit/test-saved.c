/* SPDX-License-Identifier: Apache-2.0 */
/* A migration as bytes and back, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/record/saved.h"
#include "support.h"
#include "util/record.h"

/* Each field with a value of its own. */
static struct saved *make_saved(enum migration_role role, uint32_t n_regions)
{
	struct saved *s = calloc(1, sizeof *s);

	s->params = (struct migration_params){
		.role = role,
		.streams = 3,
		.map_given = true,
		.map = RESOLVER_MAP_LAZY,
		.prefetch = true,
		.weight = SHARE_WEIGHT_MAX,
		.bandwidth_bytes_per_s = 1ull << 40,
		.source = { .host = "2001:db8::1", .port = "7000" },
	};
	memset(s->params.id, 'i', MIGRATION_ID_MAX);
	memset(s->params.client, 'c', MIGRATION_CLIENT_BYTES - 1);
	memset(s->params.token, 0xa5, TOKEN_BYTES);
	s->params.parties.n_uids = PARTIES_UIDS_MAX;
	memset(s->params.parties.uids, 0xfe, sizeof s->params.parties.uids);
	s->params.parties.pid = INT32_MAX;
	memset(s->params.parties.cgroup, 'g', sizeof s->params.parties.cgroup - 1);
	memset(s->params.parties.peer, 'p', sizeof s->params.parties.peer - 1);
	s->target = (struct conn_target){ .host = "other.example", .port = "7001" };
	s->limits =
	        (struct migration_limits){ true, 7, true, 5, true, true, true, false, true, 999 };
	s->warming = (struct migration_warm){ true, true, 3, 1ull << 40, 5, 6 };
	s->state = MIGRATION_PAUSED;
	strcpy(s->reason, "the source is silent");
	s->n_regions = n_regions;
	for (uint32_t i = 0; i < n_regions; i++)
		s->regions[i] = (struct vmm_wire_region){
			.memory = POSTCOPY_MEMORY_HUGETLB,
			.flags = i % 2,
			.guest_phys_addr = UINT64_MAX - i,
			.size = UINT64_MAX / 2 - i,
			.page_size = 2u << 20,
			.host_addr = UINT64_MAX / 3 - i,
			.fd_offset = UINT64_MAX / 4 - i,
			.fd_index = i ? i : VMM_WIRE_NO_FD,
			.uffd_mode = 5,
		};
	for (uint32_t i = 0; i < n_regions; i++)
		memset(s->regions[i].name, 'n', POSTCOPY_REGION_NAME_MAX);
	/* The longest that there are. */
	for (uint32_t i = 0; n_regions && i < VMM_WIRE_FDS_MAX; i++)
		snprintf(s->entries[i], sizeof s->entries[i], "mem64.%s+1000", s->params.id);
	s->epoch = UINT64_MAX - 7;
	s->switchover = s->vmm_resumed = s->vmstate_held = true;
	s->memory = MIGRATION_MEMORY_CAME;
	s->vmstate_len = 1ull << 33;
	s->pause_ns = 12345;
	s->farewell = FAREWELL_ABORT;
	s->times = (struct migration_times){ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };
	return s;
}

static void test_what_is_written_is_read(void **state)
{
	static const uint32_t regions[] = { 0, 1, REGIONS_MAX };
	uint8_t *buf = malloc(RECORD_BYTES_MAX);
	struct saved *got = malloc(sizeof *got);
	struct error err = ERROR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof regions / sizeof *regions; i++) {
		struct saved *s =
		        make_saved(i % 2 ? MIGRATION_SOURCE : MIGRATION_DESTINATION, regions[i]);
		size_t len = saved_encode(s, buf);

		assert_true(len <= RECORD_BYTES_MAX);
		if (saved_decode(buf, len, got, &err))
			fail_msg("%s", err.text);
		assert_memory_equal(got, s, sizeof *s);
		free(s);
	}
	free(got);
	free(buf);
}

/* So is each record of a daemon that knew of none. */
static void test_a_record_without_parties_is_read(void **state)
{
	struct saved *s = make_saved(MIGRATION_SOURCE, 1), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);
	size_t with = saved_encode(s, buf), without;

	(void)state;
	s->params.parties = (struct parties){ .n_uids = 0 };
	without = saved_encode(s, buf);
	/* Not even an empty message. */
	assert_true(without + PARTIES_CGROUP_BYTES < with);
	assert_int_equal(saved_decode(buf, without, got, NULL), 0);
	assert_memory_equal(got, s, sizeof *s);
	assert_false(parties_are_named(&got->params.parties));
	free(s);
	free(got);
	free(buf);
}

/* A place in the queue is one that has attached and was not started; nobody else's. */
static void test_who_waits_for_its_turn_does_so_on(void **state)
{
	struct saved *s = make_saved(MIGRATION_DESTINATION, 1), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);

	(void)state;
	s->queued_ns = UINT64_MAX;
	s->priority = MIGRATION_PRIORITY_MAX;
	s->switchover = false;
	s->turn_switchover = true;
	assert_int_equal(saved_decode(buf, saved_encode(s, buf), got, NULL), -EPROTO);
	s->state = MIGRATION_ATTACHED;
	assert_int_equal(saved_decode(buf, saved_encode(s, buf), got, NULL), 0);
	assert_memory_equal(got, s, sizeof *s);
	s->priority++;
	assert_int_equal(saved_decode(buf, saved_encode(s, buf), got, NULL), -EPROTO);
	free(s);
	free(got);
	free(buf);
}

static void test_each_state_and_farewell_has_its_number(void **state)
{
	struct saved *s = make_saved(MIGRATION_SOURCE, 1), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);

	(void)state;
	for (unsigned int i = 0; i < MIGRATION_STATES; i++) {
		s->state = (enum migration_state)i;
		s->farewell = (enum migration_farewell)(i % 3);
		assert_int_equal(saved_decode(buf, saved_encode(s, buf), got, NULL), 0);
		assert_int_equal(got->state, s->state);
		assert_int_equal(got->farewell, s->farewell);
	}
	free(s);
	free(got);
	free(buf);
}

/* Field 1 is the major version, in the first two bytes: 0x08, 0x01. */
static void test_newer_major_is_refused_by_name(void **state)
{
	struct saved *s = make_saved(MIGRATION_SOURCE, 1), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);
	size_t len = saved_encode(s, buf);
	struct error err = ERROR_INIT;

	(void)state;
	assert_int_equal(buf[0], 0x08);
	assert_int_equal(buf[1], SAVED_MAJOR_LEAST);
	buf[1] = SAVED_MAJOR + 1;
	assert_int_equal(saved_decode(buf, len, got, &err), -EPROTONOSUPPORT);
	assert_non_null(strstr(err.text, "in version 5"));
	free(s);
	free(got);
	free(buf);
}

/* Of a guest with one userfaultfd an older daemon can take over; of others it must not. */
static void test_several_userfaultfds_are_of_a_newer_major(void **state)
{
	static const struct {
		unsigned int shards, offered;
		enum migration_role role;
		uint32_t n_regions;
		uint8_t major; /* 0: it makes no sense */
	} cases[] = {
		{ 0, 0, MIGRATION_DESTINATION, 1, 3 }, { 2, 0, MIGRATION_DESTINATION, 1, 4 },
		{ 8, 0, MIGRATION_DESTINATION, 1, 4 }, { 0, 8, MIGRATION_DESTINATION, 1, 4 },
		{ 1, 0, MIGRATION_DESTINATION, 1, 0 }, { 9, 0, MIGRATION_DESTINATION, 1, 0 },
		{ 0, 1, MIGRATION_DESTINATION, 1, 0 }, { 0, 9, MIGRATION_DESTINATION, 1, 0 },
		{ 2, 0, MIGRATION_DESTINATION, 0, 0 }, { 2, 0, MIGRATION_SOURCE, 1, 0 },
		{ 0, 2, MIGRATION_SOURCE, 1, 0 },
	};
	struct saved *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);
	size_t one = 0;

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct saved *s = make_saved(cases[i].role, cases[i].n_regions);
		size_t len;

		s->shards = cases[i].shards;
		s->shards_offered = cases[i].offered;
		len = saved_encode(s, buf);
		if (!i)
			one = len;
		assert_int_equal(saved_decode(buf, len, got, NULL), cases[i].major ? 0 : -EPROTO);
		if (cases[i].major) {
			assert_int_equal(buf[1], cases[i].major);
			assert_memory_equal(got, s, sizeof *s);
			/* A number of two bytes that most records have not. */
			assert_int_equal(len, one + (i ? 3 : 0));
		}
		free(s);
	}
	free(got);
	free(buf);
}

static void test_unknown_fields_are_passed_over(void **state)
{
	/* Field 1000 as a varint, field 1001 as bytes. */
	static const uint8_t more[] = { 0xc0, 0x3e, 0x2a, 0xca, 0x3e, 0x03, 'n', 'e', 'w' };
	struct saved *s = make_saved(MIGRATION_DESTINATION, 2), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX);
	size_t len = saved_encode(s, buf);

	(void)state;
	memcpy(buf + len, more, sizeof more);
	assert_int_equal(saved_decode(buf, len + sizeof more, got, NULL), 0);
	assert_memory_equal(got, s, sizeof *s);
	free(s);
	free(got);
	free(buf);
}

/* Whatever is wrong with it, it is an error with a text or a migration that makes sense. */
static void test_damaged_bytes_do_no_harm(void **state)
{
	struct saved *s = make_saved(MIGRATION_DESTINATION, 3), *got = malloc(sizeof *got);
	uint8_t *buf = malloc(RECORD_BYTES_MAX), *damaged = malloc(RECORD_BYTES_MAX);
	size_t len = saved_encode(s, buf);
	uint64_t seed = 1;

	(void)state;
	for (unsigned int round = 0; round < 50000; round++) {
		struct error err = ERROR_INIT;
		size_t cut = random_below(&seed, 4) ? len : random_below(&seed, len + 1);

		memcpy(damaged, buf, len);
		for (unsigned int n = 0; n < 3; n++)
			damaged[random_below(&seed, len)] = (uint8_t)random_next(&seed);
		if (saved_decode(damaged, cut, got, &err)) {
			assert_true(err.code && *err.text);
			continue;
		}
		assert_true(got->n_regions <= REGIONS_MAX && got->state < MIGRATION_STATES);
		assert_true(got->params.streams <= PULL_STREAMS_MAX);
	}
	free(s);
	free(got);
	free(buf);
	free(damaged);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_written_is_read),
		cmocka_unit_test(test_a_record_without_parties_is_read),
		cmocka_unit_test(test_each_state_and_farewell_has_its_number),
		cmocka_unit_test(test_newer_major_is_refused_by_name),
		cmocka_unit_test(test_several_userfaultfds_are_of_a_newer_major),
		cmocka_unit_test(test_who_waits_for_its_turn_does_so_on),
		cmocka_unit_test(test_unknown_fields_are_passed_over),
		cmocka_unit_test(test_damaged_bytes_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
