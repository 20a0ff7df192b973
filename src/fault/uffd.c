/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "util/kernel_abi.h"

/*
 * @done is what the kernel says it did: bytes, or a negative errno where it did nothing.
 * A short count without an error to it comes as EAGAIN as well: the caller goes on from
 * there and meets the real reason, or none.
 */
static int sort_result(int ret, int64_t done, uint64_t *ret_done)
{
	int error = ret ? errno : 0;

	*ret_done = done > 0 ? (uint64_t)done : 0;
	switch (error) {
	case 0:
		return UFFD_DONE;
	case EAGAIN:
		return UFFD_AGAIN;
	case EEXIST:
		return UFFD_EXISTS;
	case EFAULT:
		return UFFD_ABSENT;
	case ENOENT:
		return UFFD_UNMAPPED;
	case ESRCH:
		return UFFD_VMM_GONE;
	default:
		return -error;
	}
}

int uffd_continue(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_continue c = { .range = { .start = addr, .len = len } };
	int ret = ioctl(uffd, UFFDIO_CONTINUE, &c);

	return sort_result(ret, c.mapped, ret_done);
}

int uffd_copy(int uffd, uint64_t addr, const void *from, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_copy c = { .dst = addr, .src = (uintptr_t)from, .len = len };
	int ret = ioctl(uffd, UFFDIO_COPY, &c);

	return sort_result(ret, c.copy, ret_done);
}

int uffd_zeropage(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_zeropage z = { .range = { .start = addr, .len = len } };
	int ret = ioctl(uffd, UFFDIO_ZEROPAGE, &z);

	return sort_result(ret, z.zeropage, ret_done);
}

int uffd_poison(int uffd, uint64_t addr, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_poison p = { .range = { .start = addr, .len = len } };
	int ret = ioctl(uffd, UFFDIO_POISON, &p);

	return sort_result(ret, p.updated, ret_done);
}

int uffd_wake(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_range r = { .start = addr, .len = len };
	uint64_t done;

	return sort_result(ioctl(uffd, UFFDIO_WAKE, &r), 0, &done);
}

int uffd_unregister(int uffd, uint64_t addr, uint64_t len)
{
	struct uffdio_range r = { .start = addr, .len = len };

	if (!ioctl(uffd, UFFDIO_UNREGISTER, &r))
		return UFFD_DONE;
	switch (errno) {
	case EINVAL:
		return UFFD_UNMAPPED;
	case ENOMEM: /* it has no address space any more */
	case ESRCH:
		return UFFD_VMM_GONE;
	default:
		return -errno;
	}
}

/*
 * Since Linux 4.18 each ioctl that fills begins by looking at the count of such threads, and only
 * then at its range; this one has none.
 */
bool uffd_is_quiet(int uffd)
{
	uint64_t done;

	return uffd_zeropage(uffd, 0, 0, &done) != UFFD_AGAIN;
}
