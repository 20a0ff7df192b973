/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/floors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/kernel_abi.h"

#define FILL_BYTES (512u << 20)
#define FILL_PIECE (256u << 10)
#define PAGE_BYTES 4096u
#define TOUCHES 2000u
/* Not measured: the first ones pay for what the thread has never touched before. */
#define WARM_UP 50u

static int memfd_new(size_t bytes, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("floor", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return error_errno(err, -errno, "floors: memfd");
	return steal_fd(&fd);
}

static void fill_pattern(uint8_t *buf)
{
	for (size_t i = 0; i < FILL_PIECE; i++)
		buf[i] = (uint8_t)(i * 31 + 7);
}

int floor_pwrite(struct floor_rate *ret, struct error *err)
{
	_cleanup_close_ int fd = memfd_new(FILL_BYTES, err);
	static uint8_t piece[FILL_PIECE];
	struct floor_meter meter;

	if (fd < 0)
		return fd;
	fill_pattern(piece);
	meter = floor_meter_start(0);
	for (size_t at = 0; at < FILL_BYTES; at += FILL_PIECE)
		if (pwrite(fd, piece, FILL_PIECE, (off_t)at) != FILL_PIECE)
			return error_errno(err, -errno, "floors: pwrite");
	*ret = floor_meter_rate(&meter, FILL_BYTES);
	return 0;
}

int floor_memcpy(struct floor_rate *ret, struct error *err)
{
	_cleanup_close_ int fd = memfd_new(FILL_BYTES, err);
	static uint8_t piece[FILL_PIECE];
	struct floor_meter meter;
	uint8_t *map;

	if (fd < 0)
		return fd;
	map = mmap(NULL, FILL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return error_errno(err, -errno, "floors: mmap");
	fill_pattern(piece);
	meter = floor_meter_start(0);
	for (size_t at = 0; at < FILL_BYTES; at += FILL_PIECE)
		memcpy(map + at, piece, FILL_PIECE);
	*ret = floor_meter_rate(&meter, FILL_BYTES);
	munmap(map, FILL_BYTES);
	return 0;
}

/* The scene of a local fault. The handler owns nothing; both see the same fields. */
struct resolve {
	int uffd, fd;
	uint8_t *map;
	size_t bytes;
	int handler_code; /* the handler's; read after it was joined */
};

static int uffd_new(struct error *err)
{
	_cleanup_close_ int dev = -1;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0) {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	}
	return fd >= 0 ? fd : error_errno(err, -errno, "floors: userfaultfd");
}

static int resolve_one(struct resolve *s, const uint8_t *content)
{
	struct uffdio_continue cont = { .range.len = PAGE_BYTES };
	struct uffd_msg msg;

	if (read(s->uffd, &msg, sizeof msg) != sizeof msg)
		return -errno;
	cont.range.start = msg.arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1);
	if (pwrite(s->fd, content, PAGE_BYTES, (off_t)(cont.range.start - (uintptr_t)s->map)) !=
	    PAGE_BYTES)
		return -errno;
	return ioctl(s->uffd, UFFDIO_CONTINUE, &cont) < 0 ? -errno : 0;
}

static void *handler_main(void *arg)
{
	static const uint8_t content[PAGE_BYTES] = { 1 };
	struct resolve *s = arg;

	for (size_t i = 0; i < TOUCHES + WARM_UP && !s->handler_code; i++)
		s->handler_code = resolve_one(s, content);
	if (s->handler_code) {
		struct uffdio_range range = { (uintptr_t)s->map, s->bytes };

		/* Lets the toucher go: its pages read as zeroes from here. */
		ioctl(s->uffd, UFFDIO_UNREGISTER, &range);
	}
	return NULL;
}

static int resolve_register(struct resolve *s, struct error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM };
	struct uffdio_register reg = {
		.range = { (uintptr_t)s->map, s->bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};

	if (ioctl(s->uffd, UFFDIO_API, &api) < 0)
		return error_errno(err, -errno, "floors: UFFDIO_API");
	if (ioctl(s->uffd, UFFDIO_REGISTER, &reg) < 0)
		return error_errno(err, -errno, "floors: UFFDIO_REGISTER");
	return 0;
}

static int resolve_measure(struct resolve *s, struct histogram *ret_ns, struct error *err)
{
	pthread_t handler;
	int r = resolve_register(s, err);

	if (r < 0)
		return r;
	r = pthread_create(&handler, NULL, handler_main, s);
	if (r)
		return error_errno(err, -r, "floors: thread");
	for (size_t i = 0; i < TOUCHES + WARM_UP; i++) {
		uint64_t start = clock_now_ns();

		(void)*(volatile uint8_t *)(s->map + i * PAGE_BYTES);
		if (i >= WARM_UP)
			histogram_add(ret_ns, clock_now_ns() - start);
	}
	pthread_join(handler, NULL);
	return s->handler_code ? error_errno(err, s->handler_code, "floors: resolving a fault") : 0;
}

int floor_uffd_resolve(struct histogram *ret_ns, struct error *err)
{
	struct resolve s = { .bytes = (size_t)(TOUCHES + WARM_UP) * PAGE_BYTES };
	_cleanup_close_ int fd = memfd_new(s.bytes, err);
	_cleanup_close_ int uffd = fd < 0 ? fd : uffd_new(err);
	int r;

	if (uffd < 0)
		return uffd;
	s.fd = fd;
	s.uffd = uffd;
	s.map = mmap(NULL, s.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (s.map == MAP_FAILED)
		return error_errno(err, -errno, "floors: mmap");
	r = resolve_measure(&s, ret_ns, err);
	munmap(s.map, s.bytes);
	return r;
}
