/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/state.h"

#include <stdint.h>

#define TO(state) (1u << MIGRATION_##state)

static const struct {
	const char *name;
	uint32_t allowed;
} states[MIGRATION_STATES] = {
	[MIGRATION_PREPARED] = { "prepared", TO(ATTACHED) | TO(CANCELLED) },
	/* Back to prepared: the VMM went away before anything had begun. */
	[MIGRATION_ATTACHED] = { "attached",
	                         TO(PREPARED) | TO(WARMING) | TO(FAILED) | TO(CANCELLED) },
	/* Back to attached: the destination went away; or the source guest was attached anew. */
	[MIGRATION_WARMING] = { "warming",
	                        TO(ATTACHED) | TO(SWITCHING) | TO(FAILED) | TO(CANCELLED) },
	[MIGRATION_SWITCHING] = { "switching", TO(POSTCOPY) | TO(FAILED) | TO(CANCELLED) },
	/*
	 * To failed where the destination VMM dies, and the guest with it, where what is missing
	 * was poisoned, or where the source has run on. To cancelled, on a source: it runs on by
	 * command.
	 */
	[MIGRATION_POSTCOPY] = { "postcopy",
	                         TO(PAUSED) | TO(COMPLETE) | TO(FAILED) | TO(CANCELLED) },
	[MIGRATION_PAUSED] = { "paused", TO(POSTCOPY) | TO(COMPLETE) | TO(FAILED) },
	[MIGRATION_COMPLETE] = { "complete", 0 },
	[MIGRATION_FAILED] = { "failed", 0 },
	[MIGRATION_CANCELLED] = { "cancelled", 0 },
};

const char *migration_state_name(enum migration_state state)
{
	return states[state].name;
}

bool migration_state_allows(enum migration_state from, enum migration_state to)
{
	return states[from].allowed & (1u << to);
}

bool migration_state_is_final(enum migration_state state)
{
	return !states[state].allowed;
}
