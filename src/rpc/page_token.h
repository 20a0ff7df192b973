/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page tokens: where the next page of a list begins. Opaque to clients; one that this list
 * has not given is refused. They stay good while the list changes: a page begins after the
 * place where the one before it ended, not after a number of entries.
 */
#ifndef RPC_PAGE_TOKEN_H
#define RPC_PAGE_TOKEN_H

#include <stdint.h>

#include "rpc/errors.h"

#define PAGE_TOKEN_MAX 48

struct page_position {
	uint64_t key;    /* of the list: the token of another one (another daemon's) is refused */
	uint32_t filter; /* what was asked for; to go on with another filter is refused */
	uint64_t at;
};

void page_token_print(const struct page_position *position, char ret[PAGE_TOKEN_MAX]);

/*
 * page_token_parse() - from a request
 * @position: key and filter are what it must have; its place is written to @at, and left as it
 *            is where @token is empty
 *
 * Return: 0 or -EINVAL with @e set.
 */
int page_token_parse(const char *token, struct page_position *position, struct rpc_error *e);

#endif
