/* SPDX-License-Identifier: Apache-2.0 */
/* Requests from bytes and answers to bytes: only here and in errors.c is protobuf-c called. */
#ifndef RPC_MESSAGE_H
#define RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>

#include "rpc/errors.h"
#include "util/cleanup.h"

struct grpc_call;

/* None of the requests comes near it; so what unpacking one allocates is bounded, too. */
#define RPC_REQUEST_MAX 65536u

/*
 * message_unpack() - a request
 *
 * Refused: what is no such message, a string that is not UTF-8 or has a NUL in it (protobuf-c
 * would cut it there, and one id would pass for another), and of our own messages a field that is
 * not known: a newer client asks for something that would be dropped without a word.
 *
 * Return: 0, and the caller frees it by message_free(); -EINVAL, -EMSGSIZE, -ENOSYS with @e set.
 */
int message_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t len,
                   ProtobufCMessage **ret, struct rpc_error *e);
void message_free(ProtobufCMessage *message);

DEFINE_CLEANUP(ProtobufCMessage *, message_free);
#define _cleanup_message_ _cleanup_(message_free_p)

/*
 * message_string() - one string of a message that may be none, or wrong
 * @size: of @ret, with its NUL
 *
 * Return: 0; -ENOENT where there is none, or it is too long, or has a NUL in it.
 */
int message_string(const uint8_t *bytes, size_t len, unsigned int field, char *ret, size_t size);

/* The bytes of an answer; free() them. */
struct rpc_answer {
	uint8_t *bytes;
	size_t len;
};

/* Return: 0 or -ENOMEM with @e set. */
int message_pack(const ProtobufCMessage *message, struct rpc_answer *ret, struct rpc_error *e);

/* Pack and send. Return: as above; the call is then to be finished. */
int message_send(struct grpc_call *call, const ProtobufCMessage *message, struct rpc_error *e);

#endif
