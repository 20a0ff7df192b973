/* SPDX-License-Identifier: Apache-2.0 */
/* Listening on a unix socket path. */
#ifndef UTIL_UNIX_LISTEN_H
#define UTIL_UNIX_LISTEN_H

#include "util/error.h"

/*
 * unix_listen() - a listening, non-blocking socket at @path, mode 0660
 * @type: SOCK_STREAM or SOCK_SEQPACKET
 * @what: for messages, "VMM socket"
 *
 * A socket that nobody listens on any more is replaced; anything else at @path is left
 * alone and refused.
 *
 * Return: the descriptor, or -errno with @err set.
 */
int unix_listen(const char *path, int type, const char *what, struct error *err);

#endif
