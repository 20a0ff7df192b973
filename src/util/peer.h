/* SPDX-License-Identifier: Apache-2.0 */
/* Who may connect to a unix socket: the kernel's word on the other end, against a list of groups.
 */
#ifndef UTIL_PEER_H
#define UTIL_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The other end's process as it was when it connected. Return: 0 or -errno. */
int peer_credentials(int fd, struct ucred *ret);

/*
 * peer_pidfd() - the process that has connected, and no other that has its number by now
 * @cred: of @fd's other end
 *
 * The kernel says it of the socket since Linux 6.5. Before, it is whichever has the number now.
 *
 * Return: a pidfd, the caller's; -ESRCH where it has ended, and others.
 */
int peer_pidfd(int fd, const struct ucred *cred);
bool peer_has_ended(int pidfd);

/*
 * peer_is_allowed() - root, our own user, and the members of @groups
 * @cred: of @fd's other end
 *
 * Supplementary groups count as well.
 */
bool peer_is_allowed(int fd, const struct ucred *cred, const gid_t *groups, size_t n_groups);

#endif
