/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "ctl/pki.h"
#include "support.h"
#include "tls/tls.h"

static char dir[] = "/tmp/test-tls-XXXXXX";
static char paths[2][3][256];
static struct tls_config configs[2]; /* server, client */
static struct tls_context *contexts[2];
static const char *names[2]; /* that each allows */
static char crl_path[256];

/* An authority of our own: the one of ctl/pki.h forgets its key. */
static EVP_PKEY *ca_key;
static X509 *ca;

static void sign(X509 *cert, const char *name, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *ext;

	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	assert_non_null(ext);
	X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
	                           (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(issuer));
	assert_true(X509_sign(cert, ca_key, EVP_sha256()) > 0);
}

static X509 *certificate_new(EVP_PKEY *key, long serial, long valid_s)
{
	X509 *cert = X509_new();

	X509_set_version(cert, X509_VERSION_3);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), serial);
	X509_gmtime_adj(X509_getm_notBefore(cert), -60);
	X509_gmtime_adj(X509_getm_notAfter(cert), valid_s);
	X509_set_pubkey(cert, key);
	return cert;
}

static FILE *create(const char *name)
{
	char path[256];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	file = fopen(path, "w");
	assert_non_null(file);
	return file;
}

static int make_authority(void)
{
	FILE *file = create(PKI_CA);

	ca_key = EVP_EC_gen("P-256");
	ca = certificate_new(ca_key, 1, 7200);
	sign(ca, "authority", ca, NID_basic_constraints, "critical,CA:TRUE");
	PEM_write_X509(file, ca);
	return fclose(file);
}

/* The new certificate and its key, for @valid_s from now on; its serial number is 2. */
static void make_certificate(const char *name, const char *sans, long valid_s)
{
	bool is_source = !strcmp(name, PKI_SOURCE_CERT);
	FILE *cert_file = create(name);
	FILE *key_file = create(is_source ? PKI_SOURCE_KEY : PKI_DESTINATION_KEY);
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = certificate_new(key, 2, valid_s);

	sign(cert, name, ca, NID_subject_alt_name, sans);
	PEM_write_X509(cert_file, cert);
	PEM_write_PrivateKey(key_file, key, NULL, NULL, 0, NULL, NULL);
	fclose(cert_file);
	fclose(key_file);
	X509_free(cert);
	EVP_PKEY_free(key);
}

static void make_crl(bool revoked, long valid_s)
{
	ASN1_TIME *last = X509_gmtime_adj(NULL, -120), *next = X509_gmtime_adj(NULL, valid_s);
	ASN1_INTEGER *serial = ASN1_INTEGER_new();
	X509_REVOKED *entry = X509_REVOKED_new();
	X509_CRL *crl = X509_CRL_new();
	FILE *file = create("crl.pem");

	X509_CRL_set_version(crl, X509_CRL_VERSION_2);
	X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca));
	X509_CRL_set1_lastUpdate(crl, last);
	X509_CRL_set1_nextUpdate(crl, next);
	ASN1_INTEGER_set(serial, revoked ? 2 : 3);
	X509_REVOKED_set_serialNumber(entry, serial);
	X509_REVOKED_set_revocationDate(entry, last);
	X509_CRL_add0_revoked(crl, entry);
	X509_CRL_sort(crl);
	assert_true(X509_CRL_sign(crl, ca_key, EVP_sha256()) > 0);
	PEM_write_X509_CRL(file, crl);
	fclose(file);
	X509_CRL_free(crl);
	ASN1_INTEGER_free(serial);
	ASN1_TIME_free(last);
	ASN1_TIME_free(next);
}

struct side {
	bool server;
	int fd;
	int rc;
	bool resumed;
	bool is_named, is_misnamed; /* its peer, by tls_peer_is() */
	/* Of one secret and one text; then of another text, and of another secret. */
	uint8_t proofs[3][TLS_PROOF_BYTES];
	char peer[256];
	char why[ERROR_TEXT_MAX];
};

static int prove_all(const struct tls *tls, uint8_t proofs[3][TLS_PROOF_BYTES])
{
	int rc = tls_prove(tls, "secret", 6, "this", 4, proofs[0]);

	if (!rc)
		rc = tls_prove(tls, "secret", 6, "that", 4, proofs[1]);
	if (!rc)
		rc = tls_prove(tls, "Secret", 6, "this", 4, proofs[2]);
	assert_int_equal(tls_check_proof(tls, "secret", 6, "this", 4, proofs[0]), 0);
	for (unsigned int i = 1; i < 3; i++)
		assert_int_equal(tls_check_proof(tls, "secret", 6, "this", 4, proofs[i]), -EACCES);
	/* All of it counts. */
	for (size_t i = 0; i < TLS_PROOF_BYTES; i++) {
		uint8_t wrong[TLS_PROOF_BYTES];

		memcpy(wrong, proofs[0], sizeof wrong);
		wrong[i] ^= 1;
		assert_int_equal(tls_check_proof(tls, "secret", 6, "this", 4, wrong), -EACCES);
	}
	return rc;
}

/* The handshake, and a byte from the server to the client, with which its ticket comes. */
static void *shake_hands(void *arg)
{
	struct side *s = arg;
	struct error err = ERROR_INIT;
	struct tls *tls = NULL;
	char byte = 'x';

	s->rc = tls_handshake(contexts[!s->server], s->fd, s->server, &tls, &err);
	if (!s->rc) {
		s->resumed = tls_is_resumed(tls);
		s->is_named =
		        tls_peer_is(tls, s->server ? "URI:" PKI_DESTINATION_NAME : PKI_SOURCE_NAME);
		s->is_misnamed =
		        tls_peer_is(tls, s->server ? PKI_SOURCE_NAME : "DNS:" PKI_SOURCE_NAME);
		s->rc = prove_all(tls, s->proofs);
		snprintf(s->peer, sizeof s->peer, "%s", tls_peer_name(tls));
		if (!s->rc && s->server)
			s->rc = tls_write(tls, &byte, 1);
		else if (!s->rc)
			s->rc = tls_read(tls, &byte, 1) == 1 ? 0 : -EPIPE;
		if (tls_alert(tls))
			error_set(&err, s->rc, "%s", tls_alert(tls));
	}
	memcpy(s->why, err.text, sizeof s->why);
	tls_free(tls);
	shutdown(s->fd, SHUT_RDWR);
	return NULL;
}

/* One connection; both sides say how it went. */
static void connect_both(struct side *ret_server, struct side *ret_client)
{
	pthread_t thread;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	*ret_server = (struct side){ .server = true, .fd = fds[0] };
	*ret_client = (struct side){ .fd = fds[1] };
	assert_int_equal(pthread_create(&thread, NULL, shake_hands, ret_server), 0);
	shake_hands(ret_client);
	pthread_join(thread, NULL);
	close(fds[0]);
	close(fds[1]);
}

static void assert_connects(bool resumed)
{
	struct side server, client;

	connect_both(&server, &client);
	assert_int_equal(server.rc, 0);
	assert_int_equal(client.rc, 0);
	assert_int_equal(server.resumed, resumed);
	assert_int_equal(client.resumed, resumed);
	assert_string_equal(server.peer, PKI_DESTINATION_NAME);
	assert_string_equal(client.peer, PKI_SOURCE_NAME);
	/* A resumed session shows no certificate, and its names count all the same. */
	assert_true(server.is_named && client.is_named);
	assert_false(server.is_misnamed || client.is_misnamed);
}

static void test_a_session_is_resumed(void **state)
{
	(void)state;
	assert_connects(false);
	assert_connects(true);
	/* Resumed ones bring sessions, too. */
	assert_connects(true);
}

/*
 * Both ends of a connection find the same, and no other connection does, be it one that goes on
 * with the same session: who has heard a proof can't say it again, nor pass it on.
 */
static void test_a_proof_is_good_on_its_own_connection_only(void **state)
{
	struct side server[2], client[2];

	(void)state;
	for (unsigned int i = 0; i < 2; i++) {
		connect_both(&server[i], &client[i]);
		assert_int_equal(server[i].rc, 0);
		assert_int_equal(client[i].resumed, i == 1);
		assert_memory_equal(server[i].proofs, client[i].proofs, sizeof server[i].proofs);
		assert_memory_not_equal(server[i].proofs[0], server[i].proofs[1], TLS_PROOF_BYTES);
		assert_memory_not_equal(server[i].proofs[0], server[i].proofs[2], TLS_PROOF_BYTES);
	}
	for (unsigned int i = 0; i < 3; i++)
		assert_memory_not_equal(server[0].proofs[i], server[1].proofs[i], TLS_PROOF_BYTES);
}

static void test_no_session_outlives_the_files(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	assert_connects(false);
	for (unsigned int i = 0; i < 2; i++) {
		assert_int_equal(tls_context_reload(contexts[i], NULL, &err), 0);
		assert_connects(false);
		assert_connects(true);
	}
}

static void reload(unsigned int i)
{
	struct error err = ERROR_INIT;

	if (tls_context_reload(contexts[i], &configs[i], &err))
		fail_msg("%s", err.text);
}

static void allow(unsigned int i, const char *name)
{
	names[i] = name;
	reload(i);
}

/* The name was allowed when the session was made, and is not any more. */
static void test_a_resumed_peer_s_name_is_checked(void **state)
{
	struct side server, client;

	(void)state;
	assert_connects(false);
	allow(0, "postcopy:somebody-else");
	connect_both(&server, &client);
	assert_int_equal(server.rc, -EACCES);
	assert_int_not_equal(client.rc, 0);
}

/* Both hung up without a word: an administrator could not tell a refusal from a bad network. */
static void test_both_sides_know_whom_a_name_that_is_not_allowed_refuses(void **state)
{
	struct side server, client;

	(void)state;
	allow(0, "postcopy:somebody-else");
	connect_both(&server, &client);
	assert_non_null(strstr(server.why, "\"" PKI_DESTINATION_NAME "\" is not among"));
	assert_string_equal(client.why, "it does not allow the name of this host");
	allow(0, PKI_DESTINATION_NAME);
	allow(1, "postcopy:somebody-else");
	connect_both(&server, &client);
	assert_int_equal(server.rc, -EACCES);
	assert_int_equal(client.rc, -EACCES);
	assert_non_null(strstr(client.why, "\"" PKI_SOURCE_NAME "\" is not among"));
	assert_non_null(strstr(server.why, "refuses: it does not allow the name of this host"));
}

/* What a peer may be called, by what is configured. */
static const struct {
	const char *pattern, *sans;
	bool allowed;
} cases[] = {
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/host/a", true },
	{ "URI:spiffe://x.org/host/*", "URI:spiffe://x.org/host/a/b", true },
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/host", false },
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/host/", false },
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/hostile/a", false },
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/host/../admin", false },
	{ "spiffe://x.org/host/*", "URI:spiffe://x.org/host/%2e%2e/admin", false },
	{ "spiffe://x.org/*", "URI:spiffe://x.org.evil/host/a", false },
	{ "spiffe://x.org/host/a", "URI:spiffe://x.org/host/a", true },
	{ "spiffe://x.org/host/a", "URI:spiffe://x.org/host/A", false },
	{ "*.hosts.x.org", "DNS:a.hosts.x.org", true },
	{ "*.hosts.x.org", "DNS:a.b.Hosts.X.org", true },
	{ "*.hosts.x.org", "DNS:hosts.x.org", false },
	{ "*.hosts.x.org", "DNS:evilhosts.x.org", false },
	{ "*.hosts.x.org", "DNS:*.hosts.x.org", false },
	{ "a.x.org", "DNS:A.x.org", true },
	/* A kind that any tenant's authority may put a name of its choice into. */
	{ "a.x.org", "URI:a.x.org", false },
	{ "x:a", "DNS:x:a", false },
	{ "URI:x:a", "DNS:a", false },
	{ "a.x.org", "DNS:b.x.org,URI:spiffe://x/a,DNS:a.x.org", true },
};

/* An exact URI or DNS name was all there was, and one was as good as the other. */
static void test_trust_domains(void **state)
{
	struct side server, client;
	struct error err = ERROR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		make_certificate(PKI_DESTINATION_CERT, cases[i].sans, 3600);
		reload(1);
		if (tls_name_check(cases[i].pattern, &err))
			fail_msg("%s", err.text);
		allow(0, cases[i].pattern);
		connect_both(&server, &client);
		if (server.rc != (cases[i].allowed ? 0 : -EACCES))
			fail_msg("%s for %s: %d %s", cases[i].pattern, cases[i].sans, server.rc,
			         server.why);
	}
}

/* Nobody was told that such a name keeps everybody out. */
static void test_a_name_that_can_never_match_is_refused(void **state)
{
	static const char *const wrong[] = {
		"*",
		"*.",
		".x.org",
		"a..b",
		"a b",
		"host*",
		"*host.x.org",
		"a.*.org",
		"10.0.0.1",
		"CN=host",
		"a@x.org",
		"email:a@x.org",
		"IP:10.0.0.1",
		"fe80::1",
		"::1",
		":a",
		"spiffe:",
		"1x:a",
		"spiffe://x.org/*/a",
		"spiffe://x.org/host*",
		"spiffe://*",
		"spiffe:///*",
		"spiffe:/*",
		"spiffe://x.org/a b",
		"DNS:spiffe://x.org/a",
		"URI:a",
		"DNS:",
		"URI:",
	};
	char text[300] = "x:";

	(void)state;
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		struct error err = ERROR_INIT;

		if (tls_name_check(wrong[i], &err) != -EINVAL || !*err.text)
			fail_msg("%s passes", wrong[i]);
	}
	memset(text + 2, 'a', 253);
	assert_int_equal(tls_name_check(text, NULL), 0);
	text[255] = 'a';
	assert_int_equal(tls_name_check(text, NULL), -EINVAL);
}

/* Whoever came back in time went on by tickets for ever, long after its certificate's end. */
static void test_no_session_outlives_the_certificate(void **state)
{
	struct side server, client;
	unsigned int resumed = 0, n = 0;

	(void)state;
	make_certificate(PKI_DESTINATION_CERT, "URI:" PKI_DESTINATION_NAME, 3);
	reload(1);
	do {
		connect_both(&server, &client);
		resumed += server.resumed;
		usleep(50000);
	} while (!server.rc && n++ < 200);
	assert_true(resumed);
	assert_int_equal(server.rc, -EACCES);
	assert_non_null(strstr(server.why, "expired"));
	assert_non_null(strstr(client.why, "this host's certificate has expired"));
}

/* The same the other way round: a client goes on with a server whose certificate has ended. */
static void test_no_session_outlives_the_server_s_certificate(void **state)
{
	struct side server, client;
	unsigned int resumed = 0, n = 0;

	(void)state;
	make_certificate(PKI_SOURCE_CERT, "URI:" PKI_SOURCE_NAME, 3);
	reload(0);
	do {
		connect_both(&server, &client);
		resumed += client.resumed;
		usleep(50000);
	} while (!client.rc && n++ < 200);
	assert_true(resumed);
	assert_int_equal(client.rc, -EACCES);
	assert_non_null(strstr(client.why, "expired"));
}

/* One handshake serves for its time, however often the session is resumed within it. */
static void test_tickets_do_not_renew_without_end(void **state)
{
	struct side server, client;
	unsigned int resumed = 0, n = 0;

	(void)state;
	for (unsigned int i = 0; i < 2; i++) {
		configs[i].session_s = 2;
		reload(i);
	}
	connect_both(&server, &client);
	do {
		usleep(50000);
		connect_both(&server, &client);
		assert_int_equal(server.rc, 0);
		resumed += server.resumed;
	} while (server.resumed && n++ < 200);
	assert_true(resumed);
	assert_false(server.resumed);
}

static void test_a_revoked_certificate_is_refused(void **state)
{
	struct side server, client;
	struct error err = ERROR_INIT;

	(void)state;
	configs[0].crl_path = crl_path;
	make_crl(false, 3600);
	reload(0);
	assert_connects(false);
	assert_connects(true);
	assert_true(tls_context_crl_expiry(contexts[0]) > time(NULL) + 3000);
	/* Its session goes as well. */
	make_crl(true, 3600);
	reload(0);
	connect_both(&server, &client);
	assert_int_equal(server.rc, -EACCES);
	assert_non_null(strstr(server.why, "revoked"));
	assert_string_equal(client.why, "this host's certificate is revoked");
	/* One that is too old says nothing about today. */
	make_crl(false, -60);
	reload(0);
	connect_both(&server, &client);
	assert_non_null(strstr(server.why, "CRL has expired"));
	unlink(crl_path);
	assert_int_equal(tls_context_reload(contexts[0], NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, crl_path));
}

/* Records of various sizes both ways at once, by a poll loop such as the fault thread's. */
#define STREAM_BYTES (24u << 20)
#define PIECE_MAX 70000u

struct streamer {
	bool server;
	int fd;
	unsigned int piece; /* of what is written at a time, at most */
	int rc;
	uint64_t updates;
	uint8_t next; /* to be received */
	size_t received;
	struct error err;
};

/* What is there. Return: 0 or -errno. */
static int receive_some(struct streamer *s, struct tls *tls)
{
	uint8_t buf[20000];
	ssize_t n;

	while ((n = tls_read(tls, buf, sizeof buf)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != s->next++)
				return -EBADMSG;
		s->received += (size_t)n;
	}
	if (n == -EAGAIN || (!n && s->received == STREAM_BYTES))
		return 0;
	return n ? (int)n : -ECONNRESET;
}

static int handshake_wait(void *arg, short events, struct error *err)
{
	struct pollfd fd = { .fd = ((struct streamer *)arg)->fd, .events = events };

	(void)err;
	return poll(&fd, 1, 10000) == 1 ? 0 : -ETIMEDOUT;
}

static int stream_both_ways(struct streamer *s, struct tls *tls)
{
	struct pollfd fd = { .fd = s->fd };
	uint8_t *piece = malloc(PIECE_MAX), next = 0;
	/* None, and some that a piece is none or many of. */
	static const uint32_t bursts[] = { 0, 100, 1000, 4096 };
	uint64_t random = s->piece;
	size_t sent = 0;
	int rc = 0;

	while (!rc && (sent < STREAM_BYTES || s->received < STREAM_BYTES)) {
		fd.events = (short)(POLLIN | (sent < STREAM_BYTES ? POLLOUT : 0));
		if (!tls_pending(tls) && poll(&fd, 1, 20000) != 1)
			rc = -ETIMEDOUT;
		if (!rc)
			rc = receive_some(s, tls);
		if (!rc && sent < STREAM_BYTES && (fd.revents & POLLOUT)) {
			size_t n = 1 + random_below(&random, s->piece);

			if (n > STREAM_BYTES - sent)
				n = STREAM_BYTES - sent;
			for (size_t i = 0; i < n; i++)
				piece[i] = next++;
			tls_set_burst(tls, bursts[random_below(&random, 4)]);
			rc = tls_write(tls, piece, n);
			sent += n;
		}
	}
	free(piece);
	return rc;
}

static void *streamer_main(void *arg)
{
	struct streamer *s = arg;
	struct tls *tls = NULL;

	s->rc = tls_handshake_wait(contexts[!s->server], s->fd, s->server, handshake_wait, s, &tls,
	                           &s->err);
	if (!s->rc)
		s->rc = stream_both_ways(s, tls);
	s->updates = tls ? tls_key_updates(tls) : 0;
	/* The other may be receiving still. */
	shutdown(s->fd, SHUT_WR);
	tls_free(tls);
	return NULL;
}

/*
 * Some 360 GiB were sent by one key, which AES-GCM is not safe for. Thousands of new keys in both
 * directions at once, on sockets that do not block: every byte comes, and nobody stands still.
 */
static void test_keys_are_replaced_by_count_both_ways_at_once(void **state)
{
	struct streamer server = { .server = true, .piece = 4200 }, client = { .piece = 900 };
	pthread_t thread;
	int fds[2];

	(void)state;
	configs[0].records_per_key = 3;
	configs[1].records_per_key = 2;
	reload(0);
	reload(1);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds),
	                 0);
	server.fd = fds[0];
	client.fd = fds[1];
	assert_int_equal(pthread_create(&thread, NULL, streamer_main, &server), 0);
	streamer_main(&client);
	pthread_join(thread, NULL);
	close(fds[0]);
	close(fds[1]);
	if (server.rc || client.rc)
		fail_msg("server: %s, after %zu bytes; client: %s, after %zu bytes",
		         strerror(-server.rc), server.received, strerror(-client.rc),
		         client.received);
	assert_true(server.updates > 2000 && client.updates > 10000);
}

static int setup(void **state)
{
	static const char *const files[2][3] = {
		{ PKI_SOURCE_CERT, PKI_SOURCE_KEY, PKI_CA },
		{ PKI_DESTINATION_CERT, PKI_DESTINATION_KEY, PKI_CA },
	};
	struct error err = ERROR_INIT;
	int rc = 0;

	(void)state;
	make_certificate(PKI_SOURCE_CERT, "URI:" PKI_SOURCE_NAME, 3600);
	make_certificate(PKI_DESTINATION_CERT, "URI:" PKI_DESTINATION_NAME, 3600);
	for (unsigned int i = 0; i < 2; i++) {
		configs[i] = (struct tls_config){
			.alpn = "test/1",
			.cert_path = paths[i][0],
			.key_path = paths[i][1],
			.ca_path = paths[i][2],
			.allowed_names = &names[i],
			.n_allowed_names = 1,
		};
		for (unsigned int j = 0; j < 3; j++)
			snprintf(paths[i][j], sizeof paths[i][j], "%s/%s", dir, files[i][j]);
		names[i] = i ? PKI_SOURCE_NAME : PKI_DESTINATION_NAME;
		rc = rc ? rc : tls_context_new(&configs[i], &contexts[i], &err);
	}
	return rc;
}

static int teardown(void **state)
{
	(void)state;
	for (unsigned int i = 0; i < 2; i++)
		contexts[i] = tls_context_free(contexts[i]);
	return 0;
}

static int make_files(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(dir))
		return 1;
	snprintf(crl_path, sizeof crl_path, "%s/crl.pem", dir);
	return make_authority();
}

static int remove_files(void **state)
{
	static const char *const files[] = { PKI_SOURCE_CERT, PKI_SOURCE_KEY, PKI_DESTINATION_CERT,
		                             PKI_DESTINATION_KEY, PKI_CA };
	char path[256];

	(void)state;
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, files[i]);
		unlink(path);
	}
	unlink(crl_path);
	X509_free(ca);
	EVP_PKEY_free(ca_key);
	return rmdir(dir);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_session_is_resumed),
		TEST(test_a_proof_is_good_on_its_own_connection_only),
		TEST(test_no_session_outlives_the_files),
		TEST(test_a_resumed_peer_s_name_is_checked),
		TEST(test_both_sides_know_whom_a_name_that_is_not_allowed_refuses),
		TEST(test_trust_domains),
		TEST(test_a_name_that_can_never_match_is_refused),
		TEST(test_no_session_outlives_the_certificate),
		TEST(test_no_session_outlives_the_server_s_certificate),
		TEST(test_tickets_do_not_renew_without_end),
		TEST(test_a_revoked_certificate_is_refused),
		TEST(test_keys_are_replaced_by_count_both_ways_at_once),
	};

	return cmocka_run_group_tests_name("tls", tests, make_files, remove_files);
}
