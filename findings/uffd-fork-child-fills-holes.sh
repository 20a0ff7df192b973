#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A process whose shared memory is registered in userfaultfd's MISSING mode forks, without
# UFFD_FEATURE_EVENT_FORK. Its child's mapping is not registered, which is written down. What one
# would not guess: the child's mere *read* of a page that is not there yet puts a page of zeroes into
# the shared file; and from then on the parent itself reads zeroes there, and no event says so: for
# MISSING that page is present. UFFDIO_COPY of the content that was on its way fails by EEXIST.
#
# MADV_DONTFORK keeps the child out. MINOR mode still raises an event in the parent (for a page that
# the child has made; so "MINOR" does not mean that somebody has filled it). read() of the file's
# descriptor, in contrast to a read by mapping, makes no page.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   missing: the child: read 0, 0 events; the parent's read: 0 events, saw 0; UFFDIO_COPY then: File exists
#   dontfork: the child: signal 11, 0 events; the parent's read: 1 event (MISSING); UFFDIO_COPY then: Success
#   descriptor: the child: read 0, 0 events; the parent's read: 1 event (MISSING); UFFDIO_COPY then: Success
#   minor: the child: read 0, 0 events; the parent's read: 1 event (MINOR); UFFDIO_COPY then: File exists
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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE 4096

static volatile unsigned char *memory;
static volatile unsigned char seen;

static void die(const char *what)
{
	printf("can't be tried here: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void *read_it(void *arg)
{
	seen = memory[0];
	return arg;
}

static int events(int uffd, int wait_ms)
{
	struct pollfd fd = { .fd = uffd, .events = POLLIN };

	return poll(&fd, 1, wait_ms) > 0;
}

/* What the child met: 0 or a signal. */
static int child_reads(int memory_fd, int by_descriptor)
{
	char byte;
	int status;
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (!child) {
		/* It would wait for ever where it is trapped. */
		alarm(5);
		if (by_descriptor)
			_exit(pread(memory_fd, &byte, 1, 0) != 1);
		_exit(memory[0]);
	}
	waitpid(child, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	int minor = argc > 1 && !strcmp(argv[1], "minor");
	int dontfork = argc > 1 && !strcmp(argv[1], "dontfork");
	int descriptor = argc > 1 && !strcmp(argv[1], "descriptor");
	struct uffdio_api api = { .api = UFFD_API,
		                  .features = minor ? UFFD_FEATURE_MINOR_SHMEM : 0 };
	static unsigned char content[SIZE];
	struct uffdio_copy copy = { .src = (unsigned long)content, .len = SIZE };
	struct uffdio_register range = { .range.len = SIZE };
	int fd = memfd_create("guest", MFD_CLOEXEC), uffd, met, trapped, rc;
	struct uffd_msg event;
	pthread_t reader;

	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (ftruncate(fd, SIZE) || memory == MAP_FAILED || uffd < 0)
		die("userfaultfd");
	range.range.start = (unsigned long)memory;
	range.mode = minor ? UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR
	                   : UFFDIO_REGISTER_MODE_MISSING;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
		die("registering");
	if (dontfork && madvise((void *)memory, SIZE, MADV_DONTFORK))
		die("MADV_DONTFORK");
	met = child_reads(fd, descriptor);
	printf("the child: %s%d, %d events; ", met ? "signal " : "read ", met, events(uffd, 0));
	memset(content, 7, SIZE);
	seen = 1;
	pthread_create(&reader, NULL, read_it, NULL);
	trapped = events(uffd, 1000);
	if (!trapped) {
		pthread_join(reader, NULL);
		printf("the parent's read: 0 events, saw %d; ", seen);
	} else if (read(uffd, &event, sizeof event) == sizeof event) {
		printf("the parent's read: 1 event (%s); ",
		       event.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ? "MINOR" : "MISSING");
	}
	copy.dst = (unsigned long)memory;
	rc = ioctl(uffd, UFFDIO_COPY, &copy) ? errno : 0;
	printf("UFFDIO_COPY then: %s\n", strerror(rc));
	return 0;
}
EOF
gcc -O2 -Wall -Wextra -pthread -o "$dir/t" "$dir/t.c"
status=0
# $1: how; $2: what is to be seen
try()
{
	rc=0
	said=$("$dir/t" "$1") || rc=$?
	echo "$1: $said"
	[ "$rc" = 2 ] && exit 2
	[ "$said" = "$2" ] || status=1
}
try missing "the child: read 0, 0 events; the parent's read: 0 events, saw 0; UFFDIO_COPY then: File exists"
try dontfork "the child: signal 11, 0 events; the parent's read: 1 event (MISSING); UFFDIO_COPY then: Success"
try descriptor "the child: read 0, 0 events; the parent's read: 1 event (MISSING); UFFDIO_COPY then: Success"
try minor "the child: read 0, 0 events; the parent's read: 1 event (MINOR); UFFDIO_COPY then: File exists"
exit "$status"
