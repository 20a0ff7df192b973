/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/token.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "util/cleanup.h"

int token_make(uint8_t ret[CLIENT_TOKEN_BYTES], struct error *err)
{
	if (getrandom(ret, CLIENT_TOKEN_BYTES, 0) != CLIENT_TOKEN_BYTES)
		return error_errno(err, -errno, "random bytes for a token");
	return 0;
}

int token_parse(const char *text, const char *from, uint8_t ret[CLIENT_TOKEN_BYTES],
                struct error *err)
{
	size_t len = strspn(text, "0123456789abcdefABCDEF");

	if (len != TOKEN_HEX || text[len + strspn(text + len, " \r\n")])
		return error_set(err, -EINVAL, "%s is not a token: it takes %d hex digits", from,
		                 TOKEN_HEX);
	/* The daemon refuses it, too; but it can't tell where it has come from. */
	if (strspn(text, "0") == TOKEN_HEX)
		return error_set(err, -EINVAL,
		                 "%s is all zero, which everybody can guess: make one by \"openssl "
		                 "rand -hex %d\"",
		                 from, CLIENT_TOKEN_BYTES);
	for (size_t i = 0; i < CLIENT_TOKEN_BYTES; i++)
		sscanf(text + 2 * i, "%2hhx", &ret[i]);
	return 0;
}

int token_read(const char *path, uint8_t ret[CLIENT_TOKEN_BYTES], struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char text[TOKEN_HEX + 16] = "";
	char from[128];

	int r;

	if (!f)
		return error_errno(err, -errno, "token file \"%s\"", path);
	/* Into @text alone. */
	setvbuf(f, NULL, _IONBF, 0);
	if (!fgets(text, sizeof text, f))
		return error_set(err, -EINVAL, "token file \"%s\" is empty", path);
	snprintf(from, sizeof from, "what token file \"%.80s\" holds", path);
	r = token_parse(text, from, ret, err);
	explicit_bzero(text, sizeof text);
	return r;
}

void token_format(const uint8_t token[CLIENT_TOKEN_BYTES], char ret[TOKEN_HEX + 1])
{
	for (size_t i = 0; i < CLIENT_TOKEN_BYTES; i++)
		snprintf(ret + 2 * i, 3, "%02x", token[i]);
}
