/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trail of who has changed what: a record in the log for each call of a method that takes an
 * operator, with its result, also where the caller is none.
 */
#ifndef RPC_AUDIT_H
#define RPC_AUDIT_H

#include "grpc/server.h"

/* A name, an address or a program, and some words. */
#define AUDIT_CALLER_MAX 384

/* Who calls, for a person: "uid 1000 (process 4242, virsh)". */
void audit_print_caller(const struct grpc_peer *peer, char ret[AUDIT_CALLER_MAX]);

/*
 * audit_call() - a call of a unary method that has been done, or refused; before it is finished
 * @request: as it came: the id of its migration is read from it
 * @text: why it was refused; empty where it was not
 *
 * Nothing is written where the method changes nothing.
 */
void audit_call(const struct grpc_call *call, const uint8_t *request, size_t len,
                enum grpc_code code, const char *text);

#endif
