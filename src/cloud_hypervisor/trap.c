/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/trap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/fdinfo.h"

#define MINOR (UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS)

static void dir_close(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

/* Of one of its descriptors. Return: whether that is a userfaultfd. */
static bool read_features(pid_t pid, const char *number, uint64_t *ret)
{
	char path[300], text[FDINFO_BYTES];
	_cleanup_close_ int fd = -1;
	ssize_t len;

	snprintf(path, sizeof path, "/proc/%d/fd/%s", (int)pid, number);
	len = readlink(path, text, sizeof text - 1);
	text[len < 0 ? 0 : len] = '\0';
	if (strcmp(text, "anon_inode:[userfaultfd]") != 0)
		return false;
	snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", (int)pid, number);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	text[len < 0 ? 0 : len] = '\0';
	return fdinfo_parse_features(text, ret);
}

int ch_trap_check(pid_t pid, struct error *err)
{
	_cleanup_(dir_close) DIR *dir = NULL;
	struct dirent *entry;
	bool found = false;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return error_errno(err, -errno,
		                   "%s, which tells how Cloud Hypervisor traps its memory: this "
		                   "adapter must be of its user, or root",
		                   path);
	while ((entry = readdir(dir))) {
		uint64_t features;

		if (!read_features(pid, entry->d_name, &features))
			continue;
		found = true;
		if (features & MINOR)
			return 0;
	}
	return error_set(
	        err, -EOPNOTSUPP,
	        found ? "Cloud Hypervisor does not trap pages that are in its memory's "
	                "file already: version 54 does, or newer"
	              : "Cloud Hypervisor has no userfaultfd: it does not trap its memory");
}
