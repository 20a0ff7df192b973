/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a peer is, and what a method takes at least: each may do what those before it may. A method
 * that nobody has given a role is nobody's to call.
 */
#ifndef GRPC_ROLE_H
#define GRPC_ROLE_H

#include <stdbool.h>

enum grpc_role {
	GRPC_NOBODY,
	GRPC_READER,   /* looks */
	GRPC_OPERATOR, /* changes things */
};

static inline bool grpc_role_suffices(enum grpc_role is, enum grpc_role takes)
{
	return takes != GRPC_NOBODY && is >= takes;
}

/* "reader", "operator"; "nobody" */
const char *grpc_role_name(enum grpc_role role);

#endif
