/* SPDX-License-Identifier: Apache-2.0 */
/* A stream's answer: headers, messages as the client takes them, and a status. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/server_internal.h"

#define HEADERS_MAX 6

struct chunk {
	struct chunk *next;
	size_t len;
	size_t taken;
	uint8_t bytes[];
};

/* A block of headers on its way to nghttp2, with the text of those that are made here. */
struct block {
	nghttp2_nv nv[HEADERS_MAX];
	size_t n;
	char http_status[12];
	char code[12];
	char message[GRPC_PERCENT_SIZE(ERROR_TEXT_MAX)];
	char details[GRPC_BASE64_SIZE(GRPC_DETAILS_MAX)];
};

static void add(struct block *b, const char *name, const char *value)
{
	b->nv[b->n++] = (nghttp2_nv){
		.name = (uint8_t *)name,
		.value = (uint8_t *)value,
		.namelen = strlen(name),
		.valuelen = strlen(value),
	};
}

static void add_head(struct block *b, unsigned int http_status)
{
	snprintf(b->http_status, sizeof b->http_status, "%u", http_status);
	add(b, ":status", b->http_status);
	add(b, "content-type", "application/grpc");
	add(b, "grpc-accept-encoding", "identity,gzip");
}

static void add_status(struct block *b, const struct grpc_call *call)
{
	const struct grpc_status *status = call->status;

	snprintf(b->code, sizeof b->code, "%u", call->code);
	add(b, "grpc-status", b->code);
	if (status && *status->message) {
		grpc_percent_encode(status->message, b->message, sizeof b->message);
		add(b, "grpc-message", b->message);
	}
	if (status && status->details_len) {
		grpc_base64_encode(status->details, status->details_len, b->details);
		add(b, "grpc-status-details-bin", b->details);
	}
}

/* nghttp2 has run out of memory: what it knows of the stream is anybody's guess. */
static int check(struct grpc_call *call, int rc)
{
	connection_wake(call->connection);
	if (rc < 0 && nghttp2_is_fatal(rc))
		connection_close(call->connection);
	return rc < 0 ? -ENOMEM : 0;
}

static void count_taken(struct grpc_call *call, size_t n)
{
	call->queued -= n;
	share_charge_answer(call->connection, 0, n);
}

static void drop_first(struct grpc_call *call)
{
	struct chunk *chunk = call->first;

	count_taken(call, chunk->len - chunk->taken);
	call->first = chunk->next;
	free(chunk);
}

void answer_drop(struct grpc_call *call)
{
	while (call->first)
		drop_first(call);
}

/* As much of the queue as @size takes. */
static size_t take(struct grpc_call *call, uint8_t *buf, size_t size)
{
	size_t n = 0;

	while (call->first && n < size) {
		struct chunk *chunk = call->first;
		size_t left = chunk->len - chunk->taken;
		size_t part = left < size - n ? left : size - n;

		memcpy(buf + n, chunk->bytes + chunk->taken, part);
		chunk->taken += part;
		n += part;
		count_taken(call, part);
		if (chunk->taken == chunk->len)
			drop_first(call);
	}
	return n;
}

/* nghttp2 asks for DATA. */
static ssize_t on_take(nghttp2_session *h2, int32_t stream_id, uint8_t *buf, size_t size,
                       uint32_t *flags, nghttp2_data_source *source, void *arg)
{
	struct grpc_call *call = source->ptr;
	size_t n = take(call, buf, size);

	(void)arg;
	if (call->first)
		return (ssize_t)n;
	if (call->state == CALL_FINISHED) {
		struct block b = { .n = 0 };

		add_status(&b, call);
		*flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
		if (nghttp2_submit_trailer(h2, stream_id, b.nv, b.n))
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
		return (ssize_t)n;
	}
	call->drained = true;
	call->connection->drained = true;
	if (n)
		return (ssize_t)n;
	call->deferred = true;
	return NGHTTP2_ERR_DEFERRED;
}

/* There is something to take. */
static int resume(struct grpc_call *call)
{
	nghttp2_session *h2 = call->connection->h2;
	const nghttp2_data_provider provider = { .source.ptr = call, .read_callback = on_take };
	struct block b = { .n = 0 };

	if (call->responded) {
		if (!call->deferred)
			return 0;
		call->deferred = false;
		return check(call, nghttp2_session_resume_data(h2, call->stream_id));
	}
	call->responded = true;
	add_head(&b, 200);
	return check(call, nghttp2_submit_response(h2, call->stream_id, b.nv, b.n, &provider));
}

void answer_end(struct grpc_call *call)
{
	nghttp2_session *h2 = call->connection->h2;
	struct block b = { .n = 0 };

	if (call->ended)
		return;
	call->ended = true;
	if (call->responded) {
		resume(call);
		return;
	}
	call->responded = true;
	add_head(&b, call->http_status ? call->http_status : 200);
	add_status(&b, call);
	check(call, nghttp2_submit_response(h2, call->stream_id, b.nv, b.n, NULL));
}

void answer_reset(struct grpc_call *call, uint32_t error)
{
	call->ended = true;
	check(call, nghttp2_submit_rst_stream(call->connection->h2, NGHTTP2_FLAG_NONE,
	                                      call->stream_id, error));
}

/* Short of memory the code alone must do. */
static void keep_status(struct grpc_call *call, const struct grpc_status *status)
{
	call->status = malloc(sizeof *call->status);
	if (call->status)
		*call->status = *status;
}

void answer_refuse(struct grpc_call *call, unsigned int http_status, enum grpc_code code,
                   const char *fmt, ...)
{
	struct grpc_status status = { .code = code };
	va_list ap;

	if (call->state == CALL_FINISHED)
		return;
	va_start(ap, fmt);
	vsnprintf(status.message, sizeof status.message, fmt, ap);
	va_end(ap);
	call_lose(call, code);
	call->http_status = http_status;
	keep_status(call, &status);
	answer_end(call);
}

const struct grpc_peer *grpc_call_peer(const struct grpc_call *call)
{
	return &call->connection->peer;
}

const struct grpc_method *grpc_call_method(const struct grpc_call *call)
{
	return call->method;
}

size_t grpc_call_queued(const struct grpc_call *call)
{
	return call->queued;
}

int grpc_call_send(struct grpc_call *call, const void *message, size_t len)
{
	struct chunk *chunk;

	if (len > UINT32_MAX || !share_has_answer(call->connection))
		return -ENOBUFS;
	chunk = malloc(sizeof *chunk + GRPC_PREFIX_BYTES + len);
	if (!chunk)
		return -ENOMEM;
	chunk->next = NULL;
	chunk->taken = 0;
	chunk->len = GRPC_PREFIX_BYTES + len;
	grpc_prefix_encode(chunk->bytes, (uint32_t)len);
	if (len)
		memcpy(chunk->bytes + GRPC_PREFIX_BYTES, message, len);
	if (call->first)
		call->last->next = chunk;
	else
		call->first = chunk;
	call->last = chunk;
	call->queued += chunk->len;
	share_charge_answer(call->connection, chunk->len, 0);
	return resume(call);
}

void grpc_call_finish(struct grpc_call *call, const struct grpc_status *status)
{
	call->state = CALL_FINISHED;
	if (status) {
		call->code = status->code;
		keep_status(call, status);
	}
	answer_end(call);
}

void grpc_call_watch(struct grpc_call *call, void (*gone)(struct grpc_call *call, void *arg),
                     void (*writable)(struct grpc_call *call, void *arg), void *arg)
{
	call->gone = gone;
	call->writable = writable;
	call->watch_arg = arg;
}
