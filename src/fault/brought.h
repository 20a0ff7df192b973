/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When bulk threads woke vCPUs whose pages were asked for by faults as well.
 *
 * Theory of operation
 * -------------------
 * A bulk thread that fills a page for which a fault waits maps it and wakes the vCPU at once. The
 * fault thread learns that from its own answer only, which may be far behind; waking it
 * for this alone would cost it, and some vCPU, more than the news is worth. So who wakes leaves
 * a note, and the fault thread looks for one when it finds that somebody else brought the page.
 *
 * Notes lie in a fixed hash table, at most BROUGHT_PROBES places from where they belong. There
 * are no more of them than faults in flight, but for such as the fault thread did not wait for
 * (it saw the page before the note was written): a place that no note has is taken, else the
 * oldest note's. A note that is lost costs a fault its exact end, no more.
 *
 * Threads: any write, the fault thread takes. A place belongs to whoever has set its key to
 * BROUGHT_BUSY, by compare and exchange; nobody waits for it.
 */
#ifndef FAULT_BROUGHT_H
#define FAULT_BROUGHT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define BROUGHT_PLACES 512u
#define BROUGHT_PROBES 8u

struct brought_place {
	_Atomic uint64_t key; /* 0: free */
	_Atomic uint64_t filled_ns;
	_Atomic uint64_t mapped_ns;
};

struct brought {
	struct brought_place places[BROUGHT_PLACES];
};

/* The host page that begins at @first_unit was filled at @filled_ns, and mapped at @mapped_ns. */
void brought_note(struct brought *b, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                  uint64_t mapped_ns);

/* Take the note on a page. Return: false where there is none. */
bool brought_take(struct brought *b, uint32_t region, uint64_t first_unit, uint64_t *ret_filled_ns,
                  uint64_t *ret_mapped_ns);

#endif
