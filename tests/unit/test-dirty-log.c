/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mem/dirty_log.h"
#include "util/cleanup.h"
#include "util/kernel_abi.h"

#define PAGES 200u /* not whole words */
#define SIZE (PAGES * (size_t)UNIT_BYTES)
#define SIZE_2M (2ull << 20)

/* A process's memory and the log that the kernel keeps of it. */
struct guest {
	struct region_table table;
	int fd;
	uint8_t *addr;
	struct dirty_log *log;
};

static void add_region(struct region_table *table, enum postcopy_memory memory, uint64_t size,
                       void *addr)
{
	struct region r = { .memory = memory,
		            .guest_phys_addr = table->size_bytes,
		            .size = size,
		            .page_size = memory == POSTCOPY_MEMORY_HUGETLB ? SIZE_2M : UNIT_BYTES,
		            .host_addr = (uintptr_t)addr };

	assert_int_equal(region_table_add(table, &r, NULL), 0);
}

static int make_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API,
		                  .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
		                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM };

	if (fd < 0) {
		printf("userfaultfd: %s\n", strerror(errno));
		return -1;
	}
	if (!ioctl(fd, UFFDIO_API, &api))
		return fd;
	printf("this kernel has no WP_ASYNC (Linux 6.7)\n");
	close(fd);
	return -1;
}

static int make_memfd(size_t size, int seals)
{
	int fd = memfd_create("test-dirty", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* Return: false where this host can't, with the reason printed. */
static bool guest_init(struct guest *g, enum postcopy_memory memory, size_t size)
{
	int fds[DIRTY_LOG_FDS] = { -1, make_uffd(), open("/proc/self/pagemap", O_RDONLY) };
	struct error err = ERROR_INIT;
	unsigned int flags = memory == POSTCOPY_MEMORY_HUGETLB ? MFD_HUGETLB | MFD_HUGE_2MB : 0;

	*g = (struct guest){ .fd = -1 };
	if (fds[DIRTY_LOG_FD_UFFD] < 0)
		return false;
	if (memory != POSTCOPY_MEMORY_ANONYMOUS) {
		g->fd = memfd_create("test-guest", MFD_CLOEXEC | flags);
		assert_int_equal(ftruncate(g->fd, (off_t)size), 0);
	}
	g->addr = mmap(NULL, size, PROT_READ | PROT_WRITE,
	               g->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, g->fd, 0);
	if (g->addr == MAP_FAILED) {
		printf("no memory of kind %s: %s\n", memory_name(memory), strerror(errno));
		return false;
	}
	add_region(&g->table, memory, size, g->addr);
	if (dirty_log_new(&g->table, DIRTY_LOG_BY_KERNEL, fds, &g->log, &err))
		fail_msg("%s", err.text);
	return true;
}

static void guest_deinit(struct guest *g)
{
	dirty_log_free(g->log);
	munmap(g->addr, g->table.size_bytes);
	close_fd(&g->fd);
}

static bool bit(const uint64_t *bits, uint64_t unit)
{
	return bits[unit / WORD_UNITS] >> (unit % WORD_UNITS) & 1;
}

static uint64_t count(const uint64_t *bits, const struct region *r)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < r->words; i++)
		n += (uint64_t)__builtin_popcountll(bits[i]);
	return n;
}

/* Exactly these, ended by -1. */
static void assert_dirty(struct dirty_log *log, const struct region_table *table, int keep, ...)
{
	const uint64_t *bits = dirty_log_take(log, 0, keep);
	uint64_t n = 0;
	va_list ap;
	int unit;

	va_start(ap, keep);
	for (; (unit = va_arg(ap, int)) >= 0; n++)
		assert_true(bit(bits, (uint64_t)unit));
	va_end(ap);
	assert_int_equal(count(bits, &table->regions[0]), n);
}

static void harvest(struct guest *g)
{
	struct error err = ERROR_INIT;

	if (dirty_log_harvest(g->log, &err))
		fail_msg("%s", err.text);
}

static void start(struct guest *g)
{
	struct error err = ERROR_INIT;

	if (dirty_log_start(g->log, &err))
		fail_msg("%s", err.text);
}

static void what_the_vmm_sets_is_taken_once_and_kept_at_last(void **state)
{
	struct region_table table = { 0 };
	int fds[DIRTY_LOG_FDS] = { -1, -1, -1 };
	struct dirty_log *log;
	_Atomic uint64_t *vmm;
	uint64_t bytes;

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, SIZE, (void *)0x10000);
	add_region(&table, POSTCOPY_MEMORY_MEMFD, SIZE, (void *)0x10000000);
	bytes = dirty_log_bytes(&table);
	fds[0] = make_memfd(bytes, F_SEAL_SHRINK);
	vmm = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	assert_int_equal(dirty_log_new(&table, DIRTY_LOG_BY_VMM, fds, &log, NULL), 0);
	vmm[0] = 7;
	assert_int_equal(dirty_log_start(log, NULL), 0);
	assert_dirty(log, &table, false, -1);

	vmm[0] = 1 | 1ull << 63;
	vmm[3] = UINT64_MAX; /* 8 of them exist */
	vmm[4] = 2;          /* of the second region */
	assert_int_equal(dirty_log_harvest(log, NULL), 0);
	assert_dirty(log, &table, false, 0, 63, 192, 193, 194, 195, 196, 197, 198, 199, -1);
	assert_dirty(log, &table, false, -1);
	assert_int_equal(dirty_log_take(log, 1, false)[0], 2);
	assert_int_equal(vmm[0] | vmm[3] | vmm[4], 0);

	vmm[1] = 1;
	dirty_log_finish(log);
	assert_dirty(log, &table, true, 64, -1);
	assert_dirty(log, &table, true, 64, -1);
	dirty_log_free(log);
	munmap((void *)vmm, bytes);
}

static void a_bitmap_that_could_hurt_us_is_refused(void **state)
{
	struct region_table table = { 0 };
	struct dirty_log *log = NULL;
	struct error err = ERROR_INIT;
	static const struct {
		size_t size;
		int seals;
		const char *why;
	} cases[] = {
		{ 8, F_SEAL_SHRINK, "8 bytes" },
		{ 1 << 20, 0, "sealed" },
		{ 1 << 20, F_SEAL_SHRINK | F_SEAL_WRITE, "sealed" },
	};

	(void)state;
	add_region(&table, POSTCOPY_MEMORY_MEMFD, SIZE, (void *)0x10000);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		int fds[DIRTY_LOG_FDS] = { make_memfd(cases[i].size, cases[i].seals), -1, -1 };

		assert_int_equal(dirty_log_new(&table, DIRTY_LOG_BY_VMM, fds, &log, &err), -EINVAL);
		assert_non_null(strstr(err.text, cases[i].why));
		close(fds[0]);
	}
	for (int which = DIRTY_LOG_FD_UFFD; which < DIRTY_LOG_FDS; which++) {
		int uffd = make_uffd(), fds[DIRTY_LOG_FDS] = { -1, uffd, uffd };

		if (uffd < 0)
			skip();
		fds[which] = open("/dev/null", O_RDWR);
		assert_int_equal(dirty_log_new(&table, DIRTY_LOG_BY_KERNEL, fds, &log, &err),
		                 -EINVAL);
		close(uffd);
		close(fds[which]);
	}
	assert_null(log);
}

static void the_kernel_tells_what_is_written(enum postcopy_memory memory)
{
	struct guest g;

	if (!guest_init(&g, memory, SIZE))
		skip();
	memset(g.addr, 1, 20 * UNIT_BYTES);
	start(&g);
	harvest(&g);
	assert_dirty(g.log, &g.table, false, -1);
	g.addr[3 * UNIT_BYTES] = 2;
	g.addr[64 * UNIT_BYTES] = 2; /* was a hole */
	(void)*(volatile uint8_t *)(g.addr + 5 * UNIT_BYTES);
	(void)*(volatile uint8_t *)(g.addr + 70 * UNIT_BYTES);
	g.addr[(PAGES - 1) * UNIT_BYTES] = 2;
	harvest(&g);
	g.addr[4 * UNIT_BYTES] = 2; /* is the next one's */
	assert_dirty(g.log, &g.table, false, 3, 64, PAGES - 1, -1);
	harvest(&g);
	assert_dirty(g.log, &g.table, false, 4, -1);
	/* What was harvested and not told yet is not forgotten. */
	g.addr[10 * UNIT_BYTES] = 2;
	harvest(&g);
	g.addr[11 * UNIT_BYTES] = 2;
	harvest(&g);
	assert_dirty(g.log, &g.table, false, 10, 11, -1);
	guest_deinit(&g);
}

static void the_kernel_tells_what_is_written_to_a_memfd(void **state)
{
	(void)state;
	the_kernel_tells_what_is_written(POSTCOPY_MEMORY_MEMFD);
}

static void the_kernel_tells_what_is_written_to_anonymous_memory(void **state)
{
	(void)state;
	the_kernel_tells_what_is_written(POSTCOPY_MEMORY_ANONYMOUS);
}

static void a_write_to_a_huge_page_makes_all_of_it_dirty(void **state)
{
	struct guest g;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M))
		skip();
	g.addr[0] = 1;
	start(&g);
	g.addr[SIZE_2M + 5 * UNIT_BYTES] = 1;
	harvest(&g);
	assert_int_equal(count(dirty_log_take(g.log, 0, true), &g.table.regions[0]), 512);
	assert_false(bit(dirty_log_take(g.log, 0, true), 511));
	assert_true(bit(dirty_log_take(g.log, 0, true), 512));
	guest_deinit(&g);
}

/* What the declared writers are declared for (postcopy.h). */
static void what_goes_around_the_mapping_is_not_seen(void **state)
{
	struct guest g;
	uint8_t *alias;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	memset(g.addr, 1, SIZE);
	start(&g);
	assert_int_equal(pwrite(g.fd, "x", 1, 0), 1);
	alias = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd, 0);
	alias[UNIT_BYTES] = 2;
	assert_int_equal(madvise(g.addr + 2 * UNIT_BYTES, UNIT_BYTES, MADV_REMOVE), 0);
	harvest(&g);
	assert_dirty(g.log, &g.table, false, -1);
	munmap(alias, SIZE);
	guest_deinit(&g);
}

static void the_last_harvest_stays_as_it_is(void **state)
{
	int fds[DIRTY_LOG_FDS];
	struct dirty_log *again;
	struct guest g;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	start(&g);
	g.addr[0] = 1;
	harvest(&g);
	g.addr[9 * UNIT_BYTES] = 1;
	dirty_log_finish(g.log);
	dirty_log_stop(g.log);
	assert_dirty(g.log, &g.table, true, 0, 9, -1);
	/* Nothing is watched any more, and whoever asks again hears the same. */
	g.addr[10 * UNIT_BYTES] = 1;
	dirty_log_finish(g.log);
	assert_dirty(g.log, &g.table, true, 0, 9, -1);
	/* Another process has its descriptors only; and a VMM that is gone is no harm. */
	for (int i = 0; i < DIRTY_LOG_FDS; i++)
		fds[i] = fcntl(dirty_log_fd(g.log, (enum dirty_log_fd)i), F_DUPFD_CLOEXEC, 0);
	assert_int_equal(dirty_log_new(&g.table, DIRTY_LOG_BY_KERNEL, fds, &again, NULL), 0);
	dirty_log_finish(again);
	assert_dirty(again, &g.table, true, 0, 9, -1);
	dirty_log_free(again);
	guest_deinit(&g);
}

/* The process before was killed when the guest was paused; then its VMM dies. */
static void where_nobody_can_tell_all_is_dirty(void **state)
{
	int fds[DIRTY_LOG_FDS] = { -1, make_uffd(), -1 };
	struct region_table table = { 0 };
	struct dirty_log *log;
	char path[32];
	pid_t child = fork();

	(void)state;
	if (!child) {
		pause();
		_exit(0);
	}
	if (fds[DIRTY_LOG_FD_UFFD] < 0)
		skip();
	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)child);
	fds[DIRTY_LOG_FD_PAGEMAP] = open(path, O_RDONLY | O_CLOEXEC);
	add_region(&table, POSTCOPY_MEMORY_MEMFD, SIZE, (void *)0x10000);
	assert_int_equal(dirty_log_new(&table, DIRTY_LOG_BY_KERNEL, fds, &log, NULL), 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	dirty_log_finish(log);
	assert_int_equal(count(dirty_log_take(log, 0, true), &table.regions[0]), PAGES);
	dirty_log_free(log);
}

/* Whether a page is write-protected: only then is it not "written". */
static bool is_protected(const struct guest *g, uint64_t unit)
{
	struct page_region found;
	struct pm_scan_arg arg = {
		.size = sizeof arg,
		.start = (uintptr_t)g->addr + unit * UNIT_BYTES,
		.end = (uintptr_t)g->addr + (unit + 1) * UNIT_BYTES,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY);
	int n = ioctl(fd, PAGEMAP_SCAN, &arg);

	assert_true(n >= 0);
	return !n;
}

static void stopped_it_protects_nothing_and_can_begin_anew(void **state)
{
	struct guest g;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	memset(g.addr, 1, SIZE);
	start(&g);
	assert_true(is_protected(&g, 7));
	g.addr[0] = 2;
	harvest(&g);
	dirty_log_stop(g.log);
	assert_false(is_protected(&g, 7));
	assert_int_equal(dirty_log_harvest(g.log, NULL), -ECANCELED);
	start(&g);
	assert_dirty(g.log, &g.table, false, -1);
	g.addr[UNIT_BYTES] = 2;
	harvest(&g);
	assert_dirty(g.log, &g.table, false, 1, -1);
	g.log = dirty_log_free(g.log);
	assert_false(is_protected(&g, 7));
	guest_deinit(&g);
}

struct writer {
	_Atomic uint64_t *page; /* counts up in the first word of each of PAGES */
	atomic_bool stop;
};

static void *write_main(void *arg)
{
	struct writer *w = arg;

	for (uint64_t i = 0; !w->stop; i++)
		w->page[i % PAGES * (UNIT_BYTES / sizeof(uint64_t))]++;
	return NULL;
}

/*
 * Clear before read: whoever copies what each harvest names, after it was taken, has the memory
 * when the writer has stopped; whatever it wrote in between.
 */
static void a_write_is_never_lost_between_harvests(void **state)
{
	uint64_t copy[PAGES], *page;
	struct writer w = { 0 };
	pthread_t thread;
	struct guest g;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	memset(g.addr, 0, SIZE);
	w.page = (_Atomic uint64_t *)g.addr;
	page = (uint64_t *)g.addr;
	start(&g);
	for (unsigned int i = 0; i < PAGES; i++)
		copy[i] = 0;
	pthread_create(&thread, NULL, write_main, &w);
	for (unsigned int round = 0; round < 2000; round++) {
		const uint64_t *bits;

		if (round == 1999) {
			w.stop = true;
			pthread_join(thread, NULL);
		}
		harvest(&g);
		bits = dirty_log_take(g.log, 0, false);
		for (unsigned int i = 0; i < PAGES; i++)
			if (bit(bits, i))
				copy[i] = w.page[i * (UNIT_BYTES / sizeof(uint64_t))];
	}
	for (unsigned int i = 0; i < PAGES; i++)
		assert_int_equal(copy[i], page[i * (UNIT_BYTES / sizeof(uint64_t))]);
	guest_deinit(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_the_vmm_sets_is_taken_once_and_kept_at_last),
		cmocka_unit_test(a_bitmap_that_could_hurt_us_is_refused),
		cmocka_unit_test(the_kernel_tells_what_is_written_to_a_memfd),
		cmocka_unit_test(the_kernel_tells_what_is_written_to_anonymous_memory),
		cmocka_unit_test(a_write_to_a_huge_page_makes_all_of_it_dirty),
		cmocka_unit_test(what_goes_around_the_mapping_is_not_seen),
		cmocka_unit_test(the_last_harvest_stays_as_it_is),
		cmocka_unit_test(where_nobody_can_tell_all_is_dirty),
		cmocka_unit_test(stopped_it_protects_nothing_and_can_begin_anew),
		cmocka_unit_test(a_write_is_never_lost_between_harvests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
