/* SPDX-License-Identifier: Apache-2.0 */
/* A migration's inside, shared by the files of this directory. */
#ifndef MIGRATE_MIGRATION_H
#define MIGRATE_MIGRATION_H

#include <pthread.h>

#include "mem/addrmap.h"
#include "mem/descriptor.h"
#include "migrate/saved.h"
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
	ORDER_PARK = 1 << 5,          /* with STOP: another process goes on, say nothing */
};

struct memory;
struct vmm_process;

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
	char reason_noted[2 * ERROR_TEXT_MAX + 32]; /* of migration_get_info() */
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
	/* source */
	struct page_source *source;
	struct page_source *ended; /* what answers for it when it has ended; NULL: nothing */
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
	struct migration_limits limits; /* all are given */
	struct pull *pull;
	struct migration_downtime downtime;
	uint64_t loaded_ns;
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
	uint32_t attributes[REGIONS_MAX]; /* the source's regions' flags, by region */
	struct region_table theirs;       /* of NEWS_TABLE */
	/*
	 * The point of no return. Whoever is first wins: the loop, giving the vmstate to the VMM,
	 * or the conductor, giving up and telling the source to run on.
	 */
	bool may_have_run;
	bool given_up;
	enum migration_farewell farewell; /* what the source has still to be told */
	struct conn_target target;        /* where it is dialled */
	struct migration_warm warming;    /* whether, and until when */
	struct migration_warm_info warmed;
	uint64_t epoch; /* of its guest's attachment; 0: not known yet */
	/* For the VMM, from NEWS_VMSTATE until the guest runs; and what belongs to it. */
	int vmstate_fd;
	uint64_t vmstate_len;
	uint64_t switch_sent_ns, vmstate_received_ns, source_pause_ns;
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
	bool store_warned;   /* that the manager's store is nearly full */
	uv_timer_t expiry;   /* of those for which no VMM comes */
	uv_timer_t again;    /* for those that could not be taken over yet */
	uint64_t again_ms;   /* its pause */
	uv_timer_t adapters; /* for those that are waited for */
};

/* Before what @m has counted is freed. */
void totals_keep_pull(struct migration *m);
void totals_keep_served(struct migration *m);

/* The downtime is known; the state has become final. */
void totals_note_downtime(struct migration *m);
void totals_note_end(struct migration *m);

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

/* What each role does with: an attached VMM, its messages, its end; news; a cancel. */
int source_attach(struct migration *m, struct vmm_attach *attach, struct error *err);
/*
 * Taking over: guest memory first, or nothing at all; then, with the VMM's socket (or without), go
 * on. The destination may have no thread for that: then it has done nothing, and is called again.
 */
int source_take_over(struct migration *m, struct vmm_attach *attach, const struct saved *saved,
                     struct error *err);
void source_go_on(struct migration *m);
int source_message(struct migration *m, const struct vmm_wire_msg *msg, int fds[VMM_MESSAGE_FDS],
                   struct error *err);
/* One whose descriptor is lost. */
void source_cut_message(struct migration *m, enum vmm_wire_type type, const struct error *why);
void source_vmm_closed(struct migration *m);
void source_news(struct migration *m, unsigned int news);
int source_cancel(struct migration *m, struct error *err);
int source_set_token(struct migration *m, const uint8_t token[TOKEN_BYTES], struct error *err);
int source_run_on(struct migration *m, struct error *err);
int source_release(struct migration *m, struct error *err);

/*
 * @pieces: where its regions are mapped, if not each at its host_addr; NULL
 * @state_fd: a page state to go on from, borrowed; -1: all is missing. It knows of pieces.
 */
int destination_attach(struct migration *m, struct vmm_attach *attach, const struct addrmap *pieces,
                       int state_fd, struct error *err);
/* As if no VMM had ever attached. */
void destination_detach(struct migration *m);
int destination_take_over(struct migration *m, struct vmm_attach *attach, struct error *err);
int destination_go_on(struct migration *m);
int destination_message(struct migration *m, const struct vmm_wire_msg *msg, int *fd,
                        struct error *err);
/* MEMORY: what was late (late.c). */
int destination_memory(struct migration *m, struct vmm_attach *attach, struct error *err);
void destination_take_table(struct migration *m);
/* The guest is the source's still, and is to be so: it is told to run it on, and the VMM why. */
void destination_give_up(struct migration *m, const struct error *why);
void destination_vmm_closed(struct migration *m);
void destination_news(struct migration *m, unsigned int news);
int destination_start(struct migration *m, bool switchover, const struct migration_warm *warm,
                      struct error *err);
int destination_set_warm(struct migration *m, const struct migration_warm *warm, struct error *err);
int destination_switchover(struct migration *m, struct error *err);
int destination_recover(struct migration *m, const struct conn_target *target, struct error *err);
int destination_cancel(struct migration *m, struct error *err);

/*
 * Allocated, in the list, without a state but prepared. @key: of one that is taken over; NULL: any
 * that is free. Return: NULL with @err set: no memory.
 */
struct migration *migration_new(struct migrations *ms, const struct migration_params *params,
                                const char *key, struct error *err);

/* Start the conductor's thread. Return: 0 or -errno: nothing has begun. */
int conductor_start(struct migration *m);

/* Whether the source is out of reach at this moment; else @err says what of it is there. */
bool migration_source_is_away(struct migration *m, struct error *err);

/* Whether its memory is to come still. */
static inline bool migration_memory_is_late(const struct migration *m)
{
	return m->memory == MIGRATION_MEMORY_LATE;
}

/* The pull's callbacks; @arg is the migration. */
void conductor_pull_complete(void *arg);
void conductor_pull_connection(void *arg);
void conductor_pull_round(void *arg);

/* Have the conductor end and wait for it; release what the destination holds. */
void destination_stop(struct migration *m);

/*
 * What its guest writes while it runs (source_log.c): the VMM says how that can be told; what it
 * was asked for; what is wanted of it now; its end, before its VMM hears any other. And its
 * descriptors, of the process before, to a source that nobody finds yet.
 */
int source_on_dirty_log(struct migration *m, const struct vmm_wire_msg *msg,
                        int fds[VMM_MESSAGE_FDS], struct error *err);
void source_on_harvested(struct migration *m, const struct vmm_wire_msg *msg);
void source_log_news(struct migration *m);
void source_end_log(struct migration *m);
void source_take_over_log(struct migration *m, struct page_source *source,
                          const struct saved *saved);
void source_begin_log_anew(struct migration *m);
void source_lose_log(struct migration *m);

/* Take what the source holds away from the page server, and release it. */
void source_stop(struct migration *m);

/* And what answers for one that has ended. */
void source_forget(struct migration *m);

/* Whether there is a VMM, be it that its adapter is away. */
bool migration_has_vmm(const struct migration *m);
bool migration_adapter_is_away(const struct migration *m);

/* The VMM's process, not its adapter's; 0 where it is not known. */
pid_t migration_vmm_pid(const struct migration *m);

/*
 * The process of a VMM that an adapter speaks for: it is watched and kept, from ATTACH on, or by a
 * process of ours before. Nothing where there is none. Return: 0 or -errno with @err set.
 */
int migration_take_process(struct migration *m, struct vmm_attach *attach, struct error *err);
int migration_take_over_process(struct migration *m, struct error *err);
void migration_drop_process(struct migration *m);

/* The adapter's connection has ended, and the VMM lives. */
void migration_adapter_gone(struct migration *m);

/* Something waits for an adapter that is away, if it is: not for ever. */
void migration_await_adapter(struct migration *m);

/* It attaches again; it has been told so. */
int migration_attach_again(struct migrations *ms, struct vmm_conn *conn, struct vmm_attach *attach,
                           void **ret_owner, struct error *err);
void migration_attached_again(struct migration *m);

/* What each role does then: say what waits for it; go back, for it was waited for long enough. */
void source_attached_again(struct migration *m);
void destination_attached_again(struct migration *m);
void source_adapter_late(struct migration *m, const char *why);
void destination_adapter_late(struct migration *m, const char *why);

/*
 * migration_read_table() - the region table of an ATTACH, checked
 * @fds: what each region is to be opened with is found by its fd_index
 */
int migration_read_table(const struct vmm_wire_msg *msg, struct region_table *ret,
                         struct error *err);

/* Whether who attaches, or attaches again, is one that Prepare named. As parties_check_vmm(). */
int migration_check_vmm(const struct migration *m, const struct vmm_conn *conn,
                        const struct vmm_attach *attach, struct error *err);

/*
 * migration_check_attach() - whether a VMM may attach with what it hands over
 *
 * Before anything else is done with its descriptors. Nothing is changed.
 * Return: 0; -EINVAL, -EBUSY with @err set.
 */
int migration_check_attach(const struct migration *m, const struct vmm_attach *attach,
                           struct error *err);

/*
 * migration_open_memories() - the memory behind each region that is not private
 * @memories: REGIONS_MAX entries, all NULL
 *
 * Return: 0; or -errno with @err set, and what is opened is the caller's to free.
 */
int migration_open_memories(struct migration *m, const struct vmm_attach *attach,
                            const struct region_table *table, struct memory **memories,
                            struct error *err);
void migration_free_memories(struct memory **memories);

/* The state forbids what was asked for. Return: -EBUSY with @err saying so. */
int migration_refuse_now(const struct migration *m, const char *what, struct error *err);

#endif
