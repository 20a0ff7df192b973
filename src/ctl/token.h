/* SPDX-License-Identifier: Apache-2.0 */
/* A migration's token: the secret that the destination proves itself with, as hex digits. */
#ifndef CTL_TOKEN_H
#define CTL_TOKEN_H

#include "ctl/client.h"

#define TOKEN_HEX (2 * CLIENT_TOKEN_BYTES)

int token_make(uint8_t ret[CLIENT_TOKEN_BYTES], struct error *err);

/*
 * token_parse() - from hex digits
 * @text: may end in white space, as a file does
 * @from: where it comes from, for the message, which never repeats the token itself
 */
int token_parse(const char *text, const char *from, uint8_t ret[CLIENT_TOKEN_BYTES],
                struct error *err);
int token_read(const char *path, uint8_t ret[CLIENT_TOKEN_BYTES], struct error *err);

void token_format(const uint8_t token[CLIENT_TOKEN_BYTES], char ret[TOKEN_HEX + 1]);

#endif
