/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gmem-fill: filling fresh guest memory by pwrite() and by memcpy through a mapping, one after
 * the other in turn, as memory.c does both; prints the medians and their ratio.
 *
 *   gmem-fill [MIB] [ROUNDS]
 *
 * One line each for memfd and guest_memfd; where this kernel can't, it says why. Exits 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "util/clock.h"
#include "util/kernel_abi.h"

#define PIECE_BYTES (256u * 1024u)
#define ROUNDS_MAX 101

static uint8_t piece[PIECE_BYTES];

static int open_memfd(uint64_t size)
{
	int fd = memfd_create("gmem-fill", MFD_CLOEXEC);

	return fd < 0 || ftruncate(fd, (off_t)size) ? -1 : fd;
}

/* The VM is left open: the memory belongs to it. */
static int open_guest_memfd(uint64_t size)
{
	struct kvm_create_guest_memfd create = {
		.size = size, .flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
	};
	static int vm = -1;
	int kvm;

	if (vm < 0) {
		kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
		vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	}
	return vm < 0 ? -1 : ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);
}

/* Return: nanoseconds, or 0 with errno set. */
static uint64_t fill_by_pwrite(int fd, uint64_t size)
{
	uint64_t start = clock_now_ns();

	for (uint64_t at = 0; at < size; at += sizeof piece)
		if (pwrite(fd, piece, sizeof piece, (off_t)at) != (ssize_t)sizeof piece)
			return 0;
	return clock_now_ns() - start;
}

static uint64_t fill_by_memcpy(int fd, uint64_t size)
{
	uint8_t *to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint64_t start = clock_now_ns(), took;

	if (to == MAP_FAILED)
		return 0;
	for (uint64_t at = 0; at < size; at += sizeof piece)
		memcpy(to + at, piece, sizeof piece);
	took = clock_now_ns() - start;
	munmap(to, size);
	return took;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static double median_ms_per_gib(uint64_t *ns, unsigned int n, uint64_t size)
{
	qsort(ns, n, sizeof *ns, compare);
	return (double)ns[n / 2] / 1e6 * (double)(1ull << 30) / (double)size;
}

static void measure(const char *name, int (*open_memory)(uint64_t size), uint64_t size,
                    unsigned int rounds)
{
	static uint64_t (*const fills[])(int fd, uint64_t size) = { fill_by_pwrite,
		                                                    fill_by_memcpy };
	static const char *const words[] = { "pwrite", "memcpy" };
	uint64_t ns[2][ROUNDS_MAX];
	double ms[2] = { 0, 0 };

	for (unsigned int round = 0; round < rounds; round++)
		for (unsigned int i = 0; i < 2; i++) {
			int fd = open_memory(size);

			ns[i][round] = fd < 0 ? 0 : fills[i](fd, size);
			if (!ns[i][round] && !round)
				printf("%-12s %s: not on this kernel: %s\n", name, words[i],
				       strerror(errno));
			if (fd >= 0)
				close(fd);
		}
	for (unsigned int i = 0; i < 2; i++)
		if (ns[i][0]) {
			ms[i] = median_ms_per_gib(ns[i], rounds, size);
			printf("%-12s %s %.0f ms/GiB\n", name, words[i], ms[i]);
		}
	if (ms[0] > 0 && ms[1] > 0)
		printf("%-12s memcpy takes %.2f times as long as pwrite\n", name, ms[1] / ms[0]);
}

int main(int argc, char **argv)
{
	uint64_t mib = argc > 1 ? strtoull(argv[1], NULL, 10) : 128;
	unsigned int rounds = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 10) : 5;

	if (!mib || !rounds || rounds > ROUNDS_MAX) {
		fprintf(stderr, "usage: gmem-fill [MIB] [ROUNDS, 1..%d]\n", ROUNDS_MAX);
		return 2;
	}
	memset(piece, 0x5a, sizeof piece);
	measure("memfd", open_memfd, mib << 20, rounds);
	measure("guest_memfd", open_guest_memfd, mib << 20, rounds);
	return 0;
}
