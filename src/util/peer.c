/* SPDX-License-Identifier: Apache-2.0 */
#include "util/peer.h"

#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"

/* Linux 6.5; not in this libc. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
/* What SO_PEERGROUPS may say at most (NGROUPS_MAX). */
#define PEER_GROUPS_MAX 65536u

static bool has_group(const gid_t *groups, size_t n_groups, gid_t gid)
{
	for (size_t i = 0; i < n_groups; i++)
		if (groups[i] == gid)
			return true;
	return false;
}

/* Whether one of the peer's supplementary groups may connect. */
static bool has_extra_group(int fd, const gid_t *groups, size_t n_groups)
{
	socklen_t len = 64 * sizeof(gid_t);
	_cleanup_free_ gid_t *theirs = malloc(len);
	int rc = -1;

	if (theirs)
		rc = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, theirs, &len);
	/* There are more: @len says how many. */
	if (rc && errno == ERANGE && len <= PEER_GROUPS_MAX * sizeof(gid_t)) {
		free(theirs);
		theirs = malloc(len);
		if (theirs)
			rc = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, theirs, &len);
	}
	for (size_t i = 0; !rc && theirs && i < len / sizeof *theirs; i++)
		if (has_group(groups, n_groups, theirs[i]))
			return true;
	return false;
}

int peer_credentials(int fd, struct ucred *ret)
{
	struct ucred cred;
	socklen_t len = sizeof cred;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	*ret = cred;
	return 0;
}

int peer_pidfd(int fd, const struct ucred *cred)
{
	int pidfd;
	socklen_t len = sizeof pidfd;

	if (!getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len))
		return pidfd;
	if (errno != ENOPROTOOPT)
		return -errno;
	/* Not one of a pid namespace that is not ours. */
	if (cred->pid <= 0)
		return -ESRCH;
	pidfd = (int)syscall(SYS_pidfd_open, cred->pid, 0);
	return pidfd < 0 ? -errno : pidfd;
}

bool peer_has_ended(int pidfd)
{
	return poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, 0) != 0;
}

bool peer_is_allowed(int fd, const struct ucred *cred, const gid_t *groups, size_t n_groups)
{
	if (cred->uid == 0 || cred->uid == geteuid() || has_group(groups, n_groups, cred->gid))
		return true;
	return n_groups && has_extra_group(fd, groups, n_groups);
}
