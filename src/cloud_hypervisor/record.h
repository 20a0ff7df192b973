/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an adapter leaves for its next process: in a memfd in the service manager's store, beside
 * the descriptors themselves. The kernel keeps what was written to it whatever ends the process.
 */
#ifndef CLOUD_HYPERVISOR_RECORD_H
#define CLOUD_HYPERVISOR_RECORD_H

#include <stdatomic.h>
#include <stdbool.h>

#include "cloud_hypervisor/layout.h"
#include "cloud_hypervisor/wire.h"
#include "util/fd_store.h"

enum ch_phase {
	CH_PHASE_NEW, /* nothing that can't be begun anew */
	/* source: Config has come, and is not answered: the guest runs */
	CH_PHASE_CONFIGURED,
	/* source: from Config's answer on; whoever finds it gives up, and the guest runs on */
	CH_PHASE_PAUSING,
	/* source: all was said, and not answered: the answer decides whether the guest runs on */
	CH_PHASE_HELD,
	/* destination: it waits for its memory */
	CH_PHASE_CONNECTED,
	/* destination: it is being told all; whoever finds it gives up, and the source's guest runs
	 * on
	 */
	CH_PHASE_LOADING,
	/* destination: the daemon may have been told that it is loaded: the vCPUs may run */
	CH_PHASE_LOADED,
	/* destination: Complete was answered */
	CH_PHASE_RUNS,
	/* both: there is nothing to be done any more; see @moved */
	CH_PHASE_OVER,
};

struct ch_record {
	uint32_t magic, version;
	bool source;
	char id[POSTCOPY_ID_MAX + 1];
	_Atomic uint32_t phase; /* enum ch_phase */
	bool runs;              /* the guest is to run when it is there */
	bool moved;             /* every page of the guest is at the destination */
	struct ch_layout layout;
	/* destination: COMPLETE came: every page is there */
	atomic_bool complete;
	/* destination: what was taken from the fault connection, and is not answered */
	atomic_bool asked;
	struct ch_range range;
};

/*
 * ch_record_open() - the record of the process before, or a new one
 *
 * Return: 0; -EINVAL where it is of another role or id, -EPROTONOSUPPORT of another release; or
 * -errno; with @err.
 */
int ch_record_open(struct fd_store *store, bool source, const char *id, struct ch_record **ret,
                   struct error *err);

static inline enum ch_phase ch_record_phase(const struct ch_record *record)
{
	return (enum ch_phase)atomic_load(&record->phase);
}

static inline void ch_record_set(struct ch_record *record, enum ch_phase phase)
{
	atomic_store(&record->phase, (uint32_t)phase);
}

#endif
