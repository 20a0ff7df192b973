/* SPDX-License-Identifier: Apache-2.0 */
/* What the harnesses of HTTP/2 sessions share: frames, to begin with and to be counted. */
#ifndef TESTS_FUZZ_HTTP2_H
#define TESTS_FUZZ_HTTP2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HTTP2_HEAD_BYTES 9u

static uint64_t http2_frames;

static void http2_print(void)
{
	printf("frames: %llu\n", (unsigned long long)http2_frames);
}

/* How many frames were tried, told at the end: a session takes long, and has several. */
static void http2_count(const uint8_t *data, size_t size)
{
	static bool told;

	if (!told)
		told = !atexit(http2_print);
	while (size >= HTTP2_HEAD_BYTES) {
		size_t len =
		        HTTP2_HEAD_BYTES + ((size_t)data[0] << 16 | (size_t)data[1] << 8 | data[2]);

		http2_frames++;
		if (len >= size)
			return;
		data += len;
		size -= len;
	}
}

/* Return: behind it. */
static uint8_t *http2_put(uint8_t *p, uint8_t type, uint8_t flags, uint8_t stream,
                          const void *payload, size_t len)
{
	const uint8_t head[HTTP2_HEAD_BYTES] = {
		(uint8_t)(len >> 16),
		(uint8_t)(len >> 8),
		(uint8_t)len,
		type,
		flags,
		0,
		0,
		0,
		stream,
	};

	memcpy(p, head, sizeof head);
	if (len)
		memcpy(p + sizeof head, payload, len);
	return p + sizeof head + len;
}

#endif
