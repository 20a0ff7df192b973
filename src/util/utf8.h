/* SPDX-License-Identifier: Apache-2.0 */
/* Text that leaves for others must be UTF-8: protobuf's strings are, and clients refuse others. */
#ifndef UTIL_UTF8_H
#define UTIL_UTF8_H

#include <stddef.h>

/* How many bytes from the start are whole, valid characters; @len where all are. */
size_t utf8_valid_len(const char *text, size_t len);

/* Puts '?' in the place of each byte of @text that belongs to no valid character. */
void utf8_clean(char *text);

#endif
