#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After UFFDIO_UNREGISTER has returned 0, a madvise() that had begun before still waits until its
# event is read from the userfaultfd: for good, where the reader stopped when it had unregistered.
# The manual page does not say so. What tells when nobody waits any more: an ioctl that fills, of an
# empty range, answers EAGAIN as long as somebody does, and EINVAL afterwards.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   madvise() waits for its event; UNREGISTER: 0
#   300 ms later madvise() waits still; a fill says: Resource temporarily unavailable
#   its event was read (0x15); madvise(): 0; a fill says: Invalid argument
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
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *memory;
static atomic_int result = -1;

static void *discard(void *arg)
{
	(void)arg;
	atomic_store(&result, madvise(memory, 4096, MADV_DONTNEED) ? errno : 0);
	return NULL;
}

static int fill_nothing(int uffd)
{
	struct uffdio_zeropage z = { 0 };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &z) ? errno : 0;
}

int main(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg = { 0 };
	int rc, before, waits, after;
	pthread_t thread;

	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.range = (struct uffdio_range){ (unsigned long)memory, 4096 };
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		printf("no userfaultfd here: %s\n", strerror(errno));
		return 2;
	}
	pthread_create(&thread, NULL, discard, NULL);
	if (poll(&p, 1, 10000) != 1)
		return 1;
	rc = ioctl(uffd, UFFDIO_UNREGISTER, &reg.range);
	printf("madvise() waits for its event; UNREGISTER: %d\n", rc);
	usleep(300000);
	waits = atomic_load(&result) == -1;
	before = fill_nothing(uffd);
	printf("300 ms later madvise() %s; a fill says: %s\n",
	       waits ? "waits still" : "has returned", strerror(before));
	if (read(uffd, &msg, sizeof msg) != sizeof msg)
		return 1;
	pthread_join(thread, NULL);
	after = fill_nothing(uffd);
	printf("its event was read (%#x); madvise(): %d; a fill says: %s\n", msg.event,
	       atomic_load(&result), strerror(after));
	return rc || !waits || before != EAGAIN || atomic_load(&result) || after != EINVAL;
}
EOF
gcc -O1 -Wall -Wextra -pthread "$dir/t.c" -o "$dir/t"
uname -r
timeout 30 "$dir/t"
