/* SPDX-License-Identifier: Apache-2.0 */
/* A migration followed to its end, on the terminal or as JSON. */
#ifndef CTL_WATCH_H
#define CTL_WATCH_H

#include "ctl/commands.h"

#define WATCH_INTERVAL_MS 200

/* Return: CTL_OK where it completes; CTL_FAILED; or the exit code, having said why. */
int watch_follow(const struct command *cmd, const struct ctl_common *common, struct client *c,
                 const char *id, const char *role, unsigned int interval_ms);

#endif
