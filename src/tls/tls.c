/* SPDX-License-Identifier: Apache-2.0 */
#include "tls/tls_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>

/* What goes out in one write(): some of an answer's records, for each connection has such a buffer;
 * and a window of requests. */
#define ANSWER_BUFFER_BYTES (80 * 1024)
#define REQUEST_BUFFER_BYTES (4 * 1024)
/* What an exported secret is for: it says so itself, and there is one for each use. */
#define PROOF_LABEL "EXPORTER-postcopy-token"

struct tls {
	SSL *ssl;
	int fd;
	struct tls_sink sink;
	const struct tls_context *ctx;
	struct tls_key_use key_use;
	/* How the caller waits; NULL: by poll(), for as long as it takes. */
	int (*wait)(void *arg, short events, struct error *err);
	void *wait_arg;
	char description[64];
	struct tls_peer peer;
	const char *alert; /* that the peer has ended it with */
};

/*
 * A process that was stopped and goes on: receiving with a time limit then ends with EINTR, also
 * where no signal is handled (signal(7)), and means nothing.
 */
static bool was_interrupted(int reason, int saved_errno)
{
	return reason == SSL_ERROR_WANT_READ && saved_errno == EINTR;
}

static int handshake_error(struct tls *tls, int reason, int saved_errno, struct error *err)
{
	/* An end of file in the middle of it comes as an orderly end. */
	if (reason == SSL_ERROR_SYSCALL || reason == SSL_ERROR_ZERO_RETURN) {
		ERR_clear_error();
		if (saved_errno)
			return error_errno(err, -saved_errno, "TLS handshake");
		return error_set(err, -ECONNRESET, "TLS handshake: the peer closed");
	}
	return tls_refusal(tls->ssl, &tls->peer, err);
}

/*
 * Records are gathered and go to the socket some at a time: an answer of 256 KiB has 16 of them,
 * and each write() would wake the whole network stack anew.
 */
static bool attach_socket(SSL *ssl, struct tls_sink *sink, bool server)
{
	BIO *socket = BIO_new_socket(sink->fd, BIO_NOCLOSE);
	BIO *out = tls_sink_new(sink);
	BIO *gather = BIO_new(BIO_f_buffer());

	if (!socket || !out || !gather ||
	    BIO_set_write_buffer_size(gather,
	                              server ? ANSWER_BUFFER_BYTES : REQUEST_BUFFER_BYTES) != 1) {
		BIO_free(socket);
		BIO_free(out);
		BIO_free(gather);
		return false;
	}
	SSL_set0_rbio(ssl, socket);
	SSL_set0_wbio(ssl, BIO_push(gather, out));
	return true;
}

int tls_open(struct tls_context *ctx, int fd, bool server, struct tls **ret, struct error *err)
{
	struct tls *tls = calloc(1, sizeof *tls);

	if (!tls)
		return error_set(err, -ENOMEM, "TLS: out of memory");
	tls->fd = tls->sink.fd = fd;
	tls->ctx = ctx;
	tls->ssl = tls_context_open(ctx, server, &tls->peer);
	if (!tls->ssl || !attach_socket(tls->ssl, &tls->sink, server)) {
		tls_free(tls);
		return error_set(err, -ENOMEM, "TLS: %s", tls_reason());
	}
	if (server)
		SSL_set_accept_state(tls->ssl);
	else
		SSL_set_connect_state(tls->ssl);
	*ret = tls;
	return 0;
}

/* Done: who is it? */
static int settle_peer(struct tls *tls, struct error *err)
{
	int rc = tls_check_peer(tls->ctx, tls->ssl, &tls->peer, err);

	snprintf(tls->description, sizeof tls->description, "%s %s", SSL_get_version(tls->ssl),
	         SSL_get_cipher_name(tls->ssl));
	return rc;
}

int tls_handshake_step(struct tls *tls, short *ret_events, struct error *err)
{
	int ret, reason, saved_errno;

	do {
		errno = 0;
		ret = SSL_do_handshake(tls->ssl);
		saved_errno = errno;
		if (ret == 1)
			return settle_peer(tls, err);
		reason = SSL_get_error(tls->ssl, ret);
	} while (was_interrupted(reason, saved_errno));
	if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE)
		return handshake_error(tls, reason, saved_errno, err);
	ERR_clear_error();
	*ret_events = reason == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
	return -EAGAIN;
}

int tls_handshake(struct tls_context *ctx, int fd, bool server, struct tls **ret, struct error *err)
{
	return tls_handshake_wait(ctx, fd, server, NULL, NULL, ret, err);
}

int tls_handshake_wait(struct tls_context *ctx, int fd, bool server,
                       int (*wait)(void *arg, short events, struct error *err), void *arg,
                       struct tls **ret, struct error *err)
{
	struct tls *tls;
	short events;
	int rc = tls_open(ctx, fd, server, &tls, err);

	if (rc)
		return rc;
	while ((rc = tls_handshake_step(tls, &events, err)) == -EAGAIN) {
		/* A socket that blocks: its time is over. */
		rc = wait ? wait(arg, events, err)
		          : error_set(err, -ETIMEDOUT, "TLS handshake: the peer is silent");
		if (rc < 0)
			break;
	}
	if (rc)
		tls_free(tls);
	else
		*ret = tls;
	return rc;
}

struct tls *tls_free(struct tls *tls)
{
	if (!tls)
		return NULL;
	/* A connection that was cut says nothing against its session. */
	if (tls->ssl)
		SSL_set_shutdown(tls->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(tls->ssl);
	free(tls);
	return NULL;
}

/* What a failed SSL_read() or SSL_write() means; 0 for an orderly end. */
static int io_error(struct tls *tls, int ret, int saved_errno)
{
	int reason = SSL_get_error(tls->ssl, ret);

	if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE)
		return -EAGAIN;
	if (reason == SSL_ERROR_SSL)
		tls->alert = tls_queued_alert();
	ERR_clear_error();
	if (reason == SSL_ERROR_ZERO_RETURN)
		return 0;
	if (reason == SSL_ERROR_SYSCALL)
		return saved_errno ? -saved_errno : -ECONNRESET;
	return -EPROTO;
}

ssize_t tls_read(struct tls *tls, void *buf, size_t len)
{
	size_t n;
	int ret, saved_errno;

	do {
		errno = 0;
		ret = SSL_read_ex(tls->ssl, buf, len, &n);
		saved_errno = errno;
	} while (ret != 1 && was_interrupted(SSL_get_error(tls->ssl, ret), saved_errno));
	return ret == 1 ? (ssize_t)n : io_error(tls, ret, saved_errno);
}

const char *tls_alert(const struct tls *tls)
{
	return tls->alert;
}

bool tls_pending(const struct tls *tls)
{
	return SSL_has_pending(tls->ssl);
}

size_t tls_decrypted(const struct tls *tls)
{
	return (size_t)SSL_pending(tls->ssl);
}

void tls_set_wait(struct tls *tls, int (*wait)(void *arg, short events, struct error *err),
                  void *arg)
{
	tls->wait = wait;
	tls->wait_arg = arg;
}

static int wait_writable(const struct tls *tls)
{
	struct pollfd fd = { .fd = tls->fd, .events = POLLOUT };

	if (tls->wait)
		return tls->wait(tls->wait_arg, POLLOUT, NULL);
	return poll(&fd, 1, -1) < 0 && errno != EINTR ? -errno : 0;
}

/* Have what was gathered go out. */
static int flush(struct tls *tls)
{
	BIO *gather = SSL_get_wbio(tls->ssl);

	for (;;) {
		int rc;

		errno = 0;
		if (BIO_flush(gather) > 0)
			return 0;
		if (!BIO_should_retry(gather))
			return errno ? -errno : -EPIPE;
		rc = wait_writable(tls);
		if (rc)
			return rc;
	}
}

/* Here and now: else the next read would send it, and would have to wait for the socket. */
static int rekey(struct tls *tls)
{
	int ret, rc = 0;

	while (!rc) {
		errno = 0;
		ret = SSL_do_handshake(tls->ssl);
		if (ret == 1)
			return 0;
		rc = io_error(tls, ret, errno);
		if (rc == -EAGAIN)
			rc = wait_writable(tls);
		else if (!rc)
			rc = -EPIPE;
	}
	return rc;
}

int tls_write(struct tls *tls, const void *buf, size_t len)
{
	const char *from = buf;

	while (len) {
		size_t n;
		int ret, rc;

		errno = 0;
		ret = SSL_write_ex(tls->ssl, from, len, &n);
		if (ret == 1) {
			from += n;
			len -= n;
			rc = tls_note_records(tls->ssl, &tls->key_use, n) ? rekey(tls) : 0;
			if (rc)
				return rc;
			continue;
		}
		rc = io_error(tls, ret, errno);
		if (rc == -EAGAIN)
			rc = wait_writable(tls);
		else if (!rc)
			rc = -EPIPE;
		if (rc)
			return rc;
	}
	return flush(tls);
}

void tls_set_burst(struct tls *tls, uint32_t bytes)
{
	tls->sink.burst_bytes = bytes;
}

void tls_give_back(struct tls *tls)
{
	/* Where they can't be had now, they are when something comes. */
	if (!SSL_has_pending(tls->ssl) && SSL_free_buffers(tls->ssl) == 1)
		(void)SSL_alloc_buffers(tls->ssl);
	ERR_clear_error();
}

void tls_thread_end(void)
{
	OPENSSL_thread_stop();
}

uint64_t tls_key_updates(const struct tls *tls)
{
	return tls->key_use.updates;
}

const char *tls_description(const struct tls *tls)
{
	return tls->description;
}

const char *tls_peer_name(const struct tls *tls)
{
	return tls->peer.name;
}

bool tls_peer_is(const struct tls *tls, const char *pattern)
{
	X509 *cert = SSL_get1_peer_certificate(tls->ssl);
	GENERAL_NAMES *sans =
	        cert ? X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL) : NULL;
	bool is_one = false;

	for (int i = 0; !is_one && i < sk_GENERAL_NAME_num(sans); i++) {
		char name[TLS_NAME_MAX];
		enum tls_name_kind kind;

		is_one = tls_read_san(sk_GENERAL_NAME_value(sans, i), &kind, name) &&
		         tls_name_matches(pattern, kind, name);
	}
	GENERAL_NAMES_free(sans);
	X509_free(cert);
	return is_one;
}

int tls_prove(const struct tls *tls, const void *secret, size_t secret_len, const void *said,
              size_t said_len, uint8_t ret[TLS_PROOF_BYTES])
{
	uint8_t shared[TLS_PROOF_BYTES];
	size_t len;
	bool done;

	done = SSL_export_keying_material(tls->ssl, shared, sizeof shared, PROOF_LABEL,
	                                  strlen(PROOF_LABEL), said, said_len, 1) == 1 &&
	       EVP_Q_mac(NULL, "HMAC", NULL, "SHA256", NULL, secret, secret_len, shared,
	                 sizeof shared, ret, TLS_PROOF_BYTES, &len);
	OPENSSL_cleanse(shared, sizeof shared);
	ERR_clear_error();
	return done ? 0 : -ENOMEM;
}

int tls_check_proof(const struct tls *tls, const void *secret, size_t secret_len, const void *said,
                    size_t said_len, const uint8_t proof[TLS_PROOF_BYTES])
{
	uint8_t good[TLS_PROOF_BYTES];
	int rc = tls_prove(tls, secret, secret_len, said, said_len, good);

	if (!rc && CRYPTO_memcmp(good, proof, sizeof good))
		rc = -EACCES;
	OPENSSL_cleanse(good, sizeof good);
	return rc;
}

bool tls_is_resumed(const struct tls *tls)
{
	return SSL_session_reused(tls->ssl);
}
