/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of gRPC calls, without HTTP/2: this stands where nghttp2 does. Input: what
 * nghttp2 would call back with, step by step: blocks of headers, DATA, frames, streams that close,
 * and how much of the answers it takes. It keeps to nghttp2's order, and to nothing that a client
 * decides. Whatever comes: each call has one answer, of headers that may be sent, that ends with
 * one status; and when its streams have closed nothing is left.
 */
#include "fuzz.h"

#include <string.h>

#include "grpc/server_internal.h"
#include "util/log.h"

#define STREAMS 4u
#define VALUE_MAX 64u
#define TURNS_MAX 4096u

const unsigned int fuzz_rounds = 50000;

/* What nghttp2 knows of a stream. */
struct stream {
	enum { STREAM_IDLE, STREAM_HEADERS, STREAM_OPEN, STREAM_TRAILERS, STREAM_REQUESTED } in;
	void *call;
	nghttp2_data_provider body;
	bool responded; /* its head is submitted */
	bool head_sent;
	bool has_body;
	bool deferred;
	bool body_sent;
	bool has_trailer;
	bool ended;    /* END_STREAM is sent */
	bool is_reset; /* by the server */
	unsigned int statuses;
};

/* What nghttp2 would be. */
struct nghttp2_session {
	struct stream streams[STREAMS];
};

static struct {
	nghttp2_on_begin_headers_callback begin_headers;
	nghttp2_on_header_callback header;
	nghttp2_on_data_chunk_recv_callback data_chunk;
	nghttp2_on_frame_recv_callback frame;
	nghttp2_on_invalid_frame_recv_callback invalid_frame;
	nghttp2_on_frame_send_callback frame_sent;
	nghttp2_on_stream_close_callback stream_close;
} ours;

static struct {
	uv_loop_t loop;
	struct grpc_server *server;
	struct grpc_connection connection;
	unsigned int held;
} host;

static struct nghttp2_session h2;

/* In the place of nghttp2's own functions. */

void nghttp2_session_callbacks_set_on_begin_headers_callback(nghttp2_session_callbacks *cb,
                                                             nghttp2_on_begin_headers_callback f)
{
	(void)cb;
	ours.begin_headers = f;
}

void nghttp2_session_callbacks_set_on_header_callback(nghttp2_session_callbacks *cb,
                                                      nghttp2_on_header_callback f)
{
	(void)cb;
	ours.header = f;
}

void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        nghttp2_session_callbacks *cb, nghttp2_on_data_chunk_recv_callback f)
{
	(void)cb;
	ours.data_chunk = f;
}

void nghttp2_session_callbacks_set_on_frame_recv_callback(nghttp2_session_callbacks *cb,
                                                          nghttp2_on_frame_recv_callback f)
{
	(void)cb;
	ours.frame = f;
}

void nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
        nghttp2_session_callbacks *cb, nghttp2_on_invalid_frame_recv_callback f)
{
	(void)cb;
	ours.invalid_frame = f;
}

void nghttp2_session_callbacks_set_on_frame_send_callback(nghttp2_session_callbacks *cb,
                                                          nghttp2_on_frame_send_callback f)
{
	(void)cb;
	ours.frame_sent = f;
}

void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks *cb,
                                                            nghttp2_on_stream_close_callback f)
{
	(void)cb;
	ours.stream_close = f;
}

static int32_t id_of(const struct stream *s)
{
	return (int32_t)(2 * (s - h2.streams) + 1);
}

static struct stream *stream_of(int32_t id)
{
	FUZZ_CHECK(id % 2 == 1 && id < (int32_t)(2 * STREAMS));
	return &h2.streams[id / 2];
}

void *nghttp2_session_get_stream_user_data(nghttp2_session *session, int32_t id)
{
	(void)session;
	return id ? stream_of(id)->call : NULL;
}

int nghttp2_session_set_stream_user_data(nghttp2_session *session, int32_t id, void *data)
{
	(void)session;
	stream_of(id)->call = data;
	return 0;
}

/* Nothing that would end a header, or the block of them. Return: how many statuses it has. */
static unsigned int check_headers(const nghttp2_nv *nva, size_t n)
{
	unsigned int statuses = 0;

	for (size_t i = 0; i < n; i++) {
		const nghttp2_nv *nv = &nva[i];

		for (size_t at = 0; at < nv->namelen; at++)
			FUZZ_CHECK(strchr(":-abcdefghijklmnopqrstuvwxyz", nv->name[at]));
		for (size_t at = 0; at < nv->valuelen; at++)
			FUZZ_CHECK(nv->value[at] >= ' ' && nv->value[at] <= '~');
		statuses += nv->namelen == 11 && !memcmp(nv->name, "grpc-status", 11);
	}
	FUZZ_CHECK(n && statuses <= 1);
	return statuses;
}

int nghttp2_submit_response(nghttp2_session *session, int32_t id, const nghttp2_nv *nva, size_t n,
                            const nghttp2_data_provider *body)
{
	struct stream *s = stream_of(id);

	(void)session;
	FUZZ_CHECK(!s->responded && n > 2 && !strcmp((char *)nva[0].name, ":status"));
	s->statuses += check_headers(nva, n);
	s->responded = true;
	s->has_body = body;
	if (body)
		s->body = *body;
	return 0;
}

int nghttp2_submit_trailer(nghttp2_session *session, int32_t id, const nghttp2_nv *nva, size_t n)
{
	struct stream *s = stream_of(id);

	(void)session;
	FUZZ_CHECK(s->has_body && !s->has_trailer);
	s->statuses += check_headers(nva, n);
	s->has_trailer = true;
	return 0;
}

int nghttp2_session_resume_data(nghttp2_session *session, int32_t id)
{
	(void)session;
	FUZZ_CHECK(stream_of(id)->deferred);
	stream_of(id)->deferred = false;
	return 0;
}

int nghttp2_submit_rst_stream(nghttp2_session *session, uint8_t flags, int32_t id, uint32_t code)
{
	(void)session;
	(void)flags;
	(void)code;
	stream_of(id)->is_reset = true;
	return 0;
}

int nghttp2_submit_goaway(nghttp2_session *session, uint8_t flags, int32_t last, uint32_t code,
                          const uint8_t *text, size_t len)
{
	(void)session;
	(void)flags;
	(void)last;
	(void)code;
	FUZZ_CHECK(text && len == strlen((const char *)text));
	return 0;
}

int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *session)
{
	(void)session;
	return 2 * STREAMS - 1;
}

int nghttp2_submit_ping(nghttp2_session *session, uint8_t flags, const uint8_t *data)
{
	(void)session;
	(void)flags;
	(void)data;
	return 0;
}

int nghttp2_submit_shutdown_notice(nghttp2_session *session)
{
	(void)session;
	return 0;
}

/* Methods. */

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

/* Also a status of the client's words. */
static void echo_call(struct grpc_call *call, const uint8_t *request, size_t len, void *arg)
{
	struct grpc_status status = { .code = GRPC_NOT_FOUND };
	size_t n = len < sizeof status.message ? len : sizeof status.message - 1;

	(void)arg;
	FUZZ_CHECK(!grpc_call_send(call, request, len));
	if (n) {
		memcpy(status.message, request, n);
		status.details_len = len < sizeof status.details ? len : sizeof status.details;
		memcpy(status.details, request, status.details_len);
	}
	grpc_call_finish(call, len % 2 ? &status : NULL);
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
	{ "/A", GRPC_OPERATOR, echo_call, false },
	{ .path = NULL },
};

static void set_up(void)
{
	const struct grpc_server_config config = { .methods = methods };
	struct grpc_connection *c = &host.connection;

	log_init("fuzz", LOG_LEVEL_ERROR, LOG_FORMAT_AUTO);
	FUZZ_CHECK(!uv_loop_init(&host.loop));
	FUZZ_CHECK(!grpc_server_new(&host.loop, &config, &host.server, NULL));
	FUZZ_CHECK(!uv_timer_init(&host.loop, &c->timer));
	c->server = host.server;
	c->peer = (struct grpc_peer){ .local = true, .uid = 1, .role = GRPC_READER };
	snprintf(c->peer_name, sizeof c->peer_name, "fuzz");
	c->peer.name = c->peer_name;
	c->h2 = &h2;
	FUZZ_CHECK(!share_join(c));
}

/* As it is when the client's first SETTINGS are still to come. */
static void begin(void)
{
	struct grpc_connection *c = &host.connection;

	if (!host.server)
		set_up();
	memset(&h2, 0, sizeof h2);
	c->state = CONNECTION_PREFACE;
	c->drain = DRAIN_NONE;
	c->doomed = c->last_words = c->drained = false;
	c->due_ns = c->timer_ns = NEVER;
	c->last_ping_ns = c->resets_ns = 0;
	c->ping_strikes = 0;
	c->resets = GRPC_RESETS_MAX;
	/* Neither closed nor written by what is called back. */
	c->busy = 1;
	c->dirty = true;
}

/* What the input says, and zeroes behind its end. */
struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t take_byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

static nghttp2_frame frame_of(uint8_t type, uint8_t flags, const struct stream *s)
{
	nghttp2_frame frame = { .hd = { .type = type, .flags = flags } };

	frame.hd.stream_id = s ? id_of(s) : 0;
	return frame;
}

static void begin_headers(struct stream *s)
{
	nghttp2_frame frame = frame_of(NGHTTP2_HEADERS, 0, s);

	if (s->in == STREAM_IDLE) {
		frame.headers.cat = NGHTTP2_HCAT_REQUEST;
		s->in = STREAM_HEADERS;
	} else if (s->in == STREAM_OPEN) {
		frame.headers.cat = NGHTTP2_HCAT_HEADERS;
		s->in = STREAM_TRAILERS;
	} else {
		return;
	}
	FUZZ_CHECK(!ours.begin_headers(&h2, &frame, &host.connection));
	FUZZ_CHECK(s->call);
}

/* A name that means something, or any; and a value with the zero that nghttp2 puts behind it. */
static void put_header(struct stream *s, struct input *in)
{
	static const char *const names[] = { ":method",      ":path",
		                             "content-type", "grpc-encoding",
		                             "grpc-timeout", ":authority",
		                             "te",           "x" };
	static const char *const values[] = { "POST", "/E",   "/H",       "/C",
		                              "/A",   "gzip", "identity", "application/grpc" };
	const nghttp2_frame frame = frame_of(NGHTTP2_HEADERS, 0, s);
	uint8_t which = take_byte(in);
	const char *name = names[which % 8], *value = values[which / 8 % 8];
	uint8_t text[VALUE_MAX + 1];
	size_t len = strlen(value);

	memcpy(text, value, len);
	if (which & 64) {
		len = take_byte(in) % VALUE_MAX;
		for (size_t i = 0; i < len; i++)
			text[i] = take_byte(in);
	}
	text[len] = 0;
	if (s->in != STREAM_HEADERS && s->in != STREAM_TRAILERS)
		return;
	FUZZ_CHECK(!ours.header(&h2, &frame, (const uint8_t *)name, strlen(name), text, len, 0,
	                        &host.connection));
}

static void end_headers(struct stream *s, bool end_stream)
{
	nghttp2_frame frame =
	        frame_of(NGHTTP2_HEADERS, end_stream ? NGHTTP2_FLAG_END_STREAM : 0, s);

	if (s->in != STREAM_HEADERS && s->in != STREAM_TRAILERS)
		return;
	frame.headers.cat = s->in == STREAM_HEADERS ? NGHTTP2_HCAT_REQUEST : NGHTTP2_HCAT_HEADERS;
	/* Trailers end a stream. */
	if (s->in == STREAM_TRAILERS)
		frame.hd.flags = NGHTTP2_FLAG_END_STREAM;
	s->in = frame.hd.flags ? STREAM_REQUESTED : STREAM_OPEN;
	FUZZ_CHECK(!ours.frame(&h2, &frame, &host.connection));
}

static void put_data(struct stream *s, struct input *in, bool end_stream)
{
	const nghttp2_frame frame =
	        frame_of(NGHTTP2_DATA, end_stream ? NGHTTP2_FLAG_END_STREAM : 0, s);
	size_t len = take_byte(in);

	len = len < in->left ? len : in->left;
	if (s->in == STREAM_OPEN) {
		if (len)
			FUZZ_CHECK(
			        !ours.data_chunk(&h2, 0, id_of(s), in->at, len, &host.connection));
		if (end_stream)
			s->in = STREAM_REQUESTED;
		FUZZ_CHECK(!ours.frame(&h2, &frame, &host.connection));
	}
	in->at += len;
	in->left -= len;
}

static void close_stream(struct stream *s, uint32_t code)
{
	if (s->in == STREAM_IDLE)
		return;
	FUZZ_CHECK(!ours.stream_close(&h2, id_of(s), code, &host.connection));
	*s = (struct stream){ .in = STREAM_IDLE };
}

static void tell_sent(struct stream *s, uint8_t type, bool end)
{
	const nghttp2_frame frame = frame_of(type, end ? NGHTTP2_FLAG_END_STREAM : 0, s);

	s->ended = end;
	FUZZ_CHECK(!ours.frame_sent(&h2, &frame, &host.connection));
}

static bool send_body(struct stream *s, size_t size)
{
	static uint8_t buf[256];
	uint32_t flags = 0;
	ssize_t n = s->body.read_callback(&h2, id_of(s), buf, size, &flags, &s->body.source,
	                                  &host.connection);

	s->deferred = n == NGHTTP2_ERR_DEFERRED;
	if (s->deferred)
		return false;
	FUZZ_CHECK(n >= 0 && n <= (ssize_t)size);
	s->body_sent = flags & NGHTTP2_DATA_FLAG_EOF;
	FUZZ_CHECK(s->body_sent == s->has_trailer);
	tell_sent(s, NGHTTP2_DATA, false);
	return true;
}

/* The next frame of its answer. Return: whether there was one. */
static bool send_some(struct stream *s, size_t size)
{
	if (!s->responded || s->ended || s->is_reset)
		return false;
	if (!s->head_sent) {
		s->head_sent = true;
		tell_sent(s, NGHTTP2_HEADERS, !s->has_body);
	} else if (s->has_body && !s->body_sent) {
		return !s->deferred && send_body(s, size);
	} else {
		FUZZ_CHECK(s->has_trailer);
		tell_sent(s, NGHTTP2_HEADERS, true);
	}
	return true;
}

static void put_frame(struct input *in)
{
	static const uint8_t types[] = { NGHTTP2_PING, NGHTTP2_SETTINGS, NGHTTP2_GOAWAY,
		                         NGHTTP2_WINDOW_UPDATE };
	uint8_t which = take_byte(in);
	nghttp2_frame frame = frame_of(types[which % 4], which & 4 ? NGHTTP2_FLAG_ACK : 0, NULL);

	if (which & 8)
		FUZZ_CHECK(!ours.invalid_frame(&h2, &frame, NGHTTP2_ERR_PROTO, &host.connection));
	else if (which & 16 && frame.hd.type == NGHTTP2_GOAWAY)
		FUZZ_CHECK(!ours.frame_sent(&h2, &frame, &host.connection));
	else
		FUZZ_CHECK(!ours.frame(&h2, &frame, &host.connection));
	if (which & 32)
		session_drain(&host.connection);
}

static void step(struct input *in)
{
	uint8_t op = take_byte(in);
	struct stream *s = &h2.streams[op >> 3 & 3];

	switch (op & 7) {
	case 0:
		begin_headers(s);
		break;
	case 1:
		put_header(s, in);
		break;
	case 2:
		end_headers(s, op & 128);
		break;
	case 3:
		put_data(s, in, op & 128);
		break;
	case 4:
		send_some(s, 1 + op / 32u);
		break;
	case 5:
		close_stream(s, op & 128 ? NGHTTP2_CANCEL : NGHTTP2_NO_ERROR);
		break;
	case 6:
		put_frame(in);
		break;
	default:
		if (s->call)
			call_tick(s->call, op & 128 ? NEVER - 1 : 0);
		break;
	}
}

/* All is taken that is there to be taken, and the stream closes. */
static void finish(struct stream *s)
{
	unsigned int turns = 0;
	const struct grpc_call *call = s->call;

	while (send_some(s, 200))
		FUZZ_CHECK(++turns < TURNS_MAX);
	FUZZ_CHECK(s->statuses <= 1 && (!s->ended || s->statuses == 1));
	/* Whose request is whole has its end, but what is held, and what was broken off. */
	if (s->in == STREAM_REQUESTED && !s->is_reset && call->state != CALL_RUNNING)
		FUZZ_CHECK(s->ended);
	close_stream(s, NGHTTP2_NO_ERROR);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct grpc_connection *c = &host.connection;
	struct input in = { data, size };

	begin();
	while (in.left)
		step(&in);
	for (unsigned int i = 0; i < STREAMS; i++)
		finish(&h2.streams[i]);
	FUZZ_CHECK(!host.held && !c->calls && !c->n_calls && !c->queued);
	FUZZ_CHECK(!host.server->n_calls && !host.server->request_bytes);
	FUZZ_CHECK(!c->share->n_calls && !c->share->request_bytes && !c->share->queued);
	return 0;
}

static uint8_t *put_call(uint8_t *p, uint8_t stream, uint8_t path, const char *timeout,
                         const char *text)
{
	const uint8_t s = (uint8_t)(stream << 3);
	const uint8_t len = (uint8_t)strlen(text);

	*p++ = 0 | s;
	*p++ = 1 | s;
	*p++ = 0; /* :method POST */
	*p++ = 1 | s;
	*p++ = (uint8_t)(1 + 8 * path); /* :path */
	*p++ = 1 | s;
	*p++ = 2 + 8 * 7; /* content-type application/grpc */
	*p++ = 1 | s;
	*p++ = 4 | 64;
	*p++ = (uint8_t)strlen(timeout);
	p = (uint8_t *)stpcpy((char *)p, timeout);
	*p++ = 2 | s;
	*p++ = 3 | s | 128;
	*p++ = (uint8_t)(GRPC_PREFIX_BYTES + len);
	grpc_prefix_encode(p, len);
	return (uint8_t *)stpcpy((char *)p + GRPC_PREFIX_BYTES, text);
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const texts[] = { "abc", "", "no\nway", "x", "%\x7f" };
	uint8_t *p = buf;

	if (i > 4)
		return 0;
	*p++ = 6;
	*p++ = 1; /* SETTINGS */
	for (uint8_t n = 0; n < STREAMS; n++)
		p = put_call(p, n, (uint8_t)(1 + (i + n) % 5), n & 1 ? "10S" : "1n",
		             texts[(i + n) % 5]);
	*p++ = 4;
	*p++ = (uint8_t)(5 | (i & 1 ? 128 : 0));
	return (size_t)(p - buf);
}
