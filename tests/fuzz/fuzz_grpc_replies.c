/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of gRPC calls, without HTTP/2: this stands where nghttp2 and the socket do.
 * Input: what nghttp2 would call back with, step by step: headers, DATA, GOAWAYs, streams that
 * close, errors of its own, and where there is nothing more to be read for now. Two calls are made
 * on a connection. Each ends well, or with an error that says why, and hands on whole messages
 * only.
 */
#include "fuzz.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <string.h>

#include "grpc/client.h"
#include "grpc/link.h"
#include "grpc/wire.h"

#define VALUE_MAX 64u

const unsigned int fuzz_rounds = 50000;

/* What nghttp2 would be. */
struct nghttp2_session {
	int32_t last_stream;
	bool wants_no_more;
};

static struct {
	nghttp2_on_header_callback header;
	nghttp2_on_data_chunk_recv_callback data_chunk;
	nghttp2_on_frame_recv_callback frame;
	nghttp2_on_stream_close_callback stream_close;
	void *client;
} ours;

static struct nghttp2_session h2;

/* What the input says, and zeroes behind its end. */
static struct {
	const uint8_t *at;
	size_t left;
} in;

static uint8_t take_byte(void)
{
	if (!in.left)
		return 0;
	in.left--;
	return *in.at++;
}

/* In the place of the socket. */

int link_open(struct link *l, const char *target, struct tls_context *tls, int cancel_fd,
              struct error *err)
{
	(void)tls;
	(void)cancel_fd;
	(void)err;
	snprintf(l->name, sizeof l->name, "%s", target);
	return 0;
}

void link_close(struct link *l)
{
	(void)l;
}

int link_wait(struct link *l, short events, uint64_t deadline_ns, struct error *err)
{
	(void)l;
	(void)events;
	(void)deadline_ns;
	(void)err;
	return 0;
}

int link_send(struct link *l, const uint8_t *data, size_t len, uint64_t deadline_ns,
              struct error *err)
{
	(void)l;
	(void)data;
	(void)len;
	(void)deadline_ns;
	(void)err;
	return -EPIPE;
}

ssize_t link_receive(struct link *l, uint8_t *buf, size_t size, struct error *err)
{
	FUZZ_CHECK(size);
	if (!in.left)
		return error_set(err, -EPIPE, "%s hung up", l->name);
	*buf = 0;
	return 1;
}

/* In the place of nghttp2's own functions. */

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

void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks *cb,
                                                            nghttp2_on_stream_close_callback f)
{
	(void)cb;
	ours.stream_close = f;
}

int nghttp2_session_client_new3(nghttp2_session **ret, const nghttp2_session_callbacks *cb,
                                void *client, const nghttp2_option *options, nghttp2_mem *memory)
{
	(void)cb;
	(void)options;
	(void)memory;
	h2 = (struct nghttp2_session){ .last_stream = -1 };
	ours.client = client;
	*ret = &h2;
	return 0;
}

void nghttp2_session_del(nghttp2_session *session)
{
	(void)session;
}

int nghttp2_submit_settings(nghttp2_session *session, uint8_t flags,
                            const nghttp2_settings_entry *entries, size_t n)
{
	(void)session;
	(void)flags;
	FUZZ_CHECK(entries && n);
	return 0;
}

int nghttp2_session_set_local_window_size(nghttp2_session *session, uint8_t flags, int32_t id,
                                          int32_t size)
{
	(void)session;
	(void)flags;
	(void)id;
	(void)size;
	return 0;
}

ssize_t nghttp2_session_mem_send(nghttp2_session *session, const uint8_t **data)
{
	(void)session;
	(void)data;
	return 0;
}

int nghttp2_session_want_read(nghttp2_session *session)
{
	return !session->wants_no_more;
}

int32_t nghttp2_submit_request(nghttp2_session *session, const nghttp2_priority_spec *priority,
                               const nghttp2_nv *nva, size_t n, const nghttp2_data_provider *body,
                               void *data)
{
	(void)priority;
	(void)nva;
	(void)data;
	FUZZ_CHECK(n && body);
	return session->last_stream += 2;
}

int nghttp2_submit_rst_stream(nghttp2_session *session, uint8_t flags, int32_t id, uint32_t code)
{
	(void)flags;
	(void)code;
	FUZZ_CHECK(id == session->last_stream);
	return 0;
}

static nghttp2_frame frame_of(uint8_t type, int32_t stream_id)
{
	nghttp2_frame frame = { .hd = { .type = type } };

	frame.hd.stream_id = stream_id;
	return frame;
}

/* A name that means something, or any; and a value with the zero that nghttp2 puts behind it. */
static void put_header(int32_t stream_id)
{
	static const char *const names[] = { ":status",
		                             "content-type",
		                             "grpc-status",
		                             "grpc-message",
		                             "grpc-message",
		                             "grpc-status-details-bin",
		                             "x",
		                             "" };
	static const char *const values[] = { "200", "application/grpc", "0", "5",
		                              "404", "no%20way",         "",  "CAUSBG5vbmU" };
	const nghttp2_frame frame = frame_of(NGHTTP2_HEADERS, stream_id);
	uint8_t which = take_byte();
	const char *name = names[which % 8], *value = values[which / 8 % 8];
	uint8_t text[VALUE_MAX + 1];
	size_t len = strlen(value);

	memcpy(text, value, len);
	if (which & 64) {
		len = take_byte() % VALUE_MAX;
		for (size_t i = 0; i < len; i++)
			text[i] = take_byte();
	}
	text[len] = 0;
	FUZZ_CHECK(!ours.header(&h2, &frame, (const uint8_t *)name, strlen(name), text, len, 0,
	                        ours.client));
}

static void put_data(int32_t stream_id)
{
	size_t len = take_byte();

	len = len < in.left ? len : in.left;
	FUZZ_CHECK(!ours.data_chunk(&h2, 0, stream_id, in.at, len, ours.client));
	in.at += len;
	in.left -= len;
}

static void put_goaway(void)
{
	nghttp2_frame frame = frame_of(NGHTTP2_GOAWAY, 0);
	size_t len = take_byte();

	frame.goaway.error_code = take_byte();
	len = len < in.left ? len : in.left;
	/* nghttp2 has no text where it is empty. */
	frame.goaway.opaque_data = len ? (uint8_t *)(uintptr_t)in.at : NULL;
	frame.goaway.opaque_data_len = len;
	FUZZ_CHECK(!ours.frame(&h2, &frame, ours.client));
	in.at += len;
	in.left -= len;
}

/* Return: negative for an error of nghttp2's; 1 where nothing more came at once. */
static int step(nghttp2_session *session)
{
	uint8_t op = take_byte();
	int32_t stream_id = session->last_stream + (op & 128 ? 2 : 0);
	nghttp2_frame frame = frame_of(NGHTTP2_PING, 0);

	switch (op & 7) {
	case 0:
	case 1:
		put_header(stream_id);
		break;
	case 2:
	case 3:
		put_data(stream_id);
		break;
	case 4:
		put_goaway();
		break;
	case 5:
		FUZZ_CHECK(!ours.stream_close(session, stream_id, op >> 3 & 15, ours.client));
		break;
	case 6:
		FUZZ_CHECK(!ours.frame(session, &frame, ours.client));
		session->wants_no_more = op & 64;
		break;
	default:
		return op & 64 ? NGHTTP2_ERR_FLOODED : 1;
	}
	return 0;
}

ssize_t nghttp2_session_mem_recv(nghttp2_session *session, const uint8_t *data, size_t len)
{
	int rc = 0;

	(void)data;
	while (in.left && !rc)
		rc = step(session);
	return rc < 0 ? rc : (ssize_t)len;
}

static int on_message(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	size_t *bytes = arg;

	(void)err;
	FUZZ_CHECK(message || !len);
	*bytes += GRPC_PREFIX_BYTES + len;
	return 0;
}

/* Return: whether it ended with a status. */
static bool call(struct grpc_client *client, size_t size)
{
	struct grpc_status status = { .code = GRPC_CODES };
	struct error err = ERROR_INIT;
	size_t bytes = 0;
	int rc = grpc_client_call(client, "/a.B/C", "x", 1, 0, on_message, &bytes, &status, &err);

	FUZZ_CHECK(bytes <= size);
	if (rc) {
		FUZZ_CHECK(err.code == rc && *err.text);
		return false;
	}
	FUZZ_CHECK(status.code < GRPC_CODES);
	FUZZ_CHECK(memchr(status.message, 0, sizeof status.message));
	FUZZ_CHECK(status.details_len <= sizeof status.details);
	return true;
}

int fuzz_one(const uint8_t *data, size_t size)
{
	struct grpc_client *client;

	in.at = data;
	in.left = size;
	FUZZ_CHECK(!grpc_client_new("unix:/s", NULL, -1, &client, NULL));
	if (call(client, size))
		call(client, size);
	grpc_client_free(client);
	return 0;
}

static uint8_t *put_reply(uint8_t *p, const char *text, bool is_good)
{
	const uint8_t len = (uint8_t)strlen(text);

	*p++ = 0;
	*p++ = 0; /* :status 200 */
	*p++ = 0;
	*p++ = 1 + 8; /* content-type application/grpc */
	*p++ = 2;
	*p++ = (uint8_t)(GRPC_PREFIX_BYTES + len);
	grpc_prefix_encode(p, len);
	p = (uint8_t *)stpcpy((char *)p + GRPC_PREFIX_BYTES, text);
	*p++ = 0;
	*p++ = (uint8_t)(2 + 8 * (is_good ? 2 : 3)); /* grpc-status */
	*p++ = 0;
	*p++ = 3 + 8 * 5; /* grpc-message no%20way */
	*p++ = 0;
	*p++ = 5 + 8 * 7; /* details */
	*p++ = 5;
	return p;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const uint8_t goaway[] = { 4, 3, 11, 'n', 'o', '!' };
	uint8_t *p = buf;

	if (i > 3)
		return 0;
	p = put_reply(p, "abc", i & 1);
	if (i == 3)
		p = (uint8_t *)mempcpy(p, goaway, sizeof goaway);
	*p++ = 7; /* before the next call */
	p = put_reply(p, "", i & 2);
	return (size_t)(p - buf);
}
