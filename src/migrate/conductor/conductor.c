/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conductor: a destination's migration from start to complete, in order, in a thread
 * of its own, so that it reads as the story it is. It talks to the source over the
 * control connection, takes orders from the loop and posts news to it.
 */
#include "migrate/conductor/conductor.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/conductor/inside.h"
#include "migrate/destination/shards.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/* A goodbye is said for as long as it takes, but the VMM and others do not wait longer for it. */
#define GOODBYE_FOR_MS 30000u
/* Between two tries to have a thread that could not be had. */
#define THREAD_RETRY_MS 1000u
/* For a VMM to say again that its memory is divided, if it is. */
#define SHARDS_FOR_MS 10000u
/* The first distance between two points of the timeline; doubled whenever it is full. */
#define TIMELINE_STEP_MS 5u

void conductor_pull_complete(void *arg)
{
	migration_order(arg, ORDER_PULL_COMPLETE);
}

void conductor_pull_round(void *arg)
{
	migration_order(arg, ORDER_ROUND);
}

void conductor_pull_connection(void *arg)
{
	migration_post(arg, NEWS_CONNECTION);
}

unsigned int conductor_wait(struct migration *m, unsigned int orders, uint64_t until_ns)
{
	struct timespec at = {
		.tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(until_ns % NSEC_PER_SEC),
	};
	unsigned int given;
	int rc = 0;

	pthread_mutex_lock(&m->lock);
	while (!(m->orders & orders) && rc != ETIMEDOUT)
		rc = until_ns ? pthread_cond_clockwait(&m->ordered, &m->lock, CLOCK_MONOTONIC, &at)
		              : pthread_cond_wait(&m->ordered, &m->lock);
	given = m->orders & orders;
	pthread_mutex_unlock(&m->lock);
	return given;
}

int conductor_check_stopped(struct migration *m, struct error *err)
{
	unsigned int orders;

	pthread_mutex_lock(&m->lock);
	orders = m->orders;
	pthread_mutex_unlock(&m->lock);
	if (orders & ORDER_STOP)
		return error_set(err, -ECANCELED, "the daemon is ending");
	if (orders & ORDER_CANCEL)
		return error_set(err, -ECANCELED, "by command");
	return 0;
}

/*
 * Its place stays at the begin: who reads it by that keeps there how far it has come, also for an
 * adapter after it.
 */
static int write_at(int fd, const void *data, size_t len, uint64_t at, struct error *err)
{
	ssize_t n = pwrite(fd, data, len, (off_t)at);

	return n == (ssize_t)len ? 0 : error_errno(err, n < 0 ? -errno : -ENOSPC, "vmstate: memfd");
}

static int make_vmstate_memfd(struct error *err)
{
	int fd = memfd_create("postcopy-vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	return fd < 0 ? error_errno(err, -errno, "vmstate: memfd_create") : fd;
}

int conductor_take_ahead(struct conductor *k, const struct frame_header *h, const void *payload,
                         struct error *err)
{
	struct migration *m = k->m;
	int rc;

	if (k->late)
		return error_set(err, -EPROTO, "vmstate: it comes ahead, which was not asked for");
	if (m->ahead_len + h->payload_len > m->owner->config.max_vmstate_bytes)
		return error_set(err, -EFBIG,
		                 "vmstate of more than %llu bytes, all that the destination takes: "
		                 "raise its --max-vmstate",
		                 (unsigned long long)m->owner->config.max_vmstate_bytes);
	if (m->ahead_fd < 0) {
		int fd = make_vmstate_memfd(err);

		if (fd < 0)
			return fd;
		pthread_mutex_lock(&m->lock);
		m->ahead_fd = fd;
		pthread_mutex_unlock(&m->lock);
	}
	rc = write_at(m->ahead_fd, payload, h->payload_len, m->ahead_len, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&m->lock);
	m->ahead_len += h->payload_len;
	pthread_mutex_unlock(&m->lock);
	migration_post(m, NEWS_AHEAD);
	return 0;
}

/* Return: what was ahead, and the caller's from now on; -1: nothing was. */
static int take_what_is_ahead(struct migration *m, uint64_t *ret_len)
{
	int fd;

	pthread_mutex_lock(&m->lock);
	fd = m->ahead_fd;
	*ret_len = m->ahead_len;
	m->ahead_fd = -1;
	m->ahead_len = 0;
	pthread_mutex_unlock(&m->lock);
	return fd;
}

/* Whether @fd has at @at what has come now. */
static bool is_same(int fd, const void *data, size_t len, uint64_t at)
{
	_cleanup_free_ char *there = malloc(len);

	return there && pread(fd, there, len, (off_t)at) == (ssize_t)len &&
	       !memcmp(there, data, len);
}

/* A piece of the vmstate at @at of @fd, which has the first @ahead bytes already. */
static int put_piece(int fd, uint64_t ahead, const char *data, size_t len, uint64_t at,
                     struct error *err)
{
	size_t known = at >= ahead ? 0 : ahead - at < len ? (size_t)(ahead - at) : len;

	/* Its VMM may be loading the other one. It says so itself, if it is. */
	if (known && !is_same(fd, data, known, at))
		return error_set(err, -ECONNRESET,
		                 "the vmstate is not the one of which a part has come before");
	return known < len ? write_at(fd, data + known, len - known, at + known, err) : 0;
}

/* Receive the vmstate's bytes into a memfd, sealed. Return: the memfd or -errno. */
static int receive_vmstate(struct conductor *k, uint64_t len, struct error *err)
{
	uint64_t ahead, have = 0;
	_cleanup_close_ int fd = take_what_is_ahead(k->m, &ahead);

	if (fd < 0 && (fd = make_vmstate_memfd(err)) < 0)
		return fd;
	if (ahead > len)
		return error_set(err, -ECONNRESET, "the vmstate is less than has come before");
	while (have < len) {
		struct frame_header h;
		const void *payload;
		int rc = conductor_expect(k->m->control, FRAME_VMSTATE_DATA, &h, &payload, err);

		if (rc)
			return rc;
		if (h.payload_len > len - have)
			return error_set(err, -EPROTO, "vmstate: more than its %llu bytes",
			                 (unsigned long long)len);
		rc = put_piece(fd, ahead, payload, h.payload_len, have, err);
		if (rc)
			return rc;
		have += h.payload_len;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return error_errno(err, -errno, "vmstate: sealing");
	return steal_fd(&fd);
}

/* Ask for the vmstate over this connection. */
static int ask_vmstate(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	struct frame_vmstate vmstate;
	struct frame_header h;
	const void *payload;
	uint64_t ahead;
	int fd = take_what_is_ahead(m, &ahead), rc = conductor_say(k, FRAME_SWITCHOVER, err);

	/* Of a connection before this one: it comes anew. */
	close_fd(&fd);
	if (!rc)
		rc = warm_await_vmstate(k, &h, &payload, err);
	if (!rc)
		rc = frame_vmstate_decode(payload, &vmstate, err);
	if (rc)
		return rc;
	if (vmstate.len > m->owner->config.max_vmstate_bytes)
		return error_set(err, -EFBIG, "vmstate of %llu bytes, at most %llu (--max-vmstate)",
		                 (unsigned long long)vmstate.len,
		                 (unsigned long long)m->owner->config.max_vmstate_bytes);
	fd = receive_vmstate(k, vmstate.len, err);
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&m->lock);
	m->vmstate_received_ns = clock_now_ns();
	m->vmstate_fd = fd;
	m->vmstate_len = vmstate.len;
	m->source_pause_ns = vmstate.pause_ns;
	/* The source's clock runs at its own pace: the parts must still add up. */
	if (m->source_pause_ns > m->vmstate_received_ns - m->switch_sent_ns)
		m->source_pause_ns = m->vmstate_received_ns - m->switch_sent_ns;
	pthread_mutex_unlock(&m->lock);
	return 0;
}

/*
 * Switchover up to the vmstate. A connection that is lost meanwhile is opened again, and the
 * source, whose guest may be paused by then, asked again.
 */
static int switch_over(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	const struct patience p = patience_from_now(true);

	/* A process after this one must know that the source guest may be paused. */
	migration_post(m, NEWS_SWITCHOVER);
	conductor_wait(m, ORDER_RECORDED | ORDER_STOP | ORDER_CANCEL, 0);
	if (conductor_check_stopped(m, err))
		return -ECANCELED;
	for (;;) {
		int rc = m->control ? ask_vmstate(k, err) : -ECONNRESET;
		struct patience again;

		if (!patience_has(&p, rc))
			return rc;
		if (conductor_check_stopped(m, err))
			return -ECANCELED;
		log_migration_warning(m->params.id, "switchover: %s; connecting again", err->text);
		again = patience_from_now(true);
		rc = conductor_dial(k, &again, err);
		if (rc)
			return rc;
		conductor_note(m, "");
	}
}

/*
 * One point of the timeline. When it is full, every other point goes and the step doubles,
 * so that it spans any length of time with the same number of points.
 */
static void note_point(struct conductor *k)
{
	struct migration *m = k->m;
	uint64_t present = m->table.units - pull_missing(m->pull);

	pthread_mutex_lock(&m->lock);
	if (m->timeline_n == MIGRATION_TIMELINE_MAX) {
		for (size_t i = 0; i < MIGRATION_TIMELINE_MAX / 2; i++)
			m->timeline[i] = m->timeline[2 * i];
		m->timeline_n /= 2;
		k->timeline_step_ns *= 2;
	}
	m->timeline[m->timeline_n++] =
	        (struct migration_point){ .at_ns = clock_now_ns(), .present = present };
	pthread_mutex_unlock(&m->lock);
}

void conductor_take_back(struct migration *m, enum conductor_order order)
{
	pthread_mutex_lock(&m->lock);
	m->orders &= ~(unsigned int)order;
	pthread_mutex_unlock(&m->lock);
}

/* Further userfaultfds that have come. What can't be taken now is tried for again. */
static void take_shards(struct conductor *k)
{
	struct migration *m = k->m;
	struct error err = ERROR_INIT;
	unsigned int n;

	pthread_mutex_lock(&m->lock);
	m->orders &= ~(unsigned int)ORDER_SHARDS;
	n = m->shard_mail.n;
	pthread_mutex_unlock(&m->lock);
	if (!n)
		return;
	/* As long as there is any nobody else touches it. */
	if (pull_take_shards(m->pull, m->shard_mail.uffds, n, m->shard_mail.journals_fd, &err)) {
		if (!k->shards_told)
			log_migration_warning(m->params.id,
			                      "%u userfaultfds can't be taken yet: %s; trying on",
			                      n, err.text);
		k->shards_told = true;
		return;
	}
	for (unsigned int i = 1; i < n; i++)
		m->shard_mail.uffds[i - 1] = -1;
	shards_mail_close(m);
	shards_log(m, n);
}

/* The source is gone for good. Return: what the migration ends with; 0 where it has to go on. */
static int poison(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	uint64_t units;
	int rc = 0;

	take_shards(k);
	/* It may be back by now: then nothing is lost. */
	if (!migration_source_is_away(m, err))
		rc = -EOPNOTSUPP;
	if (!rc)
		rc = pull_poison(m->pull, &units, err);
	if (rc == -EOPNOTSUPP) {
		log_migration_error(m->params.id, "nothing is poisoned: %s", err->text);
		*err = ERROR_INIT;
		conductor_take_back(m, ORDER_POISON);
		return 0;
	}
	if (rc)
		return rc;
	rc = pull_finish(m->pull, err);
	if (rc)
		return rc;
	return error_set(err, -EHWPOISON,
	                 "%llu bytes of guest memory are lost with the source, and poisoned by "
	                 "command: the guest gets a machine check where it touches them",
	                 (unsigned long long)units << UNIT_SHIFT);
}

/* Threads that could not be had when bulk began: slower without them, and tried for again. */
static void have_bulk(struct conductor *k)
{
	uint64_t now_ns = clock_now_ns();
	bool first = !k->bulk_ns;
	int rc;

	if (!first && now_ns < k->bulk_ns)
		return;
	rc = pull_start_bulk(k->m->pull);
	k->bulk_ns = rc ? now_ns + THREAD_RETRY_MS * NSEC_PER_MSEC : UINT64_MAX;
	if (rc && first)
		log_migration_warning(k->m->params.id,
		                      "not as many bulk threads as there should be: %s; trying on",
		                      strerror(-rc));
}

/* Wait for one of @orders, keeping the control connection meanwhile. Return: which; or -errno. */
static int wait_connected(struct conductor *k, unsigned int orders, uint64_t until_ns,
                          bool *ret_new, struct error *err)
{
	unsigned int given = conductor_wait(k->m, orders, until_ns);

	*ret_new = !given && conductor_keep_control(k);
	if (given || !k->refused.code)
		return (int)given;
	*err = k->refused;
	return err->code;
}

/* Until the VMM says that its guest runs. Return: 0; or why it is to end, with @err set. */
static int wait_resumed(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	bool reconnected;
	int given;

	do {
		take_shards(k);
		given = wait_connected(
		        k, ORDER_RESUMED | ORDER_STOP | ORDER_CANCEL | ORDER_POISON | ORDER_SHARDS,
		        clock_now_ns() + WARM_LOOK_MS * NSEC_PER_MSEC, &reconnected, err);
	} while (!given || given == ORDER_SHARDS);
	if (given < 0)
		return given;
	if (given & (ORDER_STOP | ORDER_CANCEL))
		return conductor_check_stopped(m, err);
	return given & ORDER_POISON ? poison(k, err) : 0;
}

/* Whether parts of the memory may be watched by what we have not got. */
static bool are_shards_owed(struct migration *m, bool patient)
{
	bool owed;

	pthread_mutex_lock(&m->lock);
	owed = m->shard_mail.n || (m->shard_mail.owed && (m->shard_mail.sure || patient));
	pthread_mutex_unlock(&m->lock);
	return owed;
}

/*
 * Every page is here. But who touches one of such a part waits still, and nobody else would let it
 * go. A VMM that was asked by a process before may be an older one, and never answer.
 */
static int settle_shards(struct conductor *k, struct error *err)
{
	uint64_t until_ns = clock_now_ns() + SHARDS_FOR_MS * NSEC_PER_MSEC;
	struct migration *m = k->m;
	bool reconnected;
	int given = 0;

	take_shards(k);
	while (are_shards_owed(m, clock_now_ns() < until_ns) && !(given & ORDER_STOP)) {
		given = wait_connected(k, ORDER_SHARDS | ORDER_STOP,
		                       clock_now_ns() + WARM_LOOK_MS * NSEC_PER_MSEC, &reconnected,
		                       err);
		if (given < 0)
			return given;
		take_shards(k);
	}
	return given & ORDER_STOP ? conductor_check_stopped(m, err) : 0;
}

/* Postcopy: the guest runs; until every page is present. */
static int fetch_all(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	bool tell = true;
	int given, rc = wait_resumed(k, err);

	if (rc)
		return rc;
	note_point(k);
	do {
		have_bulk(k);
		take_shards(k);
		/* A source that can't be told now is told when it is there again. */
		if (tell && m->control)
			(void)conn_send_plain(m->control, FRAME_RESUMED);
		given = wait_connected(
		        k, ORDER_PULL_COMPLETE | ORDER_STOP | ORDER_POISON | ORDER_SHARDS,
		        clock_now_ns() + k->timeline_step_ns, &tell, err);
		note_point(k);
		if (given < 0)
			return given;
		if (given & ORDER_STOP)
			return conductor_check_stopped(m, err);
		rc = given & ORDER_POISON && !(given & ORDER_PULL_COMPLETE) ? poison(k, err) : 0;
		if (rc)
			return rc;
	} while (!(given & ORDER_PULL_COMPLETE));
	rc = settle_shards(k, err);
	return rc ? rc : pull_finish(m->pull, err);
}

/* What the source has not acknowledged. */
static void note_unheard(struct migration *m, enum frame_type say, const char *why)
{
	struct error text = ERROR_INIT;

	error_set(&text, 0, "the source has not acknowledged %s%s: %s",
	          say == FRAME_ABORT ? "ABORT" : "COMPLETE",
	          say == FRAME_ABORT ? ", its guest may stand still" : "", why);
	conductor_note(m, text.text);
}

/* One try. Return: whether the source has answered; *@err is what it said, or what was met. */
static bool say_once(struct conductor *k, enum frame_type say, enum frame_type answer,
                     struct error *err)
{
	struct migration *m = k->m;
	int rc;

	*err = ERROR_INIT;
	rc = m->control ? 0 : conductor_dial_once(k, err);
	if (!rc)
		rc = conductor_exchange(k, say, answer, err);
	if (!rc || conductor_is_verdict(err))
		return true;
	conductor_set_control(m, NULL);
	return false;
}

/* A source that does not know the migration any more, or not as ours, has nothing to wait for. */
static void note_verdict(struct migration *m, enum frame_type say, const struct error *err)
{
	pthread_mutex_lock(&m->lock);
	m->farewell = FAREWELL_NONE;
	pthread_mutex_unlock(&m->lock);
	conductor_note(m, "");
	if (err->code)
		log_migration_warning(m->params.id, "the source does not take %s: %s",
		                      say == FRAME_ABORT ? "ABORT" : "COMPLETE", err->text);
}

/*
 * Say COMPLETE or ABORT until the source has answered, over as many connections and through
 * whatever failures that takes: only its word ends this. Where the daemon ends, once more at the
 * most. @news is posted when it has answered, or after GOODBYE_FOR_MS: nobody else waits longer.
 */
static void say_goodbye(struct conductor *k, enum frame_type say, enum frame_type answer,
                        enum migration_news news)
{
	struct migration *m = k->m;
	uint64_t until_ns = clock_now_ns() + GOODBYE_FOR_MS * NSEC_PER_MSEC;
	bool answered, last;
	struct error err;

	do {
		last = conductor_wait(m, ORDER_STOP, clock_now_ns());
		answered = say_once(k, say, answer, &err);
		if (answered) {
			note_verdict(m, say, &err);
		} else {
			if (!*m->note)
				log_migration_warning(m->params.id, "%s: %s; trying on",
				                      say == FRAME_ABORT ? "ABORT" : "COMPLETE",
				                      err.text);
			note_unheard(m, say, err.text);
		}
		if (news && (answered || last || clock_now_ns() >= until_ns)) {
			migration_post(m, news);
			news = 0;
		}
		if (!answered && !last)
			(void)conductor_wait(m, ORDER_STOP, conductor_next_try_ns(k));
	} while (!answered && !last);
}

/*
 * From where another process was: the guest may run here. What can't be had now can be later, and
 * the guest waits.
 */
static int start_again(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	bool told = false;
	int rc;

	while ((rc = pull_start(m->pull))) {
		if (!told)
			log_migration_error(m->params.id, "threads: %s; trying on", strerror(-rc));
		told = true;
		if (conductor_wait(m, ORDER_STOP, clock_now_ns() + THREAD_RETRY_MS * NSEC_PER_MSEC))
			return conductor_check_stopped(m, err);
	}
	return 0;
}

static int conduct_on(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	struct conn_target target = conductor_target(m);
	int rc;

	k->handed_on = true;
	pull_connect_later(m->pull, &target, m->owner->config.tls, &k->hello, m->epoch);
	take_shards(k);
	rc = start_again(k, err);
	return rc ? rc : fetch_all(k, err);
}

void conductor_note_ready(struct migration *m)
{
	pthread_mutex_lock(&m->lock);
	if (m->warming.hold && !m->held_since_ns)
		m->held_since_ns = clock_now_ns();
	pthread_mutex_unlock(&m->lock);
}

/* Until switchover, or until the source says that it has given up. */
static int stay_warm(struct conductor *k, struct error *err)
{
	conductor_note_ready(k->m);
	while (!conductor_wait(k->m, ORDER_SWITCHOVER | ORDER_STOP | ORDER_CANCEL,
	                       clock_now_ns() + WARM_LOOK_MS * NSEC_PER_MSEC)) {
		if (k->m->control && conductor_control_ended(k))
			conductor_set_control(k->m, NULL);
		conductor_keep_control(k);
		if (k->refused.code) {
			*err = k->refused;
			return err->code;
		}
	}
	return conductor_check_stopped(k->m, err);
}

/* Have a control connection on which the source has just answered. */
static int confirm_control(struct conductor *k, struct error *err)
{
	const struct patience p = patience_from_now(true);
	struct migration *m = k->m;
	int rc;

	for (;;) {
		rc = m->control ? 0 : conductor_dial_once(k, err);
		if (!rc)
			rc = conductor_exchange(k, FRAME_PING, FRAME_PONG, err);
		conductor_note(m, rc ? err->text : "");
		if (!rc)
			return 0;
		conductor_set_control(m, NULL);
		if (!patience_has(&p, rc) || conductor_check_stopped(m, NULL) ||
		    conductor_wait(m, ORDER_STOP | ORDER_CANCEL, conductor_next_try_ns(k)))
			return rc;
	}
}

/* It begins, or all of it begins again: nobody is waited for. */
static void note_unready(struct migration *m)
{
	pthread_mutex_lock(&m->lock);
	m->held_since_ns = 0;
	pthread_mutex_unlock(&m->lock);
}

/*
 * Connected, until switchover, and then with a control connection that has just been answered on:
 * what is wrong must be found out before the guest is to be paused. A source guest that was
 * attached anew has other memory: all begins again, and is seen to.
 */
static int warm(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	int rc;

	for (;;) {
		rc = conductor_connect(k, err);
		if (!rc) {
			conductor_note(m, "");
			note_unready(m);
			migration_post(m, NEWS_WARM);
			thread_give_back_stack();
			rc = warm_up(k, err);
		}
		/* Who has warmed goes on over the very connection on which it did. */
		if (rc == WARM_DONE)
			return 0;
		if (rc == WARM_LOST) {
			log_migration_warning(m->params.id, "%s; warming again", err->text);
			conductor_note(m, err->text);
			*err = ERROR_INIT;
			conductor_set_control(m, NULL);
			(void)conductor_wait(m, ORDER_STOP | ORDER_CANCEL,
			                     conductor_next_try_ns(k));
			continue;
		}
		if (!rc)
			rc = stay_warm(k, err);
		if (!rc)
			rc = confirm_control(k, err);
		/* Of the guest before something may have been seen here, by a process before. */
		if (rc != -ESTALE || !err->from_peer || pull_is_visible(m->pull))
			return rc;
		log_migration_warning(m->params.id, "%s; warming again", err->text);
		*err = k->refused = ERROR_INIT;
		conductor_set_control(m, NULL);
		pthread_mutex_lock(&m->lock);
		m->epoch = 0;
		pthread_mutex_unlock(&m->lock);
		migration_post(m, NEWS_REWARM);
	}
}

/*
 * The VMM reads the vmstate, and then has its memory. Meanwhile the source's guest stands still and
 * can run on: it is looked after that the source is there. Return: 0; or why not, with @err set.
 */
static int await_memory(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	bool reconnected;
	int given;

	migration_post(m, NEWS_OFFER);
	do
		given = wait_connected(k, ORDER_MEMORY | ORDER_STOP | ORDER_CANCEL,
		                       clock_now_ns() + WARM_LOOK_MS * NSEC_PER_MSEC, &reconnected,
		                       err);
	while (!given);
	if (given < 0)
		return given;
	if (conductor_check_stopped(m, err))
		return -ECANCELED;
	/* Who stood still meanwhile has a connection that looks alive: RunOn may have been said. */
	return confirm_control(k, err);
}

static int conduct(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	int rc;

	if (m->may_have_run)
		return conduct_on(k, err);
	rc = conductor_check_stopped(m, err);
	if (!rc)
		rc = warm(k, err);
	if (!rc)
		rc = switch_over(k, err);
	if (!rc && k->late)
		rc = await_memory(k, err);
	if (rc)
		return rc;
	take_shards(k);
	/* All that the guest will need here is had before it can run here. */
	rc = pull_start(m->pull);
	if (rc)
		return error_errno(err, rc, "threads for the guest's memory");
	k->handed_on = true;
	migration_post(m, NEWS_VMSTATE);
	return fetch_all(k, err);
}

/*
 * What did not work out. The source is told to run its guest on, but for a guest that may
 * have run here.
 */
static void give_up(struct conductor *k, const struct error *why)
{
	struct migration *m = k->m;
	bool abort;

	conductor_note(m, "");
	/* From here on the loop gives the vmstate to nobody. */
	pthread_mutex_lock(&m->lock);
	m->error = *why;
	m->given_up = true;
	/* Who never was connected has nothing to take back. */
	abort = !m->may_have_run && m->epoch;
	m->farewell = abort ? FAREWELL_ABORT : FAREWELL_NONE;
	/* Where the loop has ended it that was said already, and all that is known here is "stop".
	 */
	if (!*m->farewell_why)
		memcpy(m->farewell_why, why->text, sizeof m->farewell_why);
	pthread_mutex_unlock(&m->lock);
	if (!abort) {
		migration_post(m, NEWS_FAILED);
		return;
	}
	/*
	 * Written down before it is said: a process after this one, that knew nothing of it, would
	 * ask for the guest, while an ABORT of ours may still be on its way.
	 */
	migration_post(m, NEWS_FAREWELL);
	conductor_wait(m, ORDER_FAREWELL | ORDER_STOP, 0);
	if (!conductor_wait(m, ORDER_PARK, clock_now_ns()))
		say_goodbye(k, FRAME_ABORT, FRAME_ABORT_ACK, NEWS_FAILED);
}

static void complete(struct conductor *k)
{
	pthread_mutex_lock(&k->m->lock);
	k->m->farewell = FAREWELL_COMPLETE;
	pthread_mutex_unlock(&k->m->lock);
	say_goodbye(k, FRAME_COMPLETE, FRAME_COMPLETE_ACK, NEWS_COMPLETE);
}

/* The whole story, or the rest of one that another process has begun. */
static void tell_story(struct conductor *k)
{
	struct migration *m = k->m;
	struct error err = ERROR_INIT;
	int rc;

	if (k->farewell == FAREWELL_COMPLETE) {
		say_goodbye(k, FRAME_COMPLETE, FRAME_COMPLETE_ACK, 0);
		return;
	}
	if (k->farewell == FAREWELL_ABORT) {
		say_goodbye(k, FRAME_ABORT, FRAME_ABORT_ACK, 0);
		return;
	}
	rc = conduct(k, &err);
	if (rc && !err.code)
		error_errno(&err, rc, "migration");
	/* What was met on the way out is not why. */
	if (rc && !m->may_have_run && conductor_check_stopped(m, NULL))
		(void)conductor_check_stopped(m, &err);
	/* Parked: the next process goes on, and nobody is told anything. */
	if (conductor_wait(m, ORDER_PARK, clock_now_ns()))
		return;
	if (rc)
		give_up(k, &err);
	else
		complete(k);
}

static void *conductor_main(void *arg)
{
	struct conductor *k = arg;
	struct migration *m = k->m;

	thread_set_name("conductor");
	thread_prefer_promptness();
	tell_story(k);
	/* Here, and not on the loop: their dials may take a while to be given up. */
	if (m->pull)
		pull_stop(m->pull);
	conductor_set_control(m, NULL);
	conductor_note(m, ""); /* nobody tries any more */
	free(k);
	migration_post(m, NEWS_ENDED);
	return NULL;
}

int conductor_start(struct migration *m)
{
	struct conductor *k = calloc(1, sizeof *k);
	int rc;

	if (!k)
		return -ENOMEM;
	k->m = m;
	k->late = migration_memory_is_late(m);
	k->timeline_step_ns = TIMELINE_STEP_MS * NSEC_PER_MSEC;
	k->farewell = m->goodbye_only ? m->farewell : FAREWELL_NONE;
	k->hello.role = STREAM_CONTROL;
	snprintf(k->hello.migration_id, sizeof k->hello.migration_id, "%s", m->params.id);
	k->hello.token = m->params.token;
	k->hello.peer = *m->params.parties.peer ? m->params.parties.peer : NULL;
	memcpy(k->hello.holder, m->holder.id, HOLDER_BYTES);
	/* Late memory's table is the source's, and may be another when that is attached anew. */
	if (!k->late)
		k->hello.regions = m->table;
	/* It would load before it has any. */
	k->hello.ahead = !k->late;
	rc = thread_start(&m->conductor, conductor_main, k);
	m->conductor_runs = !rc;
	if (rc)
		free(k);
	return rc;
}
