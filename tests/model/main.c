/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Explores the models, whole and with each mend taken out, and compares with migrate/state.c.
 *
 * One line a result, as TAP has it; the last one sums them up. POSTCOPYD_MODEL_LUCK says how much
 * more may go wrong than is explored without it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "owner.h"
#include "pages.h"

static unsigned int n_passed, n_failed;

static void result(bool good)
{
	if (good)
		n_passed++;
	else
		n_failed++;
	printf("%s ", good ? "ok" : "not ok");
}

/* Nothing may be found. */
static unsigned long explore_whole(const struct model *model)
{
	struct exploration e;

	model_without(0);
	printf("# model \"%s\"\n", model->name);
	e = explore(model, MODEL_ALL, "#   ");
	result(!e.violation);
	printf("%s: %lu states, %lu steps, up to %u from the beginning: %s\n", model->name,
	       e.states, e.steps, e.depth, e.violation ? e.violation : "no violation");
	fflush(stdout);
	return e.states;
}

/* Something must be. */
static void explore_without(const struct model *model, const struct mend *mend)
{
	struct exploration e;

	model_without(mend->switches);
	printf("# model \"%s\" without %s (%s)\n", model->name, mend->name, mend->what);
	e = explore(model, mend->initial, "#   ");
	result(e.violation);
	printf("%s without %s: %s\n", model->name, mend->name,
	       e.violation ? e.violation : "no violation is found");
	fflush(stdout);
}

/* After the whole model: what the daemons may do, and what they did. */
static void compare_transitions(void)
{
	unsigned int differences = 0;

	for (unsigned int to = 0; to < MIGRATION_STATES; to++) {
		bool reached = to == MIGRATION_PREPARED;

		for (unsigned int from = 0; from < MIGRATION_STATES; from++) {
			reached |= owner_arrows[from][to];
			if (migration_state_allows(from, to) == owner_arrows[from][to])
				continue;
			differences++;
			printf("# %s -> %s: %s\n", migration_state_name(from),
			       migration_state_name(to),
			       owner_arrows[from][to]
			               ? "taken in the model, not allowed by migrate/state.c"
			               : "allowed by migrate/state.c, never taken in the model");
		}
		if (!reached) {
			differences++;
			printf("# %s: unknown to the model\n", migration_state_name(to));
		}
	}
	result(!differences);
	printf("transitions of migrate/state.c are those of the model\n");
}

static void explore_mends(const struct model *model)
{
	for (size_t i = 0; i < model->n_mends; i++)
		explore_without(model, &model->mends[i]);
}

static unsigned int more_luck(void)
{
	const char *more = getenv("POSTCOPYD_MODEL_LUCK");

	return more ? (unsigned int)strtoul(more, NULL, 10) : 0;
}

int main(void)
{
	unsigned int more = more_luck();
	const struct model *owner = owner_model(1 + more, 2 + more);
	const struct model *pages = pages_model(2 + more);
	unsigned long states = explore_whole(owner);

	compare_transitions();
	explore_mends(owner);
	states += explore_whole(pages);
	explore_mends(pages);
	printf("# %lu states explored\n%u passed, %u failed\n", states, n_passed, n_failed);
	return n_failed ? 1 : 0;
}
