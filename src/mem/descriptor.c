/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/descriptor.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mem/region.h"
#include "util/cleanup.h"
#include "util/fdinfo.h"

#define NAME_BYTES 128

void descriptor_name(int fd, char *buf, size_t size)
{
	char link[64];
	ssize_t len;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	len = readlink(link, buf, size - 1);
	buf[len < 0 ? 0 : len] = 0;
}

/*
 * A name alone is a user's to choose: a file system in user space may show any. But it has handles
 * to its files, as each that can be mounted without privilege and may not answer; /proc and KVM's
 * have none. The kernel tells from what is in its memory.
 */
static bool has_no_handles(int fd)
{
	struct {
		struct file_handle head;
		unsigned char room[MAX_HANDLE_SZ];
	} handle = { .head.handle_bytes = MAX_HANDLE_SZ };
	int mount;

	return name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH) &&
	       errno == EOPNOTSUPP;
}

/* "/proc/PID/FILE"; or ".../PID/FILE", of a /proc that is mounted elsewhere. */
bool descriptor_names_proc(const char *name, const char *file)
{
	size_t len = strlen(name), file_len = strlen(file);
	const char *end = name + len - file_len - 1;

	if (len < file_len + 3 || *end != '/' || strcmp(end + 1, file))
		return false;
	for (len = 0; end > name && isdigit((unsigned char)end[-1]); end--)
		len++;
	return len && end > name && end[-1] == '/';
}

bool descriptor_names_mem(const char *name)
{
	return descriptor_names_proc(name, "mem");
}

static bool is_unix_socket(int fd)
{
	int domain = 0;
	socklen_t len = sizeof domain;

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_UNIX;
}

enum descriptor_kind descriptor_identify(int fd)
{
	char name[NAME_BYTES];
	uint64_t features;
	struct statfs fs;

	/* Answered by shmem and hugetlbfs only; then it may be asked for more. */
	if (fcntl(fd, F_GET_SEALS) >= 0)
		return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC ? DESCRIPTOR_HUGETLB
		                                                             : DESCRIPTOR_SHMEM;
	if (is_unix_socket(fd))
		return DESCRIPTOR_UNIX_SOCKET;
	/* The names of files begin with a slash: "anon_inode:" is the kernel's. */
	descriptor_name(fd, name, sizeof name);
	if (!strcmp(name, "anon_inode:[userfaultfd]") && fdinfo_uffd_features(fd, &features))
		return DESCRIPTOR_USERFAULTFD;
	if (!strcmp(name, "anon_inode:[kvm-gmem]"))
		return DESCRIPTOR_GUEST_MEMFD;
	/* Of kernels in which guest_memfd has a file system of its own. */
	if (!strcmp(name, "/[kvm-gmem] (deleted)") && has_no_handles(fd))
		return DESCRIPTOR_GUEST_MEMFD;
	if (descriptor_names_mem(name) && has_no_handles(fd))
		return DESCRIPTOR_PROC_MEM;
	if (descriptor_names_proc(name, "pagemap") && has_no_handles(fd))
		return DESCRIPTOR_PROC_PAGEMAP;
	return DESCRIPTOR_OTHER;
}

static const struct {
	enum descriptor_kind kind;
	const char *what;
} wanted[] = {
	[POSTCOPY_MEMORY_MEMFD] = { DESCRIPTOR_SHMEM, "it is not shared memory" },
	[POSTCOPY_MEMORY_HUGETLB] = { DESCRIPTOR_HUGETLB, "it is not hugetlbfs" },
	[POSTCOPY_MEMORY_GUEST_MEMFD] = { DESCRIPTOR_GUEST_MEMFD,
	                                  "it is not from KVM_CREATE_GUEST_MEMFD" },
	[POSTCOPY_MEMORY_ANONYMOUS] = { DESCRIPTOR_PROC_MEM, "it is not a /proc/PID/mem" },
};

int descriptor_check_memory(int fd, enum postcopy_memory memory, uint32_t index, struct error *err)
{
	char name[NAME_BYTES];

	if (memory >= sizeof wanted / sizeof *wanted || !wanted[memory].what)
		return error_set(err, -EINVAL, "region %u: unknown memory", index);
	if (fcntl(fd, F_GETFD) < 0)
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (descriptor_identify(fd) == wanted[memory].kind)
		return 0;
	descriptor_name(fd, name, sizeof name);
	return error_set(err, -EINVAL, "region %u: descriptor (%s) is no %s: %s", index, name,
	                 memory_name(memory), wanted[memory].what);
}

int descriptor_check_userfaultfd(int fd, struct error *err)
{
	char name[NAME_BYTES];

	if (descriptor_identify(fd) == DESCRIPTOR_USERFAULTFD)
		return 0;
	descriptor_name(fd, name, sizeof name);
	return error_set(err, -EINVAL, "the userfaultfd's descriptor (%s) is no userfaultfd", name);
}

int descriptor_file(int fd, struct descriptor_file *ret)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	*ret = (struct descriptor_file){ .dev = st.st_dev,
		                         .ino = st.st_ino,
		                         .frozen = seals >= 0 && (seals & F_SEAL_WRITE) };
	return 0;
}

/*
 * A process, for a thread that waits beyond SIGKILL would keep us from ending. It shares our
 * descriptors, so that what it closes is ours, and touches nothing else: other threads' locks are
 * as they were when it was made.
 */
static void close_elsewhere(int fd)
{
	while (waitpid(-1, NULL, WNOHANG | __WCLONE) > 0)
		;
	if (syscall(SYS_clone, CLONE_FILES, NULL, NULL, NULL, NULL))
		return;
	syscall(SYS_close, fd);
	syscall(SYS_exit_group, 0);
	__builtin_unreachable();
}

void descriptor_discard(int *fd)
{
	/* One that nobody can close stays open: that costs a number, and not all guests. */
	if (*fd >= 0 && descriptor_identify(*fd) == DESCRIPTOR_OTHER)
		close_elsewhere(*fd);
	else
		close_fd(fd);
	*fd = -1;
}
