/* SPDX-License-Identifier: Apache-2.0 */
#include "util/maps.h"

#include <errno.h>
#include <stdio.h>
#include <sys/sysmacros.h>

#include "util/cleanup.h"

int maps_search(FILE *f, uint64_t start, uint64_t end, uint64_t dev, uint64_t ino,
                uint64_t *ret_addr)
{
	_cleanup_free_ char *line = NULL;
	size_t size = 0;

	while (getline(&line, &size, f) > 0) {
		unsigned long long from, to, inode;
		unsigned int dev_major, dev_minor;
		char perms[5] = "";

		if (sscanf(line, "%llx-%llx %4s %*x %x:%x %llu", &from, &to, perms, &dev_major,
		           &dev_minor, &inode) != 6)
			continue;
		if (from >= end || to <= start || perms[3] != 'p' || inode != ino ||
		    dev_major != major(dev) || dev_minor != minor(dev))
			continue;
		*ret_addr = from > start ? from : start;
		return 0;
	}
	return -ENOENT;
}

int maps_find_private(pid_t pid, uint64_t start, uint64_t end, uint64_t dev, uint64_t ino,
                      uint64_t *ret_addr)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[64];

	snprintf(path, sizeof path, pid ? "/proc/%d/maps" : "/proc/self/maps", (int)pid);
	f = fopen(path, "re");
	return f ? maps_search(f, start, end, dev, ino, ret_addr) : -errno;
}
