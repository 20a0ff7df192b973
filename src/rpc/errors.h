/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a call failed, and how that is told: a gRPC status code, a line for a person, and for
 * programs a google.rpc.Status with an ErrorInfo (the errors of control.proto).
 */
#ifndef RPC_ERRORS_H
#define RPC_ERRORS_H

#include "grpc/status.h"
#include "postcopy/v1/control.pb-c.h"
#include "util/error.h"

#define RPC_METADATA_MAX 64

struct rpc_error {
	struct error error; /* its code names the status code, and the reason where none is set */
	Postcopy__V1__ErrorReason reason;
	const char *key; /* static; NULL: no metadata */
	char value[RPC_METADATA_MAX];
};

#define RPC_ERROR_INIT ((struct rpc_error){ .key = NULL })

/* A field of the request is wrong: @fmt goes on after its name. Return: -EINVAL. */
int rpc_error_field(struct rpc_error *e, const char *field, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* Any other failure with a reason of its own. Return: @code, a negative errno. */
int rpc_error_set(struct rpc_error *e, int code, Postcopy__V1__ErrorReason reason, const char *fmt,
                  ...) __attribute__((format(printf, 4, 5)));

/* What a program may want to know besides: @key must be static. */
void rpc_error_metadata(struct rpc_error *e, const char *key, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* The status code for a negative errno. */
enum grpc_code rpc_error_code(int code);

void rpc_error_status(const struct rpc_error *e, struct grpc_status *ret);

#endif
