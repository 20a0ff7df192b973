/* SPDX-License-Identifier: Apache-2.0 */
/* Which guests of a host are to go where. */
#ifndef CTL_EVACUATE_PLAN_H
#define CTL_EVACUATE_PLAN_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

#define EVACUATE_TARGETS_MAX 32
#define EVACUATE_ID_MAX 65

struct evacuate_guest {
	char id[EVACUATE_ID_MAX];
	uint64_t memory_bytes;
	bool under_way;      /* on its way to its target already */
	unsigned int target; /* which of the targets */
	uint32_t refused;    /* a bit for each target that it could not go to */
	/* What became of it. */
	bool moved;
	unsigned int tries;
	char result[400];
};

struct evacuate_plan {
	struct evacuate_guest *guests;
	size_t n;
	unsigned int n_targets;
	uint64_t planned_bytes[EVACUATE_TARGETS_MAX]; /* of the memory that goes to each */
};

/*
 * evacuate_plan_make() - all guests that a daemon has as source and that have not gone
 * @source: its list, {migrations: [...]}
 * @targets: the targets' lists; by them a guest that is under way is known
 *
 * The largest first, each to the target that gets the least memory; before all others what is under
 * way. Return: 0 or -ENOMEM; then free with _free().
 */
int evacuate_plan_make(struct json_object *source, struct json_object *const *targets,
                       unsigned int n_targets, struct evacuate_plan *ret, struct error *err);
void evacuate_plan_free(struct evacuate_plan *plan);

/* A guest could not go where it was to go. Return: whether another target is left for it. */
bool evacuate_plan_elsewhere(struct evacuate_plan *plan, struct evacuate_guest *guest);

#endif
