/* SPDX-License-Identifier: Apache-2.0 */
/* What is wrong with this host's own files, before a peer has to say so. */
#include "tls/tls_internal.h"

#include <errno.h>
#include <sys/stat.h>

#include <openssl/err.h>

struct check {
	const struct tls_config *config;
	void (*tell)(void *arg, const struct error *err);
	void *arg;
};

#define TELL(c, ...)                                                                               \
	do {                                                                                       \
		struct error tell_err = ERROR_INIT;                                                \
                                                                                                   \
		error_set(&tell_err, -EINVAL, __VA_ARGS__);                                        \
		(c)->tell((c)->arg, &tell_err);                                                    \
	} while (0)

static void check_key(const struct check *c)
{
	struct stat st;

	if (!stat(c->config->key_path, &st) && st.st_mode & S_IRWXO)
		TELL(c, "key \"%s\" has mode %03o: not its owner's alone; chmod 600 it",
		     c->config->key_path, (unsigned int)st.st_mode & 0777u);
}

static void check_names(const struct check *c, X509 *cert)
{
	GENERAL_NAMES *sans = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	char name[TLS_NAME_MAX];
	enum tls_name_kind kind;
	bool has_name = false;

	for (int i = 0; i < sk_GENERAL_NAME_num(sans); i++)
		has_name |= tls_read_san(sk_GENERAL_NAME_value(sans, i), &kind, name);
	GENERAL_NAMES_free(sans);
	if (!has_name)
		TELL(c,
		     "certificate \"%s\" has no name that peers could allow: a URI or a DNS name "
		     "as SAN",
		     c->config->cert_path);
}

/* As the peers do, which are taken to trust the same authorities. Return: whether they would. */
static bool verifies(const struct check *c, SSL_CTX *ctx, X509 *cert, X509_PURPOSE *purpose)
{
	X509_STORE_CTX *store = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	bool ok;

	SSL_CTX_get0_chain_certs(ctx, &chain);
	if (!store || !X509_STORE_CTX_init(store, SSL_CTX_get_cert_store(ctx), cert, chain) ||
	    !X509_STORE_CTX_set_purpose(store, X509_PURPOSE_get_id(purpose))) {
		X509_STORE_CTX_free(store);
		TELL(c, "certificate \"%s\": %s", c->config->cert_path, tls_reason());
		return false;
	}
	ok = X509_verify_cert(store) == 1;
	if (!ok)
		TELL(c, "certificate \"%s\" will be refused by peers with this CA, as %s: %s",
		     c->config->cert_path, X509_PURPOSE_get0_name(purpose),
		     X509_verify_cert_error_string(X509_STORE_CTX_get_error(store)));
	X509_STORE_CTX_free(store);
	return ok;
}

static void check_certificate(const struct check *c, SSL_CTX *ctx)
{
	static const int purposes[] = { X509_PURPOSE_SSL_CLIENT, X509_PURPOSE_SSL_SERVER };
	X509 *cert = SSL_CTX_get0_certificate(ctx);

	if (X509_check_ca(cert))
		TELL(c, "certificate \"%s\" is an authority's, and no host's",
		     c->config->cert_path);
	/* What is wrong for both is said once. */
	for (size_t i = 0; i < sizeof purposes / sizeof *purposes; i++)
		if (!verifies(c, ctx, cert, X509_PURPOSE_get0(X509_PURPOSE_get_by_id(purposes[i]))))
			break;
	check_names(c, cert);
	ERR_clear_error();
}

void tls_check_files(const struct tls_config *config,
                     void (*tell)(void *arg, const struct error *err), void *arg)
{
	struct check c = { .config = config, .tell = tell, .arg = arg };
	struct tls_context *ctx;
	struct error err = ERROR_INIT;

	if (tls_context_new(config, &ctx, &err)) {
		tell(arg, &err);
		return;
	}
	check_key(&c);
	check_certificate(&c, ctx->server);
	tls_context_free(ctx);
}
