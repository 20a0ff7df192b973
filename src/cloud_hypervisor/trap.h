/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a Cloud Hypervisor traps its memory.
 *
 * Before version 54 it registered absent pages alone (MISSING): a page that lies in the file
 * already is mapped without a question then, and while it is being filled its guest would read a
 * part of it, or zeroes. Its userfaultfd is its own, but the kernel tells of what it has asked of
 * it.
 */
#ifndef CLOUD_HYPERVISOR_TRAP_H
#define CLOUD_HYPERVISOR_TRAP_H

#include <sys/types.h>

#include "util/error.h"

/*
 * ch_trap_check() - its userfaultfd traps pages that are in their file, too
 *
 * Return: 0; -EOPNOTSUPP where it does not; -EPERM and others where it can't be told; with @err.
 */
int ch_trap_check(pid_t pid, struct error *err);

#endif
