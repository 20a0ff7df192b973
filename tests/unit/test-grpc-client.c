/* SPDX-License-Identifier: Apache-2.0 */
/* The gRPC client against a server that says what the test wants, right or wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "ctl/pki.h"
#include "grpc/client.h"
#include "grpc/wire.h"
#include "util/cleanup.h"

#define PATH "/postcopy.v1.Migrations/Get"
#define BODY_MAX 256

/* What the server does once it has the whole request. */
struct script {
	const char *raw;          /* instead of HTTP/2, and then it hangs up */
	bool hang_up;             /* without an answer */
	bool silent;              /* neither, until the client goes */
	uint32_t reset;           /* RST_STREAM with this code; 0: none */
	bool goaway;              /* before the answer */
	const char *http_status;  /* "200" */
	const char *content_type; /* "application/grpc" */
	const uint8_t *body;      /* framed messages */
	size_t body_len;
	size_t data_max;  /* bytes of a DATA frame; 0: as many as go */
	bool endless;     /* the body again and again */
	const char *code; /* grpc-status; NULL: none */
	const char *message;
	const char *details;
	bool trailers_only;
};

struct server {
	const struct script *script;
	struct tls_context *tls;
	char dir[32];
	char path[64];
	char target[80];
	int listener;
	int fd;
	struct tls *session_tls;
	pthread_t thread;
	nghttp2_session *session;
	size_t sent;
	bool done;

	char seen[512]; /* "name: value\n" of the request's headers */
	uint8_t request[BODY_MAX];
	size_t request_len;
	uint32_t reset_by_client;
};

static nghttp2_nv header(const char *name, const char *value)
{
	return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
		             NGHTTP2_NV_FLAG_NONE };
}

static size_t add_trailers(const struct script *s, nghttp2_nv *nv)
{
	size_t n = 0;

	if (s->code)
		nv[n++] = header("grpc-status", s->code);
	if (s->message)
		nv[n++] = header("grpc-message", s->message);
	if (s->details)
		nv[n++] = header("grpc-status-details-bin", s->details);
	return n;
}

static ssize_t read_body(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t size,
                         uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
	struct server *s = user_data;
	const struct script *script = s->script;
	size_t left = script->body_len - s->sent;
	size_t n = script->data_max && script->data_max < size ? script->data_max : size;
	nghttp2_nv nv[3];

	(void)source;
	n = n < left ? n : left;
	if (n)
		memcpy(buf, script->body + s->sent, n);
	s->sent += n;
	if (n < left)
		return (ssize_t)n;
	if (script->endless) {
		s->sent = 0;
		return (ssize_t)n;
	}
	*flags |= NGHTTP2_DATA_FLAG_EOF;
	if (script->code) {
		*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
		nghttp2_submit_trailer(session, stream_id, nv, add_trailers(script, nv));
	}
	return (ssize_t)n;
}

static void answer(struct server *s, int32_t stream_id)
{
	const struct script *script = s->script;
	nghttp2_data_provider body = { .read_callback = read_body };
	nghttp2_nv nv[5] = {
		header(":status", script->http_status ? script->http_status : "200"),
		header("content-type",
		       script->content_type ? script->content_type : "application/grpc"),
	};

	if (script->goaway)
		nghttp2_submit_goaway(s->session, NGHTTP2_FLAG_NONE, stream_id, NGHTTP2_NO_ERROR,
		                      (const uint8_t *)"drained", 7);
	if (script->reset)
		nghttp2_submit_rst_stream(s->session, NGHTTP2_FLAG_NONE, stream_id, script->reset);
	else if (script->trailers_only)
		nghttp2_submit_response(s->session, stream_id, nv, 2 + add_trailers(script, nv + 2),
		                        NULL);
	else
		nghttp2_submit_response(s->session, stream_id, nv, 2, &body);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t namelen, const uint8_t *value, size_t valuelen, uint8_t flags,
                     void *user_data)
{
	struct server *s = user_data;
	size_t len = strlen(s->seen);

	(void)session;
	(void)frame;
	(void)flags;
	snprintf(s->seen + len, sizeof s->seen - len, "%.*s: %.*s\n", (int)namelen,
	         (const char *)name, (int)valuelen, (const char *)value);
	return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                   size_t len, void *user_data)
{
	struct server *s = user_data;

	(void)session;
	(void)flags;
	(void)stream_id;
	for (size_t i = 0; i < len && s->request_len < BODY_MAX; i++)
		s->request[s->request_len++] = data[i];
	return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct server *s = user_data;

	(void)session;
	if (frame->hd.type == NGHTTP2_RST_STREAM) {
		s->reset_by_client = frame->rst_stream.error_code;
		s->done = true;
	}
	if (frame->hd.type != NGHTTP2_DATA || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		return 0;
	if (s->script->hang_up)
		s->done = true;
	else if (!s->script->silent)
		answer(s, frame->hd.stream_id);
	return 0;
}

static ssize_t receive(struct server *s, uint8_t *buf, size_t size)
{
	return s->session_tls ? tls_read(s->session_tls, buf, size) : recv(s->fd, buf, size, 0);
}

static bool transmit(struct server *s, const uint8_t *data, size_t len)
{
	if (s->session_tls)
		return !tls_write(s->session_tls, data, len);
	return send(s->fd, data, len, MSG_NOSIGNAL) == (ssize_t)len;
}

/* Wait until the client takes a piece, or says something: that goes first. */
static bool may_send(const struct server *s)
{
	struct pollfd fd = { .fd = s->fd, .events = POLLIN | POLLOUT };

	return poll(&fd, 1, -1) > 0 && !(fd.revents & POLLIN);
}

/* Until the client goes, or the script wants to hang up. */
static void serve(struct server *s)
{
	nghttp2_settings_entry settings = { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 8 };
	nghttp2_session_callbacks *callbacks;
	uint8_t buf[4096];

	nghttp2_session_callbacks_new(&callbacks);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
	nghttp2_session_server_new(&s->session, callbacks, s);
	nghttp2_session_callbacks_del(callbacks);
	nghttp2_submit_settings(s->session, NGHTTP2_FLAG_NONE, &settings, 1);
	while (!s->done) {
		const uint8_t *data;
		ssize_t n = 0;

		if (nghttp2_session_want_write(s->session) && may_send(s))
			n = nghttp2_session_mem_send(s->session, &data);
		if (n > 0 && !transmit(s, data, (size_t)n))
			break;
		if (n > 0)
			continue;
		n = receive(s, buf, sizeof buf);
		if (n <= 0 || nghttp2_session_mem_recv(s->session, buf, (size_t)n) < 0)
			break;
	}
	nghttp2_session_del(s->session);
}

static void *server_main(void *arg)
{
	struct server *s = arg;
	struct error err = ERROR_INIT;

	s->fd = accept(s->listener, NULL, NULL);
	if (s->fd >= 0 && s->tls && tls_handshake(s->tls, s->fd, true, &s->session_tls, &err) < 0)
		s->done = true;
	if (s->fd >= 0 && s->script->raw)
		send(s->fd, s->script->raw, strlen(s->script->raw), MSG_NOSIGNAL);
	else if (s->fd >= 0 && !s->done)
		serve(s);
	s->session_tls = tls_free(s->session_tls);
	close_fd(&s->fd);
	return NULL;
}

static void listen_unix(struct server *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(s->path, sizeof s->path, "%s/control", s->dir);
	snprintf(s->target, sizeof s->target, "unix:%s", s->path);
	strcpy(addr.sun_path, s->path);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(s->listener, 1), 0);
}

static void listen_tcp(struct server *s)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof addr;

	s->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(s->listener, (struct sockaddr *)&addr, sizeof addr), 0);
	assert_int_equal(listen(s->listener, 1), 0);
	assert_int_equal(getsockname(s->listener, (struct sockaddr *)&addr, &len), 0);
	snprintf(s->target, sizeof s->target, "127.0.0.1:%u", ntohs(addr.sin_port));
}

static void server_start(struct server *s, const struct script *script, struct tls_context *tls)
{
	*s = (struct server){
		.script = script, .tls = tls, .fd = -1, .dir = "/tmp/test-grpc-XXXXXX"
	};
	assert_non_null(mkdtemp(s->dir));
	if (tls)
		listen_tcp(s);
	else
		listen_unix(s);
	assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

static void server_stop(struct server *s)
{
	shutdown(s->listener, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listener);
	if (*s->path)
		unlink(s->path);
	rmdir(s->dir);
}

/* What a call has brought. */
struct heard {
	unsigned int n;
	unsigned int stop_at; /* fail at this message; 0: at none */
	size_t bytes;
	uint8_t first[32];
	size_t first_len;
};

static int on_message(const uint8_t *message, size_t len, void *arg, struct error *err)
{
	struct heard *h = arg;

	if (!h->n) {
		h->first_len = len < sizeof h->first ? len : sizeof h->first;
		memcpy(h->first, message, h->first_len);
	}
	h->bytes += len;
	return ++h->n == h->stop_at ? error_set(err, -ECHILD, "enough") : 0;
}

/* One call against @script. @s is what the server has seen. */
static int call(const struct script *script, struct server *s, struct heard *h,
                struct grpc_status *status, struct error *err)
{
	struct grpc_client *c = NULL;
	int r;

	server_start(s, script, NULL);
	assert_int_equal(grpc_client_new(s->target, NULL, -1, &c, err), 0);
	r = grpc_client_call(c, PATH, "vm7", 3, 0, on_message, h, status, err);
	grpc_client_free(c);
	server_stop(s);
	return r;
}

static const uint8_t one_message[] = { 0, 0, 0, 0, 2, 'h', 'i' };

static void test_request_is_grpc_and_the_answer_comes(void **state)
{
	static const uint8_t want[] = { 0, 0, 0, 0, 3, 'v', 'm', '7' };
	const struct script script = { .body = one_message,
		                       .body_len = sizeof one_message,
		                       .code = "0" };
	struct grpc_status status = { .code = GRPC_INTERNAL };
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	assert_int_equal(call(&script, &s, &h, &status, &err), 0);
	assert_int_equal(status.code, GRPC_OK);
	assert_int_equal(h.n, 1);
	assert_int_equal(h.first_len, 2);
	assert_memory_equal(h.first, "hi", 2);
	assert_int_equal(s.request_len, sizeof want);
	assert_memory_equal(s.request, want, sizeof want);
	assert_non_null(strstr(s.seen, ":method: POST\n"));
	assert_non_null(strstr(s.seen, ":path: " PATH "\n"));
	assert_non_null(strstr(s.seen, "te: trailers\n"));
	assert_non_null(strstr(s.seen, "content-type: application/grpc\n"));
	assert_null(strstr(s.seen, "grpc-timeout"));
}

static void test_messages_cut_anywhere_arrive_whole(void **state)
{
	uint8_t body[3 * sizeof one_message];
	const struct script script = {
		.body = body, .body_len = sizeof body, .data_max = 3, .code = "0"
	};
	struct grpc_status status;
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	for (size_t i = 0; i < 3; i++)
		memcpy(body + i * sizeof one_message, one_message, sizeof one_message);
	assert_int_equal(call(&script, &s, &h, &status, &err), 0);
	assert_int_equal(h.n, 3);
	assert_int_equal(h.bytes, 6);
}

/* More than any window, so that it must be opened again and again. */
static void test_large_message(void **state)
{
	const size_t len = 20u << 20;
	_cleanup_free_ uint8_t *body = calloc(1, GRPC_PREFIX_BYTES + len);
	struct script script = { .body = body, .body_len = GRPC_PREFIX_BYTES + len, .code = "0" };
	struct grpc_status status;
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	assert_non_null(body);
	grpc_prefix_encode(body, (uint32_t)len);
	assert_int_equal(call(&script, &s, &h, &status, &err), 0);
	assert_int_equal(status.code, GRPC_OK);
	assert_int_equal(h.n, 1);
	assert_int_equal(h.bytes, len);
}

static void test_refusal_has_text_and_details(void **state)
{
	const struct script scripts[] = {
		{ .code = "5",
		  .message = "no %22vm7%22 %E2%82%AC",
		  .details = "AAH/",
		  .trailers_only = true },
		{ .code = "5", .message = "no %22vm7%22 %E2%82%AC", .details = "AAH/" },
	};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct grpc_status status = { .code = GRPC_OK };
		struct error err = ERROR_INIT;
		struct heard h = { 0 };
		struct server s;

		assert_int_equal(call(&scripts[i], &s, &h, &status, &err), 0);
		assert_int_equal(status.code, GRPC_NOT_FOUND);
		assert_string_equal(status.message, "no \"vm7\" €");
		assert_int_equal(status.details_len, 3);
		assert_memory_equal(status.details, "\x00\x01\xff", 3);
		assert_int_equal(h.n, 0);
	}
}

static void test_end_without_a_status_is_no_success(void **state)
{
	static const uint8_t cut[] = { 0, 0, 0, 0, 9, 'h', 'i' };
	static const uint8_t html[] = "<html>";
	const struct {
		struct script script;
		enum grpc_code want;
	} cases[] = {
		{ { .http_status = "404", .content_type = "text/html" }, GRPC_UNIMPLEMENTED },
		{ { .http_status = "503", .content_type = "text/html" }, GRPC_UNAVAILABLE },
		{ { .http_status = "302", .content_type = "text/html" }, GRPC_UNKNOWN },
		{ { .content_type = "text/html" }, GRPC_UNKNOWN },
		{ { .content_type = "text/html", .body = html, .body_len = sizeof html },
		  GRPC_UNKNOWN },
		{ { .body = one_message, .body_len = sizeof one_message }, GRPC_UNKNOWN },
		{ { .code = "77" }, GRPC_UNKNOWN },
		{ { .code = "x" }, GRPC_UNKNOWN },
		{ { .body = cut, .body_len = sizeof cut, .code = "0" }, GRPC_INTERNAL },
		{ { .reset = NGHTTP2_REFUSED_STREAM }, GRPC_UNAVAILABLE },
		{ { .reset = NGHTTP2_INTERNAL_ERROR }, GRPC_INTERNAL },
		{ { .reset = NGHTTP2_ENHANCE_YOUR_CALM }, GRPC_RESOURCE_EXHAUSTED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct grpc_status status = { .code = GRPC_OK };
		struct error err = ERROR_INIT;
		struct heard h = { 0 };
		struct server s;

		assert_int_equal(call(&cases[i].script, &s, &h, &status, &err), 0);
		assert_int_equal(status.code, cases[i].want);
	}
}

static void test_what_is_no_grpc_fails(void **state)
{
	static const uint8_t compressed[] = { 1, 0, 0, 0, 2, 'h', 'i' };
	static const uint8_t huge[] = { 0, 0xff, 0xff, 0xff, 0xff, 'h', 'i' };
	const struct {
		struct script script;
		int want;
	} cases[] = {
		{ { .raw = "" }, -EPIPE },
		{ { .raw = "HTTP/1.1 400 Bad Request\r\n\r\n" }, -EPROTO },
		{ { .raw = "{\"error\": {\"code\": \"INVALID_ARGUMENT\"}}\n" }, -EPROTO },
		{ { .hang_up = true }, -EPIPE },
		{ { .body = compressed, .body_len = sizeof compressed, .code = "0" }, -EPROTO },
		{ { .body = huge, .body_len = sizeof huge, .code = "0" }, -EPROTO },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct grpc_status status = { .code = GRPC_OK };
		struct error err = ERROR_INIT;
		struct heard h = { 0 };
		struct server s;

		assert_int_equal(call(&cases[i].script, &s, &h, &status, &err), cases[i].want);
		assert_true(*err.text);
		assert_int_equal(h.n, 0);
	}
}

/* It is told so, and the stream does not go on. */
static void test_reader_ends_the_call(void **state)
{
	const struct script script = { .body = one_message,
		                       .body_len = sizeof one_message,
		                       .data_max = sizeof one_message,
		                       .endless = true,
		                       .code = "0" };
	struct grpc_client *c = NULL;
	struct grpc_status status;
	struct error err = ERROR_INIT;
	struct heard h = { .stop_at = 2 };
	struct server s;

	(void)state;
	server_start(&s, &script, NULL);
	assert_int_equal(grpc_client_new(s.target, NULL, -1, &c, &err), 0);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err),
	                 -ECHILD);
	/* Which waits for the reset. */
	server_stop(&s);
	grpc_client_free(c);
	assert_string_equal(err.text, "enough");
	assert_int_equal(h.n, 2);
	assert_int_equal(s.reset_by_client, NGHTTP2_CANCEL);
}

static void test_deadline_is_sent_and_kept(void **state)
{
	const struct script script = { .silent = true };
	struct grpc_client *c = NULL;
	struct grpc_status status;
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	server_start(&s, &script, NULL);
	assert_int_equal(grpc_client_new(s.target, NULL, -1, &c, &err), 0);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 150, on_message, &h, &status, &err),
	                 -ETIMEDOUT);
	server_stop(&s);
	grpc_client_free(c);
	assert_non_null(strstr(s.seen, "grpc-timeout: 150m\n"));
	assert_int_equal(s.reset_by_client, NGHTTP2_CANCEL);
}

static void test_cancel_ends_a_wait(void **state)
{
	const struct script script = { .silent = true };
	struct grpc_client *c = NULL;
	struct grpc_status status;
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;
	int cancel[2];

	(void)state;
	assert_int_equal(pipe(cancel), 0);
	server_start(&s, &script, NULL);
	assert_int_equal(grpc_client_new(s.target, NULL, cancel[0], &c, &err), 0);
	assert_int_equal(write(cancel[1], "x", 1), 1);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err),
	                 -ECANCELED);
	grpc_client_free(c);
	server_stop(&s);
	close(cancel[0]);
	close(cancel[1]);
}

/* The call that runs is answered; the next one is not even sent. */
static void test_server_that_leaves(void **state)
{
	const struct script script = {
		.goaway = true, .body = one_message, .body_len = sizeof one_message, .code = "0"
	};
	struct grpc_client *c = NULL;
	struct grpc_status status = { .code = GRPC_UNKNOWN };
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	server_start(&s, &script, NULL);
	assert_int_equal(grpc_client_new(s.target, NULL, -1, &c, &err), 0);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err), 0);
	assert_int_equal(status.code, GRPC_OK);
	assert_int_equal(h.n, 1);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err),
	                 -EPIPE);
	assert_non_null(strstr(err.text, "drained"));
	grpc_client_free(c);
	server_stop(&s);
}

static void test_several_calls_on_one_connection(void **state)
{
	const struct script script = { .code = "5", .message = "no", .trailers_only = true };
	struct grpc_client *c = NULL;
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;

	(void)state;
	server_start(&s, &script, NULL);
	assert_int_equal(grpc_client_new(s.target, NULL, -1, &c, &err), 0);
	for (int i = 0; i < 3; i++) {
		struct grpc_status status = { .code = GRPC_OK };

		assert_int_equal(
		        grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err), 0);
		assert_int_equal(status.code, GRPC_NOT_FOUND);
	}
	grpc_client_free(c);
	server_stop(&s);
}

static void test_nobody_there_is_said_so(void **state)
{
	struct error err = ERROR_INIT;
	struct grpc_client *c = NULL;

	(void)state;
	assert_int_equal(grpc_client_new("/nonexistent/control", NULL, -1, &c, &err), -ENOENT);
	assert_non_null(strstr(err.text, "no postcopyd listens on \"/nonexistent/control\""));
	assert_int_equal(grpc_client_new("127.0.0.1:1", NULL, -1, &c, &err), -EINVAL);
	assert_null(c);
}

/* TLS: a directory with certificates, and the two contexts. */
struct pki {
	char dir[32];
	char paths[5][64];
	struct tls_config server, client;
	struct tls_context *server_tls, *client_tls;
};

static const char *const pki_files[] = { PKI_CA, PKI_SOURCE_CERT, PKI_SOURCE_KEY,
	                                 PKI_DESTINATION_CERT, PKI_DESTINATION_KEY };

static void pki_start(struct pki *p, const char *client_alpn)
{
	struct error err = ERROR_INIT;

	*p = (struct pki){ .dir = "/tmp/test-grpc-pki-XXXXXX" };
	assert_non_null(mkdtemp(p->dir));
	assert_int_equal(pki_make(p->dir, &err), 0);
	for (size_t i = 0; i < 5; i++)
		snprintf(p->paths[i], sizeof p->paths[i], "%s/%s", p->dir, pki_files[i]);
	p->server = (struct tls_config){ .alpn = "h2",
		                         .ca_path = p->paths[0],
		                         .cert_path = p->paths[1],
		                         .key_path = p->paths[2] };
	p->client = (struct tls_config){ .alpn = client_alpn,
		                         .ca_path = p->paths[0],
		                         .cert_path = p->paths[3],
		                         .key_path = p->paths[4] };
	assert_int_equal(tls_context_new(&p->server, &p->server_tls, &err), 0);
	assert_int_equal(tls_context_new(&p->client, &p->client_tls, &err), 0);
}

static void pki_stop(struct pki *p)
{
	tls_context_free(p->server_tls);
	tls_context_free(p->client_tls);
	for (size_t i = 0; i < 5; i++)
		unlink(p->paths[i]);
	rmdir(p->dir);
}

static void test_call_over_tls(void **state)
{
	uint8_t body[GRPC_PREFIX_BYTES + 100000] = { 0 };
	const struct script script = { .body = body, .body_len = sizeof body, .code = "0" };
	struct grpc_client *c = NULL;
	struct grpc_status status = { .code = GRPC_UNKNOWN };
	struct error err = ERROR_INIT;
	struct heard h = { 0 };
	struct server s;
	struct pki p;

	(void)state;
	grpc_prefix_encode(body, sizeof body - GRPC_PREFIX_BYTES);
	pki_start(&p, "h2");
	server_start(&s, &script, p.server_tls);
	assert_int_equal(grpc_client_new(s.target, p.client_tls, -1, &c, &err), 0);
	assert_int_equal(grpc_client_call(c, PATH, NULL, 0, 0, on_message, &h, &status, &err), 0);
	assert_int_equal(status.code, GRPC_OK);
	assert_int_equal(h.bytes, sizeof body - GRPC_PREFIX_BYTES);
	assert_non_null(strstr(s.seen, ":scheme: https\n"));
	grpc_client_free(c);
	server_stop(&s);
	pki_stop(&p);
}

static void test_other_protocol_over_tls_is_refused(void **state)
{
	const struct script script = { .silent = true };
	struct grpc_client *c = NULL;
	struct error err = ERROR_INIT;
	struct server s;
	struct pki p;

	(void)state;
	pki_start(&p, "postcopy/1");
	server_start(&s, &script, p.server_tls);
	assert_true(grpc_client_new(s.target, p.client_tls, -1, &c, &err) < 0);
	assert_non_null(strstr(err.text, s.target));
	assert_null(c);
	server_stop(&s);
	pki_stop(&p);
}

/* Who accepts and says nothing must not hold us. */
static void test_cancel_ends_a_handshake(void **state)
{
	struct grpc_client *c = NULL;
	struct error err = ERROR_INIT;
	struct server s = { .listener = -1 };
	struct pki p;
	int cancel[2];

	(void)state;
	pki_start(&p, "h2");
	listen_tcp(&s);
	assert_int_equal(pipe(cancel), 0);
	assert_int_equal(write(cancel[1], "x", 1), 1);
	assert_int_equal(grpc_client_new(s.target, p.client_tls, cancel[0], &c, &err), -ECANCELED);
	close(s.listener);
	close(cancel[0]);
	close(cancel[1]);
	pki_stop(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_request_is_grpc_and_the_answer_comes),
		cmocka_unit_test(test_messages_cut_anywhere_arrive_whole),
		cmocka_unit_test(test_large_message),
		cmocka_unit_test(test_refusal_has_text_and_details),
		cmocka_unit_test(test_end_without_a_status_is_no_success),
		cmocka_unit_test(test_what_is_no_grpc_fails),
		cmocka_unit_test(test_reader_ends_the_call),
		cmocka_unit_test(test_deadline_is_sent_and_kept),
		cmocka_unit_test(test_cancel_ends_a_wait),
		cmocka_unit_test(test_server_that_leaves),
		cmocka_unit_test(test_several_calls_on_one_connection),
		cmocka_unit_test(test_nobody_there_is_said_so),
		cmocka_unit_test(test_call_over_tls),
		cmocka_unit_test(test_other_protocol_over_tls_is_refused),
		cmocka_unit_test(test_cancel_ends_a_handshake),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("grpc-client", tests, NULL, NULL);
}
