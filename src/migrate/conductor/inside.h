/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the conductor's files share.
 *
 *   conductor.c   the story: warm, switch over, fetch all, say goodbye
 *   connect.c     reaching the source, with patience, over all connections
 *   control.c     what is said and asked over the control connection
 *   warm.c        rounds, while the guest runs at the source
 */
#ifndef MIGRATE_CONDUCTOR_INSIDE_H
#define MIGRATE_CONDUCTOR_INSIDE_H

#include "migrate/conductor/conductor.h"

/* While warming, how often it is looked at whether the source has ended it. */
#define WARM_LOOK_MS 200u

struct conductor {
	struct migration *m;
	struct hello hello;
	struct hello_reply reply;
	uint64_t timeline_step_ns;
	unsigned int retry_ms;     /* until the next try to dial; 0: the first */
	uint64_t dial_ns, ping_ns; /* when next */
	uint64_t bulk_ns;          /* when a lacking bulk thread is tried for; 0: none lacks */
	enum migration_farewell farewell; /* there is nothing else to do */
	bool late;                        /* its VMM has its memory when it has read the vmstate */
	bool shards_told;                 /* that further userfaultfds can't be taken yet */
	bool handed_on;       /* the vmstate, to the loop: the guest may run here at any moment */
	struct error refused; /* the source's last word, that it wants no more of this */
};

/*
 * Wait for one of @orders, at most until @until_ns (0: for good).
 * Return: those of them that were given; 0 when the time is over.
 */
unsigned int conductor_wait(struct migration *m, unsigned int orders, uint64_t until_ns);
void conductor_take_back(struct migration *m, enum conductor_order order);

/* Return: -ECANCELED with @err set where the daemon or the migration is to end. */
int conductor_check_stopped(struct migration *m, struct error *err);

/* What the last try met, for whoever looks; empty: nothing is being tried. */
void conductor_note(struct migration *m, const char *why);

/* The same of a warm phase that the source, or want of memory here, has refused for now. */
void conductor_note_refused(struct migration *m, const char *why);

/* For how long something is tried, and since when. */
struct patience {
	uint64_t since_ns;
	unsigned int refused_for_ms; /* where its host says that nobody listens */
};

/* @refused_as_well: a source's daemon that is not there may be on its way back. */
struct patience patience_from_now(bool refused_as_well);
/* Whether what a try ended with is worth another one. */
bool patience_has(const struct patience *p, int rc);
/* When to make it: sources that come back should not be met by all at once. */
uint64_t conductor_next_try_ns(struct conductor *k);

/* What another try may mend; what the source itself has said, and would say again. */
bool conductor_is_network_error(int rc);
bool conductor_is_verdict(const struct error *err);

/* Where the source is dialled now. */
struct conn_target conductor_target(struct migration *m);

/*
 * The control connection: one try; with patience, or until the migration is to end; and with all
 * others, and the source's regions compared. Return: 0; or why not, with @err set.
 */
int conductor_dial_once(struct conductor *k, struct error *err);
int conductor_dial(struct conductor *k, const struct patience *p, struct error *err);
int conductor_connect(struct conductor *k, struct error *err);

/* The new one, or NULL; the old one is freed. */
void conductor_set_control(struct migration *m, struct conn *c);

/* It could be switched over from now on: where that is to be told, it is waited for. */
void conductor_note_ready(struct migration *m);

/* The next frame on the control connection; what is no frame, or ERROR, is a failure. */
int conductor_next(struct conn *c, struct frame_header *ret, const void **ret_payload,
                   struct error *err);
/* The same, which must be of this type, but for signs of life before it. */
int conductor_expect(struct conn *c, enum frame_type type, struct frame_header *ret,
                     const void **ret_payload, struct error *err);

/* Say it, and from then on wait no longer than SILENT_MS for a sign of life. */
int conductor_say(struct conductor *k, enum frame_type say, struct error *err);

/* The same, and the answer's first frame; or an answer that has no more to it. */
int conductor_ask(struct conductor *k, enum frame_type say, enum frame_type answer,
                  struct frame_header *ret, const void **ret_payload, struct error *err);
int conductor_exchange(struct conductor *k, enum frame_type say, enum frame_type answer,
                       struct error *err);

/*
 * The control connection while nothing is said on it. keep: one that is lost is dialled again, and
 * one that may be is asked for a sign of life; what the source refuses is in @refused. Return:
 * whether it is a new one. check: the same without dialling: 0, or -errno with @err set. ended:
 * whether it has come to its end.
 */
bool conductor_keep_control(struct conductor *k);
int conductor_check_control(struct conductor *k, struct error *err);
bool conductor_control_ended(const struct conductor *k);

/* How warm_up() ends, besides 0 (it is not for this migration: as ever) and -errno. */
enum {
	WARM_DONE = 1, /* switch over now, over this connection */
	WARM_LOST = 2, /* the connection is lost, and with it the log: connect, and begin again */
};

/*
 * warm_up() - copy memory while the guest runs at the source, until it is to be switched over
 *
 * After all connections are there. Return: as above, with @err set but for 0 and WARM_DONE.
 */
int warm_up(struct conductor *k, struct error *err);

/* A VMSTATE_AHEAD: its bytes are passed on. Return: 0 or -errno with @err set. */
int conductor_take_ahead(struct conductor *k, const struct frame_header *h, const void *payload,
                         struct error *err);

/*
 * warm_await_vmstate() - SWITCHOVER was said: what is ahead, what the source has written, VMSTATE
 *
 * Where it does not know what was written, nothing that came before counts. Return: 0 or -errno
 * with
 * @err set.
 */
int warm_await_vmstate(struct conductor *k, struct frame_header *ret, const void **ret_payload,
                       struct error *err);

#endif
