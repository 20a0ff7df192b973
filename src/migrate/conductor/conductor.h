/* SPDX-License-Identifier: Apache-2.0 */
/* What the loop has of the conductor; the rest is news and orders (migrate/migration.h). */
#ifndef MIGRATE_CONDUCTOR_CONDUCTOR_H
#define MIGRATE_CONDUCTOR_CONDUCTOR_H

#include "migrate/migration.h"

/* Start the conductor's thread. Return: 0 or -errno: nothing has begun. */
int conductor_start(struct migration *m);

/* The pull's callbacks; @arg is the migration. */
void conductor_pull_complete(void *arg);
void conductor_pull_connection(void *arg);
void conductor_pull_round(void *arg);

#endif
