/* SPDX-License-Identifier: Apache-2.0 */
#include "rpc/page_token.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM "%016" PRIx64 "%08" PRIx32 "%016" PRIx64

void page_token_print(const struct page_position *position, char ret[PAGE_TOKEN_MAX])
{
	snprintf(ret, PAGE_TOKEN_MAX, FORM, position->key, position->filter, position->at);
}

int page_token_parse(const char *token, struct page_position *position, struct rpc_error *e)
{
	struct page_position found = *position;
	char same[PAGE_TOKEN_MAX];
	size_t len = strlen(token);

	if (!len)
		return 0;
	page_token_print(&found, same);
	/* Its place is what is left when all that must be the same is the same. */
	if (len == strlen(same)) {
		found.at = strtoull(token + len - 16, NULL, 16);
		page_token_print(&found, same);
	}
	if (strcmp(token, same))
		return rpc_error_field(e, "page_token",
		                       "is none that this list has given: begin without one");
	position->at = found.at;
	return 0;
}
