/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/vmstate_pipe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "util/cleanup.h"

/* What an unprivileged user may have: most of a vmstate. */
#define PIPE_BYTES (1 << 20)
#define PIPE_MODE (S_ISVTX | S_IRUSR | S_IWUSR)
#define PIECE_BYTES (256u << 10)
#define COMPARE_BYTES (64u << 10)
/* An offset of the vmstate: something is being put into the pipe. */
#define UNDER_WAY ((off_t)1 << 62)

int vmstate_pipe_make(int *ret_from, int *ret_to, int *ret_own, struct error *err)
{
	char path[32];
	int ends[2];

	if (pipe2(ends, O_CLOEXEC))
		return error_errno(err, -errno, "can't make a pipe");
	*ret_from = ends[0];
	*ret_to = ends[1];
	(void)fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
	if (fchmod(ends[1], PIPE_MODE))
		return error_errno(err, -errno, "can't mark a pipe");
	snprintf(path, sizeof path, "/proc/self/fd/%d", ends[1]);
	*ret_own = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
	return *ret_own < 0 ? error_errno(err, -errno, "can't open a pipe once more") : 0;
}

static void closedir_p(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

int vmstate_pipe_find(pid_t pid)
{
	_cleanup_(closedir_p) DIR *dir = NULL;
	struct dirent *entry;
	struct stat st;
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		if (fstatat(dirfd(dir), entry->d_name, &st, 0) || !S_ISFIFO(st.st_mode) ||
		    (st.st_mode & ~(mode_t)S_IFMT) != PIPE_MODE)
			continue;
		/* Whichever end it is: that is another one to write to. */
		fd = openat(dirfd(dir), entry->d_name, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
		return fd < 0 ? -errno : fd;
	}
	return -ENOENT;
}

/* Of bytes that lie at @at. Return: how many went in, or -errno. */
static ssize_t put(int pipe, int vmstate, off_t at, const char *bytes, size_t n)
{
	ssize_t done;
	int rc;

	if (lseek(vmstate, UNDER_WAY, SEEK_SET) < 0)
		return -errno;
	done = write(pipe, bytes, n);
	rc = -errno;
	if (lseek(vmstate, done > 0 ? at + done : at, SEEK_SET) < 0)
		return -errno;
	return done < 0 ? rc : done;
}

/* Until QEMU has read something, or reads no more. */
static void wait_for_room(int pipe)
{
	struct pollfd pfd = { .fd = pipe, .events = POLLOUT };

	(void)poll(&pfd, 1, -1);
}

int vmstate_pipe_fill(int pipe, int vmstate, uint64_t len, bool wait, struct error *err)
{
	_cleanup_free_ char *buf = malloc(PIECE_BYTES);
	uint64_t at;

	if (!buf)
		return error_set(err, -ENOMEM, "out of memory");
	while ((at = vmstate_pipe_filled(vmstate)) < len) {
		size_t n = len - at < PIECE_BYTES ? (size_t)(len - at) : PIECE_BYTES;
		ssize_t done = pread(vmstate, buf, n, (off_t)at);

		if (done <= 0)
			return error_errno(err, done ? -errno : -EIO, "can't read the vmstate");
		done = put(pipe, vmstate, (off_t)at, buf, (size_t)done);
		if (done == -EPIPE || (done == -EAGAIN && !wait))
			return 0;
		if (done == -EAGAIN)
			wait_for_room(pipe);
		else if (done < 0 && done != -EINTR)
			return error_errno(err, (int)done, "QEMU's pipe");
	}
	return 0;
}

uint64_t vmstate_pipe_filled(int vmstate)
{
	off_t at = lseek(vmstate, 0, SEEK_CUR);

	return at < 0 || at >= UNDER_WAY ? VMSTATE_PIPE_UNKNOWN : (uint64_t)at;
}

bool vmstate_begins_alike(int a, int b, uint64_t len)
{
	_cleanup_free_ char *buf = malloc(2 * COMPARE_BYTES);

	for (uint64_t at = 0; buf && at < len;) {
		size_t n = len - at < COMPARE_BYTES ? (size_t)(len - at) : COMPARE_BYTES;

		if (pread(a, buf, n, (off_t)at) != (ssize_t)n ||
		    pread(b, buf + n, n, (off_t)at) != (ssize_t)n || memcmp(buf, buf + n, n))
			return false;
		at += n;
	}
	return buf;
}
