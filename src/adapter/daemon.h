/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon as an adapter of it sees it. Where a migration stands the daemon says; so an adapter
 * that was killed, or whose daemon was, begins by attaching again.
 */
#ifndef ADAPTER_DAEMON_H
#define ADAPTER_DAEMON_H

#include <postcopy/postcopy.h>
#include <stdbool.h>
#include <stdint.h>

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

/* Of one adapter; zeroes at first. */
struct daemon_wait {
	uint64_t until_ns; /* 0: there was nothing to wait for yet */
};

/*
 * daemon_may_be_prepared() - the daemon does not know the migration, or not yet
 *
 * What starts an adapter (a hook of libvirt's, a service) may be ahead of who prepares the
 * migration. A minute is given for that, from the first call on, which logs it.
 *
 * Return: whether to try again in a while. @err is as it was.
 */
bool daemon_may_be_prepared(struct daemon_wait *w, const char *id, const struct error *err);

#endif
