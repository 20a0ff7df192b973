/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A destination's memory that is watched by several userfaultfds (util/shards.h), on the loop's
 * thread.
 *
 * Theory of operation
 * -------------------
 * How many there are to be is the configuration's; fewer where the guest's memory has not so many
 * parts, or this process or the manager's store no room. A VMM that has just attached is offered
 * them, before it is told that it is attached. Its library answers at once, with their descriptors,
 * or never: an older one, or one that can't. So nothing waits for the answer: the one userfaultfd
 * of ATTACH has all of the memory until then, and what was moved from it before we know of that
 * only waits (fault/pull.h). LOADED without an answer is one: behind it none comes any more.
 *
 * The offer is in the record before it is made: a VMM may have divided its memory, and the answer
 * lie in its socket, or have gone with a process that read it and was killed. So the next process
 * offers again, and a VMM that has divided it says so again. The descriptors are kept before the
 * record counts on them, and that before they are used. An answer for which there is no room now is
 * asked for again until there is: nobody else could serve those parts.
 *
 * The pull has one owner at a time: while the conductor runs, that takes them, by mail; and it does
 * not end the watch over a guest whose VMM may have divided its memory without our knowing how.
 */
#ifndef MIGRATE_DESTINATION_SHARDS_H
#define MIGRATE_DESTINATION_SHARDS_H

#include "migrate/migration.h"

/* Its VMM has attached, with a @uffd or none: what it is offered, and room for it. */
void shards_plan(struct migration *m, bool uffd);

/* Say so, (again) where that is not answered. Nothing where there is nothing to offer. */
void shards_offer(struct migration *m);

/*
 * shards_answered() - SHARDS
 * @fds: the userfaultfds of shards 1..@n-1; those that are taken are -1
 *
 * Return: 0; or -errno with @err set: the VMM is to be told and cut off.
 */
int shards_answered(struct migration *m, unsigned int n, int *fds, struct error *err);

/* It came, and its descriptors did not. */
void shards_ask_again(struct migration *m);

/* Its VMM has loaded the vmstate: what it has not divided by now it does not divide. */
void shards_declined(struct migration *m);

/* What the process before had of them, into @config; afterwards with pull_new()'s @rc. */
int shards_take_up(struct migration *m, struct pull_config *config, struct error *err);
void shards_taken_up(struct pull_config *config, int rc);

/* There are so many, by now. */
void shards_log(const struct migration *m, unsigned int n);

/* What the conductor was given to take: it has, or nobody will. */
void shards_mail_close(struct migration *m);

/* As if no VMM had ever attached. */
void shards_forget(struct migration *m);

#endif
