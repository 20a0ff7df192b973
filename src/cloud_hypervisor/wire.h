/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cloud Hypervisor's migration protocol, version 0, as it speaks with a peer on its own host.
 *
 * Theory of operation
 * -------------------
 * A unix stream socket. Who has the guest asks, the other answers each request; all little-endian:
 *
 *   request    u16 command, 6 bytes (of Start: u16 version, 4 bytes of no meaning), u64 length
 *   response   u16 status (1 ok, 2 error), 6 bytes, u64 length
 *
 * `send-migration destination_url=unix:PATH,local=on`: it connects to PATH and says
 *
 *   Start; for each memory slot MemoryFd (u32 slot, with the slot's file by SCM_RIGHTS); Config
 * (JSON)
 *   -- when Config is answered it pauses the guest --
 *   State (JSON); Complete where the guest ran, CompletePaused where it was paused before
 *
 * Answered ok it ends, and the guest with it; by an error, or the end of the connection, it has the
 * guest run on (one that was paused before stays so).
 *
 * `receive-migration receiver_url=unix:PATH,memory_mode=postcopy`: it listens at PATH, and is told
 * the same. It traps its memory (MISSING and MINOR) and asks for pages over a second connection to
 * the same PATH, which begins with a u16 role (2): PageFault (u64 guest physical address, u64
 * length), one at a time, and maps the page when it is answered, which must be in the file then.
 * That connection must be there between Config's answer and State. Where it ends early Cloud
 * Hypervisor exits. It asks for all pages one by one, and closes it when it has them all.
 */
#ifndef CLOUD_HYPERVISOR_WIRE_H
#define CLOUD_HYPERVISOR_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "util/error.h"

#define CH_REQUEST_BYTES 16
#define CH_RESPONSE_BYTES 16
#define CH_SLOT_BYTES 4
#define CH_RANGE_BYTES 16
#define CH_ROLE_BYTES 2
#define CH_VERSION 0
#define CH_CONFIG_MAX (8u << 20)
#define CH_STATE_MAX (64u << 20)
#define CH_PAGE_MAX (1ull << 30)

enum ch_command {
	CH_START = 1,
	CH_CONFIG = 2,
	CH_STATE = 3,
	CH_MEMORY = 4, /* memory by copy; never on one host */
	CH_COMPLETE = 5,
	CH_ABANDON = 6,
	CH_MEMORY_FD = 7,
	CH_COMPLETE_PAUSED = 8,
	CH_PAGE_FAULT = 9,
};

enum ch_status {
	CH_OK = 1,
	CH_ERROR = 2,
};

enum ch_role {
	CH_ROLE_PRECOPY = 1,
	CH_ROLE_FAULT = 2,
};

struct ch_request {
	enum ch_command command;
	uint16_t version; /* of Start; else 0 */
	uint64_t length;  /* of what follows */
};

/* What a PageFault asks for. */
struct ch_range {
	uint64_t guest_phys_addr;
	uint64_t len;
};

/* "Start" and so on. */
const char *ch_command_name(enum ch_command command);

/* Into CH_REQUEST_BYTES at @buf. */
void ch_request_encode(const struct ch_request *q, void *buf);

/*
 * ch_request_decode() - CH_REQUEST_BYTES at @buf
 *
 * Return: 0; -EPROTO where the command is unknown or its length impossible; -EPROTONOSUPPORT for
 * another version; with @err naming it.
 */
int ch_request_decode(const void *buf, struct ch_request *ret, struct error *err);

/* Into CH_RESPONSE_BYTES at @buf. None that we give has anything after it. */
void ch_response_encode(enum ch_status status, void *buf);

/*
 * ch_response_decode() - CH_RESPONSE_BYTES at @buf
 *
 * Return: 0 with the status; -EPROTO with @err where it is none, or has a payload.
 */
int ch_response_decode(const void *buf, enum ch_status *ret, struct error *err);

void ch_range_encode(const struct ch_range *range, void *buf);

/* CH_RANGE_BYTES at @buf: whole pages of 4 KiB. Return: 0, or -EPROTO with @err. */
int ch_range_decode(const void *buf, struct ch_range *ret, struct error *err);

#endif
