/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd's events: taken from the kernel, and what they say applied.
 *
 * Theory of operation
 * -------------------
 * One thread reads them, the fault thread of its shard. Who changes the mappings (madvise(),
 * munmap(), mremap()) sleeps in the kernel until its event has been read, and meanwhile every ioctl
 * that fills or maps is refused (EAGAIN). So the reader never waits for anything but events, and
 * lives longer than whatever may meet that refusal, and longer than the registration: a call that
 * was under way when UFFDIO_UNREGISTER took the range still raises its event afterwards. When there
 * is none of these any more the kernel tells: uffd_is_quiet().
 *
 * The VMM shares the open file, so it may make it blocking at any time, and take an event away
 * between poll() and read(): the reader says of each single read that it is not to wait
 * (RWF_NOWAIT). Before Linux 6.10 that can't be said of a userfaultfd; there a VMM that does both
 * can have its own reader wait, until events_interrupt().
 *
 * A process may be killed at any instruction, and the kernel lets the VMM's call go as soon as its
 * event is taken: nobody tells it again. So events are read straight into slots that lie beside the
 * page state, in its memfd, together with the address map. What the kernel has taken from its queue
 * it copies there before a SIGKILL ends the process; a slot is cleared when what its event says is
 * in the page state or in the map. The next process applies what it finds in the slots, in order,
 * before anything is filled: a discard may be repeated, and of a change of the map the map itself
 * says that it is in it. Page faults are forgotten: who waits is woken, and raises a new one.
 *
 * With several userfaultfds each has a journal. What is in two of them has no order, and needs
 * none: a range lies in one shard, and its discards and moves are told there. But memory of one may
 * move to where another's was. So the event of a change is taken while nobody uses the map that it
 * changes (begin_alone()). That there is one the kernel tells before it is taken. Only a change
 * that begins and is told between that look and the read is taken as before; it would take a bulk
 * thread that has looked an address up and then stands still, until the VMM has moved memory of
 * another shard there.
 *
 * Threads: events_read() by the fault thread, which calls events_reader_begin() first. Others by
 * any.
 */
#ifndef FAULT_EVENTS_H
#define FAULT_EVENTS_H

#include <linux/userfaultfd.h>
#include <pthread.h>

#include "fault/resolver.h"

/* Events that one read() takes. */
#define EVENTS_MAX 32u

/* What a journal takes. */
#define EVENTS_ROOM_BYTES PAGE_STATE_ROOM_BYTES

struct events {
	/* Set at birth. */
	struct resolver *resolver;
	struct resolver_shard *shard; /* whose userfaultfd, and whose map */
	const char *id;               /* of the migration, for the log */

	pthread_mutex_t lock; /* held from taking events until they are applied */
	struct event_journal *journal;
	bool alone;     /* the reader has the map's lock, to write */
	bool no_nowait; /* this kernel reads a userfaultfd without RWF_NOWAIT only */
};

/* @resolver: initialised; @shard: of it, by its number. Return: 0 or -errno. */
int events_init(struct events *e, struct resolver *resolver, unsigned int shard, const char *id);
void events_deinit(struct events *e);

/*
 * events_open() - what the process before has left, looked at and not touched
 * @room: EVENTS_ROOM_BYTES, aligned to pages, in a memfd that survives the process; zeroed at first
 *
 * It is believed no more than anything else that is read: whatever lies there, no place of ours is
 * written for it. Return: 0; -EPROTO with @err set.
 */
int events_open(struct events *e, void *room, struct error *err);

/*
 * events_take_up() - before anything is filled or read: where the process before was
 *
 * Of a page state that is new there is nothing to take up. The resolver has its state by now. Its
 * address map is what the VMM has made of it since.
 */
void events_take_up(struct events *e);

/* Of its map only its shard's part, where there are @n shards. By the reader, or before it reads.
 */
void events_keep_part(struct events *e, unsigned int n);

void events_reader_begin(void);

/*
 * events_read() - take all events there are; never waits for one
 * @fault: called with each page fault
 *
 * Return: whether any was of something else: a discard, or a change of the map.
 */
bool events_read(struct events *e,
                 void (*fault)(void *arg, const struct uffd_msg *msg, uint64_t now_ns), void *arg);

/*
 * events_hold() - until events_let_go() no event is taken
 *
 * All that were taken are applied by then: what is known here holds, but for what the kernel still
 * has an event of, and there it refuses to fill, map or poison (UFFD_AGAIN). For some milliseconds:
 * the VMM waits.
 */
void events_hold(struct events *e);
void events_let_go(struct events *e);

/* Have events_read() in @reader, should it wait after all, return. From any thread; repeat it. */
void events_interrupt(pthread_t reader);

/*
 * events_settled() - whether all that the VMM has done to its mappings is known here
 *
 * Return: true where no thread of the VMM is in such a call, and what came of those before is in
 * the address map.
 */
bool events_settled(struct events *e);

#endif
