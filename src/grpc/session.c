/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/2: nghttp2's callbacks, what a client may do, and GOAWAY. */
#include <errno.h>
#include <string.h>

#include "grpc/memory.h"
#include "grpc/server_internal.h"
#include "util/clock.h"

/* What nghttp2 keeps to answer at most: SETTINGS and PINGs of one who does not read. */
#define ACKS_MAX 200u

void session_goaway(struct grpc_connection *c, uint32_t error, const char *text)
{
	nghttp2_submit_goaway(c->h2, NGHTTP2_FLAG_NONE,
	                      nghttp2_session_get_last_proc_stream_id(c->h2), error,
	                      (const uint8_t *)text, strlen(text));
	connection_wake(c);
}

void session_calm_down(struct grpc_connection *c, const char *what)
{
	if (c->last_words)
		return;
	server_refused(c->server, &c->peer, REFUSED_LIMIT, "%s", what);
	session_goaway(c, NGHTTP2_ENHANCE_YOUR_CALM, what);
	c->last_words = true;
}

/* A call has come to a bad end, by the client's hand or fault. */
static void count_reset(struct grpc_connection *c)
{
	uint64_t now_ns = clock_now_ns();
	uint64_t earned = (now_ns - c->resets_ns) * GRPC_RESETS_PER_S / NSEC_PER_SEC;

	if (earned) {
		c->resets = earned < GRPC_RESETS_MAX - c->resets ? c->resets + (unsigned int)earned
		                                                 : GRPC_RESETS_MAX;
		c->resets_ns = now_ns;
	}
	if (c->resets)
		c->resets--;
	else
		session_calm_down(c, "too_many_resets");
}

static void count_ping(struct grpc_connection *c)
{
	uint64_t now_ns = clock_now_ns();

	if (c->last_ping_ns && now_ns - c->last_ping_ns < GRPC_PING_MIN_MS * NSEC_PER_MSEC)
		c->ping_strikes++;
	else
		c->ping_strikes = 0;
	c->last_ping_ns = now_ns;
	/* In this very word clients know it, and ping less often. */
	if (c->ping_strikes > GRPC_PING_STRIKES)
		session_calm_down(c, "too_many_pings");
}

void session_drain(struct grpc_connection *c)
{
	if (c->drain == DRAIN_FINAL)
		return;
	if (c->drain == DRAIN_NONE && c->state == CONNECTION_OPEN) {
		nghttp2_submit_shutdown_notice(c->h2);
		c->drain = DRAIN_NOTICE;
		connection_wake(c);
		return;
	}
	c->drain = DRAIN_FINAL;
	session_goaway(c, NGHTTP2_NO_ERROR, "the server ends");
}

static struct grpc_call *find_call(nghttp2_session *h2, int32_t stream_id)
{
	return nghttp2_session_get_stream_user_data(h2, stream_id);
}

static int on_begin_headers(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
	struct grpc_connection *c = arg;
	struct grpc_call *call;

	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	call = call_new(c, frame->hd.stream_id);
	if (!call)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	nghttp2_session_set_stream_user_data(h2, frame->hd.stream_id, call);
	return 0;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                     void *arg)
{
	struct grpc_call *call = find_call(h2, frame->hd.stream_id);

	(void)flags;
	(void)arg;
	if (call)
		call_header(call, (const char *)name, name_len, (const char *)value, value_len);
	return 0;
}

static int on_data_chunk(nghttp2_session *h2, uint8_t flags, int32_t stream_id, const uint8_t *data,
                         size_t len, void *arg)
{
	struct grpc_call *call = find_call(h2, stream_id);

	(void)flags;
	(void)arg;
	if (call)
		call_data(call, data, len);
	return 0;
}

static void open_for_calls(struct grpc_connection *c)
{
	c->state = CONNECTION_OPEN;
	c->due_ns = NEVER;
}

static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
	struct grpc_connection *c = arg;
	struct grpc_call *call = find_call(h2, frame->hd.stream_id);
	bool is_ack = frame->hd.flags & NGHTTP2_FLAG_ACK;

	if (frame->hd.type == NGHTTP2_PING && is_ack && c->drain == DRAIN_NOTICE)
		session_drain(c);
	else if (frame->hd.type == NGHTTP2_PING && !is_ack)
		count_ping(c);
	else if (frame->hd.type == NGHTTP2_SETTINGS && c->state == CONNECTION_PREFACE)
		open_for_calls(c);
	if (!call || (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA))
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
		call_headers_done(call);
	if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		call_request_end(call);
	return 0;
}

static int on_invalid_frame(nghttp2_session *h2, const nghttp2_frame *frame, int error, void *arg)
{
	(void)h2;
	(void)frame;
	(void)error;
	count_reset(arg);
	return 0;
}

static void on_goaway_sent(struct grpc_connection *c, const nghttp2_goaway *goaway)
{
	if (goaway->error_code != NGHTTP2_NO_ERROR && !c->last_words)
		server_refused(c->server, &c->peer, REFUSED_PROTOCOL, "it breaks HTTP/2: %s",
		               nghttp2_http2_strerror(goaway->error_code));
	/* Calls that come before its answer were on their way. Not earlier: nghttp2 lets pings
	 * overtake. */
	if (c->drain == DRAIN_NOTICE)
		nghttp2_submit_ping(c->h2, NGHTTP2_FLAG_NONE, NULL);
}

static int on_frame_sent(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
	struct grpc_connection *c = arg;
	struct grpc_call *call = find_call(h2, frame->hd.stream_id);

	if (frame->hd.type == NGHTTP2_GOAWAY)
		on_goaway_sent(c, &frame->goaway);
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	/* A client may ping to find out how fast its line is while data comes. */
	c->last_ping_ns = 0;
	c->ping_strikes = 0;
	/* All is said; what the client has still to send is of no use. */
	if (call && !call->request_done && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
		answer_reset(call, NGHTTP2_NO_ERROR);
	return 0;
}

static int on_stream_close(nghttp2_session *h2, int32_t stream_id, uint32_t error, void *arg)
{
	struct grpc_connection *c = arg;
	struct grpc_call *call = find_call(h2, stream_id);

	if (error != NGHTTP2_NO_ERROR)
		count_reset(c);
	if (!call)
		return 0;
	c->busy++;
	call_lose(call, GRPC_CANCELLED);
	c->busy--;
	call_free(call);
	return 0;
}

int session_callbacks_new(nghttp2_session_callbacks **ret)
{
	nghttp2_session_callbacks *cb;

	if (nghttp2_session_callbacks_new(&cb))
		return -ENOMEM;
	nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data_chunk);
	nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
	nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
	nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_sent);
	nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
	*ret = cb;
	return 0;
}

int session_options_new(nghttp2_option **ret)
{
	nghttp2_option *options;

	if (nghttp2_option_new(&options))
		return -ENOMEM;
	nghttp2_option_set_no_closed_streams(options, 1);
	nghttp2_option_set_max_outbound_ack(options, ACKS_MAX);
	*ret = options;
	return 0;
}

int session_new(struct grpc_connection *c)
{
	const nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, GRPC_STREAMS_MAX },
		{ NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, GRPC_HEADERS_MAX },
	};

	if (nghttp2_session_server_new3(&c->h2, c->server->callbacks, c, c->server->options,
	                                &grpc_memory))
		return -ENOMEM;
	return nghttp2_submit_settings(c->h2, NGHTTP2_FLAG_NONE, settings,
	                               sizeof settings / sizeof *settings)
	               ? -ENOMEM
	               : 0;
}

int session_input(struct grpc_connection *c, const uint8_t *data, size_t len)
{
	ssize_t n;

	c->busy++;
	n = nghttp2_session_mem_recv(c->h2, data, len);
	c->busy--;
	connection_wake(c);
	if (n >= 0)
		return 0;
	server_refused(c->server, &c->peer, REFUSED_PROTOCOL, "it breaks HTTP/2: %s",
	               nghttp2_strerror((int)n));
	return -EPROTO;
}

ssize_t session_output(struct grpc_connection *c, uint8_t *buf, size_t size, size_t enough)
{
	size_t have = 0;

	while (have < enough) {
		const uint8_t *data;
		ssize_t n;

		c->busy++;
		n = nghttp2_session_mem_send(c->h2, &data);
		c->busy--;
		if (n == 0)
			break;
		if (n < 0 || (size_t)n > size - have)
			return -EPROTO;
		memcpy(buf + have, data, (size_t)n);
		have += (size_t)n;
	}
	return (ssize_t)have;
}
