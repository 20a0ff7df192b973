/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/dirty_log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/descriptor.h"
#include "util/cleanup.h"
#include "util/fdinfo.h"
#include "util/kernel_abi.h"
#include "util/log.h"

/* Stretches that one scan returns. */
#define SCAN_MAX 512
/* Behind the bitmap, in a memfd of ours: the last harvest is in it. */
#define WHOLE 1ull

struct dirty_log {
	enum dirty_log_how how;
	struct region_table table;
	uint64_t first_word[REGIONS_MAX];
	uint64_t words; /* of all regions */
	int fds[DIRTY_LOG_FDS];
	_Atomic uint64_t *bitmap; /* words, and one that says WHOLE; the VMM may write there */
	size_t mapped_bytes;
	uint64_t *taken; /* words: of the harvest that is being told */
	pthread_mutex_t lock;
	bool started; /* under the lock: something may be protected */
};

uint64_t dirty_log_bytes(const struct region_table *table)
{
	uint64_t words = 0;

	for (uint32_t i = 0; i < table->n; i++)
		words += table->regions[i].words;
	return (words + 1) * sizeof(uint64_t);
}

/* One that nobody can make shorter, for it is mapped here. */
static int check_bitmap(const struct dirty_log *log, int fd, struct error *err)
{
	struct stat st;
	int seals;

	if (descriptor_identify(fd) != DESCRIPTOR_SHMEM)
		return error_set(err, -EINVAL, "the dirty bitmap is no memfd");
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return error_set(err, -EINVAL,
		                 "the dirty bitmap must be sealed against shrinking and not "
		                 "against writing");
	if (fstat(fd, &st))
		return error_errno(err, -errno, "the dirty bitmap");
	if ((uint64_t)st.st_size < log->mapped_bytes)
		return error_set(err, -EINVAL,
		                 "the dirty bitmap has %lld bytes, the guest's memory needs %zu",
		                 (long long)st.st_size, log->mapped_bytes);
	return 0;
}

static int make_bitmap(const struct dirty_log *log, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("postcopy-dirty", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)log->mapped_bytes) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return error_errno(err, -errno, "the dirty bitmap, of %zu bytes",
		                   log->mapped_bytes);
	*ret_fd = steal_fd(&fd);
	return 0;
}

static int check_kernel_fds(const int fds[DIRTY_LOG_FDS], struct error *err)
{
	uint64_t features = 0;

	if (descriptor_identify(fds[DIRTY_LOG_FD_UFFD]) != DESCRIPTOR_USERFAULTFD ||
	    !fdinfo_uffd_features(fds[DIRTY_LOG_FD_UFFD], &features))
		return error_set(err, -EINVAL, "what is to write-protect is no userfaultfd");
	if (!(features & UFFD_FEATURE_WP_ASYNC))
		return error_set(err, -EOPNOTSUPP,
		                 "the userfaultfd has not got WP_ASYNC (Linux 6.7): its features "
		                 "are %#llx",
		                 (unsigned long long)features);
	if (descriptor_identify(fds[DIRTY_LOG_FD_PAGEMAP]) != DESCRIPTOR_PROC_PAGEMAP)
		return error_set(err, -EINVAL, "what is to be scanned is no /proc/PID/pagemap");
	return 0;
}

/* @bitmap: borrowed. */
static int map_bitmap(struct dirty_log *log, int bitmap, struct error *err)
{
	void *at;

	log->taken = calloc(log->words, sizeof *log->taken);
	if (!log->taken)
		return error_set(err, -ENOMEM, "dirty log: out of memory");
	at = mmap(NULL, log->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bitmap, 0);

	if (at == MAP_FAILED)
		return error_errno(err, -errno, "the dirty bitmap can't be mapped");
	log->bitmap = at;
	return 0;
}

int dirty_log_new(const struct region_table *table, enum dirty_log_how how,
                  const int fds[DIRTY_LOG_FDS], struct dirty_log **ret, struct error *err)
{
	struct dirty_log *log = calloc(1, sizeof *log);
	_cleanup_close_ int made = -1;
	int bitmap = fds[DIRTY_LOG_FD_BITMAP], rc = 0;

	if (!log)
		return error_set(err, -ENOMEM, "dirty log: out of memory");
	log->how = how;
	log->table = *table;
	for (uint32_t i = 0; i < table->n; i++) {
		log->first_word[i] = log->words;
		log->words += table->regions[i].words;
	}
	log->mapped_bytes = dirty_log_bytes(table);
	if (how == DIRTY_LOG_BY_KERNEL)
		rc = check_kernel_fds(fds, err);
	if (!rc && how == DIRTY_LOG_BY_KERNEL && bitmap < 0) {
		rc = make_bitmap(log, &made, err);
		bitmap = made;
	}
	if (!rc)
		rc = check_bitmap(log, bitmap, err);
	if (!rc)
		rc = map_bitmap(log, bitmap, err);
	if (rc) {
		free(log->taken);
		free(log);
		return rc;
	}
	memcpy(log->fds, fds, sizeof log->fds);
	log->fds[DIRTY_LOG_FD_BITMAP] = bitmap;
	/* By another process, whose bitmap it is, perhaps. */
	log->started = made < 0;
	made = -1;
	pthread_mutex_init(&log->lock, NULL);
	*ret = log;
	return 0;
}

const struct region_table *dirty_log_table(const struct dirty_log *log)
{
	return &log->table;
}

enum dirty_log_how dirty_log_how(const struct dirty_log *log)
{
	return log->how;
}

int dirty_log_fd(const struct dirty_log *log, enum dirty_log_fd which)
{
	return log->fds[which];
}

static bool is_private(const struct dirty_log *log, uint32_t region)
{
	return log->table.regions[region].flags & POSTCOPY_REGION_PRIVATE;
}

static struct uffdio_range range_of(const struct region *r)
{
	return (struct uffdio_range){ .start = r->host_addr, .len = r->size };
}

/* What is unmapped by now has nothing to be taken back. The lock is held. */
static void unprotect(struct dirty_log *log)
{
	for (uint32_t i = 0; i < log->table.n && log->how == DIRTY_LOG_BY_KERNEL; i++) {
		struct uffdio_range range = range_of(&log->table.regions[i]);

		if (!is_private(log, i))
			(void)ioctl(log->fds[DIRTY_LOG_FD_UFFD], UFFDIO_UNREGISTER, &range);
	}
	log->started = false;
}

void dirty_log_stop(struct dirty_log *log)
{
	pthread_mutex_lock(&log->lock);
	if (log->started)
		unprotect(log);
	pthread_mutex_unlock(&log->lock);
}

struct dirty_log *dirty_log_free(struct dirty_log *log)
{
	if (!log)
		return NULL;
	munmap((void *)log->bitmap, log->mapped_bytes);
	for (int i = 0; i < DIRTY_LOG_FDS; i++)
		close_fd(&log->fds[i]);
	pthread_mutex_destroy(&log->lock);
	free(log->taken);
	free(log);
	return NULL;
}

static void set_bits(struct dirty_log *log, uint32_t region, uint64_t first, uint64_t end)
{
	_Atomic uint64_t *words = log->bitmap + log->first_word[region];

	while (first < end) {
		uint64_t word = first / WORD_UNITS, n = WORD_UNITS - first % WORD_UNITS;
		uint64_t mask = UINT64_MAX << (first % WORD_UNITS);

		if (end - first < n) {
			n = end - first;
			mask &= ~(UINT64_MAX << (first % WORD_UNITS + n));
		}
		atomic_fetch_or_explicit(&words[word], mask, memory_order_relaxed);
		first += n;
	}
}

/* A region's written pages into the bitmap. @flags: whether they are protected again. */
static int scan(struct dirty_log *log, uint32_t region, uint64_t flags, struct error *err)
{
	const struct region *r = &log->table.regions[region];
	struct page_region found[SCAN_MAX];
	struct pm_scan_arg arg = {
		.size = sizeof arg,
		.flags = flags | PM_SCAN_CHECK_WPASYNC,
		.start = r->host_addr,
		.end = r->host_addr + r->size,
		.vec = (uintptr_t)found,
		.vec_len = SCAN_MAX,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	while (arg.start < arg.end) {
		int n = ioctl(log->fds[DIRTY_LOG_FD_PAGEMAP], PAGEMAP_SCAN, &arg);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, -errno,
			                   "region %u: PAGEMAP_SCAN at %#llx of the source VMM",
			                   region, (unsigned long long)arg.start);
		for (int i = 0; i < n; i++)
			set_bits(log, region, (found[i].start - r->host_addr) >> UNIT_SHIFT,
			         (found[i].end - r->host_addr) >> UNIT_SHIFT);
		/* That of a VMM that has ended may stand still, or be at its end at once. */
		if (arg.walk_end <= arg.start)
			return error_set(err, -ESRCH, "region %u: the source VMM is gone", region);
		arg.start = arg.walk_end;
	}
	return 0;
}

/*
 * PAGEMAP_SCAN succeeds on what a process that has ended had, and finds nothing written; a read of
 * the same file has no byte. One whose memory is there now had it before, too.
 */
static int check_alive(const struct dirty_log *log, uint32_t region, struct error *err)
{
	uint64_t entry;
	off_t at = (off_t)((log->table.regions[region].host_addr >> UNIT_SHIFT) * sizeof entry);
	ssize_t n = pread(log->fds[DIRTY_LOG_FD_PAGEMAP], &entry, sizeof entry, at);

	if (n == (ssize_t)sizeof entry)
		return 0;
	return n < 0 ? error_errno(err, -errno, "region %u: the source VMM's pagemap", region)
	             : error_set(err, -ESRCH, "region %u: the source VMM is gone", region);
}

static int scan_all(struct dirty_log *log, uint64_t flags, struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; i < log->table.n && !rc; i++) {
		if (is_private(log, i))
			continue;
		rc = scan(log, i, flags, err);
		if (!rc)
			rc = check_alive(log, i, err);
	}
	return rc;
}

static int protect(struct dirty_log *log, struct error *err)
{
	for (uint32_t i = 0; i < log->table.n; i++) {
		struct uffdio_register r = { .range = range_of(&log->table.regions[i]),
			                     .mode = UFFDIO_REGISTER_MODE_WP };

		if (is_private(log, i) || !ioctl(log->fds[DIRTY_LOG_FD_UFFD], UFFDIO_REGISTER, &r))
			continue;
		if (errno == EINVAL)
			return error_set(err, -EOPNOTSUPP,
			                 "region %u: this kernel's userfaultfd can't write-protect "
			                 "%s memory at %#llx",
			                 i, memory_name(log->table.regions[i].memory),
			                 (unsigned long long)r.range.start);
		return error_errno(err, -errno, "region %u: UFFDIO_REGISTER to write-protect", i);
	}
	return scan_all(log, PM_SCAN_WP_MATCHING, err);
}

static void clear_all(struct dirty_log *log)
{
	for (uint64_t i = 0; i <= log->words; i++)
		atomic_store_explicit(&log->bitmap[i], 0, memory_order_relaxed);
}

int dirty_log_start(struct dirty_log *log, struct error *err)
{
	int rc = 0;

	pthread_mutex_lock(&log->lock);
	log->started = true;
	if (log->how == DIRTY_LOG_BY_KERNEL)
		rc = protect(log, err);
	/* All counted as written, until it was protected. */
	clear_all(log);
	if (rc)
		unprotect(log);
	pthread_mutex_unlock(&log->lock);
	return rc;
}

int dirty_log_harvest(struct dirty_log *log, struct error *err)
{
	int rc;

	if (log->how == DIRTY_LOG_BY_VMM)
		return 0;
	pthread_mutex_lock(&log->lock);
	rc = log->started ? scan_all(log, PM_SCAN_WP_MATCHING, err)
	                  : error_set(err, -ECANCELED, "the source's dirty log has been ended");
	pthread_mutex_unlock(&log->lock);
	return rc;
}

static void set_all(struct dirty_log *log)
{
	for (uint64_t i = 0; i < log->words; i++)
		atomic_store_explicit(&log->bitmap[i], UINT64_MAX, memory_order_relaxed);
}

/* Protecting nothing anew: whoever comes after a process that was killed here finds the same. */
void dirty_log_finish(struct dirty_log *log)
{
	struct error why = ERROR_INIT;

	if (log->how == DIRTY_LOG_BY_VMM)
		return;
	pthread_mutex_lock(&log->lock);
	if (log->bitmap[log->words] != WHOLE) {
		if (scan_all(log, 0, &why)) {
			log_warning("the last harvest of a dirty log: %s; so all of the guest "
			            "counts as written, and comes after the switchover",
			            why.text);
			set_all(log);
		}
		log->bitmap[log->words] = WHOLE;
	}
	pthread_mutex_unlock(&log->lock);
}

const uint64_t *dirty_log_take(struct dirty_log *log, uint32_t region, bool keep)
{
	const struct region *r = &log->table.regions[region];
	_Atomic uint64_t *from = log->bitmap + log->first_word[region];
	uint64_t *to = log->taken + log->first_word[region];

	for (uint64_t i = 0; i < r->words; i++) {
		to[i] = atomic_load_explicit(&from[i], memory_order_acquire);
		/* Most are clean, and are not to be written to. */
		if (to[i] && !keep)
			to[i] = atomic_exchange_explicit(&from[i], 0, memory_order_acq_rel);
		if (to[i])
			to[i] &= region_word_mask(r, i);
	}
	return to;
}
