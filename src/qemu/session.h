/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One QEMU and the daemon, as both sides of a migration see them.
 *
 * Theory of operation
 * -------------------
 * This process keeps nothing that the next one would need. Where a migration stands the daemon says
 * (postcopy_*_attach_again()), and what has been done QEMU says (query-status, query-migrate). So
 * it begins the same way each time, and may end at any instruction:
 *
 *   - it asks to attach again; only where QEMU's process is not known by that id it attaches anew;
 *   - whatever it is told to do it asks QEMU first whether that is done, or begun.
 *
 * A daemon that is gone comes back; it is waited for as long as QEMU lives. QEMU that is gone is
 * the end, and the daemon sees that by itself.
 */
#ifndef QEMU_SESSION_H
#define QEMU_SESSION_H

#include <errno.h>
#include <postcopy/postcopy.h>
#include <stdbool.h>

#include "adapter/daemon.h"
#include "qemu/options.h"
#include "qemu/qemu.h"

struct session {
	const struct options *options;
	struct qmp *qmp;
	pid_t pid;
	int pidfd;
	int signal_fd;
	struct qemu_settings settings; /* before us */
	struct daemon_wait prepared;   /* for that it is */
	struct postcopy *postcopy;
};

/* What there is to do. */
struct wake {
	bool daemon; /* an event, or it is gone. News of QEMU's are read by then. */
};

/* Connects to QEMU, by the options, and finds its process. */
int session_open(struct session *s, const struct options *o, struct error *err);
void session_close(struct session *s);

/*
 * session_wait() - until there is something to do
 *
 * Return: 0; -ESRCH where QEMU has ended; -EINTR upon SIGTERM and SIGINT; -ECONNRESET where QEMU
 * lives, but its monitor is gone.
 */
int session_wait(struct session *s, int timeout_ms, struct wake *ret, struct error *err);

/*
 * session_attach_again() - where QEMU's process has attached before
 *
 * Waits for a daemon that is not there.
 *
 * Return: 0; -ENOENT where it has not; and as session_wait().
 */
int session_attach_again(struct session *s, enum postcopy_standing *ret, struct error *err);

/*
 * session_await_prepared() - the daemon does not know the migration, or not yet
 *
 * Return: 0: try again; -ENOENT, with @err as it was: that is over; and as session_wait().
 */
int session_await_prepared(struct session *s, struct error *err);

/* Whether a failure means that QEMU can't be asked any more. */
static inline bool session_is_lost(int rc)
{
	return rc == -ECONNRESET || rc == -ETIMEDOUT || rc == -EPROTO;
}

/* Whether QEMU's process has; @soon: it seems so, and a while is waited for it. */
bool session_has_ended(const struct session *s, bool soon);

#endif
