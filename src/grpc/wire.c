/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/wire.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <zlib.h>

#include "util/clock.h"
#include "util/secret.h"

/* What a message's buffer begins with, and doubles from. */
/* zlib: gzip's header and trailer, the largest window. */
#define GZIP_WINDOW_BITS (16 + MAX_WBITS)
#define MESSAGE_BYTES_MIN 4096u
#define TIMEOUT_DIGITS_MAX 8u

void grpc_prefix_encode(uint8_t prefix[GRPC_PREFIX_BYTES], uint32_t len)
{
	uint32_t be = htobe32(len);

	prefix[0] = 0;
	memcpy(prefix + 1, &be, sizeof be);
}

void grpc_assembly_init(struct grpc_assembly *a, size_t max)
{
	*a = (struct grpc_assembly){ .max = max };
}

void grpc_assembly_deinit(struct grpc_assembly *a)
{
	secret_free(a->message);
	*a = (struct grpc_assembly){ .max = a->max, .gzip = a->gzip };
}

void grpc_assembly_next(struct grpc_assembly *a)
{
	grpc_assembly_deinit(a);
}

bool grpc_assembly_partial(const struct grpc_assembly *a)
{
	return a->prefix_have && (a->prefix_have < GRPC_PREFIX_BYTES || a->have < a->len);
}

static int check_prefix(struct grpc_assembly *a)
{
	uint32_t be;

	memcpy(&be, a->prefix + 1, sizeof be);
	a->len = be32toh(be);
	if (a->prefix[0] > 1)
		return -EPROTO;
	if (a->prefix[0] && !a->gzip)
		return -ENOTSUP;
	return a->len > a->max ? -EMSGSIZE : 0;
}

/* Return: the bytes taken, or -ENOMEM. */
static ssize_t take(struct grpc_assembly *a, const uint8_t *data, size_t len)
{
	size_t n = len < a->len - a->have ? len : a->len - a->have;

	if (a->have + n > a->allocated || !a->message) {
		size_t want = a->allocated ? a->allocated : MESSAGE_BYTES_MIN;
		uint8_t *grown;

		while (want < a->have + n)
			want *= 2;
		if (want > a->len)
			want = a->len;
		grown = secret_realloc(a->message, want);
		if (!grown)
			return -ENOMEM;
		a->message = grown;
		a->allocated = want;
	}
	memcpy(a->message + a->have, data, n);
	a->have += n;
	return (ssize_t)n;
}

/* zlib's window is a copy of what came out. */
static void *on_zalloc(void *arg, unsigned int n, unsigned int size)
{
	(void)arg;
	return calloc(n, size);
}

static void on_zfree(void *arg, void *p)
{
	(void)arg;
	secret_free(p);
}

/* The whole message. Return: 0 with its length; -EMSGSIZE, -EPROTO, -ENOMEM. */
static int inflate_all(const struct grpc_assembly *a, uint8_t *out, size_t size, size_t *ret_len)
{
	z_stream z = {
		.next_in = a->message,
		.avail_in = (uInt)a->have,
		.next_out = out,
		.avail_out = (uInt)size,
		.zalloc = on_zalloc,
		.zfree = on_zfree,
	};
	int r;

	if (inflateInit2(&z, GZIP_WINDOW_BITS) != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	*ret_len = z.total_out;
	if (r == Z_MEM_ERROR)
		return -ENOMEM;
	if (r != Z_STREAM_END && !z.avail_out)
		return -EMSGSIZE;
	return r == Z_STREAM_END && !z.avail_in ? 0 : -EPROTO;
}

/* In its place. Return: 0; -EMSGSIZE, -EPROTO, -ENOMEM. */
static int inflate_message(struct grpc_assembly *a)
{
	size_t max = a->max < GRPC_INFLATED_MAX ? a->max : GRPC_INFLATED_MAX, len;
	uint8_t *out = malloc(max), *fits;
	int rc = out ? inflate_all(a, out, max, &len) : -ENOMEM;

	fits = rc ? NULL : malloc(len ? len : 1);
	if (fits)
		memcpy(fits, out, len);
	secret_free(out);
	if (!fits)
		return rc ? rc : -ENOMEM;
	secret_free(a->message);
	a->message = fits;
	a->have = a->len = a->allocated = len;
	return 0;
}

int grpc_assembly_feed(struct grpc_assembly *a, const uint8_t **data, size_t *len)
{
	ssize_t n;

	while (a->prefix_have < GRPC_PREFIX_BYTES) {
		if (!*len)
			return 0;
		a->prefix[a->prefix_have++] = *(*data)++;
		(*len)--;
		if (a->prefix_have == GRPC_PREFIX_BYTES) {
			int rc = check_prefix(a);

			if (rc)
				return rc;
		}
	}
	n = take(a, *data, *len);
	if (n < 0)
		return (int)n;
	*data += n;
	*len -= (size_t)n;
	if (a->have < a->len)
		return 0;
	if (a->prefix[0]) {
		int rc = inflate_message(a);

		if (rc)
			return rc;
	}
	return 1;
}

static bool is_plain(unsigned char c)
{
	return c >= 0x20 && c <= 0x7e && c != '%';
}

size_t grpc_percent_encode(const char *text, char *out, size_t size)
{
	static const char hex[] = "0123456789ABCDEF";
	size_t n = 0;

	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (n + (is_plain(c) ? 1 : 3) >= size)
			break;
		if (is_plain(c)) {
			out[n++] = (char)c;
			continue;
		}
		out[n++] = '%';
		out[n++] = hex[c >> 4];
		out[n++] = hex[c & 15];
	}
	out[n] = 0;
	return n;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t grpc_percent_decode(const char *text, size_t len, char *out, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < len && n + 1 < size; i++) {
		int high = i + 2 < len && text[i] == '%' ? hex_digit(text[i + 1]) : -1;
		int low = high < 0 ? -1 : hex_digit(text[i + 2]);

		if (low >= 0) {
			out[n++] = (char)(high << 4 | low);
			i += 2;
		} else {
			out[n++] = text[i];
		}
	}
	out[n] = 0;
	return n;
}

static const char base64_digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t grpc_base64_encode(const void *data, size_t len, char *out)
{
	const uint8_t *p = data;
	uint32_t bits = 0;
	unsigned int n_bits = 0;
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		bits = bits << 8 | p[i];
		for (n_bits += 8; n_bits >= 6; n_bits -= 6)
			out[n++] = base64_digits[bits >> (n_bits - 6) & 63];
	}
	if (n_bits)
		out[n++] = base64_digits[bits << (6 - n_bits) & 63];
	out[n] = 0;
	return n;
}

static int base64_value(char c)
{
	const char *at = c ? strchr(base64_digits, c) : NULL;

	return at ? (int)(at - base64_digits) : -1;
}

int grpc_base64_decode(const char *text, size_t len, uint8_t *out, size_t size, size_t *ret_len)
{
	uint32_t bits = 0;
	unsigned int n_bits = 0;
	size_t n = 0;

	if (len % 4 == 0)
		for (int i = 0; i < 2 && len && text[len - 1] == '='; i++)
			len--;
	if (len % 4 == 1)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		int value = base64_value(text[i]);

		if (value < 0)
			return -EINVAL;
		bits = bits << 6 | (uint32_t)value;
		n_bits += 6;
		if (n_bits < 8)
			continue;
		if (n == size)
			return -ENOBUFS;
		n_bits -= 8;
		out[n++] = (uint8_t)(bits >> n_bits);
	}
	*ret_len = n;
	return 0;
}

int grpc_timeout_decode(const char *text, size_t len, uint64_t *ret_ns)
{
	static const struct {
		char name;
		uint64_t ns;
	} units[] = {
		{ 'H', 3600 * NSEC_PER_SEC }, { 'M', 60 * NSEC_PER_SEC }, { 'S', NSEC_PER_SEC },
		{ 'm', NSEC_PER_MSEC },       { 'u', NSEC_PER_USEC },     { 'n', 1 },
	};
	uint64_t value = 0;

	if (len < 2 || len > TIMEOUT_DIGITS_MAX + 1)
		return -EINVAL;
	for (size_t i = 0; i + 1 < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -EINVAL;
		value = value * 10 + (uint64_t)(text[i] - '0');
	}
	for (size_t i = 0; i < sizeof units / sizeof *units; i++)
		if (units[i].name == text[len - 1]) {
			if (__builtin_mul_overflow(value, units[i].ns, ret_ns))
				*ret_ns = UINT64_MAX;
			return 0;
		}
	return -EINVAL;
}

void grpc_timeout_encode(unsigned int timeout_ms, char out[GRPC_TIMEOUT_SIZE])
{
	bool fits = timeout_ms <= 99999999u;

	snprintf(out, GRPC_TIMEOUT_SIZE, "%u%c", fits ? timeout_ms : timeout_ms / 1000u + 1,
	         fits ? 'm' : 'S');
}
