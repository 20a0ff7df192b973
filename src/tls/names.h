/* SPDX-License-Identifier: Apache-2.0 */
/* The names in peers' certificates, and what they are compared with: tls.h says how it is written.
 */
#ifndef TLS_NAMES_H
#define TLS_NAMES_H

#include <stdbool.h>

/* Of a peer, with its NUL: a longer one is as good as none. */
#define TLS_NAME_MAX 256

/* Of a pattern, with its NUL: "URI:" in front, and an asterisk behind. */
#define TLS_NAME_PATTERN_BYTES (TLS_NAME_MAX + 5)

enum tls_name_kind {
	TLS_NAME_URI,
	TLS_NAME_DNS,
};

/* Whether @pattern, which tls_name_check() has passed, allows a name of @kind. */
bool tls_name_matches(const char *pattern, enum tls_name_kind kind, const char *name);

#endif
