/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/page_source.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/crypto.h>

#include "stream/source_log.h"
#include "stream/throttle.h"
#include "tls/names.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/thread.h"

/* After an urgent answer, how long the next request is waited for awake. */
#define SPIN_NS (100 * NSEC_PER_USEC)
/* Bulk that was served so lately is still going on. */
#define BULK_RECENT_NS (10 * NSEC_PER_MSEC)
/* How often a destination hears from us while the VMM pauses. */
#define PAUSING_SIGN_MS 1000

/*
 * However small its share, an answer of bulk waits no longer for it: a destination takes who owes
 * it one and is silent for 5 s for dead. It is sent unpaid then: of 256 KiB that makes 128 KiB/s a
 * connection, below which no share holds it. It is looked so often whether the share is another.
 */
#define SHARE_WAIT_MS 2000u
#define SHARE_LOOK_MS 50u

#define PAGES_HEAD (FRAME_HEADER_BYTES + FRAME_PAGES_BYTES)
/* Answers to faults that are asked for together go out together, as far as one record takes them.
 */
#define GATHER_BYTES (16u << 10)

/* In the order in which a migration goes through them; the owner moves it. */
enum source_phase {
	SOURCE_RUNNING, /* the guest runs: its memory is read only while what it writes is logged */
	SOURCE_SWITCHING, /* the owner was asked to pause it */
	SOURCE_PAUSED,    /* vmstate and memory may be read */
	SOURCE_ENDED,     /* the verdict stands */
};

struct page_source {
	/* Set at birth, read by all threads. */
	char id[MIGRATION_ID_MAX + 1];
	char peer[TLS_NAME_PATTERN_BYTES]; /* the name that a destination must have; empty: any */
	uint64_t epoch;
	struct region_table table;
	struct memory *memories[REGIONS_MAX];
	/* Set once, before the guest is paused; connections may read by then. NULL: none. */
	struct poison_list *_Atomic poisoned;
	const struct page_source_ops *ops;
	void *arg;

	atomic_uint refs;
	atomic_uint controls;             /* control connections that are open */
	_Atomic uint64_t holder_heard_ns; /* the holder's last frame of control; 0: none yet */
	atomic_bool readable;
	atomic_bool lost;              /* the memory went with its VMM: nothing will ever be read */
	_Atomic uint64_t last_bulk_ns; /* when bulk was last answered */
	struct page_source_stats stats;
	struct throttle throttle; /* bulk's share of what leaves this host */
	struct source_log log;    /* of what the guest writes */

	/* Under the lock; changed is broadcast with every change. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint8_t token[TOKEN_BYTES];
	enum source_phase phase;
	bool withdrawn;
	bool aborted;                   /* by one who held nothing: nobody will */
	char abort_why[ERROR_TEXT_MAX]; /* what the first that said so gave for it; empty: nothing
	                                 */
	/* From SWITCHING on, and never another; read without the lock while readable. */
	struct stream_holder holder;
	bool resumed; /* the guest has run at the holder's: no way back by its word */
	struct stream_holder visitor;               /* the last that was let in */
	char visitor_version[DAEMON_VERSION_BYTES]; /* what it runs, as it has said */
	struct page_source_conn *list;              /* connections, from HELLO to end */
	/* ENDED. */
	enum source_verdict verdict;
	char why[ERROR_TEXT_MAX];
	int vmstate_fd;
	uint64_t vmstate_len;
	uint64_t pause_ns;
	/* SWITCHING: what there is of it by now; -1: nothing is told */
	int ahead_fd;
	uint64_t ahead_len;
};

static void on_log_order(void *arg);

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
	s->vmstate_fd = s->ahead_fd = -1;
	atomic_init(&s->refs, 1);
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	throttle_init(&s->throttle, 0);
	source_log_init(&s->log, on_log_order, s);
	*ret = s;
	return 0;
}

int page_source_new_ended(const char *id, const uint8_t token[TOKEN_BYTES], uint64_t epoch,
                          const struct stream_holder *holder, enum source_verdict verdict,
                          const char *why, struct page_source **ret, struct error *err)
{
	/* There is no owner to be told anything. */
	static const struct page_source_ops nobody = { 0 };
	const struct region_table none = { 0 };
	int rc = page_source_new(id, token, &none, NULL, &nobody, NULL, ret, err);

	if (rc)
		return rc;
	page_source_restore(*ret, epoch, holder, false);
	page_source_end(*ret, verdict, why);
	page_source_withdraw(*ret);
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
	poison_list_free(atomic_load(&s->poisoned));
	source_log_deinit(&s->log);
	throttle_deinit(&s->throttle);
	close_fd(&s->vmstate_fd);
	close_fd(&s->ahead_fd);
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

bool page_source_has_ended(struct page_source *s)
{
	bool ended;

	pthread_mutex_lock(&s->lock);
	ended = s->phase == SOURCE_ENDED;
	pthread_mutex_unlock(&s->lock);
	return ended;
}

/* Under the lock. */
static bool has_control(const struct page_source *s)
{
	for (const struct page_source_conn *pc = s->list; pc; pc = pc->next)
		if (pc->control)
			return true;
	return false;
}

bool page_source_is_taken(struct page_source *s)
{
	bool taken;

	pthread_mutex_lock(&s->lock);
	taken = s->phase != SOURCE_ENDED && (s->holder.bound || has_control(s));
	pthread_mutex_unlock(&s->lock);
	return taken;
}

int page_source_set_token(struct page_source *s, const uint8_t token[TOKEN_BYTES])
{
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	if (s->phase == SOURCE_RUNNING && !has_control(s)) {
		memcpy(s->token, token, TOKEN_BYTES);
		/* They came by the one before. */
		for (struct page_source_conn *pc = s->list; pc; pc = pc->next)
			conn_shutdown(pc->conn);
	} else {
		rc = -EBUSY;
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static void copy_token(struct page_source *s, uint8_t ret[TOKEN_BYTES])
{
	pthread_mutex_lock(&s->lock);
	memcpy(ret, s->token, TOKEN_BYTES);
	pthread_mutex_unlock(&s->lock);
}

/* Who means one attachment hears of that one; who means any, of what is offered. */
int page_source_fit(struct page_source *s, const struct hello *hello, const struct tls *tls)
{
	uint8_t token[TOKEN_BYTES];
	int rc;

	copy_token(s, token);
	rc = hello_check_proof(hello, tls, HELLO_DESTINATION, token, hello->proof);
	OPENSSL_cleanse(token, sizeof token);
	if (rc)
		return rc;
	if (hello->epoch == s->epoch)
		return 3;
	return page_source_has_ended(s) ? 1 : 2;
}

size_t page_source_prove(struct page_source *s, const struct hello *hello, const struct tls *tls,
                         void *buf)
{
	uint8_t token[TOKEN_BYTES], proof[PROOF_BYTES];
	int rc;

	copy_token(s, token);
	rc = hello_prove(hello, tls, HELLO_SOURCE, token, proof);
	OPENSSL_cleanse(token, sizeof token);
	return rc ? 0 : frame_proof_encode(proof, buf);
}

const struct page_source_stats *page_source_stats(const struct page_source *s)
{
	return &s->stats;
}

uint64_t page_source_holder_heard_ns(const struct page_source *s)
{
	return atomic_load(&s->holder_heard_ns);
}

void page_source_set_peer(struct page_source *s, const char *pattern)
{
	snprintf(s->peer, sizeof s->peer, "%s", pattern);
}

void page_source_set_poisoned(struct page_source *s, struct poison_list *list)
{
	atomic_store(&s->poisoned, list);
}

bool page_source_is_connected(const struct page_source *s)
{
	return atomic_load(&s->controls);
}

void page_source_get_visitor(struct page_source *s, struct stream_holder *ret)
{
	pthread_mutex_lock(&s->lock);
	*ret = s->visitor;
	pthread_mutex_unlock(&s->lock);
}

void page_source_set_visitor(struct page_source *s, const struct stream_holder *visitor)
{
	s->visitor = *visitor;
}

bool page_source_has_visited(struct page_source *s, const uint8_t holder[HOLDER_BYTES])
{
	struct stream_holder visitor;

	page_source_get_visitor(s, &visitor);
	return visitor.bound && !memcmp(visitor.id, holder, HOLDER_BYTES);
}

void page_source_set_share(struct page_source *s, uint64_t bytes_per_s)
{
	throttle_set_share(&s->throttle, bytes_per_s, clock_now_ns());
}

bool page_source_was_held(struct page_source *s)
{
	return throttle_was_held(&s->throttle);
}

/* News for the owner, who may be gone once it has withdrawn the source. */
static void tell(struct page_source *s, void (*op)(void *arg))
{
	pthread_mutex_lock(&s->lock);
	if (!s->withdrawn)
		op(s->arg);
	pthread_mutex_unlock(&s->lock);
}

static void on_log_order(void *arg)
{
	struct page_source *s = arg;

	if (s->ops->log)
		tell(s, s->ops->log);
}

int page_source_set_log(struct page_source *s, struct dirty_log *log, const char *none)
{
	return source_log_set(&s->log, log, none);
}

void page_source_get_log_order(struct page_source *s, struct source_log_order *ret)
{
	source_log_get_order(&s->log, ret);
}

void page_source_answer_log(struct page_source *s, uint64_t number, int code, const char *text)
{
	source_log_answer(&s->log, number, code, text);
}

bool page_source_is_warm(struct page_source *s)
{
	return source_log_is_warm(&s->log);
}

void page_source_lose_log(struct page_source *s)
{
	source_log_lose(&s->log);
}

void page_source_restore_log(struct page_source *s, bool warm)
{
	source_log_restore(&s->log, warm);
}

static void stop_log(struct page_source *s)
{
	source_log_stop(&s->log);
	page_source_unref(s);
}

static void *stop_log_main(void *arg)
{
	thread_set_name("stop-log");
	thread_prefer_promptness();
	stop_log(arg);
	return NULL;
}

void page_source_stop_log(struct page_source *s)
{
	if (!source_log_is_kernels(&s->log))
		return;
	if (thread_start_detached(stop_log_main, page_source_ref(s)))
		stop_log(s);
}

bool page_source_is_idle(const struct page_source *s)
{
	return atomic_load(&s->refs) == 1;
}

void page_source_set_ahead(struct page_source *s, int fd, uint64_t len)
{
	pthread_mutex_lock(&s->lock);
	close_fd(&s->ahead_fd);
	s->ahead_fd = fd;
	s->ahead_len = len;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_set_vmstate(struct page_source *s, int fd, uint64_t len, uint64_t pause_ns)
{
	pthread_mutex_lock(&s->lock);
	close_fd(&s->ahead_fd);
	close_fd(&s->vmstate_fd);
	s->vmstate_fd = fd;
	s->vmstate_len = len;
	s->pause_ns = pause_ns;
	s->phase = SOURCE_PAUSED;
	atomic_store(&s->readable, true);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_end(struct page_source *s, enum source_verdict verdict, const char *why)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->readable, false);
	s->phase = SOURCE_ENDED;
	s->verdict = verdict;
	snprintf(s->why, sizeof s->why, "%s", why);
	source_log_end(&s->log);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void page_source_restore(struct page_source *s, uint64_t epoch, const struct stream_holder *holder,
                         bool resumed)
{
	s->epoch = epoch;
	s->holder = *holder;
	s->resumed = resumed;
}

void page_source_get_holder(struct page_source *s, struct stream_holder *ret)
{
	pthread_mutex_lock(&s->lock);
	*ret = s->holder;
	pthread_mutex_unlock(&s->lock);
}

void page_source_get_visitor_version(struct page_source *s, char ret[DAEMON_VERSION_BYTES])
{
	pthread_mutex_lock(&s->lock);
	strcpy(ret, s->visitor_version);
	pthread_mutex_unlock(&s->lock);
}

void stream_holder_hex(const struct stream_holder *h, char buf[STREAM_HOLDER_HEX_MAX])
{
	*buf = 0;
	for (size_t i = 0; h->bound && i < sizeof h->id; i++)
		snprintf(buf + 2 * i, 3, "%02x", h->id[i]);
}

void stream_holder_print(const struct stream_holder *h, char buf[STREAM_HOLDER_TEXT_MAX])
{
	snprintf(buf, STREAM_HOLDER_TEXT_MAX, "%02x%02x%02x%02x (%s)", h->id[0], h->id[1], h->id[2],
	         h->id[3], h->name);
}

uint64_t page_source_epoch(const struct page_source *s)
{
	return s->epoch;
}

/* It has ended otherwise than the peer thinks, or it asks for what there is no more of. */
static int say_ended(const struct page_source *s, struct error *err)
{
	bool runs_on = s->verdict == SOURCE_RUNS_ON;

	return error_set(err, runs_on ? -EKEYREVOKED : -ESHUTDOWN,
	                 "migration \"%s\" has ended at the source, %s%s%s", s->id,
	                 runs_on ? "where its guest stays" : "which has let go of its guest",
	                 *s->why ? ": " : "", s->why);
}

/*
 * Until the owner has taken the last news: what is acknowledged must outlive this process.
 * Return: 0 where it has ended so.
 */
static int wait_ended(struct page_source *s, enum source_verdict as, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	while (s->phase != SOURCE_ENDED && !s->withdrawn)
		pthread_cond_wait(&s->changed, &s->lock);
	if (s->phase != SOURCE_ENDED)
		rc = error_set(err, -ECONNRESET, "migration \"%s\": the source's daemon is ending",
		               s->id);
	else if (s->verdict != as)
		rc = say_ended(s, err);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

void page_source_withdraw(struct page_source *s)
{
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->readable, false);
	s->withdrawn = true;
	source_log_end(&s->log);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static bool is_holder(const struct page_source *s, const uint8_t holder[HOLDER_BYTES])
{
	return s->holder.bound && !memcmp(s->holder.id, holder, HOLDER_BYTES);
}

/* Under the lock. Nobody but its holder has a say in a migration that has one. */
static int check_holder(const struct page_source *s, const uint8_t holder[HOLDER_BYTES],
                        struct error *err)
{
	char text[STREAM_HOLDER_TEXT_MAX];

	if (!s->holder.bound || is_holder(s, holder))
		return 0;
	stream_holder_print(&s->holder, text);
	return error_set(err, -EBUSY,
	                 "migration \"%s\" is held by another destination, %s, since it asked for "
	                 "switchover",
	                 s->id, text);
}

/* Under the lock. What has ended answers only who was there before, and only to its last words. */
static int check_attachment(const struct page_source *s, const struct hello *hello,
                            struct error *err)
{
	bool any = hello->role == STREAM_CONTROL && !hello->epoch;

	if (!any && hello->epoch != s->epoch)
		return error_set(
		        err, -ESTALE,
		        "migration \"%s\": the source guest was attached anew, start again", s->id);
	if (s->phase == SOURCE_ENDED && (any || hello->role != STREAM_CONTROL))
		return say_ended(s, err);
	/* Refused at the door: who could connect would take the source for one that answers. */
	if (atomic_load(&s->lost) && hello->role != STREAM_CONTROL)
		return error_set(err, -ESHUTDOWN,
		                 "migration \"%s\": the source VMM is gone, and its anonymous "
		                 "memory with it: no page of it will come any more",
		                 s->id);
	return 0;
}

/*
 * Under the lock. A destination that dials anew has left what it had before: words that are still
 * on their way there are not to be taken for its present mind, be it let in now or not.
 */
static void supersede(struct page_source *s, const uint8_t holder[HOLDER_BYTES])
{
	for (struct page_source_conn *ctl = s->list; ctl; ctl = ctl->next)
		if (ctl->control && !ctl->superseded &&
		    !memcmp(ctl->holder, holder, HOLDER_BYTES)) {
			ctl->superseded = true;
			conn_shutdown(ctl->conn);
		}
}

void page_source_close(struct page_source *s, struct page_source_conn *ctl)
{
	pthread_mutex_lock(&s->lock);
	for (struct page_source_conn **at = &s->list; *at; at = &(*at)->next)
		if (*at == ctl) {
			*at = ctl->next;
			break;
		}
	pthread_mutex_unlock(&s->lock);
}

/* Under the lock. The token may be another since page_source_fit(): then it was for nobody. */
static int check_token(const struct page_source *s, const struct hello *hello,
                       const struct tls *tls, struct error *err)
{
	int rc = hello_check_proof(hello, tls, HELLO_DESTINATION, s->token, hello->proof);

	if (rc == -EACCES)
		return error_set(err, rc, "migration \"%s\": unknown here, or wrong token", s->id);
	return rc ? error_errno(err, rc, "migration \"%s\": its token", s->id) : 0;
}

int page_source_open(struct page_source *s, const struct hello *hello, struct conn *c,
                     struct page_source_conn *ctl, struct hello_reply *reply, struct error *err)
{
	int rc;

	*reply = (struct hello_reply){ .epoch = s->epoch, .urgents = PAGE_SOURCE_URGENTS };
	*ctl = (struct page_source_conn){ .conn = c, .control = hello->role == STREAM_CONTROL };
	memcpy(ctl->holder, hello->holder, HOLDER_BYTES);
	if (*s->peer && !tls_peer_is(c->tls, s->peer))
		return error_set(err, -EACCES,
		                 "migration \"%s\": peer \"%s\" is not its other daemon", s->id,
		                 tls_peer_name(c->tls));
	pthread_mutex_lock(&s->lock);
	rc = check_token(s, hello, c->tls, err);
	if (!rc && ctl->control)
		supersede(s, hello->holder);
	if (!rc)
		rc = check_holder(s, hello->holder, err);
	if (!rc)
		rc = check_attachment(s, hello, err);
	if (!rc) {
		ctl->next = s->list;
		s->list = ctl;
		s->visitor.bound = true;
		memcpy(s->visitor.id, hello->holder, HOLDER_BYTES);
		strcpy(s->visitor_version, hello->daemon_version);
	}
	pthread_mutex_unlock(&s->lock);
	if (rc || !ctl->control || s->phase == SOURCE_ENDED)
		return rc;
	reply->regions = s->table;
	reply->warm = true;
	reply->abort_text = true;
	ctl->takes_ahead = hello->ahead;
	/* One that has no memory yet will have what it is told here. */
	return hello->regions.n ? region_table_same_guest(&s->table, &hello->regions, err) : 0;
}

static int check_get(const struct page_source *s, const uint8_t holder[HOLDER_BYTES],
                     const struct frame_get *get, struct error *err)
{
	const struct region *r;
	uint64_t word = get->first_unit / WORD_UNITS;

	if (!atomic_load(&s->readable) && !source_log_is_on(&s->log))
		return error_set(err, -EPROTO,
		                 "migration \"%s\": GET while the guest is not paused, and what it "
		                 "writes is not logged",
		                 s->id);
	if (check_holder(s, holder, err))
		return -EBUSY;
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
 * Where a unit of the word lies: behind those that were asked for before it. So who asks for single
 * pages, as faults do, needs little of a buffer for a word, and there are hundreds of them.
 */
static uint8_t *place_of(const struct frame_get *get, unsigned int unit, uint8_t *data)
{
	uint64_t before = get->want_mask & ((1ull << unit) - 1);

	return data + (size_t)__builtin_popcountll(before) * UNIT_BYTES;
}

/*
 * @n units from @first of a word on. Where not all of them can be read they are read one by one,
 * so that one bad page costs no other. Return: 0, the bad ones in *@lost; or -errno.
 */
static int read_run(struct page_source *s, const struct frame_get *get, unsigned int first,
                    unsigned int n, uint8_t *data, uint64_t *lost)
{
	struct memory *m = s->memories[get->region];
	int rc = memory_read(m, (get->first_unit + first) << UNIT_SHIFT, place_of(get, first, data),
	                     (size_t)n * UNIT_BYTES);

	if (!is_lost(rc))
		return rc;
	for (unsigned int i = first; i < first + n; i++) {
		rc = n == 1 ? rc
		            : memory_read(m, (get->first_unit + i) << UNIT_SHIFT,
		                          place_of(get, i, data), UNIT_BYTES);
		if (is_lost(rc))
			*lost |= 1ull << i;
		else if (rc)
			return rc;
	}
	return 0;
}

/* The wanted units, read run by run, one behind the other in @data. Those that can't be: in *@lost.
 */
static int read_units(struct page_source *s, const struct frame_get *get, uint8_t *data,
                      uint64_t *lost, struct error *err)
{
	uint64_t left;

	/* Poison lies in the VMM's mapping: its memory's descriptor reads as zeroes there. */
	*lost = get->want_mask & poison_list_mask(atomic_load(&s->poisoned), get->region,
	                                          get->first_unit / WORD_UNITS);
	left = get->want_mask & ~*lost;
	while (left) {
		unsigned int first = (unsigned int)__builtin_ctzll(left);
		uint64_t rest = ~(left >> first);
		unsigned int n = rest ? (unsigned int)__builtin_ctzll(rest) : WORD_UNITS;
		int rc;

		if (n > WORD_UNITS - first)
			n = WORD_UNITS - first;
		rc = read_run(s, get, first, n, data, lost);
		if (rc == -ESRCH)
			atomic_store(&s->lost, true);
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
static size_t pack_units(const struct frame_get *get, uint8_t *data, struct frame_pages *pages)
{
	uint8_t *to = data;

	for (uint64_t left = get->want_mask & ~pages->error_mask; left; left &= left - 1) {
		unsigned int i = (unsigned int)__builtin_ctzll(left);
		uint8_t *unit = place_of(get, i, data);

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

static void count_answer(struct page_source_stats *stats, enum stream_role role,
                         const struct frame_pages *pages, size_t bytes)
{
	uint64_t data = (uint64_t)__builtin_popcountll(pages->data_mask);
	uint64_t zero = (uint64_t)__builtin_popcountll(pages->zero_mask);
	uint64_t lost = (uint64_t)__builtin_popcountll(pages->error_mask);

	atomic_fetch_add_explicit(&stats->requests, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->pages, data, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->zero_pages, zero, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->unreadable_pages, lost, memory_order_relaxed);
	atomic_fetch_add_explicit(&stats->bytes, bytes, memory_order_relaxed);
	atomic_fetch_add_explicit(role == STREAM_BULK ? &stats->bulk_bytes : &stats->fault_bytes,
	                          bytes, memory_order_relaxed);
}

static void look_at_load(struct page_source *s, struct page_source_conn *pc, uint64_t now_ns)
{
	if (load_is_due(&pc->load, now_ns))
		load_look(&pc->load, &s->stats.load, now_ns, thread_busy_ns(pc->times_fd));
}

/* Until its share of the host's bandwidth has room for an answer, or the connection ends. */
static void wait_for_share(struct page_source *s, struct page_source_conn *pc, size_t bytes)
{
	uint64_t now_ns = clock_now_ns(), until_ns;
	uint64_t last_ns = now_ns + SHARE_WAIT_MS * NSEC_PER_MSEC;
	struct pollfd end = { .fd = pc->conn->fd, .events = POLLRDHUP };

	load_capped(&pc->load, now_ns);
	while ((until_ns = throttle_pay(&s->throttle, bytes, now_ns)) && now_ns < last_ns) {
		uint64_t ms = (until_ns - now_ns) / NSEC_PER_MSEC + 1;
		int n = poll(&end, 1, (int)(ms < SHARE_LOOK_MS ? ms : SHARE_LOOK_MS));

		now_ns = clock_now_ns();
		if (n)
			break;
		/* It may be long before it answers, and somebody asks what it waits for. */
		load_go_on(&pc->load, now_ns);
		look_at_load(s, pc, now_ns);
		load_capped(&pc->load, now_ns);
	}
	load_go_on(&pc->load, now_ns);
}

/* PAGES that wait to be sent. */
struct answers {
	uint8_t *buf; /* FRAME_PAGES_MAX bytes */
	size_t len;
};

static int send_answers(struct conn *c, struct answers *a, struct error *err)
{
	int rc = a->len ? conn_send(c, a->buf, a->len) : 0;

	a->len = 0;
	return rc ? error_errno(err, rc, "connection") : 0;
}

/* Into @a; those that are there go out first where the room is short. */
static int answer_get(struct page_source *s, struct page_source_conn *pc, enum stream_role role,
                      uint64_t request_id, const struct frame_get *get, struct answers *a,
                      struct error *err)
{
	struct frame_pages pages = { .region = get->region, .first_unit = get->first_unit };
	size_t most = PAGES_HEAD + (size_t)__builtin_popcountll(get->want_mask) * UNIT_BYTES;
	uint8_t *tx;
	size_t len;
	int rc = a->len + most > GATHER_BYTES ? send_answers(pc->conn, a, err) : 0;

	tx = a->buf + a->len;
	if (!rc)
		rc = read_units(s, get, tx + PAGES_HEAD, &pages.error_mask, err);
	if (rc)
		return rc;
	len = PAGES_HEAD + pack_units(get, tx + PAGES_HEAD, &pages);
	frame_pages_encode(&pages, request_id, tx);
	if (role == STREAM_BULK)
		wait_for_share(s, pc, len);
	/* Before it is sent: who has the answer finds it counted. */
	count_answer(&s->stats, role, &pages, len);
	a->len += len;
	return 0;
}

/* Whether the next request is here: several faults that are asked for together are one record. */
static bool has_get(const struct conn *c)
{
	return tls_decrypted(c->tls) >= FRAME_HEADER_BYTES + FRAME_GET_BYTES;
}

/*
 * Faults come in storms: after an urgent answer the next request is waited for awake, where that
 * pays, but not while bulk needs the cores.
 */
static void wait_for_fault(struct page_source *s, struct page_source_conn *pc)
{
	uint64_t idle_ns =
	        clock_now_ns() - atomic_load_explicit(&s->last_bulk_ns, memory_order_relaxed);
	struct pollfd fd = { .fd = pc->conn->fd, .events = POLLIN };

	if (!tls_pending(pc->conn->tls) && idle_ns > BULK_RECENT_NS)
		thread_spin_poll(&pc->spin, &fd, 1, SPIN_NS, -1);
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

/* A request of bulk is answered. */
static void note_bulk(struct page_source *s, struct page_source_conn *pc)
{
	uint64_t now_ns = clock_now_ns();

	atomic_store_explicit(&s->last_bulk_ns, now_ns, memory_order_relaxed);
	pacer_note(&pc->pace, pc->conn, &s->stats.pace);
	look_at_load(s, pc, now_ns);
}

static int serve_pages(struct page_source *s, struct page_source_conn *pc, enum stream_role role,
                       struct error *err)
{
	struct conn *c = pc->conn;
	/* Aligned so that the data behind the header is aligned for the zero scan. */
	_cleanup_free_ uint8_t *tx = aligned_alloc(64, (FRAME_PAGES_MAX + 63) / 64 * 64);
	struct answers answers = { .buf = tx };
	struct frame_header h;
	struct frame_get get;
	const void *payload;
	int rc;

	if (!tx)
		return error_set(err, -ENOMEM, "connection: out of memory");
	pc->times_fd = role == STREAM_BULK ? thread_open_times() : -1;
	do {
		rc = next_get(c, &h, &payload, err);
		if (!rc)
			rc = frame_get_decode(payload, &get, err);
		if (!rc)
			rc = check_get(s, pc->holder, &get, err);
		if (!rc)
			rc = answer_get(s, pc, role, h.request_id, &get, &answers, err);
		if (!rc && role == STREAM_URGENT && has_get(c))
			continue;
		if (!rc)
			rc = send_answers(c, &answers, err);
		if (!rc && role == STREAM_URGENT)
			wait_for_fault(s, pc);
		else
			note_bulk(s, pc);
	} while (!rc);
	/* What comes next is why it ends: pages that were asked for before that are good. */
	(void)send_answers(c, &answers, NULL);
	close_fd(&pc->times_fd);
	return rc;
}
_Static_assert(PAGES_HEAD % sizeof(uint64_t) == 0, "the data in a PAGES frame is aligned");

/* Under the lock: whether what comes over this connection is its destination's word. */
static int check_control(const struct page_source *s, const struct page_source_conn *ctl,
                         struct error *err)
{
	if (ctl->superseded)
		return error_set(err, -ECONNRESET,
		                 "migration \"%s\": its destination has dialled anew since", s->id);
	return check_holder(s, ctl->holder, err);
}

/* Under the lock: the first that asks holds it, and the owner is asked to pause the guest. */
static int bind_holder(struct page_source *s, const struct page_source_conn *ctl, struct error *err)
{
	int rc = check_control(s, ctl, err);

	if (rc)
		return rc;
	if (s->withdrawn && s->phase != SOURCE_ENDED)
		return error_set(err, -ECONNRESET,
		                 "migration \"%s\": the source's daemon is ending", s->id);
	if (s->aborted && s->phase != SOURCE_ENDED)
		return error_set(err, -ECANCELED, "migration \"%s\": given up at the source",
		                 s->id);
	if (s->phase != SOURCE_RUNNING)
		return 0;
	s->phase = SOURCE_SWITCHING;
	source_log_pin(&s->log, ctl);
	s->holder.bound = true;
	memcpy(s->holder.id, ctl->holder, HOLDER_BYTES);
	snprintf(s->holder.name, sizeof s->holder.name, "%s", tls_peer_name(ctl->conn->tls));
	s->ops->switchover(s->arg);
	return 0;
}

/* A VMM may take its time to pause: the destination hears that we are still here. */
static int wait_or_say_so(struct page_source *s, const struct page_source_conn *ctl,
                          struct error *err)
{
	uint64_t until_ns = clock_now_ns() + PAUSING_SIGN_MS * NSEC_PER_MSEC;
	const struct timespec until = {
		.tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(until_ns % NSEC_PER_SEC),
	};
	int rc;

	if (pthread_cond_clockwait(&s->changed, &s->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
		return check_control(s, ctl, err);
	pthread_mutex_unlock(&s->lock);
	rc = conn_send_plain(ctl->conn, FRAME_PONG);
	pthread_mutex_lock(&s->lock);
	return rc ? error_errno(err, rc, "connection: PONG") : check_control(s, ctl, err);
}

/*
 * What the VMM has saved by now, while it saves on: what is missing of it when it is whole comes
 * with all of it. Under the lock, and without it while it is sent.
 */
static int send_ahead(struct page_source *s, const struct page_source_conn *ctl, uint8_t *tx,
                      uint64_t *sent, struct error *err)
{
	struct frame_header h = { .type = FRAME_VMSTATE_AHEAD };
	uint64_t left = s->ahead_len - *sent;
	ssize_t n =
	        pread(s->ahead_fd, tx + FRAME_HEADER_BYTES,
	              left < FRAME_VMSTATE_DATA_MAX ? left : FRAME_VMSTATE_DATA_MAX, (off_t)*sent);
	int rc;

	if (n <= 0) {
		*sent = UINT64_MAX;
		return 0;
	}
	*sent += (uint64_t)n;
	pthread_mutex_unlock(&s->lock);
	h.payload_len = (uint32_t)n;
	frame_header_encode(&h, tx);
	rc = conn_send(ctl->conn, tx, FRAME_HEADER_BYTES + (size_t)n);
	pthread_mutex_lock(&s->lock);
	return rc ? error_errno(err, rc, "connection: VMSTATE_AHEAD") : check_control(s, ctl, err);
}

/*
 * Have the owner pause the guest, unless that was done (a connection before this one), and
 * wait for the vmstate. Return: 0, or why there is none.
 */
static int wait_vmstate(struct page_source *s, const struct page_source_conn *ctl, uint8_t *tx,
                        struct error *err)
{
	uint64_t sent = ctl->takes_ahead ? 0 : UINT64_MAX;
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = bind_holder(s, ctl, err);
	while (!rc && s->phase == SOURCE_SWITCHING && !s->withdrawn)
		rc = s->ahead_fd >= 0 && s->ahead_len > sent ? send_ahead(s, ctl, tx, &sent, err)
		                                             : wait_or_say_so(s, ctl, err);
	if (!rc && s->phase == SOURCE_ENDED)
		rc = say_ended(s, err);
	else if (!rc && s->phase != SOURCE_PAUSED)
		rc = error_set(err, -ECONNRESET, "migration \"%s\": the source's daemon is ending",
		               s->id);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int send_vmstate(struct page_source *s, struct conn *c, uint8_t *tx, uint64_t received_ns,
                        struct error *err)
{
	struct frame_vmstate head = { .len = s->vmstate_len, .pause_ns = s->pause_ns };
	uint64_t sent = 0;
	int rc;

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

/*
 * The fence: who has said that the guest ran there can't say that it did not; and who holds nothing
 * ends only what nobody holds.
 */
static int abort_source(struct page_source *s, const struct page_source_conn *ctl,
                        const struct error *why, struct error *err)
{
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = check_control(s, ctl, err);
	if (!rc && s->phase != SOURCE_ENDED && s->resumed)
		rc = error_set(err, -EPROTO,
		               "migration \"%s\": ABORT after the guest ran at the destination",
		               s->id);
	if (!rc && s->phase != SOURCE_ENDED) {
		if (!s->aborted)
			memcpy(s->abort_why, why->text, sizeof s->abort_why);
		s->aborted = true;
		atomic_store(&s->readable, false);
		source_log_end(&s->log);
	}
	pthread_mutex_unlock(&s->lock);
	if (rc)
		return rc;
	tell(s, s->ops->aborted);
	return wait_ended(s, SOURCE_RUNS_ON, err);
}

void page_source_get_abort_why(struct page_source *s, char ret[ERROR_TEXT_MAX])
{
	pthread_mutex_lock(&s->lock);
	memcpy(ret, s->abort_why, sizeof s->abort_why);
	pthread_mutex_unlock(&s->lock);
}

/* RESUMED and COMPLETE: the holder's alone, of a guest that was paused for it. */
static int check_word(struct page_source *s, const struct page_source_conn *ctl, bool *ret_ended,
                      struct error *err)
{
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = check_control(s, ctl, err);
	*ret_ended = s->phase == SOURCE_ENDED;
	if (!rc && s->phase < SOURCE_PAUSED)
		rc = error_set(err, -EPROTO, "migration \"%s\": its guest was not paused", s->id);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int note_resumed(struct page_source *s, const struct page_source_conn *ctl,
                        struct error *err)
{
	bool ended;
	int rc = check_word(s, ctl, &ended, err);

	if (rc || ended)
		return rc ? rc : wait_ended(s, SOURCE_LET_GO, err);
	pthread_mutex_lock(&s->lock);
	s->resumed = true;
	pthread_mutex_unlock(&s->lock);
	tell(s, s->ops->resumed);
	return 0;
}

static int complete_source(struct page_source *s, const struct page_source_conn *ctl,
                           struct error *err)
{
	bool ended;
	int rc = check_word(s, ctl, &ended, err);

	if (rc)
		return rc;
	if (!ended)
		tell(s, s->ops->complete);
	return wait_ended(s, SOURCE_LET_GO, err);
}

/* A destination that asks for a sign of life hears it, or that there is nothing here any more. */
static int check_alive(struct page_source *s, const struct page_source_conn *ctl, struct error *err)
{
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = check_control(s, ctl, err);
	if (!rc && s->phase == SOURCE_ENDED)
		rc = say_ended(s, err);
	else if (!rc && s->withdrawn)
		rc = error_set(err, -ECONNRESET, "migration \"%s\": the source's daemon is ending",
		               s->id);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int answer_plain(struct conn *c, int rc, enum frame_type type, struct error *err)
{
	if (!rc) {
		rc = conn_send_plain(c, type);
		if (rc)
			error_errno(err, rc, "connection: answer of type %d", (int)type);
	}
	return rc;
}

/* What the guest has written last, before what says that nothing comes after it. */
static int answer_switchover(struct page_source *s, const struct page_source_conn *ctl,
                             uint64_t received_ns, struct error *err)
{
	_cleanup_free_ uint8_t *tx = malloc(FRAME_HEADER_BYTES + FRAME_VMSTATE_DATA_MAX);
	int rc = tx ? wait_vmstate(s, ctl, tx, err)
	            : error_set(err, -ENOMEM, "connection: out of memory");

	if (!rc)
		rc = source_log_tell_last(&s->log, ctl->conn, err);
	if (!rc)
		rc = send_vmstate(s, ctl->conn, tx, received_ns, err);
	/* Not before: that is downtime. */
	if (!rc)
		source_log_stop(&s->log);
	return rc;
}

static int answer_track(struct page_source *s, const struct page_source_conn *ctl, bool sync,
                        struct error *err)
{
	int rc = check_alive(s, ctl, err);

	if (rc)
		return rc;
	return sync ? source_log_sync(&s->log, ctl, ctl->conn, err)
	            : source_log_track(&s->log, ctl, ctl->conn, err);
}

static int serve_control_frame(struct page_source *s, const struct page_source_conn *ctl,
                               const struct frame_header *h, const void *payload, struct error *err)
{
	struct conn *c = ctl->conn;
	uint64_t received_ns = clock_now_ns();
	struct error why;
	int rc;

	switch (h->type) {
	case FRAME_SWITCHOVER:
		return answer_switchover(s, ctl, received_ns, err);
	case FRAME_TRACK:
	case FRAME_SYNC:
		return answer_track(s, ctl, h->type == FRAME_SYNC, err);
	case FRAME_PING:
		return answer_plain(c, check_alive(s, ctl, err), FRAME_PONG, err);
	case FRAME_PROBE:
		rc = conn_answer_probe(c);
		return rc ? error_errno(err, rc, "connection: PROBE_REPLY") : 0;
	case FRAME_RESUMED:
		return note_resumed(s, ctl, err);
	case FRAME_COMPLETE:
		return answer_plain(c, complete_source(s, ctl, err), FRAME_COMPLETE_ACK, err);
	case FRAME_ABORT:
		frame_abort_decode(h, payload, &why);
		return answer_plain(c, abort_source(s, ctl, &why, err), FRAME_ABORT_ACK, err);
	default:
		return error_set(err, -EPROTO,
		                 "frame of type %u is not for a control connection now", h->type);
	}
}

static void note_heard(struct page_source *s, const struct page_source_conn *ctl)
{
	pthread_mutex_lock(&s->lock);
	if (is_holder(s, ctl->holder))
		atomic_store(&s->holder_heard_ns, clock_now_ns());
	pthread_mutex_unlock(&s->lock);
}

static int serve_control(struct page_source *s, struct page_source_conn *ctl, struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc;

	atomic_fetch_add(&s->controls, 1);
	tell(s, s->ops->connected);
	do {
		rc = conn_next_frame(ctl->conn, &h, &payload, err);
		note_heard(s, ctl);
		if (!rc)
			rc = serve_control_frame(s, ctl, &h, payload, err);
	} while (!rc);
	source_log_leave(&s->log, ctl);
	atomic_fetch_sub(&s->controls, 1);
	tell(s, s->ops->connected);
	return rc;
}

int page_source_serve(struct page_source *s, struct page_source_conn *pc, enum stream_role role,
                      struct error *err)
{
	return role == STREAM_CONTROL ? serve_control(s, pc, err) : serve_pages(s, pc, role, err);
}
