/* SPDX-License-Identifier: Apache-2.0 */
#include "util/fdinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util/cleanup.h"

int fdinfo_read(int fd, char text[FDINFO_BYTES])
{
	_cleanup_close_ int info = -1;
	char path[64];
	ssize_t len;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	len = info < 0 ? -1 : read(info, text, FDINFO_BYTES - 1);
	if (len < 0)
		return -errno;
	text[len] = 0;
	return 0;
}

bool fdinfo_parse_features(const char *text, uint64_t *ret)
{
	const char *line = strstr(text, "\nAPI:\taa:");

	return line && sscanf(line, "\nAPI:\taa:%" SCNx64 ":", ret) == 1;
}

bool fdinfo_uffd_features(int fd, uint64_t *ret)
{
	char text[FDINFO_BYTES];

	return !fdinfo_read(fd, text) && fdinfo_parse_features(text, ret);
}
