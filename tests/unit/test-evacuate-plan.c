/* SPDX-License-Identifier: Apache-2.0 */
/* Which guests go where. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <json-c/json.h>
#include <string.h>

#include "ctl/evacuate_plan.h"

#define M(id, role, state, bytes)                                                                  \
	"{\"id\":\"" id "\",\"role\":\"" role "\",\"state\":\"" state                              \
	"\",\"memory_bytes\":" #bytes "}"

static struct evacuate_plan make(const char *source, const char *const *targets, unsigned int n)
{
	struct json_object *lists[EVACUATE_TARGETS_MAX] = { NULL };
	struct json_object *list = json_tokener_parse(source);
	struct evacuate_plan plan;
	struct error err = ERROR_INIT;

	for (unsigned int i = 0; i < n; i++)
		lists[i] = json_tokener_parse(targets[i]);
	assert_int_equal(evacuate_plan_make(list, lists, n, &plan, &err), 0);
	for (unsigned int i = 0; i < n; i++)
		json_object_put(lists[i]);
	json_object_put(list);
	return plan;
}

static const char *const no_guests[] = { "{\"migrations\":[]}", "{\"migrations\":[]}" };

static void test_what_has_gone_or_is_no_source_stays(void **state)
{
	struct evacuate_plan plan = make(
	        "{\"migrations\":[" M("a", "source", "attached", 1) "," M(
	                "b", "source", "prepared",
	                1) "," M("c", "source", "complete",
	                         1) "," M("d", "destination", "attached",
	                                  1) "," M("e", "source", "failed",
	                                           1) "," M("f", "source", "paused", 1) ",7,{}]}",
	        no_guests, 1);

	(void)state;
	assert_int_equal(plan.n, 2);
	assert_string_equal(plan.guests[0].id, "a");
	assert_string_equal(plan.guests[1].id, "f");
	evacuate_plan_free(&plan);
}

static void test_memory_is_spread(void **state)
{
	struct evacuate_plan plan =
	        make("{\"migrations\":[" M("s1", "source", "attached", 10) "," M(
	                     "s2", "source", "attached", 20) "," M("big", "source", "attached",
	                                                           35) "," M("s3", "source",
	                                                                     "attached", 10) "]}",
	             no_guests, 2);

	(void)state;
	assert_int_equal(plan.n, 4);
	assert_string_equal(plan.guests[0].id, "big");
	assert_string_equal(plan.guests[1].id, "s2");
	assert_int_equal(plan.planned_bytes[0] + plan.planned_bytes[1], 75);
	assert_int_equal(plan.planned_bytes[0], 35);
	evacuate_plan_free(&plan);
}

/* Given again, after an interruption: it is followed where it goes, and before all others. */
static void test_what_is_under_way_keeps_its_target(void **state)
{
	static const char *const targets[] = {
		"{\"migrations\":[" M("a", "destination", "failed", 1) "]}",
		"{\"migrations\":[" M("a", "destination", "postcopy", 1) "," M("b", "source",
		                                                               "attached", 1) "]}",
	};
	struct evacuate_plan plan = make("{\"migrations\":[" M("b", "source", "attached", 9) "," M(
	                                         "a", "source", "postcopy", 1) "]}",
	                                 targets, 2);

	(void)state;
	assert_string_equal(plan.guests[0].id, "a");
	assert_true(plan.guests[0].under_way);
	assert_int_equal(plan.guests[0].target, 1);
	assert_false(plan.guests[1].under_way);
	assert_int_equal(plan.guests[1].target, 0);
	evacuate_plan_free(&plan);
}

static void test_another_target_until_none_is_left(void **state)
{
	struct evacuate_plan plan =
	        make("{\"migrations\":[" M("a", "source", "attached", 5) "]}", no_guests, 2);

	(void)state;
	assert_int_equal(plan.guests[0].target, 0);
	assert_true(evacuate_plan_elsewhere(&plan, &plan.guests[0]));
	assert_int_equal(plan.guests[0].target, 1);
	assert_int_equal(plan.planned_bytes[0], 0);
	assert_int_equal(plan.planned_bytes[1], 5);
	assert_false(evacuate_plan_elsewhere(&plan, &plan.guests[0]));
	assert_int_equal(plan.planned_bytes[1], 0);
	evacuate_plan_free(&plan);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_has_gone_or_is_no_source_stays),
		cmocka_unit_test(test_memory_is_spread),
		cmocka_unit_test(test_what_is_under_way_keeps_its_target),
		cmocka_unit_test(test_another_target_until_none_is_left),
	};

	return cmocka_run_group_tests_name("evacuate-plan", tests, NULL, NULL);
}
