/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this directory share: OpenSSL's own types end here. */
#ifndef TLS_TLS_INTERNAL_H
#define TLS_TLS_INTERNAL_H

#include <pthread.h>

#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "tls/names.h"
#include "tls/tls.h"

#define TLS_ALPN_MAX 32

struct tls_context {
	/* Under the lock: replaced by tls_context_reload(). */
	pthread_mutex_t lock;
	SSL_CTX *server;
	SSL_CTX *client;
	SSL_SESSION *session; /* the client's newest, to be resumed; NULL: none */
	/* The loading thread's. */
	struct tls_config config;
	/* Set at birth. */
	unsigned char alpn_wire[TLS_ALPN_MAX]; /* the name's length, then the name */
};

/*
 * What an SSL_CTX was made with, and goes with it: open connections hold on to theirs while the
 * context has another already.
 */
struct tls_rules {
	uint64_t records_per_key;
	unsigned int session_s;
	int64_t crl_expiry_s; /* INT64_MAX: none */
	size_t n_names;
	size_t n_allowed; /* the first of them; the others are limited */
	bool allows_all;
	char *names[];
};

/* Where a connection's ciphertext goes out; in its struct tls. */
struct tls_sink {
	int fd;
	uint32_t burst_bytes; /* of one packet; 0: any */
};

/* A BIO for it, or NULL; @s must outlive it. */
BIO *tls_sink_new(struct tls_sink *s);

const struct tls_rules *tls_rules_of(const SSL *ssl);

/*
 * tls_read_san() - a SAN of a kind that counts
 *
 * Names with a NUL inside are passed over: they could look like another; and so are empty ones,
 * and those that are too long to be told apart. Return: whether it is one.
 */
bool tls_read_san(const GENERAL_NAME *san, enum tls_name_kind *ret_kind,
                  char ret_name[static TLS_NAME_MAX]);

/* Who the peer of a connection is. */
struct tls_peer {
	char name[TLS_NAME_MAX]; /* that was allowed, or the one that was not */
	bool is_refused;         /* for its name */
	bool is_limited;         /* it is a limited one */
};

/*
 * A connection to be, by the files that were loaded last; a client's resumes the newest session.
 * @peer: as long as the connection. NULL where memory is short.
 */
SSL *tls_context_open(struct tls_context *ctx, bool server, struct tls_peer *peer);

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
bool tls_note_records(SSL *ssl, struct tls_key_use *use, size_t len);

/* The newest reason in OpenSSL's queue, and the queue emptied. */
const char *tls_reason(void);

/* What the alert says that is the newest in OpenSSL's queue; NULL: it is none. */
const char *tls_queued_alert(void);

/*
 * tls_refusal() - why a handshake failed that OpenSSL ended, and its queue emptied
 *
 * Return: -EACCES where one of the two refuses the other; -EPROTO.
 */
int tls_refusal(const SSL *ssl, const struct tls_peer *peer, struct error *err);

/*
 * tls_check_peer() - after the handshake: its name, also where a session goes on, and its protocol
 *
 * Return: 0; -EACCES, -EPROTO with @err set.
 */
int tls_check_peer(const struct tls_context *ctx, SSL *ssl, struct tls_peer *peer,
                   struct error *err);

/*
 * tls_judge_peer() - of a connection that stands, by the names that were loaded last
 *
 * Its certificate itself was judged in the handshake. Return: whether it would be let in.
 */
bool tls_judge_peer(struct tls_context *ctx, const SSL *ssl, struct tls_peer *ret);

#endif
