/* SPDX-License-Identifier: Apache-2.0 */
/* A stream's request: what it must be like, its one message, and the call of its method. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/server_internal.h"
#include "util/clock.h"

struct grpc_call *call_new(struct grpc_connection *c, int32_t stream_id)
{
	struct grpc_call *call = calloc(1, sizeof *call);

	if (!call)
		return NULL;
	call->connection = c;
	call->stream_id = stream_id;
	call->begun_ns = clock_now_ns();
	call->deadline_ns = NEVER;
	call->request_ns = call->begun_ns + GRPC_REQUEST_TIMEOUT_MS * NSEC_PER_MSEC;
	connection_arm(c, call->request_ns);
	grpc_assembly_init(&call->in, GRPC_MESSAGE_MAX);
	call->next = c->calls;
	c->calls = call;
	c->n_calls++;
	c->share->n_calls++;
	c->server->n_calls++;
	return call;
}

/* Count what the request holds now. */
static void charge(struct grpc_call *call)
{
	share_charge_request(call->connection, call->in.allocated, call->charged);
	call->charged = call->in.allocated;
}

static void forget_message(struct grpc_call *call)
{
	grpc_assembly_next(&call->in);
	charge(call);
}

struct grpc_call *call_free(struct grpc_call *call)
{
	struct grpc_connection *c = call->connection;
	struct grpc_server *s = c->server;

	for (struct grpc_call **p = &c->calls; *p; p = &(*p)->next)
		if (*p == call) {
			*p = call->next;
			break;
		}
	c->n_calls--;
	c->share->n_calls--;
	s->n_calls--;
	if (s->config.finished)
		s->config.finished(s->config.arg, &c->peer,
		                   call->method ? call->method->path : "other", call->code,
		                   clock_now_ns() - call->begun_ns);
	forget_message(call);
	answer_drop(call);
	free(call->status);
	free(call);
	return NULL;
}

void call_lose(struct grpc_call *call, enum grpc_code code)
{
	bool running = call->state == CALL_RUNNING;

	if (call->state == CALL_FINISHED)
		return;
	call->state = CALL_FINISHED;
	call->code = code;
	answer_drop(call);
	if (running && call->gone)
		call->gone(call, call->watch_arg);
}

static bool is(const char *text, size_t len, const char *word)
{
	return strlen(word) == len && !memcmp(text, word, len);
}

/* "application/grpc", with what message it is or parameters behind it. */
static bool is_grpc_type(const char *value, size_t len)
{
	static const char type[] = "application/grpc";
	size_t n = sizeof type - 1;

	return len >= n && !memcmp(value, type, n) &&
	       (len == n || value[n] == '+' || value[n] == ';');
}

void call_header(struct grpc_call *call, const char *name, size_t name_len, const char *value,
                 size_t value_len)
{
	uint64_t timeout_ns;

	/* As SETTINGS_MAX_HEADER_LIST_SIZE counts. */
	call->header_bytes += name_len + value_len + 32;
	if (call->headers_done || call->header_bytes > GRPC_HEADERS_MAX)
		return;
	if (is(name, name_len, ":method")) {
		call->is_post = is(value, value_len, "POST");
	} else if (is(name, name_len, ":path")) {
		call->method = server_method(call->connection->server, value, value_len);
	} else if (is(name, name_len, "content-type")) {
		call->is_grpc = is_grpc_type(value, value_len);
	} else if (is(name, name_len, "grpc-encoding")) {
		call->in.gzip = is(value, value_len, "gzip");
		call->bad_encoding = !call->in.gzip && !is(value, value_len, "identity");
	} else if (is(name, name_len, "grpc-timeout")) {
		call->bad_timeout = grpc_timeout_decode(value, value_len, &timeout_ns);
		if (!call->bad_timeout &&
		    __builtin_add_overflow(call->begun_ns, timeout_ns, &call->deadline_ns))
			call->deadline_ns = NEVER;
	}
}

void call_headers_done(struct grpc_call *call)
{
	const struct grpc_connection *c = call->connection;

	call->headers_done = true;
	if (call->header_bytes > GRPC_HEADERS_MAX)
		answer_refuse(call, 200, GRPC_RESOURCE_EXHAUSTED, "more than %u bytes of headers",
		              GRPC_HEADERS_MAX);
	else if (!call->is_post)
		answer_refuse(call, 405, GRPC_INTERNAL, "the method must be POST");
	else if (!call->is_grpc)
		answer_refuse(call, 415, GRPC_INVALID_ARGUMENT,
		              "content-type must be application/grpc");
	else if (!call->method)
		answer_refuse(call, 200, GRPC_UNIMPLEMENTED,
		              "there is no such method here: a newer postcopyd may have it");
	else if (call->bad_encoding)
		answer_refuse(call, 200, GRPC_UNIMPLEMENTED,
		              "messages may be compressed by gzip, and not otherwise");
	else if (call->bad_timeout)
		answer_refuse(call, 200, GRPC_INVALID_ARGUMENT, "malformed grpc-timeout");
	else if (!share_has_call(c->server, c->share))
		answer_refuse(call, 200, GRPC_RESOURCE_EXHAUSTED,
		              "more than %u calls run, or %u of %s", GRPC_CALLS_MAX,
		              GRPC_CLIENT_CALLS_MAX, c->peer.name);
	else if (!share_has_answer(c))
		answer_refuse(call, 200, GRPC_RESOURCE_EXHAUSTED,
		              "answers to earlier calls wait to be read");
	else if (call->deadline_ns != NEVER)
		connection_arm(call->connection, call->deadline_ns);
}

static void refuse_message(struct grpc_call *call, int error)
{
	switch (error) {
	case -EMSGSIZE:
		answer_refuse(call, 200, GRPC_RESOURCE_EXHAUSTED,
		              "a request of %zu bytes: at most %u are taken, and %u of what was "
		              "compressed",
		              call->in.len, GRPC_MESSAGE_MAX, GRPC_INFLATED_MAX);
		break;
	case -ENOTSUP:
		answer_refuse(call, 200, GRPC_INTERNAL,
		              "a message that is compressed, and no grpc-encoding says how");
		break;
	case -EPROTO:
		answer_refuse(call, 200, GRPC_INTERNAL, "what came is no gRPC message");
		break;
	default:
		answer_refuse(call, 200, GRPC_RESOURCE_EXHAUSTED, "out of memory for requests");
		break;
	}
}

/* The client has given up by now, and perhaps waits to be told. */
static void end_late(struct grpc_call *call)
{
	/* Trailers would wait behind what it does not take. */
	bool stuck = call->queued || call->state == CALL_FINISHED;

	call->deadline_ns = NEVER;
	if (stuck) {
		call_lose(call, GRPC_DEADLINE_EXCEEDED);
		answer_reset(call, NGHTTP2_CANCEL);
	} else {
		answer_refuse(call, 200, GRPC_DEADLINE_EXCEEDED, "the deadline has passed");
	}
}

static void deny(struct grpc_call *call, const uint8_t *message, size_t len)
{
	const struct grpc_server_config *config = &call->connection->server->config;

	if (!config->denied) {
		answer_refuse(call, 200, GRPC_PERMISSION_DENIED, "a %s may not call this method",
		              grpc_role_name(call->connection->peer.role));
		return;
	}
	call->state = CALL_RUNNING;
	config->denied(call, message, len, config->arg);
}

/* What nobody waits for any more is not done: the client has been told that it was not. */
static void run(struct grpc_call *call, const uint8_t *message, size_t len)
{
	if (call->deadline_ns <= clock_now_ns()) {
		end_late(call);
	} else if (!grpc_role_suffices(call->connection->peer.role, call->method->role)) {
		deny(call, message, len);
	} else {
		call->state = CALL_RUNNING;
		call->method->call(call, message, len, call->connection->server->config.arg);
	}
	forget_message(call);
}

/* A message is complete. One is kept until it is known that it is the only one. */
static void take_message(struct grpc_call *call)
{
	call->has_message = true;
	if (!call->method->client_streams)
		return;
	call->request_ns = NEVER;
	run(call, call->in.message, call->in.have);
}

/* Of a stream of requests each must come on once it has begun. */
static void watch_partial(struct grpc_call *call)
{
	if (call->request_ns != NEVER || !grpc_assembly_partial(&call->in))
		return;
	call->request_ns = clock_now_ns() + GRPC_REQUEST_TIMEOUT_MS * NSEC_PER_MSEC;
	connection_arm(call->connection, call->request_ns);
}

void call_data(struct grpc_call *call, const uint8_t *data, size_t len)
{
	const struct grpc_connection *c = call->connection;

	while (len && call->state != CALL_FINISHED) {
		int rc;

		if (call->has_message && !call->method->client_streams) {
			answer_refuse(call, 200, GRPC_UNIMPLEMENTED,
			              "this method takes one message");
			return;
		}
		rc = grpc_assembly_feed(&call->in, &data, &len);
		charge(call);
		if (rc >= 0 && !share_has_request(c->server, c->share))
			rc = -ENOMEM;
		if (rc < 0)
			refuse_message(call, rc);
		else if (rc > 0)
			take_message(call);
	}
	if (call->state != CALL_FINISHED)
		watch_partial(call);
	else
		forget_message(call);
}

void call_request_end(struct grpc_call *call)
{
	call->request_done = true;
	call->request_ns = NEVER;
	if (call->state == CALL_FINISHED)
		return;
	if (grpc_assembly_partial(&call->in))
		answer_refuse(call, 200, GRPC_INTERNAL, "the request ends within a message");
	else if (call->method->client_streams)
		run(call, NULL, 0);
	else if (!call->has_message)
		answer_refuse(call, 200, GRPC_UNIMPLEMENTED, "this method takes one message");
	else
		run(call, call->in.message, call->in.have);
}

/* The rest of the request does not come. */
static void end_slow(struct grpc_call *call)
{
	struct grpc_connection *c = call->connection;

	call->request_ns = NEVER;
	if (call->headers_done) {
		answer_refuse(call, 200, GRPC_DEADLINE_EXCEEDED,
		              "the request did not come within %u ms", GRPC_REQUEST_TIMEOUT_MS);
		return;
	}
	/* HTTP/2 has nothing else between the parts of a header block. */
	server_refused(c->server, &c->peer, REFUSED_DEADLINE, "it does not finish its headers");
	connection_close(c);
}

uint64_t call_tick(struct grpc_call *call, uint64_t now_ns)
{
	if (call->request_ns <= now_ns)
		end_slow(call);
	/* Until it is known what is called nothing can be said; call_headers_done() looks again. */
	if (!call->headers_done)
		return call->request_ns;
	if (call->deadline_ns <= now_ns)
		end_late(call);
	return call->request_ns < call->deadline_ns ? call->request_ns : call->deadline_ns;
}
