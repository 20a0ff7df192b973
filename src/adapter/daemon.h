/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon as an adapter of it sees it. Where a migration stands the daemon says; so an adapter
 * that was killed, or whose daemon was, begins by attaching again.
 */
#ifndef ADAPTER_DAEMON_H
#define ADAPTER_DAEMON_H

#include <postcopy/postcopy.h>
#include <stdbool.h>

#include "util/error.h"

/* An error of libpostcopy's into ours. Return: @rc. */
int daemon_error(int rc, const struct postcopy_error *from, struct error *err);

/*
 * daemon_attach_again() - one try, of either side
 * @socket: the daemon's; NULL: as usual
 * @ret_standing: may be NULL at a source
 *
 * Return: as postcopy_source_attach_again().
 */
int daemon_attach_again(bool source, const char *socket, const char *id, int pidfd,
                        struct postcopy **ret, enum postcopy_standing *ret_standing,
                        struct error *err);

/* Whether that try failed because the daemon is not there, or not yet ready, or has not seen yet
 * that the process before this one is gone: then another one may do better. */
bool daemon_is_passing(int rc, const char *socket);

#endif
