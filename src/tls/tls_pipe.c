/* SPDX-License-Identifier: Apache-2.0 */
#include "tls/tls_pipe.h"

#include <errno.h>
#include <stdlib.h>

#include <openssl/err.h>

#include "tls/tls_internal.h"

struct tls_pipe {
	struct tls_context *ctx;
	SSL *ssl;
	struct tls_key_use key_use;
	BIO *in;  /* ssl's */
	BIO *out; /* ssl's */
	struct tls_peer peer;
};

/* An empty one says "later" and not "the end". */
static BIO *memory_new(void)
{
	BIO *bio = BIO_new(BIO_s_mem());

	if (bio)
		BIO_set_mem_eof_return(bio, -1);
	return bio;
}

int tls_pipe_new(struct tls_context *ctx, struct tls_pipe **ret, struct error *err)
{
	struct tls_pipe *p = calloc(1, sizeof *p);

	if (!p)
		return error_set(err, -ENOMEM, "TLS: out of memory");
	p->ctx = ctx;
	p->in = memory_new();
	p->out = memory_new();
	p->ssl = tls_context_open(ctx, true, &p->peer);
	if (!p->in || !p->out || !p->ssl) {
		BIO_free(p->in);
		BIO_free(p->out);
		SSL_free(p->ssl);
		free(p);
		return error_set(err, -ENOMEM, "TLS: %s", tls_reason());
	}
	SSL_set_bio(p->ssl, p->in, p->out);
	SSL_set_accept_state(p->ssl);
	*ret = p;
	return 0;
}

struct tls_pipe *tls_pipe_free(struct tls_pipe *p)
{
	if (!p)
		return NULL;
	SSL_free(p->ssl);
	free(p);
	return NULL;
}

int tls_pipe_feed(struct tls_pipe *p, const void *ciphertext, size_t len)
{
	size_t n;

	if (BIO_write_ex(p->in, ciphertext, len, &n) == 1 && n == len)
		return 0;
	ERR_clear_error();
	return -ENOMEM;
}

/* Return: -EAGAIN or -EPROTO; 0 for an orderly end. OpenSSL's queue keeps the reason. */
static int failure(const struct tls_pipe *p, int ret)
{
	switch (SSL_get_error(p->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		return -EPROTO;
	}
}

int tls_pipe_handshake(struct tls_pipe *p, struct error *err)
{
	int ret = SSL_do_handshake(p->ssl);

	if (ret == 1)
		return tls_check_peer(p->ctx, p->ssl, &p->peer, err);
	if (failure(p, ret) == -EAGAIN)
		return -EAGAIN;
	return tls_refusal(p->ssl, &p->peer, err);
}

ssize_t tls_pipe_read(struct tls_pipe *p, void *buf, size_t len)
{
	size_t n;
	int ret = SSL_read_ex(p->ssl, buf, len, &n);
	int rc;

	if (ret == 1)
		return (ssize_t)n;
	rc = failure(p, ret);
	ERR_clear_error();
	return rc;
}

int tls_pipe_write(struct tls_pipe *p, const void *buf, size_t len)
{
	const char *from = buf;

	while (len) {
		size_t n;

		/* Into memory: there is nothing to wait for. */
		if (SSL_write_ex(p->ssl, from, len, &n) != 1) {
			ERR_clear_error();
			return -EPROTO;
		}
		if (tls_note_records(p->ssl, &p->key_use, n) && SSL_do_handshake(p->ssl) != 1) {
			ERR_clear_error();
			return -EPROTO;
		}
		from += n;
		len -= n;
	}
	return 0;
}

size_t tls_pipe_pending(const struct tls_pipe *p)
{
	return BIO_ctrl_pending(p->out);
}

size_t tls_pipe_take(struct tls_pipe *p, void *buf, size_t size)
{
	size_t n;

	if (BIO_read_ex(p->out, buf, size, &n) == 1)
		return n;
	ERR_clear_error();
	return 0;
}

enum tls_pipe_peer tls_pipe_judge(const struct tls_pipe *p)
{
	struct tls_peer peer;

	if (!tls_judge_peer(p->ctx, p->ssl, &peer))
		return TLS_PIPE_REFUSED;
	return peer.is_limited ? TLS_PIPE_LIMITED : TLS_PIPE_ALLOWED;
}

const char *tls_pipe_peer_name(const struct tls_pipe *p)
{
	return p->peer.name;
}
