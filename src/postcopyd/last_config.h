/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration that the daemon has last started with, in the service manager's store.
 *
 * A daemon that ends for a wrong configuration takes the store with it, and all that guests hang
 * on: systemd empties it when it gives a service up. So where migrations are under way a process
 * begins with what the one before it had, says so, and goes on; the operator mends the file and
 * restarts.
 */
#ifndef POSTCOPYD_LAST_CONFIG_H
#define POSTCOPYD_LAST_CONFIG_H

#include "postcopyd/options.h"
#include "util/fd_store.h"

/* Leave @o to the next process. Return: 0, also where there is no store; or -errno with @err set.
 */
int last_config_keep(struct fd_store *store, const struct options *o, struct error *err);

/*
 * last_config_read() - what the process before has left
 * @ret: in any case to be given to options_deinit()
 *
 * Return: 0; -ENOENT where there is none; -EINVAL where it can't be used.
 */
int last_config_read(struct fd_store *store, struct options *ret);

#endif
