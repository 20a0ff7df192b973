/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon leaves to the next one, and how that one goes on.
 *
 * Theory of operation
 * -------------------
 * A process may end at any instruction: SIGKILL, a crash, the watchdog, an upgrade. Whatever a
 * guest's life hangs on therefore lies in the service manager's store (util/fd_store.h) from
 * the moment we have it, by the name KIND.KEY, where the key is the migration's id, or ID@2 and so
 * on where another one of that id has it (one that has ended, or the other role):
 *
 *   record    what is no descriptor (saved.h), in a memfd of two slots (util/record.h)
 *   vmm       the VMM's socket, or its adapter's
 *   process   the pidfd of a VMM that an adapter speaks for
 *   mem0...   the guest's memory, by its place among the ATTACH's descriptors; where that is an
 *             open file which is kept already, the record has the entry's name
 *   uffd      destination: the userfaultfd
 *   uffd1..., journals   destination: those of further shards (util/shards.h), and what "pages" has
 *             of the first one's events of theirs
 *   pages     destination: the page state (mem/page_state.h), and with it the userfaultfd's
 *             events that are being applied and where guest memory is mapped (fault/events.h)
 *   dirty, wp, pagemap   source: the dirty log's bitmap, and what the kernel keeps it by
 *   vmstate   source: until the destination has it all; destination: until the guest runs
 *   channel0... destination: fetch channels
 *
 * The store has a limit, and what is beyond it is lost at a restart. So room is looked for, and
 * held, while a refusal costs nothing: at Prepare for the record, at ATTACH for all that a
 * migration will need. Only fetch channels may come late; one for which there is no room then
 * is served all the same.
 *
 * Two rules make any instant a good one:
 *
 *   Record before effect. What was decided is in the record before anybody outside can see it:
 *   that the guest may have run here before its VMM is given the vmstate, that it runs on at the
 *   source before the destination reads ABORT_ACK. Descriptors come before the record that
 *   counts on them, and go after it: what no record counts on is dropped, with a line of log.
 *
 *   Each effect may be repeated. What stands between a record and the next one is done again by
 *   the next process: it can't know whether the one before got to it. A VMM that gets a message
 *   again (PAUSE, VMSTATE, COMPLETE) does nothing anew but says again what it has said, for its
 *   answer may have died with the process that read it. What VMMs said while nobody was there
 *   waits in their sockets. The source is asked for SWITCHOVER again and sends the same vmstate;
 *   RESUMED, COMPLETE and ABORT are said until they are acknowledged, by each process anew.
 *
 * So a state's take-over is that state's normal course, begun again: prepared and attached wait;
 * warming connects again; switching, where the guest can't have run here, asks again; postcopy
 * wakes all who wait for a page, registers nothing, and pulls what is missing. Connections are
 * not handed on: they are dialled anew. Statistics start at zero, but for what the page state
 * holds; the times of the downtime's parts are in the record.
 *
 * A process that lacks memory, descriptors or threads for a migration leaves it as it was, in
 * the store and in the record, and tries again until it has them: wanting something is no end
 * for a guest. Destinations that ask for such a source are told to ask again meanwhile.
 *
 * A record that a newer daemon wrote in a way we don't know stops us before anything is touched:
 * all stays in the store, for the newer one to be started again. One that says that it is of a
 * version we know, and makes no sense, may be our fault or its writer's: it stays there alone, with
 * what belongs to it, and the others go on (unread.h).
 */
#ifndef MIGRATE_RECORD_TAKEOVER_H
#define MIGRATE_RECORD_TAKEOVER_H

#include "migrate/migration.h"

/*
 * takeover_try_again() - what has failed for want of something is tried again, by a timer
 * @m: with @m->left (nothing of it is taken over) or @m->must_go_on (all but go_on())
 */
void takeover_try_again(struct migration *m, const struct error *why);

/*
 * takeover_adopt_vmm() - the VMM's socket and process, of a migration that nothing else may be had
 * of
 *
 * Return: 0, also where it has no VMM or it is had already; or -errno with @err set.
 */
int takeover_adopt_vmm(struct migration *m, struct error *err);

/* @m->left goes. */
void takeover_forget(struct migration *m);

/* A migration that is not taken over yet takes no command. Return: 0 or -EAGAIN with @err set. */
int takeover_check(const struct migration *m, struct error *err);

#endif
