/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration's inside, shared by all below src/migrate.
 *
 * Theory of operation
 * -------------------
 *   migrate.h          what other subsystems see; migrate.c has all of them, and takes commands
 *   migration.h        one of them: its fields by owner, its state, the mail between threads
 *   attach.h           what a VMM hands over, judged
 *   admission.h        whether a guest that comes has room here; budget.h has the arithmetic
 *   bandwidth.h        what all of them may take of the network; share.h has the arithmetic
 *   queue.h            who waits for a place among those that come in
 *   adapter.h          a VMM for which another process speaks
 *   totals.h           what the daemon's migrations have counted, over all
 *   source/            the source's half: the guest is paused, let go, or run on; its dirty log
 *   destination/       the destination's half: attach, vmstate, resume; late memory; shards
 *   conductor/         a destination's own thread: connect, warm, switch over, complete
 *   record/            what the next process has: the record, descriptors, and how it goes on
 *
 * All but conductor/ runs on the loop's thread and alone decides. The conductor talks to the
 * source, which takes time: it posts news (migration_post()) and takes orders (migration_order());
 * nothing else is shared but what stands under the lock. A half calls down into record/ (record
 * before effect) and into attach.h, never into the other half.
 */
#ifndef MIGRATE_MIGRATION_H
#define MIGRATE_MIGRATION_H

#include <pthread.h>

#include "mem/addrmap.h"
#include "mem/descriptor.h"
#include "migrate/record/saved.h"
#include "util/fd_store.h"
#include "util/record.h"
#include "vmm/vmm_server.h"

/* What other threads have to say. */
enum migration_news {
	/* source, from connections */
	NEWS_CONNECTED = 1 << 0,
	NEWS_SWITCHOVER = 1 << 1,
	NEWS_RESUMED = 1 << 2,
	NEWS_COMPLETE = 1 << 3, /* also the destination's conductor */
	NEWS_ABORTED = 1 << 4,
	NEWS_LOG = 1 << 16, /* page_source_get_log_order() has changed */
	/* destination, from the conductor and the pull */
	NEWS_WARM = 1 << 5,
	NEWS_VMSTATE = 1 << 6,
	NEWS_FAILED = 1 << 7,     /* error says why */
	NEWS_CONNECTION = 1 << 8, /* pull_get_connection() has changed */
	NEWS_ATTRIBUTES = 1 << 9, /* attributes are the source's */
	NEWS_ENDED = 1 << 10,     /* the conductor has returned */
	NEWS_REWARM = 1 << 11,    /* the source guest was attached anew */
	NEWS_NOTE = 1 << 12,      /* note has changed */
	NEWS_FAREWELL = 1 << 13,  /* so has farewell: write it down */
	NEWS_TABLE = 1 << 14,     /* the source's regions, for a VMM whose memory is late */
	NEWS_OFFER = 1 << 15,     /* the vmstate is here, for such a VMM */
	NEWS_AHEAD = 1 << 17,     /* more of the vmstate is */
};

/* What the loop asks of the conductor. */
enum conductor_order {
	ORDER_SWITCHOVER = 1 << 0,
	ORDER_RESUMED = 1 << 1,       /* the VMM says that the guest runs */
	ORDER_CANCEL = 1 << 2,        /* before the point of no return */
	ORDER_STOP = 1 << 3,          /* the daemon ends */
	ORDER_PULL_COMPLETE = 1 << 4, /* from the pull: every page is present */
	ORDER_POISON = 1 << 7,        /* what is missing is lost */
	ORDER_RECORDED = 1 << 6,      /* that the source will be asked for switchover */
	ORDER_FAREWELL = 1 << 8,      /* farewell is written down */
	ORDER_ROUND = 1 << 9,         /* from the pull: a round may be over */
	ORDER_MEMORY = 1 << 10,       /* what was late is here */
	ORDER_SHARDS = 1 << 11,       /* shard_mail has changed */
	ORDER_PARK = 1 << 5,          /* with STOP: another process goes on, say nothing */
};

struct vmm_process;

/* Of one that waits to be started (migrate/queue.h). */
struct migration_turn {
	uint64_t since_ns; /* 0: it does not */
	uint32_t priority;
	bool switchover; /* and what else it is to be started with: warming */
};

/* What is known of one that moves (migrate/bandwidth.h). */
struct bandwidth_part {
	struct share share;
	struct migration_bandwidth now;
	uint64_t bulk_seen, faults_seen; /* bytes, that it had counted when it was looked at */
};

/* An id, and a number where another one of this id has it. */
#define MIGRATION_KEY_BYTES (MIGRATION_ID_MAX + 16)

struct migration {
	/* Set at birth. */
	struct migrations *owner;
	struct migration *next;
	struct migration_params params;
	char key[MIGRATION_KEY_BYTES]; /* its names in the store are KIND.KEY */
	uint64_t seq;
	/* Destination: itself. Source: who has been given the guest; the loop's. */
	struct stream_holder holder;

	/* The loop's. */
	enum migration_state state;
	bool taken_over; /* since the VMM was attached, by another process */
	bool must_go_on; /* its normal course could not be begun again yet */
	char reason[ERROR_TEXT_MAX];
	char reason_noted[3 * ERROR_TEXT_MAX]; /* of migration_get_info() */
	char version_noted[DAEMON_VERSION_BYTES];
	enum migration_waits told_waits; /* what the log has heard of last: */
	uint64_t told_wait_ns;           /* how long that had lasted by then */
	struct migration_watcher *watchers;
	struct vmm_conn *vmm; /* who speaks for it; NULL while none is attached */
	struct vmm_process
	        *process; /* of the VMM that an adapter speaks for; NULL: it is its own */
	uint64_t
	        adapter_due_ms; /* until when it is waited for, by the loop's clock; 0: it is not */
	enum migration_memory memory; /* destination */
	bool memory_asked;            /* the VMM waits to hear that its late memory was taken */
	struct region_table table;    /* as long as the memory is late: the source's */
	struct descriptor_file files[REGIONS_MAX]; /* behind each region, since it was opened */
	uint32_t fd_index[REGIONS_MAX]; /* of each region, among the ATTACH's descriptors */
	size_t n_fds;                   /* of the ATTACH, that the store keeps */
	unsigned int n_channels;        /* that it keeps, when they were counted last */
	uid_t vmm_uid;        /* whose share of the store that is; root's is not counted */
	struct record record; /* absent where there is no store */
	struct saved *left;   /* what is to be taken over still; NULL: nothing */
	uint64_t started_ns, resumed_ns, ended_ns;
	uint64_t prepared_real_ns, state_real_ns, resumed_real_ns;
	uint64_t waits_since_ms; /* for its VMM, by the loop's clock */
	struct {
		pid_t pid; /* of its VMM, when it was looked for; 0: it was not */
		bool is_legacy;
		char *cgroup; /* NULL: not known */
	} counted;            /* where its memory is (migrate/admission.h) */
	struct bandwidth_part bandwidth;
	struct migration_limits limits; /* all are given */
	/* source */
	struct page_source *source;
	struct stream_holder visitor; /* who was let in last, before the attachment there is */
	struct page_source *ended;    /* what answers for it when it has ended; NULL: nothing */
	uint64_t pause_sent_ns;
	unsigned int dirty_log; /* enum dirty_log_how; 0: none */
	bool warm;              /* its last harvest is for the holder; from switchover on */
	bool has_poisoned;      /* the VMM has told what is */
	uint64_t log_session;   /* what the VMM was told to log last; 0: nothing */
	uint64_t log_number;
	bool paused; /* the vmstate is ours: only an abort lets the guest run on here */
	struct migration_served served; /* by what source was before */
	struct migration_pace pace;     /* as it was last */
	/* destination */
	struct migration_turn turn;
	struct pull *pull;
	struct migration_downtime downtime;
	uint64_t loaded_ns;
	/* The userfaultfds that watch its memory (destination/shards.h). */
	struct {
		unsigned int offered;   /* so many, and the VMM has not answered; 0: none are */
		bool held;              /* the store has room for them, or them */
		unsigned int n;         /* that there are; 0: the one of ATTACH */
		bool again;             /* the answer could not be taken: it is asked again */
		uint64_t uffd_features; /* of ATTACH, as its VMM says; 0: not known here */
	} shards;
	/* Before the point of no return: for the adapter, or for late memory. */
	bool vmstate_waits;
	bool switchover;   /* by command: now, or as soon as it is warm */
	bool goodbye_only; /* all that is left to do of a migration that is over */
	bool conductor_runs;
	pthread_t conductor;

	/* Under the lock. */
	pthread_mutex_t lock;
	pthread_cond_t ordered;
	unsigned int news;   /* enum migration_news, for the loop */
	unsigned int orders; /* enum conductor_order, for the conductor */
	struct error error;
	char note[ERROR_TEXT_MAX]; /* what the last of its tries met; written by the conductor */
	bool note_is_of_warming;   /* which was refused; the source is there */
	uint64_t tried_since_ns;   /* while there is a note */
	unsigned int tries;        /* so many since then */
	uint64_t next_try_ns;
	uint32_t attributes[REGIONS_MAX]; /* the source's regions' flags, by region */
	struct region_table theirs;       /* of NEWS_TABLE */
	/*
	 * The point of no return. Whoever is first wins: the loop, giving the vmstate to the VMM,
	 * or the conductor, giving up and telling the source to run on.
	 */
	bool may_have_run;
	bool given_up;
	enum migration_farewell farewell;  /* what the source has still to be told */
	char farewell_why[ERROR_TEXT_MAX]; /* and why, where that is ABORT: the first reason */
	struct conn_target target;         /* where it is dialled */
	struct migration_warm warming;     /* whether, and until when */
	struct migration_warm_info warmed;
	uint64_t held_since_ns; /* it could be switched over, and is told when; 0: not yet */
	bool least_missing_known;
	uint64_t least_missing; /* units: what never was here takes no memory yet */
	uint64_t epoch;         /* of its guest's attachment; 0: not known yet */
	char peer_version[DAEMON_VERSION_BYTES]; /* a source's that has ended: as it was last */
	/* For the VMM, from NEWS_VMSTATE until the guest runs; and what belongs to it. */
	int vmstate_fd;
	uint64_t vmstate_len;
	/* What has come of it ahead, and may be nothing; -1: nothing. */
	int ahead_fd;
	uint64_t ahead_len;
	uint64_t switch_sent_ns, vmstate_received_ns, source_pause_ns;
	/* Destination: further userfaultfds, for the conductor to take while it runs. */
	struct {
		unsigned int n; /* as pull_take_shards() has it; 0: nothing */
		int uffds[SHARDS_MAX - 1];
		int journals_fd;
		bool owed; /* the VMM was offered some, and may have divided its memory by now */
		bool sure; /* it has */
	} shard_mail;
	struct migration_point timeline[MIGRATION_TIMELINE_MAX];
	size_t timeline_n;
	struct conn *control; /* the conductor's, to cut it */

	struct dialing dialing; /* the conductor's, to have it given up */
};

struct migrations {
	uv_loop_t *loop;
	struct migrations_config config;
	struct vmm_server *vmm_server;
	uv_async_t news;
	struct migration *list;
	struct migration_watcher *watchers;
	struct migrations_totals
	        totals; /* of what the migrations in the list don't know any more */
	bool draining;
	uint64_t last_seq;
	bool store_warned; /* that the manager's store is nearly full */
	struct {
		struct unread_key *keys;
		unsigned int n; /* records */
	} unread;               /* migrate/record/unread.h */
	uv_timer_t expiry;      /* of those for which no VMM comes */
	uv_timer_t again;       /* for those that could not be taken over yet */
	uint64_t again_ms;      /* its pause */
	uv_timer_t adapters;    /* for those that are waited for */
	uv_timer_t waits;       /* for those who are silent (migrate/wait.h) */
	uv_timer_t queue;       /* for those that wait for their turn (migrate/queue.h) */
	uv_timer_t trim;        /* for what those that have ended leave (migrate/trim.h) */
	uv_timer_t offers;      /* for those that are asked again (destination/shards.h) */
	struct {
		uint64_t in_bytes_per_s, out_bytes_per_s; /* as they are; 0: no limit */
		uint64_t configured_in, configured_out;
		uint64_t looked_ns;
		uv_timer_t timer;
	} bandwidth; /* migrate/bandwidth.h */
};

/* From any thread. */
void migration_post(struct migration *m, enum migration_news news);
void migration_order(struct migration *m, enum conductor_order order);

/*
 * Move to a state, log it, tell the watchers. A transition that the table does not have is a
 * bug of ours: it is logged and not made.
 */
void migration_move(struct migration *m, enum migration_state to, const char *reason_fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* A state's reason changes, and the state does not: the watchers are told. */
void migration_tell(struct migration *m, const char *reason);

/* Whether the source is out of reach at this moment; else @err says what of it is there. */
bool migration_source_is_away(struct migration *m, struct error *err);

/* Whether something of it goes on: pages, or a word that the source has still to hear. */
static inline bool migration_is_under_way(const struct migration *m)
{
	return m->conductor_runs || (m->state >= MIGRATION_WARMING && m->state <= MIGRATION_PAUSED);
}

/* Whether its memory is to come still. */
static inline bool migration_memory_is_late(const struct migration *m)
{
	return m->memory == MIGRATION_MEMORY_LATE;
}

/* Whether it is the key of one in the list. */
bool migration_has_key(const struct migrations *ms, const char *key);

/*
 * Allocated, in the list, without a state but prepared. @key: of one that is taken over; NULL: any
 * that is free. Return: NULL with @err set: no memory.
 */
struct migration *migration_new(struct migrations *ms, const struct migration_params *params,
                                const char *key, struct error *err);

/* The state forbids what was asked for. Return: -EBUSY with @err saying so. */
int migration_refuse_now(const struct migration *m, const char *what, struct error *err);

#endif
