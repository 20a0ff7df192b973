/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The userfaultfd's events: taken from the kernel, and what they say applied.
 *
 * Theory of operation
 * -------------------
 * One thread reads them, the fault thread. Who changes the mappings (madvise(), munmap(), mremap())
 * sleeps in the kernel until its event has been read, and meanwhile every ioctl that fills or maps
 * is refused (EAGAIN). So the reader never waits for anything but events, and lives longer than
 * whatever may meet that refusal, and longer than the registration: a call that was under way when
 * UFFDIO_UNREGISTER took the range still raises its event afterwards. When there is none of these
 * any more the kernel tells: uffd_is_quiet().
 *
 * Threads: events_read() by the fault thread. events_settled() by any.
 */
#ifndef FAULT_EVENTS_H
#define FAULT_EVENTS_H

#include <linux/userfaultfd.h>
#include <pthread.h>

#include "fault/resolver.h"

/* Events that one read() takes. */
#define EVENTS_MAX 32u

struct events {
	/* Set at birth. */
	struct resolver *resolver;
	const char *id; /* of the migration, for the log */

	pthread_mutex_t lock; /* held from taking events until they are applied */
};

/* @resolver: initialised. Return: 0 or -errno. */
int events_init(struct events *e, struct resolver *resolver, const char *id);
void events_deinit(struct events *e);

/*
 * events_read() - take all events there are; never waits for one
 * @fault: called with each page fault
 */
void events_read(struct events *e,
                 void (*fault)(void *arg, const struct uffd_msg *msg, uint64_t now_ns), void *arg);

/*
 * events_settled() - whether all that the VMM has done to its mappings is known here
 *
 * Return: true where no thread of the VMM is in such a call, and what came of those before is in
 * the address map.
 */
bool events_settled(struct events *e);

#endif
