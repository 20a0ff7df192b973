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
 * What holds it together can be taken out (model_without()), to see that the model finds what that
 * is there for.
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
	 * A step that nobody can tell from one that comes later: it is taken before anything else
	 * but bad luck, which spares the other orders.
	 */
	RULE_AT_ONCE = RULE_STEP | 1 << 3,
};

#define MODEL_ACTORS 2u /* those of which there are two have a rule each */
#define MODEL_STATE_MAX 64u
#define MODEL_RULES_MAX 128u

struct rule {
	enum rule_kind kind;
	const char *who; /* of which the trace tells; "%s" is the actor's name, "%u" its number */
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

/* Something that holds the model together: without it a violation must be found. */
struct mend {
	const char *name;
	const char *what;
	unsigned int switches; /* of the model's: one, or several that each do alone */
	unsigned int initial;  /* the initial state from which it shows */
};

struct model {
	const char *name;
	const char *actors[MODEL_ACTORS];
	size_t state_bytes;
	const struct rule *rules;
	size_t n_rules;
	const struct goal *goals;
	size_t n_goals;
	const struct mend *mends;
	size_t n_mends;
	/* The @i-th initial state, into zeroes. Return: false where there are no more. */
	bool (*initial)(unsigned int i, void *state);
	/* The same with both actors changed over: to the model it is the same state. May be NULL.
	 */
	void (*swap)(void *state);
	/* Calls model_violation() for a bad state. */
	void (*check)(const void *state);
	/* One line about a state, for the end of a trace. */
	void (*print)(const void *state);
};

/* Said by a rule or a check: this must not be. @what is kept as it is. */
void model_violation(const char *what);

/* Take out what these @switches stand for; 0: nothing. */
void model_without(unsigned int switches);
bool model_lacks(unsigned int switches);

struct exploration {
	unsigned long states;
	unsigned long steps; /* transitions tried that led somewhere */
	unsigned int depth;
	const char *violation; /* NULL: none */
	unsigned int trace_len;
};

/*
 * explore() - all that the model's initial states lead to
 * @initial: the only one of them; or MODEL_ALL
 * @prefix: of each line of the trace that is printed of the first violation
 */
#define MODEL_ALL (~0u)
struct exploration explore(const struct model *model, unsigned int initial, const char *prefix);

#endif
