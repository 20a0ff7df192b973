/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nghttp2/nghttp2.h>

#include "grpc/link.h"
#include "grpc/memory.h"
#include "grpc/wire.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/secret.h"

/* How much of an answer may be on its way: a report comes in one breath. */
#define WINDOW_BYTES (4 << 20)
#define RECEIVE_BYTES 65536

struct call {
	int32_t stream_id;
	uint8_t *request; /* with its prefix */
	size_t request_len;
	size_t request_sent;

	struct grpc_assembly assembly;
	int (*on_message)(const uint8_t *message, size_t len, void *arg, struct error *err);
	void *arg;
	struct error *err;
	int result; /* negative: ended by us, @err says why */

	unsigned int http_status;
	bool is_grpc;    /* by its content type */
	bool has_status; /* grpc-status has come */
	struct grpc_status *status;

	bool closed;
	uint32_t close_code; /* HTTP/2's */
};

struct grpc_client {
	struct link link;
	nghttp2_session *session;
	struct call *call; /* NULL between calls */
	unsigned int idle_timeout_ms;
	bool deaf;        /* what we send does not arrive any more */
	char goaway[128]; /* why the server says it is leaving; empty while it does not */
};

static void call_fail(struct call *call, int code)
{
	if (!call->result)
		call->result = code;
}

/* Headers of an answer, and its trailers. */

static bool name_is(const uint8_t *name, size_t len, const char *want)
{
	return len == strlen(want) && !memcmp(name, want, len);
}

static void take_status(struct call *call, const char *value, size_t len)
{
	unsigned int code = 0;

	for (size_t i = 0; i < len && i < 3; i++)
		code = value[i] >= '0' && value[i] <= '9'
		               ? code * 10 + (unsigned int)(value[i] - '0')
		               : GRPC_CODES;
	call->has_status = true;
	call->status->code = len && len < 3 && code < GRPC_CODES ? code : GRPC_UNKNOWN;
}

static void take_details(struct call *call, const char *value, size_t len)
{
	struct grpc_status *s = call->status;

	/* Details only add to the message: those that can't be read are left out. */
	if (grpc_base64_decode(value, len, s->details, sizeof s->details, &s->details_len) < 0)
		s->details_len = 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t namelen, const uint8_t *value, size_t valuelen, uint8_t flags,
                     void *user_data)
{
	struct grpc_client *c = user_data;
	struct call *call = c->call;
	const char *text = (const char *)value;

	(void)session;
	(void)flags;
	if (!call || frame->hd.stream_id != call->stream_id)
		return 0;
	if (name_is(name, namelen, ":status"))
		call->http_status = (unsigned int)strtoul(text, NULL, 10);
	else if (name_is(name, namelen, "content-type"))
		call->is_grpc = !strncmp(text, "application/grpc", 16);
	else if (name_is(name, namelen, "grpc-status"))
		take_status(call, text, valuelen);
	else if (name_is(name, namelen, "grpc-message"))
		grpc_percent_decode(text, valuelen, call->status->message,
		                    sizeof call->status->message);
	else if (name_is(name, namelen, "grpc-status-details-bin"))
		take_details(call, text, valuelen);
	return 0;
}

/* Messages. */

static int assembly_error(int code, struct error *err)
{
	if (code == -EMSGSIZE)
		return error_set(err, -EPROTO, "an answer above %u MiB",
		                 GRPC_CLIENT_MESSAGE_MAX >> 20);
	if (code == -ENOTSUP)
		return error_set(err, -EPROTO, "an answer that is compressed, unasked");
	return error_errno(err, code, "an answer's framing");
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                   size_t len, void *user_data)
{
	struct grpc_client *c = user_data;
	struct call *call = c->call;

	(void)session;
	(void)flags;
	if (!call || stream_id != call->stream_id || !call->is_grpc)
		return 0;
	while (!call->result) {
		int r = grpc_assembly_feed(&call->assembly, &data, &len);

		if (r < 0)
			call_fail(call, assembly_error(r, call->err));
		if (r != 1)
			return 0;
		r = call->on_message(call->assembly.message, call->assembly.have, call->arg,
		                     call->err);
		grpc_assembly_next(&call->assembly);
		if (r < 0)
			call_fail(call, r);
	}
	return 0;
}

/* What ends. */

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct grpc_client *c = user_data;
	const nghttp2_goaway *goaway = &frame->goaway;

	(void)session;
	if (frame->hd.type != NGHTTP2_GOAWAY)
		return 0;
	snprintf(c->goaway, sizeof c->goaway, "%s%s%.*s",
	         nghttp2_http2_strerror(goaway->error_code), goaway->opaque_data_len ? ": " : "",
	         (int)(goaway->opaque_data_len < 64 ? goaway->opaque_data_len : 64),
	         goaway->opaque_data_len ? (const char *)goaway->opaque_data : "");
	return 0;
}

static int on_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *user_data)
{
	struct grpc_client *c = user_data;

	(void)session;
	if (c->call && c->call->stream_id == stream_id) {
		c->call->closed = true;
		c->call->close_code = code;
	}
	return 0;
}

/* The connection. */

static int session_new(struct grpc_client *c, struct error *err)
{
	nghttp2_settings_entry settings[] = {
		{ NGHTTP2_SETTINGS_ENABLE_PUSH, 0 },
		{ NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES },
	};
	nghttp2_session_callbacks *callbacks;
	int r = nghttp2_session_callbacks_new(&callbacks);

	if (!r) {
		nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
		nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
		nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
		r = nghttp2_session_client_new3(&c->session, callbacks, c, NULL, &grpc_memory);
		nghttp2_session_callbacks_del(callbacks);
	}
	if (!r)
		r = nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings,
		                            sizeof settings / sizeof *settings);
	if (!r)
		r = nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0,
		                                          WINDOW_BYTES);
	return r ? error_set(err, -ENOMEM, "HTTP/2: %s", nghttp2_strerror(r)) : 0;
}

/*
 * All that HTTP/2 has to say. A server that has hung up may still have said why, so that a
 * send that fails is no failure yet: what can be read decides.
 */
static int send_output(struct grpc_client *c, uint64_t deadline_ns, struct error *err)
{
	for (;;) {
		const uint8_t *data;
		ssize_t n = nghttp2_session_mem_send(c->session, &data);
		int r;

		if (n <= 0)
			return n ? error_set(err, -ENOMEM, "HTTP/2: %s", nghttp2_strerror((int)n))
			         : 0;
		if (c->deaf)
			continue;
		r = link_send(&c->link, data, (size_t)n, deadline_ns, NULL);
		if (r == -EPIPE)
			c->deaf = true;
		else if (r < 0)
			return error_errno(err, r, "sending to %s", c->link.name);
	}
}

/* What is there to be read. Return: 0, also for nothing. */
static int take_input(struct grpc_client *c, struct error *err)
{
	uint8_t buf[RECEIVE_BYTES];
	ssize_t n = link_receive(&c->link, buf, sizeof buf, err);

	if (n == -EPIPE && *c->goaway)
		return error_set(err, -EPIPE, "%s closed the connection (%s)", c->link.name,
		                 c->goaway);
	if (n <= 0)
		return (int)n;
	n = nghttp2_session_mem_recv(c->session, buf, (size_t)n);
	if (n < 0)
		return error_set(err, -EPROTO, "%s does not speak gRPC (%s)", c->link.name,
		                 nghttp2_strerror((int)n));
	return 0;
}

int grpc_client_new(const char *target, struct tls_context *tls, int cancel_fd,
                    struct grpc_client **ret, struct error *err)
{
	struct grpc_client *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return error_errno(err, -ENOMEM, "gRPC client");
	c->link = LINK_INIT;
	r = link_open(&c->link, target, tls, cancel_fd, err);
	if (!r)
		r = session_new(c, err);
	/* The server waits for our preface, however long the first call may take to come. */
	if (!r)
		r = send_output(c, LINK_NO_DEADLINE, err);
	if (r < 0) {
		grpc_client_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct grpc_client *grpc_client_free(struct grpc_client *c)
{
	if (c) {
		nghttp2_session_del(c->session);
		link_close(&c->link);
		free(c);
	}
	return NULL;
}

void grpc_client_set_idle_timeout(struct grpc_client *c, unsigned int timeout_ms)
{
	c->idle_timeout_ms = timeout_ms;
}

/* A call. */

static ssize_t read_request(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t size,
                            uint32_t *data_flags, nghttp2_data_source *source, void *user_data)
{
	struct call *call = source->ptr;
	size_t left = call->request_len - call->request_sent;
	size_t n = left < size ? left : size;

	(void)session;
	(void)stream_id;
	(void)user_data;
	memcpy(buf, call->request + call->request_sent, n);
	call->request_sent += n;
	if (n == left)
		*data_flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)n;
}

static nghttp2_nv header(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
		             NGHTTP2_NV_FLAG_NONE };
}

static int submit(struct grpc_client *c, struct call *call, const char *path,
                  unsigned int timeout_ms, struct error *err)
{
	nghttp2_data_provider body = { .source.ptr = call, .read_callback = read_request };
	char timeout[GRPC_TIMEOUT_SIZE];
	nghttp2_nv headers[] = {
		header(":method", "POST"),
		header(":scheme", c->link.tls ? "https" : "http"),
		header(":path", path),
		header(":authority", c->link.authority),
		header("te", "trailers"),
		header("content-type", "application/grpc"),
		header("user-agent", "grpc-c-postcopyd"),
		header("grpc-accept-encoding", "identity"),
		header("grpc-timeout", timeout),
	};
	size_t n = sizeof headers / sizeof *headers;

	if (*c->goaway)
		return error_set(err, -EPIPE, "%s takes no more calls (%s)", c->link.name,
		                 c->goaway);
	if (timeout_ms) {
		grpc_timeout_encode(timeout_ms, timeout);
		headers[n - 1] = header("grpc-timeout", timeout);
	} else {
		n--;
	}
	call->stream_id = nghttp2_submit_request(c->session, NULL, headers, n, &body, NULL);
	if (call->stream_id < 0)
		return error_set(err, -EPIPE, "%s: %s", c->link.name,
		                 nghttp2_strerror(call->stream_id));
	return 0;
}

static uint64_t wait_deadline(const struct grpc_client *c, uint64_t deadline_ns)
{
	uint64_t idle_ns = clock_now_ns() + c->idle_timeout_ms * NSEC_PER_MSEC;

	return c->idle_timeout_ms && idle_ns < deadline_ns ? idle_ns : deadline_ns;
}

/* Until the stream has ended, or we end it. */
static int run(struct grpc_client *c, struct call *call, uint64_t deadline_ns, struct error *err)
{
	while (!call->closed) {
		int r = send_output(c, deadline_ns, err);

		/* The session ends by itself where the server's HTTP/2 is none. */
		if (!r && !call->has_status && !*c->goaway &&
		    !nghttp2_session_want_read(c->session))
			return error_set(err, -EPROTO, "%s does not speak gRPC", c->link.name);
		if (r < 0 || call->closed)
			return r;
		r = link_wait(&c->link, POLLIN, wait_deadline(c, deadline_ns), err);
		if (!r)
			r = take_input(c, err);
		if (r < 0 || call->result < 0)
			return r < 0 ? r : call->result;
	}
	return 0;
}

/* Tell the server that nobody waits any more, as far as that goes without waiting. */
static void abandon(struct grpc_client *c, const struct call *call)
{
	nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, call->stream_id, NGHTTP2_CANCEL);
	send_output(c, 0, NULL);
}

static enum grpc_code code_of_http(unsigned int http_status)
{
	switch (http_status) {
	case 400:
		return GRPC_INTERNAL;
	case 401:
		return GRPC_UNAUTHENTICATED;
	case 403:
		return GRPC_PERMISSION_DENIED;
	case 404:
		return GRPC_UNIMPLEMENTED;
	case 429:
	case 502:
	case 503:
	case 504:
		return GRPC_UNAVAILABLE;
	default:
		return GRPC_UNKNOWN;
	}
}

static enum grpc_code code_of_reset(uint32_t close_code)
{
	switch (close_code) {
	case NGHTTP2_REFUSED_STREAM:
		return GRPC_UNAVAILABLE;
	case NGHTTP2_CANCEL:
		return GRPC_CANCELLED;
	case NGHTTP2_ENHANCE_YOUR_CALM:
		return GRPC_RESOURCE_EXHAUSTED;
	case NGHTTP2_INADEQUATE_SECURITY:
		return GRPC_PERMISSION_DENIED;
	default:
		return GRPC_INTERNAL;
	}
}

static void set_status(struct grpc_status *s, enum grpc_code code, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
static void set_status(struct grpc_status *s, enum grpc_code code, const char *fmt, ...)
{
	va_list ap;

	s->code = code;
	s->details_len = 0;
	va_start(ap, fmt);
	vsnprintf(s->message, sizeof s->message, fmt, ap);
	va_end(ap);
}

/* What an end without a readable status means (grpc/doc/http-grpc-status-mapping.md). */
static void conclude(const struct grpc_client *c, const struct call *call)
{
	struct grpc_status *s = call->status;

	if (call->has_status && s->code == GRPC_OK && grpc_assembly_partial(&call->assembly))
		set_status(s, GRPC_INTERNAL, "%s ended within a message", c->link.name);
	if (call->has_status)
		return;
	if (call->close_code == NGHTTP2_REFUSED_STREAM && *c->goaway)
		set_status(s, GRPC_UNAVAILABLE, "%s is leaving (%s)", c->link.name, c->goaway);
	else if (call->close_code)
		set_status(s, code_of_reset(call->close_code), "%s broke the call off (%s)",
		           c->link.name, nghttp2_http2_strerror(call->close_code));
	else if (call->http_status != 200)
		set_status(s, code_of_http(call->http_status), "%s answers with HTTP status %u",
		           c->link.name, call->http_status);
	else if (!call->is_grpc)
		set_status(s, GRPC_UNKNOWN, "%s does not speak gRPC", c->link.name);
	else
		set_status(s, GRPC_UNKNOWN, "%s ended the call without a status", c->link.name);
}

static int make_request(struct call *call, const void *request, size_t len, struct error *err)
{
	if (len > UINT32_MAX)
		return error_set(err, -EINVAL, "a request above 4 GiB");
	call->request_len = GRPC_PREFIX_BYTES + len;
	call->request = malloc(call->request_len);
	if (!call->request)
		return error_errno(err, -ENOMEM, "a request");
	grpc_prefix_encode(call->request, (uint32_t)len);
	if (len)
		memcpy(call->request + GRPC_PREFIX_BYTES, request, len);
	return 0;
}

int grpc_client_call(struct grpc_client *c, const char *path, const void *request, size_t len,
                     unsigned int timeout_ms,
                     int (*on_message)(const uint8_t *message, size_t len, void *arg,
                                       struct error *err),
                     void *arg, struct grpc_status *ret_status, struct error *err)
{
	uint64_t deadline_ns =
	        timeout_ms ? clock_now_ns() + timeout_ms * NSEC_PER_MSEC : LINK_NO_DEADLINE;
	struct grpc_status status = { .code = GRPC_UNKNOWN };
	struct error unheard = ERROR_INIT;
	struct call call = {
		.on_message = on_message, .arg = arg, .err = err ? err : &unheard, .status = &status
	};
	int r = make_request(&call, request, len, err);

	grpc_assembly_init(&call.assembly, GRPC_CLIENT_MESSAGE_MAX);
	/* What the server said between calls: that it is leaving, maybe. */
	if (!r)
		r = take_input(c, err);
	if (!r)
		r = submit(c, &call, path, timeout_ms, err);
	if (!r) {
		c->call = &call;
		r = run(c, &call, deadline_ns, err);
		if (r < 0)
			abandon(c, &call);
		c->call = NULL;
	}
	if (!r) {
		conclude(c, &call);
		*ret_status = status;
	}
	grpc_assembly_deinit(&call.assembly);
	secret_free(call.request);
	return r;
}
