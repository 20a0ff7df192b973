/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the page stream: TCP, TLS, and whole frames in and out.
 *
 * A connection belongs to one thread; only conn_shutdown() may be called from another,
 * to have whatever blocks on it return.
 */
#ifndef STREAM_CONN_H
#define STREAM_CONN_H

#include "stream/dialing.h"
#include "stream/frame.h"
#include "stream/hello.h"
#include "tls/tls.h"

/*
 * How long the peer may take for the TCP connect; for the TLS handshake and the HELLO together; and
 * for the probe. From beginning to end: a peer that sends a byte a second gains nothing.
 */
#define CONN_OPEN_TIMEOUT_MS 5000

struct conn {
	int fd;
	struct tls *tls;
	bool greeted;         /* the TLS handshake of an accepted one is done */
	uint64_t deadline_ns; /* while it is opened or probed: for all of that; else 0 */
	/* The frame that is being received: FRAME_PAGES_MAX bytes. */
	uint8_t *rx;
	size_t rx_have;
};

/*
 * conn_dial() - open a connection to the source, up to its HELLO_REPLY
 * @d: by which another thread can have it given up
 * @hello: what this connection is for, and the token that both ends prove
 *
 * Blocks, for the name, the connection and the rest, for CONN_OPEN_TIMEOUT_MS each. The socket is
 * blocking.
 *
 * Return: 0; -ECONNREFUSED, -ETIMEDOUT and other errnos of the network (worth another
 * try); -EACCES (certificate, name, token); -ECANCELED; what the source's ERROR said, with
 * err->from_peer where it may say that (it has proven itself, or the token is unknown to it); each
 * with @err set.
 */
int conn_dial(struct dialing *d, const struct conn_target *target, struct tls_context *tls,
              const struct hello *hello, struct conn **ret, struct hello_reply *ret_reply,
              struct error *err);

/*
 * conn_accept_begin() - a stranger's connection
 * @fd: accepted; taken over on success only
 *
 * Nothing here blocks: conn_accept_step() goes on with the TLS handshake and the HELLO whenever
 * poll() says *@ret_events of conn->fd, until it is done. How long that may take is the caller's
 * business. conn_accept_end() makes it a connection like any other, that blocks.
 *
 * conn_accept_step() returns 0 with the HELLO; -EAGAIN; or as conn_dial(). On -EPROTO, -EINVAL
 * after TLS the peer was told why.
 */
int conn_accept_begin(int fd, struct tls_context *tls, struct conn **ret, struct error *err);
int conn_accept_step(struct conn *c, short *ret_events, struct hello *ret_hello, struct error *err);
int conn_accept_end(struct conn *c, enum stream_role role);

/*
 * conn_probe() - do packets of full size get through, both ways?
 * @target: for the error's text
 *
 * A path that drops them in silence lets a connection be opened and pings be answered; pages never
 * come. Directly after conn_dial(), before anything else is asked.
 *
 * Return: 0; -ETIMEDOUT and other errnos of the network with @err set: the connection is of no more
 * use.
 */
int conn_probe(struct conn *c, const struct conn_target *target, struct error *err);

/* The source's answer to a PROBE that was just received. Return: 0 or -errno. */
int conn_answer_probe(struct conn *c);

/* The shortest round trip of late, as TCP has seen it; 0: not known. */
uint64_t conn_min_rtt_us(const struct conn *c);

struct conn *conn_free(struct conn *c);

/* From any thread: both directions end. */
void conn_shutdown(const struct conn *c);

/* No more timeouts (blocking), or no blocking at all. */
int conn_set_blocking(struct conn *c, bool blocking);

/* How long a receive on a blocking socket waits before it is -EAGAIN; 0: for good. */
void conn_set_receive_timeout(struct conn *c, unsigned int timeout_ms);

static inline int conn_send(struct conn *c, const void *frame, size_t len)
{
	return tls_write(c->tls, frame, len);
}

/* How much of a frame leaves in one packet (with segmentation offload); 0: as much as can. */
static inline void conn_set_burst(struct conn *c, uint32_t bytes)
{
	tls_set_burst(c->tls, bytes);
}

/* A frame without payload. */
int conn_send_plain(struct conn *c, enum frame_type type);

/* An ERROR frame, so that the peer's operator can read why. */
void conn_send_error(struct conn *c, const struct error *error);

/*
 * conn_next_frame() - receive one whole frame
 * @ret_payload: valid until the next call
 *
 * On a non-blocking socket -EAGAIN means that the frame isn't whole yet; what came
 * is kept. An ERROR frame is returned like any other.
 *
 * Return: 0; -EAGAIN; -ECONNRESET (closed, too) and other errnos of the connection;
 * -EPROTO with @err set.
 */
int conn_next_frame(struct conn *c, struct frame_header *ret_header, const void **ret_payload,
                    struct error *err);

/* As conn_next_frame(), but an ERROR or any type other than @type is a failure with @err set. */
int conn_expect_frame(struct conn *c, enum frame_type type, struct frame_header *ret_header,
                      const void **ret_payload, struct error *err);

#endif
