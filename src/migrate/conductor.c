/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conductor: a destination's migration from start to complete, in order, in a thread
 * of its own, so that it reads as the story it is. It talks to the source over the
 * control connection, takes orders from the loop and posts news to it.
 */
#include "migrate/migration.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

/* How long a source that can't be reached is tried: before switchover, and to say goodbye. */
#define DIAL_FOR_MS 10000u
#define GOODBYE_FOR_MS 30000u
#define RETRY_MS 100u
/* The first distance between two points of the timeline; doubled whenever it is full. */
#define TIMELINE_STEP_MS 5u

struct conductor {
	struct migration *m;
	struct hello hello;
	struct hello_reply reply;
	uint64_t timeline_step_ns;
};

void conductor_pull_complete(void *arg)
{
	migration_order(arg, ORDER_PULL_COMPLETE);
}

void conductor_pull_stalled(void *arg, const char *why)
{
	struct migration *m = arg;

	pthread_mutex_lock(&m->lock);
	snprintf(m->stall, sizeof m->stall, "%s", why);
	pthread_mutex_unlock(&m->lock);
	migration_post(m, NEWS_STALL);
}

/*
 * Wait for one of @orders, at most until @until_ns (0: for good).
 * Return: those of them that were given; 0 when the time is over.
 */
static unsigned int wait_order(struct migration *m, unsigned int orders, uint64_t until_ns)
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

static int check_stopped(struct migration *m, struct error *err)
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

static void set_control(struct migration *m, struct conn *c)
{
	struct conn *old;

	pthread_mutex_lock(&m->lock);
	old = m->control;
	m->control = c;
	pthread_mutex_unlock(&m->lock);
	conn_free(old);
}

/* What another try may mend. */
static bool is_network_error(int rc)
{
	return rc == -ECONNREFUSED || rc == -ETIMEDOUT || rc == -EHOSTUNREACH ||
	       rc == -ENETUNREACH || rc == -ECONNRESET || rc == -EPIPE;
}

/*
 * Open the control connection, trying for @for_ms, or until one of @end_orders is given.
 * Return: 0; or why not, with @err set.
 */
static int dial_control(struct conductor *k, unsigned int for_ms, unsigned int end_orders,
                        struct error *err)
{
	struct migration *m = k->m;
	uint64_t until_ns = clock_now_ns() + for_ms * NSEC_PER_MSEC;

	for (;;) {
		struct conn *c;
		int rc = conn_dial(&m->params.source, m->owner->config.tls, &k->hello, &c,
		                   &k->reply, err);

		if (!rc) {
			set_control(m, c);
			return 0;
		}
		if (!is_network_error(rc) || clock_now_ns() >= until_ns ||
		    wait_order(m, end_orders, clock_now_ns() + RETRY_MS * NSEC_PER_MSEC))
			return rc;
	}
}

/* The VMM is told what the source's regions are; then private ones are refused. */
static int check_attributes(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	const struct region_table *theirs = &k->reply.regions;
	uint32_t any = 0;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < theirs->n; i++)
		any |= m->attributes[i] = theirs->regions[i].flags;
	pthread_mutex_unlock(&m->lock);
	if (any)
		migration_post(m, NEWS_ATTRIBUTES);
	if (region_table_check_readable(theirs, err))
		return err->code;
	return region_table_check_readable(&m->table, err);
}

static int connect_all(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	int rc;

	k->hello.role = STREAM_CONTROL;
	snprintf(k->hello.migration_id, sizeof k->hello.migration_id, "%s", m->params.id);
	memcpy(k->hello.token, m->params.token, TOKEN_BYTES);
	k->hello.regions = m->table;
	rc = dial_control(k, DIAL_FOR_MS, ORDER_STOP | ORDER_CANCEL, err);
	if (!rc)
		rc = region_table_same_guest(&m->table, &k->reply.regions, err);
	if (!rc)
		rc = check_attributes(k, err);
	if (!rc)
		rc = pull_connect(m->pull, &m->params.source, m->owner->config.tls, &k->hello,
		                  k->reply.epoch, err);
	return rc;
}

/* Receive the vmstate's bytes into a memfd, sealed. Return: the memfd or -errno. */
static int receive_vmstate(struct conn *c, uint64_t len, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-vmstate", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t have = 0;

	if (fd < 0)
		return error_errno(err, -errno, "vmstate: memfd_create");
	while (have < len) {
		struct frame_header h;
		const void *payload;
		ssize_t n;
		int rc = conn_expect_frame(c, FRAME_VMSTATE_DATA, &h, &payload, err);

		if (rc)
			return rc;
		if (h.payload_len > len - have)
			return error_set(err, -EPROTO, "vmstate: more than its %llu bytes",
			                 (unsigned long long)len);
		n = write(fd, payload, h.payload_len);
		if (n != (ssize_t)h.payload_len)
			return error_errno(err, n < 0 ? -errno : -ENOSPC, "vmstate: memfd");
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
	int fd, rc = conn_send_plain(m->control, FRAME_SWITCHOVER);

	if (rc)
		return error_errno(err, rc, "control connection");
	rc = conn_expect_frame(m->control, FRAME_VMSTATE, &h, &payload, err);
	if (!rc)
		rc = frame_vmstate_decode(payload, &vmstate, err);
	if (rc)
		return rc;
	if (vmstate.len > m->owner->config.max_vmstate_bytes)
		return error_set(err, -EFBIG, "vmstate of %llu bytes, at most %llu (--max-vmstate)",
		                 (unsigned long long)vmstate.len,
		                 (unsigned long long)m->owner->config.max_vmstate_bytes);
	fd = receive_vmstate(m->control, vmstate.len, err);
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
	uint64_t until_ns = clock_now_ns() + GOODBYE_FOR_MS * NSEC_PER_MSEC;

	migration_post(m, NEWS_SWITCHOVER);
	m->switch_sent_ns = clock_now_ns();
	for (;;) {
		int rc = ask_vmstate(k, err);
		if (!is_network_error(rc) || clock_now_ns() >= until_ns)
			return rc;
		if (check_stopped(m, err))
			return -ECANCELED;
		log_migration_warning(m->params.id, "switchover: %s; connecting again", err->text);
		rc = dial_control(k, GOODBYE_FOR_MS, ORDER_STOP | ORDER_CANCEL, err);
		if (rc)
			return rc;
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

/* Postcopy: the guest runs; until every page is present. */
static int fetch_all(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	unsigned int given;
	int rc;

	given = wait_order(m, ORDER_RESUMED | ORDER_STOP | ORDER_CANCEL, 0);
	if (given & (ORDER_STOP | ORDER_CANCEL))
		return check_stopped(m, err);
	/* A source that can't be told now sees COMPLETE later. */
	(void)conn_send_plain(m->control, FRAME_RESUMED);
	note_point(k);
	rc = pull_start_bulk(m->pull);
	if (rc)
		return error_errno(err, rc, "bulk threads");
	do {
		given = wait_order(m, ORDER_PULL_COMPLETE | ORDER_STOP,
		                   clock_now_ns() + k->timeline_step_ns);
		note_point(k);
		if (given & ORDER_STOP)
			return check_stopped(m, err);
	} while (!(given & ORDER_PULL_COMPLETE));
	return pull_finish(m->pull, err);
}

/* One exchange over the control connection: @say, and wait for @answer. */
static int exchange(struct conductor *k, enum frame_type say, enum frame_type answer,
                    struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc = conn_send_plain(k->m->control, say);

	if (rc)
		return error_errno(err, rc, "control connection");
	return conn_expect_frame(k->m->control, answer, &h, &payload, err);
}

/*
 * Say COMPLETE or ABORT until the source has acknowledged, over as many connections as that
 * takes, for GOODBYE_FOR_MS; where the daemon ends, one more at the most.
 */
static int say_goodbye(struct conductor *k, enum frame_type say, enum frame_type answer,
                       struct error *err)
{
	uint64_t until_ns = clock_now_ns() + GOODBYE_FOR_MS * NSEC_PER_MSEC;
	int rc = k->m->control ? exchange(k, say, answer, err) : -ECONNRESET;

	while (is_network_error(rc) && clock_now_ns() < until_ns) {
		rc = dial_control(k, GOODBYE_FOR_MS, ORDER_STOP, err);
		if (!rc)
			rc = exchange(k, say, answer, err);
		if (wait_order(k->m, ORDER_STOP, clock_now_ns()))
			break;
	}
	return rc;
}

static int conduct(struct conductor *k, struct error *err)
{
	struct migration *m = k->m;
	int rc = connect_all(k, err);

	if (rc)
		return rc;
	migration_post(m, NEWS_WARM);
	wait_order(m, ORDER_SWITCHOVER | ORDER_STOP | ORDER_CANCEL, 0);
	rc = check_stopped(m, err);
	if (!rc)
		rc = switch_over(k, err);
	if (!rc)
		rc = pull_start(m->pull);
	if (rc)
		return rc;
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
	struct error err = ERROR_INIT;
	bool may_have_run;
	int rc;

	/* From here on the loop gives the vmstate to nobody. */
	pthread_mutex_lock(&m->lock);
	m->error = *why;
	m->given_up = true;
	may_have_run = m->may_have_run;
	pthread_mutex_unlock(&m->lock);
	if (may_have_run || !m->control)
		rc = 0;
	else
		rc = say_goodbye(k, FRAME_ABORT, FRAME_ABORT_ACK, &err);
	/* A source that doesn't know the migration any more has let its guest run on. */
	if (rc && rc != -EACCES)
		log_migration_error(m->params.id, "the source could not be told to run on: %s",
		                    err.text);
	migration_post(m, NEWS_FAILED);
}

void *conductor_main(void *arg)
{
	struct migration *m = arg;
	struct conductor *k = calloc(1, sizeof *k);
	struct error err = ERROR_INIT;
	int rc;

	thread_set_name("conductor");
	thread_prefer_promptness();
	if (!k) {
		error_set(&m->error, -ENOMEM, "out of memory");
		migration_post(m, NEWS_FAILED | NEWS_ENDED);
		return NULL;
	}
	k->m = m;
	k->timeline_step_ns = TIMELINE_STEP_MS * NSEC_PER_MSEC;
	rc = conduct(k, &err);
	if (rc) {
		if (!err.code)
			error_errno(&err, rc, "migration");
		give_up(k, &err);
	} else {
		if (say_goodbye(k, FRAME_COMPLETE, FRAME_COMPLETE_ACK, &err))
			log_migration_warning(m->params.id,
			                      "complete, but the source has not acknowledged "
			                      "and may keep its copy: %s",
			                      err.text);
		migration_post(m, NEWS_COMPLETE);
	}
	set_control(m, NULL);
	free(k);
	migration_post(m, NEWS_ENDED);
	return NULL;
}
