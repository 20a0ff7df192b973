/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bulk thread: keeps a window of GETs in flight on its connection and fills what comes.
 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/* Requests in flight on one connection: 8 of up to 256 KiB, 2 MiB. */
#define BULK_WINDOW 8u
/* After a fill that failed for want of memory. */
#define REFILL_MS 100u

/* The fault thread reads the event that is in the way. */
static void on_again(void *arg)
{
	struct bulk *b = arg;

	pull_wake_fault_thread(b->pull);
	sched_yield();
}

/* The fault thread will want to know when. */
static void on_woken(void *arg, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                     uint64_t mapped_ns)
{
	struct bulk *b = arg;

	brought_note(&b->pull->brought, region, first_unit, filled_ns, mapped_ns);
}

static void lose_connection(struct bulk *b, const char *why)
{
	struct pull *p = b->pull;
	struct scheduler_item item;
	struct conn *c = b->conn;

	while (window_drop(&b->window, &item)) {
		scheduler_give_back(p->scheduler, &item);
		atomic_fetch_sub(&p->stats.bulk_in_flight, 1);
	}
	pthread_mutex_lock(&p->lock);
	b->conn = NULL;
	pthread_mutex_unlock(&p->lock);
	conn_free(c);
	pull_work_changed(p);
	if (!atomic_load(&p->stopping))
		log_migration_warning(p->config.id, "bulk connection lost: %s", why);
}

static void dial(struct bulk *b, unsigned int *retry_ms)
{
	struct pull *p = b->pull;
	struct error err = ERROR_INIT;
	struct conn *c;
	int rc = pull_dial(p, STREAM_BULK, &c, &err);

	pthread_mutex_lock(&p->lock);
	if (!rc) {
		b->conn = c;
		*retry_ms = PULL_RETRY_MIN_MS;
	} else {
		pull_wait_locked(p, *retry_ms);
		*retry_ms = *retry_ms * 2 < PULL_RETRY_MAX_MS ? *retry_ms * 2 : PULL_RETRY_MAX_MS;
	}
	pthread_mutex_unlock(&p->lock);
	if (!rc)
		stat_add(&p->stats.reconnects, 1);
	else
		log_migration_debug(p->config.id, "bulk connection: %s", err.text);
}

/* Fill the window. Return: 0 or -errno. */
static int ask(struct bulk *b)
{
	uint8_t tx[BULK_WINDOW * (FRAME_HEADER_BYTES + FRAME_GET_BYTES)];
	struct pull *p = b->pull;
	struct scheduler_item item;
	size_t len = 0;

	while (b->window.n < BULK_WINDOW && atomic_load(&p->bulk_on) &&
	       scheduler_next(p->scheduler, &item)) {
		len += window_ask(&b->window, &item, tx + len);
		stat_add(&p->stats.bulk_in_flight, 1);
	}
	if (!len)
		return 0;
	if (!stat_get(&p->stats.bulk_first_ns))
		atomic_store(&p->stats.bulk_first_ns, clock_now_ns());
	return conn_send(b->conn, tx, len);
}

static void count(struct pull *p, const struct frame_pages *pages,
                  const struct scheduler_item *item, uint64_t filled)
{
	uint64_t wasted = pages->data_mask & ~filled;

	stat_add(&p->stats.bulk_bytes,
	         (uint64_t)__builtin_popcountll(pages->data_mask) * UNIT_BYTES);
	stat_add(&p->stats.prefetch_wasted, (uint64_t)__builtin_popcountll(wasted));
	if (item->prefetch)
		stat_add(&p->stats.prefetch_hit, (uint64_t)__builtin_popcountll(filled));
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
		.data = data,
	};
	uint64_t filled;
	int rc = resolver_fill(&b->caller, &batch, &filled);

	count(p, pages, item, filled);
	if (atomic_load(&p->fetching))
		pull_wake_fault_thread(p);
	atomic_store_explicit(&p->stats.bulk_last_ns, clock_now_ns(), memory_order_relaxed);
	if (!rc || rc == -ESRCH) {
		scheduler_done(p->scheduler, item);
		pull_check_complete(p);
		return;
	}
	scheduler_give_back(p->scheduler, item);
	log_migration_error(p->config.id, "filling region %u, word %llu: %s; trying again",
	                    item->region, (unsigned long long)item->word, strerror(-rc));
	pthread_mutex_lock(&p->lock);
	pull_wait_locked(p, REFILL_MS);
	pthread_mutex_unlock(&p->lock);
}

/* Return: 0, or -errno with @err set where the connection is of no more use. */
static int take_answer(struct bulk *b, struct error *err)
{
	struct scheduler_item item;
	struct frame_pages pages;
	struct frame_header h;
	const void *payload;
	int rc = conn_next_frame(b->conn, &h, &payload, err);

	if (!rc)
		rc = window_answer(&b->window, &h, payload, &pages, &item, err);
	if (rc)
		return rc;
	atomic_fetch_sub(&b->pull->stats.bulk_in_flight, 1);
	fill(b, &pages, &item, (const uint8_t *)payload + FRAME_PAGES_BYTES);
	return 0;
}

/* Nothing to ask for: until a fault, a lost connection, or a switch changes that. */
static void wait_for_work(struct pull *p, uint64_t seen)
{
	pthread_mutex_lock(&p->lock);
	while (p->work == seen && !atomic_load(&p->stopping))
		pthread_cond_wait(&p->changed, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

static uint64_t work_seen(struct pull *p)
{
	uint64_t work;

	pthread_mutex_lock(&p->lock);
	work = p->work;
	pthread_mutex_unlock(&p->lock);
	return work;
}

void *bulk_main(void *arg)
{
	struct bulk *b = arg;
	struct pull *p = b->pull;
	unsigned int retry_ms = PULL_RETRY_MIN_MS;

	thread_set_name("bulk");
	thread_prefer_throughput();
	b->caller = (struct resolver_caller){
		.resolver = &p->resolver, .again = on_again, .woken = on_woken, .arg = b
	};
	while (!atomic_load(&p->stopping)) {
		struct error err = ERROR_INIT;
		uint64_t seen = work_seen(p);
		int rc;

		if (!b->conn) {
			dial(b, &retry_ms);
			continue;
		}
		rc = ask(b);
		if (rc)
			error_errno(&err, rc, "connection");
		else if (b->window.n)
			rc = take_answer(b, &err);
		else
			wait_for_work(p, seen);
		if (rc)
			lose_connection(b, err.text);
	}
	return NULL;
}
