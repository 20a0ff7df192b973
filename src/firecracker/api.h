/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Firecracker's API: HTTP over a unix socket.
 *
 * It is served by the thread that also does what it is asked for: while a snapshot is loaded
 * nothing else is answered, and where a page is missing that the load touches, that may be for
 * ever. So a call can be begun, and what it waits for be done meanwhile.
 *
 * Only this file knows libcurl. curl_global_init() is main's.
 */
#ifndef FIRECRACKER_API_H
#define FIRECRACKER_API_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "util/error.h"

struct api_call;

/* What a microVM is, by "GET /". */
enum api_state {
	API_NOT_STARTED,
	API_RUNNING,
	API_PAUSED,
};

/* @json: the body; NULL: none. Return: 0; or -errno with @err set. */
int api_begin(const char *socket, const char *method, const char *path, const char *json,
              struct api_call **ret, struct error *err);

/*
 * api_wait() - until it is answered, one of @others is ready, or the time is over
 * @others: at most 4; their revents are set
 *
 * Return: 0, with *@ret_done; or -errno with @err set.
 */
int api_wait(struct api_call *call, struct pollfd *others, unsigned int n, int timeout_ms,
             bool *ret_done, struct error *err);

/*
 * api_result() - of a call that is done
 *
 * Return: 0; -EREMOTEIO where it has failed, with @err what Firecracker said; -ECONNRESET where it
 * has not answered.
 */
int api_result(const struct api_call *call, struct error *err);

/* Also of one that is not done: it may have its effect or not. NULL is allowed. Return: NULL. */
struct api_call *api_end(struct api_call *call);

/* All of it. Return: as api_result(); -ETIMEDOUT. */
int api_do(const char *socket, const char *method, const char *path, const char *json,
           int timeout_ms, struct error *err);

int api_get_state(const char *socket, int timeout_ms, enum api_state *ret, struct error *err);

/* "Paused" or "Resumed". */
int api_set_state(const char *socket, const char *state, struct error *err);

/* Bytes of guest memory, with all that may be plugged: of its memory file. */
int api_get_memory_bytes(const char *socket, uint64_t *ret, struct error *err);

#endif
