/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS with no socket: for a loop that reads and writes itself.
 *
 *   from the socket: tls_pipe_feed() -> tls_pipe_handshake(), then tls_pipe_read()
 *   to the socket:   tls_pipe_write() -> tls_pipe_take()
 *
 * Nothing blocks. After each of the calls tls_pipe_pending() bytes wait to be taken, also after a
 * handshake that failed: the peer is told why by an alert. The server's side only.
 */
#ifndef TLS_TLS_PIPE_H
#define TLS_TLS_PIPE_H

#include "tls/tls.h"

struct tls_pipe;

int tls_pipe_new(struct tls_context *ctx, struct tls_pipe **ret, struct error *err);
struct tls_pipe *tls_pipe_free(struct tls_pipe *p);

/* What has come from the socket. Return: 0 or -ENOMEM. */
int tls_pipe_feed(struct tls_pipe *p, const void *ciphertext, size_t len);

/*
 * tls_pipe_handshake() - go on with what was fed, and at its end check who the peer is
 *
 * Return: 0 when done; -EAGAIN: more is to be fed; -EPROTO, -EACCES (certificate or name
 * refused) with @err set.
 */
int tls_pipe_handshake(struct tls_pipe *p, struct error *err);

/* After the handshake. Return: bytes; 0 at the end of the stream; -EAGAIN; -EPROTO. */
ssize_t tls_pipe_read(struct tls_pipe *p, void *buf, size_t len);

/* After the handshake, all of it. Return: 0; -EPROTO where TLS is broken or memory is short. */
int tls_pipe_write(struct tls_pipe *p, const void *buf, size_t len);

/* For the socket. */
size_t tls_pipe_pending(const struct tls_pipe *p);
size_t tls_pipe_take(struct tls_pipe *p, void *buf, size_t size);

/* Who a peer is: the most that one of its names is. */
enum tls_pipe_peer {
	TLS_PIPE_REFUSED, /* it was let in by names of before */
	TLS_PIPE_LIMITED,
	TLS_PIPE_ALLOWED,
};

/* After the handshake, and any time later: by the names that the context was loaded with last. */
enum tls_pipe_peer tls_pipe_judge(const struct tls_pipe *p);

/* The name that was allowed in the handshake, or the one that was not. */
const char *tls_pipe_peer_name(const struct tls_pipe *p);

#endif
