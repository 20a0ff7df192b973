/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a migration is apart from its descriptors, as bytes: proto/postcopy/v1/state.proto.
 * By it and the descriptors another process of the daemon goes on (takeover.h).
 */
#ifndef MIGRATE_RECORD_SAVED_H
#define MIGRATE_RECORD_SAVED_H

#include "migrate/migrate.h"
#include "util/fd_store.h"
#include "vmm/vmm_server.h"

/* A daemon refuses what a newer major has written; unknown fields of its own major it drops. */
#define SAVED_MAJOR 4
/* What is written where nothing of a newer one is needed to go on: an older daemon may. */
#define SAVED_MAJOR_LEAST 3

/* What a destination has still to tell the source, however long that takes. */
enum migration_farewell {
	FAREWELL_NONE,
	FAREWELL_COMPLETE, /* every page is here: let go */
	FAREWELL_ABORT,    /* the guest has not run here and never will: run on */
};

/* When a destination's memory comes. */
enum migration_memory {
	MIGRATION_MEMORY_ATTACHED, /* with its ATTACH, as most do */
	MIGRATION_MEMORY_LATE,     /* when its VMM has read the vmstate; not yet */
	MIGRATION_MEMORY_CAME,     /* that has been */
};

struct migration_times {
	uint64_t started_ns, ended_ns;
	uint64_t pause_sent_ns; /* source */
	uint64_t switch_sent_ns, vmstate_received_ns, loaded_ns, resumed_ns;
	uint64_t prepared_real_ns, state_real_ns, resumed_real_ns;
};

struct saved {
	struct migration_params params;
	struct migration_limits limits; /* all of them given */
	struct conn_target target;      /* where the source is dialled now */
	struct migration_warm warming;  /* destination */
	enum migration_state state;
	char reason[ERROR_TEXT_MAX];
	uint32_t n_regions; /* 0: no VMM was attached, or memory is LATE */
	enum migration_memory memory;
	unsigned int shards; /* destination: userfaultfds of its memory; 0: one */
	unsigned int
	        shards_offered; /* its VMM may divide it among so many; 0: it was not offered */
	struct vmm_wire_region regions[REGIONS_MAX];
	/* What the store's manager calls the descriptor of an index; empty: "mem<index>.<key>". */
	char entries[VMM_WIRE_FDS_MAX][FD_STORE_NAME_BYTES];
	uint64_t epoch;
	struct stream_holder holder; /* destination: itself; source: who holds it */
	bool switchover;
	bool vmm_resumed;
	bool vmstate_held;
	uint64_t vmstate_len;
	uint64_t pause_ns;
	unsigned int dirty_log; /* source: enum dirty_log_how; 0: none */
	bool warm;              /* source: its last harvest is for the holder */
	enum migration_farewell farewell;
	struct migration_times times;
	uint64_t queued_ns; /* destination, attached: it waits for its turn; 0: it does not */
	uint32_t priority;
	bool turn_switchover; /* it is to be started with that */
};

/* Into @buf of RECORD_BYTES_MAX, which any migration fits. Return: the length. */
size_t saved_encode(const struct saved *s, void *buf);

/*
 * saved_decode() - check and read one
 *
 * Return: 0; -EPROTONOSUPPORT where a newer daemon has written it; -EPROTO where it makes no
 * sense; -ENOMEM; with @err set.
 */
int saved_decode(const void *buf, size_t len, struct saved *ret, struct error *err);

#endif
