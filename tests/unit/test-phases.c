/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fault/brought.h"
#include "fault/phases.h"
#include "support.h"

static void assert_phases(const struct fault_record *r, enum fault_phase longest,
                          const uint64_t ns[FAULT_PHASES])
{
	struct fault_durations d;
	uint64_t sum = 0;

	assert_int_equal(fault_record_durations(r, &d), longest);
	for (unsigned int i = 0; i < FAULT_PHASES; i++) {
		if (d.ns[i] != ns[i])
			fail_msg("%s: %llu ns, not %llu", fault_phase_name(i),
			         (unsigned long long)d.ns[i], (unsigned long long)ns[i]);
		sum += d.ns[i];
	}
	assert_int_equal(d.total_ns, sum);
	assert_int_equal(d.total_ns, fault_record_total_ns(r));
}

static void test_phases_add_up(void **state)
{
	struct fault_record r = { .read_ns = 1000,
		                  .asked_ns = 1010,
		                  .sent_ns = 1030,
		                  .received_ns = 1130,
		                  .filled_ns = 1133,
		                  .mapped_ns = 1140 };

	(void)state;
	assert_phases(&r, FAULT_ANSWER, (const uint64_t[]){ 10, 20, 100, 3, 7 });
	r.asked_ns = 1029;
	r.sent_ns = 1030;
	r.received_ns = 1031;
	assert_phases(&r, FAULT_FILL, (const uint64_t[]){ 29, 1, 1, 102, 7 });
	r.asked_ns = r.sent_ns = 1131;
	assert_phases(&r, FAULT_QUEUE, (const uint64_t[]){ 131, 0, 0, 2, 7 });
}

static void test_missing_stamps_are_empty_phases(void **state)
{
	struct fault_record r = { .read_ns = 1000, .mapped_ns = 1140 };

	(void)state;
	assert_phases(&r, FAULT_MAP, (const uint64_t[]){ 0, 0, 0, 0, 140 });
	r.received_ns = 1100;
	assert_phases(&r, FAULT_ANSWER, (const uint64_t[]){ 0, 0, 100, 0, 40 });
	/* Somebody else was done while this thread was asking still. */
	r = (struct fault_record){ .read_ns = 1000,
		                   .asked_ns = 1100,
		                   .sent_ns = 1300,
		                   .received_ns = 1110,
		                   .filled_ns = 1110,
		                   .mapped_ns = 1200 };
	assert_phases(&r, FAULT_QUEUE, (const uint64_t[]){ 100, 100, 0, 0, 0 });
	r.mapped_ns = 900;
	assert_phases(&r, FAULT_QUEUE, (const uint64_t[]){ 0, 0, 0, 0, 0 });
}

static void test_each_phase_has_a_name(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		for (unsigned int j = 0; j < i; j++)
			assert_string_not_equal(fault_phase_name(i), fault_phase_name(j));
	assert_string_equal(fault_phase_name(FAULT_QUEUE), "queue");
	assert_string_equal(fault_phase_name(FAULT_PHASES), "?");
}

/* All members of record @i are known from one of them. */
static struct fault_record record(uint64_t i)
{
	return (struct fault_record){ .addr = i * 4096,
		                      .tid = (uint32_t)i,
		                      .flags = i & 0xff,
		                      .read_ns = i + 1,
		                      .asked_ns = i + 2,
		                      .sent_ns = i + 3,
		                      .received_ns = i + 4,
		                      .filled_ns = i + 5,
		                      .mapped_ns = 2 * i + 1 };
}

static bool is_record(const struct fault_record *r)
{
	struct fault_record whole = record(r->read_ns - 1);

	return !memcmp(r, &whole, sizeof whole);
}

static void test_ring_keeps_the_latest(void **state)
{
	struct fault_ring *ring = calloc(1, sizeof *ring);
	struct fault_record r;

	(void)state;
	assert_int_equal(fault_ring_first(ring), 0);
	assert_false(fault_ring_get(ring, 0, &r));
	for (uint64_t i = 0; i < FAULT_RING_MAX + 10; i++) {
		r = record(i);
		fault_ring_add(ring, &r);
	}
	assert_int_equal(fault_ring_first(ring), 10);
	assert_false(fault_ring_get(ring, 9, &r));
	for (uint64_t i = 10; i < FAULT_RING_MAX + 10; i++) {
		assert_true(fault_ring_get(ring, i, &r));
		assert_true(is_record(&r) && r.read_ns == i + 1);
	}
	assert_false(fault_ring_get(ring, FAULT_RING_MAX + 10, &r));
	free(ring);
}

/* One that is read in time loses nothing, and one that is slow takes little. */
static void test_ring_is_as_large_as_a_second_needs(void **state)
{
	struct fault_ring *ring = calloc(1, sizeof *ring);
	uint64_t ns = 0, n = 0;
	struct fault_record r;

	(void)state;
	for (; n < 10 * FAULT_RING_MIN; n++) {
		r = (struct fault_record){ .read_ns = n + 1, .mapped_ns = ns };
		ns += FAULT_RING_KEEP_NS / FAULT_RING_MIN + 1;
		fault_ring_add(ring, &r);
	}
	assert_int_equal(fault_ring_first(ring), 9 * FAULT_RING_MIN);
	/* From here on four times as many in a second. */
	for (uint64_t until = n + 20 * FAULT_RING_MIN; n < until; n++) {
		r = (struct fault_record){ .read_ns = ns, .mapped_ns = ns };
		ns += FAULT_RING_KEEP_NS / FAULT_RING_MIN / 4 + 1;
		fault_ring_add(ring, &r);
		/* Also while it grows. */
		for (uint64_t i = n + 1 - FAULT_RING_MIN; i <= n; i++)
			assert_true(fault_ring_get(ring, i, &r));
	}
	assert_int_equal(fault_ring_first(ring), n - 4 * FAULT_RING_MIN);
	for (uint64_t i = n - 4 * FAULT_RING_MIN; i < n; i++)
		assert_true(fault_ring_get(ring, i, &r));
	assert_false(fault_ring_get(ring, n - 4 * FAULT_RING_MIN - 1, &r));
	free(ring);
}

/* A ring of one record, and what is kept of it. */
static struct fault_record as_kept(const struct fault_record *r)
{
	struct fault_ring *ring = calloc(1, sizeof *ring);
	struct fault_record ret;

	fault_ring_add(ring, r);
	assert_true(fault_ring_get(ring, 0, &ret));
	free(ring);
	return ret;
}

static void test_a_record_is_kept_with_its_stamps(void **state)
{
	const uint64_t second = 1000000000, hour = 3600 * second, at = 1000 * hour;
	struct fault_record r = { .addr = 0x7fffffffff000,
		                  .tid = (1u << 22) - 1,
		                  .flags = FAULT_FETCHED | FAULT_BROUGHT,
		                  .read_ns = at,
		                  .sent_ns = at,
		                  .received_ns = at + 1,
		                  .filled_ns = at + 2 * second,
		                  .mapped_ns = at + 3 * hour };
	struct fault_record k = as_kept(&r);

	(void)state;
	assert_true(k.addr == r.addr && k.tid == r.tid && k.flags == r.flags);
	assert_true(k.read_ns == at && k.asked_ns == 0 && k.sent_ns == at);
	assert_true(k.received_ns == at + 1 && k.filled_ns == at + 2 * second);
	/* What takes so long is not told to the nanosecond. */
	assert_true(k.mapped_ns <= r.mapped_ns && r.mapped_ns - k.mapped_ns < 1u << 15);
	/* Before it was read nothing was for it; and there is a longest time. */
	r.filled_ns = at - 1;
	r.mapped_ns = at + 100 * hour;
	k = as_kept(&r);
	assert_int_equal(k.filled_ns, at);
	assert_true(k.mapped_ns > at + 19 * hour && k.mapped_ns < at + 20 * hour);
	for (uint64_t ns = (1ull << 31) - 3; ns < (1ull << 31) + 3; ns++) {
		r.mapped_ns = at + ns;
		k = as_kept(&r);
		assert_true(k.mapped_ns <= at + ns && at + ns - k.mapped_ns < 1u << 15);
	}
}

/* All of them while there is room; then each of every 2^k-th, whenever it is looked. */
static void test_sample_is_of_the_whole_time(void **state)
{
	struct fault_sample *sample = calloc(1, sizeof *sample);
	struct fault_record *r = calloc(FAULT_SAMPLE_MAX, sizeof *r);
	uint64_t every, look_at = 1;

	(void)state;
	assert_int_equal(fault_sample_get(sample, r, &every), 0);
	assert_int_equal(every, 1);
	for (uint64_t n = 1; n <= 300 * FAULT_SAMPLE_MAX; n++) {
		struct fault_record one = record(n - 1);
		uint64_t kept, sum = 0;

		fault_sample_add(sample, &one);
		if (n != look_at)
			continue;
		look_at += n < 2 * FAULT_SAMPLE_MAX ? 97 : 9973;
		kept = fault_sample_get(sample, r, &every);
		assert_true(n > FAULT_SAMPLE_MAX || every == 1);
		assert_int_equal(kept, (n + every - 1) / every);
		assert_true(kept > FAULT_SAMPLE_MAX / 2 || every == 1);
		for (uint64_t i = 0; i < kept; i++) {
			assert_true(is_record(&r[i]));
			assert_int_equal((r[i].read_ns - 1) % every, 0);
			sum += (r[i].read_ns - 1) / every;
		}
		/* Each once. */
		assert_int_equal(sum, kept * (kept - 1) / 2);
	}
	assert_int_equal(every, 512);
	free(r);
	free(sample);
}

static void test_slowest_are_kept_in_order(void **state)
{
	enum { RECORDS = 5000 };
	struct fault_slow *slow = calloc(1, sizeof *slow);
	struct fault_record r[FAULT_SLOW_MAX];

	(void)state;
	assert_int_equal(fault_slow_get(slow, r), 0);
	/* Each once, not in order: 7 and 5000 have no divisor in common. */
	for (uint64_t i = 0; i < RECORDS; i++) {
		struct fault_record one = record(i * 7 % RECORDS);

		fault_slow_add(slow, &one);
	}
	assert_int_equal(fault_slow_get(slow, r), FAULT_SLOW_MAX);
	for (uint64_t i = 0; i < FAULT_SLOW_MAX; i++) {
		assert_true(is_record(&r[i]));
		assert_int_equal(fault_record_total_ns(&r[i]), RECORDS - 1 - i);
	}
	free(slow);
}

struct readers {
	struct fault_ring ring;
	struct fault_slow slow;
	struct fault_sample sample;
	atomic_bool stop;
	_Atomic unsigned int torn;
};

static void *reader_main(void *arg)
{
	struct readers *s = arg;
	struct fault_record r[FAULT_SAMPLE_MAX];

	_Static_assert(FAULT_SLOW_MAX <= FAULT_SAMPLE_MAX, "there is room for either");
	while (!atomic_load(&s->stop)) {
		uint64_t first = fault_ring_first(&s->ring), every;
		size_t n = fault_slow_get(&s->slow, r);

		for (size_t i = 0; i < n; i++)
			if (!is_record(&r[i]))
				atomic_fetch_add(&s->torn, 1);
		n = fault_sample_get(&s->sample, r, &every);
		for (size_t i = 0; i < n; i++)
			if (!is_record(&r[i]) || (r[i].read_ns - 1) % every)
				atomic_fetch_add(&s->torn, 1);
		for (uint64_t i = first; i < first + 64; i++)
			if (fault_ring_get(&s->ring, i, &r[0]) && !is_record(&r[0]))
				atomic_fetch_add(&s->torn, 1);
	}
	return NULL;
}

static void test_reader_never_sees_half_a_record(void **state)
{
	struct readers *s = calloc(1, sizeof *s);
	pthread_t reader;

	(void)state;
	assert_int_equal(pthread_create(&reader, NULL, reader_main, s), 0);
	for (uint64_t i = 0; i < 50000; i++) {
		struct fault_record r = record(i);

		fault_ring_add(&s->ring, &r);
		fault_slow_add(&s->slow, &r);
		fault_sample_add(&s->sample, &r);
	}
	atomic_store(&s->stop, true);
	pthread_join(reader, NULL);
	assert_int_equal(atomic_load(&s->torn), 0);
	free(s);
}

static void test_note_is_taken_once(void **state)
{
	struct brought *b = calloc(1, sizeof *b);
	uint64_t filled_ns = 0, mapped_ns = 0;

	(void)state;
	assert_false(brought_take(b, 0, 0, &filled_ns, &mapped_ns));
	brought_note(b, 0, 0, 10, 20);
	brought_note(b, 1, 0, 11, 21);
	brought_note(b, 0, 1, 12, 22);
	assert_false(brought_take(b, 1, 1, &filled_ns, &mapped_ns));
	assert_true(brought_take(b, 1, 0, &filled_ns, &mapped_ns));
	assert_true(filled_ns == 11 && mapped_ns == 21);
	assert_false(brought_take(b, 1, 0, &filled_ns, &mapped_ns));
	assert_true(brought_take(b, 0, 0, &filled_ns, &mapped_ns));
	assert_true(filled_ns == 10 && mapped_ns == 20);
	assert_true(brought_take(b, 0, 1, &filled_ns, &mapped_ns));
	assert_true(filled_ns == 12 && mapped_ns == 22);
	free(b);
}

/* Notes that nobody takes give way to newer ones. */
static void test_newest_notes_are_there_however_many_were_left(void **state)
{
	struct brought *b = calloc(1, sizeof *b);
	uint64_t filled_ns, mapped_ns, there = 0;
	const uint64_t n = 100 * BROUGHT_PLACES, newest = BROUGHT_PLACES / 4;

	(void)state;
	for (uint64_t i = 0; i < n; i++)
		brought_note(b, 0, i, i + 1, i + 2);
	for (uint64_t i = n - newest; i < n; i++) {
		if (!brought_take(b, 0, i, &filled_ns, &mapped_ns))
			continue;
		assert_true(filled_ns == i + 1 && mapped_ns == i + 2);
		there++;
	}
	assert_true(there > newest * 9 / 10);
	free(b);
}

#define NOTERS 3u
#define NOTES 200000u

struct noter {
	pthread_t thread;
	struct brought *b;
	uint32_t region;
};

static void *noter_main(void *arg)
{
	struct noter *t = arg;

	for (uint64_t i = 0; i < NOTES; i++)
		brought_note(t->b, t->region, i, i + t->region, i + 1);
	return NULL;
}

static void test_notes_of_many_threads_are_never_mixed_up(void **state)
{
	struct brought *b = calloc(1, sizeof *b);
	struct noter noters[NOTERS];
	uint64_t filled_ns, mapped_ns;

	(void)state;
	for (uint32_t i = 0; i < NOTERS; i++) {
		noters[i] = (struct noter){ .b = b, .region = i };
		assert_int_equal(pthread_create(&noters[i].thread, NULL, noter_main, &noters[i]),
		                 0);
	}
	for (uint64_t i = 0; i < NOTES; i++)
		for (uint32_t region = 0; region < NOTERS; region++)
			if (brought_take(b, region, i, &filled_ns, &mapped_ns))
				assert_true(filled_ns == i + region && mapped_ns == i + 1);
	for (uint32_t i = 0; i < NOTERS; i++)
		pthread_join(noters[i].thread, NULL);
	free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_phases_add_up),
		cmocka_unit_test(test_missing_stamps_are_empty_phases),
		cmocka_unit_test(test_each_phase_has_a_name),
		cmocka_unit_test(test_ring_keeps_the_latest),
		cmocka_unit_test(test_ring_is_as_large_as_a_second_needs),
		cmocka_unit_test(test_a_record_is_kept_with_its_stamps),
		cmocka_unit_test(test_sample_is_of_the_whole_time),
		cmocka_unit_test(test_slowest_are_kept_in_order),
		cmocka_unit_test(test_reader_never_sees_half_a_record),
		cmocka_unit_test(test_note_is_taken_once),
		cmocka_unit_test(test_newest_notes_are_there_however_many_were_left),
		cmocka_unit_test(test_notes_of_many_threads_are_never_mixed_up),
	};

	return cmocka_run_group_tests_name("phases", tests, NULL, NULL);
}
