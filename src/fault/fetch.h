/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that the VMM asks for itself (libpostcopy/fetch_wire.h).
 *
 * A fetch becomes a fault on each page of its range that is missing, and is answered when
 * all of them are present. A discard makes zero what is missing, and is answered when what others
 * were filling meanwhile is in place: then nothing of the range is ever filled again, and what the
 * VMM punches out of its memory stays out. A hot range is told to the scheduler, and that is all.
 * Owned by the first fault thread.
 */
#ifndef FAULT_FETCH_H
#define FAULT_FETCH_H

#include "fault/fault_table.h"
#include "mem/page_state.h"
#include "stream/scheduler.h"

#define FETCH_CHANNELS_MAX 64u
#define FETCHES_MAX 256u

struct fetch {
	unsigned int channel;
	uint32_t region;
	uint64_t tag;
	bool discard;
	uint64_t present_to; /* units: all before are present */
	bool poisoned;       /* some of them have no content */
	uint64_t faulted_to; /* units: all before are present or in the fault table */
	uint64_t end;        /* units */
};

struct fetch_table {
	unsigned int n_channels;
	int channels[FETCH_CHANNELS_MAX]; /* -1: closed */
	unsigned int n;
	struct fetch fetches[FETCHES_MAX];
	struct scheduler *scheduler; /* who is told of hot ranges; NULL: nobody */
	/*
	 * With several fault threads: have another one ask for a page, where that is its business.
	 * Return: 1: it will; 0: it is ours; -1: not now. NULL: all is ours.
	 */
	int (*elsewhere)(void *arg, uint32_t region, uint64_t first_unit);
	void *arg;
};

static inline bool fetch_table_has_room(const struct fetch_table *t)
{
	return t->n < FETCHES_MAX;
}

/* Serve one more channel; @fd is taken over. Return: 0 or -EMFILE (and @fd closed). */
int fetch_table_add_channel(struct fetch_table *t, int fd);

/*
 * fetch_table_read() - take the requests that wait on a channel
 *
 * What makes no sense is answered by EINVAL; who sends no requests at all is cut off. Of many some
 * are left for the next call.
 */
void fetch_table_read(struct fetch_table *t, unsigned int channel,
                      const struct region_table *regions);

/*
 * fetch_table_serve() - answer what is present, and fault or discard what is missing
 * @now_ns: when, for the new faults
 *
 * Return: how many units were discarded.
 */
uint64_t fetch_table_serve(struct fetch_table *t, const struct region_table *regions,
                           struct page_state *state, struct fault_table *faults, uint64_t now_ns);

/* The fault table has lost entries: those that are lacking are made again. */
void fetch_table_fault_anew(struct fetch_table *t);

/*
 * fetch_table_lose() - a unit has no content at the source, and its place here can't be poisoned
 *
 * Whoever waits for it is told so. It stays missing: who asks again has the source asked again.
 */
void fetch_table_lose(struct fetch_table *t, uint32_t region, uint64_t unit);

/* Everything is present: tell one channel, which is in no table, and close it. */
void fetch_channel_finish(int fd);

/* Another process has served it: have the VMM ask again what is not answered. */
void fetch_channel_ask_again(int fd);

/* As fetch_channel_finish() for all channels. */
void fetch_table_finish(struct fetch_table *t);

/* Close all channels without a word: what they asked for may be missing. */
void fetch_table_close(struct fetch_table *t);

#endif
