#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# One mremap() that moves a watched range raises two events where both were asked for: REMAP, and then
# UNMAP of the place it came from. It returns when the second one has been read; after the first one
# all fills are still refused (EAGAIN), at the new place as well. Who reads the REMAP and then fills
# before it reads on, waits for itself; who takes the UNMAP for the end of that memory, having looked
# it up by what REMAP has not yet changed, loses it.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   event 0x14 (REMAP): from the old place to the new one
#   300 ms later mremap() waits still; a fill at the new place: Resource temporarily unavailable
#   event 0x16 (UNMAP): the old place; mremap() has returned; a fill at the new place: Success
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
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEN (16 * 4096ul)

static char *old, *new;
static int uffd;
static atomic_bool returned;

static void *move(void *arg)
{
	(void)arg;
	mremap(old, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, new);
	atomic_store(&returned, true);
	return NULL;
}

static int fill(void)
{
	struct uffdio_zeropage z = { .range = { (uintptr_t)new, 4096 } };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &z) ? errno : 0;
}

static struct uffd_msg next_event(void)
{
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg = { 0 };

	if (poll(&p, 1, 10000) != 1 || read(uffd, &msg, sizeof msg) != sizeof msg)
		printf("no event\n");
	return msg;
}

int main(void)
{
	struct uffdio_api api = { .api = UFFD_API,
		                  .features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffd_msg first, second;
	int refused, filled;
	pthread_t thread;
	bool waits;

	old = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	new = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	reg.range = (struct uffdio_range){ (uintptr_t)old, LEN };
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		printf("no userfaultfd here: %s\n", strerror(errno));
		return 2;
	}
	pthread_create(&thread, NULL, move, NULL);
	first = next_event();
	printf("event %#x (REMAP): from %s to %s\n", first.event,
	       first.arg.remap.from == (uintptr_t)old ? "the old place" : "elsewhere",
	       first.arg.remap.to == (uintptr_t)new ? "the new one" : "elsewhere");
	usleep(300000);
	waits = !atomic_load(&returned);
	refused = fill();
	printf("300 ms later mremap() %s; a fill at the new place: %s\n",
	       waits ? "waits still" : "has returned", strerror(refused));
	second = next_event();
	pthread_join(thread, NULL);
	filled = fill();
	printf("event %#x (UNMAP): %s; mremap() has returned; a fill at the new place: %s\n",
	       second.event,
	       second.arg.remove.start == (uintptr_t)old ? "the old place" : "elsewhere",
	       strerror(filled));
	return first.event != UFFD_EVENT_REMAP || !waits || refused != EAGAIN ||
	       second.event != UFFD_EVENT_UNMAP ||
	       second.arg.remove.start != (uintptr_t)old || filled;
}
EOF
gcc -O1 -Wall -Wextra -pthread "$dir/t.c" -o "$dir/t"
uname -r
timeout 30 "$dir/t"
