/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source: a QEMU whose guest goes elsewhere.
 *
 * PAUSE: "stop", a migration of QEMU's own into a pipe, without the RAM that the daemon moves; when
 * QEMU says that it has completed, and not before, the vmstate is handed over: saving devices may
 * write to RAM. RESUME: "cont". COMPLETE: "quit".
 *
 * A QEMU that has saved its guest can be continued by anybody who reaches its monitor, and by then
 * the guest may run at the destination. So it is watched, and stopped at once. What it has written
 * meanwhile nobody can take back: that is told as loudly as can be.
 */
#ifndef QEMU_SOURCE_H
#define QEMU_SOURCE_H

#include "qemu/session.h"

/*
 * source_run() - until the guest has gone, or stays
 *
 * Return: 0 it has gone; -ECANCELED with @err: it stays; -EOPNOTSUPP with the reason against it;
 * and as session_wait().
 */
int source_run(struct session *s, struct error *err);

#endif
