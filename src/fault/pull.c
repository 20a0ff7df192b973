/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "fault/uffd.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/* How often it is looked at whether nobody changes the mappings any more. */
#define FINISH_LOOK_NS 500000
/* A reader of events that has not ended by then may be kept waiting by its VMM. */
#define INTERRUPT_MS 200u
/* A line in the log that may come page by page: so often at most. */
#define TELL_MS 10000u
/* Fills fail again and again: they are tried again within much less, each. */
#define FAILING_MS 3000u

/* What pull_free() ends in any case. */
static void init_shared(struct pull *p)
{
	pthread_mutex_init(&p->lock, NULL);
	pthread_mutex_init(&p->notes_lock, NULL);
	pthread_cond_init(&p->changed, NULL);
	dialing_init(&p->connecting);
	dialing_init(&p->dialing);
	for (unsigned int i = 0; i < SHARDS_MAX; i++) {
		p->faults[i].pull = p;
		p->faults[i].index = i;
		p->faults[i].shard = &p->resolver.shards[i];
		p->faults[i].wake_fd = -1;
		p->faults[i].may_begin = !i;
	}
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++) {
		dialing_init(&p->bulks[i].dialing);
		sem_init(&p->bulks[i].handed.filled, 0, 0);
	}
}

/* What is known of the memory by its table alone, and where a process before this one was. */
static int open_state(struct pull *p, const struct pull_config *config, struct error *err)
{
	int rc = config->state_fd < 0
	                 ? page_state_new(&config->table, &p->state, err)
	                 : page_state_adopt(&config->table, config->state_fd, &p->state, err);

	p->config.table = config->table;
	addrmap_init(&p->resolver.shards[0].addrmap, &p->config.table);
	if (config->pieces.n)
		p->resolver.shards[0].addrmap = config->pieces;
	if (!rc)
		rc = events_open(&p->faults[0].events, page_state_room(p->state), err);
	if (!rc)
		rc = scheduler_new(&p->config.table, p->state, &p->scheduler, err);
	if (!rc && guesses_init(&p->guesses, &p->config.table))
		rc = error_set(err, -ENOMEM, "pull: out of memory");
	p->faults[0].fetches.scheduler = p->scheduler;
	return rc;
}

int pull_take_memory(struct pull *p, const struct pull_config *config, struct error *err)
{
	int rc = open_state(p, config, err);

	if (!rc && config->n_shards > 1)
		rc = pull_open_shards(p, config->shard_uffds, config->n_shards, config->journals_fd,
		                      err);
	/* Until all is well the descriptors are the caller's. */
	if (rc)
		return rc;
	arrival_init(&p->arrival, &p->config.table);
	p->resolver.state = p->state;
	p->resolver.shards[0].uffd = config->uffd;
	memcpy(p->config.memories, config->memories, sizeof p->config.memories);
	/* In this order: a discard that was taken settles what it names. */
	events_take_up(&p->faults[0].events);
	if (config->n_shards > 1)
		pull_divide(p, config->n_shards);
	if (config->state_fd >= 0) {
		resolver_settle(&p->resolver);
		/* Unlike the rest of the statistics these tell of the guest. */
		atomic_store(&p->stats.pages_poisoned, page_state_count_poisoned(p->state));
	}
	scheduler_set_prefetch(p->scheduler, config->prefetch);
	if (config->n_shards > 1)
		pull_begin_shards(p);
	return 0;
}

int pull_new(const struct pull_config *config, struct pull **ret, struct error *err)
{
	struct pull *p = calloc(1, sizeof *p);
	int rc;

	if (!p)
		return error_set(err, -ENOMEM, "pull: out of memory");
	p->config = *config;
	p->config.table.n = 0;
	memset(p->config.memories, 0, sizeof p->config.memories);
	/* Large: zeroed memory that is not touched takes none, and all of it is given back. */
	p->stats.records = calloc(1, sizeof *p->stats.records);
	atomic_init(&p->bulk_on, config->bulk);
	atomic_init(&p->streams, config->streams);
	throttle_init(&p->throttle, config->bandwidth_bytes_per_s);
	atomic_init(&p->stats.slow_fault_ns, PULL_SLOW_FAULT_NS);
	init_shared(p);
	p->resolver = (struct resolver){
		.table = &p->config.table,
		.memories = p->config.memories,
		.shards[0].uffd = -1,
		.map = config->map,
		.stats = &p->stats,
	};
	rc = resolver_init(&p->resolver);
	for (unsigned int i = 0; i < SHARDS_MAX && !rc; i++)
		rc = events_init(&p->faults[i].events, &p->resolver, i, p->config.id);
	if (!rc && !p->stats.records)
		rc = -ENOMEM;
	if (rc)
		error_errno(err, rc, "pull");
	if (!rc) {
		p->faults[0].wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (p->faults[0].wake_fd < 0)
			rc = error_errno(err, -errno, "pull: eventfd");
	}
	if (!rc && config->table.n)
		rc = pull_take_memory(p, config, err);
	if (rc) {
		pull_free(p);
		return rc;
	}
	*ret = p;
	return 0;
}

static void shutdown_all(struct pull *p)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		if (p->faults[i].conn)
			conn_shutdown(p->faults[i].conn);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		if (p->bulks[i].conn)
			conn_shutdown(p->bulks[i].conn);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

static struct timespec until(unsigned int ms)
{
	uint64_t ns = clock_now_ns() + ms * NSEC_PER_MSEC;

	return (struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC),
		                  .tv_nsec = (long)(ns % NSEC_PER_SEC) };
}

void pull_cancel(struct pull *p)
{
	atomic_store(&p->stopping, true);
	dialing_cancel(&p->connecting);
	dialing_cancel(&p->dialing);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		dialing_cancel(&p->bulks[i].dialing);
	shutdown_all(p);
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		pull_wake_fault_thread(&p->faults[i]);
}

static void join_fillers(struct pull *p)
{
	if (p->keeper_runs)
		pthread_join(p->keeper, NULL);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		if (p->bulks[i].runs)
			pthread_join(p->bulks[i].thread, NULL);
	p->keeper_runs = false;
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		p->bulks[i].runs = false;
}

/* Until the fault thread says so, though its VMM may keep it waiting. */
static void await_fault_thread(struct fault_thread *ft, const bool *says)
{
	struct pull *p = ft->pull;

	pthread_mutex_lock(&p->lock);
	while (ft->runs && !*says) {
		const struct timespec at = until(INTERRUPT_MS);

		if (pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at))
			events_interrupt(ft->thread);
	}
	pthread_mutex_unlock(&p->lock);
}

void pull_stop_filling(struct pull *p)
{
	pull_cancel(p);
	/* In this order: a bulk thread may wait for what it has handed over. */
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		await_fault_thread(&p->faults[i], &p->faults[i].only_reads);
	join_fillers(p);
}

void pull_stop(struct pull *p)
{
	pull_stop_filling(p);
	for (unsigned int i = 0; i < pull_n_faults(p); i++) {
		struct fault_thread *ft = &p->faults[i];

		atomic_store(&ft->done, true);
		pull_wake_fault_thread(ft);
		await_fault_thread(ft, &ft->ends);
		if (ft->runs)
			pthread_join(ft->thread, NULL);
		pthread_mutex_lock(&p->lock);
		ft->runs = false;
		pthread_mutex_unlock(&p->lock);
	}
}

void pull_release(struct pull *p)
{
	pull_stop(p);
	p->missing_at_release = pull_missing(p);
	for (unsigned int i = 0; i < SHARDS_MAX; i++) {
		struct fault_thread *ft = &p->faults[i];

		ft->conn = conn_free(ft->conn);
		ft->urgent.ready = conn_free(ft->urgent.ready);
		close_fd(&ft->shard->uffd);
		close_fd(&ft->wake_fd);
	}
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		p->bulks[i].conn = conn_free(p->bulks[i].conn);
	for (uint32_t i = 0; i < p->config.table.n; i++)
		p->config.memories[i] = memory_free(p->config.memories[i]);
	p->scheduler = scheduler_free(p->scheduler);
	guesses_deinit(&p->guesses);
	free(p->stats.records);
	p->stats.records = NULL;
	p->state = page_state_free(p->state);
	pull_unmap_journals(p);
	/* These came when the fault thread had ended. */
	while (p->n_channels_new) {
		int fd = p->channels_new[--p->n_channels_new];

		if (p->missing_at_release || !p->config.table.n)
			close(fd);
		else
			fetch_channel_finish(fd);
	}
}

struct pull *pull_free(struct pull *p)
{
	if (!p)
		return NULL;
	pull_release(p);
	for (unsigned int i = 0; i < SHARDS_MAX; i++)
		events_deinit(&p->faults[i].events);
	resolver_deinit(&p->resolver);
	throttle_deinit(&p->throttle);
	dialing_deinit(&p->connecting);
	dialing_deinit(&p->dialing);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++) {
		dialing_deinit(&p->bulks[i].dialing);
		sem_destroy(&p->bulks[i].handed.filled);
	}
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->notes_lock);
	pthread_mutex_destroy(&p->lock);
	free(p);
	return NULL;
}

struct conn_target pull_target(struct pull *p)
{
	struct conn_target target;

	pthread_mutex_lock(&p->lock);
	target = p->target;
	pthread_mutex_unlock(&p->lock);
	return target;
}

int pull_settle_conn(struct conn *c, enum stream_role role, struct error *err)
{
	int rc = 0;

	/* Not from one answer to the next, but from one byte: a slow link is none that is dead. */
	if (role == STREAM_BULK)
		conn_set_receive_timeout(c, 2 * PULL_SILENT_MS);
	else
		rc = conn_set_blocking(c, false);
	return rc ? error_errno(err, rc, "%s connection", stream_role_name(role)) : 0;
}

int pull_dial(struct pull *p, struct dialing *d, enum stream_role role, struct conn **ret,
              struct error *err)
{
	struct hello_reply *reply = malloc(sizeof *reply);
	struct conn_target target = pull_target(p);
	struct tls_context *tls;
	struct hello hello;
	int rc;

	if (!reply)
		return error_set(err, -ENOMEM, "connection: out of memory");
	pthread_mutex_lock(&p->lock);
	hello = p->hello;
	tls = p->tls;
	pthread_mutex_unlock(&p->lock);
	hello.role = role;
	hello.regions.n = 0;
	rc = conn_dial(d, &target, tls, &hello, ret, reply, err);
	if (!rc)
		atomic_store(&p->urgents, reply->urgents);
	free(reply);
	if (rc)
		return rc;
	rc = pull_settle_conn(*ret, role, err);
	if (rc)
		*ret = conn_free(*ret);
	return rc;
}

/* Dial, see that pages can come at all, and show the connection to pull_cancel(). */
static int connect_to(struct pull *p, enum stream_role role, struct conn **slot, struct error *err)
{
	struct conn_target target = pull_target(p);
	struct conn *c, *old;
	int rc = atomic_load(&p->stopping) ? error_set(err, -ECANCELED, "cancelled")
	                                   : pull_dial(p, &p->connecting, role, &c, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&p->lock);
	old = *slot;
	*slot = c;
	pthread_mutex_unlock(&p->lock);
	conn_free(old);
	rc = conn_probe(c, &target, err);
	/* The probe has left it as conn_dial() does. */
	if (!rc)
		rc = pull_settle_conn(c, role, err);
	return rc;
}

static void set_peer(struct pull *p, const struct conn_target *target, struct tls_context *tls,
                     const struct hello *hello, uint64_t epoch)
{
	pthread_mutex_lock(&p->lock);
	p->target = *target;
	p->tls = tls;
	p->hello = *hello;
	p->hello.epoch = epoch;
	p->peers++;
	pthread_mutex_unlock(&p->lock);
}

/* What was dialled ahead for fault threads that don't run yet is the attachment's of before. */
static void drop_ready(struct pull *p)
{
	struct conn *stale[SHARDS_MAX] = { NULL };

	pthread_mutex_lock(&p->lock);
	for (unsigned int i = 1; i < pull_n_faults(p); i++) {
		stale[i] = steal_ptr(&p->faults[i].urgent.ready);
		pull_note_unconnected_locked(&p->faults[i]);
	}
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	for (unsigned int i = 1; i < SHARDS_MAX; i++)
		conn_free(stale[i]);
}

int pull_connect(struct pull *p, const struct conn_target *target, struct tls_context *tls,
                 const struct hello *hello, uint64_t epoch, struct error *err)
{
	int rc;

	set_peer(p, target, tls, hello, epoch);
	drop_ready(p);
	rc = connect_to(p, STREAM_URGENT, &p->faults[0].conn, err);
	if (rc)
		return rc;
	if (!atomic_load(&p->tls_known))
		snprintf(p->tls_description, sizeof p->tls_description, "%s",
		         tls_description(p->faults[0].conn->tls));
	atomic_store(&p->tls_known, true);
	for (unsigned int i = 0; i < atomic_load(&p->streams) && !rc; i++)
		rc = connect_to(p, STREAM_BULK, &p->bulks[i].conn, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&p->lock);
	p->connected = true;
	pthread_mutex_unlock(&p->lock);
	/* The urgent connections of further fault threads: ahead of time, if they can be. */
	if (pull_n_faults(p) > 1)
		(void)pull_start_keeper(p);
	return 0;
}

void pull_connect_later(struct pull *p, const struct conn_target *target, struct tls_context *tls,
                        const struct hello *hello, uint64_t epoch)
{
	set_peer(p, target, tls, hello, epoch);
	pthread_mutex_lock(&p->lock);
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		pull_note_unconnected_locked(&p->faults[i]);
	pthread_mutex_unlock(&p->lock);
}

void pull_redirect(struct pull *p, const struct conn_target *target)
{
	pthread_mutex_lock(&p->lock);
	p->target = *target;
	pthread_mutex_unlock(&p->lock);
	dialing_interrupt(&p->connecting);
	dialing_interrupt(&p->dialing);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		dialing_interrupt(&p->bulks[i].dialing);
	shutdown_all(p);
}

void pull_wait_locked(struct pull *p, unsigned int timeout_ms)
{
	const struct timespec at = until(timeout_ms);

	/* Not the time of day, which somebody may set. */
	while (!atomic_load(&p->stopping) &&
	       pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at) != ETIMEDOUT)
		;
}

unsigned int pull_next_pause_ms(unsigned int *retry_ms)
{
	unsigned int ms;

	if (!*retry_ms) {
		*retry_ms = PULL_RETRY_MIN_MS;
		return 0;
	}
	/* By up to a half more: a source that comes back is not met by all at once. */
	ms = *retry_ms + (unsigned int)(clock_now_ns() / 1024 % (*retry_ms / 2 + 1));
	*retry_ms = *retry_ms * 2 < PULL_RETRY_MAX_MS ? *retry_ms * 2 : PULL_RETRY_MAX_MS;
	return ms;
}

void pull_back_off_locked(struct pull *p, unsigned int *retry_ms)
{
	unsigned int ms = pull_next_pause_ms(retry_ms);

	if (ms)
		pull_wait_locked(p, ms);
}

void pull_work_changed(struct pull *p)
{
	pthread_mutex_lock(&p->lock);
	p->work++;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

void pull_wake_fault_thread(struct fault_thread *ft)
{
	(void)!write(ft->wake_fd, &(uint64_t){ 1 }, sizeof(uint64_t));
}

struct fault_thread *pull_fault_thread_of(struct pull *p, uint32_t region, uint64_t unit)
{
	return &p->faults[resolver_shard_of(&p->resolver, region, unit) - p->resolver.shards];
}

void pull_check_complete(struct pull *p)
{
	if (!atomic_load(&p->warm) && !page_state_missing(p->state) &&
	    !atomic_exchange(&p->completed, true))
		p->config.complete(p->config.arg);
}

/* Whether a line that may come page by page is due again. */
static bool is_due(_Atomic uint64_t *told_ns)
{
	uint64_t now_ns = clock_now_ns(), last_ns = atomic_load(told_ns);

	return (!last_ns || now_ns > last_ns + TELL_MS * NSEC_PER_MSEC) &&
	       atomic_compare_exchange_strong(told_ns, &last_ns, now_ns);
}

void pull_tell_poisoned(struct pull *p, const struct scheduler_item *item, uint64_t filled)
{
	uint64_t lost = page_state_poisoned(p->state, item->region, item->word) & filled;
	uint64_t unit;

	if (lost && is_due(&p->told_poisoned_ns)) {
		unit = item->word * WORD_UNITS + (uint64_t)__builtin_ctzll(lost);
		log_migration_error(p->config.id,
		                    "region %u at %#llx can't be read at the source, or its memory "
		                    "here is broken: poisoned, %llu pages by now",
		                    item->region, (unsigned long long)unit << UNIT_SHIFT,
		                    (unsigned long long)stat_get(&p->stats.pages_poisoned));
	}
	if (stat_get(&p->stats.pages_unpoisoned) && is_due(&p->told_unpoisoned_ns))
		log_migration_error(p->config.id,
		                    "the source can't read some pages, and they can't be poisoned "
		                    "here (UFFDIO_POISON: Linux 6.6, for some memory; not where "
		                    "the VMM asks for its pages): they stay missing");
}

void pull_note_failed(struct pull *p, uint32_t region, uint64_t unit, int rc)
{
	uint64_t now_ns = clock_now_ns();
	uint64_t last_ns = atomic_exchange(&p->failed_ns, now_ns);

	stat_add(&p->stats.fills_failed, 1);
	atomic_store(&p->fill_error, rc);
	/* Another thread may have been later. */
	if (now_ns > last_ns + FAILING_MS * NSEC_PER_MSEC)
		atomic_store(&p->failing_ns, now_ns);
	if (is_due(&p->told_failed_ns))
		log_migration_error(p->config.id,
		                    "filling region %u at %#llx: %s; trying again, %llu times by "
		                    "now",
		                    region, (unsigned long long)unit << UNIT_SHIFT, strerror(-rc),
		                    (unsigned long long)stat_get(&p->stats.fills_failed));
}

void pull_get_trouble(const struct pull *p, struct pull_trouble *ret)
{
	uint64_t last_ns = atomic_load(&p->failed_ns);
	bool fails = last_ns && clock_now_ns() < last_ns + FAILING_MS * NSEC_PER_MSEC;

	*ret = (struct pull_trouble){
		.since_ns = fails ? atomic_load(&p->failing_ns) : 0,
		.error = atomic_load(&p->fill_error),
	};
}

enum load_limit pull_get_limit(const struct pull *p)
{
	enum load_limit limit = load_limit(&p->load, clock_now_ns());

	/* Who has asked for nothing waits for nothing. */
	return limit == LOAD_WAITS && !stat_get(&p->stats.bulk_in_flight) ? LOAD_UNKNOWN : limit;
}

int pull_start_fault_thread(struct fault_thread *ft)
{
	int rc;

	if (ft->runs)
		return 0;
	resolver_wake_all(ft->shard);
	pthread_mutex_lock(&ft->pull->lock);
	rc = thread_start(&ft->thread, fault_thread_main, ft);
	ft->runs = !rc;
	pthread_mutex_unlock(&ft->pull->lock);
	return rc;
}

int pull_start(struct pull *p)
{
	int rc = 0;

	/* Before the first page can be seen: a process after this one must not take it back. */
	page_state_note_visible(p->state);
	if (!p->faults[0].runs)
		arrival_begin(&p->arrival, clock_now_ns());
	for (unsigned int i = 0; i < pull_n_faults(p) && !rc; i++)
		rc = pull_start_fault_thread(&p->faults[i]);
	if (!rc)
		rc = pull_start_keeper(p);
	if (!rc) {
		pthread_mutex_lock(&p->lock);
		p->started = true;
		rc = pull_start_bulk_locked(p);
		/* With fewer of them it is slower, and that is all. */
		if (rc && p->bulks[0].runs)
			rc = 0;
		pthread_mutex_unlock(&p->lock);
	}
	/* A state that was taken over may lack nothing. */
	pull_check_complete(p);
	return rc;
}

/* One that is about to retire finds that it need not. */
int pull_start_bulk_locked(struct pull *p)
{
	int rc = 0;

	for (unsigned int i = 0; i < atomic_load(&p->streams) && !rc; i++) {
		struct bulk *b = &p->bulks[i];

		if (b->runs && !b->ended)
			continue;
		/* It takes no lock any more. */
		if (b->runs)
			pthread_join(b->thread, NULL);
		b->pull = p;
		b->index = i;
		b->ended = false;
		rc = thread_start(&b->thread, bulk_main, b);
		b->runs = !rc;
	}
	return rc;
}

int pull_start_bulk(struct pull *p)
{
	struct conn *surplus[PULL_STREAMS_MAX] = { NULL };
	int rc = 0;

	scheduler_go(p->scheduler);
	atomic_store(&p->maps, p->config.map == RESOLVER_MAP_EAGER);
	pthread_mutex_lock(&p->lock);
	p->bulk_started = true;
	p->work++;
	pthread_cond_broadcast(&p->changed);
	if (!atomic_load(&p->stopping))
		rc = pull_start_bulk_locked(p);
	/* Connections of streams that were taken back before they had a thread. */
	for (unsigned int i = atomic_load(&p->streams); i < PULL_STREAMS_MAX; i++)
		if (!p->bulks[i].runs)
			surplus[i] = steal_ptr(&p->bulks[i].conn);
	pthread_mutex_unlock(&p->lock);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++)
		conn_free(surplus[i]);
	return rc;
}

int pull_set_streams(struct pull *p, unsigned int streams)
{
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	atomic_store(&p->streams, streams);
	if (p->started && !atomic_load(&p->stopping))
		rc = pull_start_bulk_locked(p);
	pthread_mutex_unlock(&p->lock);
	pull_work_changed(p);
	return rc;
}

int pull_add_channel(struct pull *p, int fd)
{
	bool room;

	pthread_mutex_lock(&p->lock);
	room = p->n_channels_new < FETCH_CHANNELS_MAX;
	if (room)
		p->channels_new[p->n_channels_new++] = fd;
	pthread_mutex_unlock(&p->lock);
	if (!room) {
		close(fd);
		return -EMFILE;
	}
	pull_wake_fault_thread(&p->faults[0]);
	return 0;
}

/*
 * Over and over, until nobody changes the mappings meanwhile: what was moved is watched still, and
 * a call that was under way raises its event even after the end. The fault thread reads them. Only
 * then is a piece that the kernel does not take as one looked at in parts.
 */
static int unregister(struct pull *p, struct fault_thread *ft)
{
	const struct timespec pause = { .tv_nsec = FINISH_LOOK_NS };
	bool by_parts = false;

	for (;;) {
		uint64_t changes = resolver_map_changes(ft->shard);
		int rc = resolver_unregister(&p->resolver, ft->shard, by_parts);

		if (rc < 0)
			return rc;
		if (!events_settled(&ft->events) || resolver_map_changes(ft->shard) != changes)
			nanosleep(&pause, NULL);
		else if (rc != UFFD_UNMAPPED || by_parts)
			return 0;
		else
			by_parts = true;
	}
}

static int unregister_all(struct pull *p)
{
	int rc = 0;

	for (unsigned int i = 0; i < pull_n_faults(p) && !rc; i++)
		rc = unregister(p, &p->faults[i]);
	return rc;
}

static void hold_events(struct pull *p)
{
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		events_hold(&p->faults[i].events);
}

static void let_events_go(struct pull *p)
{
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		events_let_go(&p->faults[i].events);
}

static bool not_now(void *arg)
{
	(void)arg;
	return false;
}

/*
 * Unregistered, what is staged still would read as zeroes. Page by page, with events held: by those
 * that were read it is staged still, and of those that were not the kernel knows.
 */
static int place_staged(struct pull *p)
{
	const struct resolver_caller caller = { .resolver = &p->resolver, .again = not_now };
	const struct timespec soon = { .tv_nsec = FINISH_LOOK_NS };
	const struct timespec later = { .tv_nsec = 100 * NSEC_PER_MSEC };
	uint32_t region = 0;
	uint64_t offset = 0;
	int rc;

	do {
		hold_events(p);
		rc = resolver_place_staged(&caller, &region, &offset);
		let_events_go(p);
		if (rc == -ECANCELED) {
			nanosleep(&soon, NULL); /* the fault thread reads the event */
		} else if (rc < 0 && rc != -ESRCH) {
			pull_note_failed(p, region, offset >> UNIT_SHIFT, rc);
			nanosleep(&later, NULL);
		}
	} while (rc && rc != -ESRCH);
	return rc;
}

int pull_finish(struct pull *p, struct error *err)
{
	int rc = place_staged(p);

	if (rc)
		return error_errno(err, rc, "placing the last pages");
	rc = unregister_all(p);
	if (rc)
		return error_errno(err, rc, "UFFDIO_UNREGISTER");
	/* Some kernels wake nobody where MINOR alone was registered. */
	for (unsigned int i = 0; i < pull_n_faults(p); i++)
		resolver_wake_all(p->faults[i].shard);
	pull_stop(p);
	return 0;
}

void pull_set_bulk(struct pull *p, bool on)
{
	atomic_store(&p->bulk_on, on);
	pull_work_changed(p);
}

bool pull_bulk_is_on(const struct pull *p)
{
	return atomic_load(&p->bulk_on);
}

void pull_set_bandwidth(struct pull *p, uint64_t bytes_per_s)
{
	if (throttle_set_cap(&p->throttle, bytes_per_s, clock_now_ns()))
		pull_work_changed(p);
}

void pull_set_share(struct pull *p, uint64_t bytes_per_s)
{
	if (throttle_set_share(&p->throttle, bytes_per_s, clock_now_ns()))
		pull_work_changed(p);
}

bool pull_was_held(struct pull *p)
{
	return throttle_was_held(&p->throttle);
}

void pull_set_prefetch(struct pull *p, bool on)
{
	if (p->scheduler)
		scheduler_set_prefetch(p->scheduler, on);
}

void pull_set_slow_fault(struct pull *p, uint64_t ns)
{
	atomic_store_explicit(&p->stats.slow_fault_ns, ns, memory_order_relaxed);
}

const struct pull_stats *pull_stats(const struct pull *p)
{
	return &p->stats;
}

const struct arrival_map *pull_arrival(const struct pull *p)
{
	return &p->arrival;
}

int pull_state_fd(const struct pull *p)
{
	return page_state_fd(p->state);
}

uint64_t pull_missing(const struct pull *p)
{
	return p->state ? page_state_missing(p->state) : p->missing_at_release;
}

const char *pull_tls(const struct pull *p)
{
	return atomic_load(&p->tls_known) ? p->tls_description : "";
}
