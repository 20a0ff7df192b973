/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/mapping.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "util/cleanup.h"

/* One line of a maps file. */
struct piece {
	uint64_t start, end, offset, dev, ino;
	char perms[5];
	char path[MAPPING_PATH_BYTES];
};

static bool parse_piece(const char *line, struct piece *p)
{
	unsigned int dev_major, dev_minor;
	int at = 0;

	*p = (struct piece){ 0 };
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &p->start,
	           &p->end, p->perms, &p->offset, &dev_major, &dev_minor, &p->ino, &at) < 7)
		return false;
	p->dev = makedev(dev_major, dev_minor);
	snprintf(p->path, sizeof p->path, "%.*s", (int)strcspn(line + at, "\n"), line + at);
	return true;
}

int mapping_search(FILE *maps, uint64_t addr, uint64_t size, struct mapping *ret)
{
	_cleanup_free_ char *line = NULL;
	uint64_t at = addr, end = addr + size;
	struct mapping m = { 0 };
	size_t len = 0;

	while (at < end && getline(&line, &len, maps) > 0) {
		struct piece p;

		if (!parse_piece(line, &p) || p.end <= at)
			continue;
		if (p.start > at)
			return -ENOENT;
		if (at == addr) {
			m = (struct mapping){ .is_shared = p.perms[3] == 's',
				              .dev = p.dev,
				              .ino = p.ino,
				              .offset = p.offset + (addr - p.start) };
			memcpy(m.path, p.path, sizeof m.path);
		} else if (p.dev != m.dev || p.ino != m.ino || m.is_shared != (p.perms[3] == 's') ||
		           (m.ino && p.offset != m.offset + (at - addr))) {
			return -EXDEV;
		}
		at = p.end;
	}
	if (at < end)
		return -ENOENT;
	*ret = m;
	return 0;
}

int mapping_find(pid_t pid, uint64_t addr, uint64_t size, struct mapping *ret, struct error *err)
{
	_cleanup_fclose_ FILE *maps = NULL;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return error_errno(err, -errno, "can't look at %s", path);
	rc = mapping_search(maps, addr, size, ret);
	if (rc)
		return error_set(err, rc, "%s: what is at %#llx is %s", path,
		                 (unsigned long long)addr,
		                 rc == -ENOENT ? "not mapped" : "not one mapping of one file");
	return 0;
}

static DIR *open_dir(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	return opendir(path);
}

static void closedir_p(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

int mapping_open(pid_t pid, int pidfd, const struct mapping *m, struct error *err)
{
	_cleanup_(closedir_p) DIR *dir = open_dir(pid);
	_cleanup_close_ int fd = -1;
	struct dirent *entry;
	struct stat st;
	int copy;

	if (!dir)
		return error_errno(err, -errno, "can't look at the descriptors of process %d",
		                   (int)pid);
	while ((entry = readdir(dir))) {
		if (fstatat(dirfd(dir), entry->d_name, &st, 0) || st.st_dev != m->dev ||
		    st.st_ino != m->ino)
			continue;
		/* Its own, and not the file opened anew: we may open what it may not. */
		copy = descriptor_copy(pidfd, (int)strtol(entry->d_name, NULL, 10));
		if (copy < 0)
			return error_errno(err, copy, "can't copy QEMU's descriptor of %s",
			                   m->path);
		close_fd(&fd);
		fd = copy;
		if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR)
			break;
	}
	if (fd >= 0)
		return steal_fd(&fd);
	return error_set(err, -ENOENT, "process %d has %s mapped, but not open", (int)pid, m->path);
}

static bool maps_has(const char *pid, const struct mapping *m)
{
	_cleanup_fclose_ FILE *maps = NULL;
	_cleanup_free_ char *line = NULL;
	size_t len = 0;
	char path[64];

	snprintf(path, sizeof path, "/proc/%.20s/maps", pid);
	maps = fopen(path, "re");
	while (maps && getline(&line, &len, maps) > 0) {
		struct piece p;

		if (parse_piece(line, &p) && p.ino == m->ino && p.dev == m->dev)
			return true;
	}
	return false;
}

static void read_name(const char *pid, char name[32])
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[64];

	snprintf(path, sizeof path, "/proc/%.20s/comm", pid);
	f = fopen(path, "re");
	if (!f || !fgets(name, 32, f))
		snprintf(name, 32, "?");
	name[strcspn(name, "\n")] = 0;
}

pid_t mapping_find_other(pid_t pid, const struct mapping *m, char ret_name[32])
{
	_cleanup_(closedir_p) DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc))) {
		pid_t other = (pid_t)strtol(entry->d_name, NULL, 10);

		if (other <= 0 || other == pid || !maps_has(entry->d_name, m))
			continue;
		read_name(entry->d_name, ret_name);
		return other;
	}
	return 0;
}

int descriptor_number(pid_t pid, const char *link, bool is_prefix)
{
	_cleanup_(closedir_p) DIR *dir = open_dir(pid);
	size_t len = strlen(link);
	struct dirent *entry;

	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		char name[128];
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, name, sizeof name - 1);

		if (n < 0)
			continue;
		name[n] = 0;
		if (is_prefix ? !strncmp(name, link, len) : !strcmp(name, link))
			return (int)strtol(entry->d_name, NULL, 10);
	}
	return -ENOENT;
}

int descriptor_copy(int pidfd, int number)
{
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);

	return fd < 0 ? -errno : fd;
}
