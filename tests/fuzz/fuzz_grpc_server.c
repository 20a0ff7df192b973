/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes into a connection of the gRPC server. The first says how they come: with HTTP/2's preface
 * before them or not, and in pieces of what size. Whatever it was: what goes back is whole
 * frames, no method loses track of a call, and when the client is gone nothing is left.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "grpc/server_internal.h"
#include "util/log.h"

#include "http2.h"

#define TURNS_MAX 1000u
#define ROUNDS_PER_SERVER 1000u
#define PREFACE NGHTTP2_CLIENT_MAGIC "\0\0\0\4\0\0\0\0\0"
#define PREFACE_BYTES (NGHTTP2_CLIENT_MAGIC_LEN + HTTP2_HEAD_BYTES)

const unsigned int fuzz_rounds = 20000;

static struct {
	unsigned int rounds; /* 0: not running */
	uv_loop_t loop;
	struct grpc_server *server;
	unsigned int held;
} host;

static void on_gone(struct grpc_call *call, void *arg)
{
	(void)call;
	(void)arg;
	FUZZ_CHECK(host.held);
	host.held--;
}

static void hold_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)request;
	(void)len;
	(void)arg;
	host.held++;
	grpc_call_watch(call, on_gone, NULL, NULL);
}

static void echo_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)arg;
	FUZZ_CHECK(!grpc_call_send(call, request, len));
	grpc_call_finish(call, NULL);
}

static void chat_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	(void)arg;
	if (!request)
		grpc_call_finish(call, NULL);
	else
		FUZZ_CHECK(!grpc_call_send(call, request, len));
}

static const struct grpc_method methods[] = {
	{ "/E", GRPC_READER, echo_call, false },
	{ "/H", GRPC_READER, hold_call, false },
	{ "/C", GRPC_READER, chat_call, true },
	{ .path = NULL },
};

static void host_start(void)
{
	const struct grpc_server_config config = { .methods = methods };
	struct error err = ERROR_INIT;

	log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_AUTO);
	uv_loop_init(&host.loop);
	FUZZ_CHECK(!grpc_server_new(&host.loop, &config, &host.server, &err));
}

static void host_stop(void)
{
	grpc_server_close(host.server);
	uv_run(&host.loop, UV_RUN_DEFAULT);
	FUZZ_CHECK(!uv_loop_close(&host.loop));
	FUZZ_CHECK(!host.held);
	host.rounds = 0;
}

static void at_exit(void)
{
	if (host.rounds)
		host_stop();
}

/* What has come so far is frames, of which the last may be on its way. Return: what is behind. */
static size_t check_frames(const uint8_t *buf, size_t len)
{
	size_t at = 0;

	while (len - at >= HTTP2_HEAD_BYTES) {
		size_t payload = (size_t)buf[at] << 16 | (size_t)buf[at + 1] << 8 | buf[at + 2];

		FUZZ_CHECK(payload <= 16384);
		FUZZ_CHECK(buf[at + 3] <= NGHTTP2_CONTINUATION);
		if (len - at - HTTP2_HEAD_BYTES < payload)
			break;
		at += HTTP2_HEAD_BYTES + payload;
	}
	return at;
}

/* Return: false once the server has hung up. */
static bool receive(int fd)
{
	static uint8_t buf[1u << 17];
	static size_t have;
	size_t used;
	ssize_t n = recv(fd, buf + have, sizeof buf - have, 0);

	if (n <= 0) {
		bool again = n < 0 && errno == EAGAIN;

		have = again ? have : 0;
		return again;
	}
	have += (size_t)n;
	used = check_frames(buf, have);
	have -= used;
	memmove(buf, buf + used, have);
	return true;
}

static void talk(const uint8_t *data, size_t size, size_t piece, bool preface)
{
	const struct grpc_peer peer = { .local = true, .name = "fuzz" };
	struct grpc_server_stats stats;
	bool hung_up = false;
	int fds[2];

	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds));
	FUZZ_CHECK(!connection_new(host.server, fds[0], NULL, &peer));
	if (preface)
		(void)!send(fds[1], PREFACE, PREFACE_BYTES, MSG_NOSIGNAL);
	while (size && !hung_up) {
		size_t n = size < piece ? size : piece;

		(void)!send(fds[1], data, n, MSG_NOSIGNAL);
		data += n;
		size -= n;
		uv_run(&host.loop, UV_RUN_NOWAIT);
		hung_up = !receive(fds[1]);
	}
	shutdown(fds[1], SHUT_WR);
	for (unsigned int turn = 0; !hung_up; turn++) {
		FUZZ_CHECK(turn < TURNS_MAX);
		uv_run(&host.loop, UV_RUN_NOWAIT);
		hung_up = !receive(fds[1]);
	}
	close(fds[1]);
	do {
		uv_run(&host.loop, UV_RUN_NOWAIT);
		grpc_server_get_stats(host.server, &stats);
	} while (stats.connections);
	FUZZ_CHECK(!stats.calls && !host.held && !host.server->request_bytes);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static bool registered;

	if (!size || size > FUZZ_INPUT_MAX)
		return 0;
	if (!registered)
		registered = !atexit(at_exit);
	if (!host.rounds++)
		host_start();
	http2_count(data + 1, size - 1);
	talk(data + 1, size - 1, data[0] & 2 ? 7 : 4096, data[0] & 1);
	if (host.rounds == ROUNDS_PER_SERVER)
		host_stop();
	return 0;
}

static uint8_t *put_field(uint8_t *p, const char *name, const char *value)
{
	*p++ = 0;
	*p++ = (uint8_t)strlen(name);
	p = (uint8_t *)mempcpy(p, name, strlen(name));
	*p++ = (uint8_t)strlen(value);
	return (uint8_t *)mempcpy(p, value, strlen(value));
}

static uint8_t *put_call(uint8_t *p, uint8_t stream_id, const char *path, const char *timeout,
                         bool end)
{
	static const uint8_t body[] = { 0, 0, 0, 0, 3, 'a', 'b', 'c' };
	uint8_t block[512], *q = block;

	q = put_field(q, ":method", "POST");
	q = put_field(q, ":scheme", "http");
	q = put_field(q, ":path", path);
	q = put_field(q, ":authority", "x");
	q = put_field(q, "content-type", "application/grpc");
	q = put_field(q, "grpc-timeout", timeout);
	p = http2_put(p, NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, stream_id, block,
	              (size_t)(q - block));
	return http2_put(p, NGHTTP2_DATA, end ? NGHTTP2_FLAG_END_STREAM : 0, stream_id, body,
	                 sizeof body);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const paths[] = { "/E", "/H", "/C", "/none" };
	static const uint8_t cancel[] = { 0, 0, 0, NGHTTP2_CANCEL };
	uint8_t *p = buf;

	if (i > 7)
		return 0;
	*p++ = (uint8_t)(1 | (i & 2));
	for (uint8_t n = 0; n < 4; n++)
		p = put_call(p, (uint8_t)(2 * n + 1), paths[(i + n) % 4], i & 1 ? "10S" : "1n",
		             n != 2 || i & 4);
	if (i & 4)
		p = http2_put(p, NGHTTP2_RST_STREAM, 0, 3, cancel, sizeof cancel);
	p = http2_put(p, NGHTTP2_PING, 0, 0, "8 bytes!", 8);
	return (size_t)(p - buf);
}
