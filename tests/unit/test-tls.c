/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ctl/pki.h"
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
	};

	return cmocka_run_group_tests_name("tls", tests, make_files, remove_files);
}
