/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HELLO and HELLO_REPLY: proto/postcopy/v1/stream.proto, checked and as plain structs.
 */
#ifndef STREAM_HELLO_H
#define STREAM_HELLO_H

#include "mem/region.h"
#include "stream/frame.h"

#define TOKEN_BYTES 32
#define HOLDER_BYTES 16
#define MIGRATION_ID_MAX POSTCOPY_ID_MAX

enum stream_role {
	STREAM_CONTROL = 1,
	STREAM_URGENT = 2,
	STREAM_BULK = 3,
};

struct hello {
	enum stream_role role;
	char migration_id[MIGRATION_ID_MAX + 1];
	uint8_t token[TOKEN_BYTES];
	uint8_t holder[HOLDER_BYTES]; /* who dials: this destination and no other; never all 0 */
	uint64_t epoch; /* of the attachment meant; 0: on CONTROL, whichever there is */
	struct region_table regions; /* CONTROL only */
};

struct hello_reply {
	uint64_t epoch;
	struct region_table regions; /* CONTROL only */
};

/*
 * Whole frames into @buf of FRAME_HEADER_BYTES + FRAME_HELLO_MAX bytes, which any table
 * of REGIONS_MAX fits. Return: the frame's length.
 */
size_t hello_encode(const struct hello *hello, void *buf);
size_t hello_reply_encode(const struct hello_reply *reply, void *buf);

/*
 * hello_decode() - check a HELLO's payload
 *
 * Return: 0; -EPROTO or -EINVAL with @err set; -ENOMEM.
 */
int hello_decode(const void *payload, size_t len, struct hello *ret, struct error *err);
int hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret, struct error *err);

const char *stream_role_name(enum stream_role role);

#endif
