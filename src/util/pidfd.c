/* SPDX-License-Identifier: Apache-2.0 */
#include "util/pidfd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/fdinfo.h"
#include "util/kernel_abi.h"

int pidfd_of(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : fd;
}

/* The names of files begin with a slash: these are the kernel's. The second is since Linux 6.9. */
static bool is_pidfd(int fd)
{
	char link[64], name[64];
	ssize_t len;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	len = readlink(link, name, sizeof name - 1);
	if (len < 0)
		return false;
	name[len] = 0;
	return !strcmp(name, "anon_inode:[pidfd]") || !strncmp(name, "pidfd:[", strlen("pidfd:["));
}

int pidfd_pid(int fd)
{
	char text[FDINFO_BYTES];
	const char *line;
	int flags = fcntl(fd, F_GETFL), pid, rc;

	if (flags < 0)
		return -errno;
	/* PIDFD_THREAD is O_EXCL: of a thread, whose end is not the process's. */
	if (!is_pidfd(fd) || (flags & O_EXCL))
		return -EINVAL;
	rc = fdinfo_read(fd, text);
	if (rc)
		return rc;
	line = strstr(text, "\nPid:\t");
	if (!line || sscanf(line, "\nPid:\t%d", &pid) != 1)
		return -EINVAL;
	return pid > 0 ? pid : -ESRCH;
}

int pidfd_kill(int fd)
{
	return syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) ? -errno : 0;
}

bool pidfd_has_ended(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) > 0;
}

static int uids_of_status(pid_t pid, uid_t ret[3])
{
	char path[64], text[2048];
	_cleanup_close_ int fd = -1;
	const char *line;
	ssize_t len;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (len < 0)
		return -errno;
	text[len] = 0;
	line = strstr(text, "\nUid:\t");
	return line && sscanf(line, "\nUid:\t%u\t%u\t%u", &ret[0], &ret[1], &ret[2]) == 3 ? 0
	                                                                                  : -EPROTO;
}

int pidfd_uids(int fd, uid_t ret[3])
{
	struct pidfd_info info = { .mask = PIDFD_INFO_CREDS };
	int pid, rc;

	if (!ioctl(fd, PIDFD_GET_INFO, &info) && (info.mask & PIDFD_INFO_CREDS)) {
		ret[0] = info.ruid;
		ret[1] = info.euid;
		ret[2] = info.suid;
		return 0;
	}
	pid = pidfd_pid(fd);
	rc = pid < 0 ? pid : uids_of_status(pid, ret);
	/* It had that number all the time, if it is there still. */
	return rc ? rc : pidfd_has_ended(fd) ? -ESRCH : 0;
}
