/* SPDX-License-Identifier: Apache-2.0 */
/* What the pull's threads share; inside of the fault subsystem. */
#ifndef FAULT_PULL_INTERNAL_H
#define FAULT_PULL_INTERNAL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "fault/arrival.h"
#include "fault/brought.h"
#include "fault/events.h"
#include "fault/fault_table.h"
#include "fault/fetch.h"
#include "fault/guesses.h"
#include "fault/pull.h"
#include "stream/load.h"
#include "stream/scheduler.h"
#include "stream/throttle.h"
#include "stream/window.h"
#include "util/thread.h"

/* Between two tries to dial: doubled from the first to the last. */
#define PULL_RETRY_MIN_MS 50u
#define PULL_RETRY_MAX_MS 2000u
/* A source that owes an answer and says nothing at all for so long is dialled anew. */
#define PULL_SILENT_MS 5000u

/*
 * An answer with anonymous memory, which its shard's fault thread alone fills (fault/resolver.h).
 * No lock: a bulk thread that has lost its core with it would hold up all faults.
 */
struct handed {
	/*
	 * For which fault thread: 1 + its index; 0: for none. Who clears it has it: that thread, or
	 * who takes it back.
	 */
	_Atomic unsigned int waits_for;
	sem_t filled; /* posted by the fault thread, when the rest is the bulk thread's again */
	struct resolver_batch batch;
	uint64_t left; /* units that were not tried yet */
	uint64_t done; /* units that were filled */
	int rc;
};

struct bulk {
	struct pull *pull;
	unsigned int index; /* at or above pull->streams: it retires */
	pthread_t thread;
	bool runs;             /* to be joined */
	bool ended;            /* under pull->lock: it has retired, or is about to return */
	struct conn *conn;     /* changed under pull->lock */
	bool lost;             /* a connection: the next one is a reconnect */
	unsigned int retry_ms; /* of pull_back_off_locked() */
	struct dialing dialing;
	struct window window;
	unsigned int window_max; /* GETs in flight, by what was seen: */
	uint64_t looked_ns, bytes;
	struct load load;
	int times_fd;               /* its thread's: thread_busy_ns() */
	struct scheduler_item rest; /* of a word that is asked for in parts; want_mask 0: none */
	bool redo;                  /* some part of that word could not be filled */
	unsigned int refused;       /* fills, because the VMM was changing its mappings */
	struct resolver_caller caller;
	struct handed handed;
};

/* The urgent connection that a fault thread lacks; under pull->lock. */
struct urgent {
	struct conn *ready; /* dialled by the keeper for the fault thread */
	bool lost;
	bool was_there;             /* one that the keeper has dialled */
	bool useful;                /* an answer has come on the one before */
	bool planned;               /* the next dial, for next_dial_ns */
	unsigned int retry_ms;      /* of pull_next_pause_ms() */
	unsigned int dials_failed;  /* since it was lost */
	uint64_t lost_ns;           /* over one before it the source had answered */
	uint64_t next_dial_ns;      /* 0: none is waited for */
	char stall[ERROR_TEXT_MAX]; /* why; empty while it is there */
};

/*
 * Pages that a fetch waits for, left by the first fault thread for another, which asks for them.
 * Under pull->lock, but for waits.
 */
#define FETCH_MAIL_MAX 64u
struct fetch_mail {
	atomic_bool waits; /* there are some */
	unsigned int n;
	struct pull_place pages[FETCH_MAIL_MAX];
};

/* One for each userfaultfd: its number is its shard's. */
struct fault_thread {
	struct pull *pull;
	unsigned int index;
	struct resolver_shard *shard;
	struct events events;
	int wake_fd; /* eventfd: it looks around */
	struct urgent urgent;
	struct brought brought;        /* bulk's notes for it */
	_Atomic unsigned int n_handed; /* bulk threads that wait for it */
	atomic_bool silent;            /* its connection was lost because nothing came */
	atomic_bool small_only;        /* and then packets of full size did not get through */
	struct fetch_mail mail;
	pthread_t thread;
	bool runs;           /* written under pull->lock */
	bool may_begin;      /* under pull->lock */
	bool only_reads;     /* under pull->lock: it fills nothing any more */
	bool ends;           /* under pull->lock: nor does it read events */
	atomic_bool done;    /* it is to end */
	atomic_bool refuses; /* it takes nothing from bulk threads any more */
	struct conn *conn;   /* changed under pull->lock */
	struct window window;
	struct fault_table table;
	struct fetch_table fetches; /* the first one's; the others have none */
	struct resolver_caller caller;
	struct resolver_caller bulk_caller; /* for what bulk threads have handed over */
	unsigned int next_handed;           /* whose turn it is */
	/* Whether the source lives: when it was heard last, and since when an answer is due (0:
	 * none). */
	uint64_t heard_ns, due_ns;
	bool has_events, has_answers; /* to be read, as poll() has told last */
	struct thread_spin spin;
	bool pinged;
	bool answered;   /* the source, on this connection */
	bool look_again; /* soon, though nothing may happen: memory could not be had, or a claim */
	bool came_late;  /* a fault, since all were served last: while something was filled */
	uint64_t filled_ns, mapped_ns; /* of the fill that is going on; 0: it has woken nobody */
};

struct pull {
	/* Set before the threads start. */
	struct pull_config config;
	struct page_state *state;
	struct scheduler *scheduler;
	struct resolver resolver;
	struct tls_context *tls;
	struct hello hello;
	char tls_description[64]; /* written once, before tls_known is set: others read it any time
	                           */
	atomic_bool tls_known;
	uint64_t missing_at_release;
	char *journals; /* of shard 1 and up: EVENTS_ROOM_BYTES each; NULL: there is one shard */
	size_t journals_bytes;

	atomic_bool stopping;
	atomic_bool completed;
	atomic_bool bulk_on;
	atomic_bool warm;             /* the guest does not run here: what comes stays invisible */
	atomic_bool dismissed;        /* all bulk threads are to end */
	atomic_bool maps;             /* what came so is mapped ahead: */
	_Atomic uint64_t maps_word;   /* next, of all words of the regions in turn */
	_Atomic unsigned int streams; /* written under the lock */
	_Atomic unsigned int urgents; /* how many urgent connections the source keeps; 0: one */
	struct throttle throttle;
	_Atomic uint64_t told_poisoned_ns, told_unpoisoned_ns; /* in the log; 0: not yet */
	_Atomic uint64_t told_failed_ns;                       /* so, of fills */
	_Atomic uint64_t failing_ns, failed_ns; /* fills, since when and when last; 0: none */
	_Atomic int fill_error;                 /* of the last of these */
	atomic_bool
	        fetching; /* the VMM waits for a fetch: the first fault thread looks after fills */

	/* Under the lock. */
	pthread_mutex_t lock;
	pthread_cond_t changed;    /* broadcast when any of these, stopping, or the work changes */
	struct conn_target target; /* where the source is */
	uint64_t peers;            /* how often another one was named */
	uint64_t work;             /* bumped where bulk may find something to do again */
	int channels_new[FETCH_CHANNELS_MAX]; /* fetch channels for the first fault thread */
	unsigned int n_channels_new;
	unsigned int divide_into;  /* so many shards, by the first fault thread; 0: nothing to do */
	struct dialing connecting; /* pull_connect()'s */
	struct dialing dialing;    /* the keeper's */
	pthread_t keeper;
	bool keeper_runs;
	bool connected;    /* pull_connect() was of use */
	bool started;      /* each stream is to have a thread */
	bool bulk_started; /* which may begin */

	struct fault_thread faults[SHARDS_MAX]; /* of which resolver.n_shards are there */
	struct bulk bulks[PULL_STREAMS_MAX];
	struct guesses guesses;
	struct arrival_map arrival;
	struct load_view load; /* of all bulk threads */
	/* With several fault threads: what of the statistics, and hints, has one writer at a time.
	 */
	pthread_mutex_t notes_lock;
	struct pull_stats stats;
};

void *fault_thread_main(void *arg);
void *bulk_main(void *arg);
void *keeper_main(void *arg);

/* How many fault threads there are, or are to be. */
static inline unsigned int pull_n_faults(const struct pull *p)
{
	return atomic_load(&p->resolver.n_shards);
}

/* Return: 0 or -errno. */
int pull_start_fault_thread(struct fault_thread *ft);

/*
 * pull_open_shards() - make ready for further userfaultfds; nothing is divided yet
 *
 * As pull_take_shards(). On success @uffds are the pull's.
 */
int pull_open_shards(struct pull *p, const int *uffds, unsigned int n, int journals_fd,
                     struct error *err);
void pull_unmap_journals(struct pull *p);

/*
 * pull_divide() - from here on there are @n shards, which were opened
 *
 * By the first fault thread, or before it is started. What processes before have left in the
 * journals of the others is taken up; that of the first one was.
 */
void pull_divide(struct pull *p, unsigned int n);

/* The same, with what the first fault thread has in hand of what is another's by then. */
void pull_divide_now(struct fault_thread *ft, unsigned int n);

/* The others begin, or will by pull_start(). */
void pull_begin_shards(struct pull *p);

/* What the first fault thread has left for @ft, as far as there is room for it. */
void pull_take_mail(struct fault_thread *ft);

/* Which one a unit is for. */
struct fault_thread *pull_fault_thread_of(struct pull *p, uint32_t region, uint64_t unit);

/* Have a thread for each stream; the lock is held. Return: 0 or -errno. */
int pull_start_bulk_locked(struct pull *p);

/*
 * Map a word of what came before the guest ran here. Return: false where there is none left.
 */
bool pull_map_ahead(struct pull *p, const struct resolver_caller *caller);

/* Where the source is, now. */
struct conn_target pull_target(struct pull *p);

/* There is to be a keeper. Any thread. Return: 0 or -errno. */
int pull_start_keeper(struct pull *p);

/* Its urgent connection was not dialled yet: the keeper will. The lock is held. */
void pull_note_unconnected_locked(struct fault_thread *ft);

/* How the connection waits, by what it is for. Return: 0 or -errno with @err set. */
int pull_settle_conn(struct conn *c, enum stream_role role, struct error *err);

/* Open one connection of the pull. Return: as conn_dial(). */
int pull_dial(struct pull *p, struct dialing *d, enum stream_role role, struct conn **ret,
              struct error *err);

/* Nothing is asked or filled any more. Events are: of all threads the fault thread is left. */
void pull_stop_filling(struct pull *p);

/* Wait on the condition for at most @timeout_ms, or until stopping. The lock is held. */
void pull_wait_locked(struct pull *p, unsigned int timeout_ms);

/* How long to wait before a try to dial: as pull_back_off_locked(), which waits, too. */
unsigned int pull_next_pause_ms(unsigned int *retry_ms);

/*
 * Before a try to dial. @retry_ms 0 (nothing was tried yet, or what came of the try before was
 * of use): not at all; the next waits longer. The lock is held.
 */
void pull_back_off_locked(struct pull *p, unsigned int *retry_ms);

/* Bulk may find something to do again. */
void pull_work_changed(struct pull *p);

/* Have a fault thread look around. */
void pull_wake_fault_thread(struct fault_thread *ft);

/* Call after each fill: says in the log what of @filled is poisoned, or can't be. */
void pull_tell_poisoned(struct pull *p, const struct scheduler_item *item, uint64_t filled);

/* A page at @unit could not be filled or mapped, and is tried again: counts it, and says so. */
void pull_note_failed(struct pull *p, uint32_t region, uint64_t unit, int rc);

/* Call after each fill: signals completion, once. */
void pull_check_complete(struct pull *p);

#endif
