/* SPDX-License-Identifier: Apache-2.0 */
/* The model of who owns the guest: what is bad, what is good, where it begins. */
#include "owner.h"

#include <stdio.h>
#include <string.h>

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

		if (!d->up || d->conductor > CONDUCTOR_WARM ||
		    (destination_runs(w, i) && d->missing))
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
	{ "it does not mend itself: no way leads to one guest that runs and lacks nothing",
	  RULE_STEP, is_whole, is_settled },
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
enum scene { TWO_WITH_STORE, TWO_WITHOUT_STORE, ONE_WITH_STORE, ONE_WITHOUT_STORE, SCENES };
static struct {
	unsigned int luck, destinations;
	bool store;
} scenes[SCENES] = {
	[TWO_WITH_STORE] = { 0, 2, true },
	[TWO_WITHOUT_STORE] = { 0, 2, false },
	[ONE_WITH_STORE] = { 0, 1, true },
	[ONE_WITHOUT_STORE] = { 0, 1, false },
};

static bool initial(unsigned int i, void *state)
{
	struct world *w = state;

	if (i == SCENES)
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
	static const char *const source_vmm[] = { "runs", "is stopping", "stands still",
		                                  "is no more" };
	static const char *const vmm[] = { "is not there", "is attached", "has the vmstate",
		                           "is loaded",    "runs",        "can't load",
		                           "is stopped" };
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

static const struct mend mends[] = {
	{ "one-holder", "A1: only the holder's word counts", OWNER_ONE_HOLDER, TWO_WITH_STORE },
	{ "record-first", "A1: the holder is recorded before the guest is paused",
	  OWNER_RECORD_FIRST, TWO_WITH_STORE },
	{ "no-late-abort",
	  "A1: a daemon that gives up records that before it says ABORT, and what was said on a "
	  "holder's former connection is void",
	  OWNER_FAREWELL_FIRST | OWNER_LATEST_CONNECTION, ONE_WITH_STORE },
	{ "resume-late-paused", "A1: PAUSED after the end is answered with RESUME",
	  OWNER_RESUME_LATE_PAUSED, ONE_WITH_STORE },
	{ "repeat-resume",
	  "A1: a source that has failed and runs on says so after a take-over, too",
	  OWNER_REPEAT_RESUME, ONE_WITH_STORE },
	{ "epoch-pinned", "A2: the epoch is pinned when warming begins", OWNER_EPOCH_PINNED,
	  ONE_WITH_STORE },
	{ "goodbye-by-answer", "A6: only the source's answer ends a goodbye",
	  OWNER_GOODBYE_BY_ANSWER, ONE_WITH_STORE },
	{ "time-limit", "A6: every exchange has a time limit", OWNER_TIME_LIMIT, ONE_WITH_STORE },
	{ "none-has-run", "a VMM that could not run says so only while no vCPU has run",
	  OWNER_NONE_HAS_RUN, ONE_WITH_STORE },
	{ "one-owner-of-paused", "B14: the state of the connection has one owner",
	  OWNER_ONE_OWNER_OF_PAUSED, ONE_WITH_STORE },
};

static struct rule rules[MODEL_RULES_MAX];

static size_t add_rules(size_t n, const struct rule *some, size_t n_some)
{
	memcpy(rules + n, some, n_some * sizeof *rules);
	return n + n_some;
}

const struct model *owner_model(unsigned int luck, unsigned int luck_of_one)
{
	static struct model model = {
		.name = "owner",
		.actors = { "A", "B" },
		.state_bytes = sizeof(struct world),
		.rules = rules,
		.goals = goals,
		.n_goals = sizeof goals / sizeof *goals,
		.mends = mends,
		.n_mends = sizeof mends / sizeof *mends,
		.initial = initial,
		.swap = swap,
		.check = check,
		.print = print,
	};

	_Static_assert(sizeof(struct world) <= MODEL_STATE_MAX, "a state has its room");
	for (unsigned int i = 0; i < SCENES; i++)
		scenes[i].luck = scenes[i].destinations == 2 ? luck : luck_of_one;
	model.n_rules = add_rules(0, owner_source_rules, owner_source_n_rules);
	model.n_rules =
	        add_rules(model.n_rules, owner_destination_rules, owner_destination_n_rules);
	model.n_rules = add_rules(model.n_rules, owner_world_rules, owner_world_n_rules);
	return &model;
}
