/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination: a QEMU that waits for a guest (-S -incoming defer).
 *
 * Its RAM is registered with a userfaultfd of its own, emptied and handed over. VMSTATE: all of it
 * is written into a pipe, and only then QEMU is told to load from there: so it needs nobody any
 * more, and this process may end meanwhile. When QEMU says that it has completed: LOADED, then
 * "cont", then RESUMED. A guest that could not be loaded, or was loaded and is not to run, must
 * never be continued by anybody: its QEMU is told to quit.
 */
#ifndef QEMU_DESTINATION_H
#define QEMU_DESTINATION_H

#include "qemu/session.h"

/*
 * destination_run() - until all of the guest is here, or it does not come
 *
 * Return: 0 it is here; -ECANCELED with @err: it does not come; and as source_run().
 */
int destination_run(struct session *s, struct error *err);

#endif
