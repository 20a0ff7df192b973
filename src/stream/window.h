/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GETs of one connection that are not answered yet.
 *
 * Answers keep the order of their GETs, so what comes next is known, and whatever else a
 * peer sends (never asked for, twice, too much, another region) is refused here before a
 * byte of it is looked at.
 *
 * Owned by the connection's thread.
 */
#ifndef STREAM_WINDOW_H
#define STREAM_WINDOW_H

#include "stream/scheduler.h"
#include "stream/frame.h"

/* Of up to 256 KiB each: 2 MiB; and 16 MiB where the path is long and fat. */
#define WINDOW_BULK 8u
#define WINDOW_MAX 64u

struct window {
	uint64_t next_id;
	unsigned int head;
	unsigned int n;
	struct scheduler_item items[WINDOW_MAX]; /* ring, oldest at head */
};

static inline bool window_full(const struct window *w)
{
	return w->n == WINDOW_MAX;
}

/*
 * window_wanted() - how many GETs of bulk are to be in flight
 * @bytes, @ns: what came of late, and in what time
 * @rtt_us: the path's shortest round trip; what queues on its way is no reason to ask for more
 *
 * As much again as is on its way at that rate: what is not asked for can't come any faster.
 */
unsigned int window_wanted(uint64_t bytes, uint64_t ns, uint64_t rtt_us);

/* Note a GET and encode it into @buf. Return: its length. The window must not be full. */
size_t window_ask(struct window *w, const struct scheduler_item *item, void *buf);

/*
 * window_answer() - check a PAGES frame against the oldest GET, which it then takes out
 *
 * Return: 0; -EPROTO with @err set.
 */
int window_answer(struct window *w, const struct frame_header *h, const void *payload,
                  struct frame_pages *ret_pages, struct scheduler_item *ret_item,
                  struct error *err);

/* The newest GET, or NULL; valid until the window changes. */
static inline struct scheduler_item *window_newest(struct window *w)
{
	return w->n ? &w->items[(w->head + w->n - 1) % WINDOW_MAX] : NULL;
}

/* Take out the oldest GET, unanswered. Return: false where there is none. */
bool window_drop(struct window *w, struct scheduler_item *ret_item);

#endif
