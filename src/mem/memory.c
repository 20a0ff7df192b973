/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#include "util/cleanup.h"
#include "util/guard.h"

/* Pieces at least this large are dropped from the alias after reading, to bound its RSS. */
#define ALIAS_DROP_BYTES (64u * 1024u)

struct memory {
	enum postcopy_memory kind;
	int fd;
	uint64_t fd_offset;
	uint64_t size;
	uint64_t page_size;
	char *alias; /* NULL where none is needed */
	/* Cleared for good at the first pwrite() that the kernel doesn't know. */
	atomic_bool can_write;
};

struct memory *memory_free(struct memory *m)
{
	if (!m)
		return NULL;
	if (m->alias)
		munmap(m->alias, m->size);
	close_fd(&m->fd);
	free(m);
	return NULL;
}
/* Where the descriptor leads, as the kernel names it; empty where it can't tell. */
static void fd_name(int fd, char *buf, size_t size)
{
	char link[64];
	ssize_t len;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	len = readlink(link, buf, size - 1);
	buf[len < 0 ? 0 : len] = 0;
}

static int refuse(uint32_t index, enum postcopy_memory kind, int fd, const char *why,
                  struct error *err)
{
	char name[96];

	fd_name(fd, name, sizeof name);
	return error_set(err, -EINVAL, "region %u: descriptor (%s) is no %s: %s", index, name,
	                 memory_name(kind), why);
}

/* memfd and hugetlb: a file of the right kind that can't shrink under us. */
static int check_sealed_file(const struct memory *m, uint32_t index, struct error *err)
{
	bool huge = m->kind == POSTCOPY_MEMORY_HUGETLB;
	struct statfs fs;
	struct stat st;
	int seals;

	if (fstatfs(m->fd, &fs) || fstat(m->fd, &st))
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (huge && (fs.f_type != HUGETLBFS_MAGIC || (uint64_t)fs.f_bsize != m->page_size))
		return refuse(index, m->kind, m->fd, "not hugetlbfs of the region's page size",
		              err);
	if (!huge && fs.f_type != TMPFS_MAGIC)
		return refuse(index, m->kind, m->fd, "not shared memory", err);
	if (st.st_size < 0 || m->fd_offset + m->size > (uint64_t)st.st_size)
		return error_set(err, -EINVAL,
		                 "region %u: offset %#llx plus size %#llx exceed the descriptor's "
		                 "%#llx bytes",
		                 index, (unsigned long long)m->fd_offset,
		                 (unsigned long long)m->size, (unsigned long long)st.st_size);
	seals = fcntl(m->fd, F_GET_SEALS);
	if (seals < 0)
		return refuse(index, m->kind, m->fd, "it has no seals", err);
	if (!(seals & F_SEAL_SHRINK) && fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK))
		return refuse(index, m->kind, m->fd,
		              "it can't be sealed F_SEAL_SHRINK; create it with MFD_ALLOW_SEALING",
		              err);
	return 0;
}

static int check_guest_memfd(const struct memory *m, uint32_t index, struct error *err)
{
	struct stat st;
	char name[96];

	fd_name(m->fd, name, sizeof name);
	if (!strstr(name, "kvm-gmem"))
		return refuse(index, m->kind, m->fd, "not from KVM_CREATE_GUEST_MEMFD", err);
	if (fstat(m->fd, &st))
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (st.st_size < 0 || m->fd_offset + m->size > (uint64_t)st.st_size)
		return error_set(err, -EINVAL,
		                 "region %u: offset %#llx plus size %#llx exceed the guest_memfd's "
		                 "%#llx bytes",
		                 index, (unsigned long long)m->fd_offset,
		                 (unsigned long long)m->size, (unsigned long long)st.st_size);
	return 0;
}

static int check_proc_mem(const struct memory *m, uint32_t index, struct error *err)
{
	struct statfs fs;
	char name[96];
	size_t len;

	fd_name(m->fd, name, sizeof name);
	len = strlen(name);
	if (fstatfs(m->fd, &fs) || fs.f_type != PROC_SUPER_MAGIC || len < 4 ||
	    strcmp(name + len - 4, "/mem"))
		return refuse(index, m->kind, m->fd, "not a /proc/PID/mem", err);
	return 0;
}

static int check_fd(const struct memory *m, uint32_t index, bool writable, struct error *err)
{
	int flags = fcntl(m->fd, F_GETFL);

	if (flags < 0)
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (writable && (flags & O_ACCMODE) != O_RDWR)
		return refuse(index, m->kind, m->fd, "not open for reading and writing", err);
	if ((flags & O_ACCMODE) == O_WRONLY)
		return refuse(index, m->kind, m->fd, "not open for reading", err);
	switch (m->kind) {
	case POSTCOPY_MEMORY_MEMFD:
	case POSTCOPY_MEMORY_HUGETLB:
		return check_sealed_file(m, index, err);
	case POSTCOPY_MEMORY_GUEST_MEMFD:
		return check_guest_memfd(m, index, err);
	case POSTCOPY_MEMORY_ANONYMOUS:
		return check_proc_mem(m, index, err);
	}
	return error_set(err, -EINVAL, "region %u: unknown memory", index);
}

static int map_alias(struct memory *m, uint32_t index, int prot, struct error *err)
{
	m->alias = mmap(NULL, m->size, prot, MAP_SHARED, m->fd, (off_t)m->fd_offset);
	if (m->alias == MAP_FAILED) {
		m->alias = NULL;
		return error_errno(err, -errno, "region %u: mapping %llu MiB of %s", index,
		                   (unsigned long long)(m->size >> 20), memory_name(m->kind));
	}
	return 0;
}

static struct memory *memory_alloc(const struct region *region)
{
	struct memory *m = calloc(1, sizeof *m);

	if (!m)
		return NULL;
	m->kind = region->memory;
	m->fd = -1;
	m->fd_offset = region->fd_offset;
	m->size = region->size;
	m->page_size = region->page_size;
	return m;
}

/* On failure the descriptor stays the caller's. */
static int fail_open(struct memory *m, int rc)
{
	m->fd = -1;
	memory_free(m);
	return rc;
}

int memory_open_source(const struct region *region, uint32_t index, int fd, struct memory **ret,
                       struct error *err)
{
	struct memory *m = memory_alloc(region);
	int rc;

	if (!m)
		return error_set(err, -ENOMEM, "region %u: out of memory", index);
	m->fd = fd;
	rc = check_fd(m, index, false, err);
	if (!rc && m->kind == POSTCOPY_MEMORY_GUEST_MEMFD)
		rc = map_alias(m, index, PROT_READ, err);
	if (rc)
		return fail_open(m, rc);
	*ret = m;
	return 0;
}

/* Asked with nothing to write: a guest_memfd without write() is not seekable at all. */
static bool knows_pwrite(int fd, uint64_t offset)
{
	return pwrite(fd, "", 0, (off_t)offset) == 0;
}

int memory_open_destination(const struct region *region, uint32_t index, int fd,
                            struct memory **ret, struct error *err)
{
	struct memory *m = memory_alloc(region);
	int rc;

	if (!m)
		return error_set(err, -ENOMEM, "region %u: out of memory", index);
	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS) {
		*ret = m;
		return 0;
	}
	m->fd = fd;
	rc = check_fd(m, index, true, err);
	if (!rc && m->kind != POSTCOPY_MEMORY_MEMFD)
		rc = map_alias(m, index, PROT_READ | PROT_WRITE, err);
	if (rc)
		return fail_open(m, rc);
	atomic_store(&m->can_write,
	             m->kind == POSTCOPY_MEMORY_MEMFD || (m->kind == POSTCOPY_MEMORY_GUEST_MEMFD &&
	                                                  knows_pwrite(m->fd, m->fd_offset)));
	*ret = m;
	return 0;
}

int memory_read(struct memory *m, uint64_t offset, void *buf, size_t len)
{
	size_t done = 0;

	if (m->alias) {
		int rc = guard_copy(buf, m->alias + offset, len);

		if (len >= ALIAS_DROP_BYTES)
			madvise(m->alias + offset, len, MADV_DONTNEED);
		return rc;
	}
	while (done < len) {
		ssize_t n = pread(m->fd, (char *)buf + done, len - done,
		                  (off_t)(m->fd_offset + offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		/* A process that has exited reads as empty: all of it is gone, not this page. */
		if (!n)
			return m->kind == POSTCOPY_MEMORY_ANONYMOUS ? -ESRCH : -EFAULT;
		done += (size_t)n;
	}
	return 0;
}

static int fill_alias(struct memory *m, uint64_t offset, const void *buf, size_t len,
                      struct memory_filled *filled)
{
	int rc = guard_copy(m->alias + offset, buf, len);

	if (!rc)
		filled->memcpy += len >> UNIT_SHIFT;
	return rc;
}

/* The kernel says it has no write() here after all. */
static bool write_is_unknown(int error)
{
	return error == ESPIPE || error == ENODEV || error == EOPNOTSUPP || error == EINVAL;
}

int memory_fill(struct memory *m, uint64_t offset, const void *buf, size_t len, bool for_fault,
                struct memory_filled *filled)
{
	const char *from = buf;
	int rc = 0;

	while (!rc && len && memory_fill_method(m, for_fault) == MEMORY_FILL_WRITE) {
		ssize_t n = pwrite(m->fd, from, len, (off_t)(m->fd_offset + offset));
		size_t step;

		if (n < 0 && errno == EINTR)
			continue;
		if (n > 0) {
			filled->write += (size_t)n >> UNIT_SHIFT;
			step = (size_t)n;
		} else if (!m->alias) {
			return n < 0 ? -errno : -EIO;
		} else if (n < 0 && errno != EEXIST) {
			if (!write_is_unknown(errno))
				return -errno;
			atomic_store(&m->can_write, false);
			break;
		} else {
			/* A page that exists already: this kernel writes only absent ones. It is
			 * ours by claim and not mapped, so memcpy puts the content there. */
			rc = fill_alias(m, offset, from, UNIT_BYTES, filled);
			step = UNIT_BYTES;
		}
		from += step;
		offset += step;
		len -= step;
	}
	if (!rc && len)
		rc = m->alias ? fill_alias(m, offset, from, len, filled) : -EOPNOTSUPP;
	return rc;
}

bool memory_has(const struct memory *m, uint64_t offset)
{
	off_t at = (off_t)(m->fd_offset + offset);
	_cleanup_close_ int fd = -1;
	char link[64];
	off_t data;

	/* A description of our own: the VMM's has its offset for the VMM. */
	snprintf(link, sizeof link, "/proc/self/fd/%d", m->fd);
	fd = open(link, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	data = lseek(fd, at, SEEK_DATA);
	return data == at || (data < 0 && errno != ENXIO);
}

int memory_touch(struct memory *m, uint64_t offset)
{
	char byte;

	if (!m->alias)
		return -EOPNOTSUPP;
	return guard_copy(&byte, m->alias + offset, sizeof byte);
}

enum memory_fill memory_fill_method(const struct memory *m, bool for_fault)
{
	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS)
		return MEMORY_FILL_COPY;
	if (m->kind == POSTCOPY_MEMORY_GUEST_MEMFD && for_fault)
		return MEMORY_FILL_MEMCPY;
	return atomic_load_explicit(&m->can_write, memory_order_relaxed) ? MEMORY_FILL_WRITE
	                                                                 : MEMORY_FILL_MEMCPY;
}

int memory_fd(const struct memory *m)
{
	return m->fd;
}
