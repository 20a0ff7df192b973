/* SPDX-License-Identifier: Apache-2.0 */
#include "explore.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* What may be explored; the memory is only taken where it is used. */
#define STATES_MAX (1u << 27)
#define EDGES_MAX (1ull << 30)
#define SLOTS_MIN (1u << 16)

#define RULE_NONE 0xffu
#define KIND_SHIFT 28 /* of an edge: where its rule's kind is, above the state it leads to */
#define EDGE_STATE ((1u << KIND_SHIFT) - 1)

struct explorer {
	const struct model *model;
	uint8_t *states; /* by number, in the order in which they were found */
	uint32_t *parents;
	uint8_t *rules;  /* by which it was found: rule * MODEL_ACTORS + actor */
	uint32_t *slots; /* hash: number + 1; at most half of them are used */
	uint32_t n_slots;
	uint64_t *first_edge;
	uint32_t *edges;
	uint32_t n_states;
	uint64_t n_edges, n_steps;
	uint32_t found; /* the state that has a violation */
	unsigned int found_rule;
};

static const char *violation;
static unsigned int lacking;

void model_violation(const char *what)
{
	if (!violation)
		violation = what;
}

void model_without(unsigned int switches)
{
	lacking = switches;
}

bool model_lacks(unsigned int switches)
{
	return lacking & switches;
}

static void *room(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED) {
		perror("model: mmap");
		exit(2);
	}
	return p;
}

static void explorer_init(struct explorer *x, const struct model *model)
{
	*x = (struct explorer){ .model = model };
	x->states = room((size_t)STATES_MAX * model->state_bytes);
	x->parents = room((size_t)STATES_MAX * sizeof *x->parents);
	x->rules = room(STATES_MAX);
	x->n_slots = SLOTS_MIN;
	x->slots = room(x->n_slots * sizeof *x->slots);
	x->first_edge = room((size_t)(STATES_MAX + 1) * sizeof *x->first_edge);
	x->edges = room(EDGES_MAX * sizeof *x->edges);
}

static void explorer_deinit(struct explorer *x)
{
	munmap(x->states, (size_t)STATES_MAX * x->model->state_bytes);
	munmap(x->parents, (size_t)STATES_MAX * sizeof *x->parents);
	munmap(x->rules, STATES_MAX);
	munmap(x->slots, x->n_slots * sizeof *x->slots);
	munmap(x->first_edge, (size_t)(STATES_MAX + 1) * sizeof *x->first_edge);
	munmap(x->edges, EDGES_MAX * sizeof *x->edges);
}

static uint8_t *state_at(const struct explorer *x, uint32_t n)
{
	return x->states + (size_t)n * x->model->state_bytes;
}

static uint32_t hash(const uint8_t *state, size_t len)
{
	uint64_t h = 0x9e3779b97f4a7c15ull, word;

	for (size_t i = 0; i < len; i += sizeof word) {
		word = 0;
		memcpy(&word, state + i, len - i < sizeof word ? len - i : sizeof word);
		h = (h ^ word) * 0xff51afd7ed558ccdull;
		h ^= h >> 32;
	}
	return (uint32_t)h;
}

/* Where a state's number is, or is to be written. */
static uint32_t *slot_of(const struct explorer *x, const uint8_t *state)
{
	size_t len = x->model->state_bytes;
	uint32_t slot = hash(state, len) & (x->n_slots - 1);

	while (x->slots[slot] && memcmp(state_at(x, x->slots[slot] - 1), state, len))
		slot = (slot + 1) & (x->n_slots - 1);
	return &x->slots[slot];
}

static void grow_slots(struct explorer *x)
{
	munmap(x->slots, x->n_slots * sizeof *x->slots);
	x->n_slots *= 2;
	x->slots = room(x->n_slots * sizeof *x->slots);
	for (uint32_t n = 0; n < x->n_states; n++)
		*slot_of(x, state_at(x, n)) = n + 1;
}

/* The number of a state; a new one is added. */
static uint32_t number(struct explorer *x, const uint8_t *state, uint32_t parent, unsigned int rule)
{
	uint32_t *slot = slot_of(x, state);

	if (*slot)
		return *slot - 1;
	if (x->n_states == STATES_MAX) {
		fprintf(stderr, "model: more than %u states: bound it\n", STATES_MAX);
		exit(2);
	}
	memcpy(state_at(x, x->n_states), state, x->model->state_bytes);
	x->parents[x->n_states] = parent;
	x->rules[x->n_states] = (uint8_t)rule;
	*slot = ++x->n_states;
	if (x->n_states > x->n_slots / 2)
		grow_slots(x);
	return x->n_states - 1;
}

static void print_named(const struct model *model, const char *text, unsigned int actor)
{
	const char *at = strchr(text, '%');

	if (!at)
		printf("%s", text);
	else if (at[1] == 's')
		printf("%.*s%s%s", (int)(at - text), text, model->actors[actor], at + 2);
	else
		printf("%.*s%u%s", (int)(at - text), text, actor, at + 2);
}

static void print_rule(const struct model *model, unsigned int rule)
{
	const struct rule *r = &model->rules[rule / MODEL_ACTORS];

	print_named(model, r->who, rule % MODEL_ACTORS);
	printf(": ");
	print_named(model, r->what, rule % MODEL_ACTORS);
	putchar('\n');
}

static bool take(const struct rule *r, uint8_t *state, unsigned int actor)
{
	if (r->take_each)
		return r->take_each(state, actor);
	return !actor && r->take(state);
}

/* Of a state and its mirror image one stands for both. Return: whether it was the other one. */
static bool choose(const struct model *model, uint8_t *state)
{
	uint8_t other[MODEL_STATE_MAX];

	if (!model->swap)
		return false;
	memcpy(other, state, model->state_bytes);
	model->swap(other);
	if (memcmp(other, state, model->state_bytes) >= 0)
		return false;
	memcpy(state, other, model->state_bytes);
	return true;
}

/* Take one rule on a state, if it can be. Return: false where that has led to a violation. */
static bool try(struct explorer *x, uint32_t n, unsigned int rule, bool *ret_taken)
{
	const struct model *model = x->model;
	const struct rule *r = &model->rules[rule / MODEL_ACTORS];
	uint8_t next[MODEL_STATE_MAX];
	uint32_t to;

	memcpy(next, state_at(x, n), model->state_bytes);
	*ret_taken = take(r, next, rule % MODEL_ACTORS);
	if (!*ret_taken)
		return true;
	x->n_steps++;
	if (!violation)
		model->check(next);
	if (violation) {
		x->found = n;
		x->found_rule = rule;
		return false;
	}
	choose(model, next);
	to = number(x, next, n, rule);
	if (r->kind != RULE_FAULT && to != n)
		x->edges[x->n_edges++] = to | (uint32_t)r->kind << KIND_SHIFT;
	return true;
}

/* All rules on one state. Return: false where one has led to a violation. */
static bool expand(struct explorer *x, uint32_t n)
{
	unsigned int n_rules = (unsigned int)x->model->n_rules * MODEL_ACTORS;
	bool at_once = false, taken;

	x->first_edge[n] = x->n_edges;
	for (unsigned int i = 0; i < n_rules && !at_once; i++)
		if (x->model->rules[i / MODEL_ACTORS].kind == RULE_AT_ONCE &&
		    !try(x, n, i, &at_once))
			return false;
	for (unsigned int i = 0; i < n_rules; i++) {
		enum rule_kind kind = x->model->rules[i / MODEL_ACTORS].kind;

		if (kind != RULE_AT_ONCE && (!at_once || kind == RULE_FAULT) &&
		    !try(x, n, i, &taken))
			return false;
	}
	x->first_edge[n + 1] = x->n_edges;
	return true;
}

/*
 * How @n came about, from the beginning. @ret_swapped: whether A and B of the story are B and A in
 * state @n. Return: the number of steps.
 */
static unsigned int print_trace(const struct explorer *x, uint32_t n, const char *prefix,
                                unsigned int *ret_swapped)
{
	const struct model *model = x->model;
	unsigned int step, rule = x->rules[n];
	uint8_t state[MODEL_STATE_MAX];

	*ret_swapped = 0;
	if (rule == RULE_NONE)
		return 0;
	step = print_trace(x, x->parents[n], prefix, ret_swapped) + 1;
	printf("%s%3u. ", prefix, step);
	print_rule(model, rule ^ *ret_swapped);
	memcpy(state, state_at(x, x->parents[n]), model->state_bytes);
	take(&model->rules[rule / MODEL_ACTORS], state, rule % MODEL_ACTORS);
	*ret_swapped ^= choose(model, state);
	return step;
}

/* Backwards from the good states; most edges lead from a lower number to a higher one. */
static bool find_no_way_out(struct explorer *x, const struct goal *goal)
{
	uint8_t *can = room(x->n_states);
	bool grown = true, found = false;

	for (uint32_t n = 0; n < x->n_states; n++)
		can[n] = goal->good(state_at(x, n));
	while (grown) {
		grown = false;
		for (uint32_t n = x->n_states; n--;)
			for (uint64_t e = x->first_edge[n]; !can[n] && e < x->first_edge[n + 1];
			     e++)
				if ((x->edges[e] >> KIND_SHIFT & goal->kinds) &&
				    can[x->edges[e] & EDGE_STATE])
					can[n] = grown = true;
	}
	for (uint32_t n = 0; n < x->n_states && !found; n++)
		if (!can[n] && goal->needed(state_at(x, n))) {
			x->found = n;
			found = true;
		}
	munmap(can, x->n_states);
	return found;
}

static void report_bad_state(const struct explorer *x, const char *prefix, struct exploration *ret)
{
	unsigned int swapped;

	ret->violation = violation;
	ret->trace_len = print_trace(x, x->found, prefix, &swapped) + 1;
	printf("%s%3u. ", prefix, ret->trace_len);
	print_rule(x->model, x->found_rule ^ swapped);
}

static void report_no_way_out(const struct explorer *x, const struct goal *goal, const char *prefix,
                              struct exploration *ret)
{
	uint8_t state[MODEL_STATE_MAX];
	unsigned int swapped;

	ret->violation = goal->what;
	ret->trace_len = print_trace(x, x->found, prefix, &swapped);
	memcpy(state, state_at(x, x->found), x->model->state_bytes);
	if (swapped)
		x->model->swap(state);
	printf("%s     and from here on: ", prefix);
	x->model->print(state);
}

static unsigned int depth_of(const struct explorer *x, uint32_t n)
{
	unsigned int depth = 0;

	for (; x->rules[n] != RULE_NONE; n = x->parents[n])
		depth++;
	return depth;
}

static void begin(struct explorer *x, unsigned int initial)
{
	uint8_t state[MODEL_STATE_MAX];

	for (unsigned int i = 0;; i++) {
		memset(state, 0, sizeof state);
		if (!x->model->initial(i, state))
			return;
		if (initial != MODEL_ALL && i != initial)
			continue;
		choose(x->model, state);
		number(x, state, 0, RULE_NONE);
	}
}

struct exploration explore(const struct model *model, unsigned int initial, const char *prefix)
{
	struct exploration ret = { 0 };
	struct explorer x;

	explorer_init(&x, model);
	violation = NULL;
	begin(&x, initial);
	for (uint32_t n = 0; n < x.n_states; n++)
		if (!expand(&x, n))
			break;
	if (violation)
		report_bad_state(&x, prefix, &ret);
	for (size_t i = 0; i < model->n_goals && !ret.violation; i++)
		if (find_no_way_out(&x, &model->goals[i]))
			report_no_way_out(&x, &model->goals[i], prefix, &ret);
	ret.states = x.n_states;
	ret.steps = x.n_steps;
	ret.depth = depth_of(&x, x.n_states - 1);
	explorer_deinit(&x);
	return ret;
}
