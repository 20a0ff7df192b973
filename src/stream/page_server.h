/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's page server.
 *
 * It listens on TCP and serves any number of migrations at once. Strangers are received by one
 * thread (stream/reception.h). Each connection that has proven the token of a migration has a
 * thread of its own, so that one migration's bulk never stands in front of another's
 * fault, and a place among those of its migration and role: nobody's bulk takes a place from
 * anybody's urgent connection. What it may serve is a set of page_sources, one for each attached
 * source guest, found by migration id and proven by token.
 *
 * A page_source is shared: the migration that owns it and each of its connections hold a
 * reference. It only ever reads guest memory, and only after the guest is paused, or while what it
 * writes is logged (stream/source_log.h).
 *
 * Who has the token may look, but a migration has one holder: the destination that is first to
 * ask for SWITCHOVER. From then on everybody else is refused by name, and only the holder's word
 * counts, and of it only what its last control connection says: that the guest runs there, that
 * all is there, that it will never run there. A daemon that
 * has lost its record of the migration is a stranger. An ABORT of somebody who holds nothing ends
 * what nobody holds; under the lock exactly one of the two comes first.
 *
 * What has ended stays, without its memory, for as long as the migration is remembered
 * (page_source_new_ended()): a holder that has not heard the answer to COMPLETE or ABORT asks
 * again, and hears the same; also where its id is used again by then, for by token and epoch it
 * says which one it means (page_source_fit()).
 *
 * Threads: page_source_new(), _set_vmstate() and so on are called by the owner's thread;
 * the ops are called from connection threads and must only pass the news on.
 * Lock order: server->lock, then source->lock.
 */
#ifndef STREAM_PAGE_SERVER_H
#define STREAM_PAGE_SERVER_H

#include <stdatomic.h>

#include "mem/memory.h"
#include "stream/conn.h"
#include "stream/load.h"
#include "stream/pacer.h"
#include "stream/poison_list.h"
#include "stream/source_log.h"
#include "util/shards.h"
#include "util/tcp_listen.h"

#define STREAM_HOLDER_NAME_MAX 128
#define STREAM_HOLDER_TEXT_MAX (STREAM_HOLDER_NAME_MAX + 16)

/* Urgent connections of one migration that are kept: one for each fault thread; twice, for such as
 * are lost and nobody has noticed. */
#define PAGE_SOURCE_URGENTS (2 * SHARDS_MAX)

struct page_source;
struct page_server;

/* What connections tell the owner of a page_source. @arg is the owner's. */
struct page_source_ops {
	/* A control connection has opened or ended: ask page_source_is_connected(). */
	void (*connected)(void *arg);
	/*
	 * It has a holder, page_source_get_holder(): write that down, and pause the guest; then
	 * page_source_set_vmstate(); or, where it can't be, page_source_end(). Once.
	 */
	void (*switchover)(void *arg);
	/* The guest runs at the destination. */
	void (*resumed)(void *arg);
	/* The holder has every page: page_source_end(). All is kept until then. */
	void (*complete)(void *arg);
	/*
	 * The guest has not run elsewhere and never will: page_source_get_abort_why(), and
	 * page_source_end().
	 */
	void (*aborted)(void *arg);
	/*
	 * What is wanted of the VMM's dirty log has changed: page_source_get_log_order(). NULL
	 * where no log is the VMM's.
	 */
	void (*log)(void *arg);
};

/* What it did so far; counted by all connections. */
struct page_source_stats {
	_Atomic uint64_t requests;
	_Atomic uint64_t pages;
	_Atomic uint64_t zero_pages;
	_Atomic uint64_t unreadable_pages; /* that can't be read: the destination poisons them */
	_Atomic uint64_t bytes;
	_Atomic uint64_t bulk_bytes, fault_bytes; /* of these, by who asked */
	struct pacer_view pace;                   /* of all bulk to its destination's host */
	struct load_view load;                    /* of the threads that serve bulk */
};

/*
 * page_source_new() - a source guest that can be served
 * @id, @token: of the migration; copied
 * @table: copied
 * @memories: one for each region; taken over on success
 */
int page_source_new(const char *id, const uint8_t token[TOKEN_BYTES],
                    const struct region_table *table, struct memory **memories,
                    const struct page_source_ops *ops, void *arg, struct page_source **ret,
                    struct error *err);
struct page_source *page_source_unref(struct page_source *s);

/*
 * page_source_set_peer() - the name that its destination's certificate must have
 * @pattern: as tls_name_check() passes it; copied. Empty: any that tls_context allows
 *
 * Before page_server_add().
 */
void page_source_set_peer(struct page_source *s, const char *pattern);

/* A destination that holds a migration. */
struct stream_holder {
	bool bound; /* else nobody does */
	uint8_t id[HOLDER_BYTES];
	char name[STREAM_HOLDER_NAME_MAX]; /* of its certificate, for people */
};

#define STREAM_HOLDER_HEX_MAX (2 * HOLDER_BYTES + 1)

/* All of it, as hex digits; empty where nobody holds it. */
void stream_holder_hex(const struct stream_holder *h, char buf[STREAM_HOLDER_HEX_MAX]);

/* "1f3a5c7e (postcopy:host2)". */
void stream_holder_print(const struct stream_holder *h, char buf[STREAM_HOLDER_TEXT_MAX]);

/* What has become of the guest, seen from the source. */
enum source_verdict {
	SOURCE_LET_GO,  /* it is the holder's: COMPLETE is acknowledged */
	SOURCE_RUNS_ON, /* it is the source's, and may run nowhere else: ABORT is acknowledged */
};

/* What is kept of a source: the same answers, without memory. @holder may be unbound. */
int page_source_new_ended(const char *id, const uint8_t token[TOKEN_BYTES], uint64_t epoch,
                          const struct stream_holder *holder, enum source_verdict verdict,
                          const char *why, struct page_source **ret, struct error *err);

void page_source_get_holder(struct page_source *s, struct stream_holder *ret);

/* Why the destination has given up, as it has said with ABORT; empty: it did not say. */
void page_source_get_abort_why(struct page_source *s, char ret[ERROR_TEXT_MAX]);

/*
 * page_source_get_visitor(), _set_visitor() - who was let in last, of its guest's attachments
 *
 * It may come again, however many leave: an attachment that follows another is told who that was,
 * before page_server_add().
 */
void page_source_get_visitor(struct page_source *s, struct stream_holder *ret);
void page_source_set_visitor(struct page_source *s, const struct stream_holder *visitor);

/* What the one that was let in last runs, as it has said; empty: nobody was, or it is older. */
void page_source_get_visitor_version(struct page_source *s, char ret[DAEMON_VERSION_BYTES]);

/*
 * page_source_set_poisoned() - what the source VMM has poisoned: it is served as unreadable
 * @list: taken over
 *
 * Once, and before page_source_set_vmstate(); of a guest whose writes are logged pages may be on
 * their way by then.
 */
void page_source_set_poisoned(struct page_source *s, struct poison_list *list);

/*
 * page_source_set_ahead() - so much of the vmstate is there before the guest is known to be paused
 * @fd: a memfd, of which @len bytes can be read, and may be sent; taken over
 */
void page_source_set_ahead(struct page_source *s, int fd, uint64_t len);

/*
 * page_source_set_vmstate() - the guest is paused: its memory may be read from now on
 * @fd: a memfd that can't change any more; taken over
 */
void page_source_set_vmstate(struct page_source *s, int fd, uint64_t len, uint64_t pause_ns);

/*
 * The owner has decided and made sure that this outlives the process: only now is anybody told
 * so. page_source_withdraw() follows.
 */
void page_source_end(struct page_source *s, enum source_verdict verdict, const char *why);

/*
 * page_source_set_token() - another token, by which destinations prove themselves from now on
 *
 * Whatever is open by the one before ends.
 *
 * Return: 0; -EBUSY: one is connected, or holds it
 */
int page_source_set_token(struct page_source *s, const uint8_t token[TOKEN_BYTES]);

/*
 * page_source_restore() - go on as another process has served this guest
 * @epoch: what page_source_epoch() was there
 * @holder: who held it there
 * @resumed: the holder has said that the guest runs there
 *
 * Before page_server_add().
 */
void page_source_restore(struct page_source *s, uint64_t epoch, const struct stream_holder *holder,
                         bool resumed);
uint64_t page_source_epoch(const struct page_source *s);

/*
 * page_source_set_log() - how it can be told what the guest writes, while it runs
 * @log: taken over on success; NULL: it can't, for the reason @none
 *
 * Return: 0; -EBUSY where that is known already; -ENOMEM.
 */
int page_source_set_log(struct page_source *s, struct dirty_log *log, const char *none);

/* What the VMM is to do, and its answer (stream/source_log.h). */
void page_source_get_log_order(struct page_source *s, struct source_log_order *ret);
void page_source_answer_log(struct page_source *s, uint64_t number, int code, const char *text);

/* Whether the log's last harvest counts: from switchover on, from when on it is to be restored. */
bool page_source_is_warm(struct page_source *s);
void page_source_restore_log(struct page_source *s, bool warm);

/* Who kept it is gone, and nobody knows what was written: it is off, and its last harvest is void.
 */
void page_source_lose_log(struct page_source *s);

/* Nothing is write-protected any more, soon: it is done on another thread. */
void page_source_stop_log(struct page_source *s);

/* Reading is over, and no op is called any more: the owner may go. */
void page_source_withdraw(struct page_source *s);

const struct page_source_stats *page_source_stats(const struct page_source *s);

/*
 * page_source_set_share() - what its bulk has of the host's bandwidth, bytes/s; 0: no limit
 *
 * Urgent answers are never held back; and a bulk connection is answered every few seconds, however
 * little that is, or it would be taken for dead.
 */
void page_source_set_share(struct page_source *s, uint64_t bytes_per_s);

/* Whether that has kept bulk waiting since this was asked last. */
bool page_source_was_held(struct page_source *s);

/* When the holder was last heard; CLOCK_MONOTONIC, 0: not by this process. It pings every few s. */
uint64_t page_source_holder_heard_ns(const struct page_source *s);

/* Whether a destination has a control connection open. */
bool page_source_is_connected(const struct page_source *s);

/* Whether a destination fetches it, or will: it is connected, or holds it. */
bool page_source_is_taken(struct page_source *s);

/* Whether the caller's reference is the last: no connection holds its memory any more. */
bool page_source_is_idle(const struct page_source *s);

/*
 * Listen on all that @address ("host:port"; port 0: any free one) stands for.
 * Return: 0, or -errno with @err set.
 */
int page_server_listen(const char *address, struct tcp_listening *ret, struct error *err);

/*
 * page_server_new() - serve sockets that listen, from page_server_start() on
 * @listening: one at least; taken over in any case
 * @tls: must outlive the server
 */
int page_server_new(struct tcp_listening *listening, struct tls_context *tls,
                    struct page_server **ret, struct error *err);

/*
 * At any time: how many guests leave at a time; 0: no limit. One more destination is refused, but
 * for those that were let in before. The accepter lets them in one after the other: no two of them
 * take one place.
 */
void page_server_set_most(struct page_server *server, unsigned int most);

/*
 * page_server_start() - let destinations in
 *
 * Not before all sources that this process has taken over can be found: a destination that asks
 * for one that is unknown gives up. Return: 0 or -errno with @err set.
 */
int page_server_start(struct page_server *server, struct error *err);

/*
 * page_server_set_incomplete() - sources are missing that will be here
 *
 * Whoever asks for one that is unknown meanwhile is cut off without a word, and so dials again.
 */
void page_server_set_incomplete(struct page_server *server, bool incomplete);

/*
 * page_server_await() - the same for this id alone, and for good: another process may have it
 *
 * Return: 0 or -ENOMEM.
 */
int page_server_await(struct page_server *server, const char *id);

/* Ends all connections and waits for their threads. NULL is allowed. */
struct page_server *page_server_free(struct page_server *server);

/* Where it listens; the port of the first. */
const struct tcp_listening *page_server_listening(const struct page_server *server);
unsigned int page_server_port(const struct page_server *server);

/*
 * page_server_add() - have a source be found by its id and token
 *
 * Any number that have ended, and one that has not.
 *
 * Return: 0; -EEXIST; -ENOMEM.
 */
int page_server_add(struct page_server *server, struct page_source *source);

/*
 * page_server_remove() - no new connections for it
 * @end_connections: cut those that are there, too (they drop their references soon)
 */
void page_server_remove(struct page_server *server, struct page_source *source,
                        bool end_connections);

#endif
