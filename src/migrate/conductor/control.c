/* SPDX-License-Identifier: Apache-2.0 */
/* The control connection: what is said and asked over it, and that it is there. */
#include "migrate/conductor/inside.h"

#include <errno.h>
#include <poll.h>

#include "util/clock.h"
#include "util/log.h"

/* An idle control connection is asked for a sign of life so often. */
#define PING_MS 2000u
/* Whatever was asked: a source that says nothing at all for so long is lost. */
#define SILENT_MS 5000u

void conductor_set_control(struct migration *m, struct conn *c)
{
	struct conn *old;

	pthread_mutex_lock(&m->lock);
	old = m->control;
	m->control = c;
	pthread_mutex_unlock(&m->lock);
	conn_free(old);
}

int conductor_next(struct conn *c, struct frame_header *ret, const void **ret_payload,
                   struct error *err)
{
	int rc = conn_next_frame(c, ret, ret_payload, err);

	if (rc == -EAGAIN)
		return error_set(err, -ETIMEDOUT, "the source is silent for %u ms", SILENT_MS);
	if (rc)
		return rc < 0 && err && !err->code ? error_errno(err, rc, "control connection")
		                                   : rc;
	return ret->type == FRAME_ERROR ? frame_error_decode(ret, *ret_payload, err) : 0;
}

/* The next frame, which must be of this type, but for signs of life before it. */
int conductor_expect(struct conn *c, enum frame_type type, struct frame_header *ret,
                     const void **ret_payload, struct error *err)
{
	int rc;

	do
		rc = conductor_next(c, ret, ret_payload, err);
	while (!rc && ret->type == FRAME_PONG && type != FRAME_PONG);
	if (rc)
		return rc;
	if (ret->type != type)
		return error_set(err, -EPROTO, "frame of type %u where %u must come", ret->type,
		                 type);
	return 0;
}

/* To a source that takes it, also why. */
static int say_abort(struct conductor *k)
{
	uint8_t tx[FRAME_HEADER_BYTES + FRAME_ABORT_MAX];
	struct migration *m = k->m;
	size_t len;

	pthread_mutex_lock(&m->lock);
	len = frame_abort_encode(k->reply.abort_text ? m->farewell_why : "", tx);
	pthread_mutex_unlock(&m->lock);
	return conn_send(m->control, tx, len);
}

int conductor_say(struct conductor *k, enum frame_type say, struct error *err)
{
	int rc;

	conn_set_receive_timeout(k->m->control, SILENT_MS);
	rc = say == FRAME_ABORT ? say_abort(k) : conn_send_plain(k->m->control, say);
	return rc ? error_errno(err, rc, "control connection") : 0;
}

/*
 * Ask over the control connection, and wait for the answer's first frame: never longer than
 * SILENT_MS without a sign of life.
 */
int conductor_ask(struct conductor *k, enum frame_type say, enum frame_type answer,
                  struct frame_header *ret, const void **ret_payload, struct error *err)
{
	int rc = conductor_say(k, say, err);

	return rc ? rc : conductor_expect(k->m->control, answer, ret, ret_payload, err);
}

/* The same where the answer has no more to it. */
int conductor_exchange(struct conductor *k, enum frame_type say, enum frame_type answer,
                       struct error *err)
{
	struct frame_header h;
	const void *payload;

	return conductor_ask(k, say, answer, &h, &payload, err);
}

/*
 * Whether it is of no use to go on. Before the point of no return whatever is no fault of the
 * network; after it only the source's own word that the guest must not run here.
 */
static bool is_refusal(const struct conductor *k, const struct error *err)
{
	if (k->handed_on)
		return conductor_is_verdict(err) && err->code == -EKEYREVOKED;
	return conductor_is_verdict(err) || !conductor_is_network_error(err->code);
}

/*
 * The control connection while nothing is said on it: one that is lost is dialled again, and
 * one that may be is asked for a sign of life. Return: whether it is a new one.
 */
bool conductor_keep_control(struct conductor *k)
{
	struct error err = ERROR_INIT;
	uint64_t now_ns = clock_now_ns();
	int rc;

	if (!k->m->control) {
		if (now_ns < k->dial_ns)
			return false;
		rc = conductor_dial_once(k, &err);
		k->dial_ns = rc ? conductor_next_try_ns(k) : 0;
		k->ping_ns = clock_now_ns() + PING_MS * NSEC_PER_MSEC;
		if (rc)
			log_migration_debug(k->m->params.id, "control connection: %s", err.text);
		/* From then on it is the urgent connection that the guest waits for. */
		if (!k->handed_on)
			conductor_note(k->m, err.text);
		k->refused = rc && is_refusal(k, &err) ? err : ERROR_INIT;
		return !rc;
	}
	if (now_ns < k->ping_ns)
		return false;
	rc = conductor_exchange(k, FRAME_PING, FRAME_PONG, &err);
	k->ping_ns = clock_now_ns() + PING_MS * NSEC_PER_MSEC;
	if (rc) {
		log_migration_warning(k->m->params.id, "control connection lost: %s", err.text);
		k->refused = is_refusal(k, &err) ? err : ERROR_INIT;
		conductor_set_control(k->m, NULL);
	}
	return false;
}

/* Whether the control connection, on which nothing was asked, has come to its end. */
bool conductor_control_ended(const struct conductor *k)
{
	struct pollfd fd = { .fd = k->m->control->fd, .events = POLLIN | POLLRDHUP };

	return poll(&fd, 1, 0) > 0;
}

int conductor_check_control(struct conductor *k, struct error *err)
{
	uint64_t now_ns = clock_now_ns();

	if (conductor_control_ended(k))
		return error_set(err, -ECONNRESET, "the control connection has ended");
	if (now_ns < k->ping_ns)
		return 0;
	k->ping_ns = now_ns + PING_MS * NSEC_PER_MSEC;
	return conductor_exchange(k, FRAME_PING, FRAME_PONG, err);
}
