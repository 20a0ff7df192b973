/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission: whether a guest that is to come here has room, while its source can still run it on.
 *
 * Theory of operation
 * -------------------
 * A guest that runs here and lacks memory for its pages has no way back. So it is refused before:
 * when its VMM attaches (and says how much memory it will be), when it is started (the rest of
 * what it takes: descriptors, a place among those that come in), and once more right before its
 * source is asked to pause it, for a warm phase may last. Each refusal has the numbers in it. After
 * that nothing is asked any more.
 *
 * Each pool of memory must have what it, and all that were started, have still to receive
 * (budget.h), and so must each cgroup that has a limit, above the VMM and above the daemon. Of
 * huge pages those that are reserved count as free: mostly it is the guest itself that has reserved
 * them. What is not known (no such file, a process that has gone) refuses nobody.
 *
 * On the loop: some files of /proc, /sys and the cgroups are read, none of which waits.
 */
#ifndef MIGRATE_ADMISSION_H
#define MIGRATE_ADMISSION_H

#include "migrate/migration.h"

/*
 * admission_check_memory() - room for the memory that a VMM has or will have
 * @table: of it
 * @vmm: 0: not known
 *
 * Return: 0; -ENOMEM with @err set.
 */
int admission_check_memory(struct migration *m, const struct region_table *table, pid_t vmm,
                           struct error *err);

/*
 * The same before it is started, and what else it takes. Return: 0; -ENOMEM, -EMFILE; -EUSERS where
 * all that it lacks is a place among those that come in: no refusal where it @may_wait for one.
 */
int admission_check_start(struct migration *m, const struct migration_warm *warm, bool may_wait,
                          struct error *err);

/*
 * How many userfaultfds, of @n that are wanted, this process has descriptors for, beside what
 * admission_check_start() will look for. Return: 1..@n.
 */
unsigned int admission_shards(struct migration *m, unsigned int n);

/* Whether it has one, with those that wait and are before it. */
bool admission_has_place(const struct migration *m);

/* The same right before its guest is paused at the source. Return: 0; -ENOMEM with @err set. */
int admission_check_pause(struct migration *m, struct error *err);

/* Where its VMM is counted is looked for anew; what is known of it is freed. */
void admission_forget_place(struct migration *m);

/* From the conductor: memory that came stays taken, also where it is missing again. */
void admission_note_missing(struct migration *m);

#endif
