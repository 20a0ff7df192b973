/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One guest moved by its two daemons, from whatever there is to its end.
 *
 * Theory of operation
 * -------------------
 * Nothing is kept here: what is to be done next follows from what the two daemons say. Where the
 * destination knows nothing of the guest both halves are prepared with a token that is made here
 * and goes to them alone; a guest that is attached as source keeps its attachment and gets that
 * token. Then both VMMs are waited for, the destination is started, and followed. So a move that
 * was interrupted goes on when it is begun again, and one that is interrupted leaves the guest here
 * or there, by the daemons' own rules.
 *
 * Threads: a move is one thread's; several may be under way.
 */
#ifndef CTL_MOVE_H
#define CTL_MOVE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "ctl/client.h"
#include "util/error.h"

struct move_side {
	const char *role;    /* "source" or "destination" */
	const char *control; /* its daemon's control service */
	struct client *client;
};

struct move {
	const char *id;
	struct move_side source, destination;
	/* Where the destination finds the source's page streams; NULL: what the source's daemon
	 * says, and the host of its control service where it listens on all addresses. */
	const char *source_address;
	uint64_t attach_timeout_s;
	struct client_limits limits;
	const struct client_queue *queue; /* NULL: where there is no place it fails */
	unsigned int interval_ms;         /* of on_update */
	int cancel_fd;                    /* readable: no more waiting; also the clients' */

	/* Each may be NULL. */
	int (*on_prepared)(const struct move *m, struct error *err); /* the VMMs may attach */
	/* A VMM has not attached: at first, and every 2 s. What fails ends the move where it has
	 * not attached meanwhile. */
	int (*on_absent)(const struct move *m, const struct move_side *absent, bool first,
	                 struct error *err);
	int (*on_update)(struct json_object *migration, void *userdata, struct error *err);
	void *userdata;

	const struct move_side *asked; /* whose answer a failure is; NULL: nobody's */
	bool lost_sight; /* a failure tells nothing of the guest: it goes on, or has gone */
	/* The source's half was prepared, given its token or told to attach here: nobody else's
	 * migration ends by its cancel. */
	bool is_own;
	bool prepared_source, prepared_destination; /* by this move: its to cancel */
};

void move_init(struct move *m, const char *id);

/*
 * move_guest() - to the end
 * @ret: the destination's half in its last state; NULL where it did not come so far
 *
 * Where a VMM does not attach in time, or on_prepared() or on_absent() fails, what this move has
 * prepared for it is cancelled.
 *
 * Return: 0: complete; -ECANCELED: interrupted; a daemon's refusal as client.h has them, said by
 * m->asked; -ETIMEDOUT, -EIO, with @err set.
 */
int move_guest(struct move *m, struct json_object **ret, struct error *err);

/* Whether the destination's half is beyond its start, and has not ended. Return: as move_guest().
 */
int move_is_under_way(struct move *m, bool *ret, struct error *err);

/* The rest of move_guest(), of one that was started. */
int move_follow(struct move *m, struct json_object **ret, struct error *err);

/*
 * move_has_completed() - whether the newest half at a side is that side's, and complete
 * @ret: it; may be NULL
 */
bool move_has_completed(const struct move *m, const struct move_side *s, struct json_object **ret);

#endif
