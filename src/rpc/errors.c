/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/errors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "util/utf8.h"

#define DOMAIN "postcopyd"
#define ERROR_INFO_TYPE "type.googleapis.com/google.rpc.ErrorInfo"
#define REASON_PREFIX "ERROR_REASON_"
#define REASON(name) POSTCOPY__V1__ERROR_REASON__ERROR_REASON_##name

/* By errno: its status code, and the reason where nobody has named a better one. */
static const struct {
	int error;
	enum grpc_code code;
	Postcopy__V1__ErrorReason reason;
} codes[] = {
	{ EINVAL, GRPC_INVALID_ARGUMENT, REASON(INVALID_FIELD) },
	{ ENOENT, GRPC_NOT_FOUND, REASON(MIGRATION_NOT_FOUND) },
	{ EEXIST, GRPC_ALREADY_EXISTS, REASON(MIGRATION_EXISTS) },
	{ EBUSY, GRPC_FAILED_PRECONDITION, REASON(WRONG_STATE) },
	{ EOPNOTSUPP, GRPC_FAILED_PRECONDITION, REASON(NOT_SUPPORTED) },
	{ ENOSYS, GRPC_UNIMPLEMENTED, REASON(NOT_SUPPORTED) },
	{ EPERM, GRPC_PERMISSION_DENIED, REASON(PERMISSION) },
	{ EACCES, GRPC_PERMISSION_DENIED, REASON(PERMISSION) },
	{ ENOMEM, GRPC_RESOURCE_EXHAUSTED, REASON(OUT_OF_MEMORY) },
	{ EMSGSIZE, GRPC_RESOURCE_EXHAUSTED, REASON(INVALID_REQUEST) },
	{ ENOBUFS, GRPC_RESOURCE_EXHAUSTED, REASON(TOO_MANY) },
	{ EUSERS, GRPC_RESOURCE_EXHAUSTED, REASON(TOO_MANY) },
	{ EMFILE, GRPC_RESOURCE_EXHAUSTED, REASON(TOO_MANY) },
	{ EDQUOT, GRPC_RESOURCE_EXHAUSTED, REASON(TOO_MANY) },
	{ EAGAIN, GRPC_UNAVAILABLE, REASON(INTERNAL) },
};

int rpc_error_field(struct rpc_error *e, const char *field, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_setv(&e->error, -EINVAL, fmt, ap);
	va_end(ap);
	error_prefix(&e->error, "%s", field);
	e->reason = REASON(INVALID_FIELD);
	rpc_error_metadata(e, "field", "%s", field);
	return -EINVAL;
}

int rpc_error_set(struct rpc_error *e, int code, Postcopy__V1__ErrorReason reason, const char *fmt,
                  ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_setv(&e->error, code, fmt, ap);
	va_end(ap);
	e->reason = reason;
	return code;
}

void rpc_error_metadata(struct rpc_error *e, const char *key, const char *fmt, ...)
{
	va_list ap;

	e->key = key;
	va_start(ap, fmt);
	vsnprintf(e->value, sizeof e->value, fmt, ap);
	va_end(ap);
}

enum grpc_code rpc_error_code(int code)
{
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
		if (codes[i].error == -code)
			return codes[i].code;
	return GRPC_INTERNAL;
}

/* "MIGRATION_NOT_FOUND" */
static const char *reason_name(const struct rpc_error *e)
{
	Postcopy__V1__ErrorReason reason = e->reason;
	const ProtobufCEnumValue *value;

	for (size_t i = 0; !reason && i < sizeof codes / sizeof *codes; i++)
		if (codes[i].error == -e->error.code)
			reason = codes[i].reason;
	value = protobuf_c_enum_descriptor_get_value(&postcopy__v1__error_reason__descriptor,
	                                             reason ? (int)reason : (int)REASON(INTERNAL));
	return value->name + strlen(REASON_PREFIX);
}

/* The details, where they fit: without them the status is still whole. */
static void pack_details(struct grpc_status *status, const Google__Rpc__ErrorInfo *info)
{
	uint8_t bytes[GRPC_DETAILS_MAX];
	Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT, *details = &any;
	Google__Rpc__Status message = GOOGLE__RPC__STATUS__INIT;

	if (google__rpc__error_info__get_packed_size(info) > sizeof bytes)
		return;
	any.type_url = (char *)ERROR_INFO_TYPE;
	any.value.len = google__rpc__error_info__pack(info, bytes);
	any.value.data = bytes;
	message.code = (int32_t)status->code;
	message.message = status->message;
	message.n_details = 1;
	message.details = &details;
	if (google__rpc__status__get_packed_size(&message) <= sizeof status->details)
		status->details_len = google__rpc__status__pack(&message, status->details);
}

void rpc_error_status(const struct rpc_error *e, struct grpc_status *ret)
{
	Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
	Google__Rpc__ErrorInfo__MetadataEntry entry = GOOGLE__RPC__ERROR_INFO__METADATA_ENTRY__INIT;
	Google__Rpc__ErrorInfo__MetadataEntry *entries = &entry;
	char value[RPC_METADATA_MAX];

	*ret = (struct grpc_status){ .code = rpc_error_code(e->error.code) };
	memcpy(ret->message, e->error.text, sizeof ret->message);
	utf8_clean(ret->message);
	info.reason = (char *)reason_name(e);
	info.domain = (char *)DOMAIN;
	if (e->key) {
		memcpy(value, e->value, sizeof value);
		utf8_clean(value);
		entry.key = (char *)e->key;
		entry.value = value;
		info.n_metadata = 1;
		info.metadata = &entries;
	}
	pack_details(ret, &info);
}
