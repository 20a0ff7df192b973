/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process by a descriptor of it (pidfd_open(2)). The number of a process that has ended may be
 * somebody else's by now; its descriptor never is.
 */
#ifndef UTIL_PIDFD_H
#define UTIL_PIDFD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Return: the descriptor, O_CLOEXEC; or -errno. */
int pidfd_of(pid_t pid);

/*
 * pidfd_pid() - the number of its process, as this process counts
 * @fd: any descriptor at all: only the kernel is asked what it is
 *
 * Return: the number; -EBADF, -EINVAL where it is no pidfd of a whole process; -ESRCH where that
 * has ended, or is in no pid namespace that we see.
 */
int pidfd_pid(int fd);

/* SIGKILL. Return: 0 or -errno. */
int pidfd_kill(int fd);

/* Whether all of it has ended. */
bool pidfd_has_ended(int fd);

/*
 * pidfd_uids() - whose process it is: real, effective and saved user
 *
 * The kernel says so of the descriptor since Linux 6.13; before that /proc does, where this process
 * may look there. Return: 0; -ESRCH; or the errno of looking.
 */
int pidfd_uids(int fd, uid_t ret[3]);

#endif
