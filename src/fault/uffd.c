/* SPDX-License-Identifier: Apache-2.0 */
#include "fault/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mem/descriptor.h"
#include "util/fdinfo.h"
#include "util/kernel_abi.h"

/* Of who may be told what is needed, and of who knows nothing of us, and moves no guest memory. */
#define EVENTS_NEEDED                                                                              \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP)
#define EVENTS_NEEDED_OF_FOREIGN UFFD_FEATURE_EVENT_REMOVE

static int read_kind(int fd, uint64_t *ret_features, struct error *err)
{
	int rc = descriptor_check_userfaultfd(fd, err);

	if (rc)
		return rc;
	uffd_set_nonblocking(fd);
	return fdinfo_uffd_features(fd, ret_features)
	               ? 0
	               : error_set(err, -EINVAL, "the userfaultfd does not tell its features");
}

int uffd_check_kind(int fd, struct error *err)
{
	uint64_t features;

	return read_kind(fd, &features, err);
}

int uffd_check(int fd, uint64_t claimed, bool foreign, struct error *err)
{
	uint64_t needed = foreign ? EVENTS_NEEDED_OF_FOREIGN : EVENTS_NEEDED;
	uint64_t features;
	int rc = read_kind(fd, &features, err);

	if (rc)
		return rc;
	if (claimed & ~features)
		return error_set(err, -EINVAL,
		                 "the userfaultfd has not the features %#" PRIx64
		                 " that it is said to have (%#" PRIx64 ")",
		                 claimed & ~features, claimed);
	if (needed & ~features)
		return error_set(err, -EINVAL,
		                 "the userfaultfd was made without the events %#" PRIx64
		                 " (UFFD_FEATURE_EVENT_REMOVE%s needed): what the VMM discards%s "
		                 "would go unnoticed",
		                 needed & ~features, foreign ? " is" : ", _UNMAP and _REMAP are",
		                 foreign ? "" : " or moves");
	return 0;
}

void uffd_set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && !(flags & O_NONBLOCK))
		(void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

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
