/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/events.h"

#include <unistd.h>

#include "fault/uffd.h"
#include "util/clock.h"
#include "util/log.h"

int events_init(struct events *e, struct resolver *resolver, const char *id)
{
	e->resolver = resolver;
	e->id = id;
	return -pthread_mutex_init(&e->lock, NULL);
}

void events_deinit(struct events *e)
{
	pthread_mutex_destroy(&e->lock);
}

static void change_map(struct events *e, const struct uffd_msg *msg)
{
	struct resolver *r = e->resolver;
	int rc;

	pthread_rwlock_wrlock(&r->map_lock);
	if (msg->event == UFFD_EVENT_UNMAP)
		rc = addrmap_unmap(&r->addrmap, msg->arg.remove.start, msg->arg.remove.end);
	else
		rc = addrmap_move(&r->addrmap, msg->arg.remap.from, msg->arg.remap.to,
		                  msg->arg.remap.len);
	r->map_changes++;
	pthread_rwlock_unlock(&r->map_lock);
	if (rc)
		log_migration_error(e->id,
		                    "guest memory is mapped in more than %d pieces: some "
		                    "faults can't be served",
		                    ADDRMAP_PIECES_MAX);
}

static void apply(struct events *e, const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
		resolver_discard(e->resolver, msg->arg.remove.start, msg->arg.remove.end);
		return;
	case UFFD_EVENT_UNMAP:
	case UFFD_EVENT_REMAP:
		change_map(e, msg);
		return;
	case UFFD_EVENT_FORK:
		/* The child is not the guest. Without this copy its memory is unwatched. */
		log_migration_warning(e->id, "the VMM forked; the child does not see absent pages");
		close((int)msg->arg.fork.ufd);
		return;
	default:
		log_migration_warning(e->id, "userfaultfd event %u is unknown", msg->event);
		return;
	}
}

void events_read(struct events *e,
                 void (*fault)(void *arg, const struct uffd_msg *msg, uint64_t now_ns), void *arg)
{
	struct uffd_msg msgs[EVENTS_MAX];
	size_t n = EVENTS_MAX;

	while (n == EVENTS_MAX) {
		ssize_t len;
		uint64_t now_ns;

		pthread_mutex_lock(&e->lock);
		len = read(e->resolver->uffd, msgs, sizeof msgs);
		n = len > 0 ? (size_t)len / sizeof *msgs : 0;
		now_ns = clock_now_ns();
		for (size_t i = 0; i < n; i++) {
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				fault(arg, &msgs[i], now_ns);
			else
				apply(e, &msgs[i]);
		}
		pthread_mutex_unlock(&e->lock);
	}
}

/* First that nobody is in such a call; then, as its event was taken under the lock, the lock. */
bool events_settled(struct events *e)
{
	bool quiet = uffd_is_quiet(e->resolver->uffd);

	pthread_mutex_lock(&e->lock);
	pthread_mutex_unlock(&e->lock);
	return quiet;
}
