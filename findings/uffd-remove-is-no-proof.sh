#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# UFFD_EVENT_REMOVE says what a madvise() is about to try, not what it has done: of shared memory the
# event comes also for calls that fail, and for one that leaves the content. Who takes it for "these
# pages are zero now" zeroes memory that nobody has discarded.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   MADV_FREE: event 0x15, then Invalid argument; the page holds what it held
#   MADV_REMOVE, F_SEAL_FUTURE_WRITE: event 0x15, then Operation not permitted; the page holds what it held
#   MADV_DONTNEED: event 0x15, then Success; the page holds what it held
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static char *memory;
static int advice, error;

static void *advise(void *arg)
{
	(void)arg;
	error = madvise(memory, 4096, advice) ? errno : 0;
	return NULL;
}

static int try(const char *name, int what, int seal, int expected)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	int fd = memfd_create("guest", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	struct uffd_msg msg = { 0 };
	char byte = 0;
	pthread_t thread;

	if (ftruncate(fd, 4096) || pwrite(fd, "x", 1, 0) != 1)
		exit(2);
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	reg.range = (struct uffdio_range){ (unsigned long)memory, 4096 };
	if ((seal && fcntl(fd, F_ADD_SEALS, seal)) || uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		printf("can't be tried here: %s\n", strerror(errno));
		exit(2);
	}
	advice = what;
	pthread_create(&thread, NULL, advise, NULL);
	if (poll(&p, 1, 10000) != 1 || read(uffd, &msg, sizeof msg) != sizeof msg)
		exit(1);
	pthread_join(thread, NULL);
	if (pread(fd, &byte, 1, 0) != 1)
		exit(1);
	printf("%s: event %#x, then %s; the page %s\n", name, msg.event, strerror(error),
	       byte == 'x' ? "holds what it held" : "is zero");
	close(uffd);
	return msg.event != UFFD_EVENT_REMOVE || error != expected || byte != 'x';
}

int main(void)
{
	int bad = try("MADV_FREE", MADV_FREE, 0, EINVAL);

	bad |= try("MADV_REMOVE, F_SEAL_FUTURE_WRITE", MADV_REMOVE, F_SEAL_FUTURE_WRITE, EPERM);
	bad |= try("MADV_DONTNEED", MADV_DONTNEED, 0, 0);
	return bad;
}
EOF
gcc -O1 -Wall -Wextra -pthread "$dir/t.c" -o "$dir/t"
uname -r
timeout 30 "$dir/t"
