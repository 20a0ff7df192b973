#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A range that was registered by one UFFDIO_REGISTER can't be filled by one ioctl once it has become
# two VMAs, as by a madvise() on its second half: UFFDIO_COPY, UFFDIO_ZEROPAGE and UFFDIO_POISON say
# ENOENT, the error of a range that is not registered, and do not do the part up to the border either.
# UFFDIO_WRITEPROTECT and UFFDIO_UNREGISTER take the same range. Who takes ENOENT for "unmapped, go on
# behind it" leaves pages out; on one page alone all of them succeed.
#
# Seen on Linux 6.18.44 (gcc 12.2, glibc 2.36), as root or with vm.unprivileged_userfaultfd=1:
#   one VMA:  ZEROPAGE Success
#   two VMAs: COPY No such file or directory, ZEROPAGE No such file or directory, POISON No such file or directory
#   its first page alone: ZEROPAGE Success
#   two VMAs: WRITEPROTECT Success, UNREGISTER Success
# Exit: 0 as seen; 1 where the kernel behaves differently; 2 where it can't be tried.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/t.c" <<'EOF'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Headers before Linux 6.6 lack it. */
struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define POISON _IOWR(UFFDIO, 0x08, struct poison)

static int uffd;

static int call(unsigned long request, void *arg)
{
	return ioctl(uffd, request, arg) ? errno : 0;
}

int main(void)
{
	const size_t page = 4096, len = 4 * page;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP };
	char *from = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *to = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_range all = { (uintptr_t)to, len };
	struct uffdio_zeropage z = { .range = { all.start, page } };
	struct uffdio_writeprotect wp = { .range = all, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct uffdio_copy copy = { .dst = all.start + page, .src = (uintptr_t)from, .len = 3 * page };
	struct poison poison = { .range = { all.start + page, 3 * page } };
	int one, two[3], first, taken[2];

	memset(from, 1, len);
	/* Nothing that one of its neighbours could be merged with. */
	madvise(to, len, MADV_RANDOM);
	reg.range = all;
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || call(UFFDIO_API, &api) || call(UFFDIO_REGISTER, &reg)) {
		printf("no userfaultfd here: %s\n", strerror(errno));
		return 2;
	}
	one = call(UFFDIO_ZEROPAGE, &z);
	printf("one VMA:  ZEROPAGE %s\n", strerror(one));
	madvise(to + 2 * page, 2 * page, MADV_SEQUENTIAL);
	two[0] = call(UFFDIO_COPY, &copy);
	z.range = (struct uffdio_range){ all.start + page, 3 * page };
	two[1] = call(UFFDIO_ZEROPAGE, &z);
	two[2] = call(POISON, &poison);
	printf("two VMAs: COPY %s, ZEROPAGE %s, POISON %s\n", strerror(two[0]), strerror(two[1]),
	       strerror(two[2]));
	z.range.len = page;
	first = call(UFFDIO_ZEROPAGE, &z);
	printf("its first page alone: ZEROPAGE %s\n", strerror(first));
	taken[0] = call(UFFDIO_WRITEPROTECT, &wp);
	taken[1] = call(UFFDIO_UNREGISTER, &all);
	printf("two VMAs: WRITEPROTECT %s, UNREGISTER %s\n", strerror(taken[0]), strerror(taken[1]));
	/* Before Linux 6.6 there is no poison. */
	return one || two[0] != ENOENT || two[1] != ENOENT ||
	       (two[2] != ENOENT && two[2] != EINVAL && two[2] != ENOTTY) || first || taken[0] ||
	       taken[1];
}
EOF
gcc -O1 -Wall -Wextra "$dir/t.c" -o "$dir/t"
uname -r
timeout 30 "$dir/t"
