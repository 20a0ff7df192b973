/* SPDX-License-Identifier: Apache-2.0 */
/* gRPC's status codes (grpc/doc/statuscodes.md) and what goes with one. */
#ifndef GRPC_STATUS_H
#define GRPC_STATUS_H

#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

enum grpc_code {
	GRPC_OK = 0,
	GRPC_CANCELLED = 1,
	GRPC_UNKNOWN = 2,
	GRPC_INVALID_ARGUMENT = 3,
	GRPC_DEADLINE_EXCEEDED = 4,
	GRPC_NOT_FOUND = 5,
	GRPC_ALREADY_EXISTS = 6,
	GRPC_PERMISSION_DENIED = 7,
	GRPC_RESOURCE_EXHAUSTED = 8,
	GRPC_FAILED_PRECONDITION = 9,
	GRPC_ABORTED = 10,
	GRPC_OUT_OF_RANGE = 11,
	GRPC_UNIMPLEMENTED = 12,
	GRPC_INTERNAL = 13,
	GRPC_UNAVAILABLE = 14,
	GRPC_DATA_LOSS = 15,
	GRPC_UNAUTHENTICATED = 16,
};

#define GRPC_CODES 17
#define GRPC_DETAILS_MAX 1024u

struct grpc_status {
	enum grpc_code code;
	char message[ERROR_TEXT_MAX];      /* UTF-8, for a person; percent-encoded on the wire */
	uint8_t details[GRPC_DETAILS_MAX]; /* a serialised google.rpc.Status; none where len is 0 */
	size_t details_len;
};

/* "NOT_FOUND"; "UNKNOWN" for what is no code. */
const char *grpc_code_name(unsigned int code);

#endif
