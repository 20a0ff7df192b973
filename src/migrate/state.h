/* SPDX-License-Identifier: Apache-2.0 */
/* The states of a migration, and which may follow which. */
#ifndef MIGRATE_STATE_H
#define MIGRATE_STATE_H

#include <stdbool.h>

enum migration_state {
	/* The control plane has announced it. Nothing is attached. */
	MIGRATION_PREPARED,
	/* The VMM has handed over its memory. Source: the guest runs. Destination: it is empty. */
	MIGRATION_ATTACHED,
	/* Connections are being opened, or are open. The guest still runs at the source. */
	MIGRATION_WARMING,
	/*
	 * The source guest is being paused, its vmstate moves. The point of no return lies at
	 * the end of this state: once the destination VMM has been given the vmstate, the
	 * guest may have run there and can't go back.
	 */
	MIGRATION_SWITCHING,
	/* The guest runs at the destination, its memory follows. Only complete ends it well. */
	MIGRATION_POSTCOPY,
	/* Postcopy, but the source can't be reached: the guest stalls where a page is missing. */
	MIGRATION_PAUSED,
	/* Every page is at the destination. Final. */
	MIGRATION_COMPLETE,
	/* Final. Before the point of no return the guest runs on at the source. */
	MIGRATION_FAILED,
	/* Final. By command; the guest runs on at the source. */
	MIGRATION_CANCELLED,
	MIGRATION_STATES
};

const char *migration_state_name(enum migration_state state);

/* Whether the table has an arrow @from -> @to. */
bool migration_state_allows(enum migration_state from, enum migration_state to);

/* No arrow leaves it. */
bool migration_state_is_final(enum migration_state state);

#endif
