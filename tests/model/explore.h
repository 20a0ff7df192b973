/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Explores a model: every state that its rules can lead to, in the order of their distance.
 *
 * Theory of operation
 * -------------------
 * A model is a state of a fixed size, and rules: who does what. A rule looks at a state, and either
 * can't be taken there, or changes it. From the initial states all rules are tried on all states,
 * breadth first, until nothing new comes: what can go wrong is then found on its shortest way.
 * What has no bound by itself (cuts, kills, retries) is given one in the state.
 *
 * Two kinds of things are found:
 *
 *   a bad state    a rule says model_violation() while it changes a state, or check() does
 *   no way out     a goal's good states can't be reached any more by the kinds of rules that the
 *                  goal counts on. Faults are never among them. That some way is left from
 *                  everywhere means, where nobody is left out for ever, that it is taken.
 *
 * What holds it together can be taken out, one by one (model_without()), to see that the model finds
 * what that is there for.
 */
#ifndef MODEL_EXPLORE_H
#define MODEL_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>

/* What makes a rule happen. */
enum rule_kind {
	RULE_STEP = 1 << 0,     /* it happens by itself, sooner or later */
	RULE_OPERATOR = 1 << 1, /* somebody orders it */
	RULE_FAULT = 1 << 2,    /* bad luck: it may happen at any time, or never */
	/*
	 * A step that nobody can tell from one that comes later: it is taken before anything else but
	 * bad luck, which spares the other orders.
	 */
	RULE_AT_ONCE = RULE_STEP | 1 << 3,
};

#define MODEL_ACTORS 2u /* those of which there are two have a rule each */
#define MODEL_STATE_MAX 64u
#define MODEL_RULES_MAX 128u

struct rule {
	enum rule_kind kind;
	const char *who; /* of which the trace tells; "%c" is A or B */
	const char *what;
	/*
	 * One of the two: what one does, or what each of two @actors does.
	 * Return: whether it can be taken; then @state is the state after it.
	 */
	bool (*take)(void *state);
	bool (*take_each)(void *state, unsigned int actor);
};

/* From every state where @needed, one that is @good can be reached by rules of @kinds. */
struct goal {
	const char *what;
	unsigned int kinds;
	bool (*needed)(const void *state);
	bool (*good)(const void *state);
};

/* Something that holds the model together, and what is to be found without it. */
struct mend {
	const char *name;
	const char *what;
};

struct model {
	const char *name;
	size_t state_bytes;
	const struct rule *rules;
	size_t n_rules;
	const struct goal *goals;
	size_t n_goals;
	const struct mend *mends;
	size_t n_mends;
	/* The @i-th initial state, into zeroes. Return: false where there are no more. */
	bool (*initial)(unsigned int i, void *state);
	/* The same with both actors changed over: to the model it is the same state. */
	void (*swap)(void *state);
	/* Calls model_violation() for a bad state. */
	void (*check)(const void *state);
	/* One line about a state, for the end of a trace. */
	void (*print)(const void *state);
};

/* Said by a rule or a check: this must not be. @what is kept as it is. */
void model_violation(const char *what);

/* Take a mend out, by its place among the model's; MODEL_WHOLE: none. */
#define MODEL_WHOLE (-1)
void model_without(int mend);
bool model_lacks(int mend);

struct exploration {
	unsigned long states;
	unsigned long steps; /* transitions tried that led somewhere */
	unsigned int depth;
	const char *violation; /* NULL: none */
	unsigned int trace_len;
};

/* Explores all of it; prints the trace of the first violation, each line after @prefix. */
struct exploration explore(const struct model *model, const char *prefix);

#endif
