/* SPDX-License-Identifier: Apache-2.0 */
#include "adapter/daemon.h"

#include <errno.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/log.h"

#define PREPARE_TIMEOUT_S 60

int daemon_error(int rc, const struct postcopy_error *from, struct error *err)
{
	return rc ? error_set(err, rc, "%s", from->text) : 0;
}

int daemon_attach_again(bool source, const char *socket, const char *id, int pidfd,
                        struct postcopy **ret, enum postcopy_standing *ret_standing,
                        struct error *err)
{
	struct postcopy_error why = { 0 };
	int rc = source ? postcopy_source_attach_again(socket, id, pidfd, ret, ret_standing, &why)
	                : postcopy_destination_attach_again(socket, id, pidfd, ret, ret_standing,
	                                                    &why);

	return daemon_error(rc, &why, err);
}

bool daemon_may_be_prepared(struct daemon_wait *w, const char *id, const struct error *err)
{
	if (!w->until_ns) {
		w->until_ns = clock_now_ns() + PREPARE_TIMEOUT_S * NSEC_PER_SEC;
		log_migration_info(id, "waiting for it to be prepared: %s", err->text);
	}
	return clock_now_ns() < w->until_ns;
}

bool daemon_is_passing(int rc, const char *socket)
{
	return rc == -ECONNREFUSED || rc == -EAGAIN || rc == -EPIPE || rc == -ETIMEDOUT ||
	       rc == -EBUSY ||
	       (rc == -ENOENT && access(socket ? socket : POSTCOPY_DEFAULT_SOCKET, F_OK));
}
