/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Migrations: what the control plane starts, watches and ends.
 *
 * Theory of operation
 * -------------------
 * A daemon holds any number of migrations, each one half of a migration: source or
 * destination, with the same id on both hosts. It may hold both halves (a VMM that is replaced on
 * its host), and an id can be used again when what had it has ended; so of an id and a role there
 * is at most one that has not. A migration's state is owned by the
 * loop's thread. Everything that happens elsewhere (connections of the page server, the
 * conductor thread of a destination, the pull) posts news to it: a bit, or'ed into the
 * migration under its lock, and one uv_async for all. So no thread but the loop's ever
 * takes a decision, and news can't be lost or queue up.
 *
 *   source:       VMM attaches -> its memory is offered to the page server -> a destination
 *                 connects (warming) -> asks for switchover: the VMM is told to pause, its
 *                 vmstate goes over -> the destination has all: the VMM is told.
 *   destination:  VMM attaches -> start: the conductor dials (warming), and may copy memory while
 *                 the guest runs at the source (migrate/conductor/warm.c) -> switchover: asks,
 *                 gets the vmstate, starts serving faults, the VMM is given the vmstate
 *                 (point of no return) -> it resumes, bulk starts -> every page present.
 *
 * Threads: all calls on the loop's thread.
 */
#ifndef MIGRATE_MIGRATE_H
#define MIGRATE_MIGRATE_H

#include <uv.h>

#include "fault/pull.h"
#include "migrate/parties.h"
#include "migrate/share.h"
#include "migrate/state.h"
#include "stream/page_server.h"
#include "vmm/vmm_server.h"

struct fd_store;
struct migrations;
struct migration;

enum migration_role {
	MIGRATION_SOURCE = 1,
	MIGRATION_DESTINATION = 2,
};

const char *migration_role_name(enum migration_role role);

struct migrations_config {
	struct tls_context *tls;
	struct page_server *page_server; /* NULL: this daemon can be no source */
	int vmm_fd;                      /* the VMM socket, listening; taken over */
	const gid_t *vmm_groups;         /* whose members may connect there, besides root and us */
	size_t n_vmm_groups;
	struct fd_store *store; /* where a next process finds what it goes on from; NULL: none */
	struct vmm_limits vmm_limits;
	uint64_t prepare_timeout_ms;        /* for a VMM to attach; 0: none */
	unsigned int max_client_migrations; /* of them of one client; 0: no limit */
	unsigned int max_ended;             /* that are over and are remembered */
	uint64_t ended_timeout_ms;          /* for so long; 0: no limit */
	unsigned int max_migrations;        /* that are not over; 0: no limit but memory's */
	unsigned int max_incoming;          /* under way here at a time; 0: no limit */
	unsigned int max_outgoing;          /* the same of sources */
	uint64_t hold_timeout_ms; /* that one waits for a switchover that is to be told; 0: none */
	uint64_t bandwidth_in;    /* bytes/s of all page streams; 0: no limit */
	uint64_t bandwidth_out;
	unsigned int fault_threads;      /* of a guest that comes, 1..SHARDS_MAX; 0: by the CPUs */
	bool memory_check;               /* guests are admitted where there is room for them */
	unsigned int max_channels;       /* that a VMM's migration has in the store */
	unsigned int user_store_percent; /* of the store for VMMs of one user; 0: all */
	uint64_t max_vmstate_bytes;
	uint64_t slow_fault_ns; /* from here on a fault counts as slow; 0: PULL_SLOW_FAULT_NS */
};

/* A client's name with its end; what is longer is cut. */
#define MIGRATION_CLIENT_BYTES 128

/* What Prepare carries. */
struct migration_params {
	char id[MIGRATION_ID_MAX + 1];
	enum migration_role role;
	uint8_t token[TOKEN_BYTES];
	struct parties parties;
	uint32_t weight; /* among all that share the host's bandwidth: SHARE_WEIGHT_MIN.._MAX */
	/* Destination only: */
	struct conn_target source;
	unsigned int streams;
	uint64_t bandwidth_bytes_per_s; /* of bulk at most; 0: no cap */
	bool map_given;                 /* else by backend */
	enum resolver_map map;
	bool bulk;
	bool prefetch;
	/* Who says it, for shares: whoever repeats it is welcome. */
	bool client_is_root;                 /* it gets in where limits are reached */
	char client[MIGRATION_CLIENT_BYTES]; /* empty: nobody knows */
};

/* Limits that may change at any time. What is not given stays as it is. */
struct migration_limits {
	bool bandwidth_given;
	uint64_t bandwidth_bytes_per_s; /* of bulk at most; 0: no cap */
	bool streams_given;
	unsigned int streams; /* 1..PULL_STREAMS_MAX */
	bool bulk_given;
	bool bulk;
	bool prefetch_given;
	bool prefetch;
	bool weight_given;
	uint32_t weight; /* a source has this one alone */
};

/*
 * Whether memory is copied while the guest runs at the source, and until when: until the first of
 * these that is given (not 0). None: one round.
 */
struct migration_warm {
	bool wanted;
	bool hold;            /* until it is told: nothing else ends it */
	uint32_t max_rounds;  /* each fetches all that is missing when it begins */
	uint64_t max_ns;      /* since it began */
	uint64_t dirty_bytes; /* so little is missing when a round begins */
	uint64_t catch_up_ns; /* or it would be here so soon, at the rate of the last round */
};

/* Of a Start that finds no place among those that come in: whether it waits for one. */
struct migration_turn_wanted {
	bool wait;
	uint32_t priority; /* the higher the earlier: 0..MIGRATION_PRIORITY_MAX */
};

#define MIGRATION_PRIORITY_MAX 100u

/* How it goes, or went. */
struct migration_warm_info {
	char refused[ERROR_TEXT_MAX];  /* why it is not done, though it was wanted; else empty */
	uint64_t began_ns, ended_ns;   /* 0: not yet */
	uint32_t rounds;               /* that are over */
	uint32_t given_up_percent;     /* of memory would have been dirty again; 0: it was not */
	uint64_t bytes;                /* of pages, received meanwhile */
	uint64_t dirty_bytes;          /* found at the end of the last round */
	uint64_t dirty_bytes_per_s;    /* of the guest, in that round */
	uint64_t bytes_per_s;          /* received, in that round */
	uint64_t catch_up_ns;          /* for what is dirty, at that rate; 0: not known */
	uint64_t switched_dirty_units; /* missing when the guest had been paused */
};

/* Where the downtime went; nanoseconds, valid once known. They add up to total. */
struct migration_downtime {
	bool known;
	uint64_t total_ns;
	uint64_t pause_ns;  /* the source VMM stops its vCPUs and saves its state */
	uint64_t send_ns;   /* request, vmstate over the wire */
	uint64_t load_ns;   /* the destination VMM loads it */
	uint64_t resume_ns; /* its vCPUs start */
};

/* What a source has served. */
struct migration_served {
	uint64_t requests;
	uint64_t pages; /* with their bytes */
	uint64_t zero_pages;
	uint64_t unreadable_pages;
	uint64_t bytes;
};

/* How bulk leaves a source (stream/pacer.h). */
struct migration_pace {
	uint64_t bytes_per_s; /* 0: as fast as it gets */
	uint64_t in_flight_bytes;
	uint64_t rtt_us; /* 0: none was served */
	uint64_t queue_us;
};

/* What it takes of the host's bandwidth (migrate/bandwidth.h), while it moves. */
struct migration_bandwidth {
	uint64_t share_bytes_per_s; /* bulk may take so much; 0: no limit */
	uint64_t bulk_bytes_per_s;  /* and takes so much, of late */
	uint64_t fault_bytes_per_s;
};

/* What it stands still for, or its guest does. */
enum migration_waits {
	MIGRATION_WAITS_NOT,
	MIGRATION_WAITS_SOURCE,      /* destination: the source is tried */
	MIGRATION_WAITS_PAUSE,       /* source: its VMM has not answered PAUSE */
	MIGRATION_WAITS_VMSTATE,     /* destination: the source has not, to the same end */
	MIGRATION_WAITS_LOAD,        /* destination: its VMM has the vmstate */
	MIGRATION_WAITS_RESUME,      /* destination: its VMM has loaded it */
	MIGRATION_WAITS_MEMORY,      /* destination: pages can't be filled */
	MIGRATION_WAITS_DESTINATION, /* source: who holds the guest is silent */
	MIGRATION_WAITS_TURN,        /* destination: others come in first (migrate/queue.h) */
	MIGRATION_WAITS_SWITCHOVER,  /* destination: it is held, and could be switched over */
	MIGRATION_WAITS
};

struct migration_wait {
	enum migration_waits what;
	uint64_t since_ns;  /* CLOCK_MONOTONIC */
	unsigned int tries; /* of the source, or fills, that came to nothing */
	uint64_t next_ns;   /* when the source is tried again; 0: it is being tried */
	int error;          /* of memory: -errno */
	unsigned int place; /* of its turn: 1 is the next */
};

/* What keeps memory from coming faster. */
enum migration_limited {
	MIGRATION_LIMITED_UNKNOWN,
	MIGRATION_LIMITED_NETWORK, /* or the source, which knows whether it is its CPU */
	MIGRATION_LIMITED_CAP,
	MIGRATION_LIMITED_DESTINATION_CPU,
	MIGRATION_LIMITED_SOURCE_CPU,
	MIGRATION_LIMITED_FAULTS, /* bulk is off: what the guest touches is all that comes */
	MIGRATION_LIMITED_REASONS
};

/* A snapshot; strings belong to the migration and are valid until the loop goes on. */
struct migration_info {
	uint64_t seq; /* counts up with each one that is prepared here */
	const char *id;
	enum migration_role role;
	enum migration_state state;
	const char *reason; /* why failed, cancelled or paused; what it waits for; else empty */
	struct migration_wait wait;
	enum migration_limited limited_by;
	struct migration_bandwidth bandwidth;
	uint64_t memory_bytes;
	uint64_t page_bytes; /* 0 before attach */
	const char *backend; /* of the first region; empty before attach */
	const struct region_table *regions;
	pid_t vmm_pid; /* 0: none attached */
	const struct parties *parties;
	const char *peer_version; /* of the other daemon, as it said last; empty: not known */
	/* CLOCK_REALTIME: when it was prepared, and came to its state. */
	uint64_t prepared_real_ns;
	uint64_t state_real_ns;

	/* Destination; NULL before attach or after the pull is gone. */
	const struct pull_stats *pull;
	const char *tls;
	/* The limits as they are now; all are given. */
	struct migration_limits limits;
	const struct conn_target *source_target; /* that is dialled: migration_recover() */
	bool map_eager;
	struct migration_warm warm;
	struct migration_warm_info warmed;
	struct migration_downtime downtime;
	uint64_t started_ns; /* Start was called; 0: not yet */
	uint64_t resumed_ns; /* the guest runs here; bulk starts */
	uint64_t resumed_real_ns;
	uint64_t ended_ns; /* the state became final */
	uint64_t pages_total;
	uint64_t pages_present;

	/* Source. */
	struct migration_served served;
	struct migration_pace pace;
	bool connected;           /* a destination has a control connection */
	uint64_t holder_heard_ns; /* 0: not by this process */

	struct stream_holder holder; /* destination: itself; source: whose the guest is */
};

/* Why a migration was not prepared. */
enum prepare_refusal {
	PREPARE_REFUSED_PARAMETERS,
	PREPARE_REFUSED_EXISTS, /* with others */
	PREPARE_REFUSED_ROLE,   /* this daemon can't be a source */
	PREPARE_REFUSED_DRAINING,
	PREPARE_REFUSED_CLIENT, /* so many are this client's */
	PREPARE_REFUSED_LIMIT,  /* so many there are, or descriptors in the store */
	PREPARE_REFUSED_RESOURCES,
	PREPARE_REFUSALS
};

const char *prepare_refusal_name(enum prepare_refusal refusal);

/* Why a guest was not admitted (migrate/admission.h). */
enum admission_refusal {
	ADMISSION_REFUSED_MEMORY,
	ADMISSION_REFUSED_HUGE_PAGES,
	ADMISSION_REFUSED_CGROUP,
	ADMISSION_REFUSED_DESCRIPTORS,
	ADMISSION_REFUSED_INCOMING,
	ADMISSION_REFUSALS
};

const char *admission_refusal_name(enum admission_refusal refusal);

/* Sizes of huge pages that this host may have. */
#define BUDGET_POOLS_MAX 4u

/* What all page streams of one direction take, and may. */
struct migrations_bandwidth {
	uint64_t limit_bytes_per_s; /* 0: none */
	uint64_t bulk_bytes_per_s;
	uint64_t fault_bytes_per_s;
};

/* What this host has for guests that come, and what of it is promised. */
struct migrations_budget {
	bool memory_check;
	uint64_t available_bytes; /* of ordinary memory; 0: not known */
	uint64_t promised_bytes;  /* that guests have still to receive */
	size_t n_pools;           /* of huge pages that any guest is promised */
	struct migrations_pool {
		uint64_t page_bytes;
		uint64_t free_bytes; /* 0: not known */
		uint64_t promised_bytes;
	} pools[BUDGET_POOLS_MAX];
	unsigned int incoming, max_incoming; /* under way; 0: no limit */
	unsigned int queued;                 /* that wait for their turn to come in */
	unsigned int held;                   /* of incoming, that wait for Switchover */
	unsigned int outgoing, max_outgoing;
	uint64_t descriptors, max_descriptors;    /* of this process; 0: no limit */
	struct migrations_bandwidth bandwidth[2]; /* by role - 1 */
};

/* The parts of a downtime, as migration_downtime has them. */
enum migration_downtime_part {
	DOWNTIME_TOTAL,
	DOWNTIME_PAUSE,
	DOWNTIME_SEND,
	DOWNTIME_LOAD,
	DOWNTIME_RESUME,
	DOWNTIME_PARTS
};

/*
 * All migrations that this daemon ever had, together: what only grows never shrinks, also where
 * a migration is forgotten.
 */
struct migrations_totals {
	/* How many are in each state; of final ones how many ever were. By role - 1. */
	uint64_t states[2][MIGRATION_STATES];
	uint64_t prepared[2]; /* ever */
	struct histogram downtime_ns[DOWNTIME_PARTS];

	uint64_t prepares_refused[PREPARE_REFUSALS];
	uint64_t admissions_refused[ADMISSION_REFUSALS];

	/* Destinations: struct pull_stats, summed. */
	uint64_t fill_write, fill_memcpy, fill_copy, fill_zero;
	uint64_t pages_poisoned;
	uint64_t fills_failed;
	uint64_t faults, faults_remote, faults_minor, faults_coalesced;
	uint64_t bulk_bytes;
	uint64_t bulk_twice;
	uint64_t prefetched, prefetch_hit, prefetch_late;
	uint64_t prefetch_wasted; /* of those that have ended */
	uint64_t reconnects;
	uint64_t pauses; /* how often one came to MIGRATION_PAUSED */
	uint64_t faults_slow;
	struct histogram fault_ns; /* fault_idle_ns and fault_bulk_ns */
	struct histogram fault_phase_ns[FAULT_PHASES];

	/* Sources. */
	struct migration_served served;

	/* Destinations that are under way, now. */
	uint64_t pages_missing;
	uint64_t bulk_in_flight;

	/* The service manager's store: entries that are kept or held, and may be; 0 without one. */
	uint64_t store_entries, store_max;
};

/* Pages present over time, at most this many points. */
#define MIGRATION_TIMELINE_MAX 1024u

struct migration_point {
	uint64_t at_ns;
	uint64_t present;
};

/* Called on the loop's thread with each change of state. */
struct migration_watcher {
	struct migration_watcher *next;
	void (*changed)(struct migration_watcher *w, struct migration *m);
	void *arg; /* the watcher's own */
};

/*
 * migrations_new() - with the VMM socket listening
 * @config: copied; what it points to must outlive it
 */
int migrations_new(uv_loop_t *loop, const struct migrations_config *config, struct migrations **ret,
                   struct error *err);

/*
 * Take over the limits, times and groups of @config, and nothing else of it. What a VMM or a
 * migration has already stays.
 */
void migrations_set_limits(struct migrations *ms, const struct migrations_config *config);

/*
 * migrations_take_over() - go on with what the process before this one has left
 *
 * Once, before the page server is started and the loop runs.
 *
 * Return: 0; -EPROTONOSUPPORT where a newer daemon has left it (nothing was touched then), with
 * @err set.
 */
int migrations_take_over(struct migrations *ms, struct error *err);

/*
 * migrations_are_left() - is there anything in the store that a process must go on from?
 *
 * Nothing is taken. A record that can't be read counts.
 */
bool migrations_are_left(struct fd_store *store);

/*
 * migrations_drain() - the end is near: no new migration is prepared or started
 *
 * Return: how many are under way still, between start and their end.
 */
unsigned int migrations_drain(struct migrations *ms);

/*
 * The end, in three steps: _stop() ends all threads and lets go of the page server, which the
 * caller can then free; _close() closes the last handle, and when the loop has run on, _free().
 *
 * Where there is a store, migrations are parked: nobody is told anything, and the next process
 * goes on. Where there is none, those that can still be given up are.
 */
void migrations_stop(struct migrations *ms);
void migrations_close(struct migrations *ms);
struct migrations *migrations_free(struct migrations *ms);

/*
 * migrations_prepare() - announce a migration
 *
 * Idempotent until it has ended: the same parameters again find the same migration. Then its id and
 * role can be used again: that makes another one, and the one before is history.
 *
 * Return: 0; -EEXIST where one of that id and role is there with different ones; -EINVAL; -EBUSY
 * where this daemon can't be that; -EDQUOT where the client has too many, -EUSERS where there are
 * too many; with @err set.
 */
int migrations_prepare(struct migrations *ms, const struct migration_params *params,
                       struct migration **ret, struct error *err);

/* One was refused, by migrations_prepare() or before it was asked. */
void migrations_note_refusal(struct migrations *ms, enum prepare_refusal refusal);

/* Whether @id may name one. Return: 0 or -EINVAL with @err set. */
int migration_id_check(const char *id, struct error *err);

/*
 * migrations_find() - by id: the one that has not ended, or else the newest
 * @role: 0: whichever there is
 *
 * Return: NULL with @err set: -ENOENT; -EINVAL where both halves are under way and @role does not
 * say which.
 */
struct migration *migrations_find(struct migrations *ms, const char *id, enum migration_role role,
                                  struct error *err);

/*
 * migrations_delete() - forget those of an id that have ended
 * @role: 0: of both
 * @ret_deleted: how many; also on failure
 *
 * Return: 0; -ENOENT where there is none; -EBUSY where one has not ended or is still in somebody's
 * hands; with @err set.
 */
int migrations_delete(struct migrations *ms, const char *id, enum migration_role role,
                      unsigned int *ret_deleted, struct error *err);

/* The next after @m, or the first for NULL; NULL at the end. */
struct migration *migrations_next(struct migrations *ms, struct migration *m);

void migrations_get_totals(struct migrations *ms, struct migrations_totals *ret);

/* Which version of each this daemon speaks. */
extern const struct migrations_protocols {
	unsigned int page_stream, record, vmm;
} migrations_protocols;

/* Records that could not be read: their guests wait for the postcopyd that wrote them. */
unsigned int migrations_records_left(const struct migrations *ms);

/* As it is now. Reads files of the kernel's. */
void migrations_get_budget(struct migrations *ms, struct migrations_budget *ret);

/*
 * migration_start(), _switchover(), _cancel() - destination; cancel: both
 *
 * Start dials; with @switchover it goes on by itself, as @warm says. Starting what is started
 * changes nothing. Switchover ends warming, whatever @warm says.
 *
 * Return: 0; -EBUSY (the state does not allow it, @err says what would); start: -ENOMEM, -EUSERS,
 * -EMFILE where there is no room for it; with @err set.
 */
int migration_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                    const struct migration_turn_wanted *turn, struct error *err);
int migration_switchover(struct migration *m, struct error *err);
int migration_cancel(struct migration *m, struct error *err);

/*
 * migration_set_limits() - change what bulk may do, before the migration runs or while it does
 *
 * Either all that is given changes, or nothing. Faults are never held back.
 *
 * Return: 0; -EINVAL; -EBUSY on a source; with @err set.
 */
int migration_set_limits(struct migration *m, const struct migration_limits *limits,
                         struct error *err);

/* What of them is not of a source: only its weight is. */
bool migration_limits_are_of_destination(const struct migration_limits *limits);

/*
 * migrations_set_bandwidth() - bytes/s of all page streams, 0 for no limit; NULL: as it is
 *
 * Until the configuration has another value than now, or the process ends.
 */
void migrations_set_bandwidth(struct migrations *ms, const uint64_t *in, const uint64_t *out);

/*
 * migration_set_warm() - while it warms: until when
 *
 * Return: 0; -EBUSY where it does not, with @err set.
 */
int migration_set_warm(struct migration *m, const struct migration_warm *warm, struct error *err);

/*
 * migration_recover() - dial the source anew, at once
 * @target: where it is now; NULL: where it was
 *
 * Destination, from start to its end. Only the attachment of the guest that was there before will
 * do, whatever the address. Return: 0; -EBUSY with @err set.
 */
int migration_recover(struct migration *m, const struct conn_target *target, struct error *err);

/*
 * migration_missing() - the guest memory that is not here, as pull_missing_ranges()
 *
 * Destination. Return: how many ranges, at most @max, are in @ret.
 */
size_t migration_missing(struct migration *m, struct pull_place *at, struct pull_range *ret,
                         size_t max);

/*
 * migration_poison() - the source is gone for good: give up what is missing
 *
 * Destination, paused only: whoever touches a missing page gets a machine check rather than to
 * wait for ever, the rest of the guest is whole, and the migration fails, saying how much was lost.
 *
 * Return: 0, with that under way, or done by this process before; -EBUSY with @err set.
 */
int migration_poison(struct migration *m, struct error *err);

/*
 * migration_set_token() - source, before a destination has connected: by which one is let in
 *
 * The token before is worth nothing from then on. Return: 0; with @err set: -EBUSY;
 * -EAGAIN: it is not taken over yet.
 */
int migration_set_token(struct migration *m, const uint8_t token[TOKEN_BYTES], struct error *err);

/*
 * migration_run_on(), migration_release() - source: a destination that is gone for good
 *
 * Run on: its guest runs on here; the holder is never served again, and told to stop its own.
 * Release: its guest is the holder's, and given up here.
 *
 * Return: 0, also where it has ended so already; -EBUSY with @err set: the state is another, or
 * the holder was heard a moment ago.
 */
int migration_run_on(struct migration *m, struct error *err);
int migration_release(struct migration *m, struct error *err);

void migration_get_info(struct migration *m, struct migration_info *ret);

/* The timeline so far. Return: how many points were written to @ret. */
size_t migration_get_timeline(struct migration *m,
                              struct migration_point ret[MIGRATION_TIMELINE_MAX]);

/* Of so many units (of 4 KiB) of guest memory, those that have arrived. */
struct migration_arrival_cell {
	uint64_t bytes_by_fault;
	uint64_t bytes_by_bulk;
	uint64_t mean_us; /* when, on average, since the guest was resumed; 0 where it was before */
};

/*
 * migration_get_arrival() - guest memory by time of arrival, region after region
 * @ret_units_per_cell: all but the last cell are of so many units
 *
 * Discarded pages, and those of a process before this one, have no time of arrival.
 *
 * Return: how many cells were written to @ret; 0 before attach and on a source.
 */
size_t migration_get_arrival(struct migration *m,
                             struct migration_arrival_cell ret[ARRIVAL_CELLS_MAX],
                             uint64_t *ret_units_per_cell);

void migration_watch(struct migration *m, struct migration_watcher *w);
void migration_unwatch(struct migration *m, struct migration_watcher *w);

/* The same for every migration there is or will be. */
void migrations_watch(struct migrations *ms, struct migration_watcher *w);
void migrations_unwatch(struct migrations *ms, struct migration_watcher *w);

#endif
