/* SPDX-License-Identifier: Apache-2.0 */
/* A command of the user's, run for a guest. */
#ifndef CTL_HOOK_H
#define CTL_HOOK_H

#include "util/error.h"

/*
 * hook_run() - by /bin/sh, to its end
 * @environment: NAME=VALUE..., NULL at the end; beside what this process has
 * @timeout_ms: it is killed then
 * @cancel_fd: readable: it is killed; -1: none
 *
 * Return: 0 where it ends with status 0; -ECANCELED; -ETIMEDOUT, -EIO with @err set.
 */
int hook_run(const char *command, const char *const *environment, int timeout_ms, int cancel_fd,
             struct error *err);

#endif
