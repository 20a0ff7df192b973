/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of a VMM that somebody else speaks for.
 *
 * An adapter is not the VMM: it comes and goes, and the guest lives on. What counts is the VMM's
 * own process, by the pidfd that its ATTACH carries. Whoever names a process has it watched and
 * looked at by us, so it must be the namer's own: of the same user, whatever it may have become
 * since (a set-user-id program is not its caller's). Root may name any.
 *
 * Threads: all on the loop's.
 */
#ifndef VMM_VMM_PROCESS_H
#define VMM_VMM_PROCESS_H

#include <uv.h>

#include "util/error.h"

struct vmm_process;

/*
 * vmm_process_open() - the process that a pidfd from outside names
 * @theirs: any descriptor; borrowed
 * @namer: the user who has sent it
 * @ret_fd: a pidfd of our own: no other open file is the same
 *
 * Return: its number; -EINVAL, -EPERM, -ESRCH with @err naming it.
 */
int vmm_process_open(int theirs, uid_t namer, int *ret_fd, struct error *err);

/*
 * vmm_process_watch() - be told, once, when it has ended
 * @fd: of vmm_process_open(), or from the process of this daemon before; taken over on success
 */
int vmm_process_watch(uv_loop_t *loop, int fd, void (*ended)(void *arg), void *arg,
                      struct vmm_process **ret, struct error *err);

/* NULL is allowed. Memory goes when the loop has run on. Return: NULL. */
struct vmm_process *vmm_process_close(struct vmm_process *p);

pid_t vmm_process_pid(const struct vmm_process *p);

#endif
