/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HELLO and HELLO_REPLY: proto/postcopy/v1/stream.proto, checked and as plain structs; and the
 * proofs that go with them.
 *
 * Both ends know the migration's token, and neither ever says it: whoever answered would have it,
 * and with it the guest. The destination's proof is in HELLO, the source's comes as PROOF before
 * anything else of it counts. Each stands for its end, the protocol's version, and the HELLO's id,
 * role, holder and epoch; and for this very TLS connection, so that it is of no use on another
 * (tls_prove()): the random bytes of the handshake are the challenge to both, and no round trip is
 * needed for one.
 */
#ifndef STREAM_HELLO_H
#define STREAM_HELLO_H

#include "mem/region.h"
#include "stream/frame.h"
#include "tls/tls.h"

#define TOKEN_BYTES 32
#define HOLDER_BYTES 16
#define PROOF_BYTES FRAME_PROOF_BYTES
#define MIGRATION_ID_MAX POSTCOPY_ID_MAX
/* Of what an end's daemon says that it is, with its NUL. */
#define DAEMON_VERSION_BYTES 32

enum stream_role {
	STREAM_CONTROL = 1,
	STREAM_URGENT = 2,
	STREAM_BULK = 3,
};

struct hello {
	enum stream_role role;
	char migration_id[MIGRATION_ID_MAX + 1];
	uint8_t holder[HOLDER_BYTES]; /* who dials: this destination and no other; never all 0 */
	uint64_t epoch; /* of the attachment meant; 0: on CONTROL, whichever there is */
	/* Who dials: borrowed; they do not travel. */
	const uint8_t *token; /* TOKEN_BYTES */
	const char *peer;     /* the name that the source's certificate must have; NULL: any */
	/* Who is dialled: */
	uint8_t proof[PROOF_BYTES];
	char daemon_version[DAEMON_VERSION_BYTES]; /* for people; empty: it does not say */
	bool ahead;                                /* CONTROL: it takes VMSTATE_AHEAD */
	struct region_table regions;               /* CONTROL only */
};

struct hello_reply {
	uint64_t epoch;
	/* CONTROL, of a source that knows it; a daemon of before does not: */
	bool warm;       /* TRACK */
	bool abort_text; /* ABORT with a text */
	/* How many urgent connections of one migration it keeps; 0: a daemon of before, one. */
	uint32_t urgents;
	/* For who has dialled; as the hello's. */
	char daemon_version[DAEMON_VERSION_BYTES];
	struct region_table regions; /* CONTROL only */
};

enum hello_end {
	HELLO_DESTINATION = 1,
	HELLO_SOURCE = 2,
};

/*
 * hello_prove() - the proof of one end
 * @hello: that was said on @tls; its token and proof don't matter
 *
 * Return: 0 or -ENOMEM.
 */
int hello_prove(const struct hello *hello, const struct tls *tls, enum hello_end end,
                const uint8_t token[TOKEN_BYTES], uint8_t ret[PROOF_BYTES]);
/* Return: 0; -EACCES: it does not know the token; -ENOMEM: we can't tell. */
int hello_check_proof(const struct hello *hello, const struct tls *tls, enum hello_end end,
                      const uint8_t token[TOKEN_BYTES], const uint8_t proof[PROOF_BYTES]);

/*
 * Whole frames into @buf of FRAME_HEADER_BYTES + FRAME_HELLO_MAX bytes, which any table
 * of REGIONS_MAX fits. Return: the frame's length.
 */
size_t hello_encode(const struct hello *hello, const uint8_t proof[PROOF_BYTES], void *buf);
size_t hello_reply_encode(const struct hello_reply *reply, void *buf);

/*
 * hello_decode() - check a HELLO's payload; but for its proof, which hello_check_proof() does
 *
 * Return: 0; -EPROTO or -EINVAL with @err set; -ENOMEM.
 */
int hello_decode(const void *payload, size_t len, struct hello *ret, struct error *err);
int hello_reply_decode(const void *payload, size_t len, struct hello_reply *ret, struct error *err);

const char *stream_role_name(enum stream_role role);

#endif
