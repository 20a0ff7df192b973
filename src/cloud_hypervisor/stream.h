/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream to a Cloud Hypervisor: requests and answers, whole, with their descriptors.
 *
 * What has begun to come is waited for, a while: its sender is on this host, and writes each in one
 * go. A stream that ends, or stands still in the middle of one, is of no more use.
 */
#ifndef CLOUD_HYPERVISOR_STREAM_H
#define CLOUD_HYPERVISOR_STREAM_H

#include "cloud_hypervisor/wire.h"

/* For what has begun to come, or to be sent. */
#define CH_STREAM_TIMEOUT_MS 10000u

/* Return: 0, or -errno with @err. */
int ch_stream_connect(const char *path, int *ret_sock, struct error *err);

/* Have calls on it end in time. Return: 0, or -errno with @err. */
int ch_stream_settle(int sock, struct error *err);

/*
 * ch_stream_read() - @len bytes
 * @ret_fd: the one descriptor that may come with them, or -1; NULL: none may
 *
 * Return: 0; -EPIPE at the end of the stream; -ETIMEDOUT; -EPROTO for descriptors that nobody
 * asked for; with @err.
 */
int ch_stream_read(int sock, void *buf, size_t len, int *ret_fd, struct error *err);

/* A request without what follows it. Return: as ch_stream_read() and ch_request_decode(). */
int ch_stream_read_request(int sock, struct ch_request *ret, struct error *err);

/* Return: 0, or -errno (-EPIPE) with @err. */
int ch_stream_write(int sock, const void *data, size_t len, struct error *err);
int ch_stream_answer(int sock, enum ch_status status, struct error *err);

/* A request, and what follows it; @fd, if it is not -1, goes with that. */
int ch_stream_request(int sock, enum ch_command command, const void *payload, size_t len, int fd,
                      struct error *err);

/* Wait for input. Return: 0, or -ETIMEDOUT with @err saying what for. */
int ch_stream_await(int sock, int timeout_ms, const char *what, struct error *err);

#endif
