/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "mem/descriptor.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/guard.h"
#include "util/log.h"
#include "util/thread.h"

/* Pieces at least this large are dropped from the alias after reading, to bound its RSS. */
#define ALIAS_DROP_BYTES (64u * 1024u)

/* What is discarded at a time: populated and mapped, that takes some 20 ms. */
#define PUNCH_BYTES (64ull << 20)

struct memory {
	enum postcopy_memory kind;
	int fd;
	int seek_fd; /* memfd: a description of our own, for the VMM's has its offset for the VMM */
	uint64_t fd_offset;
	uint64_t size;
	uint64_t page_size;
	char *alias; /* NULL where none is needed */
	uint32_t index;
	bool asked;           /* destination: no userfaultfd of ours can fill it */
	bool may_shrink;      /* its file could not be sealed */
	atomic_bool is_short; /* and has shrunk below the region; told once */
	bool writes_huge;
	/* Cleared for good at the first pwrite() that the kernel doesn't know. */
	atomic_bool can_write;
};

struct memory *memory_free(struct memory *m)
{
	if (!m)
		return NULL;
	if (m->alias)
		munmap(m->alias, m->size);
	close_fd(&m->seek_fd);
	close_fd(&m->fd);
	free(m);
	return NULL;
}

/* All of the region lies in the file. Its kind is known: it may be asked. */
static int check_size(const struct memory *m, uint32_t index, struct error *err)
{
	struct stat st;

	if (fstat(m->fd, &st))
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (st.st_size < 0 || m->fd_offset + m->size > (uint64_t)st.st_size)
		return error_set(err, -EINVAL,
		                 "region %u: offset %#llx plus size %#llx exceed the descriptor's "
		                 "%#llx bytes",
		                 index, (unsigned long long)m->fd_offset,
		                 (unsigned long long)m->size, (unsigned long long)st.st_size);
	return 0;
}

static int refuse(const struct memory *m, uint32_t index, const char *why, struct error *err)
{
	char name[96];

	descriptor_name(m->fd, name, sizeof name);
	return error_set(err, -EINVAL, "region %u: descriptor (%s) of %s: %s", index, name,
	                 memory_name(m->kind), why);
}

/*
 * memfd and hugetlb: a file that can't shrink under us, if it can be made one (a memfd can, where
 * its maker allows it, a file of a tmpfs or hugetlbfs never), and where pages come that they can
 * come to. F_SEAL_FUTURE_WRITE lets the VMM's mapping be written, but no descriptor, and no mapping
 * of ours.
 */
static int check_seals(struct memory *m, uint32_t index, bool writable, struct error *err)
{
	int seals = fcntl(m->fd, F_GET_SEALS);

	if (seals < 0)
		return refuse(m, index, "it has no seals", err);
	if (writable && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return refuse(m, index,
		              seals & F_SEAL_WRITE ? "it is sealed F_SEAL_WRITE: no page can come"
		                                   : "it is sealed F_SEAL_FUTURE_WRITE: no page "
		                                     "can come",
		              err);
	m->may_shrink = !(seals & F_SEAL_SHRINK) && fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK);
	return 0;
}

static int check_page_size(const struct memory *m, uint32_t index, struct error *err)
{
	struct statfs fs;

	if (fstatfs(m->fd, &fs))
		return error_errno(err, -errno, "region %u: descriptor", index);
	if ((uint64_t)fs.f_bsize != m->page_size)
		return refuse(m, index, "its pages are not of the region's page size", err);
	return 0;
}

static int check_access(const struct memory *m, uint32_t index, bool writable, struct error *err)
{
	int flags = fcntl(m->fd, F_GETFL);

	if (flags < 0)
		return error_errno(err, -errno, "region %u: descriptor", index);
	if (writable && (flags & O_ACCMODE) != O_RDWR)
		return refuse(m, index, "not open for reading and writing", err);
	if ((flags & O_ACCMODE) == O_WRONLY)
		return refuse(m, index, "not open for reading", err);
	return 0;
}

static int check_fd(struct memory *m, uint32_t index, bool writable, struct error *err)
{
	int rc = descriptor_check_memory(m->fd, m->kind, index, err);

	if (!rc)
		rc = check_access(m, index, writable, err);
	if (rc || m->kind == POSTCOPY_MEMORY_ANONYMOUS)
		return rc;
	if (m->kind == POSTCOPY_MEMORY_HUGETLB)
		rc = check_page_size(m, index, err);
	if (!rc)
		rc = check_size(m, index, err);
	if (!rc && m->kind != POSTCOPY_MEMORY_GUEST_MEMFD)
		rc = check_seals(m, index, writable, err);
	return rc;
}

static int map_alias(struct memory *m, uint32_t index, int prot, struct error *err)
{
	m->alias = mmap(NULL, m->size, prot, MAP_SHARED, m->fd, (off_t)m->fd_offset);
	if (m->alias == MAP_FAILED) {
		m->alias = NULL;
		return error_errno(err, -errno, "region %u: mapping %llu MiB of %s", index,
		                   (unsigned long long)(m->size >> 20), memory_name(m->kind));
	}
	/* No huge page is to be made of what we touch. A kernel that makes none refuses. */
	(void)madvise(m->alias, m->size, MADV_NOHUGEPAGE);
	/* A core of ours would have the guest's memory in it, wherever it is piped to. */
	if (madvise(m->alias, m->size, MADV_DONTDUMP))
		return error_errno(err, -errno, "region %u: MADV_DONTDUMP of %s", index,
		                   memory_name(m->kind));
	return 0;
}

static struct memory *memory_alloc(const struct region *region, uint32_t index)
{
	struct memory *m = calloc(1, sizeof *m);

	if (!m)
		return NULL;
	m->kind = region->memory;
	m->fd = m->seek_fd = -1;
	m->fd_offset = region->fd_offset;
	m->size = region->size;
	m->page_size = region->page_size;
	m->asked = region->flags & POSTCOPY_REGION_ASKED;
	m->index = index;
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
	struct memory *m = memory_alloc(region, index);
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

/* Found by doing it, to a memfd of our own: they all are of one mount. */
static bool try_huge_write(void)
{
	_cleanup_close_ int fd = memfd_create("postcopy-huge", MFD_CLOEXEC);
	struct stat st;

	return fd >= 0 && !ftruncate(fd, 4 << 20) && pwrite(fd, "", 1, 0) == 1 && !fstat(fd, &st) &&
	       (uint64_t)st.st_blocks * 512 > UNIT_BYTES;
}

static int open_seek_fd(struct memory *m, uint32_t index, struct error *err)
{
	char link[64];

	snprintf(link, sizeof link, "/proc/self/fd/%d", m->fd);
	m->seek_fd = open(link, O_RDONLY | O_CLOEXEC);
	/* A file that only its owner may open: nobody reads guest memory by an offset. */
	if (m->seek_fd < 0 && (errno == EACCES || errno == EPERM))
		m->seek_fd = fcntl(m->fd, F_DUPFD_CLOEXEC, 0);
	if (m->seek_fd < 0)
		return error_errno(err, -errno, "region %u: opening the memfd anew", index);
	return 0;
}

/* Asked with nothing to write: a guest_memfd without write() is not seekable at all. */
static bool knows_pwrite(int fd, uint64_t offset)
{
	return pwrite(fd, "", 0, (off_t)offset) == 0;
}

/* It must not shrink: we read it. */
static int check_stage(struct memory *m, uint32_t index, struct error *err)
{
	int rc = descriptor_check_memory(m->fd, POSTCOPY_MEMORY_MEMFD, index, err);

	if (!rc)
		rc = check_access(m, index, true, err);
	if (!rc)
		rc = check_size(m, index, err);
	if (!rc)
		rc = check_seals(m, index, true, err);
	if (!rc && m->may_shrink)
		rc = refuse(m, index, "its stage must be a memfd that can be sealed", err);
	return rc ? rc : open_seek_fd(m, index, err);
}

int memory_open_destination(const struct region *region, uint32_t index, int fd,
                            struct memory **ret, struct error *err)
{
	struct memory *m = memory_alloc(region, index);
	int rc;

	if (!m)
		return error_set(err, -ENOMEM, "region %u: out of memory", index);
	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS && !region_is_staged(region)) {
		*ret = m;
		return 0;
	}
	m->fd = fd;
	rc = region_is_staged(region) ? check_stage(m, index, err) : check_fd(m, index, true, err);
	if (!rc && m->kind == POSTCOPY_MEMORY_MEMFD)
		rc = open_seek_fd(m, index, err);
	if (!rc && (m->kind != POSTCOPY_MEMORY_MEMFD || m->may_shrink || m->asked))
		rc = map_alias(m, index, PROT_READ | PROT_WRITE, err);
	if (rc)
		return fail_open(m, rc);
	m->writes_huge = m->kind == POSTCOPY_MEMORY_MEMFD && try_huge_write();
	atomic_store(&m->can_write, (m->kind == POSTCOPY_MEMORY_MEMFD && !m->may_shrink) ||
	                                    (m->kind == POSTCOPY_MEMORY_GUEST_MEMFD &&
	                                     knows_pwrite(m->fd, m->fd_offset)));
	*ret = m;
	return 0;
}

/* Whether the whole file has no page. KVM does not count a guest_memfd's. */
static bool is_all_hole(const struct memory *m)
{
	struct stat st;

	return m->kind != POSTCOPY_MEMORY_GUEST_MEMFD && !fstat(m->fd, &st) && !st.st_blocks;
}

/*
 * Piece by piece, for nobody else is served meanwhile: larger ones where there is nothing, for
 * those take no time.
 */
static int punch(const struct memory *m, uint32_t index, uint64_t deadline_ns, struct error *err)
{
	uint64_t piece = PUNCH_BYTES;

	for (uint64_t at = 0, len; at < m->size && !is_all_hole(m); at += len) {
		uint64_t begin_ns = thread_own_time_ns();

		if (begin_ns > deadline_ns)
			return error_set(err, -EFBIG,
			                 "region %u: its memory is not empty, and too much to "
			                 "discard from offset %#llx on: the VMM must do that "
			                 "before it attaches (FALLOC_FL_PUNCH_HOLE)",
			                 index, (unsigned long long)at);
		piece = piece < m->page_size ? m->page_size : piece;
		len = m->size - at < piece ? m->size - at : piece;
		if (fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		              (off_t)(m->fd_offset + at), (off_t)len))
			return error_errno(err, -errno, "region %u: discarding what is at %#llx",
			                   index, (unsigned long long)at);
		piece = thread_own_time_ns() - begin_ns < NSEC_PER_MSEC ? 2 * piece : PUNCH_BYTES;
	}
	return 0;
}

int memory_empty(struct memory *m, uint32_t index, uint64_t deadline_ns, struct error *err)
{
	int rc;

	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS || is_all_hole(m))
		return 0;
	rc = punch(m, index, deadline_ns, err);
	if (rc || m->kind != POSTCOPY_MEMORY_HUGETLB)
		return rc;
	/* What is discarded has lost its reservation, and a new mapping makes one. */
	munmap(steal_ptr(&m->alias), m->size);
	return map_alias(m, index, PROT_READ | PROT_WRITE, err);
}

/* For the moment: it may be made longer again, with zeroes in it. */
bool memory_is_cut_off(struct memory *m, uint64_t offset, uint64_t len)
{
	struct stat st;

	if (!m->may_shrink || fstat(m->fd, &st) ||
	    m->fd_offset + offset + len <= (uint64_t)st.st_size)
		return false;
	if (!atomic_exchange(&m->is_short, true))
		log_error("region %u: its file, which could not be sealed, was truncated to %lld "
		          "bytes: what was beyond is lost",
		          m->index, (long long)st.st_size);
	return true;
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
		if (!n) {
			(void)memory_is_cut_off(m, offset, len);
			return m->kind == POSTCOPY_MEMORY_ANONYMOUS ? -ESRCH : -EFAULT;
		}
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
	/* It won't be there at the next try: nobody can touch it any more. */
	return rc == -EFAULT && memory_is_cut_off(m, offset, len) ? -EIO : rc;
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

uint64_t memory_hole(const struct memory *m, uint64_t offset, uint64_t len)
{
	uint64_t at = m->fd_offset + offset;
	off_t data;

	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS)
		return len;
	data = lseek(m->seek_fd, (off_t)at, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? len : 0;
	return (uint64_t)data - at < len ? (uint64_t)data - at : len;
}

int memory_touch(struct memory *m, uint64_t offset)
{
	char byte;

	if (!m->alias || m->kind == POSTCOPY_MEMORY_MEMFD)
		return -EOPNOTSUPP;
	return guard_copy(&byte, m->alias + offset, sizeof byte);
}

bool memory_writes_huge(const struct memory *m)
{
	return m->writes_huge;
}

bool memory_may_shrink(const struct memory *m)
{
	return m->may_shrink;
}

enum memory_fill memory_fill_method(const struct memory *m, bool for_fault)
{
	if (m->kind == POSTCOPY_MEMORY_ANONYMOUS)
		return MEMORY_FILL_COPY;
	if ((m->kind == POSTCOPY_MEMORY_GUEST_MEMFD || m->asked) && for_fault)
		return MEMORY_FILL_MEMCPY;
	return atomic_load_explicit(&m->can_write, memory_order_relaxed) ? MEMORY_FILL_WRITE
	                                                                 : MEMORY_FILL_MEMCPY;
}

const void *memory_staged(const struct memory *m, uint64_t offset)
{
	return m->alias + offset;
}

void memory_unstage(const struct memory *m, uint64_t offset, uint64_t len)
{
	(void)fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                (off_t)(m->fd_offset + offset), (off_t)len);
}

bool memory_next_staged(const struct memory *m, uint64_t *offset)
{
	off_t data = lseek(m->seek_fd, (off_t)(m->fd_offset + *offset), SEEK_DATA);

	if (data < 0 || (uint64_t)data >= m->fd_offset + m->size)
		return false;
	*offset = (uint64_t)data - m->fd_offset;
	return true;
}

int memory_fd(const struct memory *m)
{
	return m->fd;
}
