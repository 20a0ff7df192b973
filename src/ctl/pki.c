/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/pki.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "util/cleanup.h"

#define VALID_SECONDS (24 * 60 * 60)
/* So that hosts whose clocks were set a moment ago agree that it is valid already. */
#define BACKDATE_SECONDS 300

DEFINE_CLEANUP(EVP_PKEY *, EVP_PKEY_free);
DEFINE_CLEANUP(X509 *, X509_free);

#define _cleanup_key_ _cleanup_(EVP_PKEY_free_p)
#define _cleanup_cert_ _cleanup_(X509_free_p)

/* Takes OpenSSL's own reason from its queue. */
static int pki_error(struct error *err, const char *what)
{
	char reason[160];

	ERR_error_string_n(ERR_get_error(), reason, sizeof reason);
	ERR_clear_error();
	return error_set(err, -EIO, "making certificates: %s: %s", what, reason);
}

static FILE *create(const char *dir, const char *name, struct error *err)
{
	char path[PATH_MAX];
	FILE *f;
	int fd;

	if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path) {
		error_set(err, -ENAMETOOLONG, "certificates: \"%s\" is too long", dir);
		return NULL;
	}
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f) {
		error_errno(err, -errno, "certificate file \"%s\"", path);
		close_p(&fd);
	}
	return f;
}

static int save_key(const char *dir, const char *name, EVP_PKEY *key, struct error *err)
{
	_cleanup_fclose_ FILE *f = create(dir, name, err);

	if (!f)
		return -EIO;
	if (PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) != 1 || fflush(f) == EOF)
		return pki_error(err, name);
	return 0;
}

static int save_cert(const char *dir, const char *name, X509 *cert, struct error *err)
{
	_cleanup_fclose_ FILE *f = create(dir, name, err);

	if (!f)
		return -EIO;
	if (PEM_write_X509(f, cert) != 1 || fflush(f) == EOF)
		return pki_error(err, name);
	return 0;
}

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *ext;
	int ok;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	ok = ext && X509_add_ext(cert, ext, -1) == 1;
	X509_EXTENSION_free(ext);
	return ok;
}

/* A certificate without extensions, not signed yet. */
static X509 *cert_new(long serial, const char *common_name, EVP_PKEY *key, X509 *issuer)
{
	X509 *cert = X509_new();
	X509_NAME *name;

	if (!cert)
		return NULL;
	name = X509_get_subject_name(cert);
	if (X509_set_version(cert, X509_VERSION_3) == 1 &&
	    ASN1_INTEGER_set(X509_get_serialNumber(cert), serial) == 1 &&
	    X509_gmtime_adj(X509_getm_notBefore(cert), -BACKDATE_SECONDS) &&
	    X509_gmtime_adj(X509_getm_notAfter(cert), VALID_SECONDS) &&
	    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)common_name,
	                               -1, -1, 0) == 1 &&
	    X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : name) == 1 &&
	    X509_set_pubkey(cert, key) == 1)
		return cert;
	X509_free(cert);
	return NULL;
}

static int make_ca(const char *dir, EVP_PKEY **ret_key, X509 **ret_cert, struct error *err)
{
	_cleanup_key_ EVP_PKEY *key = EVP_EC_gen("P-256");
	_cleanup_cert_ X509 *cert = key ? cert_new(1, "postcopyctl bench", key, NULL) : NULL;
	int r;

	if (!cert || !add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE") ||
	    !add_extension(cert, cert, NID_key_usage, "critical,keyCertSign") ||
	    !add_extension(cert, cert, NID_subject_key_identifier, "hash") ||
	    X509_sign(cert, key, EVP_sha256()) <= 0)
		return pki_error(err, PKI_CA);
	r = save_cert(dir, PKI_CA, cert, err);
	if (r < 0)
		return r;
	*ret_key = steal_ptr(&key);
	*ret_cert = steal_ptr(&cert);
	return 0;
}

struct leaf {
	const char *cert_name, *key_name, *common_name, *san;
};

static int make_leaf(const char *dir, long serial, const struct leaf *leaf, EVP_PKEY *ca_key,
                     X509 *ca, struct error *err)
{
	_cleanup_key_ EVP_PKEY *key = EVP_EC_gen("P-256");
	_cleanup_cert_ X509 *cert = key ? cert_new(serial, leaf->common_name, key, ca) : NULL;
	int r;

	if (!cert || !add_extension(cert, ca, NID_basic_constraints, "critical,CA:FALSE") ||
	    !add_extension(cert, ca, NID_key_usage, "critical,digitalSignature") ||
	    !add_extension(cert, ca, NID_ext_key_usage, "serverAuth,clientAuth") ||
	    !add_extension(cert, ca, NID_authority_key_identifier, "keyid") ||
	    !add_extension(cert, ca, NID_subject_alt_name, leaf->san) ||
	    X509_sign(cert, ca_key, EVP_sha256()) <= 0)
		return pki_error(err, leaf->cert_name);
	r = save_key(dir, leaf->key_name, key, err);
	return r < 0 ? r : save_cert(dir, leaf->cert_name, cert, err);
}

int pki_make(const char *dir, struct error *err)
{
	static const struct leaf leaves[] = {
		{ PKI_SOURCE_CERT, PKI_SOURCE_KEY, "source",
		  "URI:" PKI_SOURCE_NAME ",DNS:localhost,IP:127.0.0.1" },
		{ PKI_DESTINATION_CERT, PKI_DESTINATION_KEY, "destination",
		  "URI:" PKI_DESTINATION_NAME ",DNS:localhost,IP:127.0.0.1" },
	};
	_cleanup_key_ EVP_PKEY *ca_key = NULL;
	_cleanup_cert_ X509 *ca = NULL;
	int r = make_ca(dir, &ca_key, &ca, err);

	for (size_t i = 0; !r && i < sizeof leaves / sizeof *leaves; i++)
		r = make_leaf(dir, (long)i + 2, &leaves[i], ca_key, ca, err);
	return r;
}
