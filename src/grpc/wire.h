/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gRPC's own encodings, the same at both ends (grpc/doc/PROTOCOL-HTTP2.md): the five bytes before
 * each message, text and bytes in headers, timeouts.
 */
#ifndef GRPC_WIRE_H
#define GRPC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Before a message: 0 (1: compressed, by gzip), and its length, big-endian. */
#define GRPC_PREFIX_BYTES 5u

/* How long the encoded form of so many bytes is at most, with the NUL. */
#define GRPC_PERCENT_SIZE(len) (3u * (len) + 1u)
#define GRPC_BASE64_SIZE(len) (((len) + 2u) / 3u * 4u + 1u)
/* "99999999H" with the NUL. */
#define GRPC_TIMEOUT_SIZE 10u

/* What a compressed message may become: the loop waits for that, and it costs its sender nothing.
 */
#define GRPC_INFLATED_MAX (256u << 10)

void grpc_prefix_encode(uint8_t prefix[GRPC_PREFIX_BYTES], uint32_t len);

/*
 * Bytes as they come, made into messages. Memory grows with what has come and not with what a
 * prefix promises.
 */
struct grpc_assembly {
	size_t max; /* the longest message that is taken */
	bool gzip;  /* it may be compressed; not longer than GRPC_INFLATED_MAX then */
	uint8_t prefix[GRPC_PREFIX_BYTES];
	size_t prefix_have;
	uint8_t *message;
	size_t len; /* promised by the prefix */
	size_t have;
	size_t allocated;
};

void grpc_assembly_init(struct grpc_assembly *a, size_t max);
void grpc_assembly_deinit(struct grpc_assembly *a);

/*
 * grpc_assembly_feed() - take bytes up to the end of a message
 * @data: moved on behind what was taken, with @len
 *
 * Return: 1 for a message, which is in @a (message, have) until grpc_assembly_next(); 0 where
 * all was taken and none is complete; -EMSGSIZE (above the maximum), -ENOTSUP (compressed, which
 * was not said before), -EPROTO (a flag that does not exist, or no gzip), -ENOMEM.
 */
int grpc_assembly_feed(struct grpc_assembly *a, const uint8_t **data, size_t *len);

/* Forget the message; the next one may be fed. */
void grpc_assembly_next(struct grpc_assembly *a);

/* Whether a message has begun and is not complete. */
bool grpc_assembly_partial(const struct grpc_assembly *a);

/*
 * grpc_percent_encode() - text for grpc-message
 * @out: GRPC_PERCENT_SIZE(strlen(text)) bytes hold it; with fewer it is cut, never in an escape
 *
 * Return: its length, without the NUL.
 */
size_t grpc_percent_encode(const char *text, char *out, size_t size);

/* Decode; what is no valid escape stays as it is. @out is cut where it is full. Return: its length.
 */
size_t grpc_percent_decode(const char *text, size_t len, char *out, size_t size);

/* For "-bin" headers, without padding. @out: GRPC_BASE64_SIZE(len). Return: its length. */
size_t grpc_base64_encode(const void *data, size_t len, char *out);

/*
 * grpc_base64_decode() - padded or not
 *
 * Return: 0; -EINVAL for what is not base64; -ENOBUFS above @size bytes.
 */
int grpc_base64_decode(const char *text, size_t len, uint8_t *out, size_t size, size_t *ret_len);

/*
 * grpc_timeout_decode() - grpc-timeout: one to eight digits and a unit of "HMSmun"
 * @ret_ns: saturates
 *
 * Return: 0; -EINVAL
 */
int grpc_timeout_decode(const char *text, size_t len, uint64_t *ret_ns);
/* In milliseconds where eight digits can say it, else in seconds. */
void grpc_timeout_encode(unsigned int timeout_ms, char out[GRPC_TIMEOUT_SIZE]);

#endif
