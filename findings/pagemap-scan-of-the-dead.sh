#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A process has another one's /proc/PID/pagemap open, to tell what that has written (userfaultfd's
# WP_ASYNC and PAGEMAP_SCAN). The other one ends. One would guess that PAGEMAP_SCAN fails then, by ESRCH
# as userfaultfd's own calls do. It succeeds: nothing was written, and the walk went to its end, which is
# what it says of memory that is clean. So "clean" may mean that nobody is there, and whoever copies what
# was written copies nothing. A read() of the same descriptor does tell: it has no byte, as at the end
# of a file, where it had an entry before.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root:
#   alive, written: PAGEMAP_SCAN: 1 range, to the end: yes; pread: 8 bytes; UFFDIO_WRITEPROTECT: Success
#   alive, protected: PAGEMAP_SCAN: 0 ranges, to the end: yes; pread: 8 bytes; UFFDIO_WRITEPROTECT: Success
#   ended: PAGEMAP_SCAN: 0 ranges, to the end: yes; pread: 0 bytes; UFFDIO_WRITEPROTECT: No such process
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define SIZE (16 * PAGE)
/* Of Linux 6.7; headers may be older. */
#define WRITTEN (1u << 1)
#define WP_ASYNC (1u << 15)
#define WP_UNPOPULATED (1u << 13)

struct range {
	uint64_t start, end, categories;
};
struct scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN _IOWR('f', 16, struct scan)

struct guest {
	uint64_t address;
	int uffd;
};

static void die(const char *what)
{
	printf("can't be tried here: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void live(int sock)
{
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct guest guest = { .address = (uint64_t)(uintptr_t)memory,
			       .uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK) };
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | WP_ASYNC |
					      WP_UNPOPULATED };
	struct uffdio_register reg = { .range = { guest.address, SIZE },
				       .mode = UFFDIO_REGISTER_MODE_WP };

	if (memory == MAP_FAILED || guest.uffd < 0 || ioctl(guest.uffd, UFFDIO_API, &api) ||
	    ioctl(guest.uffd, UFFDIO_REGISTER, &reg))
		die("userfaultfd with WP_ASYNC");
	memset(memory, 1, SIZE);
	if (write(sock, &guest, sizeof guest) != sizeof guest)
		die("telling");
	pause();
}

static void look(const char *when, int pagemap, int uffd, uint64_t address)
{
	struct range found[4];
	struct scan scan = { .size = sizeof scan,
			     .start = address,
			     .end = address + SIZE,
			     .vec = (uintptr_t)found,
			     .vec_len = 4,
			     .category_mask = WRITTEN,
			     .return_mask = WRITTEN };
	struct uffdio_writeprotect protect = { .range = { address, SIZE },
					       .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	uint64_t entry;
	int n = ioctl(pagemap, SCAN, &scan);
	ssize_t len = pread(pagemap, &entry, sizeof entry, (off_t)(address / PAGE * sizeof entry));

	if (n < 0 && errno == ENOTTY)
		die("PAGEMAP_SCAN");
	errno = 0;
	ioctl(uffd, UFFDIO_WRITEPROTECT, &protect);
	printf("%s: PAGEMAP_SCAN: %d range%s, to the end: %s; pread: %zd bytes; "
	       "UFFDIO_WRITEPROTECT: %s\n",
	       when, n, n == 1 ? "" : "s", scan.walk_end == address + SIZE ? "yes" : "no", len,
	       strerror(errno));
}

int main(void)
{
	int pair[2], pidfd, pagemap, uffd;
	struct guest guest;
	char path[64];
	pid_t pid;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		die("socketpair");
	pid = fork();
	if (!pid) {
		close(pair[0]);
		live(pair[1]);
	}
	close(pair[1]);
	if (read(pair[0], &guest, sizeof guest) != sizeof guest)
		exit(2);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, guest.uffd, 0);
	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (uffd < 0 || pagemap < 0)
		die("the other process");
	look("alive, written", pagemap, uffd, guest.address);
	look("alive, protected", pagemap, uffd, guest.address);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	look("ended", pagemap, uffd, guest.address);
	return 0;
}
EOF
cc -O1 -o "$dir/t" "$dir/t.c"
status=0
"$dir/t" >"$dir/seen" || status=$?
cat "$dir/seen"
if [ $status != 0 ]; then exit 2; fi
sed -n 's/^#   //p' "$0" | sed '/: PAGEMAP_SCAN: /!d' >"$dir/expected"
if ! cmp -s "$dir/seen" "$dir/expected"; then
	echo "another behaviour than the one that is written down"
	exit 1
fi
