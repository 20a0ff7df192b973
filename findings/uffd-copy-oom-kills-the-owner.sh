#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A process (a VMM) lives in a memory cgroup with a limit; another one, outside of it (a daemon), has
# its userfaultfd and fills its memory by UFFDIO_COPY. One would guess that whoever calls is
# charged, as for most that a system call allocates, or that at the limit the call fails. It does
# fail, by ENOMEM: but before that the kernel has charged the memory's owner, found its group at the
# limit, and ended a process of that group, SIGKILL, for a page that it had not asked for. The caller
# is never chosen. What was copied into shared memory stays charged to the group, also when nobody is
# left in it.
#
# The same bytes by pwrite() on the same memfd, and UFFDIO_CONTINUE for the owner's mapping, are charged
# to the writer: the owner's limit says nothing of them.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root, cgroup v1 and a group of 32 MiB for memory of
# 64 MiB:
#   anonymous: UFFDIO_COPY: Cannot allocate memory, short of 32 MiB; its owner: ended by signal 9; left in its group: 0 MiB
#   shared: UFFDIO_COPY: Cannot allocate memory, short of 32 MiB; its owner: ended by signal 9; left in its group: 32 MiB
#   written: UFFDIO_CONTINUE: Success, all 64 MiB; its owner: lives; left in its group: 0 MiB
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
group=
cleanup() {
	rm -rf "$dir"
	if [ -n "$group" ]; then rmdir "$group" || true; fi
}
trap cleanup EXIT
if [ -d /sys/fs/cgroup/memory ]; then
	parent=/sys/fs/cgroup/memory limit=memory.limit_in_bytes usage=memory.usage_in_bytes
elif grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null; then
	parent=/sys/fs/cgroup limit=memory.max usage=memory.current
else
	echo "can't be tried here: no memory controller at /sys/fs/cgroup"
	exit 2
fi
new=$parent/finding-$$
if ! mkdir "$new" 2>/dev/null || ! { group=$new && echo 32M >"$group/$limit"; } 2>/dev/null; then
	echo "can't be tried here: no group with a limit can be made below $parent (as root?)"
	exit 2
fi
if [ -e "$group/memory.swap.max" ]; then echo 0 >"$group/memory.swap.max"; fi
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define SIZE (64 * MIB)
#define PAGE 4096ul

struct guest {
	unsigned long address;
	int uffd;
};

static void die(const char *what)
{
	printf("can't be tried here: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* In the group: memory, registered, and nothing else. */
static void own(int sock, int memfd, int shared, int minor)
{
	int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	void *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, shared ? memfd : -1, 0);
	struct guest guest = { .address = (unsigned long)memory,
			       .uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK) };
	struct uffdio_api api = { .api = UFFD_API, .features = minor ? UFFD_FEATURE_MINOR_SHMEM : 0 };
	struct uffdio_register reg = {
		.range = { guest.address, SIZE },
		.mode = minor ? UFFDIO_REGISTER_MODE_MINOR : UFFDIO_REGISTER_MODE_MISSING,
	};

	if (memory == MAP_FAILED || guest.uffd < 0 || ioctl(guest.uffd, UFFDIO_API, &api) ||
	    ioctl(guest.uffd, UFFDIO_REGISTER, &reg))
		die("userfaultfd");
	if (write(sock, &guest, sizeof guest) != sizeof guest)
		die("telling");
	pause();
}

/* Return: how much of it there is. */
static unsigned long fill(const struct guest *guest, int uffd, int memfd, int minor)
{
	static char page[PAGE];
	unsigned long done;

	memset(page, 7, sizeof page);
	for (done = 0; done < SIZE; done += PAGE) {
		struct uffdio_copy copy = { .dst = guest->address + done,
					    .src = (unsigned long)page,
					    .len = PAGE };
		struct uffdio_continue map = { .range = { guest->address + done, PAGE } };

		if (minor && pwrite(memfd, page, PAGE, (off_t)done) != (ssize_t)PAGE)
			die("pwrite");
		if (minor ? ioctl(uffd, UFFDIO_CONTINUE, &map) : ioctl(uffd, UFFDIO_COPY, &copy))
			break;
		errno = 0;
	}
	return done;
}

static void try_it(const char *what, const char *group, const char *usage, int shared, int minor)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC), pair[2], uffd, error, status = 0;
	char path[256], text[32] = "";
	struct pollfd ended;
	struct guest guest;
	unsigned long done;
	pid_t pid;
	FILE *file;

	if (memfd < 0 || ftruncate(memfd, SIZE) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		die("a memfd");
	pid = fork();
	if (!pid) {
		snprintf(path, sizeof path, "%s/cgroup.procs", group);
		file = fopen(path, "w");
		if (!file || fprintf(file, "0") < 0 || fclose(file))
			die("joining the group");
		own(pair[1], memfd, shared, minor);
	}
	if (read(pair[0], &guest, sizeof guest) != sizeof guest)
		die("the other process");
	ended.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	ended.events = POLLIN;
	uffd = (int)syscall(SYS_pidfd_getfd, ended.fd, guest.uffd, 0);
	if (uffd < 0)
		die("pidfd_getfd");
	done = fill(&guest, uffd, memfd, minor);
	error = errno;
	/* One that was killed ends soon. */
	if (poll(&ended, 1, error ? 5000 : 500) > 0)
		snprintf(text, sizeof text, "ended by signal %d",
			 waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	else
		snprintf(text, sizeof text, "lives");
	snprintf(path, sizeof path, "%s/%s", group, usage);
	file = fopen(path, "r");
	if (!file || !fgets(path, sizeof path, file))
		die("the group's usage");
	fclose(file);
	printf("%s: %s: %s, %s; its owner: %s; left in its group: %lu MiB\n", what,
	       minor ? "UFFDIO_CONTINUE" : "UFFDIO_COPY", strerror(error),
	       done == SIZE ? "all 64 MiB" : done < 32 * MIB ? "short of 32 MiB" : "beyond 32 MiB",
	       text, (strtoul(path, NULL, 10) + MIB / 2) / MIB);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(memfd);
	close(uffd);
	close(ended.fd);
	close(pair[0]);
	close(pair[1]);
}

int main(int argc, char **argv)
{
	(void)argc;
	setvbuf(stdout, NULL, _IONBF, 0);
	try_it("anonymous", argv[1], argv[2], 0, 0);
	try_it("shared", argv[1], argv[2], 1, 0);
	try_it("written", argv[1], argv[2], 1, 1);
	return 0;
}
EOF
cc -O1 -o "$dir/t" "$dir/t.c"
status=0
"$dir/t" "$group" "$usage" >"$dir/seen" || status=$?
cat "$dir/seen"
if [ $status != 0 ]; then exit 2; fi
sed -n 's/^#   //p' "$0" | sed '/: UFFDIO_/!d' >"$dir/expected"
# What lies beside the pages (stacks, page tables) is not of interest: a MiB or two.
sed -E 's/: 3[0-9] MiB$/: some 32 MiB/; s/: [0-4] MiB$/: next to nothing/' "$dir/seen" >"$dir/a"
sed -E 's/: 3[0-9] MiB$/: some 32 MiB/; s/: [0-4] MiB$/: next to nothing/' "$dir/expected" >"$dir/b"
if ! cmp -s "$dir/a" "$dir/b"; then
	echo "another behaviour than the one that is written down"
	exit 1
fi
