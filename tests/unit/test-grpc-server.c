/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <nghttp2/nghttp2.h>

#include "grpc/server.h"
#include "grpc/wire.h"
#include "util/clock.h"
#include "util/unix_listen.h"

#define DEADLINE_NS (20 * NSEC_PER_SEC)
#define PATH_ECHO "/test/Echo"
#define PATH_HOLD "/test/Hold"
#define PATH_CHAT "/test/Chat"

/* The server, and a client of it, on one loop in one thread. */
struct world {
	uv_loop_t loop;
	struct grpc_server *server;
	char dir[40];
	char path[64];
	/* What the methods and their calls see. */
	struct grpc_call *held;
	unsigned int n_calls, n_gone, n_writable, n_finished;
	enum grpc_code finished_code;
	char finished_path[32];
	bool close_inside;
	/* The client. */
	int fd;
	bool hung_up;
	nghttp2_session *h2;
	int32_t stream_id;
	uint8_t request[4096];
	size_t request_len, request_sent;
	bool keep_open;
	size_t received;
	char status[16];
	bool closed;
};

static void on_gone(struct grpc_call *call, void *arg)
{
	struct world *w = arg;

	assert_ptr_equal(call, w->held);
	w->held = NULL;
	w->n_gone++;
}

static void on_writable(struct grpc_call *call, void *arg)
{
	struct world *w = arg;

	assert_int_equal(grpc_call_queued(call), 0);
	w->n_writable++;
}

static void echo_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct world *w = arg;

	w->n_calls++;
	assert_true(grpc_call_peer(call)->local);
	assert_int_equal(grpc_call_peer(call)->pid, getpid());
	assert_int_equal(grpc_call_send(call, request, len), 0);
	grpc_call_finish(call, NULL);
}

static void hold_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct world *w = arg;

	(void)request;
	(void)len;
	w->n_calls++;
	w->held = call;
	grpc_call_watch(call, on_gone, on_writable, w);
	if (w->close_inside)
		grpc_server_close(w->server);
}

static void chat_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct world *w = arg;

	w->n_calls++;
	if (request)
		assert_int_equal(grpc_call_send(call, request, len), 0);
	else
		grpc_call_finish(call, NULL);
}

static void on_finished(void *arg, const struct grpc_peer *peer, const char *path,
                        enum grpc_code code, uint64_t duration_ns)
{
	struct world *w = arg;

	assert_true(peer->local);
	assert_true(duration_ns < DEADLINE_NS);
	w->n_finished++;
	w->finished_code = code;
	snprintf(w->finished_path, sizeof w->finished_path, "%s", path);
}

static const struct grpc_method methods[] = {
	{ PATH_ECHO, GRPC_READER, echo_call, false },
	{ PATH_HOLD, GRPC_READER, hold_call, false },
	{ PATH_CHAT, GRPC_READER, chat_call, true },
	{ .path = NULL },
};

static int on_client_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name,
                            size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                            void *arg)
{
	struct world *w = arg;

	(void)h2;
	(void)frame;
	(void)flags;
	if (name_len == 11 && !memcmp(name, "grpc-status", 11))
		snprintf(w->status, sizeof w->status, "%.*s", (int)value_len, (const char *)value);
	return 0;
}

static int on_client_data(nghttp2_session *h2, uint8_t flags, int32_t stream_id,
                          const uint8_t *data, size_t len, void *arg)
{
	struct world *w = arg;

	(void)h2;
	(void)flags;
	(void)stream_id;
	(void)data;
	w->received += len;
	return 0;
}

static int on_client_close(nghttp2_session *h2, int32_t stream_id, uint32_t error, void *arg)
{
	struct world *w = arg;

	(void)h2;
	(void)error;
	if (stream_id == w->stream_id)
		w->closed = true;
	return 0;
}

static ssize_t on_client_body(nghttp2_session *h2, int32_t stream_id, uint8_t *buf, size_t size,
                              uint32_t *flags, nghttp2_data_source *source, void *arg)
{
	struct world *w = arg;
	size_t n = w->request_len - w->request_sent;

	(void)h2;
	(void)stream_id;
	(void)source;
	assert_true(n <= size);
	if (!n && w->keep_open)
		return NGHTTP2_ERR_DEFERRED;
	memcpy(buf, w->request + w->request_sent, n);
	w->request_sent += n;
	if (!w->keep_open)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)n;
}

static void client_connect(struct world *w)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	nghttp2_session_callbacks *cb;

	strcpy(addr.sun_path, w->path);
	w->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(connect(w->fd, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(nghttp2_session_callbacks_new(&cb), 0);
	nghttp2_session_callbacks_set_on_header_callback(cb, on_client_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_client_data);
	nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_client_close);
	assert_int_equal(nghttp2_session_client_new(&w->h2, cb, w), 0);
	nghttp2_session_callbacks_del(cb);
	nghttp2_submit_settings(w->h2, NGHTTP2_FLAG_NONE, NULL, 0);
}

static void client_close(struct world *w)
{
	nghttp2_session_del(w->h2);
	w->h2 = NULL;
	close(w->fd);
	w->fd = -1;
}

static void world_start(struct world *w)
{
	const struct grpc_server_config config = { .methods = methods,
		                                   .arg = w,
		                                   .finished = on_finished };
	struct grpc_listen_unix listen = { .fd = -1 };
	struct error err = ERROR_INIT;

	signal(SIGPIPE, SIG_IGN);
	*w = (struct world){ .dir = "/tmp/test-grpc-XXXXXX" };
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof w->path, "%s/control", w->dir);
	listen.path = w->path;
	uv_loop_init(&w->loop);
	assert_int_equal(grpc_server_new(&w->loop, &config, &w->server, &err), 0);
	assert_int_equal(grpc_server_listen_unix(w->server, &listen, &err), 0);
	client_connect(w);
}

/* Ends the server: the loop must run dry, with nothing left open on it. */
static void world_end(struct world *w)
{
	if (!w->close_inside)
		grpc_server_close(w->server);
	uv_run(&w->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&w->loop), 0);
	if (w->h2)
		client_close(w);
	unlink(w->path);
	rmdir(w->dir);
}

static void client_send(struct world *w)
{
	const uint8_t *data;
	ssize_t n;

	while ((n = nghttp2_session_mem_send(w->h2, &data)) > 0)
		if (send(w->fd, data, (size_t)n, MSG_NOSIGNAL) != n)
			w->hung_up = true;
}

static void client_receive(struct world *w)
{
	uint8_t buf[65536];
	ssize_t n = recv(w->fd, buf, sizeof buf, 0);

	if (n > 0)
		assert_int_equal(nghttp2_session_mem_recv(w->h2, buf, (size_t)n), n);
	else if (n == 0 || errno != EAGAIN)
		w->hung_up = true;
}

/* One turn of both. Return: true, until it takes too long. */
static bool turn(struct world *w, uint64_t began_ns)
{
	if (w->h2)
		client_send(w);
	uv_run(&w->loop, UV_RUN_NOWAIT);
	if (w->h2 && !w->hung_up)
		client_receive(w);
	assert_true(clock_now_ns() - began_ns < DEADLINE_NS);
	return true;
}

#define UNTIL(w, condition)                                                                        \
	for (uint64_t began_ns_ = clock_now_ns(); !(condition) && turn(w, began_ns_);)             \
		;

static void add_request(struct world *w, size_t len)
{
	assert_true(w->request_len + GRPC_PREFIX_BYTES + len <= sizeof w->request);
	grpc_prefix_encode(w->request + w->request_len, (uint32_t)len);
	w->request_len += GRPC_PREFIX_BYTES + len;
}

static nghttp2_nv nv(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), 0 };
}

static void request(struct world *w, const char *path, size_t len)
{
	const nghttp2_data_provider body = { .read_callback = on_client_body };
	const nghttp2_nv headers[] = {
		nv(":method", "POST"),
		nv(":scheme", "http"),
		nv(":path", path),
		nv(":authority", "localhost"),
		nv("content-type", "application/grpc"),
		nv("te", "trailers"),
	};

	w->request_len = w->request_sent = w->received = 0;
	w->closed = false;
	*w->status = 0;
	add_request(w, len);
	w->stream_id = nghttp2_submit_request(w->h2, NULL, headers, 6, &body, NULL);
	assert_true(w->stream_id > 0);
}

static void test_unary_call(void **state)
{
	struct grpc_server_stats stats;
	struct world w;

	(void)state;
	world_start(&w);
	for (unsigned int i = 0; i < 3; i++) {
		request(&w, PATH_ECHO, 100);
		UNTIL(&w, w.closed);
		assert_string_equal(w.status, "0");
		assert_int_equal(w.received, GRPC_PREFIX_BYTES + 100);
	}
	assert_int_equal(w.n_calls, 3);
	assert_int_equal(w.n_finished, 3);
	assert_string_equal(w.finished_path, PATH_ECHO);
	grpc_server_get_stats(w.server, &stats);
	assert_int_equal(stats.connections, 1);
	assert_int_equal(stats.connections_total, 1);
	assert_int_equal(stats.calls, 0);
	assert_int_equal(stats.refused_total, 0);
	world_end(&w);
}

static void test_unknown_path_is_counted_as_other(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, "/test/Echoes", 0);
	UNTIL(&w, w.closed);
	assert_string_equal(w.status, "12");
	assert_string_equal(w.finished_path, "other");
	assert_int_equal(w.finished_code, GRPC_UNIMPLEMENTED);
	world_end(&w);
}

static void test_later_answer_and_writable(void **state)
{
	static uint8_t message[100000];
	const struct grpc_status status = { .code = GRPC_DATA_LOSS, .message = "m" };
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.held);
	assert_int_equal(grpc_call_send(w.held, message, sizeof message), 0);
	assert_int_equal(grpc_call_queued(w.held), sizeof message + GRPC_PREFIX_BYTES);
	assert_int_equal(w.n_writable, 0);
	UNTIL(&w, w.n_writable);
	/* Told once each time. */
	UNTIL(&w, w.received == sizeof message + GRPC_PREFIX_BYTES);
	assert_int_equal(w.n_writable, 1);
	grpc_call_finish(w.held, &status);
	UNTIL(&w, w.closed);
	assert_string_equal(w.status, "15");
	assert_int_equal(w.n_gone, 0);
	assert_int_equal(w.finished_code, GRPC_DATA_LOSS);
	world_end(&w);
}

static void test_queue_is_bounded(void **state)
{
	static uint8_t message[3u << 19];
	unsigned int n = 0;
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.held);
	while (!grpc_call_send(w.held, message, sizeof message))
		assert_true(++n <= 11);
	assert_int_equal(grpc_call_send(w.held, message, 1), -ENOBUFS);
	/* Nor may another call add to it. */
	request(&w, PATH_ECHO, 10);
	UNTIL(&w, w.n_finished);
	assert_int_equal(w.finished_code, GRPC_RESOURCE_EXHAUSTED);
	assert_int_equal(w.n_calls, 1);
	grpc_call_finish(w.held, NULL);
	world_end(&w);
}

static void test_stream_of_requests(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	w.keep_open = true;
	request(&w, PATH_CHAT, 10);
	UNTIL(&w, w.received == 15);
	add_request(&w, 20);
	add_request(&w, 0);
	nghttp2_session_resume_data(w.h2, w.stream_id);
	UNTIL(&w, w.received == 15 + 25 + 5);
	w.keep_open = false;
	nghttp2_session_resume_data(w.h2, w.stream_id);
	UNTIL(&w, w.closed);
	assert_string_equal(w.status, "0");
	assert_int_equal(w.n_calls, 4);
	world_end(&w);
}

static void test_cancelled_call_is_gone(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.held);
	nghttp2_submit_rst_stream(w.h2, NGHTTP2_FLAG_NONE, w.stream_id, NGHTTP2_CANCEL);
	UNTIL(&w, w.n_gone);
	assert_int_equal(w.finished_code, GRPC_CANCELLED);
	assert_int_equal(w.n_finished, 1);
	world_end(&w);
	assert_int_equal(w.n_gone, 1);
}

static void test_lost_connection_is_gone(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.held);
	client_close(&w);
	UNTIL(&w, w.n_gone);
	assert_int_equal(w.n_finished, 1);
	world_end(&w);
	assert_int_equal(w.n_gone, 1);
}

static void test_close_ends_calls(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.held);
	grpc_server_close(w.server);
	assert_int_equal(w.n_gone, 1);
	assert_int_equal(w.finished_code, GRPC_UNAVAILABLE);
	/* The client can read why. */
	client_receive(&w);
	assert_string_equal(w.status, "14");
	world_end(&w);
}

/* From inside a method everything goes on until nghttp2 is left. */
static void test_close_from_inside_a_method(void **state)
{
	struct world w;

	(void)state;
	world_start(&w);
	w.close_inside = true;
	request(&w, PATH_HOLD, 0);
	UNTIL(&w, w.n_gone);
	world_end(&w);
	assert_int_equal(w.n_finished, 1);
}

static void test_drain_ends_idle_connections(void **state)
{
	struct grpc_server_stats stats;
	struct world w;

	(void)state;
	world_start(&w);
	request(&w, PATH_ECHO, 1);
	UNTIL(&w, w.closed);
	grpc_server_drain(w.server);
	grpc_server_drain(w.server);
	UNTIL(&w, w.hung_up);
	client_close(&w);
	UNTIL(&w, (grpc_server_get_stats(w.server, &stats), !stats.connections));
	world_end(&w);
}

static void test_listening(void **state)
{
	struct grpc_listen_unix listen = { .fd = -1 };
	struct grpc_listen_tls tls = { .address = NULL };
	struct tcp_listening at;
	const struct grpc_server_config config = { .methods = methods };
	struct grpc_server *other;
	struct error err = ERROR_INIT;
	char path[80];
	struct stat st;
	struct world w;

	(void)state;
	world_start(&w);
	assert_int_equal(stat(w.path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
	assert_true(grpc_server_unix_fd(w.server) >= 0);
	grpc_server_get_listening(w.server, &at);
	assert_int_equal(at.n, 0);
	assert_int_equal(grpc_server_port(w.server), 0);
	/* In use: refused; a socket that is handed over is served. */
	assert_int_equal(grpc_server_new(&w.loop, &config, &other, &err), 0);
	listen.path = w.path;
	assert_int_equal(grpc_server_listen_unix(other, &listen, &err), -EADDRINUSE);
	snprintf(path, sizeof path, "%s/given", w.dir);
	listen.fd = unix_listen(path, SOCK_STREAM, "test", &err);
	assert_true(listen.fd >= 0);
	assert_int_equal(grpc_server_listen_unix(other, &listen, &err), 0);
	assert_int_equal(grpc_server_unix_fd(other), listen.fd);
	tls.address = "127.0.0.1";
	assert_int_equal(grpc_server_listen_tls(other, &tls, &err), -EINVAL);
	tls.address = "[::1]:99999";
	assert_int_equal(grpc_server_listen_tls(other, &tls, &err), -EINVAL);
	tls.address = "127.0.0.1:0";
	assert_int_equal(grpc_server_listen_tls(other, &tls, &err), 0);
	assert_true(grpc_server_port(other) > 0);
	grpc_server_close(other);
	unlink(path);
	world_end(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unary_call),
		cmocka_unit_test(test_unknown_path_is_counted_as_other),
		cmocka_unit_test(test_later_answer_and_writable),
		cmocka_unit_test(test_queue_is_bounded),
		cmocka_unit_test(test_stream_of_requests),
		cmocka_unit_test(test_cancelled_call_is_gone),
		cmocka_unit_test(test_lost_connection_is_gone),
		cmocka_unit_test(test_close_ends_calls),
		cmocka_unit_test(test_close_from_inside_a_method),
		cmocka_unit_test(test_drain_ends_idle_connections),
		cmocka_unit_test(test_listening),
	};

	return cmocka_run_group_tests_name("grpc-server", tests, NULL, NULL);
}
