/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gRPC's own encodings: messages in pieces, compressed or not, and what stands in headers. The
 * first byte chooses which; of messages the second is the size of the pieces.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "grpc/wire.h"

#define MESSAGE_MAX 4096u

const unsigned int fuzz_rounds = 200000;

static void check_messages(const uint8_t *data, size_t size)
{
	size_t piece = 1 + data[0] % 64;
	struct grpc_assembly a;
	int rc = 0;

	grpc_assembly_init(&a, MESSAGE_MAX);
	a.gzip = data[0] & 128;
	data++;
	size--;
	while (size && rc >= 0) {
		size_t n = size < piece ? size : piece, left = n;
		const uint8_t *at = data;

		rc = grpc_assembly_feed(&a, &at, &left);
		FUZZ_CHECK(left <= n && at == data + (n - left));
		FUZZ_CHECK(rc == 1 || rc == -EMSGSIZE || rc == -ENOTSUP || rc == -EPROTO ||
		           (!rc && !left));
		FUZZ_CHECK(rc || grpc_assembly_partial(&a));
		FUZZ_CHECK(a.have <= MESSAGE_MAX && (rc < 0 || a.have <= a.allocated || !a.have));
		if (rc == 1) {
			FUZZ_CHECK(a.have == a.len && (!a.have || a.message));
			grpc_assembly_next(&a);
			FUZZ_CHECK(!grpc_assembly_partial(&a));
		}
		data = at;
		size -= n - left;
	}
	grpc_assembly_deinit(&a);
}

static void check_headers(const char *text, size_t len)
{
	static char out[FUZZ_INPUT_MAX + 1], again[GRPC_PERCENT_SIZE(FUZZ_INPUT_MAX)];
	static uint8_t bytes[FUZZ_INPUT_MAX];
	uint64_t ns, back;
	char timeout[GRPC_TIMEOUT_SIZE];
	size_t n, small;

	n = grpc_percent_decode(text, len, out, sizeof out);
	FUZZ_CHECK(n <= len && !out[n]);
	small = grpc_percent_decode(text, len, again, 1 + len / 2);
	FUZZ_CHECK(small <= len / 2 && !again[small] && !memcmp(again, out, small));
	/* What we say ourselves comes back. */
	if (strlen(out) == n) {
		static char twice[FUZZ_INPUT_MAX + 1];
		size_t encoded = grpc_percent_encode(out, again, sizeof again);

		FUZZ_CHECK(encoded == strlen(again));
		FUZZ_CHECK(grpc_percent_decode(again, encoded, twice, sizeof twice) == n);
		FUZZ_CHECK(!memcmp(twice, out, n));
	}
	if (!grpc_base64_decode(text, len, bytes, sizeof bytes, &n)) {
		FUZZ_CHECK(n <= len * 3 / 4);
		grpc_base64_encode(bytes, n, again);
		FUZZ_CHECK(!grpc_base64_decode(again, strlen(again), bytes, n, &small) &&
		           small == n);
	}
	if (grpc_timeout_decode(text, len, &ns))
		return;
	FUZZ_CHECK(len >= 2 && len <= 9);
	/* Never shorter than what was said. */
	if (ns / 1000000 <= UINT32_MAX / 2) {
		grpc_timeout_encode((unsigned int)(ns / 1000000), timeout);
		FUZZ_CHECK(!grpc_timeout_decode(timeout, strlen(timeout), &back));
		FUZZ_CHECK(back >= ns / 1000000 * 1000000);
	}
}

int fuzz_one(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	if (data[0] & 1)
		check_messages(data + 1, size - 1);
	else
		check_headers((const char *)data + 1, size - 1);
	return 0;
}

/* @n bytes, compressed, with the prefix. */
static size_t put_gzip(uint8_t *to, size_t n)
{
	static uint8_t plain[8192];
	z_stream z = { .next_in = plain,
		       .avail_in = (uInt)n,
		       .next_out = to + GRPC_PREFIX_BYTES,
		       .avail_out = FUZZ_INPUT_MAX / 4 };

	memset(plain, 'x', sizeof plain);
	FUZZ_CHECK(deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
	FUZZ_CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
	grpc_prefix_encode(to, (uint32_t)z.total_out);
	to[0] = 1;
	n = GRPC_PREFIX_BYTES + z.total_out;
	deflateEnd(&z);
	return n;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const texts[] = { "10S", "99999999H", "not%20found%",
		                             "AAEC/w==", "AAE" };
	uint8_t *p = buf;

	if (i < 5) {
		*p++ = 0;
		memcpy(p, texts[i], strlen(texts[i]));
		return 1 + strlen(texts[i]);
	}
	*p++ = 1;
	switch (i) {
	case 5:
		*p++ = 3;
		for (uint32_t n = 0; n < 12; n += 4) {
			grpc_prefix_encode(p, n);
			p += GRPC_PREFIX_BYTES + n;
		}
		return (size_t)(p - buf);
	case 6:
	case 7:
		*p++ = 128 + 63;
		p += put_gzip(p, i == 6 ? 100 : 5000);
		return (size_t)(p - buf);
	default:
		return 0;
	}
}
