/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/evacuate_plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/json.h"
#include "util/error.h"

static const char *const going[] = { "warming", "switching", "postcopy", "paused" };
static const char *const not_begun[] = { "prepared", "attached" };

static bool is_one_of(const char *state, const char *const *states, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(state, states[i]))
			return true;
	return false;
}

static bool is_going(const char *state)
{
	return is_one_of(state, going, sizeof going / sizeof *going);
}

static struct json_object *list_of(struct json_object *answer, size_t *ret_n)
{
	struct json_object *list = json_find(answer, "migrations");

	*ret_n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
	return list;
}

/* Whether a target has that guest as destination, in one of the states before its end. */
static bool is_expected_at(struct json_object *target, const char *id)
{
	size_t n;
	struct json_object *list = list_of(target, &n);

	for (size_t i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(list, i);
		const char *state = json_string_or(m, "state", "");

		if (!strcmp(json_string_or(m, "id", ""), id) &&
		    !strcmp(json_string_or(m, "role", ""), "destination") &&
		    (is_going(state) ||
		     is_one_of(state, not_begun, sizeof not_begun / sizeof *not_begun)))
			return true;
	}
	return false;
}

/* What is under way first, then the largest; of the same size by their names. */
static int compare(const void *a, const void *b)
{
	const struct evacuate_guest *g = a, *h = b;

	if (g->under_way != h->under_way)
		return g->under_way ? -1 : 1;
	if (g->memory_bytes != h->memory_bytes)
		return g->memory_bytes > h->memory_bytes ? -1 : 1;
	return strcmp(g->id, h->id);
}

/* The target, of those that have not refused it, that gets the least. Return: whether there is one.
 */
static bool choose(struct evacuate_plan *plan, struct evacuate_guest *guest)
{
	unsigned int best = UINT32_MAX;

	for (unsigned int i = 0; i < plan->n_targets; i++)
		if (!(guest->refused >> i & 1) &&
		    (best == UINT32_MAX || plan->planned_bytes[i] < plan->planned_bytes[best]))
			best = i;
	if (best == UINT32_MAX)
		return false;
	guest->target = best;
	plan->planned_bytes[best] += guest->memory_bytes;
	return true;
}

static bool is_to_go(struct json_object *m)
{
	const char *state = json_string_or(m, "state", "");

	return !strcmp(json_string_or(m, "role", ""), "source") &&
	       (!strcmp(state, "attached") || is_going(state));
}

int evacuate_plan_make(struct json_object *source, struct json_object *const *targets,
                       unsigned int n_targets, struct evacuate_plan *ret, struct error *err)
{
	size_t n;
	struct json_object *list = list_of(source, &n);

	*ret = (struct evacuate_plan){ .n_targets = n_targets };
	ret->guests = calloc(n + 1, sizeof *ret->guests);
	if (!ret->guests)
		return error_set(err, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(list, i);
		struct evacuate_guest *g = &ret->guests[ret->n];

		if (!is_to_go(m))
			continue;
		ret->n++;
		snprintf(g->id, sizeof g->id, "%s", json_string_or(m, "id", ""));
		g->memory_bytes = json_count_or(m, "memory_bytes", 0);
		for (unsigned int t = 0; t < n_targets && !g->under_way; t++) {
			g->under_way = is_expected_at(targets[t], g->id);
			g->target = t;
		}
	}
	qsort(ret->guests, ret->n, sizeof *ret->guests, compare);
	for (size_t i = 0; i < ret->n; i++)
		if (ret->guests[i].under_way)
			ret->planned_bytes[ret->guests[i].target] += ret->guests[i].memory_bytes;
		else
			(void)choose(ret, &ret->guests[i]);
	return 0;
}

void evacuate_plan_free(struct evacuate_plan *plan)
{
	free(plan->guests);
	*plan = (struct evacuate_plan){ 0 };
}

bool evacuate_plan_elsewhere(struct evacuate_plan *plan, struct evacuate_guest *guest)
{
	plan->planned_bytes[guest->target] -= guest->memory_bytes;
	guest->refused |= 1u << guest->target;
	guest->under_way = false;
	return choose(plan, guest);
}
