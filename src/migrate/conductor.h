/* SPDX-License-Identifier: Apache-2.0 */
/* What the conductor's files share (conductor.c, warm.c); inside of the migrate subsystem. */
#ifndef MIGRATE_CONDUCTOR_H
#define MIGRATE_CONDUCTOR_H

#include "migrate/migration.h"

/* While warming, how often it is looked at whether the source has ended it. */
#define WARM_LOOK_MS 200u

struct conductor {
	struct migration *m;
	struct hello hello;
	struct hello_reply reply;
	uint64_t timeline_step_ns;
	unsigned int retry_ms;     /* until the next try to dial */
	uint64_t dial_ns, ping_ns; /* when next */
	uint64_t bulk_ns;          /* when a lacking bulk thread is tried for; 0: none lacks */
	enum migration_farewell farewell; /* there is nothing else to do */
	bool late;                        /* its VMM has its memory when it has read the vmstate */
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

void conductor_set_control(struct migration *m, struct conn *c);

/* What another try may mend. */
bool conductor_is_network_error(int rc);

/* The next frame on the control connection; what is no frame, or ERROR, is a failure. */
int conductor_next(struct conn *c, struct frame_header *ret, const void **ret_payload,
                   struct error *err);

/* Say it, and from then on wait no longer than SILENT_MS for a sign of life. */
int conductor_say(struct conductor *k, enum frame_type say, struct error *err);

/* The same, and the answer's first frame; or an answer that has no more to it. */
int conductor_ask(struct conductor *k, enum frame_type say, enum frame_type answer,
                  struct frame_header *ret, const void **ret_payload, struct error *err);
int conductor_exchange(struct conductor *k, enum frame_type say, enum frame_type answer,
                       struct error *err);

/*
 * The control connection, on which nothing was asked, is there: looked at each time, and asked for
 * a sign of life now and then. Return: 0 or -errno with @err set.
 */
int conductor_check_control(struct conductor *k, struct error *err);

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

/*
 * warm_await_vmstate() - SWITCHOVER was said: what the source has written, then VMSTATE
 *
 * Where it does not know what was written, nothing that came before counts. Return: 0 or -errno
 * with
 * @err set.
 */
int warm_await_vmstate(struct conductor *k, struct frame_header *ret, const void **ret_payload,
                       struct error *err);

#endif
