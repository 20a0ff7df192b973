/* SPDX-License-Identifier: Apache-2.0 */
/* A host's bandwidth among those who move: by weight, nothing lost and nothing twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "migrate/share.h"
#include "support.h"

#define MIB (1ull << 20)
#define MAX 16

struct shares {
	struct share all[MAX];
	size_t n;
};

static struct share *add(struct shares *s, uint32_t weight)
{
	struct share *share = &s->all[s->n];

	*share = (struct share){ .next = s->n ? &s->all[s->n - 1] : NULL, .weight = weight };
	s->n++;
	return share;
}

static struct share *add_held(struct shares *s, uint32_t weight, uint64_t cap)
{
	struct share *share = add(s, weight);

	share->held = true;
	share->cap = cap;
	return share;
}

static uint64_t divide(struct shares *s, uint64_t bytes_per_s)
{
	uint64_t sum = 0;

	share_divide(bytes_per_s, &s->all[s->n - 1]);
	for (size_t i = 0; i < s->n; i++)
		sum += s->all[i].bytes_per_s;
	return sum;
}

static void test_by_weight(void **state)
{
	struct shares s = { .n = 0 };
	struct share *a = add_held(&s, 100, 0), *b = add_held(&s, 300, 0);

	(void)state;
	assert_int_equal(divide(&s, 40 * MIB), 40 * MIB);
	assert_int_equal(a->bytes_per_s, 10 * MIB);
	assert_int_equal(b->bytes_per_s, 30 * MIB);
}

static void test_own_caps_go_on_to_count(void **state)
{
	struct shares s = { .n = 0 };
	struct share *a = add_held(&s, 100, 0), *b = add_held(&s, 300, 4 * MIB);
	struct share *c = add_held(&s, 200, 0);

	(void)state;
	assert_int_equal(divide(&s, 40 * MIB), 40 * MIB);
	assert_int_equal(b->bytes_per_s, 4 * MIB);
	assert_int_equal(a->bytes_per_s, 12 * MIB);
	assert_int_equal(c->bytes_per_s, 24 * MIB);
	/* More than all may take. */
	a->cap = c->cap = MIB;
	assert_int_equal(divide(&s, 40 * MIB), 6 * MIB);
}

/* One that its own link holds back: the others have the rest, and it may grow a little. */
static void test_what_one_leaves_the_others_have(void **state)
{
	struct shares s = { .n = 0 };
	struct share *slow = add(&s, 1000), *a = add_held(&s, 100, 0), *b = add_held(&s, 100, 0);

	(void)state;
	slow->used = 4 * MIB;
	assert_int_equal(divide(&s, 45 * MIB), 45 * MIB);
	assert_int_equal(slow->bytes_per_s, 5 * MIB + SHARE_MIN_BYTES_PER_S);
	assert_int_equal(a->bytes_per_s + b->bytes_per_s, 40 * MIB - SHARE_MIN_BYTES_PER_S);
	assert_true(a->bytes_per_s - b->bytes_per_s <= 1);
	/* And when it needs it, it has its part again. */
	slow->held = true;
	divide(&s, 48 * MIB);
	assert_int_equal(slow->bytes_per_s, 40 * MIB);
}

/* Where nobody needs more, all of it is there for who will. */
static void test_what_nobody_needs_is_theirs_by_weight(void **state)
{
	struct shares s = { .n = 0 };
	struct share *a = add(&s, 100), *b = add(&s, 300);

	(void)state;
	a->used = b->used = MIB;
	assert_int_equal(divide(&s, 42 * MIB), 42 * MIB);
	assert_true(b->bytes_per_s > 2 * a->bytes_per_s && a->bytes_per_s > 10 * MIB);
}

static void test_nobody_has_nothing(void **state)
{
	struct shares s = { .n = 0 };
	struct share *light = add_held(&s, 1, 0), *idle = add(&s, 1);

	(void)state;
	for (int i = 0; i < 10; i++)
		add_held(&s, 1000, 0);
	divide(&s, SHARE_HOST_MIN_BYTES_PER_S);
	assert_int_equal(light->bytes_per_s, SHARE_MIN_BYTES_PER_S);
	assert_int_equal(idle->bytes_per_s, SHARE_MIN_BYTES_PER_S);
}

static void test_faults_come_first(void **state)
{
	(void)state;
	assert_int_equal(share_of_bulk(16 * MIB, 0), 16 * MIB);
	assert_int_equal(share_of_bulk(16 * MIB, 6 * MIB), 10 * MIB);
	assert_int_equal(share_of_bulk(16 * MIB, 15 * MIB), MIB);
	/* They are never held back, and bulk ends all the same. */
	assert_int_equal(share_of_bulk(16 * MIB, 500 * MIB), MIB);
}

/* Whatever they are: all of it is given where anybody has room, no cap is passed, and of two that
 * wait and have no cap the heavier has no less. */
static void test_any(void **state)
{
	uint64_t seed = 1;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		uint64_t total = MIB + random_below(&seed, 1ull << (21 + random_below(&seed, 29)));
		struct shares s = { .n = 0 };
		uint64_t sum, floors = 0;
		bool room = false;

		for (size_t n = 1 + random_below(&seed, MAX); n; n--) {
			struct share *share = add(&s, 1 + (uint32_t)random_below(&seed, 1000));

			share->held = random_below(&seed, 2);
			share->used = random_below(&seed, total);
			if (!random_below(&seed, 3))
				share->cap = SHARE_MIN_BYTES_PER_S + random_below(&seed, total);
			room |= !share->cap;
		}
		sum = divide(&s, total);
		for (size_t i = 0; i < s.n; i++) {
			const struct share *a = &s.all[i];

			assert_true(!a->cap || a->bytes_per_s <= a->cap);
			floors +=
			        a->bytes_per_s == SHARE_MIN_BYTES_PER_S ? SHARE_MIN_BYTES_PER_S : 0;
			for (size_t j = 0; j < s.n; j++)
				if (a->held && !a->cap && s.all[j].held &&
				    s.all[j].weight <= a->weight)
					assert_true(s.all[j].bytes_per_s <= a->bytes_per_s + s.n);
		}
		assert_true(sum <= total + floors);
		assert_true(!room || sum >= total);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_by_weight),
		cmocka_unit_test(test_own_caps_go_on_to_count),
		cmocka_unit_test(test_what_one_leaves_the_others_have),
		cmocka_unit_test(test_what_nobody_needs_is_theirs_by_weight),
		cmocka_unit_test(test_nobody_has_nothing),
		cmocka_unit_test(test_faults_come_first),
		cmocka_unit_test(test_any),
	};

	return cmocka_run_group_tests_name("share", tests, NULL, NULL);
}
