/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whom a certificate names. Input: a pattern, a NUL, and a SAN as it stands in a certificate, whose
 * first byte is its kind.
 */
#include "fuzz.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "tls/tls.h"
#include "tls/tls_internal.h"

const unsigned int fuzz_rounds = 300000;

static bool begins_with(const char *s, const char *start)
{
	return !strncmp(s, start, strlen(start));
}

/* Without an asterisk that means something a pattern is one name. */
static bool is_open(const char *pattern)
{
	size_t len = strlen(pattern);

	if (begins_with(pattern, "DNS:") || begins_with(pattern, "URI:"))
		pattern += 4;
	return begins_with(pattern, "*.") ||
	       (len > 2 && !strcmp(pattern + strlen(pattern) - 2, "/*"));
}

/* What an allowed name must have, told in another way than names.c finds it. */
static void check_match(const char *pattern, enum tls_name_kind kind, const char *name)
{
	const char *bare = begins_with(pattern, "DNS:") || begins_with(pattern, "URI:")
	                           ? pattern + 4
	                           : pattern;
	size_t len = strlen(bare), name_len = strlen(name);

	FUZZ_CHECK(name_len);
	if (kind == TLS_NAME_DNS) {
		FUZZ_CHECK(!begins_with(pattern, "URI:"));
		for (const char *c = name; *c; c++)
			FUZZ_CHECK(isalnum((unsigned char)*c) || strchr(".-_", *c));
		if (is_open(pattern))
			FUZZ_CHECK(name_len > len - 1 &&
			           !strcasecmp(name + name_len - (len - 1), bare + 1));
		else
			FUZZ_CHECK(!strcasecmp(name, bare));
		return;
	}
	FUZZ_CHECK(!begins_with(pattern, "DNS:") && strchr(name, ':'));
	if (!is_open(pattern)) {
		FUZZ_CHECK(!strcmp(name, bare));
		return;
	}
	FUZZ_CHECK(!strncmp(name, bare, len - 1) && !strstr(name + len - 2, "/../"));
	FUZZ_CHECK(!strpbrk(name + len - 1, "%?#") && !strstr(name + len - 1, "//"));
}

/* Return: whether the certificate has a name there. */
static bool read_name(const uint8_t *data, size_t size, enum tls_name_kind *ret_kind, char *ret)
{
	GENERAL_NAME *san = GENERAL_NAME_new();
	ASN1_IA5STRING *text = ASN1_IA5STRING_new();
	bool is_name;

	FUZZ_CHECK(san && text && ASN1_STRING_set(text, data + 1, (int)size - 1));
	GENERAL_NAME_set0_value(san,
	                        data[0] & 1   ? GEN_URI
	                        : data[0] & 2 ? GEN_EMAIL
	                                      : GEN_DNS,
	                        text);
	is_name = tls_read_san(san, ret_kind, ret);
	GENERAL_NAME_free(san);
	if (is_name) {
		FUZZ_CHECK(*ret_kind == (data[0] & 1 ? TLS_NAME_URI : TLS_NAME_DNS));
		FUZZ_CHECK(strlen(ret) == size - 1 && !memcmp(ret, data + 1, size - 1));
	}
	return is_name;
}

int fuzz_one(const uint8_t *data, size_t size)
{
	const uint8_t *end = memchr(data, 0, size);
	struct error err = ERROR_INIT;
	char name[TLS_NAME_MAX];
	enum tls_name_kind kind;
	const char *pattern = (const char *)data;
	int rc;

	if (!end)
		return 0;
	rc = tls_name_check(pattern, &err);
	if (rc)
		FUZZ_CHECK(err.code == rc && *err.text);
	size -= (size_t)(end + 1 - data);
	if (!size || !read_name(end + 1, size, &kind, name))
		return 0;
	/* Every configuration file is checked before it is used. */
	if (!rc && tls_name_matches(pattern, kind, name))
		check_match(pattern, kind, name);
	/* A name that could be a pattern allows itself, and no other kind. */
	err = ERROR_INIT;
	if (strpbrk(name, "*") || begins_with(name, "URI:") || begins_with(name, "DNS:") ||
	    (kind == TLS_NAME_URI) != !!strchr(name, ':') || tls_name_check(name, &err))
		return 0;
	FUZZ_CHECK(tls_name_matches(name, kind, name));
	FUZZ_CHECK(
	        !tls_name_matches(name, kind == TLS_NAME_URI ? TLS_NAME_DNS : TLS_NAME_URI, name));
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const struct {
		const char *pattern, *san;
	} seeds[] = {
		{ "spiffe://example.org/postcopy/*", "\1spiffe://example.org/postcopy/host2" },
		{ "URI:spiffe://a/b", "\1spiffe://a/b" },
		{ "*.example.org", "\4a.b.EXAMPLE.org" },
		{ "DNS:host-2.example.org", "\4host-2.example.org" },
		{ "urn:x:*", "\1urn:x:y" },
		{ "10.0.0.1", "\2a@b.c" },
	};
	size_t len;

	if (i >= sizeof seeds / sizeof *seeds)
		return 0;
	len = strlen(seeds[i].pattern) + 1;
	memcpy(buf, seeds[i].pattern, len);
	memcpy(buf + len, seeds[i].san, strlen(seeds[i].san));
	return len + strlen(seeds[i].san);
}
