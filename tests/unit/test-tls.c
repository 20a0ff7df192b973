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
#include <unistd.h>

#include "ctl/pki.h"
#include "support.h"
#include "tls/tls.h"

static char dir[] = "/tmp/test-tls-XXXXXX";
static char paths[2][3][256];
static struct tls_config configs[2]; /* server, client */
static struct tls_context *contexts[2];

struct side {
	bool server;
	int fd;
	int rc;
	bool resumed;
	char peer[256];
};

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
		snprintf(s->peer, sizeof s->peer, "%s", tls_peer_name(tls));
		if (s->server)
			s->rc = tls_write(tls, &byte, 1);
		else
			s->rc = tls_read(tls, &byte, 1) == 1 ? 0 : -EPIPE;
	}
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
}

static void test_a_session_is_resumed(void **state)
{
	(void)state;
	assert_connects(false);
	assert_connects(true);
	/* Resumed ones bring sessions, too. */
	assert_connects(true);
}

static void test_no_session_outlives_the_files(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	assert_connects(false);
	for (unsigned int i = 0; i < 2; i++) {
		assert_int_equal(tls_context_reload(contexts[i], &err), 0);
		assert_connects(false);
		assert_connects(true);
	}
}

/* The name was allowed when the session was made, and is not any more. */
static void test_a_resumed_peer_s_name_is_checked(void **state)
{
	struct side server, client;

	(void)state;
	assert_connects(false);
	configs[0].allowed_names[0] = "postcopy:somebody-else";
	connect_both(&server, &client);
	assert_int_equal(server.rc, -EACCES);
	assert_int_not_equal(client.rc, 0);
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
	for (unsigned int i = 0; i < 2; i++) {
		configs[i] = (struct tls_config){
			.alpn = "test/1",
			.cert_path = paths[i][0],
			.key_path = paths[i][1],
			.ca_path = paths[i][2],
			.n_allowed_names = 1,
		};
		for (unsigned int j = 0; j < 3; j++)
			snprintf(paths[i][j], sizeof paths[i][j], "%s/%s", dir, files[i][j]);
		configs[i].allowed_names[0] = i ? PKI_SOURCE_NAME : PKI_DESTINATION_NAME;
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
	struct error err = ERROR_INIT;

	(void)state;
	signal(SIGPIPE, SIG_IGN);
	return !mkdtemp(dir) || pki_make(dir, &err);
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
	return rmdir(dir);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_session_is_resumed),
		TEST(test_no_session_outlives_the_files),
		TEST(test_a_resumed_peer_s_name_is_checked),
		TEST(test_keys_are_replaced_by_count_both_ways_at_once),
	};

	return cmocka_run_group_tests_name("tls", tests, make_files, remove_files);
}
