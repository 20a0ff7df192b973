/* SPDX-License-Identifier: Apache-2.0 */
/* A connection's bytes, in and out; its times; its end. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "grpc/server_internal.h"
#include "util/clock.h"

/* A client beyond TCP that has gone without a word: its connection ends after about a minute. */
#define KEEPALIVE_IDLE_S 30
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_COUNT 3
/* And one that takes nothing of what was sent to it. */
#define STALL_TIMEOUT_MS 300000
/* With so many frames or bytes that wait to be sent nothing more is read. */
#define CONGESTED_FRAMES 1024u
#define CONGESTED_BYTES (64u << 10)

#define NOT_ANY_MORE "this caller may not connect any more"

struct output {
	uv_write_t write;
	uint8_t bytes[];
};

static void on_timer(uv_timer_t *timer);

void connection_wake(struct grpc_connection *c)
{
	if (c->dirty || c->state == CONNECTION_CLOSED)
		return;
	c->dirty = true;
	c->next_dirty = c->server->dirty;
	c->server->dirty = c;
}

void connection_arm(struct grpc_connection *c, uint64_t at_ns)
{
	uint64_t now_ns = clock_now_ns();
	uint64_t wait_ns = at_ns > now_ns ? at_ns - now_ns : 0;

	if (at_ns >= c->timer_ns || c->state == CONNECTION_CLOSED)
		return;
	c->timer_ns = at_ns;
	/* The loop's idea of now may be old. Never 0, which libuv would run in this very turn. */
	uv_update_time(c->server->loop);
	uv_timer_start(&c->timer, on_timer, wait_ns / NSEC_PER_MSEC + 1, 0);
}

static void set_state(struct grpc_connection *c, enum connection_state state)
{
	if (c->state == CONNECTION_HANDSHAKE && state != CONNECTION_HANDSHAKE)
		c->server->n_handshakes--;
	c->state = state;
}

static void set_due(struct grpc_connection *c, uint64_t after_ms)
{
	c->due_ns = clock_now_ns() + after_ms * NSEC_PER_MSEC;
	connection_arm(c, c->due_ns);
}

static void on_closed(uv_handle_t *handle)
{
	struct grpc_connection *c = handle->data;
	struct grpc_server *s = c->server;

	if (--c->open_handles)
		return;
	free(c);
	server_handle_closed(s);
}

static void unlink_from(struct grpc_connection *c)
{
	struct grpc_server *s = c->server;

	for (struct grpc_connection **p = &s->connections; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	for (struct grpc_connection **p = &s->dirty; c->dirty && *p; p = &(*p)->next_dirty)
		if (*p == c) {
			*p = c->next_dirty;
			c->dirty = false;
			break;
		}
	s->n_connections--;
	if (c->tls)
		s->n_tcp--;
}

/* No method has a call any more. */
static void lose_calls(struct grpc_connection *c, enum grpc_code code)
{
	c->busy++;
	for (struct grpc_call *call = c->calls; call; call = call->next)
		call_lose(call, code);
	c->busy--;
}

void connection_close(struct grpc_connection *c)
{
	if (c->state == CONNECTION_CLOSED)
		return;
	if (c->busy) {
		c->doomed = true;
		return;
	}
	lose_calls(c, c->server->closing ? GRPC_UNAVAILABLE : GRPC_CANCELLED);
	unlink_from(c);
	set_state(c, CONNECTION_CLOSED);
	while (c->calls)
		call_free(c->calls);
	share_leave(c);
	nghttp2_session_del(c->h2);
	c->h2 = NULL;
	c->tls = tls_pipe_free(c->tls);
	uv_close(&c->handle, on_closed);
	uv_close((uv_handle_t *)&c->timer, on_closed);
}

/* Say what there is to say, and wait a little until it is read. */
static void end(struct grpc_connection *c)
{
	if (c->state >= CONNECTION_ENDING)
		return;
	set_state(c, CONNECTION_ENDING);
	set_due(c, GRPC_LINGER_MS);
	lose_calls(c, GRPC_CANCELLED);
	connection_wake(c);
}

/* Whatever was put off while nghttp2 or a method ran. */
static void settle(struct grpc_connection *c)
{
	if (c->doomed)
		connection_close(c);
	else if (c->last_words)
		end(c);
}

static void on_written(uv_write_t *write, int status)
{
	struct grpc_connection *c = write->data;

	free(write);
	c->writing = false;
	if (c->state == CONNECTION_CLOSED)
		return;
	if (status < 0)
		connection_close(c);
	else
		connection_wake(c);
}

/* Return: how many bytes there are for the socket, in @buf or in TLS; or -EPROTO. */
static ssize_t gather(struct grpc_connection *c, uint8_t *buf, size_t size)
{
	ssize_t n = c->h2 ? session_output(c, buf, size, TURN_WRITE_BYTES) : 0;

	if (n < 0 || !c->tls)
		return n;
	if (tls_pipe_write(c->tls, buf, (size_t)n))
		return -EPROTO;
	return (ssize_t)tls_pipe_pending(c->tls);
}

/*
 * One write() of what there is. Its end is told in the loop's next turn at the earliest, so a
 * client that takes all at once has its share of each turn and not more.
 */
static int write_out(struct grpc_connection *c)
{
	struct grpc_server *s = c->server;
	struct output *out;
	uv_buf_t buf;
	ssize_t n;

	if (c->writing)
		return 0;
	n = gather(c, s->out, sizeof s->out);
	if (n <= 0)
		return (int)n;
	out = malloc(sizeof *out + (size_t)n);
	if (!out)
		return -ENOMEM;
	if (c->tls)
		n = (ssize_t)tls_pipe_take(c->tls, out->bytes, (size_t)n);
	else
		memcpy(out->bytes, s->out, (size_t)n);
	out->write.data = c;
	buf = uv_buf_init((char *)out->bytes, (unsigned int)n);
	c->writing = true;
	if (uv_write(&out->write, &c->stream, &buf, 1, on_written)) {
		c->writing = false;
		free(out);
		return -EPIPE;
	}
	return 0;
}

static bool is_congested(const struct grpc_connection *c)
{
	if (c->tls && tls_pipe_pending(c->tls) > CONGESTED_BYTES)
		return true;
	return c->h2 && nghttp2_session_get_outbound_queue_size(c->h2) > CONGESTED_FRAMES;
}

static void tell_writable(struct grpc_connection *c)
{
	c->drained = false;
	c->busy++;
	for (struct grpc_call *call = c->calls; call; call = call->next) {
		bool tell = call->drained && call->state == CALL_RUNNING && !call->queued;

		call->drained = false;
		if (tell && call->writable)
			call->writable(call, call->watch_arg);
	}
	c->busy--;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf);
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

/* Whether nghttp2 has come to an end with the client. */
static bool is_over(const struct grpc_connection *c)
{
	return c->h2 && !nghttp2_session_want_read(c->h2) && !nghttp2_session_want_write(c->h2);
}

void connection_turn(struct grpc_connection *c)
{
	if (c->state == CONNECTION_CLOSED)
		return;
	if (c->drained && !c->writing)
		tell_writable(c);
	if (write_out(c))
		c->doomed = true;
	else if (is_over(c))
		c->last_words = true;
	settle(c);
	if (c->state == CONNECTION_CLOSED)
		return;
	if (c->state == CONNECTION_ENDING && !c->writing && !c->shut) {
		int fd;

		if (!uv_fileno(&c->handle, &fd))
			shutdown(fd, SHUT_WR);
		c->shut = true;
	}
	if (c->paused && !is_congested(c)) {
		c->paused = false;
		if (uv_read_start(&c->stream, on_alloc, on_read))
			connection_close(c);
	}
}

/* TLS is open, or the peer is local: HTTP/2 begins. */
static int open_session(struct grpc_connection *c)
{
	set_state(c, CONNECTION_PREFACE);
	if (share_join(c) || session_new(c))
		return -ENOMEM;
	if (!share_has_connection(c->share))
		session_calm_down(c, "too many connections of one client");
	if (c->server->draining)
		connection_drain(c);
	connection_wake(c);
	return 0;
}

static enum grpc_role role_by_name(const struct grpc_connection *c)
{
	switch (tls_pipe_judge(c->tls)) {
	case TLS_PIPE_ALLOWED:
		return GRPC_OPERATOR;
	case TLS_PIPE_LIMITED:
		return GRPC_READER;
	default:
		return GRPC_NOBODY;
	}
}

void connection_judge(struct grpc_connection *c)
{
	if (c->state != CONNECTION_PREFACE && c->state != CONNECTION_OPEN)
		return;
	c->peer.role = c->peer.local ? listener_role_of(&c->server->local, c) : role_by_name(c);
	if (c->peer.role != GRPC_NOBODY)
		return;
	server_refused(c->server, &c->peer, c->peer.local ? REFUSED_GROUP : REFUSED_CERTIFICATE,
	               NOT_ANY_MORE);
	session_goaway(c, NGHTTP2_INADEQUATE_SECURITY, NOT_ANY_MORE);
	c->last_words = true;
	connection_wake(c);
}

/* Return: 0 when done, -EAGAIN; -ECONNABORTED where the peer is turned away. */
static int shake_hands(struct grpc_connection *c)
{
	struct error err = ERROR_INIT;
	int rc = tls_pipe_handshake(c->tls, &err);

	if (rc == -EAGAIN)
		return rc;
	if (rc) {
		server_refused(c->server, &c->peer,
		               rc == -EACCES ? REFUSED_CERTIFICATE : REFUSED_PROTOCOL, "%s",
		               err.text);
		return -ECONNABORTED;
	}
	snprintf(c->peer_name, sizeof c->peer_name, "%s", tls_pipe_peer_name(c->tls));
	c->peer.role = role_by_name(c);
	/* Other names came while it shook hands. */
	if (c->peer.role == GRPC_NOBODY) {
		server_refused(c->server, &c->peer, REFUSED_CERTIFICATE, NOT_ANY_MORE);
		return -ECONNABORTED;
	}
	return open_session(c);
}

static int take_ciphertext(struct grpc_connection *c, const uint8_t *data, size_t len)
{
	int rc = tls_pipe_feed(c->tls, data, len);

	if (!rc && c->state == CONNECTION_HANDSHAKE)
		rc = shake_hands(c);
	/* An alert or the like may have to go out. */
	connection_wake(c);
	if (rc)
		return rc == -EAGAIN ? 0 : rc;
	while (!c->doomed && !c->last_words) {
		uint8_t *plain = c->server->plain;
		ssize_t n = tls_pipe_read(c->tls, plain, sizeof c->server->plain);

		if (n == -EAGAIN)
			return 0;
		if (n <= 0)
			return -ECONNRESET;
		rc = session_input(c, plain, (size_t)n);
		explicit_bzero(plain, (size_t)n);
		if (rc)
			return rc;
	}
	return 0;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct grpc_connection *c = handle->data;

	(void)suggested;
	*buf = uv_buf_init((char *)c->server->in, sizeof c->server->in);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct grpc_connection *c = stream->data;
	const uint8_t *data = (const uint8_t *)buf->base;
	int rc = 0;

	if (n == 0)
		return;
	if (n < 0) {
		connection_close(c);
		return;
	}
	if (c->state != CONNECTION_ENDING)
		rc = c->tls ? take_ciphertext(c, data, (size_t)n)
		            : session_input(c, data, (size_t)n);
	/* Requests may have secrets in them. */
	explicit_bzero(c->server->in, (size_t)n);
	if (rc)
		c->last_words = true;
	settle(c);
	if (c->state == CONNECTION_CLOSED)
		return;
	/* The rest in the next turn: others have their share before. */
	if ((size_t)n == buf->len || is_congested(c)) {
		uv_read_stop(stream);
		c->paused = true;
		connection_wake(c);
	}
}

/* Something that should have come has not. */
static void on_due(struct grpc_connection *c)
{
	c->due_ns = NEVER;
	if (c->state == CONNECTION_OPEN) {
		session_drain(c);
		return;
	}
	if (c->state != CONNECTION_ENDING)
		server_refused(c->server, &c->peer, REFUSED_DEADLINE,
		               "it does not begin to speak HTTP/2");
	connection_close(c);
}

static void on_timer(uv_timer_t *timer)
{
	struct grpc_connection *c = timer->data;
	uint64_t now_ns = clock_now_ns(), next_ns;

	c->timer_ns = NEVER;
	if (c->due_ns <= now_ns)
		on_due(c);
	if (c->state == CONNECTION_CLOSED)
		return;
	next_ns = c->due_ns;
	c->busy++;
	for (struct grpc_call *call = c->calls; call; call = call->next) {
		uint64_t call_ns = call_tick(call, now_ns);

		if (call_ns < next_ns)
			next_ns = call_ns;
	}
	c->busy--;
	if (next_ns != NEVER)
		connection_arm(c, next_ns);
	connection_wake(c);
	settle(c);
}

void connection_drain(struct grpc_connection *c)
{
	if (c->state != CONNECTION_PREFACE && c->state != CONNECTION_OPEN)
		return;
	session_drain(c);
	set_due(c, GRPC_LINGER_MS);
}

void connection_shut_down(struct grpc_connection *c)
{
	if (c->h2 && !c->busy && c->state == CONNECTION_OPEN) {
		c->busy++;
		for (struct grpc_call *call = c->calls; call; call = call->next) {
			call_lose(call, GRPC_UNAVAILABLE);
			answer_end(call);
		}
		c->busy--;
		session_goaway(c, NGHTTP2_NO_ERROR, "the server ends");
		(void)!write_out(c);
	}
	connection_close(c);
}

static void tune(int fd)
{
	static const struct {
		int level, option, value;
	} options[] = {
		{ IPPROTO_TCP, TCP_NODELAY, 1 },
		{ IPPROTO_TCP, TCP_USER_TIMEOUT, STALL_TIMEOUT_MS },
		{ IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S },
		{ IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S },
		{ IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT },
		{ SOL_SOCKET, SO_KEEPALIVE, 1 },
	};

	/* Each of these makes things better and none makes them right: ignore a refusal. */
	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		(void)!setsockopt(fd, options[i].level, options[i].option, &options[i].value,
		                  sizeof options[i].value);
}

/* Of too many that have not said who they are the oldest gives way. */
static void bound_handshakes(struct grpc_server *s)
{
	struct grpc_connection *oldest = NULL;

	if (s->n_handshakes <= GRPC_HANDSHAKES_MAX)
		return;
	for (struct grpc_connection *c = s->connections; c; c = c->next)
		if (c->state == CONNECTION_HANDSHAKE)
			oldest = c;
	server_refused(s, &oldest->peer, REFUSED_LIMIT, "more than %u have not said who they are",
	               GRPC_HANDSHAKES_MAX);
	connection_close(oldest);
}

static void add_to_server(struct grpc_connection *c, uint64_t now_ns)
{
	struct grpc_server *s = c->server;

	c->timer_ns = c->due_ns = NEVER;
	c->resets = GRPC_RESETS_MAX;
	c->resets_ns = now_ns;
	c->state = CONNECTION_HANDSHAKE;
	c->next = s->connections;
	s->connections = c;
	s->n_connections++;
	s->n_handshakes++;
	s->connections_total++;
	if (c->tls)
		s->n_tcp++;
	uv_timer_init(s->loop, &c->timer);
	c->timer.data = c->handle.data = c;
	c->open_handles = 2;
	server_handle_opened(s);
}

int connection_new(struct grpc_server *s, int fd, struct tls_context *tls,
                   const struct grpc_peer *peer)
{
	struct grpc_connection *c = calloc(1, sizeof *c);
	struct error err = ERROR_INIT;
	int rc;

	if (!c || (tls && tls_pipe_new(tls, &c->tls, &err))) {
		free(c);
		close(fd);
		server_refused(s, peer, REFUSED_RESOURCES, "out of memory");
		return -ENOMEM;
	}
	c->server = s;
	c->peer = *peer;
	snprintf(c->peer_name, sizeof c->peer_name, "%s", peer->name);
	c->peer.name = c->peer_name;
	if (tls) {
		tune(fd);
		uv_tcp_init(s->loop, &c->tcp);
	} else {
		uv_pipe_init(s->loop, &c->pipe, 0);
	}
	add_to_server(c, clock_now_ns());
	set_due(c, GRPC_REQUEST_TIMEOUT_MS);
	rc = tls ? uv_tcp_open(&c->tcp, fd) : uv_pipe_open(&c->pipe, fd);
	if (rc)
		close(fd);
	if (!rc)
		rc = uv_read_start(&c->stream, on_alloc, on_read);
	if (!rc && !tls)
		rc = open_session(c);
	if (rc)
		connection_close(c);
	else
		bound_handshakes(s);
	return rc;
}
