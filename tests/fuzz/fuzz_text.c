/* SPDX-License-Identifier: Apache-2.0 */
/* Text that people and control planes write: tokens, sizes, numbers, addresses, ids, page tokens.
 */
#include "fuzz.h"

#include <string.h>

#include "ctl/clean.h"
#include "ctl/token.h"
#include "ctl/units.h"
#include "libpostcopy/vmm_wire.h"
#include "rpc/page_token.h"
#include "stream/conn.h"
#include "util/utf8.h"

#define TEXT_MAX 512

const unsigned int fuzz_rounds = 200000;

static void check_token(const char *text)
{
	uint8_t token[CLIENT_TOKEN_BYTES], back[CLIENT_TOKEN_BYTES];
	struct error err = ERROR_INIT;
	char same[TOKEN_HEX + 1];

	if (token_parse(text, "it", token, &err)) {
		FUZZ_CHECK(err.code < 0);
		return;
	}
	token_format(token, same);
	FUZZ_CHECK(strlen(same) == TOKEN_HEX && !strncasecmp(same, text, TOKEN_HEX));
	FUZZ_CHECK(!token_parse(same, "it", back, &err) && !memcmp(token, back, sizeof back));
}

static void check_numbers(const char *text)
{
	struct error err = ERROR_INIT;
	uint64_t size, n, back;
	char same[32];

	if (!parse_uint(text, 5, 1ull << 40, &n, &err)) {
		FUZZ_CHECK(n >= 5 && n <= 1ull << 40);
		/* A plain number is a size, too. */
		FUZZ_CHECK(!parse_size(text, &size, &err) && size == n);
	}
	err = ERROR_INIT;
	if (parse_size(text, &size, &err)) {
		FUZZ_CHECK(err.code < 0);
		return;
	}
	snprintf(same, sizeof same, "%llu", (unsigned long long)size);
	FUZZ_CHECK(!parse_size(same, &back, &err) && back == size);
}

static void check_address(const char *text)
{
	struct error err = ERROR_INIT;
	struct conn_target target, back;
	char same[sizeof target + 4];

	if (conn_target_parse(text, &target, &err)) {
		FUZZ_CHECK(err.code < 0);
		return;
	}
	FUZZ_CHECK(*target.host && *target.port && strtoul(target.port, NULL, 10) <= UINT16_MAX);
	FUZZ_CHECK(strspn(target.port, "0123456789") == strlen(target.port));
	snprintf(same, sizeof same, "[%s]:%s", target.host, target.port);
	FUZZ_CHECK(!conn_target_parse(same, &back, &err));
	FUZZ_CHECK(!strcmp(back.host, target.host) && !strcmp(back.port, target.port));
}

static void check_page_token(const char *text)
{
	struct page_position position = { .key = 1, .filter = 2, .at = 3 };
	char same[PAGE_TOKEN_MAX];
	struct rpc_error e;

	memset(&e, 0, sizeof e);
	if (page_token_parse(text, &position, &e)) {
		FUZZ_CHECK(e.error.code < 0 && position.at == 3);
		return;
	}
	FUZZ_CHECK(position.key == 1 && position.filter == 2);
	page_token_print(&position, same);
	FUZZ_CHECK(!*text || !strcmp(same, text));
}

static void check_utf8(const char *text, size_t len)
{
	char clean[TEXT_MAX];
	size_t valid = utf8_valid_len(text, len);

	FUZZ_CHECK(valid <= len && utf8_valid_len(text, valid) == valid);
	strcpy(clean, text);
	utf8_clean(clean);
	FUZZ_CHECK(strlen(clean) == len && utf8_valid_len(clean, len) == len);
	FUZZ_CHECK(!memcmp(clean, text, valid));
	strcpy(clean, text);
	text_clean(clean);
	FUZZ_CHECK(strlen(clean) <= len && utf8_valid_len(clean, strlen(clean)) == strlen(clean));
	for (const char *c = clean; *c; c++)
		FUZZ_CHECK((unsigned char)*c >= 0x20 && *c != 0x7f &&
		           !(*c == '\xc2' && (unsigned char)c[1] < 0xa0));
}

static void check_id(const char *text)
{
	struct error err = ERROR_INIT;

	if (vmm_wire_id_check(text, &err))
		FUZZ_CHECK(err.code < 0);
	else
		FUZZ_CHECK(*text && strlen(text) <= POSTCOPY_ID_MAX &&
		           !strpbrk(text, "\n\r\x1b\"/ "));
}

int fuzz_one(const uint8_t *data, size_t size)
{
	char text[TEXT_MAX];
	size_t len;

	if (size >= sizeof text)
		return 0;
	memcpy(text, data, size);
	text[size] = 0;
	len = strlen(text);
	check_token(text);
	check_numbers(text);
	check_address(text);
	check_page_token(text);
	check_utf8(text, len);
	check_id(text);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static const char *const texts[] = {
		"00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n",
		"512M",
		"2GiB",
		"1T",
		"1099511627776",
		"h.example:7777",
		"[2001:db8::1]:1",
		"0000000000000001000000020000000000000009",
		"vm-7.example",
		"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80",
		"\xed\xa0\x80\xc0\x80",
	};

	if (i >= sizeof texts / sizeof *texts)
		return 0;
	memcpy(buf, texts[i], strlen(texts[i]));
	return strlen(texts[i]);
}
