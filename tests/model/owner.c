/* SPDX-License-Identifier: Apache-2.0 */
/* The model of who owns the guest: what is bad, what is good, where it begins. */
#include "owner.h"

#include <stdio.h>
#include <string.h>

#ifndef LUCK
#define LUCK 2
#endif
bool owner_arrows[MIGRATION_STATES][MIGRATION_STATES];

static void move(unsigned int from, enum migration_state to)
{
	owner_arrows[from][to] = true;
	if (!migration_state_allows(from, to))
		model_violation("a move that migrate/state.c does not allow");
}

void owner_move_source(struct world *w, enum migration_state to)
{
	move(w->source.state, to);
	w->source.state = to;
}

void owner_move_destination(struct world *w, unsigned int i, enum migration_state to)
{
	move(w->destinations[i].state, to);
	w->destinations[i].state = to;
}

static bool source_runs(const struct world *w)
{
	return w->source.vmm == SOURCE_GUEST_RUNS && w->source.epoch;
}

static bool destination_runs(const struct world *w, unsigned int i)
{
	return w->destinations[i].vmm == VMM_GUEST_RUNS && !w->destinations[i].vmm_dead;
}

static unsigned int n_running(const struct world *w)
{
	return (unsigned int)source_runs(w) + destination_runs(w, 0) + destination_runs(w, 1);
}

static void check(const void *state)
{
	if (n_running(state) > 1)
		model_violation("two guests run");
}

/*
 * Nobody waits for anything that is not the operator's to order: one guest runs, it lacks nothing,
 * and the source knows what has become of it.
 */
static bool is_settled(const void *state)
{
	const struct world *w = state;

	for (unsigned int i = 0; i < 2; i++) {
		const struct destination *d = &w->destinations[i];

		if (!d->up || d->conductor > CONDUCTOR_WARM || (destination_runs(w, i) && d->missing))
			return false;
	}
	return n_running(w) == 1 && w->source.up && !w->source.to_say &&
	       (w->source.phase == PHASE_RUNNING || w->source.phase == PHASE_ENDED);
}

/* Nothing has died for good, and no order was given that gives up something. */
static bool is_whole(const void *state)
{
	const struct world *w = state;

	return w->source.epoch && !w->history.hurt;
}

/* Everything has an end: no guest stands still, no migration goes on. */
static bool is_over(const void *state)
{
	const struct world *w = state;
	const struct source *s = &w->source;

	for (unsigned int i = 0; i < 2; i++) {
		const struct destination *d = &w->destinations[i];
		bool waits = d->vmm >= VMM_GIVEN && d->vmm <= VMM_GUEST_RUNS && !d->vmm_dead;

		if (!d->up || d->conductor != CONDUCTOR_IDLE ||
		    (waits && (d->vmm != VMM_GUEST_RUNS || d->missing)))
			return false;
	}
	return s->up && (s->vmm == SOURCE_GUEST_RUNS || s->vmm == SOURCE_EXITED) && !s->vmstate;
}

static bool always(const void *state)
{
	(void)state;
	return true;
}

static const struct goal goals[] = {
	{ "it does not mend itself: no way leads to one guest that runs and lacks nothing", RULE_STEP,
	  is_whole, is_settled },
	{ "no way out, whatever an operator orders", RULE_STEP | RULE_OPERATOR, always, is_over },
};

static unsigned int other_holder(unsigned int holder)
{
	return !holder ? 0 : holder <= 2 ? holder + 2 : holder - 2;
}

static void swap(void *state)
{
	struct world *w = state;
	struct destination d = w->destinations[0];
	struct link l = w->links[0];

	w->destinations[0] = w->destinations[1];
	w->destinations[1] = d;
	w->links[0] = w->links[1];
	w->links[1] = l;
	for (unsigned int i = 0; i < 2; i++) {
		w->destinations[i].holder = other_holder(w->destinations[i].holder);
		w->links[i].late_holder = other_holder(w->links[i].late_holder);
	}
	w->source.holder = other_holder(w->source.holder);
	w->source.recorded_holder = other_holder(w->source.recorded_holder);
}

/* Where it begins: with so much bad luck, so many destinations, with or without a store. */
static const struct {
	unsigned int luck, destinations;
	bool store;
} scenes[] = { { LUCK, 2, true }, { LUCK, 2, false }, { LUCK1, 1, true }, { LUCK1, 1, false } };

static bool initial(unsigned int i, void *state)
{
	struct world *w = state;

	if (i == sizeof scenes / sizeof *scenes)
		return false;
	w->luck = scenes[i].luck;
	w->history.store = scenes[i].store;
	w->source.up = w->source.known = true;
	for (unsigned int d = 0; d < 2; d++)
		w->destinations[d] = (struct destination){ .up = true, .holder = 2 * d + 2 };
	for (unsigned int d = 0; d < scenes[i].destinations; d++)
		w->destinations[d] = (struct destination){
			.up = true, .known = true, .holder = 2 * d + 1, .missing = true
		};
	return true;
}

static void print(const void *state)
{
	static const char *const source_vmm[] = { "runs", "is stopping", "stands still", "is no more" };
	static const char *const vmm[] = { "is not there", "is attached", "has the vmstate", "is loaded",
		                           "runs",         "can't load",  "is stopped" };
	const struct world *w = state;

	printf("source %s%s, its guest %s", w->source.up ? "" : "(down) ",
	       migration_state_name(w->source.state), source_vmm[w->source.vmm]);
	for (unsigned int i = 0; i < 2; i++) {
		const struct destination *d = &w->destinations[i];

		printf("; %c %s%s, its VMM %s%s%s", 'A' + (int)i, d->up ? "" : "(down) ",
		       migration_state_name(d->state), d->vmm_dead ? "dead: " : "", vmm[d->vmm],
		       d->vmm == VMM_GUEST_RUNS && d->missing ? ", pages are missing" : "");
	}
	putchar('\n');
}

static const struct mend mends[OWNER_MENDS] = {
	[MEND_ONE_HOLDER] = { "one-holder", "only the holder's word counts (A1)" },
	[MEND_HOLDER_AFTER_WAIT] = { "holder-after-wait",
	                             "who has waited for the vmstate is looked at again (A1)" },
	[MEND_LATEST_CONNECTION] = { "latest-connection",
	                             "what was said on a holder's former connection is void" },
	[MEND_RECORD_FIRST] = { "record-first", "the holder is recorded before the pause (A1)" },
	[MEND_FAREWELL_FIRST] = { "farewell-first",
	                          "that it gives up is recorded before ABORT goes out (A1)" },
	[MEND_RESUME_LATE_PAUSED] = { "resume-late-paused",
	                              "PAUSED after the end is answered with RESUME" },
	[MEND_EPOCH_PINNED] = { "epoch-pinned", "the epoch is pinned when warming begins (A2)" },
	[MEND_GOODBYE_BY_ANSWER] = { "goodbye-by-answer",
	                             "only the source's answer ends a goodbye (A6)" },
	[MEND_TIME_LIMIT] = { "time-limit", "every exchange has a time (A6)" },
	[MEND_ONE_OWNER_OF_PAUSED] = { "one-owner-of-paused",
	                               "the connection's state has one owner (B14)" },
};

static struct rule rules[MODEL_RULES_MAX];

const struct model *owner_model(void)
{
	static struct model model = {
		.name = "owner",
		.state_bytes = sizeof(struct world),
		.rules = rules,
		.goals = goals,
		.n_goals = sizeof goals / sizeof *goals,
		.mends = mends,
		.n_mends = OWNER_MENDS,
		.initial = initial,
		.swap = swap,
		.check = check,
		.print = print,
	};
	size_t n = 0;

	_Static_assert(sizeof(struct world) <= MODEL_STATE_MAX, "a state has its room");
	memcpy(rules + n, owner_source_rules, owner_source_n_rules * sizeof *rules);
	n += owner_source_n_rules;
	memcpy(rules + n, owner_destination_rules, owner_destination_n_rules * sizeof *rules);
	n += owner_destination_n_rules;
	memcpy(rules + n, owner_world_rules, owner_world_n_rules * sizeof *rules);
	n += owner_world_n_rules;
	model.n_rules = n;
	return &model;
}
