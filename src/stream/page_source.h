/* SPDX-License-Identifier: Apache-2.0 */
/* What a page server's connections do with a page_source; inside of the stream subsystem. */
#ifndef STREAM_PAGE_SOURCE_H
#define STREAM_PAGE_SOURCE_H

#include "stream/pacer.h"
#include "stream/page_server.h"
#include "util/thread.h"

/* A connection's place; it is in its source's list until it is closed. */
struct page_source_conn {
	struct conn *conn;
	bool control;
	uint8_t holder[HOLDER_BYTES]; /* who dialled */
	struct pacer_conn pace;       /* bulk: how fast it may go */
	struct load load;             /* and what its thread does, */
	int times_fd;                 /* as thread_busy_ns() tells */
	struct thread_spin spin;      /* urgent */
	/* Under the source's lock. */
	struct page_source_conn *next;
	/* Control: */
	bool superseded;  /* by a later one of the same destination: nothing it says counts */
	bool takes_ahead; /* set once: VMSTATE_AHEAD may be sent */
};

struct page_source *page_source_ref(struct page_source *s);
const char *page_source_id(const struct page_source *s);
/* Whether it was let in before, to this attachment or the one that this one follows. */
bool page_source_has_visited(struct page_source *s, const uint8_t holder[HOLDER_BYTES]);
bool page_source_has_ended(struct page_source *s);

/*
 * page_source_fit() - how well a HELLO with its id is meant for it
 * @tls: on which it came
 *
 * An id may be used again: what has ended is there beside what is offered now.
 *
 * Return: the more the better, at least 1; -EACCES: whoever says it does not know its token;
 * -ENOMEM.
 */
int page_source_fit(struct page_source *s, const struct hello *hello, const struct tls *tls);

/* A PROOF for who has said that HELLO. Return: the frame's length, 0 where memory is short. */
size_t page_source_prove(struct page_source *s, const struct hello *hello, const struct tls *tls,
                         void *buf);

/*
 * page_source_open() - may this HELLO's sender in, whom page_source_fit() has found to know the
 * token?
 *
 * Return: 0 with the reply filled in; with @err set: -EACCES, not by that name, or the token is
 * another since; -ENOMEM; -EINVAL; -ESTALE,
 * another attachment is meant; -EBUSY, somebody else holds it; -EKEYREVOKED, -ESHUTDOWN, it has
 * ended.
 */
int page_source_open(struct page_source *s, const struct hello *hello, struct conn *c,
                     struct page_source_conn *ctl, struct hello_reply *reply, struct error *err);

/* Before its connection is freed, be it let in or not. */
void page_source_close(struct page_source *s, struct page_source_conn *ctl);

/* Serve one connection that page_source_open() has let in. Return: why it ended, @err set. */
int page_source_serve(struct page_source *s, struct page_source_conn *pc, enum stream_role role,
                      struct error *err);

#endif
