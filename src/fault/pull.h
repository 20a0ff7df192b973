/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pull: how a destination gets its memory.
 *
 * Theory of operation
 * -------------------
 * One pull serves one migration. It owns the destination's memory (userfaultfd,
 * memories, page state) and these threads:
 *
 *   fault threads  1..8, one for each userfaultfd: reads it, asks over its own urgent connection,
 *                  fills and maps what comes back. One thread does all of it, so that a fault
 *                  costs two wake-ups: its event and its answer. For bulk it does nothing but to
 *                  fill what it alone may (fault/resolver.h).
 *   bulk threads   1..16, each with its connection: ask for what the scheduler says, as far as
 *                  the cap on bandwidth lets them, with a window of requests in flight, fill,
 *                  map ahead. They come and go while the pull runs.
 *   keeper         opens urgent connections again when they are lost, so that no fault
 *                  thread ever blocks on a dial: it goes on resolving what is here.
 *
 * They meet in the page state (atomics) and the scheduler only. A lost connection is
 * dialled again by itself with growing pauses, and what it had asked for is asked again.
 *
 * pull_new() -> pull_connect() (warming) -> [pull_take_memory(), where the VMM has its memory only
 * when it has read its vmstate] -> pull_start() (the source is paused, faults are
 * served) -> pull_start_bulk() -> complete is signalled -> pull_finish() -> pull_free().
 *
 * Its VMM may have moved parts of its memory to further userfaultfds (util/shards.h): by
 * pull_take_shards(), at any time, or in the config of a process that takes over. What of them was
 * found out by the first one until then is given up, and found out anew by each its own
 * (fault/shards.c).
 *
 * Warm, between pull_connect() and pull_start(): pull_warm() has bulk fetch while the guest runs at
 * the source, and nothing of it is visible here (fault/prefill.h). When it is over, or has been
 * long enough, pull_warm_hold() waits until nobody fills and no answer is under way; then what the
 * source has written since is renewed, and pull_warm_go() begins the next round, or pull_warm_end()
 * ends it. pull_start_bulk() goes on with what is missing then, and maps ahead what is there.
 *
 * Threads: one owner, but for pull_set_*(), pull_stats(), pull_arrival() and pull_missing(), which
 * may be called from any. Lock order: pull->lock alone.
 */
#ifndef FAULT_PULL_H
#define FAULT_PULL_H

#include "fault/arrival.h"
#include "fault/resolver.h"
#include "stream/conn.h"
#include "stream/load.h"
#include "util/shards.h"

#define PULL_STREAMS_MAX 16u

struct pull;

struct pull_config {
	const char *id; /* of the migration, for the log */
	struct region_table table;
	struct addrmap pieces; /* where it is mapped; empty: each region at its host_addr */
	struct memory *memories[REGIONS_MAX];
	int uffd;              /* -1: its VMM asks for its pages (POSTCOPY_REGION_ASKED) */
	int state_fd;          /* a page state to go on from (borrowed); -1: all is missing */
	unsigned int n_shards; /* 0 or 1: one userfaultfd */
	int shard_uffds[SHARDS_MAX - 1]; /* of shards 1..n_shards-1; the pull's on success */
	/*
	 * With n_shards > 1: memfd of pull_journals_bytes(), borrowed, a copy is kept. Zeroed at
	 * first, or of the process before.
	 */
	int journals_fd;
	enum resolver_map map;
	unsigned int streams;           /* 1..PULL_STREAMS_MAX */
	uint64_t bandwidth_bytes_per_s; /* of bulk at most; 0: no cap */
	bool bulk;                      /* whether bulk runs from the start */
	bool prefetch;                  /* whether faults steer it */
	/* Called from the pull's threads; must only pass the news on. */
	void (*complete)(void *arg);   /* every page is present */
	void (*connection)(void *arg); /* lost, or back: ask pull_get_connection() */
	void (*round)(void *arg); /* warm: all was asked for; perhaps: ask pull_warm_is_over() */
	void *arg;
};

/*
 * pull_new() - take over a destination's memory
 * @config: copied; on success uffd and memories are the pull's. An empty table: its memory is to
 *          come, by pull_take_memory()
 *
 * Return: 0, -ENOMEM or the errno of what failed, with @err set.
 */
int pull_new(const struct pull_config *config, struct pull **ret, struct error *err);

/*
 * pull_take_memory() - the memory of a pull that was made without, before pull_start()
 * @config: its table, memories, uffd and state_fd, which are the pull's on success. Also prefetch.
 *
 * Others may be in pull_connect() meanwhile. Return: as pull_new(); after a failure pull_free() is
 * all that may follow.
 */
int pull_take_memory(struct pull *p, const struct pull_config *config, struct error *err);

/*
 * pull_take_shards() - its VMM has moved parts of its memory to further userfaultfds
 * @uffds: of shards 1..@n-1 (util/shards.h)
 * @n: how many shards there are by now, 2..SHARDS_MAX
 * @journals_fd: as pull_config's
 *
 * Once; the memory is there (pull_new() with a table, or pull_take_memory()); before pull_start()
 * or after, while nothing is finished. On success @uffds are the pull's. By the owner only.
 *
 * Return: 0; -EOPNOTSUPP, -EINVAL or the errno of what failed, with @err set: then all is as
 * before.
 */
int pull_take_shards(struct pull *p, const int *uffds, unsigned int n, int journals_fd,
                     struct error *err);

/* Of the memfd that the journals of @n shards take (fault/events.h), bytes; 0 for one shard. */
size_t pull_journals_bytes(unsigned int n);

/*
 * pull_release() - stop all threads and close everything but the statistics
 *
 * The userfaultfd's last copy is then the VMM's. No other call but pull_stats(), pull_arrival(),
 * pull_missing(), pull_tls() and pull_free() may follow.
 */
void pull_release(struct pull *p);
struct pull *pull_free(struct pull *p);

/*
 * pull_connect() - open the urgent and the bulk connections
 * @hello: as the control connection used it; its token must outlive the pull
 * @epoch: from its reply
 * @tls: must outlive the pull
 *
 * Each is probed: a path that takes no packets of full size is found while the guest runs at its
 * source still. Blocking. May be called again where it failed. Return: as conn_dial().
 */
int pull_connect(struct pull *p, const struct conn_target *target, struct tls_context *tls,
                 const struct hello *hello, uint64_t epoch, struct error *err);

/*
 * pull_connect_later() - the same for a pull that was running already, in another process
 *
 * Each thread opens its connection by itself and for as long as that takes, as it does with one
 * that is lost: faults that need no source are served at once.
 */
void pull_connect_later(struct pull *p, const struct conn_target *target, struct tls_context *tls,
                        const struct hello *hello, uint64_t epoch);

/* The source is at another address: all connections are given up and dialled there. Any thread. */
void pull_redirect(struct pull *p, const struct conn_target *target);

/* Have conn_dial() and all waiting in pull_connect() return soon. From any thread. */
void pull_cancel(struct pull *p);

/*
 * pull_start() - the source guest is paused: serve faults, and have all threads that will be needed
 *
 * Whoever waits already is woken and faults anew, for a process before this one may have taken its
 * event with it. Where it fails, what it has started serves, and it may be called again: it goes
 * on with what is lacking.
 *
 * Return: 0; -errno where there is no thread for faults, for lost connections, or for any bulk.
 */
int pull_start(struct pull *p);

/*
 * pull_start_bulk() - the guest runs (or will soon): fetch the rest
 *
 * Return: 0; -errno where a stream has no thread: the others begin, and it may be called again.
 */
int pull_start_bulk(struct pull *p);

/*
 * pull_warm() - fetch before the guest runs here, held until pull_warm_go()
 *
 * Nothing counts as there. After pull_connect(); may be repeated, while held. Return: 0; -errno
 * where there is no thread for any bulk; -EOPNOTSUPP with @err set where the memory can't be filled
 * so.
 */
int pull_warm(struct pull *p, struct error *err);

/*
 * pull_warm_hold() - no answer is under way any more, and nobody fills
 *
 * Connections that owe one for long are cut. Blocks for some seconds at the most, and by
 * pull_cancel() not at all.
 */
void pull_warm_hold(struct pull *p);

/*
 * Held: units that are not what the source has any more. Nothing is done where it
 * pull_is_visible(). Return: how many of them were present.
 */
uint64_t pull_warm_renew(struct pull *p, uint32_t region, uint64_t first, uint64_t n);
/* Held: nothing counts; as pull_warm_renew(). */
void pull_warm_forget(struct pull *p);

/*
 * Whether what comes may have been seen here: since pull_start(), by this process or one before.
 * That one may have ended before it wrote down that the guest may run here.
 */
bool pull_is_visible(const struct pull *p);

/* The next round; or the same, from where it was held. */
void pull_warm_go(struct pull *p);
void pull_warm_go_on(struct pull *p);

/* All that was missing when it began was asked for and answered. */
bool pull_warm_is_over(struct pull *p);

/* Held, and so it stays until pull_start_bulk(): from here on fills are as ever. */
void pull_warm_end(struct pull *p);

/* The same for want of what it takes: bulk's threads and connections end, as before pull_warm(). */
void pull_warm_stop(struct pull *p);

/* Whether the guest's faults can be asked for. */
struct pull_connection {
	bool lost; /* that of some fault thread; the rest of this is of the one that lacks it
	              longest */
	bool away; /* those of all are, and all have been dialled in vain: nothing comes any more */
	unsigned int dials_failed;
	uint64_t since_ns;        /* one over which the source had answered was lost */
	uint64_t next_ns;         /* when it is dialled again; 0: it is being dialled */
	char why[ERROR_TEXT_MAX]; /* what the last dial met, or how it was lost */
};

/* From any thread: as it is at this moment. */
void pull_get_connection(struct pull *p, struct pull_connection *ret);

/* Pages that have come, and for which there is no memory. */
struct pull_trouble {
	uint64_t since_ns; /* 0: all goes well */
	int error;         /* the last -errno */
};

/* From any thread: as it is of late. What has failed is tried again, for as long as it takes. */
void pull_get_trouble(const struct pull *p, struct pull_trouble *ret);

/* What keeps bulk from being faster, of late. From any thread. */
enum load_limit pull_get_limit(const struct pull *p);

/* All threads end; nothing is asked or filled any more. */
void pull_stop(struct pull *p);

/*
 * pull_add_channel() - a fetch channel of the VMM (libpostcopy/fetch_wire.h)
 * @fd: a non-blocking SEQPACKET socket; taken over in any case
 *
 * From pull_new() to pull_release(); served from pull_start() on. Return: 0 or -EMFILE.
 */
int pull_add_channel(struct pull *p, int fd);

/*
 * pull_finish() - after complete: stop watching the guest's memory
 *
 * Waits for threads of the VMM that are changing their mappings, as long as that takes the kernel.
 * Return: 0 or -errno with @err set; every page was present before and still is.
 */
int pull_finish(struct pull *p, struct error *err);

/* A stretch of guest memory; bytes. */
struct pull_range {
	uint32_t region;
	uint64_t offset;
	uint64_t len;
};

/* A place in it; at the end the region is the table's n. */
struct pull_place {
	uint32_t region;
	uint64_t offset; /* bytes */
};

/*
 * pull_missing_ranges() - what is not here, from a place on
 * @at: moves on, to the end or to where it has found or looked at enough for one call
 *
 * By the owner only. Sparse memory of any size takes bounded time: a range may go on in the next
 * call, and nothing found is not the end.
 *
 * Return: how many ranges, at most @max, are in @ret.
 */
size_t pull_missing_ranges(const struct pull *p, struct pull_place *at, struct pull_range *ret,
                           size_t max);

/*
 * pull_poison() - all that is missing is lost: who touches it gets SIGBUS
 * @ret_units: how much that was
 *
 * Its threads end. pull_finish() follows, as after complete. Return: 0; -EOPNOTSUPP where the
 * kernel can't do it for this memory (then all goes on as before); -ESRCH; with @err set.
 */
int pull_poison(struct pull *p, uint64_t *ret_units, struct error *err);

/* Switch bulk, or its steering by faults, on or off while it runs. */
void pull_set_bulk(struct pull *p, bool on);
bool pull_bulk_is_on(const struct pull *p);
void pull_set_prefetch(struct pull *p, bool on);

/* Cap the pages that bulk asks for, 0: not at all. Faults are never held back. */
void pull_set_bandwidth(struct pull *p, uint64_t bytes_per_s);

/* The same by the host, for all its migrations; the lower one counts. 0: none. */
void pull_set_share(struct pull *p, uint64_t bytes_per_s);

/* Whether either of them has kept bulk waiting since this was asked last. */
bool pull_was_held(struct pull *p);

/*
 * pull_set_streams() - have more or fewer bulk connections, 1..PULL_STREAMS_MAX
 *
 * A new one is dialled by its own thread; one too many takes the answers that it waits for, and
 * closes. Return: 0 or -errno, where fewer run than asked for.
 */
int pull_set_streams(struct pull *p, unsigned int streams);

/* A fault that takes so long or longer counts as slow from now on. */
void pull_set_slow_fault(struct pull *p, uint64_t ns);

const struct pull_stats *pull_stats(const struct pull *p);

/* When which part of the memory arrived, since pull_start(). */
const struct arrival_map *pull_arrival(const struct pull *p);

/* The memfd with the page state, for a process that is to go on from it; borrowed. */
int pull_state_fd(const struct pull *p);

/* Units that are not present yet. */
uint64_t pull_missing(const struct pull *p);

/* What TLS the urgent connection speaks; empty before pull_connect(), then it stays. Any thread. */
const char *pull_tls(const struct pull *p);

#endif
