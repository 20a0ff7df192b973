/* SPDX-License-Identifier: Apache-2.0 */
/* What the process before has left of a migration; it may have been of another version. */
#include "fuzz.h"

#include <string.h>

#include "migrate/record/saved.h"
#include "util/record.h"

const unsigned int fuzz_rounds = 100000;

/* What the take-over relies on. */
static void check_saved(const struct saved *s)
{
	const struct migration_params *p = &s->params;

	FUZZ_CHECK(!vmm_wire_id_check(p->id, NULL));
	FUZZ_CHECK(p->role == MIGRATION_SOURCE || p->role == MIGRATION_DESTINATION);
	FUZZ_CHECK(s->state < MIGRATION_STATES && s->farewell <= FAREWELL_ABORT);
	FUZZ_CHECK(s->n_regions <= REGIONS_MAX);
	FUZZ_CHECK(s->shards <= SHARDS_MAX && s->shards_offered <= SHARDS_MAX);
	if (p->role == MIGRATION_DESTINATION) {
		FUZZ_CHECK(p->streams && p->streams <= PULL_STREAMS_MAX);
		FUZZ_CHECK(s->limits.streams && s->limits.streams <= PULL_STREAMS_MAX);
	}
	FUZZ_CHECK(memchr(p->client, 0, sizeof p->client));
	FUZZ_CHECK(memchr(s->reason, 0, sizeof s->reason));
	FUZZ_CHECK(memchr(s->holder.name, 0, sizeof s->holder.name));
	for (unsigned int i = 0; i < VMM_WIRE_FDS_MAX; i++)
		FUZZ_CHECK(memchr(s->entries[i], 0, sizeof s->entries[i]));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static uint8_t written[4 * RECORD_BYTES_MAX], again[4 * RECORD_BYTES_MAX];
	static struct saved saved, back;
	struct error err = ERROR_INIT;
	size_t len;

	if (saved_decode(data, size, &saved, &err)) {
		FUZZ_CHECK(err.code < 0 && *err.text);
		return 0;
	}
	check_saved(&saved);
	/* Written by this version it fits its slot, and comes to the same. */
	len = saved_encode(&saved, written);
	FUZZ_CHECK(len <= RECORD_BYTES_MAX);
	FUZZ_CHECK(!saved_decode(written, len, &back, &err));
	FUZZ_CHECK(saved_encode(&back, again) == len && !memcmp(written, again, len));
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static struct saved s;

	memset(&s, 0, sizeof s);
	s.params = (struct migration_params){ .id = "vm-7", .streams = 3, .client = "uid 0" };
	s.params.role = i % 2 ? MIGRATION_SOURCE : MIGRATION_DESTINATION;
	s.target = s.params.source = (struct conn_target){ .host = "h.example", .port = "7777" };
	s.limits = (struct migration_limits){ .streams = 2, .bulk = true };
	s.state = i % 2 ? MIGRATION_PAUSED : MIGRATION_POSTCOPY;
	s.epoch = 1ull << 63;
	s.holder = (struct stream_holder){ .bound = i % 2, .name = "host2" };
	s.times = (struct migration_times){ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };
	s.n_regions = i;
	s.shards = i == 2 ? 8 : 0;
	s.shards_offered = i ? 0 : 2;
	for (uint32_t n = 0; n < i; n++) {
		s.regions[n] = (struct vmm_wire_region){ POSTCOPY_MEMORY_MEMFD, .size = 1u << 30 };
		snprintf(s.entries[n], sizeof s.entries[n], "mem%u.vm-6", n);
	}
	return i < 4 ? saved_encode(&s, buf) : 0;
}
