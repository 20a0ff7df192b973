/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fault thread: from an event of its userfaultfd to the vCPU running again.
 *
 * One round: wait for an event, an answer, or news from the pull; read all events into
 * the fault table; ask for what is new; take all answers that are there. Events come
 * before answers, so that a request is on its way while answers are being filled in.
 */
#include "fault/pull_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fault/uffd.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/probes.h"
#include "util/thread.h"

/* GETs one fault may have in flight: more would put a 1 GiB page in front of a 4 KiB one. */
#define GETS_PER_FAULT 8u
/* GETs in flight up to which pages are asked for that only the VMM asks for: faults have the rest.
 */
#define FETCHED_WINDOW (WINDOW_MAX / 2)
/* What is always waited for: userfaultfd, urgent connection, wake-up. */
#define FDS_FIXED 3
/* After each event or answer, how long the next is waited for awake. */
#define SPIN_NS (50 * NSEC_PER_USEC)
/* What bulk has brought is filled so many units at a time, between one look for faults and the
 * next.
 */
#define HANDED_UNITS 16u
/* Between two tries to fill where the memory could not be had, or somebody else claims it. */
#define REFILL_MS 100
/* With nothing else to do: how often the connection is looked at; and when it is asked. */
#define ALIVE_LOOK_MS 500
#define PING_MS 2000u

static const struct region *region_of(const struct fault_thread *ft, const struct fault *f)
{
	return &ft->pull->config.table.regions[f->region];
}

static void on_pagefault(void *arg, const struct uffd_msg *msg, uint64_t now_ns)
{
	struct fault_thread *ft = arg;
	struct pull *p = ft->pull;
	uint64_t addr = msg->arg.pagefault.address;
	const struct addrmap_piece *piece = addrmap_find(&ft->shard->addrmap, addr);
	struct fault *f;
	uint64_t unit;

	stat_add(&p->stats.faults, 1);
	if (!piece) {
		/* Unmapped between the fault and here: nobody waits for it any more. */
		log_migration_debug(p->config.id, "fault outside of guest memory");
		return;
	}
	unit = (piece->offset + (addr - piece->host_addr)) >> UNIT_SHIFT;
	unit -= unit % region_units_per_page(&p->config.table.regions[piece->region]);
	f = fault_table_find(&ft->table, piece->region, unit);
	if (f) {
		/* What nobody had waited for may have been held back for others. */
		ft->came_late |= !f->waited;
		f->waited = true;
		stat_add(&p->stats.faults_coalesced, 1);
		return;
	}
	if (fault_table_full(&ft->table)) {
		ft->table.left_out = true;
		return;
	}
	ft->came_late = true;
	f = fault_table_add(&ft->table, piece->region, unit, 0);
	f->record.read_ns = now_ns;
	f->record.addr = addr & ~(p->config.table.regions[piece->region].page_size - 1);
	/* 0 where the VMM has not asked for UFFD_FEATURE_THREAD_ID. */
	f->record.tid = msg->arg.pagefault.feat.ptid;
	probe_fault_read(f->record.addr, f->record.tid);
}

static void read_events(struct fault_thread *ft)
{
	struct pull *p = ft->pull;

	/* What is discarded here somebody may fetch there. */
	if (events_read(&ft->events, on_pagefault, ft) && ft->index && atomic_load(&p->fetching))
		pull_wake_fault_thread(&p->faults[0]);
}

/* There is room again: who found none raises its event anew, as others do who have an entry. */
static void bring_back_left_out(struct fault_thread *ft)
{
	if (!ft->table.left_out || ft->table.n > FAULT_TABLE_MAX - FAULT_TABLE_ROOM)
		return;
	/* First: what is left out from here on comes after. */
	ft->table.left_out = false;
	resolver_wake_all(ft->shard);
}

static bool on_again(void *arg)
{
	struct fault_thread *ft = arg;

	read_events(ft);
	return !atomic_load(&ft->pull->stopping);
}

static void begin_listening(struct fault_thread *ft)
{
	ft->heard_ns = clock_now_ns();
	ft->due_ns = 0;
	ft->pinged = ft->answered = false;
}

static void lose_connection(struct fault_thread *ft, const char *why)
{
	struct urgent *u = &ft->urgent;
	struct pull *p = ft->pull;
	struct scheduler_item item;
	struct conn *c = ft->conn;

	while (window_drop(&ft->window, &item))
		;
	pthread_mutex_lock(&p->lock);
	ft->conn = NULL;
	u->lost = true;
	if (ft->answered || !u->lost_ns)
		u->lost_ns = clock_now_ns();
	u->dials_failed = 0;
	snprintf(u->stall, sizeof u->stall, "%s", why);
	u->useful = ft->answered;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	conn_free(c);
	if (atomic_load(&p->stopping))
		return;
	for (unsigned int i = 0; i < ft->table.n; i++) {
		struct fault *f = &ft->table.faults[i];

		f->next_unit = f->first_unit;
		f->asked = 0;
		/* To be asked again: until then it waits for a connection. */
		f->record.asked_ns = f->record.sent_ns = f->record.received_ns = 0;
	}
	log_migration_warning(p->config.id, "urgent connection lost: %s", why);
	p->config.connection(p->config.arg);
}

/* resolver_fill() has woken who waited for the page that is being filled. */
static void on_woken(void *arg, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                     uint64_t mapped_ns)
{
	struct fault_thread *ft = arg;

	(void)region;
	(void)first_unit;
	ft->filled_ns = filled_ns;
	ft->mapped_ns = mapped_ns;
}

/* The same for what a bulk thread has brought. */
static void on_bulk_woken(void *arg, uint32_t region, uint64_t first_unit, uint64_t filled_ns,
                          uint64_t mapped_ns)
{
	struct fault_thread *ft = arg;

	brought_note(&ft->brought, region, first_unit, filled_ns, mapped_ns);
}

/* The bulk thread goes on. */
static void give_back_handed(struct fault_thread *ft, struct handed *h, int rc)
{
	h->rc = rc;
	atomic_fetch_sub(&ft->n_handed, 1);
	sem_post(&h->filled);
}

/* One that waits, in turn; or NULL. */
static struct handed *next_handed(struct fault_thread *ft)
{
	struct pull *p = ft->pull;

	if (!atomic_load(&ft->n_handed))
		return NULL;
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++) {
		struct handed *h = &p->bulks[ft->next_handed++ % PULL_STREAMS_MAX].handed;

		if (atomic_load(&h->waits_for) == ft->index + 1)
			return h;
	}
	return NULL;
}

/* The units of @h->left that are filled next, as a batch. */
static struct resolver_batch next_part(const struct handed *h)
{
	unsigned int first = (unsigned int)__builtin_ctzll(h->left) / HANDED_UNITS * HANDED_UNITS;
	uint64_t part = ((1ull << HANDED_UNITS) - 1) << first;
	uint64_t before = h->batch.data_mask & ((1ull << first) - 1);
	struct resolver_batch b = h->batch;

	b.data_mask &= part;
	b.zero_mask &= part;
	b.error_mask &= part;
	b.data += (size_t)__builtin_popcountll(before) * UNIT_BYTES;
	return b;
}

/* Fill a part of what a bulk thread has handed over. */
static void fill_handed(struct fault_thread *ft)
{
	struct handed *h = next_handed(ft);
	uint64_t filled = 0;
	int rc = 0;

	if (!h)
		return;
	if (pull_fault_thread_of(ft->pull, h->batch.region, h->batch.word * WORD_UNITS) != ft) {
		rc = -EXDEV;
	} else if (h->left) {
		struct resolver_batch part = next_part(h);

		rc = resolver_fill(&ft->bulk_caller, &part, &filled);
		h->left &= ~(part.data_mask | part.zero_mask | part.error_mask);
		h->done |= filled;
	}
	if (h->left && !rc)
		return;
	atomic_store(&h->waits_for, 0);
	give_back_handed(ft, h, rc);
}

/* What has one writer at a time. Return: whether end_note() is due. */
static bool begin_note(struct pull *p)
{
	bool others = pull_n_faults(p) > 1;

	if (others)
		pthread_mutex_lock(&p->notes_lock);
	return others;
}

static void end_note(struct pull *p, bool begun)
{
	if (begun)
		pthread_mutex_unlock(&p->notes_lock);
}

static void count_remote(struct pull_stats *stats, const struct fault_record *r)
{
	bool bulk = r->flags & FAULT_DURING_BULK;
	struct fault_durations d;

	fault_record_durations(r, &d);
	histogram_add(bulk ? &stats->fault_bulk_ns : &stats->fault_idle_ns, d.total_ns);
	for (unsigned int i = 0; i < FAULT_PHASES; i++)
		histogram_add(&stats->fault_phase_ns[i], d.ns[i]);
	fault_ring_add(stats->records, r);
	fault_sample_add(&stats->sample, r);
}

/* The guest has touched the page: where it was fetched by a guess, that was right. */
static void judge_guess(struct fault_thread *ft, const struct fault *f)
{
	struct pull *p = ft->pull;
	uint64_t n;

	/* What its VMM asks for ahead nobody has touched. */
	if (!f->waited)
		return;
	n = guesses_take(&p->guesses, f->region, f->first_unit,
	                 region_units_per_page(region_of(ft, f)));
	stat_add(f->record.flags & FAULT_MINOR ? &p->stats.prefetch_hit : &p->stats.prefetch_missed,
	         n);
}

/* Its vCPU runs: count the fault and forget it. */
static void finish(struct fault_thread *ft, struct fault *f)
{
	struct pull_stats *stats = &ft->pull->stats;
	const struct fault_record *r = &f->record;
	uint64_t total_ns = fault_record_total_ns(r);
	bool slow = total_ns >= stat_get(&stats->slow_fault_ns), begun;

	judge_guess(ft, f);
	begun = begin_note(ft->pull);
	/* Before it is counted: who sees the count finds the record. */
	fault_slow_add(&stats->slow, r);
	if (slow)
		stat_add(&stats->faults_slow, 1);
	if (!(r->flags & FAULT_MINOR)) {
		count_remote(stats, r);
	} else {
		histogram_add(&stats->fault_minor_ns, total_ns);
		if (slow)
			fault_ring_add(stats->records, r);
	}
	end_note(ft->pull, begun);
	probe_fault_mapped(r->addr, r->tid, total_ns, r->flags);
	fault_table_remove(&ft->table, f);
}

/*
 * When it ended, where a bulk thread has brought the page and woken the vCPU: not now, when this
 * thread gets to know it. Return: false where no bulk thread has.
 */
static bool take_note(struct fault_thread *ft, struct fault *f)
{
	struct fault_record *r = &f->record;
	uint64_t filled_ns, mapped_ns;

	if (!brought_take(&ft->brought, f->region, f->first_unit, &filled_ns, &mapped_ns) ||
	    mapped_ns < r->read_ns)
		return false;
	r->flags |= FAULT_BROUGHT;
	r->filled_ns = filled_ns;
	r->mapped_ns = mapped_ns;
	if (!r->asked_ns)
		r->asked_ns = r->sent_ns = filled_ns;
	if (!r->received_ns || r->received_ns > filled_ns)
		r->received_ns = filled_ns;
	return true;
}

/*
 * The page is all there: have its vCPUs run again and forget the fault.
 * Return: false where it can't be mapped now: the fault stays and is looked at again.
 */
static bool resolve(struct fault_thread *ft, struct fault *f)
{
	int rc = resolver_map_page(&ft->caller, f->region, f->first_unit);

	if (rc == -ECANCELED)
		return false;
	if (rc && rc != -ESRCH) {
		pull_note_failed(ft->pull, f->region, f->first_unit, rc);
		ft->look_again = true;
		return false;
	}
	if ((f->record.flags & FAULT_MINOR) || !take_note(ft, f))
		f->record.mapped_ns = clock_now_ns();
	finish(ft, f);
	return true;
}

/* Nobody has looked at the fault yet: what kind it is. */
static void look_first(struct fault_thread *ft, struct fault *f, bool present)
{
	struct pull *p = ft->pull;
	uint64_t word = f->first_unit / WORD_UNITS;
	bool begun;

	f->seen = true;
	/* Others were counted when their event was read. */
	if (region_table_is_asked(&p->config.table))
		stat_add(&p->stats.faults, 1);
	if (stat_get(&p->stats.bulk_in_flight))
		f->record.flags |= FAULT_DURING_BULK;
	if (present) {
		f->record.flags |= FAULT_MINOR;
		stat_add(&p->stats.faults_minor, 1);
		return;
	}
	stat_add(&p->stats.faults_remote, 1);
	if (scheduler_is_asked(p->scheduler, f->region, word))
		stat_add(&p->stats.prefetch_late, 1);
	begun = begin_note(p);
	scheduler_note_fault(p->scheduler, f->region, f->first_unit, f->record.tid);
	end_note(p, begun);
}

/* The units of a fault's page in the word of its next_unit. */
static uint64_t page_units_in_word(const struct fault *f, uint64_t per_page)
{
	return per_page >= WORD_UNITS ? UINT64_MAX : 1ull << (f->first_unit % WORD_UNITS);
}

static bool may_ask(const struct fault_thread *ft, const struct fault *f)
{
	return ft->window.n < (f->waited ? WINDOW_MAX : FETCHED_WINDOW);
}

/*
 * Encode the GETs that a fault still needs, as far as the window takes them. A unit that
 * bulk has asked for, or even claimed, is asked for all the same: its answer may
 * be far behind.
 */
static size_t ask_for(struct fault_thread *ft, struct fault *f, uint8_t *tx)
{
	struct page_state *state = ft->pull->state;
	uint64_t per_page = region_units_per_page(region_of(ft, f));
	uint64_t end = f->first_unit + per_page;
	size_t len = 0;

	while (f->next_unit < end && f->asked < GETS_PER_FAULT && may_ask(ft, f)) {
		struct scheduler_item item = {
			.region = f->region,
			.word = f->next_unit / WORD_UNITS,
		};

		item.want_mask = page_units_in_word(f, per_page) &
		                 ~page_state_present(state, item.region, item.word);
		f->next_unit = per_page >= WORD_UNITS ? f->next_unit + WORD_UNITS : end;
		if (!item.want_mask)
			continue;
		len += window_ask(&ft->window, &item, tx + len);
		stat_add(&ft->pull->stats.fault_units,
		         (uint64_t)__builtin_popcountll(item.want_mask));
		f->asked++;
	}
	return len;
}

/*
 * All of the fault's page was asked for and answered, and yet some of it is not there: it could
 * not be filled, and is asked for again after a while. Or another thread has claimed it: that one
 * maps it and wakes the vCPU, so there is nothing to do, least of all to wait for it, for it may
 * wait for us to read an event; but it may have to give up.
 */
static void come_back_later(struct fault_thread *ft, struct fault *f)
{
	ft->look_again = true;
	if (clock_now_ns() > f->record.received_ns + REFILL_MS * NSEC_PER_MSEC)
		f->next_unit = f->first_unit;
}

/*
 * Resolve the fault, or ask for more of it.
 * Return: how much was encoded at @tx; *@ret_gone where the fault is resolved, and another one
 * in its place.
 */
static size_t serve(struct fault_thread *ft, struct fault *f, uint8_t *tx, bool *ret_gone)
{
	uint64_t end = f->first_unit + region_units_per_page(region_of(ft, f));
	struct page_state *state = ft->pull->state;
	bool present = !f->asked && page_state_want(state, f->region, f->first_unit);
	size_t len = 0;

	*ret_gone = false;
	if (!f->seen)
		look_first(ft, f, present);
	if (!present && ft->conn && may_ask(ft, f))
		len = ask_for(ft, f, tx);
	if (f->asked)
		return len;
	/* It may have arrived while it was being asked for. */
	if (present || page_state_page_present(state, f->region, f->first_unit))
		*ret_gone = resolve(ft, f);
	else if (f->next_unit == end)
		come_back_later(ft, f);
	return len;
}

/* The GETs have gone out: stamp the faults that they are for. */
static void stamp_sent(struct fault_thread *ft, uint64_t asked_ns)
{
	uint64_t sent_ns = clock_now_ns();

	for (unsigned int i = 0; i < ft->table.n; i++) {
		struct fault *f = &ft->table.faults[i];

		if (!f->asked || f->record.asked_ns)
			continue;
		f->record.asked_ns = asked_ns;
		f->record.sent_ns = sent_ns;
		probe_fault_asked(f->record.addr, f->region, f->first_unit);
	}
}

/* Those that are waited for, or the others. Return: how much was encoded at @tx. */
static size_t serve_rank(struct fault_thread *ft, bool waited, uint8_t *tx)
{
	size_t len = 0;

	for (unsigned int i = 0; i < ft->table.n;) {
		struct fault *f = &ft->table.faults[i];
		bool gone = false;

		if (f->waited == waited)
			len += serve(ft, f, tx + len, &gone);
		if (!gone)
			i++;
	}
	return len;
}

/* Look at each fault that has something to do: what the VMM asks for ahead comes last. */
static void serve_faults(struct fault_thread *ft)
{
	uint8_t tx[WINDOW_MAX * (FRAME_HEADER_BYTES + FRAME_GET_BYTES)];
	uint64_t asked_ns;
	size_t len = serve_rank(ft, true, tx);
	int rc;

	if (ft->table.n_fetched)
		len += serve_rank(ft, false, tx + len);
	if (!len)
		return;
	asked_ns = clock_now_ns();
	rc = conn_send(ft->conn, tx, len);
	if (rc)
		lose_connection(ft, strerror(-rc));
	else
		stamp_sent(ft, asked_ns);
	if (!ft->due_ns)
		ft->due_ns = asked_ns;
}

/* One answer: fill it, and where that makes its page whole the vCPUs run. */
static void take_answer(struct fault_thread *ft, const struct frame_pages *pages,
                        const struct scheduler_item *item, const uint8_t *data)
{
	struct pull *p = ft->pull;
	uint64_t per_page = region_units_per_page(&p->config.table.regions[item->region]);
	uint64_t unit = item->word * WORD_UNITS + (uint64_t)__builtin_ctzll(item->want_mask);
	struct fault *f = fault_table_find(&ft->table, item->region, unit - unit % per_page);
	struct resolver_batch batch = {
		.region = item->region,
		.word = item->word,
		.data_mask = pages->data_mask,
		.zero_mask = pages->zero_mask,
		.error_mask = pages->error_mask,
		.data = data,
		.for_fault = !f || !(f->record.flags & FAULT_FETCHED),
	};
	uint64_t received_ns = clock_now_ns(), filled;
	int rc;

	/* It was asked for before there were several threads: it is another's to ask for. */
	if (pull_fault_thread_of(p, item->region, unit) != ft)
		return;
	if (f)
		probe_fault_answered(f->record.addr, f->region, f->first_unit);
	ft->filled_ns = ft->mapped_ns = 0;
	rc = resolver_fill(&ft->caller, &batch, &filled);
	if (ft->index && atomic_load(&p->fetching))
		pull_wake_fault_thread(&p->faults[0]);
	arrival_note(&p->arrival, item->region, item->word, (uint64_t)__builtin_popcountll(filled),
	             true, received_ns);
	pull_tell_poisoned(p, item, filled);
	if (region_table_is_asked(&p->config.table))
		for (uint64_t lost = pages->error_mask & ~filled; lost; lost &= lost - 1)
			fetch_table_lose(&ft->fetches, item->region,
			                 item->word * WORD_UNITS + (uint64_t)__builtin_ctzll(lost));
	if (rc && rc != -ESRCH && rc != -ECANCELED)
		pull_note_failed(p, item->region, unit, rc);
	if (!f)
		return;
	f->asked--;
	f->record.received_ns = received_ns;
	if (rc || f->asked || !page_state_page_present(p->state, f->region, f->first_unit))
		return;
	if (ft->mapped_ns) {
		/* resolver_fill() has mapped it: it was wanted. */
		f->record.filled_ns = ft->filled_ns;
		f->record.mapped_ns = ft->mapped_ns;
		finish(ft, f);
	} else {
		resolve(ft, f);
	}
}

/* Those that are here: TLS may have some that poll() doesn't know of. */
static void read_answers(struct fault_thread *ft)
{
	struct error err = ERROR_INIT;
	int rc = 0;

	while (ft->conn && !rc && (ft->has_answers || tls_pending(ft->conn->tls))) {
		struct scheduler_item item;
		struct frame_pages pages;
		struct frame_header h;
		const void *payload;

		ft->has_answers = false;
		rc = conn_next_frame(ft->conn, &h, &payload, &err);
		if (!rc && h.type == FRAME_PONG && ft->pinged) {
			ft->pinged = false;
			ft->answered = true;
			continue;
		}
		if (!rc)
			rc = window_answer(&ft->window, &h, payload, &pages, &item, &err);
		if (!rc) {
			ft->answered = true;
			take_answer(ft, &pages, &item,
			            (const uint8_t *)payload + FRAME_PAGES_BYTES);
		}
	}
	if (ft->conn && rc && rc != -EAGAIN)
		lose_connection(ft, err.text);
	if (!ft->window.n && !ft->pinged)
		ft->due_ns = 0;
}

static void divide(struct fault_thread *ft, unsigned int n)
{
	struct pull *p = ft->pull;

	pull_divide_now(ft, n);
	pthread_mutex_lock(&p->lock);
	p->divide_into = 0;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/* What others have left for this thread: a new urgent connection, a new fetch channel. */
static void take_deliveries(struct fault_thread *ft)
{
	struct pull *p = ft->pull;
	int channels[FETCH_CHANNELS_MAX];
	unsigned int n, divide_into;

	pthread_mutex_lock(&p->lock);
	if (!ft->conn && ft->urgent.ready) {
		ft->conn = steal_ptr(&ft->urgent.ready);
		begin_listening(ft);
	}
	n = ft->index ? 0 : p->n_channels_new;
	memcpy(channels, p->channels_new, n * sizeof *channels);
	p->n_channels_new -= n;
	divide_into = ft->index ? 0 : p->divide_into;
	pthread_mutex_unlock(&p->lock);
	if (divide_into)
		divide(ft, divide_into);
	for (unsigned int i = 0; i < n; i++)
		if (fetch_table_add_channel(&ft->fetches, channels[i]))
			log_migration_warning(p->config.id, "more than %u fetch channels",
			                      FETCH_CHANNELS_MAX);
}

/* Wait for something to do. Return: whether somebody has left something for us. */
static bool wait_for_news(struct fault_thread *ft)
{
	struct pull *p = ft->pull;
	bool fetch_room = fetch_table_has_room(&ft->fetches);
	struct pollfd fds[FDS_FIXED + FETCH_CHANNELS_MAX] = {
		{ .fd = ft->shard->uffd, .events = POLLIN },
		{ .fd = ft->conn ? ft->conn->fd : -1, .events = POLLIN },
		{ .fd = ft->wake_fd, .events = POLLIN },
	};
	unsigned int n = ft->fetches.n_channels;
	bool handed = atomic_load(&ft->n_handed);
	uint64_t drained;

	for (unsigned int i = 0; i < n; i++)
		fds[FDS_FIXED + i] =
		        (struct pollfd){ .fd = fetch_room ? ft->fetches.channels[i] : -1,
			                 .events = POLLIN };
	/* Beside bulk all cores are awake anyway, and busy. */
	thread_spin_poll(&ft->spin, fds, FDS_FIXED + n,
	                 handed || ft->came_late || stat_get(&p->stats.bulk_in_flight) ? 0
	                                                                               : SPIN_NS,
	                 handed || ft->came_late ? 0
	                 : ft->look_again        ? REFILL_MS
	                 : ft->conn              ? ALIVE_LOOK_MS
	                                         : -1);
	if (fds[0].revents & POLLERR)
		uffd_set_nonblocking(ft->shard->uffd);
	if (fds[1].revents)
		ft->heard_ns = clock_now_ns();
	ft->has_events = fds[0].revents;
	ft->has_answers = fds[1].revents;
	ft->look_again = false;
	for (unsigned int i = 0; i < n; i++)
		if (fds[FDS_FIXED + i].revents)
			fetch_table_read(&ft->fetches, i, &p->config.table);
	if (!fds[2].revents)
		return false;
	(void)!read(ft->wake_fd, &drained, sizeof drained);
	return true;
}

static void serve_fetches(struct fault_thread *ft)
{
	struct pull *p = ft->pull;
	uint64_t discarded;

	if (!ft->fetches.n)
		return;
	/* Before looking: a fill that comes after the look wakes us again. */
	atomic_store(&p->fetching, true);
	discarded = fetch_table_serve(&ft->fetches, &p->config.table, p->state, &ft->table,
	                              clock_now_ns());
	stat_add(&p->stats.fill_zero, discarded);
	/* Somebody may wait there for what is zero now. */
	for (unsigned int i = 1; i < pull_n_faults(p) && discarded; i++)
		pull_wake_fault_thread(&p->faults[i]);
	if (!ft->fetches.n)
		atomic_store(&p->fetching, false);
}

/*
 * A peer that is gone, or a network that swallows all, is found in seconds, also where nothing is
 * being said: then it is asked for a sign of life. Bytes count as one, however slowly they come.
 */
static void check_alive(struct fault_thread *ft)
{
	uint64_t now_ns = clock_now_ns();
	uint64_t since_ns = ft->heard_ns > ft->due_ns ? ft->heard_ns : ft->due_ns;
	int rc;

	if (!ft->conn)
		return;
	if (ft->due_ns && now_ns - since_ns > PULL_SILENT_MS * NSEC_PER_MSEC) {
		atomic_store(&ft->silent, true);
		lose_connection(ft, atomic_load(&ft->small_only)
		                            ? "full-size packets from the source do not get "
		                              "through: path MTU (a firewall that drops ICMP?)"
		                            : "the source is silent");
		return;
	}
	if (ft->due_ns || now_ns - ft->heard_ns < PING_MS * NSEC_PER_MSEC)
		return;
	rc = conn_send_plain(ft->conn, FRAME_PING);
	if (rc) {
		lose_connection(ft, strerror(-rc));
		return;
	}
	ft->pinged = true;
	ft->due_ns = now_ns;
}

/*
 * Everything is there, and nobody waits for answers any more: faults that still had one to come
 * had their pages from bulk. Counted like the others, or they would be missing in the histograms.
 */
static void finish_brought(struct fault_thread *ft)
{
	unsigned int i = ft->table.n;

	while (i--)
		resolve(ft, &ft->table.faults[i]);
}

/* What bulk threads wait for is not done any more. */
static void refuse_handed(struct fault_thread *ft)
{
	struct pull *p = ft->pull;

	atomic_store(&ft->refuses, true);
	for (unsigned int i = 0; i < PULL_STREAMS_MAX; i++) {
		struct handed *h = &p->bulks[i].handed;
		unsigned int waits_for = ft->index + 1;

		if (atomic_compare_exchange_strong(&h->waits_for, &waits_for, 0))
			give_back_handed(ft, h, -ECANCELED);
	}
}

static void say(struct pull *p, bool *what)
{
	pthread_mutex_lock(&p->lock);
	*what = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

/*
 * Nothing is asked for or filled any more. But who changes its mappings still waits for its event
 * to be read: to the very end, or the end of the watching.
 */
static void only_read_events(struct fault_thread *ft)
{
	struct pull *p = ft->pull;
	struct pollfd fds[] = {
		{ .fd = ft->shard->uffd, .events = POLLIN },
		{ .fd = ft->wake_fd, .events = POLLIN },
	};
	uint64_t drained;

	refuse_handed(ft);
	say(p, &ft->only_reads);
	while (!atomic_load(&ft->done)) {
		(void)poll(fds, 2, -1);
		if (fds[0].revents & POLLERR)
			uffd_set_nonblocking(ft->shard->uffd);
		if (fds[1].revents)
			(void)!read(ft->wake_fd, &drained, sizeof drained);
		read_events(ft);
	}
	say(p, &ft->ends);
}

/* Return: false where it is not wanted after all. */
static bool wait_to_begin(struct fault_thread *ft)
{
	struct pull *p = ft->pull;
	bool may;

	pthread_mutex_lock(&p->lock);
	while (!ft->may_begin && !atomic_load(&ft->done))
		pthread_cond_wait(&p->changed, &p->lock);
	may = ft->may_begin;
	pthread_mutex_unlock(&p->lock);
	return may;
}

void *fault_thread_main(void *arg)
{
	struct fault_thread *ft = arg;
	struct pull *p = ft->pull;

	if (!wait_to_begin(ft))
		return NULL;
	thread_set_name("fault");
	thread_prefer_latency();
	events_reader_begin();
	ft->caller = (struct resolver_caller){
		.resolver = &p->resolver, .again = on_again, .woken = on_woken, .arg = ft
	};
	ft->bulk_caller = ft->caller;
	ft->bulk_caller.woken = on_bulk_woken;
	begin_listening(ft);
	while (!atomic_load(&p->stopping)) {
		if (wait_for_news(ft))
			take_deliveries(ft);
		check_alive(ft);
		/* What comes from here on the next poll() tells of: each look is a system call. */
		if (ft->has_events)
			read_events(ft);
		serve_fetches(ft);
		pull_take_mail(ft);
		if (ft->table.n)
			serve_faults(ft);
		read_answers(ft);
		pull_check_complete(p);
		serve_fetches(ft);
		/* The answers have made room in the window: nothing else would wake us to use it.
		 */
		ft->came_late =
		        atomic_load(&ft->mail.waits) && !fault_table_fetched_full(&ft->table);
		if (ft->table.n)
			serve_faults(ft);
		bring_back_left_out(ft);
		fill_handed(ft);
	}
	only_read_events(ft);
	if (page_state_missing(p->state)) {
		fetch_table_close(&ft->fetches);
	} else {
		finish_brought(ft);
		serve_fetches(ft); /* what was poisoned is not to be taken for here */
		fetch_table_finish(&ft->fetches);
	}
	return NULL;
}
