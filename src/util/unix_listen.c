/* SPDX-License-Identifier: Apache-2.0 */
#include "util/unix_listen.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "util/cleanup.h"

/* A non-blocking connect() beyond it fails at once. */
#define BACKLOG SOMAXCONN
#define SOCKET_MODE 0660

/* Remove a socket that a dead process left behind. Return: 0, or why it must stay. */
static int remove_stale(const struct sockaddr_un *addr, int type)
{
	_cleanup_close_ int probe = -1;
	struct stat st;

	if (lstat(addr->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0)
		return -errno;
	if (!connect(probe, (const struct sockaddr *)addr, sizeof *addr) || errno != ECONNREFUSED)
		return -EADDRINUSE;
	return unlink(addr->sun_path) ? -errno : 0;
}

int unix_listen(const char *path, int type, const char *what, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -1;
	int rc;

	if (!*path || strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -ENAMETOOLONG, "%s \"%s\": must be 1..%zu bytes", what, path,
		                 sizeof addr.sun_path - 1);
	strcpy(addr.sun_path, path);
	rc = remove_stale(&addr, type);
	if (rc)
		return error_errno(err, rc, "%s \"%s\"", what, path);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, -errno, "%s \"%s\"", what, path);
	/* Before bind(), so that at no time anybody else may connect. */
	if (fchmod(fd, SOCKET_MODE) || bind(fd, (struct sockaddr *)&addr, sizeof addr) ||
	    chmod(path, SOCKET_MODE) || listen(fd, BACKLOG))
		return error_errno(err, -errno, "%s \"%s\"", what, path);
	return steal_fd(&fd);
}
