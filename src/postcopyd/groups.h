/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose members may connect to a unix socket: the daemon's own group, as the mode 0660 has it, and
 * those that are configured.
 */
#ifndef POSTCOPYD_GROUPS_H
#define POSTCOPYD_GROUPS_H

#include <sys/types.h>

#include "postcopyd/options.h"

struct groups {
	gid_t gids[OPTIONS_GROUPS_MAX + 1];
	size_t n;
};

/* @key: of the configuration, for messages. Return: 0; -EINVAL with @err naming one we don't have.
 */
int groups_find(const struct options_names *names, const char *key, struct groups *ret,
                struct error *err);

#endif
