/* SPDX-License-Identifier: Apache-2.0 */
/* Where a source listens, as it is written. */
#ifndef STREAM_TARGET_H
#define STREAM_TARGET_H

#include "util/error.h"

struct conn_target {
	char host[256];
	char port[16];
};

/*
 * conn_target_parse() - "host:port", "[v6]:port"
 *
 * What could never be dialled is refused here, and not after it has been tried for seconds: a URL,
 * a port out of range, an address of one link that does not say of which.
 *
 * Return: 0 or -EINVAL with @err set.
 */
int conn_target_parse(const char *text, struct conn_target *ret, struct error *err);

#endif
