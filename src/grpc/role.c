/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/role.h"

const char *grpc_role_name(enum grpc_role role)
{
	static const char *const names[] = {
		[GRPC_NOBODY] = "nobody",
		[GRPC_READER] = "reader",
		[GRPC_OPERATOR] = "operator",
	};

	return names[role];
}
