/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bulk thread: keeps a window of GETs in flight on its connection and fills what comes.
 */
#include "fault/prefill.h"
#include "fault/pull_internal.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/probes.h"
#include "util/thread.h"

/* How often it is looked at how many requests there are to be in flight. */
#define BULK_LOOK_NS (100 * NSEC_PER_MSEC)
/* GETs are asked for so many at a time: each time is a record, a system call and a wake-up, at both
 * ends. */
#define ASK_AT_ONCE 4u
/* Fills that are refused, until another thread is let on this core. */
#define REFUSED_YIELD 64u
/* After a fill that failed for want of memory. */
#define REFILL_MS 100u

static bool is_retired(const struct bulk *b)
{
	const struct pull *p = b->pull;

	return b->index >= atomic_load(&p->streams) || atomic_load(&p->dismissed);
}

/*
 * The event that is in the way wakes the fault thread, which reads it. A VMM that discards page
 * after page leaves fills but a microsecond or two between one call and the next: who tries without
 * a pause meets them.
 */
static bool on_again(void *arg)
{
	struct bulk *b = arg;

	if (!(++b->refused % REFUSED_YIELD))
		sched_yield();
	return !atomic_load(&b->pull->stopping);
}

/* The fault thread will want to know when. */
static void on_woken(void *arg, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                     uint64_t mapped_ns)
{
	struct bulk *b = arg;

	brought_note(&pull_fault_thread_of(b->pull, region, first_unit)->brought, region,
	             first_unit, filled_ns, mapped_ns);
}

/* A part of a word is answered, or given up. With the last one the word is settled. */
static void settle(struct bulk *b, const struct scheduler_item *item, bool done)
{
	struct scheduler *s = b->pull->scheduler;
	bool more = false;

	b->redo |= !done;
	if (item->part)
		return;
	if (b->redo)
		scheduler_give_back(s, item);
	else
		more = scheduler_done(s, item);
	b->redo = false;
	/* Somebody waits for that. */
	if (more || (scheduler_is_held(s) && scheduler_is_idle(s)))
		pull_work_changed(b->pull);
}

/* Nothing more is asked for of the word that is being asked for in parts. */
static void end_word(struct bulk *b, bool done)
{
	struct scheduler_item *newest = window_newest(&b->window);

	b->rest.want_mask = 0;
	b->redo |= !done;
	if (newest)
		newest->part = false;
	else
		settle(b, &b->rest, true);
}

static void lose_connection(struct bulk *b, const char *why)
{
	struct pull *p = b->pull;
	struct scheduler_item item;
	struct conn *c = b->conn;

	if (b->rest.want_mask)
		end_word(b, false);
	while (window_drop(&b->window, &item)) {
		settle(b, &item, false);
		atomic_fetch_sub(&p->stats.bulk_in_flight, 1);
	}
	pthread_mutex_lock(&p->lock);
	b->conn = NULL;
	b->lost = true;
	pthread_mutex_unlock(&p->lock);
	conn_free(c);
	pull_work_changed(p);
	if (!atomic_load(&p->stopping))
		log_migration_warning(p->config.id, "bulk connection lost: %s", why);
}

/*
 * At once where the connection before has brought an answer, else after a pause that grows: a
 * source that lets us in and then closes is not dialled hundreds of times a second.
 */
static void dial(struct bulk *b)
{
	struct pull *p = b->pull;
	struct error err = ERROR_INIT;
	struct conn *c;
	int rc;

	pthread_mutex_lock(&p->lock);
	pull_back_off_locked(p, &b->retry_ms);
	pthread_mutex_unlock(&p->lock);
	if (atomic_load(&p->stopping) || is_retired(b))
		return;
	rc = pull_dial(p, &b->dialing, STREAM_BULK, &c, &err);
	if (rc) {
		log_migration_debug(p->config.id, "bulk connection: %s", err.text);
		return;
	}
	pthread_mutex_lock(&p->lock);
	b->conn = c;
	pthread_mutex_unlock(&p->lock);
	if (b->lost)
		stat_add(&p->stats.reconnects, 1);
}

/* The lowest @n bits of a mask, at most. */
static uint64_t lowest(uint64_t mask, unsigned int n)
{
	uint64_t rest = mask;

	while (n-- && rest)
		rest &= rest - 1;
	return mask & ~rest;
}

/*
 * What to ask for next, @units at most: of a word that is asked for in parts (under a cap they are
 * small), else of a new one. Return: false where nothing is left.
 */
static bool next_item(struct bulk *b, unsigned int units, struct scheduler_item *ret)
{
	struct pull *p = b->pull;
	struct scheduler_item *rest = &b->rest;

	if (rest->want_mask) {
		/* Without what faults have brought since. */
		rest->want_mask &= ~page_state_claimed(p->state, rest->region, rest->word);
		if (!rest->want_mask)
			end_word(b, true);
	}
	if (!rest->want_mask && !scheduler_next(p->scheduler, rest))
		return false;
	*ret = *rest;
	ret->want_mask = lowest(rest->want_mask, units);
	rest->want_mask &= ~ret->want_mask;
	ret->part = rest->want_mask;
	return true;
}

/* How many GETs may be in flight, by what came of late. */
static unsigned int window_max(struct bulk *b, uint64_t now_ns)
{
	uint64_t ns = now_ns - b->looked_ns;

	if (ns >= BULK_LOOK_NS) {
		b->window_max = window_wanted(b->bytes, ns, conn_min_rtt_us(b->conn));
		b->looked_ns = now_ns;
		b->bytes = 0;
	}
	return b->window_max;
}

/*
 * Fill the window, as far as there is work and the cap allows. Return: 0 or -errno;
 * *@ret_until_ns is when to ask again, 0 where it is not the cap that ended it: at a low one more
 * often than the cap allows more, so that what the thread waits for is told.
 */
static int ask(struct bulk *b, uint64_t *ret_until_ns)
{
	uint8_t tx[WINDOW_MAX * (FRAME_HEADER_BYTES + FRAME_GET_BYTES)];
	struct pull *p = b->pull;
	uint64_t now_ns = clock_now_ns();
	unsigned int max = window_max(b, now_ns);
	size_t len = 0;

	*ret_until_ns = 0;
	load_go_on(&b->load, now_ns);
	if (load_is_due(&b->load, now_ns))
		load_look(&b->load, &p->load, now_ns, thread_busy_ns(b->times_fd));
	if (b->rest.want_mask && scheduler_is_held(p->scheduler))
		end_word(b, false);
	if (b->window.n > max - ASK_AT_ONCE)
		return 0;
	while (b->window.n < max && atomic_load(&p->bulk_on) && !is_retired(b)) {
		unsigned int units = throttle_take(&p->throttle, now_ns, ret_until_ns);
		struct scheduler_item item = { 0 };

		if (!units)
			break;
		if (next_item(b, units, &item)) {
			len += window_ask(&b->window, &item, tx + len);
			stat_add(&p->stats.bulk_in_flight, 1);
		}
		throttle_give_back(&p->throttle,
		                   units - (unsigned int)__builtin_popcountll(item.want_mask));
		if (!item.want_mask) {
			if (atomic_load(&p->warm) && pull_warm_is_over(p))
				p->config.round(p->config.arg);
			break;
		}
	}
	if (*ret_until_ns) {
		load_capped(&b->load, now_ns);
		if (*ret_until_ns > now_ns + LOAD_LOOK_NS)
			*ret_until_ns = now_ns + LOAD_LOOK_NS;
	}
	if (!len)
		return 0;
	if (!stat_get(&p->stats.bulk_first_ns))
		atomic_store(&p->stats.bulk_first_ns, now_ns);
	return conn_send(b->conn, tx, len);
}

static void count(struct pull *p, const struct frame_pages *pages,
                  const struct scheduler_item *item, uint64_t filled, int rc)
{
	/* What could not be filled comes again by itself. */
	uint64_t twice = rc ? 0 : pages->data_mask & ~filled;
	uint64_t bytes = (uint64_t)__builtin_popcountll(pages->data_mask) * UNIT_BYTES;

	probe_bulk_filled(item->region, item->word, filled, bytes);
	stat_add(&p->stats.bulk_bytes, bytes);
	throttle_give_back(&p->throttle, (unsigned int)__builtin_popcountll(pages->zero_mask |
	                                                                    pages->error_mask));
	stat_add(&p->stats.bulk_twice, (uint64_t)__builtin_popcountll(twice));
	stat_add(&p->stats.bulk_by[item->why], (uint64_t)__builtin_popcountll(filled));
}

/* A guess: whether it was right will show in what is filled, if at all. Before it is. */
static bool begin_guess(struct pull *p, const struct scheduler_item *item)
{
	if (item->why == SCHEDULER_LINEAR || !resolver_shows_touch(&p->resolver, item->region))
		return false;
	guesses_note(&p->guesses, item->region, item->word, item->want_mask);
	return true;
}

static void end_guess(struct pull *p, const struct scheduler_item *item, uint64_t filled)
{
	guesses_drop(&p->guesses, item->region, item->word, item->want_mask & ~filled);
	stat_add(&p->stats.prefetch_watched, (uint64_t)__builtin_popcountll(filled));
}

/*
 * Have the fault thread fill it. Either it sees that this one waits, or this one that it takes
 * nothing any more.
 */
static int hand_over(struct bulk *b, const struct resolver_batch *batch, uint64_t *ret_filled)
{
	struct fault_thread *ft =
	        pull_fault_thread_of(b->pull, batch->region, batch->word * WORD_UNITS);
	unsigned int waits_for = ft->index + 1;
	uint64_t begin_ns = clock_now_ns();
	struct handed *h = &b->handed;

	h->batch = *batch;
	h->left = batch->data_mask | batch->zero_mask | batch->error_mask;
	h->done = 0;
	atomic_store(&h->waits_for, waits_for);
	/* While there is one it does not sleep. */
	if (!atomic_fetch_add(&ft->n_handed, 1))
		pull_wake_fault_thread(ft);
	if (atomic_load(&ft->refuses) &&
	    atomic_compare_exchange_strong(&h->waits_for, &waits_for, 0)) {
		atomic_fetch_sub(&ft->n_handed, 1);
		h->rc = -ECANCELED;
	} else {
		while (sem_wait(&h->filled))
			;
	}
	b->load.lent_ns += clock_now_ns() - begin_ns;
	*ret_filled = h->done;
	return h->rc;
}

static int fill_batch(struct bulk *b, const struct resolver_batch *batch, uint64_t *ret_filled)
{
	const struct region *region = &b->pull->config.table.regions[batch->region];
	uint64_t filled;
	int rc;

	if (region->memory != POSTCOPY_MEMORY_ANONYMOUS)
		return resolver_fill(&b->caller, batch, ret_filled);
	*ret_filled = 0;
	/* Whose it was may have changed meanwhile. */
	do {
		rc = hand_over(b, batch, &filled);
		*ret_filled |= filled;
	} while (rc == -EXDEV);
	return rc;
}

/* What a fill has come to. */
static void fill_done(struct bulk *b, const struct frame_pages *pages,
                      const struct scheduler_item *item, uint64_t filled, int rc)
{
	struct pull *p = b->pull;
	uint64_t now_ns = clock_now_ns();

	count(p, pages, item, filled, rc);
	pull_tell_poisoned(p, item, filled);
	arrival_note(&p->arrival, item->region, item->word, (uint64_t)__builtin_popcountll(filled),
	             false, now_ns);
	if (atomic_load(&p->fetching))
		pull_wake_fault_thread(&p->faults[0]);
	atomic_store_explicit(&p->stats.bulk_last_ns, now_ns, memory_order_relaxed);
	settle(b, item, !rc || rc == -ESRCH);
	if (!rc || rc == -ESRCH) {
		pull_check_complete(p);
		return;
	}
	if (rc != -ECANCELED)
		pull_note_failed(p, item->region, item->word * WORD_UNITS, rc);
	pthread_mutex_lock(&p->lock);
	pull_wait_locked(p, REFILL_MS);
	pthread_mutex_unlock(&p->lock);
}

/* While the guest runs at the source. What could not be had is left to the next generation. */
static void fill_hidden(struct bulk *b, const struct resolver_batch *batch,
                        const struct frame_pages *pages, const struct scheduler_item *item)
{
	struct pull *p = b->pull;
	uint64_t filled;
	int rc = prefill(&p->resolver, batch, &filled);

	count(p, pages, item, filled, rc);
	atomic_store_explicit(&p->stats.bulk_last_ns, clock_now_ns(), memory_order_relaxed);
	if (rc)
		log_migration_debug(p->config.id, "filling region %u, word %llu ahead: %s",
		                    item->region, (unsigned long long)item->word, strerror(-rc));
	settle(b, item, true);
}

static void fill(struct bulk *b, const struct frame_pages *pages, const struct scheduler_item *item,
                 const uint8_t *data)
{
	struct pull *p = b->pull;
	struct resolver_batch batch = {
		.region = item->region,
		.word = item->word,
		.data_mask = pages->data_mask,
		.zero_mask = pages->zero_mask,
		.error_mask = pages->error_mask,
		.data = data,
	};
	uint64_t filled;
	bool guess;
	int rc;

	if (atomic_load(&p->warm)) {
		fill_hidden(b, &batch, pages, item);
		return;
	}
	guess = begin_guess(p, item);
	rc = fill_batch(b, &batch, &filled);
	if (guess)
		end_guess(p, item, filled);
	fill_done(b, pages, item, filled, rc);
}

/* Return: 0, or -errno with @err set where the connection is of no more use. */
static int take_answer(struct bulk *b, struct error *err)
{
	struct scheduler_item item;
	struct frame_pages pages;
	struct frame_header h;
	const void *payload;
	int rc = conn_next_frame(b->conn, &h, &payload, err);

	if (rc == -EAGAIN)
		return error_set(err, -ETIMEDOUT, "the source is silent");
	if (!rc)
		rc = window_answer(&b->window, &h, payload, &pages, &item, err);
	if (rc)
		return rc;
	b->retry_ms = 0;
	b->bytes += h.payload_len;
	atomic_fetch_sub(&b->pull->stats.bulk_in_flight, 1);
	fill(b, &pages, &item, (const uint8_t *)payload + FRAME_PAGES_BYTES);
	return 0;
}

/*
 * Nothing to ask for: until a fault, a lost connection, or a switch changes that, or (where it
 * is not 0) until @until_ns. One that was taken back does not wait: it may hold a part of a word
 * that nobody else asks for.
 */
static void wait_for_work(const struct bulk *b, uint64_t seen, uint64_t until_ns)
{
	struct pull *p = b->pull;
	const struct timespec at = {
		.tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(until_ns % NSEC_PER_SEC),
	};
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	while (p->work == seen && !is_retired(b) && !atomic_load(&p->stopping) && rc != ETIMEDOUT)
		rc = until_ns ? pthread_cond_clockwait(&p->changed, &p->lock, CLOCK_MONOTONIC, &at)
		              : pthread_cond_wait(&p->changed, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

/* Whether an answer (or the connection's end) comes before there is more to ask for. */
static bool answer_comes(const struct bulk *b, uint64_t until_ns)
{
	struct pollfd fd = { .fd = b->conn->fd, .events = POLLIN };
	uint64_t now_ns = clock_now_ns();
	uint64_t ns = until_ns > now_ns ? until_ns - now_ns : 0;
	const struct timespec timeout = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	return tls_pending(b->conn->tls) || ppoll(&fd, 1, &timeout, NULL);
}

static uint64_t work_seen(struct pull *p)
{
	uint64_t work;

	pthread_mutex_lock(&p->lock);
	work = p->work;
	pthread_mutex_unlock(&p->lock);
	return work;
}

/* One turn. Return: 0, or -errno with @err set where the connection is of no more use. */
static int turn(struct bulk *b, struct error *err)
{
	uint64_t seen = work_seen(b->pull), until_ns;
	int rc = ask(b, &until_ns);

	if (rc)
		return error_errno(err, rc, "connection");
	/* In the time that the network takes. */
	if (atomic_load(&b->pull->maps) && !(b->window.n && answer_comes(b, 0)) &&
	    pull_map_ahead(b->pull, &b->caller))
		return 0;
	if (!b->window.n) {
		wait_for_work(b, seen, until_ns);
		/* Of the time in which there was nothing to do there is nothing to tell. */
		if (!until_ns)
			b->load = (struct load){ .looked_ns = 0 };
	} else if (!until_ns || answer_comes(b, until_ns)) {
		return take_answer(b, err);
	}
	return 0;
}

/*
 * The window is empty: give back what is left, and the connection. Return: false where the
 * thread is wanted again.
 */
static bool retire(struct bulk *b)
{
	struct pull *p = b->pull;
	struct conn *c = NULL;
	bool ended;

	if (b->rest.want_mask) {
		end_word(b, false);
		pull_work_changed(p);
	}
	pthread_mutex_lock(&p->lock);
	ended = b->ended = is_retired(b);
	if (ended)
		c = steal_ptr(&b->conn);
	pthread_mutex_unlock(&p->lock);
	conn_free(c);
	return ended;
}

void *bulk_main(void *arg)
{
	struct bulk *b = arg;
	struct pull *p = b->pull;

	thread_set_name("bulk");
	thread_prefer_throughput();
	/* Early, too: nothing is opened while it fetches. */
	b->times_fd = thread_open_times();
	b->load = (struct load){ .looked_ns = 0 };
	b->caller = (struct resolver_caller){
		.resolver = &p->resolver, .again = on_again, .woken = on_woken, .arg = b
	};
	/* It was had early, so that it can't fail to be had when the guest runs. */
	pthread_mutex_lock(&p->lock);
	while (!p->bulk_started && !is_retired(b) && !atomic_load(&p->stopping))
		pthread_cond_wait(&p->changed, &p->lock);
	pthread_mutex_unlock(&p->lock);
	while (!atomic_load(&p->stopping)) {
		struct error err = ERROR_INIT;

		if (is_retired(b) && !b->window.n) {
			if (retire(b))
				break;
		} else if (!b->conn) {
			dial(b);
		} else if (turn(b, &err)) {
			lose_connection(b, err.text);
		}
	}
	close_fd(&b->times_fd);
	return NULL;
}
