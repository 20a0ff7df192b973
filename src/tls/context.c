/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts: what is loaded from files, and who may be a peer. */
#include "tls/tls_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

/* Four records at a time: one read() then serves several SSL_read(). */
#define READ_BUFFER_BYTES (64 * 1024)
/* How long a session may be resumed. */
#define SESSION_S 600
/* AES-128 first: the cheapest of the three on anything with AES instructions. */
#define CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"

const char *tls_reason(void)
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

	const struct tls_context *ctx = arg;

	(void)ssl;
	if (SSL_select_next_proto(&selected, outlen, ctx->alpn_wire, 1u + ctx->alpn_wire[0], in,
	                          inlen) != OPENSSL_NPN_NEGOTIATED)
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
		                 tls_reason());
	if (SSL_CTX_use_PrivateKey_file(ctx, config->key_path, SSL_FILETYPE_PEM) != 1)
		return error_set(err, -EINVAL, "key \"%s\": %s", config->key_path, tls_reason());
	if (SSL_CTX_check_private_key(ctx) != 1)
		return error_set(err, -EINVAL, "key \"%s\" does not belong to certificate \"%s\"",
		                 config->key_path, config->cert_path);
	if (SSL_CTX_load_verify_locations(ctx, config->ca_path, NULL) != 1)
		return error_set(err, -EINVAL, "CA \"%s\": %s", config->ca_path, tls_reason());
	return 0;
}

/*
 * Keep the client's newest session. It was made with one peer; another one can't read its
 * ticket and makes a whole handshake of it.
 */
static int keep_session(SSL *ssl, SSL_SESSION *session)
{
	SSL_CTX *ctx = SSL_get_SSL_CTX(ssl);
	struct tls_context *owner = SSL_CTX_get_app_data(ctx);
	SSL_SESSION *old;

	pthread_mutex_lock(&owner->lock);
	/* One of the files before is of no more use. */
	old = ctx == owner->client ? owner->session : session;
	if (ctx == owner->client)
		owner->session = session;
	pthread_mutex_unlock(&owner->lock);
	SSL_SESSION_free(old);
	return 1;
}

/*
 * Sessions are resumed: a connection that was lost is back with one signature less on either
 * side. Who the peer is was settled by the handshake that made the session, and its name
 * is checked anew each time (tls_check_peer()); the certificate's chain is not, so a session does
 * not live long, and none outlives the files that it was made by.
 */
static int set_sessions(struct tls_context *owner, SSL_CTX *ctx, bool server)
{
	const char *alpn = owner->config->alpn;

	SSL_CTX_set_app_data(ctx, owner);
	SSL_CTX_set_timeout(ctx, SESSION_S);
	if (!server) {
		SSL_CTX_set_session_cache_mode(ctx,
		                               SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
		SSL_CTX_sess_set_new_cb(ctx, keep_session);
		return 1;
	}
	/* The tickets hold all of it: nothing is kept here. */
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	return SSL_CTX_set_num_tickets(ctx, 1) == 1 &&
	       SSL_CTX_set_session_id_context(ctx, (const unsigned char *)alpn,
	                                      (unsigned int)strlen(alpn)) == 1;
}

static int make_ctx(struct tls_context *owner, bool server, SSL_CTX **ret, struct error *err)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return error_set(err, -ENOMEM, "TLS context: %s", tls_reason());
	*ret = ctx;
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, CIPHERSUITES) != 1)
		return error_set(err, -EINVAL, "TLS context: %s", tls_reason());
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	/* Our frames have lengths: a connection cut without a goodbye is just cut. */
	SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, READ_BUFFER_BYTES);
	if (server) {
		SSL_CTX_set_alpn_select_cb(ctx, select_alpn, owner);
		SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
	} else if (SSL_CTX_set_alpn_protos(ctx, owner->alpn_wire, 1u + owner->alpn_wire[0])) {
		return error_set(err, -EINVAL, "TLS context: %s", tls_reason());
	}
	if (!set_sessions(owner, ctx, server))
		return error_set(err, -EINVAL, "TLS context: %s", tls_reason());
	return load_files(ctx, owner->config, err);
}

int tls_context_new(const struct tls_config *config, struct tls_context **ret, struct error *err)
{
	struct tls_context *ctx;
	int rc;

	if (!config->alpn || !*config->alpn || strlen(config->alpn) >= TLS_ALPN_MAX)
		return error_set(err, -EINVAL, "TLS context: no protocol name");
	ctx = calloc(1, sizeof *ctx);
	if (!ctx)
		return error_set(err, -ENOMEM, "TLS context: out of memory");
	ctx->config = config;
	ctx->alpn_wire[0] = (unsigned char)strlen(config->alpn);
	memcpy(ctx->alpn_wire + 1, config->alpn, ctx->alpn_wire[0]);
	pthread_mutex_init(&ctx->lock, NULL);
	rc = tls_context_reload(ctx, err);
	if (rc) {
		tls_context_free(ctx);
		return rc;
	}
	*ret = ctx;
	return 0;
}

int tls_context_reload(struct tls_context *ctx, struct error *err)
{
	SSL_CTX *server = NULL, *client = NULL, *old;
	SSL_SESSION *session = NULL;
	int rc = make_ctx(ctx, true, &server, err);

	if (!rc)
		rc = make_ctx(ctx, false, &client, err);
	if (!rc) {
		pthread_mutex_lock(&ctx->lock);
		old = ctx->server;
		ctx->server = server;
		server = old;
		old = ctx->client;
		ctx->client = client;
		client = old;
		session = ctx->session;
		ctx->session = NULL;
		pthread_mutex_unlock(&ctx->lock);
	}
	SSL_SESSION_free(session);
	/* The connections that were made of them hold their own references. */
	SSL_CTX_free(server);
	SSL_CTX_free(client);
	return rc;
}

SSL *tls_context_open(struct tls_context *ctx, bool server)
{
	SSL *ssl;

	pthread_mutex_lock(&ctx->lock);
	ssl = SSL_new(server ? ctx->server : ctx->client);
	if (ssl && !server && ctx->session)
		SSL_set_session(ssl, ctx->session);
	pthread_mutex_unlock(&ctx->lock);
	return ssl;
}

int64_t tls_context_expiry(struct tls_context *ctx)
{
	struct tm tm;
	int64_t at = 0;
	X509 *cert;

	pthread_mutex_lock(&ctx->lock);
	cert = SSL_CTX_get0_certificate(ctx->server);
	if (cert && ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) == 1)
		at = timegm(&tm);
	pthread_mutex_unlock(&ctx->lock);
	return at;
}

struct tls_context *tls_context_free(struct tls_context *ctx)
{
	if (!ctx)
		return NULL;
	SSL_SESSION_free(ctx->session);
	SSL_CTX_free(ctx->server);
	SSL_CTX_free(ctx->client);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx);
	return NULL;
}

bool tls_note_records(const struct tls_context *ctx, SSL *ssl, struct tls_key_use *use, size_t len)
{
	uint64_t limit =
	        ctx->config->records_per_key ? ctx->config->records_per_key : TLS_RECORDS_PER_KEY;

	use->records += (len + SSL3_RT_MAX_PLAIN_LENGTH - 1) / SSL3_RT_MAX_PLAIN_LENGTH;
	if (use->records < limit)
		return false;
	/* Ours alone: the peer counts for itself. It can't fail between two whole records. */
	if (SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1) {
		ERR_clear_error();
		return false;
	}
	use->records = 0;
	use->updates++;
	return true;
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

int tls_check_peer(const struct tls_context *ctx, SSL *ssl, char *name, size_t size,
                   struct error *err)
{
	const unsigned char *alpn;
	unsigned int alpn_len;
	X509 *cert = SSL_get1_peer_certificate(ssl);
	bool allowed;

	if (!cert)
		return error_set(err, -EACCES, "TLS: the peer showed no certificate");
	allowed = find_allowed_name(ctx->config, cert, name, size);
	X509_free(cert);
	if (!allowed)
		return error_set(err, -EACCES, "TLS: peer \"%s\" is not among the allowed names",
		                 name);
	SSL_get0_alpn_selected(ssl, &alpn, &alpn_len);
	if (alpn_len != ctx->alpn_wire[0] || memcmp(alpn, ctx->alpn_wire + 1, alpn_len))
		return error_set(err, -EPROTO, "TLS: the peer does not speak \"%s\"",
		                 ctx->config->alpn);
	return 0;
}
