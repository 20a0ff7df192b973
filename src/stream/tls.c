/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/tls.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "stream/frame.h"
#include "util/cleanup.h"

/* Four records at a time: one read() then serves several SSL_read(). */
#define READ_BUFFER_BYTES (64 * 1024)
/* What goes out in one write(): more than the largest answer with the overhead of its records; and
 * a window of requests. */
#define ANSWER_BUFFER_BYTES (320 * 1024)
#define REQUEST_BUFFER_BYTES (16 * 1024)
/* AES-128 first: the cheapest of the three on anything with AES instructions. */
#define CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"

static const unsigned char alpn_wire[] = "\x0a" STREAM_ALPN;
_Static_assert(sizeof STREAM_ALPN - 1 == 0x0a, "alpn_wire begins with the name's length");

struct tls_context {
	SSL_CTX *server;
	SSL_CTX *client;
	const struct tls_config *config;
};

struct tls {
	SSL *ssl;
	int fd;
	char description[64];
	char peer_name[256];
};

/* The newest reason in OpenSSL's queue, and the queue emptied. */
static const char *ssl_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	return reason ? reason : "unknown TLS failure";
}

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *outlen,
                       const unsigned char *in, unsigned int inlen, void *arg)
{
	unsigned char *selected;

	(void)ssl;
	(void)arg;
	if (SSL_select_next_proto(&selected, outlen, alpn_wire, sizeof alpn_wire - 1, in, inlen) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = selected;
	return SSL_TLSEXT_ERR_OK;
}

static int load_files(SSL_CTX *ctx, const struct tls_config *config, struct error *err)
{
	static const struct {
		const char *what;
		size_t offset;
	} files[] = {
		{ "certificate", offsetof(struct tls_config, cert_path) },
		{ "key", offsetof(struct tls_config, key_path) },
		{ "CA", offsetof(struct tls_config, ca_path) },
	};

	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		const char *path = *(const char *const *)((const char *)config + files[i].offset);

		if (access(path, R_OK))
			return error_errno(err, -errno, "%s \"%s\"", files[i].what, path);
	}
	if (SSL_CTX_use_certificate_chain_file(ctx, config->cert_path) != 1)
		return error_set(err, -EINVAL, "certificate \"%s\": %s", config->cert_path,
		                 ssl_reason());
	if (SSL_CTX_use_PrivateKey_file(ctx, config->key_path, SSL_FILETYPE_PEM) != 1)
		return error_set(err, -EINVAL, "key \"%s\": %s", config->key_path, ssl_reason());
	if (SSL_CTX_check_private_key(ctx) != 1)
		return error_set(err, -EINVAL, "key \"%s\" does not belong to certificate \"%s\"",
		                 config->key_path, config->cert_path);
	if (SSL_CTX_load_verify_locations(ctx, config->ca_path, NULL) != 1)
		return error_set(err, -EINVAL, "CA \"%s\": %s", config->ca_path, ssl_reason());
	return 0;
}

static int make_ctx(const struct tls_config *config, bool server, SSL_CTX **ret, struct error *err)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return error_set(err, -ENOMEM, "TLS context: %s", ssl_reason());
	*ret = ctx;
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, CIPHERSUITES) != 1)
		return error_set(err, -EINVAL, "TLS context: %s", ssl_reason());
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	/* Our frames have lengths: a connection cut without a goodbye is just cut. */
	SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, READ_BUFFER_BYTES);
	if (server) {
		SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
		SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
		/* Connections live as long as a migration: there is nothing to resume. */
		SSL_CTX_set_num_tickets(ctx, 0);
		SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	} else if (SSL_CTX_set_alpn_protos(ctx, alpn_wire, sizeof alpn_wire - 1)) {
		return error_set(err, -EINVAL, "TLS context: %s", ssl_reason());
	}
	return load_files(ctx, config, err);
}

int tls_context_new(const struct tls_config *config, struct tls_context **ret, struct error *err)
{
	struct tls_context *ctx = calloc(1, sizeof *ctx);
	int rc;

	if (!ctx)
		return error_set(err, -ENOMEM, "TLS context: out of memory");
	ctx->config = config;
	rc = make_ctx(config, true, &ctx->server, err);
	if (!rc)
		rc = make_ctx(config, false, &ctx->client, err);
	if (rc) {
		tls_context_free(ctx);
		return rc;
	}
	*ret = ctx;
	return 0;
}

struct tls_context *tls_context_free(struct tls_context *ctx)
{
	if (!ctx)
		return NULL;
	SSL_CTX_free(ctx->server);
	SSL_CTX_free(ctx->client);
	free(ctx);
	return NULL;
}

static bool name_allowed(const struct tls_config *config, const char *name)
{
	for (size_t i = 0; i < config->n_allowed_names; i++)
		if (!strcmp(config->allowed_names[i], name))
			return true;
	return !config->n_allowed_names;
}

/*
 * The first of the certificate's SANs that is allowed, else its first SAN at all (for the
 * message). Names with a NUL inside are passed over: they could look like another.
 */
static bool find_allowed_name(const struct tls_config *config, X509 *cert, char *name, size_t size)
{
	GENERAL_NAMES *sans = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	bool allowed = false;

	snprintf(name, size, "(no SAN)");
	for (int i = 0, seen = 0; !allowed && i < sk_GENERAL_NAME_num(sans); i++) {
		const GENERAL_NAME *san = sk_GENERAL_NAME_value(sans, i);
		const ASN1_STRING *string;
		char text[256];

		if (san->type != GEN_URI && san->type != GEN_DNS)
			continue;
		string = san->type == GEN_URI ? san->d.uniformResourceIdentifier : san->d.dNSName;
		if (ASN1_STRING_length(string) >= (int)sizeof text)
			continue;
		memcpy(text, ASN1_STRING_get0_data(string), (size_t)ASN1_STRING_length(string));
		text[ASN1_STRING_length(string)] = 0;
		if (strlen(text) != (size_t)ASN1_STRING_length(string))
			continue;
		allowed = name_allowed(config, text);
		if (allowed || !seen++)
			snprintf(name, size, "%s", text);
	}
	GENERAL_NAMES_free(sans);
	return allowed || !config->n_allowed_names;
}

static int check_peer(const struct tls_config *config, struct tls *tls, struct error *err)
{
	const unsigned char *alpn;
	unsigned int alpn_len;
	X509 *cert = SSL_get1_peer_certificate(tls->ssl);
	bool allowed;

	if (!cert)
		return error_set(err, -EACCES, "TLS: the peer showed no certificate");
	allowed = find_allowed_name(config, cert, tls->peer_name, sizeof tls->peer_name);
	X509_free(cert);
	if (!allowed)
		return error_set(err, -EACCES,
		                 "TLS: peer \"%s\" is not among the allowed names (--allow-peer)",
		                 tls->peer_name);
	SSL_get0_alpn_selected(tls->ssl, &alpn, &alpn_len);
	if (alpn_len != sizeof STREAM_ALPN - 1 || memcmp(alpn, STREAM_ALPN, alpn_len))
		return error_set(err, -EPROTO, "TLS: the peer does not speak \"%s\"", STREAM_ALPN);
	return 0;
}

static int handshake_error(struct tls *tls, int ret, int saved_errno, struct error *err)
{
	long verify = SSL_get_verify_result(tls->ssl);

	if (SSL_get_error(tls->ssl, ret) == SSL_ERROR_SYSCALL || saved_errno == EAGAIN) {
		ERR_clear_error();
		if (saved_errno == EAGAIN)
			return error_set(err, -ETIMEDOUT, "TLS handshake: the peer is silent");
		if (saved_errno)
			return error_errno(err, -saved_errno, "TLS handshake");
		return error_set(err, -ECONNRESET, "TLS handshake: the peer closed");
	}
	if (verify != X509_V_OK) {
		ERR_clear_error();
		return error_set(err, -EACCES, "TLS: the peer's certificate is refused: %s",
		                 X509_verify_cert_error_string(verify));
	}
	return error_set(err, -EPROTO, "TLS handshake: %s", ssl_reason());
}

/*
 * Records are gathered and go to the socket in one write(): an answer of 256 KiB has 16 of them,
 * and each write() would wake the whole network stack anew.
 */
static bool attach_socket(SSL *ssl, int fd, bool server)
{
	BIO *socket = BIO_new_socket(fd, BIO_NOCLOSE);
	BIO *gather = BIO_new(BIO_f_buffer());

	if (!socket || !gather ||
	    BIO_set_write_buffer_size(gather,
	                              server ? ANSWER_BUFFER_BYTES : REQUEST_BUFFER_BYTES) != 1) {
		BIO_free(socket);
		BIO_free(gather);
		return false;
	}
	SSL_set0_rbio(ssl, socket);
	BIO_up_ref(socket);
	SSL_set0_wbio(ssl, BIO_push(gather, socket));
	return true;
}

int tls_handshake(struct tls_context *ctx, int fd, bool server, struct tls **ret, struct error *err)
{
	struct tls *tls = calloc(1, sizeof *tls);
	int rc;

	if (!tls)
		return error_set(err, -ENOMEM, "TLS: out of memory");
	tls->fd = fd;
	tls->ssl = SSL_new(server ? ctx->server : ctx->client);
	if (!tls->ssl || !attach_socket(tls->ssl, fd, server)) {
		rc = error_set(err, -ENOMEM, "TLS: %s", ssl_reason());
		goto fail;
	}
	errno = 0;
	rc = server ? SSL_accept(tls->ssl) : SSL_connect(tls->ssl);
	if (rc != 1) {
		rc = handshake_error(tls, rc, errno, err);
		goto fail;
	}
	rc = check_peer(ctx->config, tls, err);
	if (rc)
		goto fail;
	snprintf(tls->description, sizeof tls->description, "%s %s", SSL_get_version(tls->ssl),
	         SSL_get_cipher_name(tls->ssl));
	*ret = tls;
	return 0;
fail:
	tls_free(tls);
	return rc;
}

struct tls *tls_free(struct tls *tls)
{
	if (!tls)
		return NULL;
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
	int ret;

	errno = 0;
	ret = SSL_read_ex(tls->ssl, buf, len, &n);
	return ret == 1 ? (ssize_t)n : io_error(tls, ret, errno);
}

bool tls_pending(const struct tls *tls)
{
	return SSL_has_pending(tls->ssl);
}

static int wait_writable(const struct tls *tls)
{
	struct pollfd fd = { .fd = tls->fd, .events = POLLOUT };

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

void tls_thread_end(void)
{
	OPENSSL_thread_stop();
}

const char *tls_description(const struct tls *tls)
{
	return tls->description;
}

const char *tls_peer_name(const struct tls *tls)
{
	return tls->peer_name;
}
