/* SPDX-License-Identifier: Apache-2.0 */
#include "libpostcopy/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "libpostcopy/table.h"
#include "util/cleanup.h"
#include "util/fdinfo.h"
#include "util/kernel_abi.h"

/*
 * Asked for where the kernel offers them: the daemon tells by THREAD_ID which vCPU waited. FORK is
 * not: the regions are MADV_DONTFORK. guest_memfd has no bit to ask for; whether it registers says
 * what the kernel can do.
 */
#define FEATURES_WANTED                                                                            \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP |         \
	 UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM |  \
	 UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_THREAD_ID)

/* All of them or none: also where no page is, and of every kind of memory. */
#define FEATURES_TO_LOG                                                                            \
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/*
 * Not UFFD_USER_MODE_ONLY: vCPUs fault inside KVM_RUN, and with that flag they would
 * get EFAULT. The device needs only access to itself, the syscall a capability.
 */
static int create(int *ret_fd, struct error *err)
{
	_cleanup_close_ int dev = -1;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int rc = -errno;

	if (fd < 0) {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		if (dev >= 0)
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	}
	if (fd < 0)
		return error_errno(err, rc,
		                   "can't create a userfaultfd that traps KVM's accesses; give "
		                   "this process CAP_SYS_PTRACE or access to /dev/userfaultfd");
	*ret_fd = fd;
	return 0;
}

static int handshake(int fd, uint64_t features, uint64_t *ret_offered, struct error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api))
		return error_errno(err, -errno, "UFFDIO_API with features %#llx",
		                   (unsigned long long)features);
	*ret_offered = api.features;
	return 0;
}

int uffd_open(int *ret_fd, uint64_t *ret_features, struct error *err)
{
	_cleanup_close_ int scratch = -1, fd = -1;
	uint64_t offered = 0, features;
	int rc;

	/* A userfaultfd takes one handshake only, so what is on offer is asked on another. */
	rc = create(&scratch, err);
	if (!rc)
		rc = handshake(scratch, 0, &offered, err);
	if (!rc)
		rc = create(&fd, err);
	if (rc)
		return rc;
	features = offered & FEATURES_WANTED;
	rc = handshake(fd, features, &offered, err);
	if (rc)
		return rc;
	*ret_features = features;
	*ret_fd = steal_fd(&fd);
	return 0;
}

int uffd_adopt(int fd, uint64_t *ret_features, struct error *err)
{
	/* Not for trapping anything, so any user may have it. */
	_cleanup_close_ int scratch =
	        (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	uint64_t offered = FEATURES_WANTED, features;
	int rc;

	if (scratch >= 0)
		(void)handshake(scratch, 0, &offered, NULL);
	features = offered & FEATURES_WANTED;
	rc = handshake(fd, features, &offered, NULL);
	/* Who made it has done so. */
	if (rc && !fdinfo_uffd_features(fd, &features))
		return error_errno(err, rc, "fd %d: UFFDIO_API: is it a userfaultfd?", fd);
	if (!features)
		return error_set(
		        err, -EINVAL,
		        "fd %d: the userfaultfd has no features: give one before UFFDIO_API, "
		        "or made with the events REMOVE, UNMAP and REMAP",
		        fd);
	*ret_features = features;
	return 0;
}

int uffd_adopt_to_log(int fd, struct error *err)
{
	uint64_t features = 0;
	int rc = handshake(fd, FEATURES_TO_LOG, &features, NULL);

	/* Refused: the kernel has not got them; or it was done by who made it. */
	if (rc && !fdinfo_uffd_features(fd, &features))
		return error_errno(err, rc, "fd %d: UFFDIO_API: is it a userfaultfd?", fd);
	if ((features & FEATURES_TO_LOG) == FEATURES_TO_LOG)
		return 0;
	return error_set(err, -EOPNOTSUPP,
	                 "this kernel's userfaultfd, or this one, has not got WP_ASYNC, by which "
	                 "writes are noted (Linux 6.7)");
}

int uffd_open_to_log(int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -1;
	int rc = create(&fd, err);

	if (!rc)
		rc = uffd_adopt_to_log(fd, err);
	if (!rc)
		*ret_fd = steal_fd(&fd);
	return rc;
}

static int try_register(int fd, const struct postcopy_region *r, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)r->host_addr, .len = r->size },
		.mode = mode,
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

/* Pages come to it by its descriptor. */
static int check_writable(const struct postcopy_region *r, size_t index, struct error *err)
{
	int seals = fcntl(r->fd, F_GET_SEALS);
	int flags = fcntl(r->fd, F_GETFL);

	if (flags >= 0 && (flags & O_ACCMODE) != O_RDWR)
		return error_set(err, -EINVAL,
		                 "region %zu: fd %d is not open for reading and writing", index,
		                 r->fd);
	if (seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return error_set(err, -EINVAL,
		                 "region %zu: fd %d is sealed against writing (F_SEAL_WRITE or "
		                 "F_SEAL_FUTURE_WRITE): no page can come",
		                 index, r->fd);
	return 0;
}

int uffd_empty_file(const struct postcopy_region *r, size_t index, struct error *err)
{
	int rc = check_writable(r, index, err);

	if (rc)
		return rc;
	if (fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)r->fd_offset,
	              (off_t)r->size))
		return error_errno(err, -errno,
		                   "region %zu: can't discard what its %s memory holds "
		                   "(FALLOC_FL_PUNCH_HOLE)",
		                   index, table_memory_name(r->memory));
	return 0;
}

/* Whatever it was populated with: read, written, allocated, or only locked. */
static int discard(const struct postcopy_region *r, size_t index, struct error *err)
{
	if (r->memory != POSTCOPY_MEMORY_ANONYMOUS)
		return uffd_empty_file(r, index, err);
	/* The first is not known before Linux 5.18, and the second not for locked memory. */
	if (madvise(r->host_addr, r->size, MADV_DONTNEED_LOCKED) &&
	    madvise(r->host_addr, r->size, MADV_DONTNEED))
		return error_errno(
		        err, -errno, "region %zu: can't discard what is at %p (MADV_DONTNEED)%s",
		        index, r->host_addr,
		        errno == EINVAL ? "; before Linux 5.18 it may not be locked" : "");
	return 0;
}

int uffd_trap(int fd, const struct postcopy_region *r, size_t index, uint32_t *ret_mode,
              struct error *err)
{
	uint64_t mode = UFFDIO_REGISTER_MODE_MISSING;
	int rc;

	if (r->memory != POSTCOPY_MEMORY_ANONYMOUS)
		mode |= UFFDIO_REGISTER_MODE_MINOR;
	rc = try_register(fd, r, mode);
	/*
	 * Both first: of the guest_memfd kernels some offer MINOR alone, and some let the
	 * guest read zeroes where MISSING is not registered too. The daemon knows which by
	 * trying, and refuses.
	 */
	if (rc == -EINVAL && r->memory == POSTCOPY_MEMORY_GUEST_MEMFD) {
		mode = UFFDIO_REGISTER_MODE_MINOR;
		rc = try_register(fd, r, mode);
	}
	if (rc == -EINVAL)
		return error_set(err, -EOPNOTSUPP,
		                 "region %zu: this kernel's userfaultfd can't trap %s memory%s, or "
		                 "host_addr is not a mapping of it",
		                 index, table_memory_name(r->memory),
		                 mode & UFFDIO_REGISTER_MODE_MINOR ? " in MINOR mode" : "");
	if (rc)
		return error_errno(err, rc, "region %zu: UFFDIO_REGISTER of %s memory at %p", index,
		                   table_memory_name(r->memory), r->host_addr);
	*ret_mode = (uint32_t)mode;
	return 0;
}

int uffd_register(int fd, const struct postcopy_region *r, size_t index, uint32_t *ret_mode,
                  struct error *err)
{
	int rc;

	/*
	 * A huge page that khugepaged, MADV_COLLAPSE or the first touch made of a few small ones
	 * would hold zeroes where pages are absent. A kernel that makes none does not know the
	 * advice.
	 */
	if (madvise(r->host_addr, r->size, MADV_NOHUGEPAGE) && errno != EINVAL)
		return error_errno(err, -errno, "region %zu: MADV_NOHUGEPAGE at %p", index,
		                   r->host_addr);
	/* Before: after it the madvise() would wait for somebody who reads its event. */
	rc = discard(r, index, err);
	if (!rc)
		rc = uffd_trap(fd, r, index, ret_mode, err);
	if (rc)
		return rc;
	if (madvise(r->host_addr, r->size, MADV_DONTFORK)) {
		rc = error_errno(err, -errno, "region %zu: MADV_DONTFORK at %p", index,
		                 r->host_addr);
		uffd_unregister(fd, r->host_addr, r->size);
	}
	return rc;
}

int uffd_trap_again(int fd, void *addr, uint64_t size, uint32_t mode)
{
	const struct postcopy_region r = { .host_addr = addr, .size = size };

	return try_register(fd, &r, mode);
}

void uffd_unregister(int fd, const void *addr, uint64_t size)
{
	struct uffdio_range range = { .start = (uintptr_t)addr, .len = size };

	/* Part of it may be unmapped by now; closing the descriptor takes the rest. */
	ioctl(fd, UFFDIO_UNREGISTER, &range);
}
