/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/page_source.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/crypto.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/thread.h"

/* After an urgent answer, how long the next request is waited for awake. */
#define SPIN_NS (100 * NSEC_PER_USEC)
/* Bulk that was served so lately is still going on. */
#define BULK_RECENT_NS (10 * NSEC_PER_MSEC)

#define PAGES_HEAD (FRAME_HEADER_BYTES + FRAME_PAGES_BYTES)

/* In the order in which a migration goes through them; the owner moves it. */
enum source_phase {
	SOURCE_RUNNING,   /* the guest runs: nothing is read */
	SOURCE_SWITCHING, /* the owner was asked to pause it */
	SOURCE_PAUSED,    /* vmstate and memory may be read */
};

struct page_source {
	/* Set at birth, read by all threads. */
	char id[MIGRATION_ID_MAX + 1];
	uint8_t token[TOKEN_BYTES];
	uint64_t epoch;
	struct region_table table;
	struct memory *memories[REGIONS_MAX];
	struct poison_list *poisoned; /* set before the guest is paused; NULL: none */
	const struct page_source_ops *ops;
	void *arg;

	atomic_uint refs;
	atomic_uint controls; /* control connections that are open */
	atomic_bool readable;
	_Atomic uint64_t last_bulk_ns; /* when bulk was last answered */
	struct page_source_stats stats;

	/* Under the lock; changed is broadcast with every change. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum source_phase phase;
	bool withdrawn;
	bool acknowledged;    /* the owner has taken COMPLETE or ABORT */
	bool resumed;         /* the guest has run at the destination: no way back */
	struct error refused; /* code is 0 unless the last request to pause failed */
	int vmstate_fd;
	uint64_t vmstate_len;
	uint64_t pause_ns;
};

int page_source_new(const char *id, const uint8_t token[TOKEN_BYTES],
                    const struct region_table *table, struct memory **memories,
                    const struct page_source_ops *ops, void *arg, struct page_source **ret,
                    struct error *err)
{
	struct page_source *s = calloc(1, sizeof *s);

	if (!s)
		return error_set(err, -ENOMEM, "page source: out of memory");
	if (getrandom(&s->epoch, sizeof s->epoch, 0) != sizeof s->epoch) {
		free(s);
		return error_errno(err, -errno, "page source: getrandom");
	}
	snprintf(s->id, sizeof s->id, "%s", id);
	memcpy(s->token, token, TOKEN_BYTES);
	s->table = *table;
	for (uint32_t i = 0; i < table->n; i++)
		s->memories[i] = memories[i];
	s->ops = ops;
	s->arg = arg;
	s->vmstate_fd = -1;
	atomic_init(&s->refs, 1);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	*ret = s;
	return 0;
}

struct page_source *page_source_ref(struct page_source *s)
{
	atomic_fetch_add(&s->refs, 1);
	return s;
}

struct page_source *page_source_unref(struct page_source *s)
{
	if (!s || atomic_fetch_sub(&s->refs, 1) != 1)
		return NULL;
	for (uint32_t i = 0; i < s->table.n; i++)
		memory_free(s->memories[i]);
	poison_list_free(s->poisoned);
	close_fd(&s->vmstate_fd);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	OPENSSL_cleanse(s->token, sizeof s->token);
	free(s);
	return NULL;
}

const char *page_source_id(const struct page_source *s)
{
	return s->id;
}

const struct page_source_stats *page_source_stats(const struct page_source *s)
{
	return &s->stats;
}

void page_source_set_poisoned(struct page_source *s, struct poison_list *list)
{
	poison_list_free(s->poisoned);
	s->poisoned = list;
}

bool page_source_is_connected(const struct page_source *s)
{
	return atomic_load(&s->controls);
}

/* News for the owner, who may be gone once it has withdrawn the source. */
static void tell(struct page_source *s, void (*op)(void *arg))
{
	pthread_mutex_lock(&s->lock);
	if (!s->withdrawn)
		op(s->arg);
	pthread_mutex_unlock(&s->lock);
}

bool page_source_is_idle(const struct page_source *s)
{
	return atomic_load(&s->refs) == 1;
}

void page_source_set_vmstate(struct page_source *s, int fd, uint64_t len, uint64_t pause_ns)
{
	pthread_mutex_lock(&s->lock);
	close_fd(&s->vmstate_fd);
	s->vmstate_fd = fd;
	s->vmstate_len = len;
	s->pause_ns = pause_ns;
	s->phase = SOURCE_PAUSED;
	atomic_store(&s->readable, true);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_refuse(struct page_source *s, const struct error *why)
{
	pthread_mutex_lock(&s->lock);
	s->refused = *why;
	s->phase = SOURCE_RUNNING;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_acknowledge(struct page_source *s)
{
	pthread_mutex_lock(&s->lock);
	s->acknowledged = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_restore(struct page_source *s, uint64_t epoch, bool resumed)
{
	s->epoch = epoch;
	s->resumed = resumed;
}

uint64_t page_source_epoch(const struct page_source *s)
{
	return s->epoch;
}

/* Until the owner has taken the last news: what is acknowledged must outlive this process. */
static int wait_acknowledged(struct page_source *s, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	while (!s->acknowledged && !s->withdrawn)
		pthread_cond_wait(&s->changed, &s->lock);
	if (!s->acknowledged)
		rc = error_set(err, -ECONNRESET, "migration \"%s\": the source's daemon is ending",
		               s->id);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

void page_source_withdraw(struct page_source *s)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->readable, false);
	s->withdrawn = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

int page_source_open(struct page_source *s, const struct hello *hello, struct hello_reply *reply,
                     struct error *err)
{
	*reply = (struct hello_reply){ .epoch = s->epoch };
	if (CRYPTO_memcmp(hello->token, s->token, TOKEN_BYTES))
		return error_set(err, -EACCES, "migration \"%s\": unknown here, or wrong token",
		                 s->id);
	if (hello->role == STREAM_CONTROL) {
		reply->regions = s->table;
		return region_table_same_guest(&s->table, &hello->regions, err);
	}
	if (hello->epoch != s->epoch)
		return error_set(
		        err, -ESTALE,
		        "migration \"%s\": the source guest was attached anew, start again", s->id);
	return 0;
}

static int check_get(const struct page_source *s, const struct frame_get *get, struct error *err)
{
	const struct region *r;
	uint64_t word = get->first_unit / WORD_UNITS;

	if (!atomic_load(&s->readable))
		return error_set(err, -EPROTO,
		                 "migration \"%s\": GET while the guest is not paused", s->id);
	if (get->region >= s->table.n)
		return error_set(err, -EPROTO, "GET of region %u, there are %u", get->region,
		                 s->table.n);
	r = &s->table.regions[get->region];
	if (word >= r->words || get->want_mask & ~region_word_mask(r, word))
		return error_set(err, -EPROTO,
		                 "GET of region %u, units %llu, mask %#llx: beyond its %llu units",
		                 get->region, (unsigned long long)get->first_unit,
		                 (unsigned long long)get->want_mask, (unsigned long long)r->units);
	return 0;
}

static bool unit_is_zero(const uint8_t *unit)
{
	const uint64_t *w = (const uint64_t *)unit;

	for (size_t i = 0; i < UNIT_BYTES / sizeof *w; i += 8)
		if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] |
		    w[i + 7])
			return false;
	return true;
}

/* What is wrong with the memory itself, not with this try to read it. */
static bool is_lost(int rc)
{
	return rc == -EIO || rc == -EFAULT || rc == -EHWPOISON;
}

/*
 * @n units from @first of a word on. Where not all of them can be read they are read one by one,
 * so that one bad page costs no other. Return: 0, the bad ones in *@lost; or -errno.
 */
static int read_run(struct page_source *s, const struct frame_get *get, unsigned int first,
                    unsigned int n, uint8_t *data, uint64_t *lost)
{
	struct memory *m = s->memories[get->region];
	int rc = memory_read(m, (get->first_unit + first) << UNIT_SHIFT,
	                     data + (size_t)first * UNIT_BYTES, (size_t)n * UNIT_BYTES);

	if (!is_lost(rc))
		return rc;
	for (unsigned int i = first; i < first + n; i++) {
		rc = n == 1 ? rc
		            : memory_read(m, (get->first_unit + i) << UNIT_SHIFT,
		                          data + (size_t)i * UNIT_BYTES, UNIT_BYTES);
		if (is_lost(rc))
			*lost |= 1ull << i;
		else if (rc)
			return rc;
	}
	return 0;
}

/* The wanted units, read run by run, at their places in @data. Those that can't be: in *@lost. */
static int read_units(struct page_source *s, const struct frame_get *get, uint8_t *data,
                      uint64_t *lost, struct error *err)
{
	uint64_t left;

	/* Poison lies in the VMM's mapping: its memory's descriptor reads as zeroes there. */
	*lost = get->want_mask &
	        poison_list_mask(s->poisoned, get->region, get->first_unit / WORD_UNITS);
	left = get->want_mask & ~*lost;
	while (left) {
		unsigned int first = (unsigned int)__builtin_ctzll(left);
		uint64_t rest = ~(left >> first);
		unsigned int n = rest ? (unsigned int)__builtin_ctzll(rest) : WORD_UNITS;
		int rc;

		if (n > WORD_UNITS - first)
			n = WORD_UNITS - first;
		rc = read_run(s, get, first, n, data, lost);
		if (rc)
			return error_errno(err, rc, "migration \"%s\": reading region %u at %#llx",
			                   s->id, get->region,
			                   (unsigned long long)(get->first_unit + first)
			                           << UNIT_SHIFT);
		left = n + first < WORD_UNITS ? left & (UINT64_MAX << (n + first)) : 0;
	}
	return 0;
}

/*
 * Sort the units that were read into zero ones and others, the others moved together.
 * Return: the bytes of data.
 */
static size_t pack_units(uint64_t want, uint8_t *data, struct frame_pages *pages)
{
	uint8_t *to = data;

	for (uint64_t left = want; left; left &= left - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(left);
		uint8_t *unit = data + (size_t)i * UNIT_BYTES;

		if (unit_is_zero(unit)) {
			pages->zero_mask |= 1ull << i;
			continue;
		}
		pages->data_mask |= 1ull << i;
		if (to != unit)
			memcpy(to, unit, UNIT_BYTES);
		to += UNIT_BYTES;
	}
	return (size_t)(to - data);
}

static void count_answer(struct page_source_stats *stats, const struct frame_pages *pages,
                         size_t bytes)
{
	uint64_t data = (uint64_t)__builtin_popcountll(pages->data_mask);
	uint64_t zero = (uint64_t)__builtin_popcountll(pages->zero_mask);
	uint64_t lost = (uint64_t)__builtin_popcountll(pages->error_mask);

	atomic_fetch_add_explicit(&stats->requests, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->pages, data, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->zero_pages, zero, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->unreadable_pages, lost, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->bytes, bytes, memory_order_relaxed);
}

/* @tx: PAGES_HEAD bytes, then room for a word. */
static int answer_get(struct page_source *s, struct conn *c, uint64_t request_id,
                      const struct frame_get *get, uint8_t *tx, struct error *err)
{
	struct frame_pages pages = { .region = get->region, .first_unit = get->first_unit };
	size_t len;
	int rc = read_units(s, get, tx + PAGES_HEAD, &pages.error_mask, err);

	if (rc)
		return rc;
	len = pack_units(get->want_mask & ~pages.error_mask, tx + PAGES_HEAD, &pages);
	frame_pages_encode(&pages, request_id, tx);
	/* Before it is sent: who has the answer finds it counted. */
	count_answer(&s->stats, &pages, PAGES_HEAD + len);
	rc = conn_send(c, tx, PAGES_HEAD + len);
	return rc ? error_errno(err, rc, "connection") : 0;
}

/*
 * Faults come in storms: after an urgent answer the next request is waited for awake, but not
 * while bulk needs the cores.
 */
static void wait_for_fault(struct page_source *s, struct conn *c)
{
	uint64_t idle_ns =
	        clock_now_ns() - atomic_load_explicit(&s->last_bulk_ns, memory_order_relaxed);

	if (!tls_pending(c->tls) && idle_ns > BULK_RECENT_NS)
		thread_spin_poll(&(struct pollfd){ .fd = c->fd, .events = POLLIN }, 1, SPIN_NS, 0);
}

/* The next GET; who asks for a sign of life meanwhile, or for large packets, gets them. */
static int next_get(struct conn *c, struct frame_header *h, const void **payload, struct error *err)
{
	int rc;

	while (!(rc = conn_next_frame(c, h, payload, err)) &&
	       (h->type == FRAME_PING || h->type == FRAME_PROBE)) {
		rc = h->type == FRAME_PING ? conn_send_plain(c, FRAME_PONG) : conn_answer_probe(c);
		if (rc)
			return error_errno(err, rc, "connection: PONG");
	}
	if (!rc && h->type == FRAME_ERROR)
		return frame_error_decode(h, *payload, err);
	if (!rc && h->type != FRAME_GET)
		return error_set(err, -EPROTO, "frame of type %u where %u must come", h->type,
		                 FRAME_GET);
	return rc;
}

static int serve_pages(struct page_source *s, struct conn *c, enum stream_role role,
                       struct error *err)
{
	/* Aligned so that the data behind the header is aligned for the zero scan. */
	_cleanup_free_ uint8_t *tx = aligned_alloc(64, (FRAME_PAGES_MAX + 63) / 64 * 64);
	struct frame_header h;
	struct frame_get get;
	const void *payload;
	int rc;

	if (!tx)
		return error_set(err, -ENOMEM, "connection: out of memory");
	do {
		rc = next_get(c, &h, &payload, err);
		if (!rc)
			rc = frame_get_decode(payload, &get, err);
		if (!rc)
			rc = check_get(s, &get, err);
		if (!rc)
			rc = answer_get(s, c, h.request_id, &get, tx, err);
		if (!rc && role == STREAM_URGENT)
			wait_for_fault(s, c);
		else
			atomic_store_explicit(&s->last_bulk_ns, clock_now_ns(),
			                      memory_order_relaxed);
	} while (!rc);
	return rc;
}
_Static_assert(PAGES_HEAD % sizeof(uint64_t) == 0, "the data in a PAGES frame is aligned");

/*
 * Have the owner pause the guest, unless that was done (a connection before this one), and
 * wait for the vmstate. Return: 0, or why there is none.
 */
static int wait_vmstate(struct page_source *s, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	if (s->phase == SOURCE_RUNNING && !s->withdrawn) {
		s->phase = SOURCE_SWITCHING;
		s->refused = ERROR_INIT;
		s->ops->switchover(s->arg);
	}
	while (s->phase == SOURCE_SWITCHING && !s->withdrawn)
		pthread_cond_wait(&s->changed, &s->lock);
	if (s->refused.code)
		rc = error_set(err, s->refused.code, "%s", s->refused.text);
	else if (s->withdrawn)
		rc = error_set(err, -ECANCELED, "migration \"%s\": cancelled at the source", s->id);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int send_vmstate(struct page_source *s, struct conn *c, uint64_t received_ns,
                        struct error *err)
{
	_cleanup_free_ uint8_t *tx = malloc(FRAME_HEADER_BYTES + FRAME_VMSTATE_DATA_MAX);
	struct frame_vmstate head = { .len = s->vmstate_len, .pause_ns = s->pause_ns };
	uint64_t sent = 0;
	int rc;

	if (!tx)
		return error_set(err, -ENOMEM, "connection: out of memory");
	head.held_ns = clock_now_ns() - received_ns;
	rc = conn_send(c, tx, frame_vmstate_encode(&head, tx));
	while (!rc && sent < s->vmstate_len) {
		struct frame_header h = { .type = FRAME_VMSTATE_DATA };
		uint64_t left = s->vmstate_len - sent;
		ssize_t n;

		h.payload_len =
		        left < FRAME_VMSTATE_DATA_MAX ? (uint32_t)left : FRAME_VMSTATE_DATA_MAX;
		n = pread(s->vmstate_fd, tx + FRAME_HEADER_BYTES, h.payload_len, (off_t)sent);
		if (n <= 0)
			return error_set(err, -EIO, "vmstate: can't be read at %llu",
			                 (unsigned long long)sent);
		h.payload_len = (uint32_t)n;
		frame_header_encode(&h, tx);
		rc = conn_send(c, tx, FRAME_HEADER_BYTES + (size_t)n);
		sent += (uint64_t)n;
	}
	return rc ? error_errno(err, rc, "connection: vmstate") : 0;
}

/* The fence: who has said that the guest ran there can't say that it did not. */
static int abort_source(struct page_source *s, struct error *err)
{
	bool resumed;

	pthread_mutex_lock(&s->lock);
	resumed = s->resumed;
	if (!resumed)
		atomic_store(&s->readable, false);
	pthread_mutex_unlock(&s->lock);
	if (resumed)
		return error_set(err, -EPROTO,
		                 "migration \"%s\": ABORT after the guest ran at the destination",
		                 s->id);
	tell(s, s->ops->aborted);
	return 0;
}

/* A destination that asks for a sign of life hears it, or that there is nothing here any more. */
static int answer_ping(struct page_source *s, struct conn *c, struct error *err)
{
	bool withdrawn;
	int rc;

	pthread_mutex_lock(&s->lock);
	withdrawn = s->withdrawn;
	pthread_mutex_unlock(&s->lock);
	if (withdrawn)
		return error_set(err, -ECANCELED, "migration \"%s\": given up at the source",
		                 s->id);
	rc = conn_send_plain(c, FRAME_PONG);
	return rc ? error_errno(err, rc, "connection: PONG") : 0;
}

static int serve_control_frame(struct page_source *s, struct conn *c, const struct frame_header *h,
                               struct error *err)
{
	uint64_t received_ns = clock_now_ns();
	int rc;

	switch (h->type) {
	case FRAME_SWITCHOVER:
		rc = wait_vmstate(s, err);
		return rc ? rc : send_vmstate(s, c, received_ns, err);
	case FRAME_PING:
		return answer_ping(s, c, err);
	case FRAME_PROBE:
		rc = conn_answer_probe(c);
		return rc ? error_errno(err, rc, "connection: PROBE_REPLY") : 0;
	case FRAME_RESUMED:
		pthread_mutex_lock(&s->lock);
		s->resumed = true;
		pthread_mutex_unlock(&s->lock);
		tell(s, s->ops->resumed);
		return 0;
	case FRAME_COMPLETE:
		if (!atomic_load(&s->readable))
			break;
		tell(s, s->ops->complete);
		rc = wait_acknowledged(s, err);
		if (rc)
			return rc;
		rc = conn_send_plain(c, FRAME_COMPLETE_ACK);
		return rc ? error_errno(err, rc, "connection: COMPLETE_ACK") : 0;
	case FRAME_ABORT:
		rc = abort_source(s, err);
		if (!rc)
			rc = wait_acknowledged(s, err);
		if (rc)
			return rc;
		rc = conn_send_plain(c, FRAME_ABORT_ACK);
		return rc ? error_errno(err, rc, "connection: ABORT_ACK") : 0;
	default:
		break;
	}
	return error_set(err, -EPROTO, "frame of type %u is not for a control connection now",
	                 h->type);
}

static int serve_control(struct page_source *s, struct conn *c, struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc;

	atomic_fetch_add(&s->controls, 1);
	tell(s, s->ops->connected);
	do {
		rc = conn_next_frame(c, &h, &payload, err);
		if (!rc)
			rc = serve_control_frame(s, c, &h, err);
	} while (!rc);
	atomic_fetch_sub(&s->controls, 1);
	tell(s, s->ops->connected);
	return rc;
}

int page_source_serve(struct page_source *s, struct conn *c, enum stream_role role,
                      struct error *err)
{
	if (role == STREAM_CONTROL)
		return serve_control(s, c, err);
	return serve_pages(s, c, role, err);
}
