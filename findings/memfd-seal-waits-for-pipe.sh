#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Pages of a memfd are in a pipe: splice() has put them there, and nobody has read them yet. They can't be
# written by that. Yet F_SEAL_WRITE is refused by EBUSY, as if there was a writable mapping, and only after
# the kernel has waited for the pages to be let go: longer than a frozen guest should ever stand still.
# The wait is within fcntl(), where no descriptor is waited for. F_SEAL_SHRINK and F_SEAL_GROW do
# not care. Once the pipe has been read the seal is taken at once. Bytes that were written to the pipe
# from a mapping, which are copied, do not count.
#
# So whoever hands a memfd on to be sealed (a VMM its state, a server a snapshot) must not splice() from
# it before, or empty the pipe first; whoever seals what a stranger hands over does not do it on its loop.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36):
#   copied into a pipe: F_SEAL_WRITE: Success, at once
#   spliced into a pipe: F_SEAL_SHRINK: Success, at once; F_SEAL_WRITE: Device or resource busy, after 100 ms or more
#   and then read: F_SEAL_WRITE: Success, at once
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SIZE 16384

static void die(const char *what)
{
	printf("can't be tried here: %s: %s\n", what, strerror(errno));
	exit(2);
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int make(int pipe_fds[2])
{
	static char bytes[SIZE];
	int fd = memfd_create("state", MFD_ALLOW_SEALING);

	memset(bytes, 1, sizeof bytes);
	if (fd < 0 || pipe2(pipe_fds, 0) || write(fd, bytes, SIZE) != SIZE)
		die("a memfd and a pipe");
	return fd;
}

static void seal(int fd, int seals, const char *name, const char *end)
{
	long began_ms = now_ms();
	const char *said = fcntl(fd, F_ADD_SEALS, seals) ? strerror(errno) : "Success";

	/* What is waited is 150 ms and more. Any but a very busy host takes less for nothing. */
	printf("%s: %s, %s%s", name, said, now_ms() - began_ms >= 100 ? "after 100 ms or more" : "at once",
	       end);
}

int main(void)
{
	static char bytes[SIZE];
	int fds[2], fd = make(fds);
	loff_t at = 0;

	if (pread(fd, bytes, SIZE, 0) != SIZE || write(fds[1], bytes, SIZE) != SIZE)
		die("copying");
	printf("copied into a pipe: ");
	seal(fd, F_SEAL_WRITE, "F_SEAL_WRITE", "\n");

	fd = make(fds);
	if (splice(fd, &at, fds[1], NULL, SIZE, 0) != SIZE)
		die("splice");
	printf("spliced into a pipe: ");
	seal(fd, F_SEAL_SHRINK, "F_SEAL_SHRINK", "; ");
	seal(fd, F_SEAL_WRITE, "F_SEAL_WRITE", "\n");
	if (read(fds[0], bytes, SIZE) != SIZE)
		die("reading the pipe");
	printf("and then read: ");
	seal(fd, F_SEAL_WRITE, "F_SEAL_WRITE", "\n");
	return 0;
}
EOF
cc -O1 -o "$dir/t" "$dir/t.c"
status=0
"$dir/t" >"$dir/seen" || status=$?
cat "$dir/seen"
if [ $status != 0 ]; then exit 2; fi
sed -n 's/^#   //p' "$0" | sed '/: F_SEAL_/!d' >"$dir/expected"
if ! cmp -s "$dir/seen" "$dir/expected"; then
	echo "another behaviour than the one that is written down"
	exit 1
fi
