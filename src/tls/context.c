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
/* How long one whole handshake serves for others. */
#define SESSION_S 600
/*
 * What no rule of X.509 forbids: for it OpenSSL sends certificate_unknown, "some other issue
 * rendered it unacceptable", and for the error it has for applications the alert of those who
 * have no cipher in common.
 */
#define ERROR_NAME_NOT_ALLOWED X509_V_ERR_PERMITTED_VIOLATION
/* AES-128 first: the cheapest of the three on anything with AES instructions. */
#define CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"

const char *tls_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	return reason ? reason : "unknown TLS failure";
}

const char *tls_queued_alert(void)
{
	static const struct {
		int alert;
		const char *text;
	} known[] = {
		{ SSL_AD_CERTIFICATE_EXPIRED, "this host's certificate has expired, or its CRL" },
		{ SSL_AD_CERTIFICATE_REVOKED, "this host's certificate is revoked" },
		{ SSL_AD_CERTIFICATE_UNKNOWN, "it does not allow the name of this host" },
		{ SSL_AD_UNKNOWN_CA, "this host's certificate is of no authority that it trusts" },
		{ SSL_AD_UNSUPPORTED_CERTIFICATE, "this host's certificate is not for this use" },
		{ SSL_AD_BAD_CERTIFICATE, "this host's certificate is not valid there" },
		{ SSL_AD_NO_APPLICATION_PROTOCOL, "it does not speak this protocol" },
	};
	int reason = ERR_GET_REASON(ERR_peek_last_error());

	if (ERR_GET_LIB(ERR_peek_last_error()) != ERR_LIB_SSL || reason < SSL_AD_REASON_OFFSET ||
	    reason > SSL_AD_REASON_OFFSET + UINT8_MAX)
		return NULL;
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].alert == reason - SSL_AD_REASON_OFFSET)
			return known[i].text;
	return SSL_alert_desc_string_long(reason - SSL_AD_REASON_OFFSET);
}

int tls_refusal(const SSL *ssl, const struct tls_peer *peer, struct error *err)
{
	long verify = SSL_get_verify_result(ssl);
	const char *alert = tls_queued_alert();

	if (!alert && !peer->is_refused && verify == X509_V_OK)
		return error_set(err, -EPROTO, "TLS handshake: %s", tls_reason());
	ERR_clear_error();
	if (alert)
		return error_set(err, -EACCES, "TLS: the peer refuses: %s", alert);
	if (peer->is_refused)
		return error_set(err, -EACCES, "TLS: peer \"%s\" is not among the allowed names",
		                 peer->name);
	return error_set(err, -EACCES, "TLS: the certificate of peer \"%s\" is refused: %s",
	                 peer->name, X509_verify_cert_error_string(verify));
}

static int rules_index = -1;

static void free_rules(void *parent, void *rules, CRYPTO_EX_DATA *data, int index, long argl,
                       void *argp)
{
	struct tls_rules *r = rules;

	(void)parent;
	(void)data;
	(void)index;
	(void)argl;
	(void)argp;
	for (size_t i = 0; r && i < r->n_names; i++)
		free(r->names[i]);
	free(r);
}

static void make_index(void)
{
	rules_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_rules);
}

const struct tls_rules *tls_rules_of(const SSL *ssl)
{
	return SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), rules_index);
}

/* Return: whether there was memory for them. */
static bool add_names(struct tls_rules *r, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		r->names[r->n_names] = strdup(names[i]);
		if (!r->names[r->n_names])
			return false;
		r->n_names++;
	}
	return true;
}

/* Return: whether @ctx has its rules now. */
static bool set_rules(SSL_CTX *ctx, const struct tls_config *config)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	size_t n = config->n_allowed_names + config->n_limited_names;
	struct tls_rules *r = calloc(1, sizeof *r + n * sizeof r->names[0]);

	pthread_once(&once, make_index);
	if (!r || SSL_CTX_set_ex_data(ctx, rules_index, r) != 1) {
		free(r);
		return false;
	}
	r->records_per_key =
	        config->records_per_key ? config->records_per_key : TLS_RECORDS_PER_KEY;
	r->session_s = config->session_s ? config->session_s : SESSION_S;
	r->crl_expiry_s = INT64_MAX;
	r->n_allowed = config->n_allowed_names;
	r->allows_all = !n && !config->needs_name;
	return add_names(r, config->allowed_names, config->n_allowed_names) &&
	       add_names(r, config->limited_names, config->n_limited_names);
}

/* Seconds since the epoch; INT64_MAX where there is no end. */
static int64_t seconds(const ASN1_TIME *time)
{
	struct tm tm;

	return time && ASN1_TIME_to_tm(time, &tm) == 1 ? timegm(&tm) : INT64_MAX;
}

static int64_t earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
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

/* All the CRLs of the file: then each certificate of a chain must have one that is in force. */
static int load_crls(SSL_CTX *ctx, const char *path, struct error *err)
{
	struct tls_rules *rules = SSL_CTX_get_ex_data(ctx, rules_index);
	X509_STORE *store = SSL_CTX_get_cert_store(ctx);
	X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
	const STACK_OF(X509_OBJECT) * objects;

	if (access(path, R_OK))
		return error_errno(err, -errno, "CRL \"%s\"", path);
	if (!lookup || X509_load_crl_file(lookup, path, X509_FILETYPE_PEM) < 1)
		return error_set(err, -EINVAL, "CRL \"%s\": %s", path, tls_reason());
	ERR_clear_error();
	X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
	objects = X509_STORE_get0_objects(store);
	for (int i = 0; i < sk_X509_OBJECT_num(objects); i++) {
		X509_CRL *crl = X509_OBJECT_get0_X509_CRL(sk_X509_OBJECT_value(objects, i));

		if (crl)
			rules->crl_expiry_s = earlier(rules->crl_expiry_s,
			                              seconds(X509_CRL_get0_nextUpdate(crl)));
	}
	return 0;
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
	return config->crl_path ? load_crls(ctx, config->crl_path, err) : 0;
}

/* When what the whole handshake found may not be so any more. */
static int64_t end_of(const SSL *ssl)
{
	const struct tls_rules *rules = tls_rules_of(ssl);
	STACK_OF(X509) *chain = SSL_get0_verified_chain(ssl);
	int64_t end = earlier(time(NULL) + rules->session_s, rules->crl_expiry_s);

	for (int i = 0; i < sk_X509_num(chain); i++)
		end = earlier(end, seconds(X509_get0_notAfter(sk_X509_value(chain, i))));
	return end;
}

/* Have the session carry its end. One that comes of a resumed one has it already. */
static int set_end(SSL *ssl, SSL_SESSION *session)
{
	int64_t end;

	if (SSL_session_reused(ssl))
		return 1;
	end = end_of(ssl);
	return SSL_SESSION_set1_ticket_appdata(session, &end, sizeof end);
}

static bool is_over(SSL_SESSION *session)
{
	int64_t end;
	void *data;
	size_t len;

	if (SSL_SESSION_get0_ticket_appdata(session, &data, &len) != 1 || len != sizeof end)
		return true;
	memcpy(&end, data, sizeof end);
	return time(NULL) >= end;
}

static int on_ticket_made(SSL *ssl, void *arg)
{
	(void)arg;
	return set_end(ssl, SSL_get_session(ssl));
}

/*
 * A ticket that is over is none: there will be a whole handshake. One that is good brings the
 * next: clients use each once.
 */
static SSL_TICKET_RETURN on_ticket(SSL *ssl, SSL_SESSION *session, const unsigned char *key_name,
                                   size_t key_name_len, SSL_TICKET_STATUS status, void *arg)
{
	bool is_good = status == SSL_TICKET_SUCCESS || status == SSL_TICKET_SUCCESS_RENEW;

	(void)ssl;
	(void)key_name;
	(void)key_name_len;
	(void)arg;
	return is_good && !is_over(session) ? SSL_TICKET_RETURN_USE_RENEW
	                                    : SSL_TICKET_RETURN_IGNORE_RENEW;
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
	bool is_kept;

	pthread_mutex_lock(&owner->lock);
	/* One of the files before is of no more use. */
	is_kept = set_end(ssl, session) && ctx == owner->client;
	old = is_kept ? owner->session : session;
	if (is_kept)
		owner->session = session;
	pthread_mutex_unlock(&owner->lock);
	SSL_SESSION_free(old);
	return 1;
}

static int set_sessions(struct tls_context *owner, SSL_CTX *ctx, bool server)
{
	const struct tls_rules *rules = SSL_CTX_get_ex_data(ctx, rules_index);

	SSL_CTX_set_app_data(ctx, owner);
	SSL_CTX_set_timeout(ctx, rules->session_s);
	if (!server) {
		SSL_CTX_set_session_cache_mode(ctx,
		                               SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
		SSL_CTX_sess_set_new_cb(ctx, keep_session);
		return 1;
	}
	/* The tickets hold all of it: nothing is kept here. */
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	return SSL_CTX_set_num_tickets(ctx, 1) == 1 &&
	       SSL_CTX_set_session_ticket_cb(ctx, on_ticket_made, on_ticket, NULL) == 1 &&
	       SSL_CTX_set_session_id_context(ctx, owner->alpn_wire + 1, owner->alpn_wire[0]) == 1;
}

enum verdict {
	NOT_ALLOWED,
	LIMITED,
	ALLOWED,
};

static enum verdict judge(const struct tls_rules *rules, enum tls_name_kind kind, const char *name)
{
	for (size_t i = 0; i < rules->n_names; i++)
		if (tls_name_matches(rules->names[i], kind, name))
			return i < rules->n_allowed ? ALLOWED : LIMITED;
	return rules->allows_all ? ALLOWED : NOT_ALLOWED;
}

bool tls_read_san(const GENERAL_NAME *san, enum tls_name_kind *ret_kind,
                  char ret_name[static TLS_NAME_MAX])
{
	const ASN1_STRING *string;
	size_t len;

	if (san->type != GEN_URI && san->type != GEN_DNS)
		return false;
	string = san->type == GEN_URI ? san->d.uniformResourceIdentifier : san->d.dNSName;
	len = (size_t)ASN1_STRING_length(string);
	if (!len || len >= TLS_NAME_MAX)
		return false;
	memcpy(ret_name, ASN1_STRING_get0_data(string), len);
	ret_name[len] = 0;
	*ret_kind = san->type == GEN_URI ? TLS_NAME_URI : TLS_NAME_DNS;
	return strlen(ret_name) == len;
}

/*
 * The first of the certificate's SANs that is allowed, else the first that is limited, else its
 * first at all (for the message). Return: whether it is let in.
 */
static bool find_name(const struct tls_rules *rules, X509 *cert, struct tls_peer *peer)
{
	GENERAL_NAMES *sans = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	enum verdict best = rules->allows_all ? ALLOWED : NOT_ALLOWED;
	bool seen = false;

	snprintf(peer->name, sizeof peer->name, "(no SAN)");
	for (int i = 0; i < sk_GENERAL_NAME_num(sans); i++) {
		char name[TLS_NAME_MAX];
		enum tls_name_kind kind;
		enum verdict verdict;

		if (!tls_read_san(sk_GENERAL_NAME_value(sans, i), &kind, name))
			continue;
		verdict = judge(rules, kind, name);
		if (seen && verdict <= best)
			continue;
		seen = true;
		best = verdict;
		memcpy(peer->name, name, sizeof name);
	}
	GENERAL_NAMES_free(sans);
	peer->is_limited = best == LIMITED;
	return best != NOT_ALLOWED;
}

/* OpenSSL's verdict on each certificate of the chain, and then ours on the peer's own name. */
static int verify_peer(int ok, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls_peer *peer = SSL_get_app_data(ssl);
	bool allowed = find_name(tls_rules_of(ssl), X509_STORE_CTX_get0_cert(store), peer);

	if (!ok || X509_STORE_CTX_get_error_depth(store) || allowed)
		return ok;
	peer->is_refused = true;
	X509_STORE_CTX_set_error(store, ERROR_NAME_NOT_ALLOWED);
	return 0;
}

static int make_ctx(struct tls_context *owner, const struct tls_config *config, bool server,
                    SSL_CTX **ret, struct error *err)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return error_set(err, -ENOMEM, "TLS context: %s", tls_reason());
	*ret = ctx;
	if (!set_rules(ctx, config))
		return error_set(err, -ENOMEM, "TLS context: out of memory");
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, CIPHERSUITES) != 1)
		return error_set(err, -EINVAL, "TLS context: %s", tls_reason());
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify_peer);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	/* Our frames have lengths: a connection cut without a goodbye is just cut. */
	SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF |
	                                 (config->wipes ? SSL_OP_CLEANSE_PLAINTEXT : 0));
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
	return load_files(ctx, config, err);
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
	ctx->alpn_wire[0] = (unsigned char)strlen(config->alpn);
	memcpy(ctx->alpn_wire + 1, config->alpn, ctx->alpn_wire[0]);
	pthread_mutex_init(&ctx->lock, NULL);
	rc = tls_context_reload(ctx, config, err);
	if (rc) {
		tls_context_free(ctx);
		return rc;
	}
	*ret = ctx;
	return 0;
}

int tls_context_reload(struct tls_context *ctx, const struct tls_config *config, struct error *err)
{
	SSL_CTX *server = NULL, *client = NULL, *old;
	SSL_SESSION *session = NULL;
	int rc;

	if (!config)
		config = &ctx->config;
	rc = make_ctx(ctx, config, true, &server, err);
	if (!rc)
		rc = make_ctx(ctx, config, false, &client, err);
	if (!rc) {
		ctx->config = *config;
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

SSL *tls_context_open(struct tls_context *ctx, bool server, struct tls_peer *peer)
{
	SSL *ssl;

	pthread_mutex_lock(&ctx->lock);
	ssl = SSL_new(server ? ctx->server : ctx->client);
	if (ssl && !server && ctx->session && !is_over(ctx->session))
		SSL_set_session(ssl, ctx->session);
	pthread_mutex_unlock(&ctx->lock);
	if (ssl)
		SSL_set_app_data(ssl, peer);
	return ssl;
}

int64_t tls_context_expiry(struct tls_context *ctx)
{
	int64_t at = INT64_MAX;
	X509 *cert;

	pthread_mutex_lock(&ctx->lock);
	cert = SSL_CTX_get0_certificate(ctx->server);
	if (cert)
		at = seconds(X509_get0_notAfter(cert));
	pthread_mutex_unlock(&ctx->lock);
	return at == INT64_MAX ? 0 : at;
}

int64_t tls_context_crl_expiry(struct tls_context *ctx)
{
	const struct tls_rules *rules;
	int64_t at;

	pthread_mutex_lock(&ctx->lock);
	rules = SSL_CTX_get_ex_data(ctx->server, rules_index);
	at = rules->crl_expiry_s;
	pthread_mutex_unlock(&ctx->lock);
	return at == INT64_MAX ? 0 : at;
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

bool tls_note_records(SSL *ssl, struct tls_key_use *use, size_t len)
{
	use->records += (len + SSL3_RT_MAX_PLAIN_LENGTH - 1) / SSL3_RT_MAX_PLAIN_LENGTH;
	if (use->records < tls_rules_of(ssl)->records_per_key)
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

int tls_check_peer(const struct tls_context *ctx, SSL *ssl, struct tls_peer *peer,
                   struct error *err)
{
	const unsigned char *alpn;
	unsigned int alpn_len;
	X509 *cert = SSL_get1_peer_certificate(ssl);

	if (!cert)
		return error_set(err, -EACCES, "TLS: the peer showed no certificate");
	peer->is_refused = !find_name(tls_rules_of(ssl), cert, peer);
	X509_free(cert);
	if (peer->is_refused)
		return tls_refusal(ssl, peer, err);
	SSL_get0_alpn_selected(ssl, &alpn, &alpn_len);
	if (alpn_len != ctx->alpn_wire[0] || memcmp(alpn, ctx->alpn_wire + 1, alpn_len))
		return error_set(err, -EPROTO, "TLS: the peer does not speak \"%s\"",
		                 (const char *)ctx->alpn_wire + 1);
	return 0;
}

bool tls_judge_peer(struct tls_context *ctx, const SSL *ssl, struct tls_peer *ret)
{
	X509 *cert = SSL_get1_peer_certificate(ssl);
	bool allowed;

	/* Who loads others frees these. */
	pthread_mutex_lock(&ctx->lock);
	allowed = cert && find_name(SSL_CTX_get_ex_data(ctx->server, rules_index), cert, ret);
	pthread_mutex_unlock(&ctx->lock);
	X509_free(cert);
	return allowed;
}
