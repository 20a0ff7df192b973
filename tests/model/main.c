/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>
#include "owner.h"
int main(int argc, char **argv)
{
	const struct model *m = owner_model();
	if (argc > 1) model_without(atoi(argv[1]));
	printf("%zu bytes, %zu rules\n", m->state_bytes, m->n_rules);
	clock_t t = clock();
	struct exploration e = explore(m, "# ");
	printf("%lu states, %lu steps, depth %u: %s; %.1f s\n", e.states, e.steps, e.depth, e.violation ? e.violation : "ok", (double)(clock()-t)/CLOCKS_PER_SEC);
	for (int i = 0; i < MIGRATION_STATES; i++) for (int j = 0; j < MIGRATION_STATES; j++)
		if (owner_arrows[i][j] != migration_state_allows(i,j)) printf("%s -> %s %s\n", migration_state_name(i), migration_state_name(j), owner_arrows[i][j] ? "used only":"allowed only");
}
