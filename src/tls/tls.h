/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3, mutual, over a connected TCP socket. Only this directory knows OpenSSL.
 *
 * A context holds this host's certificate and key, the authority that peers must be
 * signed by, and the names (SAN: URI or DNS) that may speak to us; it serves both
 * directions. A connection belongs to one thread. On a blocking socket calls block;
 * on a non-blocking one they return -EAGAIN and are to be called again after poll().
 */
#ifndef TLS_TLS_H
#define TLS_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

#define TLS_NAMES_MAX 64
/*
 * AES-GCM is safe for 2^24.5 records of one key (RFC 8446, 5.5), some 360 GiB; OpenSSL counts
 * none. Each side counts its own and sends KeyUpdate for its own direction.
 */
#define TLS_RECORDS_PER_KEY (1u << 22)

struct tls_config {
	const char *alpn;                         /* the protocol inside: "postcopy/1", "h2" */
	const char *cert_path;                    /* PEM, this host's certificate and its chain */
	const char *key_path;                     /* PEM, its private key */
	const char *ca_path;                      /* PEM, the authorities of the peers */
	const char *allowed_names[TLS_NAMES_MAX]; /* SANs; none: any peer of the authority */
	size_t n_allowed_names;
	uint64_t records_per_key; /* then ours is replaced; 0: TLS_RECORDS_PER_KEY */
};

struct tls_context;
struct tls;

/*
 * tls_context_new() - load and check the files
 * @config: borrowed, also the strings; must outlive the context
 *
 * Return: 0, or a negative errno with @err naming the file.
 */
int tls_context_new(const struct tls_config *config, struct tls_context **ret, struct error *err);
struct tls_context *tls_context_free(struct tls_context *ctx);

/*
 * tls_context_reload() - load the files anew, for the connections to come
 *
 * Those that are open keep what they were opened with. From any thread. Return: as
 * tls_context_new(); on failure all stays as it was.
 */
int tls_context_reload(struct tls_context *ctx, struct error *err);

/* When the certificate expires: seconds since the epoch; 0 where that can't be told. */
int64_t tls_context_expiry(struct tls_context *ctx);

/*
 * tls_handshake() - open TLS on a connected socket, and check who the peer is
 * @fd: stays the caller's; blocking, with a receive timeout to bound the handshake
 * @server: accept rather than connect
 *
 * Return: 0; -EPROTO, -EACCES (certificate or name refused), -ETIMEDOUT with @err set.
 */
int tls_handshake(struct tls_context *ctx, int fd, bool server, struct tls **ret,
                  struct error *err);

/* The same on a non-blocking socket. @wait: until poll() says @events; its failure is returned. */
int tls_handshake_wait(struct tls_context *ctx, int fd, bool server,
                       int (*wait)(void *arg, short events, struct error *err), void *arg,
                       struct tls **ret, struct error *err);

/*
 * tls_open(), tls_handshake_step() - the same for one who has other things to do meanwhile
 * @fd: non-blocking; stays the caller's
 * @ret_events: what to poll() for where it is not done yet
 *
 * Return: 0; -EAGAIN; or as tls_handshake(). Nothing is read or written before it is done.
 */
int tls_open(struct tls_context *ctx, int fd, bool server, struct tls **ret, struct error *err);
int tls_handshake_step(struct tls *tls, short *ret_events, struct error *err);

struct tls *tls_free(struct tls *tls);

/* How tls_write() waits for a non-blocking socket from now on; NULL: for as long as it takes. */
void tls_set_wait(struct tls *tls, int (*wait)(void *arg, short events, struct error *err),
                  void *arg);

/*
 * tls_read() - some bytes
 *
 * Return: how many (at least 1); 0 at the end of the stream; -EAGAIN; -ECONNRESET and
 * other errnos of the socket; -EPROTO for broken TLS.
 */
ssize_t tls_read(struct tls *tls, void *buf, size_t len);

/* Whether tls_read() has bytes that poll() doesn't know of. */
bool tls_pending(const struct tls *tls);

/*
 * tls_write() - all bytes, in records of up to 16 KiB
 *
 * A non-blocking socket is waited for: what this process sends without being asked is small.
 *
 * Return: 0 or a negative errno, as tls_read().
 */
int tls_write(struct tls *tls, const void *buf, size_t len);

/*
 * tls_thread_end() - give back what OpenSSL holds for the calling thread
 *
 * For a thread that nobody joins, before it says that it is gone: the library must not be
 * taken down under it.
 */
void tls_thread_end(void);

/* How many KeyUpdates were sent. */
uint64_t tls_key_updates(const struct tls *tls);

/* "TLSv1.3 TLS_AES_128_GCM_SHA256"; and the peer's name that was allowed. Owned by @tls. */
const char *tls_description(const struct tls *tls);
const char *tls_peer_name(const struct tls *tls);

/* Whether it goes on with an earlier connection's session, without a whole handshake. */
bool tls_is_resumed(const struct tls *tls);

#endif
