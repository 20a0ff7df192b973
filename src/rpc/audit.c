/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/audit.h"

#include <stdio.h>
#include <string.h>

#include "migrate/migrate.h"
#include "rpc/message.h"
#include "util/log.h"

void audit_print_caller(const struct grpc_peer *peer, char ret[AUDIT_CALLER_MAX])
{
	if (!peer->local)
		snprintf(ret, AUDIT_CALLER_MAX, "\"%s\" at %s", peer->name, peer->address);
	else
		snprintf(ret, AUDIT_CALLER_MAX, "%s (process %d%s%s)", peer->name, peer->pid,
		         *peer->comm ? ", " : "", peer->comm);
}

/* The migration's id; empty where none can be meant. */
static void find_id(const uint8_t *request, size_t len, char ret[MIGRATION_ID_MAX + 1])
{
	if (message_string(request, len, 1, ret, MIGRATION_ID_MAX + 1) ||
	    migration_id_check(ret, NULL))
		*ret = 0;
}

/* The flood of one who may not is bounded; what an operator has done is always told. */
static void tell(enum grpc_code code, const char *id, const struct log_field *fields,
                 const char *text)
{
	if (code == GRPC_PERMISSION_DENIED)
		LOG_AT(false, LOG_LEVEL_WARNING, id, fields, "%s", text);
	else
		log_event(LOG_LEVEL_INFO, id, fields, "%s", text);
}

void audit_call(const struct grpc_call *call, const uint8_t *request, size_t len,
                enum grpc_code code, const char *text)
{
	const struct grpc_method *method = grpc_call_method(call);
	const struct grpc_peer *peer = grpc_call_peer(call);
	const char *result = grpc_code_name(code);
	char id[MIGRATION_ID_MAX + 1], caller[AUDIT_CALLER_MAX], uid[16], pid[16];
	char message[ERROR_TEXT_MAX + AUDIT_CALLER_MAX + 128];

	if (method->role != GRPC_OPERATOR)
		return;
	find_id(request, len, id);
	audit_print_caller(peer, caller);
	snprintf(uid, sizeof uid, "%u", peer->uid);
	snprintf(pid, sizeof pid, "%d", peer->pid);
	snprintf(message, sizeof message, "%s by %s: %s%s%s", strrchr(method->path, '/') + 1,
	         caller, result, *text ? ": " : "", text);
	tell(code, *id ? id : NULL,
	     LOG_FIELDS({ "AUDIT_METHOD", method->path }, { "AUDIT_CALLER", peer->name },
	                { "AUDIT_ROLE", grpc_role_name(peer->role) }, { "AUDIT_RESULT", result },
	                { "AUDIT_UID", peer->local ? uid : NULL },
	                { "AUDIT_PID", peer->local ? pid : NULL }, { "AUDIT_COMM", peer->comm },
	                { "AUDIT_ADDRESS", peer->address }),
	     message);
}
