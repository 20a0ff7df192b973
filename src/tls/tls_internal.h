/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this directory share: OpenSSL's own types end here. */
#ifndef TLS_TLS_INTERNAL_H
#define TLS_TLS_INTERNAL_H

#include <pthread.h>

#include <openssl/ssl.h>

#include "tls/tls.h"

#define TLS_ALPN_MAX 32

struct tls_context {
	/* Under the lock: replaced by tls_context_reload(). */
	pthread_mutex_t lock;
	SSL_CTX *server;
	SSL_CTX *client;
	SSL_SESSION *session; /* the client's newest, to be resumed; NULL: none */
	/* Set at birth. */
	const struct tls_config *config;
	unsigned char alpn_wire[TLS_ALPN_MAX]; /* the name's length, then the name */
};

/*
 * A connection to be, by the files that were loaded last; a client's resumes the newest session.
 * NULL where memory is short.
 */
SSL *tls_context_open(struct tls_context *ctx, bool server);

/* The records that were written by one key. */
struct tls_key_use {
	uint64_t records;
	uint64_t updates;
};

/*
 * tls_note_records() - after a write of @len bytes
 *
 * Return: whether the key has done enough, and a new one is announced: SSL_do_handshake() sends it.
 */
bool tls_note_records(const struct tls_context *ctx, SSL *ssl, struct tls_key_use *use, size_t len);

/* The newest reason in OpenSSL's queue, and the queue emptied. */
const char *tls_reason(void);

/*
 * tls_check_peer() - after the handshake: its name and its protocol
 * @name: the name that was allowed, or the one that was not
 *
 * Return: 0; -EACCES, -EPROTO with @err set.
 */
int tls_check_peer(const struct tls_context *ctx, SSL *ssl, char *name, size_t size,
                   struct error *err);

#endif
