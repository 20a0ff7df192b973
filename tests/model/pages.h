/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of how a page comes: mem/page_state.c, fault/resolver.c and fault/events.c.
 *
 * Theory of operation
 * -------------------
 * Two units of guest memory, of which the second may be zero at the source: two host pages of one
 * unit, or one of two. There are a vCPU that writes to them, another thread of the VMM that
 * discards them (madvise()), the fault thread, a bulk thread, the conductor that ends it, and bad
 * luck: memory that can't be had, and kills. A step is what the code does in one atomic operation
 * or ioctl; a fill that is no ioctl has a middle, in which the content is torn.
 *
 * Of the kernel: a fault sleeps until the page is mapped or woken; who discards first has every
 * ioctl refused (EAGAIN), then sleeps until its event is read, then takes the page. An event
 * that was read is not given again.
 *
 * What the guest can read is looked at in every state: a mapped page is what it must be. What it
 * must be is the source's content, zero from a discard on, or what it has written itself.
 *
 * In some of the beginnings the guest runs at the source still, and writes: bulk is answered, SYNC
 * tells what was written, and then the guest moves (migrate/conductor/warm.c). What is here of a
 * unit that was written over is old, and the guest must never read it.
 *
 * Between the threads that show what comes and the record that the guest may run here there is a
 * while (pull_start(), give_vmstate()), in which the VMM sees pages already, and writes to them: a
 * process that goes on from there finds a record that says switching. In the last of the
 * beginnings the VMM makes its memory when it has the vmstate (migrate/destination/late.c), and all
 * of its loading falls into that while.
 *
 * What is left out: more than one fault and one discard at a time; mremap() and munmap(); pages
 * that can't be read at the source; what the memory was before (mem/memory.c sees to it that it is
 * empty). And further userfaultfds: a host page is one's alone (util/shards.h), so it comes as
 * here, whichever fault thread it has; that it gets another one (fault/shards.c) is not in it.
 */
#ifndef MODEL_PAGES_H
#define MODEL_PAGES_H

#include "explore.h"

/* @luck: how often something may go wrong */
const struct model *pages_model(unsigned int luck);

#endif
