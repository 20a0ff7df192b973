/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/events.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fault/uffd.h"
#include "util/clock.h"
#include "util/log.h"

/* An address map, and how many slots' events are in it already, of those that are being applied. */
struct journal_map {
	_Atomic uint32_t applied;
	struct addrmap map;
};

/* Beside the page state. */
struct event_journal {
	struct uffd_msg slots[EVENTS_MAX]; /* event 0: clear */
	_Atomic uint32_t ready;            /* there is a map */
	_Atomic uint32_t current;          /* which one counts; the other one is being made */
	struct journal_map maps[2];
};
_Static_assert(sizeof(struct event_journal) <= EVENTS_ROOM_BYTES, "it fits its room");

#define INTERRUPT_SIGNAL SIGURG

int events_init(struct events *e, struct resolver *resolver, unsigned int shard, const char *id)
{
	e->resolver = resolver;
	e->shard = &resolver->shards[shard];
	e->id = id;
	return -pthread_mutex_init(&e->lock, NULL);
}

void events_deinit(struct events *e)
{
	pthread_mutex_destroy(&e->lock);
}

static struct journal_map *current_map(struct event_journal *j)
{
	return &j->maps[atomic_load(&j->current)];
}

/* The other map takes its place. */
static void turn_over(struct events *e, uint32_t other)
{
	struct resolver_shard *s = e->shard;

	if (!e->alone)
		pthread_rwlock_wrlock(&s->map_lock);
	atomic_store(&e->journal->current, other);
	s->addrmap = e->journal->maps[other].map;
	s->map_changes++;
	if (!e->alone)
		pthread_rwlock_unlock(&s->map_lock);
}

/* The event in @slot, in a copy of the map, which then takes the place of the old one. */
static void change_map(struct events *e, const struct uffd_msg *msg, unsigned int slot)
{
	uint32_t other = 1 - atomic_load(&e->journal->current);
	struct journal_map *next = &e->journal->maps[other];
	int rc;

	/* By the process before this one. */
	if (slot < atomic_load(&current_map(e->journal)->applied))
		return;
	next->map = e->shard->addrmap;
	if (msg->event == UFFD_EVENT_UNMAP)
		rc = addrmap_unmap(&next->map, msg->arg.remove.start, msg->arg.remove.end);
	else
		rc = addrmap_move(&next->map, msg->arg.remap.from, msg->arg.remap.to,
		                  msg->arg.remap.len);
	atomic_store(&next->applied, slot + 1);
	turn_over(e, other);
	if (rc)
		log_migration_error(e->id,
		                    "guest memory is mapped in more than %d pieces: some "
		                    "faults can't be served",
		                    ADDRMAP_PIECES_MAX);
}

/* @taken_up: it was taken by the process before. */
static void apply(struct events *e, const struct uffd_msg *msg, unsigned int slot, bool taken_up)
{
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
		resolver_discard(e->resolver, e->shard, msg->arg.remove.start, msg->arg.remove.end);
		return;
	case UFFD_EVENT_UNMAP:
	case UFFD_EVENT_REMAP:
		change_map(e, msg, slot);
		return;
	case UFFD_EVENT_FORK:
		/* The child is not the guest. Without this copy its memory is unwatched. */
		log_migration_warning(e->id, "the VMM forked; the child does not see absent pages");
		if (!taken_up)
			close((int)msg->arg.fork.ufd);
		return;
	default:
		log_migration_warning(e->id, "userfaultfd event %u is unknown", msg->event);
		return;
	}
}

/* What it says is where it belongs. */
static void clear(struct uffd_msg *slot)
{
	__atomic_store_n(&slot->event, 0, __ATOMIC_RELEASE);
}

static bool is_piece(const struct region_table *table, const struct addrmap_piece *p)
{
	const struct region *r = p->region < table->n ? &table->regions[p->region] : NULL;

	return r && p->len && p->offset < r->size && p->len <= r->size - p->offset &&
	       p->host_addr <= UINT64_MAX - p->len;
}

int events_open(struct events *e, void *room, struct error *err)
{
	struct event_journal *j = e->journal = room;
	uint32_t current = atomic_load(&j->current);
	bool good = current < 2;

	if (!atomic_load(&j->ready))
		return 0;
	good = good && j->maps[current].map.n <= ADDRMAP_PIECES_MAX;
	for (uint32_t i = 0; good && i < j->maps[current].map.n; i++)
		good = is_piece(e->resolver->table, &j->maps[current].map.pieces[i]);
	return good ? 0
	            : error_set(err, -EPROTO,
	                        "page state: where guest memory is mapped makes no sense");
}

void events_take_up(struct events *e)
{
	struct resolver_shard *s = e->shard;
	struct event_journal *j = e->journal;

	/* Read into a page that is not there, an event could be lost after all. */
	(void)mlock(j, sizeof *j);
	if (!atomic_load(&j->ready)) {
		atomic_store(&j->current, 0);
		j->maps[0].map = s->addrmap;
		atomic_store(&j->ready, 1);
		return;
	}
	s->addrmap = current_map(j)->map;
	for (unsigned int i = 0; i < EVENTS_MAX; i++) {
		if (j->slots[i].event && j->slots[i].event != UFFD_EVENT_PAGEFAULT)
			apply(e, &j->slots[i], i, true);
		clear(&j->slots[i]);
	}
}

void events_keep_part(struct events *e, unsigned int n)
{
	const struct region_table *table = e->resolver->table;
	uint32_t other = 1 - atomic_load(&e->journal->current);
	struct journal_map *next = &e->journal->maps[other];

	events_hold(e);
	next->map = e->shard->addrmap;
	for (uint32_t i = 0; i < table->n; i++) {
		const struct shards_region region = { .index = i,
			                              .size = table->regions[i].size,
			                              .page_size = table->regions[i].page_size };
		uint64_t begin, end;

		shards_part(n, &region, (unsigned int)(e->shard - e->resolver->shards), &begin,
		            &end);
		addrmap_keep(&next->map, i, begin, end);
	}
	/* All slots are clear. */
	atomic_store(&next->applied, 0);
	turn_over(e, other);
	events_let_go(e);
}

static void do_nothing(int signal)
{
	(void)signal;
}

/* Ignored it would interrupt nothing, and by default it is. */
void events_reader_begin(void)
{
	const struct sigaction action = { .sa_handler = do_nothing };
	sigset_t set;

	sigaction(INTERRUPT_SIGNAL, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, INTERRUPT_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void events_interrupt(pthread_t reader)
{
	pthread_kill(reader, INTERRUPT_SIGNAL);
}

/* As read(), but it does not wait. */
static ssize_t read_now(struct events *e, void *buf, size_t len)
{
	struct iovec iov = { buf, len };
	struct pollfd fd = { .fd = e->shard->uffd, .events = POLLIN };
	ssize_t n;

	/* Memory that its VMM asks for is trapped by nobody that we could hear. */
	if (fd.fd < 0)
		return 0;
	if (!e->no_nowait) {
		n = preadv2(fd.fd, &iov, 1, -1, RWF_NOWAIT);
		if (n >= 0 || errno != EOPNOTSUPP)
			return n;
		e->no_nowait = true;
	}
	if (poll(&fd, 1, 0) != 1 || !(fd.revents & POLLIN))
		return 0;
	return read(fd.fd, buf, len);
}

/* Take one batch. Return: how many events it had. */
static size_t read_batch(struct events *e,
                         void (*fault)(void *arg, const struct uffd_msg *msg, uint64_t now_ns),
                         void *arg, bool *changed)
{
	struct uffd_msg *slots = e->journal->slots;
	uint64_t now_ns;
	ssize_t len;
	size_t n;

	/* All slots are clear: they are counted anew. */
	atomic_store_explicit(&current_map(e->journal)->applied, 0, memory_order_release);
	len = read_now(e, slots, sizeof e->journal->slots);
	n = len > 0 ? (size_t)len / sizeof *slots : 0;
	now_ns = clock_now_ns();
	for (unsigned int i = 0; i < n; i++) {
		*changed |= slots[i].event != UFFD_EVENT_PAGEFAULT;
		if (slots[i].event == UFFD_EVENT_PAGEFAULT)
			fault(arg, &slots[i], now_ns);
		else
			apply(e, &slots[i], i, false);
		clear(&slots[i]);
	}
	return n;
}

/*
 * Where an event may be one of a change: nobody uses the map until it is in it. The kernel looks at
 * the address that an ioctl names, and not by which userfaultfd its memory is watched: with several
 * of them another's memory may be at that place as soon as the event is taken. Where there is but
 * one, it refuses all ioctls until the event of that is taken, too.
 */
static void begin_alone(struct events *e)
{
	e->alone = atomic_load(&e->resolver->n_shards) > 1 && !uffd_is_quiet(e->shard->uffd);
	if (e->alone)
		pthread_rwlock_wrlock(&e->shard->map_lock);
}

static void end_alone(struct events *e)
{
	if (e->alone)
		pthread_rwlock_unlock(&e->shard->map_lock);
	e->alone = false;
}

bool events_read(struct events *e,
                 void (*fault)(void *arg, const struct uffd_msg *msg, uint64_t now_ns), void *arg)
{
	bool changed = false;
	size_t n;

	do {
		events_hold(e);
		begin_alone(e);
		n = read_batch(e, fault, arg, &changed);
		end_alone(e);
		events_let_go(e);
	} while (n == EVENTS_MAX);
	return changed;
}

void events_hold(struct events *e)
{
	pthread_mutex_lock(&e->lock);
}

void events_let_go(struct events *e)
{
	pthread_mutex_unlock(&e->lock);
}

/* First that nobody is in such a call; then, as its event was taken under the lock, the lock. */
bool events_settled(struct events *e)
{
	bool quiet = uffd_is_quiet(e->shard->uffd);

	events_hold(e);
	events_let_go(e);
	return quiet;
}
