/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page stream's frames.
 *
 * Theory of operation
 * -------------------
 * The destination pulls: it dials the source over TLS 1.3 (ALPN "postcopy/1") and
 * sends HELLO (protobuf, proto/postcopy/v1/stream.proto) with a proof that it knows the
 * migration's token; the source answers with its own, PROOF, and HELLO_REPLY or ERROR. One who
 * does not know the token answers ERROR alone (stream/hello.h). From then on the connection carries
 * frames of a fixed header and, by type, a fixed payload, all little-endian:
 *
 *   u16 type, u16 flags (0), u32 payload_len (without this header), u64 request_id
 *
 * Memory is counted in units of 4 KiB whatever the host pages are, so that 4 KiB,
 * 2 MiB and 1 GiB pages share one page state, one wire and one source. 64 units in a
 * row, aligned, are a word: a GET asks for some units of one word by a 64-bit mask,
 * and one PAGES answers one GET with three masks, the units whose bytes follow, the
 * units that are zero and the units that the source can't read (a memory error, poison);
 * no two of them overlap, and together they are exactly what was asked. So the largest
 * answer is 256 KiB and no field needs a length that could lie. Many GETs may be in
 * flight; answers keep their order.
 *
 *   CONTROL:  SWITCHOVER -> ; <- VMSTATE, VMSTATE_DATA... ; RESUMED -> ;
 *             COMPLETE -> ; <- COMPLETE_ACK        or    ABORT -> ; <- ABORT_ACK
 *             SWITCHOVER -> ; <- VMSTATE_AHEAD..., VMSTATE, VMSTATE_DATA...
 *     warm:   TRACK -> ; <- TRACKED ; SYNC -> ; <- DIRTY... or TRACKED ; ... ;
 *             SWITCHOVER -> ; <- DIRTY..., VMSTATE, VMSTATE_DATA...
 *   URGENT, BULK:  GET -> ; <- PAGES
 *   any:      PING -> ; <- PONG    and, when it was just opened, PROBE -> ; <- PROBE_REPLY
 *   any:      <- ERROR, then the source closes
 *
 * Warm: pages may come while the guest runs at the source. TRACK, to a source that has said in
 * HELLO_REPLY that it knows it, has what the guest writes logged from then on, and each SYNC is
 * answered with all that was written since TRACK or the SYNC before (stream/dirty.h). The log is
 * cleared before it is told of: what is written after that is in the next. A source that can't log,
 * or can't any more, says why by TRACKED. The log belongs to the connection on which it was asked
 * for, and ends with it; but for the last harvest, of the guest that SWITCHOVER has paused: it is
 * kept with the vmstate, and told before it each time that SWITCHOVER is said. A VMSTATE without
 * DIRTY before it says that nothing is known: of what came before, nothing counts.
 *
 * A vmstate may come ahead, while it is still being saved, to a destination that has said in HELLO
 * that it knows VMSTATE_AHEAD: before DIRTY and VMSTATE, and of each SWITCHOVER's answer anew. It
 * is a hint: VMSTATE_DATA has all of it again, and that alone counts.
 *
 * ABORT's text is for people, and may be empty; it is, to a source that has not said in HELLO_REPLY
 * that it takes one.
 */
#ifndef STREAM_FRAME_H
#define STREAM_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mem/region.h"
#include "util/error.h"

/* 2: PAGES has an error mask. 3: the token is proven, and sent no more. */
#define STREAM_VERSION 3
#define STREAM_ALPN "postcopy/1"

#define FRAME_HEADER_BYTES 16
#define FRAME_GET_BYTES 24
#define FRAME_PAGES_BYTES 40
#define FRAME_VMSTATE_BYTES 24
#define FRAME_PROOF_BYTES 32
#define FRAME_DIRTY_BYTES 16                  /* payload of DIRTY before its runs */
#define FRAME_HELLO_MAX 32768                 /* payload of HELLO and HELLO_REPLY */
#define FRAME_ERROR_MAX 512                   /* payload of ERROR and TRACKED */
#define FRAME_ABORT_MAX 512                   /* payload of ABORT */
#define FRAME_DIRTY_MAX (256u * 1024u)        /* payload of DIRTY */
#define FRAME_PROBE_BYTES (64u * 1024u)       /* payload of PROBE: many packets, of any MTU */
#define FRAME_VMSTATE_DATA_MAX (256u * 1024u) /* payload of VMSTATE_DATA and VMSTATE_AHEAD */
#define FRAME_PAGES_MAX (FRAME_HEADER_BYTES + FRAME_PAGES_BYTES + WORD_UNITS * UNIT_BYTES)

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_HELLO_REPLY = 2,
	FRAME_ERROR = 3,        /* u32 code (positive errno), then text */
	FRAME_GET = 4,          /* struct frame_get */
	FRAME_PAGES = 5,        /* struct frame_pages, then the bytes of each unit in data_mask */
	FRAME_SWITCHOVER = 6,   /* no payload: pause the guest. Sent again after a lost connection
	                         * it asks for the same vmstate again. */
	FRAME_VMSTATE = 7,      /* struct frame_vmstate; VMSTATE_DATA frames of that total follow */
	FRAME_VMSTATE_DATA = 8, /* bytes */
	FRAME_RESUMED = 9,      /* no payload: the guest runs at the destination */
	FRAME_COMPLETE = 10,    /* no payload: every page is there */
	FRAME_COMPLETE_ACK = 11, /* no payload: the source lets go */
	FRAME_ABORT = 12,     /* text: the destination has not run the guest and never will; why */
	FRAME_ABORT_ACK = 13, /* no payload: the guest runs on at the source */
	FRAME_PING = 14,      /* no payload: is the source still there? On an idle connection. */
	FRAME_PONG = 15,      /* no payload: its answer */
	FRAME_PROBE = 16,     /* FRAME_PROBE_BYTES: do packets of full size get through? */
	FRAME_PROBE_REPLY = 17, /* the same bytes back */
	FRAME_PROOF = 18,       /* FRAME_PROOF_BYTES: the source knows the token, too */
	FRAME_TRACK = 19,       /* no payload: log what the guest writes from now on */
	FRAME_TRACKED = 20,     /* u32 code (0: it is logged; else positive errno), then text */
	FRAME_SYNC = 21,        /* no payload: what has been written? */
	FRAME_DIRTY = 22,       /* struct frame_dirty, then runs (stream/dirty.h) */
	FRAME_VMSTATE_AHEAD =
	        23, /* bytes: what is there of the vmstate already, from its begin on */
};

struct frame_header {
	uint16_t type;
	uint32_t payload_len; /* bytes */
	uint64_t request_id;  /* of a GET, echoed by its PAGES; else 0 */
};

struct frame_get {
	uint32_t region;
	uint64_t first_unit; /* multiple of WORD_UNITS */
	uint64_t want_mask;  /* bit i: unit first_unit + i; not 0 */
};

struct frame_pages {
	uint32_t region;
	uint64_t first_unit;
	uint64_t data_mask; /* units whose bytes follow, lowest first */
	uint64_t zero_mask; /* units that are all zero */
	/* Units that can't be read: what was in them is lost. data | zero | error == want. */
	uint64_t error_mask;
};

struct frame_vmstate {
	uint64_t len;      /* bytes in the VMSTATE_DATA frames that follow */
	uint64_t pause_ns; /* PAUSE sent to the VMM -> its vmstate received; part of the downtime */
	uint64_t held_ns;  /* SWITCHOVER received -> this frame sent; the source's whole share */
};

/* A piece of a harvest. */
struct frame_dirty {
	uint32_t region;
	bool last;           /* of the harvest */
	uint64_t first_unit; /* where the first run's gap begins */
};

void frame_header_encode(const struct frame_header *h, void *buf);

/*
 * frame_header_decode() - check and read a header
 * @buf: FRAME_HEADER_BYTES
 *
 * Checks that the type is known and that the length is one this type can have.
 *
 * Return: 0 or -EPROTO with @err set.
 */
int frame_header_decode(const void *buf, struct frame_header *ret, struct error *err);

/* Header and payload. Return: the frame's length. */
size_t frame_get_encode(const struct frame_get *get, uint64_t request_id, void *buf);
size_t frame_pages_encode(const struct frame_pages *pages, uint64_t request_id, void *buf);
size_t frame_vmstate_encode(const struct frame_vmstate *vmstate, void *buf);
size_t frame_proof_encode(const uint8_t proof[FRAME_PROOF_BYTES], void *buf);
/* @buf: FRAME_HEADER_BYTES + FRAME_ERROR_MAX. Text too long is cut. */
size_t frame_error_encode(int code, const char *text, void *buf);
/* @buf: FRAME_HEADER_BYTES + FRAME_ABORT_MAX. Text too long is cut. */
size_t frame_abort_encode(const char *why, void *buf);
/* @code: 0: it is logged; else why not. As frame_error_encode(). */
size_t frame_tracked_encode(int code, const char *text, void *buf);
/* @runs_len: of the runs that lie behind header and fixed part in @buf already. */
size_t frame_dirty_encode(const struct frame_dirty *dirty, size_t runs_len, void *buf);

/*
 * Payloads. @payload holds exactly the header's payload_len bytes, but for PAGES, of
 * which it holds the first FRAME_PAGES_BYTES, and whose payload_len must be what the
 * data mask says; and DIRTY, whose runs are read by stream/dirty.h.
 *
 * Return: 0 or -EPROTO with @err set.
 */
int frame_get_decode(const void *payload, struct frame_get *ret, struct error *err);
int frame_pages_decode(const struct frame_header *h, const void *payload, struct frame_pages *ret,
                       struct error *err);
int frame_vmstate_decode(const void *payload, struct frame_vmstate *ret, struct error *err);
int frame_dirty_decode(const void *payload, struct frame_dirty *ret, struct error *err);

/* Return: 0: it is logged; else why not, as frame_error_decode(). */
int frame_tracked_decode(const struct frame_header *h, const void *payload, struct error *err);

/* Why the destination has given up, in @ret->text; empty where it does not say. */
void frame_abort_decode(const struct frame_header *h, const void *payload, struct error *ret);

/*
 * The peer's ERROR as ours: always negative, text prefixed "the source says", err->from_peer set.
 *
 * Codes that a destination acts on: EKEYREVOKED, the guest runs on at the source and must not here;
 * ESHUTDOWN, the source has let go; ESTALE, the source guest has been attached anew since; EBUSY,
 * another destination holds the migration; these count only where the source has proven itself.
 * EACCES, unknown there, or a wrong token. ECONNRESET and all that tells of the source's own
 * troubles: not now, ask again.
 */
int frame_error_decode(const struct frame_header *h, const void *payload, struct error *err);

#endif
