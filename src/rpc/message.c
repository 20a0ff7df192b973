/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "grpc/server.h"
#include "util/secret.h"
#include "util/utf8.h"

/* Messages within messages: requests have two levels. */
#define DEPTH_MAX 8
#define WIRE_TYPE_BITS 3

/* A position in a message, with a sticky failure as util/bytes.h has it. */
struct wire {
	const uint8_t *pos, *end;
	bool failed;
};

static uint64_t wire_varint(struct wire *w)
{
	uint64_t value = 0;

	for (unsigned int shift = 0; shift < 64 && w->pos < w->end; shift += 7) {
		uint8_t byte = *w->pos++;

		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return value;
	}
	w->failed = true;
	return 0;
}

/* The next @len bytes. */
static struct wire wire_take(struct wire *w, uint64_t len)
{
	struct wire part = { .pos = w->pos, .end = w->pos };

	if (w->failed || (uint64_t)(w->end - w->pos) < len) {
		w->failed = true;
		return part;
	}
	w->pos += len;
	part.end = w->pos;
	return part;
}

/* One field. @ret: its bytes, where it has a length; else its pos is NULL. Return: its number. */
static uint32_t wire_field(struct wire *w, struct wire *ret)
{
	uint64_t tag = wire_varint(w);

	*ret = (struct wire){ .pos = NULL };
	if (!(tag >> WIRE_TYPE_BITS) || tag > UINT32_MAX)
		w->failed = true;
	switch (tag & ((1 << WIRE_TYPE_BITS) - 1)) {
	case PROTOBUF_C_WIRE_TYPE_VARINT:
		wire_varint(w);
		break;
	case PROTOBUF_C_WIRE_TYPE_64BIT:
		wire_take(w, 8);
		break;
	case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
		*ret = wire_take(w, wire_varint(w));
		break;
	case PROTOBUF_C_WIRE_TYPE_32BIT:
		wire_take(w, 4);
		break;
	default:
		w->failed = true;
	}
	return (uint32_t)(tag >> WIRE_TYPE_BITS);
}

static int check_fields(const ProtobufCMessageDescriptor *type, struct wire w, int depth,
                        struct rpc_error *e);

static int check_delimited(const ProtobufCFieldDescriptor *field, struct wire part, int depth,
                           struct rpc_error *e)
{
	size_t len = (size_t)(part.end - part.pos);

	if (field->type == PROTOBUF_C_TYPE_MESSAGE)
		return check_fields(field->descriptor, part, depth + 1, e);
	if (field->type != PROTOBUF_C_TYPE_STRING)
		return 0;
	if (memchr(part.pos, 0, len) || utf8_valid_len((const char *)part.pos, len) != len)
		return rpc_error_field(e, field->name, "is not UTF-8 text");
	return 0;
}

/*
 * A field that a newer client has asked something by. protobuf drops those, and the client would be
 * told OK: who may attach, say, would be everybody. Of messages that are not ours what there may be
 * is not for us to say.
 */
static int refuse_unknown(const ProtobufCMessageDescriptor *type, uint32_t number,
                          struct rpc_error *e)
{
	if (strcmp(type->package_name, postcopy__v1__migration__descriptor.package_name))
		return 0;
	return rpc_error_set(e, -ENOSYS, POSTCOPY__V1__ERROR_REASON__ERROR_REASON_NOT_SUPPORTED,
	                     "%s has field %u, which this host's postcopyd does not know: upgrade "
	                     "it, or leave out what asks for that",
	                     type->short_name, number);
}

/* protobuf-c itself looks at neither strings' bytes nor depth. */
static int check_fields(const ProtobufCMessageDescriptor *type, struct wire w, int depth,
                        struct rpc_error *e)
{
	int rc = 0;

	while (!rc && !w.failed && depth < DEPTH_MAX && w.pos < w.end) {
		struct wire part;
		uint32_t number = wire_field(&w, &part);
		const ProtobufCFieldDescriptor *field =
		        protobuf_c_message_descriptor_get_field(type, number);

		if (w.failed)
			break;
		if (!field)
			rc = refuse_unknown(type, number, e);
		else if (part.pos)
			rc = check_delimited(field, part, depth, e);
	}
	if (!rc && (w.failed || w.pos < w.end))
		rc = rpc_error_set(e, -EINVAL,
		                   POSTCOPY__V1__ERROR_REASON__ERROR_REASON_INVALID_REQUEST,
		                   "the request is no %s", type->name);
	return rc;
}

int message_string(const uint8_t *bytes, size_t len, unsigned int field, char *ret, size_t size)
{
	struct wire w = { .pos = bytes, .end = bytes + len }, found = { .failed = true };
	size_t found_len;

	while (!w.failed && w.pos < w.end) {
		struct wire part;

		/* The last one counts, as protobuf has it. */
		if (wire_field(&w, &part) == field && part.pos)
			found = part;
	}
	found_len = (size_t)(found.end - found.pos);
	if (w.failed || found.failed || found_len >= size || memchr(found.pos, 0, found_len))
		return -ENOENT;
	memcpy(ret, found.pos, found_len);
	ret[found_len] = 0;
	return 0;
}

static void *on_alloc(void *arg, size_t size)
{
	(void)arg;
	return malloc(size);
}

static void on_free(void *arg, void *p)
{
	(void)arg;
	secret_free(p);
}

/* Requests may have secrets in them. */
static ProtobufCAllocator memory = { .alloc = on_alloc, .free = on_free };

int message_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t len,
                   ProtobufCMessage **ret, struct rpc_error *e)
{
	struct wire w = { .pos = bytes, .end = bytes + len };
	ProtobufCMessage *message;
	int rc;

	if (len > RPC_REQUEST_MAX)
		return rpc_error_set(
		        e, -EMSGSIZE, POSTCOPY__V1__ERROR_REASON__ERROR_REASON_INVALID_REQUEST,
		        "a request of %zu bytes: %u are enough for any", len, RPC_REQUEST_MAX);
	rc = check_fields(type, w, 0, e);
	if (rc)
		return rc;
	message = protobuf_c_message_unpack(type, &memory, len, bytes);
	if (!message)
		return rpc_error_set(e, -EINVAL,
		                     POSTCOPY__V1__ERROR_REASON__ERROR_REASON_INVALID_REQUEST,
		                     "the request is no %s", type->name);
	*ret = message;
	return 0;
}

void message_free(ProtobufCMessage *message)
{
	protobuf_c_message_free_unpacked(message, &memory);
}

int message_pack(const ProtobufCMessage *message, struct rpc_answer *ret, struct rpc_error *e)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *bytes = malloc(len ? len : 1);

	if (!bytes)
		return error_set(&e->error, -ENOMEM, "out of memory");
	*ret = (struct rpc_answer){ bytes, protobuf_c_message_pack(message, bytes) };
	return 0;
}

int message_send(struct grpc_call *call, const ProtobufCMessage *message, struct rpc_error *e)
{
	struct rpc_answer answer;
	int rc = message_pack(message, &answer, e);

	if (rc)
		return rc;
	rc = grpc_call_send(call, answer.bytes, answer.len);
	free(answer.bytes);
	if (rc == -ENOBUFS)
		return error_set(&e->error, rc, "too much that was sent before is not read");
	return rc ? error_set(&e->error, rc, "out of memory") : 0;
}
