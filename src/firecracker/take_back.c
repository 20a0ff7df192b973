/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/take_back.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"

static int read_handshake(const struct session *s, struct handshake *ret, struct error *err)
{
	_cleanup_free_ char *text = malloc(HANDSHAKE_BYTES_MAX);
	_cleanup_close_ int fd = session_open_file(s, "handshake", err);
	ssize_t n;
	int rc;

	if (fd < 0)
		return error_prefix(err, "what Firecracker has said of its memory");
	n = text ? read(fd, text, HANDSHAKE_BYTES_MAX) : -1;
	if (n < 0)
		return error_errno(err, -errno, "what Firecracker has said of its memory");
	rc = handshake_parse(text, (size_t)n, ret, err);
	return rc == -EAGAIN ? error_set(err, -EPROTO,
	                                 "what Firecracker has said of its memory is cut short")
	                     : rc;
}

/* The number of the only userfaultfd there. */
static int find_uffd(const struct session *s, int *ret, struct error *err)
{
	char path[64], name[64];
	struct dirent *entry;
	int found = -1;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)s->cred.pid);
	dir = opendir(path);
	if (!dir)
		return error_errno(err, -errno, "%s", path);
	while ((entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, name, sizeof name - 1);

		name[n < 0 ? 0 : n] = '\0';
		if (!strcmp(name, "anon_inode:[userfaultfd]"))
			found = atoi(entry->d_name);
	}
	closedir(dir);
	*ret = found;
	return found < 0 ? error_set(err, -ENOENT, "Firecracker has no userfaultfd") : 0;
}

int take_back(const struct session *s, struct handshake *ret, int *ret_uffd, struct error *err)
{
	int number = -1, rc = read_handshake(s, ret, err);

	if (!rc)
		rc = find_uffd(s, &number, err);
	if (rc)
		return rc;
	*ret_uffd = (int)syscall(SYS_pidfd_getfd, s->pidfd, number, 0);
	return *ret_uffd < 0 ? error_errno(err, -errno, "Firecracker's userfaultfd") : 0;
}
