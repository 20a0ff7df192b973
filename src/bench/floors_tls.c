/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TLS floors. The server is a process of its own, as the source's daemon is; a
 * thread for each connection on both sides, blocking. The options are those of
 * stream/tls.c, for the floor of another configuration would be no floor: TLS 1.3,
 * AES-128-GCM first, read_ahead over 64 KiB, mutual certificates.
 */
#include "bench/floors.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "ctl/pki.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define STREAMS_MAX 16
#define WRITE_BYTES (64u << 10)
#define REQUEST_BYTES 32u
#define ANSWER_BYTES 4096u
#define ROUNDS 2000u
#define WARM_UP 100u
/* Whichever comes first. */
#define MEASURE_NS (NSEC_PER_SEC / 2)
#define MEASURE_BYTES (1ull << 30)
#define CIPHERSUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"

DEFINE_CLEANUP(SSL_CTX *, SSL_CTX_free);
DEFINE_CLEANUP(SSL *, SSL_free);

enum floor_kind {
	FLOOR_THROUGHPUT,
	FLOOR_PINGPONG,
};

static int tls_error(struct error *err, const char *what)
{
	char reason[160];
	unsigned long code = ERR_get_error();

	ERR_error_string_n(code, reason, sizeof reason);
	ERR_clear_error();
	return error_set(err, -EIO, "floors: %s: %s", what, code ? reason : "connection lost");
}

static SSL_CTX *context_new(const char *dir, bool server, struct error *err)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	char cert[PATH_MAX], key[PATH_MAX], ca[PATH_MAX];

	snprintf(cert, sizeof cert, "%s/%s", dir, server ? PKI_SOURCE_CERT : PKI_DESTINATION_CERT);
	snprintf(key, sizeof key, "%s/%s", dir, server ? PKI_SOURCE_KEY : PKI_DESTINATION_KEY);
	snprintf(ca, sizeof ca, "%s/%s", dir, PKI_CA);
	if (!ctx || SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, CIPHERSUITES) != 1 ||
	    SSL_CTX_use_certificate_chain_file(ctx, cert) != 1 ||
	    SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_load_verify_locations(ctx, ca, NULL) != 1) {
		tls_error(err, "TLS context");
		SSL_CTX_free(ctx);
		return NULL;
	}
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, WRITE_BYTES);
	return ctx;
}

static bool read_all(SSL *ssl, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		size_t n;

		if (SSL_read_ex(ssl, p, len, &n) != 1)
			return false;
		p += n;
		len -= n;
	}
	return true;
}

/* The server: one thread a connection, until the client hangs up. */

struct server_thread {
	pthread_t thread;
	SSL_CTX *ctx;
	enum floor_kind kind;
	int fd;
};

static void *server_main(void *arg)
{
	struct server_thread *t = arg;
	_cleanup_close_ int fd = t->fd;
	_cleanup_(SSL_free_p) SSL *ssl = SSL_new(t->ctx);
	static const uint8_t data[WRITE_BYTES] = { 1 };
	uint8_t request[REQUEST_BYTES];
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (!ssl || SSL_set_fd(ssl, fd) != 1 || SSL_accept(ssl) != 1)
		return NULL;
	if (t->kind == FLOOR_PINGPONG) {
		while (read_all(ssl, request, sizeof request) &&
		       SSL_write(ssl, data, ANSWER_BYTES) > 0)
			;
		return NULL;
	}
	/* A byte says go, so that no connection sends while others still shake hands. */
	if (read_all(ssl, request, 1))
		while (SSL_write(ssl, data, sizeof data) > 0)
			;
	return NULL;
}

static _Noreturn void server_process(const char *dir, int listener, unsigned int n,
                                     enum floor_kind kind, pid_t parent)
{
	struct server_thread threads[STREAMS_MAX];
	SSL_CTX *ctx;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	ctx = getppid() == parent ? context_new(dir, true, NULL) : NULL;
	if (!ctx)
		_exit(1);
	for (unsigned int i = 0; i < n; i++) {
		threads[i] = (struct server_thread){ .ctx = ctx, .kind = kind };
		threads[i].fd = accept(listener, NULL, NULL);
		if (threads[i].fd < 0 ||
		    pthread_create(&threads[i].thread, NULL, server_main, &threads[i]))
			_exit(1);
	}
	for (unsigned int i = 0; i < n; i++)
		pthread_join(threads[i].thread, NULL);
	_exit(0);
}

static int listen_loopback(struct sockaddr_in *ret_addr, struct error *err)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof *ret_addr;

	*ret_addr = (struct sockaddr_in){ .sin_family = AF_INET,
		                          .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (fd < 0 || bind(fd, (struct sockaddr *)ret_addr, sizeof *ret_addr) < 0 ||
	    listen(fd, STREAMS_MAX) < 0 || getsockname(fd, (struct sockaddr *)ret_addr, &len) < 0)
		return error_errno(err, -errno, "floors: listening on loopback");
	return steal_fd(&fd);
}

/* Return: the server's pid; its address in @ret_addr. */
static pid_t server_start(const char *dir, unsigned int n, enum floor_kind kind,
                          struct sockaddr_in *ret_addr, struct error *err)
{
	_cleanup_close_ int listener = listen_loopback(ret_addr, err);
	pid_t parent = getpid(), pid;

	if (listener < 0)
		return listener;
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "floors: server process");
	if (!pid)
		server_process(dir, listener, n, kind, parent);
	return pid;
}

static void server_stop(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* The client's side of one connection. */
static int client_connect(SSL_CTX *ctx, const struct sockaddr_in *addr, int *ret_fd, SSL **ret,
                          struct error *err)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = { .tv_sec = 10 };
	int one = 1;
	SSL *ssl;

	if (fd < 0 || connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0)
		return error_errno(err, -errno, "floors: connecting over loopback");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	ssl = SSL_new(ctx);
	if (!ssl || SSL_set_fd(ssl, fd) != 1 || SSL_connect(ssl) != 1) {
		SSL_free(ssl);
		return tls_error(err, "TLS handshake");
	}
	*ret_fd = steal_fd(&fd);
	*ret = ssl;
	return 0;
}

struct receiver {
	pthread_t thread;
	SSL *ssl;
	int fd;
	_Atomic uint64_t *total; /* of all receivers */
	uint64_t start_ns;
};

static void *receiver_main(void *arg)
{
	struct receiver *r = arg;
	uint8_t buf[WRITE_BYTES];
	size_t n;

	while (SSL_read_ex(r->ssl, buf, sizeof buf, &n) == 1)
		if (atomic_fetch_add_explicit(r->total, n, memory_order_relaxed) >= MEASURE_BYTES ||
		    clock_now_ns() - r->start_ns >= MEASURE_NS)
			break;
	return NULL;
}

static int receive_all(struct receiver *receivers, unsigned int n, pid_t server,
                       _Atomic uint64_t *total, struct floor_rate *ret, struct error *err)
{
	struct floor_meter meter = floor_meter_start(server);
	unsigned int started = 0;
	int r = 0;

	for (unsigned int i = 0; i < n && !r; i++) {
		receivers[i].total = total;
		receivers[i].start_ns = meter.wall_ns;
		if (SSL_write(receivers[i].ssl, "g", 1) != 1)
			r = tls_error(err, "TLS throughput");
		else if (pthread_create(&receivers[i].thread, NULL, receiver_main, &receivers[i]))
			r = error_set(err, -EAGAIN, "floors: no thread");
		else
			started++;
	}
	for (unsigned int i = 0; i < started; i++)
		pthread_join(receivers[i].thread, NULL);
	if (!r)
		*ret = floor_meter_rate(&meter, *total);
	if (!r && *total < WRITE_BYTES)
		r = error_set(err, -EIO, "floors: TLS throughput: the connections broke");
	return r;
}

int floor_tls_throughput(const char *pki_dir, unsigned int streams, struct floor_rate *ret,
                         struct error *err)
{
	_cleanup_(SSL_CTX_free_p) SSL_CTX *ctx = context_new(pki_dir, false, err);
	struct receiver receivers[STREAMS_MAX];
	_Atomic uint64_t total = 0;
	unsigned int n = streams < STREAMS_MAX ? streams : STREAMS_MAX, open = 0;
	struct sockaddr_in addr;
	pid_t server;
	int r = 0;

	if (!ctx)
		return -EIO;
	server = server_start(pki_dir, n, FLOOR_THROUGHPUT, &addr, err);
	if (server < 0)
		return server;
	while (open < n && !r) {
		r = client_connect(ctx, &addr, &receivers[open].fd, &receivers[open].ssl, err);
		open += !r;
	}
	if (!r)
		r = receive_all(receivers, n, server, &total, ret, err);
	for (unsigned int i = 0; i < open; i++) {
		SSL_free(receivers[i].ssl);
		close(receivers[i].fd);
	}
	server_stop(server);
	return r;
}

static int pingpong(SSL *ssl, struct histogram *ret_ns, struct error *err)
{
	static const uint8_t request[REQUEST_BYTES] = { 1 };
	uint8_t answer[ANSWER_BYTES];

	for (unsigned int i = 0; i < WARM_UP + ROUNDS; i++) {
		uint64_t start = clock_now_ns();

		if (SSL_write(ssl, request, sizeof request) != sizeof request ||
		    !read_all(ssl, answer, sizeof answer))
			return tls_error(err, "TLS ping-pong");
		if (i >= WARM_UP)
			histogram_add(ret_ns, clock_now_ns() - start);
	}
	return 0;
}

int floor_tls_pingpong(const char *pki_dir, struct histogram *ret_ns, struct error *err)
{
	_cleanup_(SSL_CTX_free_p) SSL_CTX *ctx = context_new(pki_dir, false, err);
	_cleanup_(SSL_free_p) SSL *ssl = NULL;
	_cleanup_close_ int fd = -1;
	struct sockaddr_in addr;
	pid_t server;
	int r;

	if (!ctx)
		return -EIO;
	server = server_start(pki_dir, 1, FLOOR_PINGPONG, &addr, err);
	if (server < 0)
		return server;
	r = client_connect(ctx, &addr, &fd, &ssl, err);
	if (!r)
		r = pingpong(ssl, ret_ns, err);
	server_stop(server);
	return r;
}
