/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipe by which a vmstate comes to a QEMU that waits for a guest.
 *
 * Theory of operation
 * -------------------
 * QEMU is told to load as soon as there is something in it, and the rest follows while it loads. An
 * adapter may be killed meanwhile. So QEMU is given both ends: what it reads does not end with the
 * adapter. The next one finds the pipe among QEMU's descriptors, for it is marked (its sticky bit),
 * and in the vmstate how much of that is in it: the vmstate's offset belongs to the open file,
 * which the daemon keeps. While a piece is being put in the offset says that nobody knows: who is
 * killed just then leaves a QEMU that can't go on. (splice() would do both in one step; but its
 * pages would be in use, by which a memfd can't be sealed.)
 */
#ifndef QEMU_VMSTATE_PIPE_H
#define QEMU_VMSTATE_PIPE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

/*
 * All of them are the caller's: both ends, for QEMU, and one to write to. That is an open file of
 * its own, which never waits: QEMU makes those wait that it is given (it takes O_NONBLOCK away).
 */
int vmstate_pipe_make(int *ret_from, int *ret_to, int *ret_own, struct error *err);

/* The end to write to, of the one that process @pid has. Return: it; or -ENOENT, -errno. */
int vmstate_pipe_find(pid_t pid);

/*
 * vmstate_pipe_fill() - from @vmstate's offset, which is known, up to its byte @len
 * @wait: until QEMU has taken so much that it fits; else what fits now
 *
 * Return: 0, also where QEMU takes no more of it: why, it says itself; -errno with @err set.
 */
int vmstate_pipe_fill(int pipe, int vmstate, uint64_t len, bool wait, struct error *err);

/* How much of it was put into one; above all lengths where that is unknown. */
#define VMSTATE_PIPE_UNKNOWN UINT64_MAX
uint64_t vmstate_pipe_filled(int vmstate);

/* Whether two vmstates begin with the same @len bytes. */
bool vmstate_begins_alike(int a, int b, uint64_t len);

#endif
