/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3, mutual, over a connected TCP socket. Only this directory knows OpenSSL.
 *
 * A context holds this host's certificate and key, the authority that peers must be
 * signed by, and the names (SAN: URI or DNS) that may speak to us; it serves both
 * directions. A connection belongs to one thread. On a blocking socket calls block;
 * on a non-blocking one they return -EAGAIN and are to be called again after poll().
 *
 * Names are compared by kind: what has a colon is a URI, anything else a DNS name ("URI:" and
 * "DNS:", as openssl prints them, may stand in front). A URI that ends in a slash and an asterisk
 * allows all URIs below it, *.example.org all DNS names below that domain.
 *
 * A peer is refused within the handshake, where an alert can say why. Of those that TLS has
 * OpenSSL sends certificate_unknown for a name that is not allowed, and the fitting one else.
 *
 * Sessions are resumed: a connection that was lost is back with one signature less on either side.
 * A session ends at the latest when looking at the certificates again would find something else.
 * The files, the CRLs and the names are those of its SSL_CTX, and so are the keys of its tickets:
 * a reload ends all sessions. So only time can change the answer, and a session carries when:
 * the earliest end of a certificate in the verified chain and of a CRL, and SESSION_S from the
 * handshake that showed the certificate, however often it was resumed since. After that there is
 * a whole handshake, and it says what is wrong. Both sides count so, for both look at one another.
 */
#ifndef TLS_TLS_H
#define TLS_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

/*
 * AES-GCM is safe for 2^24.5 records of one key (RFC 8446, 5.5), some 360 GiB; OpenSSL counts
 * none. Each side counts its own and sends KeyUpdate for its own direction.
 */
#define TLS_RECORDS_PER_KEY (1u << 22)

/* Of tls_prove(). */
#define TLS_PROOF_BYTES 32

struct tls_config {
	const char *alpn;      /* the protocol inside: "postcopy/1", "h2" */
	const char *cert_path; /* PEM, this host's certificate and its chain */
	const char *key_path;  /* PEM, its private key */
	const char *ca_path;   /* PEM, the authorities of the peers */
	const char *crl_path;  /* PEM, a CRL of each authority; NULL: nothing is revoked */
	/* Each passed by tls_name_check(); none at all: any peer of the CA, or ... */
	const char **allowed_names;
	size_t n_allowed_names;
	/* Let in as well, but not for everything: the peer of a connection is told apart. */
	const char **limited_names;
	size_t n_limited_names;
	bool needs_name;          /* ... nobody */
	bool wipes;               /* what was received is wiped when it is read: it has secrets */
	uint64_t records_per_key; /* then ours is replaced; 0: TLS_RECORDS_PER_KEY */
	unsigned int session_s;   /* how long one handshake serves for others; 0: 600 */
};

struct tls_context;
struct tls;

/* Whether @pattern can match a name at all. Return: 0, or -EINVAL with @err saying why not. */
int tls_name_check(const char *pattern, struct error *err);

/*
 * tls_context_new() - load and check the files
 * @config: copied; its strings and names are borrowed until a reload with others, or the end
 *
 * Return: 0, or a negative errno with @err naming the file.
 */
int tls_context_new(const struct tls_config *config, struct tls_context **ret, struct error *err);
struct tls_context *tls_context_free(struct tls_context *ctx);

/*
 * tls_context_reload() - load the files anew, for the connections to come
 * @config: other files and names; of the same protocol. NULL: those of before
 *
 * Those that are open keep what they were opened with. From any thread. Return: as
 * tls_context_new(); on failure all stays as it was.
 */
int tls_context_reload(struct tls_context *ctx, const struct tls_config *config, struct error *err);

/*
 * tls_check_files() - what would keep peers from accepting this host, beyond files that load
 * @tell: called for each thing that is wrong; or for the one error of tls_context_new()
 */
void tls_check_files(const struct tls_config *config,
                     void (*tell)(void *arg, const struct error *err), void *arg);

/* When the certificate expires: seconds since the epoch; 0 where that can't be told. */
int64_t tls_context_expiry(struct tls_context *ctx);

/* When the first of the CRLs wants to be replaced by a newer one; after it, nobody gets in. */
int64_t tls_context_crl_expiry(struct tls_context *ctx);

/*
 * tls_handshake() - open TLS on a connected socket, and check who the peer is
 * @fd: stays the caller's; blocking, with a receive timeout to bound the handshake
 * @server: accept rather than connect
 *
 * Return: 0; -EPROTO, -EACCES (either side refuses the other), -ETIMEDOUT with @err set.
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

/*
 * What the peer said when it ended the connection by an alert, once tls_read() or tls_write() has
 * failed; else NULL. A client's certificate is refused after its handshake is done.
 */
const char *tls_alert(const struct tls *tls);

/* Whether tls_read() has bytes that poll() doesn't know of. */
bool tls_pending(const struct tls *tls);

/* How many bytes tls_read() has in any case, without the socket: the rest of a record. */
size_t tls_decrypted(const struct tls *tls);

/*
 * tls_write() - all bytes, in records of up to 16 KiB
 *
 * A non-blocking socket is waited for: what this process sends without being asked is small.
 *
 * Return: 0 or a negative errno, as tls_read().
 */
int tls_write(struct tls *tls, const void *buf, size_t len);

/*
 * tls_set_burst() - how much goes to the network as one packet from now on, about
 * @bytes: 0: as much as there is
 *
 * With segmentation offload a packet is up to 64 KiB, which others wait for.
 */
void tls_set_burst(struct tls *tls, uint32_t bytes);

/*
 * tls_give_back() - what buffers have taken that are empty now
 *
 * Others are there at once, that take no memory before they are used. Where large records have
 * passed, and small ones follow.
 */
void tls_give_back(struct tls *tls);

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

/* After the handshake: whether one of the peer's names is allowed by @pattern (tls_name_check()).
 */
bool tls_peer_is(const struct tls *tls, const char *pattern);

/*
 * tls_prove() - a proof that this end knows a secret, good on this connection only
 * @said: what else it stands for
 *
 * HMAC-SHA256 by the secret of what both ends of this TLS connection, and nobody else, can derive
 * from its keys (RFC 8446, 7.5) for @said: the random bytes of both are in it. So a proof that was
 * heard on one connection proves nothing on another, resumed or not, and there is no need to ask
 * for one first. After the handshake. Return: 0 or -ENOMEM.
 */
int tls_prove(const struct tls *tls, const void *secret, size_t secret_len, const void *said,
              size_t said_len, uint8_t ret[TLS_PROOF_BYTES]);

/*
 * tls_check_proof() - is it that of somebody who knows the secret?
 *
 * Takes as long whatever is in it. Return: 0; -EACCES; -ENOMEM: nobody knows.
 */
int tls_check_proof(const struct tls *tls, const void *secret, size_t secret_len, const void *said,
                    size_t said_len, const uint8_t proof[TLS_PROOF_BYTES]);

/* Whether it goes on with an earlier connection's session, without a whole handshake. */
bool tls_is_resumed(const struct tls *tls);

#endif
