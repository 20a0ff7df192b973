/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The resolver on a real userfaultfd, in this process: the "guest" is a mapping of ours that
 * is registered, the daemon's side reaches the same memory behind it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fault/events.h"
#include "fault/prefill.h"
#include "fault/pull_internal.h"
#include "fault/resolver.h"
#include "fault/uffd.h"
#include "util/kernel_abi.h"

#define PAGES 256u
#define SIZE (PAGES * (size_t)UNIT_BYTES)
#define SIZE_2M (2ull << 20)
/* How long an event may take that must come. */
#define EVENT_MS 10000

#define FEATURES                                                                                   \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP |         \
	 UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS |    \
	 UFFD_FEATURE_MISSING_HUGETLBFS)

struct fixture {
	struct region_table table;
	struct memory *memories[REGIONS_MAX];
	struct page_state *ps;
	struct pull_stats stats;
	struct resolver r;
	struct resolver_caller caller;
	int uffd;
	uint8_t *guest;
	size_t size;
	unsigned int agains;
	unsigned int faults; /* events read */
};

static struct fixture *fixture;

/* One event, taken as the fault thread would. Return: false where there is none. */
static bool take_event(struct fixture *f, uint64_t *ret_fault_addr)
{
	struct uffd_msg msg;

	if (read(f->uffd, &msg, sizeof msg) != sizeof msg)
		return false;
	switch (msg.event) {
	case UFFD_EVENT_PAGEFAULT:
		f->faults++;
		if (ret_fault_addr)
			*ret_fault_addr = msg.arg.pagefault.address & ~(uint64_t)(UNIT_BYTES - 1);
		break;
	case UFFD_EVENT_REMOVE:
		resolver_discard(&f->r, &f->r.shards[0], msg.arg.remove.start, msg.arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		pthread_rwlock_wrlock(&f->r.shards[0].map_lock);
		addrmap_unmap(&f->r.shards[0].addrmap, msg.arg.remove.start, msg.arg.remove.end);
		pthread_rwlock_unlock(&f->r.shards[0].map_lock);
		break;
	case UFFD_EVENT_REMAP:
		pthread_rwlock_wrlock(&f->r.shards[0].map_lock);
		addrmap_move(&f->r.shards[0].addrmap, msg.arg.remap.from, msg.arg.remap.to,
		             msg.arg.remap.len);
		pthread_rwlock_unlock(&f->r.shards[0].map_lock);
		break;
	default:
		fail_msg("event %u", msg.event);
	}
	return true;
}

static bool on_again(void *arg)
{
	struct fixture *f = arg;

	f->agains++;
	if (!take_event(f, NULL))
		sched_yield();
	return true;
}

/* Wait until an event is there, without taking it. */
static void wait_event(struct fixture *f)
{
	struct pollfd fd = { .fd = f->uffd, .events = POLLIN };

	assert_int_equal(poll(&fd, 1, EVENT_MS), 1);
}

static uint64_t wait_fault(struct fixture *f)
{
	uint64_t addr = 0;

	while (!addr) {
		wait_event(f);
		assert_true(take_event(f, &addr));
	}
	return addr;
}

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURES };
	int dev, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		if (dev >= 0)
			fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		if (dev >= 0)
			close(dev);
	}
	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		fd = -1;
	}
	if (fd < 0)
		print_message("skipped: no userfaultfd with events and minor faults: %s\n",
		              strerror(errno));
	return fd;
}

/* The guest's memory, mapped; its descriptor in *@ret_fd. Return: NULL with the reason printed. */
static uint8_t *make_memory(enum postcopy_memory memory, size_t size, bool huge, int *ret_fd)
{
	bool staged = huge && memory == POSTCOPY_MEMORY_ANONYMOUS;
	uint8_t *p;

	*ret_fd = -1;
	if (memory == POSTCOPY_MEMORY_ANONYMOUS && !staged) {
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		/* A transparent huge page would make pages present that nobody filled. */
		assert_int_equal(madvise(p, size, MADV_NOHUGEPAGE), 0);
		return p;
	}
	*ret_fd = memfd_create("test-resolver",
	                       MFD_CLOEXEC | MFD_ALLOW_SEALING |
	                               (huge && !staged ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	assert_true(*ret_fd >= 0);
	assert_int_equal(ftruncate(*ret_fd, (off_t)size), 0);
	/* Private memory of huge pages has its stage beside it. */
	if (staged)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		         MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (int)MFD_HUGE_2MB, -1, 0);
	else
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *ret_fd, 0);
	if (p != MAP_FAILED)
		return p;
	print_message("skipped: no free 2 MiB pages (vm.nr_hugepages): %s\n", strerror(errno));
	close(*ret_fd);
	return NULL;
}

static void stop(struct fixture *f)
{
	if (f->ps) {
		assert_true(resolver_unregister(&f->r, &f->r.shards[0], false) >= 0);
		resolver_deinit(&f->r);
	}
	page_state_free(f->ps);
	memory_free(f->memories[0]);
	if (f->guest)
		munmap(f->guest, f->size);
	if (f->uffd >= 0)
		close(f->uffd);
	free(f);
}

static void init_resolver(struct fixture *f, enum resolver_map map)
{
	struct error err = ERROR_INIT;

	if (page_state_new(&f->table, &f->ps, &err))
		fail_msg("%s", err.text);
	f->r = (struct resolver){
		.table = &f->table,
		.state = f->ps,
		.memories = f->memories,
		.shards[0].uffd = f->uffd,
		.map = map,
		.stats = &f->stats,
	};
	assert_int_equal(resolver_init(&f->r), 0);
	f->caller = (struct resolver_caller){ .resolver = &f->r, .again = on_again, .arg = f };
}

/* Return: NULL where this host can't, with the reason printed. */
static struct fixture *start_paged(enum postcopy_memory memory, size_t size, bool huge,
                                   enum resolver_map map)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct region region = { .memory = memory,
		                 .size = size,
		                 .page_size = huge ? SIZE_2M : UNIT_BYTES };
	struct error err = ERROR_INIT;
	int fd = -1;

	f->size = size;
	f->uffd = open_uffd();
	if (f->uffd >= 0)
		f->guest = make_memory(memory, size, huge, &fd);
	if (!f->guest) {
		stop(f);
		return NULL;
	}
	if (memory != POSTCOPY_MEMORY_ANONYMOUS)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	reg.range.start = region.host_addr = (uintptr_t)f->guest;
	reg.range.len = size;
	assert_int_equal(ioctl(f->uffd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(region_table_add(&f->table, &region, &err), 0);
	if (memory_open_destination(&f->table.regions[0], 0, fd, &f->memories[0], &err))
		fail_msg("%s", err.text);
	init_resolver(f, map);
	return f;
}

static struct fixture *start_sized(enum postcopy_memory memory, size_t size, enum resolver_map map)
{
	return start_paged(memory, size, memory == POSTCOPY_MEMORY_HUGETLB, map);
}

static struct fixture *start(enum postcopy_memory memory, enum resolver_map map)
{
	return start_sized(memory, SIZE, map);
}

/* Have @fixture or skip. */
static void start_or_skip(enum postcopy_memory memory, enum resolver_map map)
{
	fixture = start(memory, map);
	if (!fixture)
		skip();
	if (memory != POSTCOPY_MEMORY_MEMFD || map != RESOLVER_MAP_LAZY ||
	    !memory_writes_huge(fixture->memories[0]))
		return;
	print_message("skipped: shmem_enabled makes huge pages of memfds, which are mapped at "
	              "once\n");
	stop(fixture);
	skip();
}

#define START_OR_SKIP(memory, map) start_or_skip(POSTCOPY_MEMORY_##memory, RESOLVER_MAP_##map)

static uint8_t *page_at(const struct fixture *f, uint64_t unit)
{
	return f->guest + unit * UNIT_BYTES;
}

/* Whether the guest's page table has it: pagemap's bit 63. */
static bool is_mapped(const struct fixture *f, uint64_t unit)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	assert_int_equal(pread(fd, &entry, sizeof entry,
	                       (off_t)((uintptr_t)page_at(f, unit) / UNIT_BYTES * sizeof entry)),
	                 sizeof entry);
	close(fd);
	return entry >> 63;
}

/*
 * Word @word's batch, each unit of @data full of @value + its index. @caller: NULL: while the guest
 * runs at the source.
 */
static uint64_t fill_as(struct fixture *f, const struct resolver_caller *caller, uint64_t word,
                        uint64_t data, uint64_t zero, uint8_t value)
{
	uint8_t *bytes = malloc(WORD_BYTES);
	struct resolver_batch b = {
		.word = word, .data_mask = data, .zero_mask = zero, .data = bytes
	};
	uint64_t filled = 0;
	size_t n = 0;
	int rc;

	for (unsigned int i = 0; i < WORD_UNITS; i++)
		if (data >> i & 1)
			memset(bytes + n++ * UNIT_BYTES, (uint8_t)(value + i), UNIT_BYTES);
	rc = caller ? resolver_fill(caller, &b, &filled) : prefill(&f->r, &b, &filled);
	free(bytes);
	if (rc)
		fail_msg("resolver_fill: %s", strerror(-rc));
	return filled;
}

static uint64_t fill(struct fixture *f, uint64_t word, uint64_t data, uint64_t zero, uint8_t value)
{
	return fill_as(f, &f->caller, word, data, zero, value);
}

/* Read from the guest. Only where it is mapped or resolved: else this thread hangs. */
static void check_page(const struct fixture *f, uint64_t unit, uint8_t value)
{
	const uint8_t *p = page_at(f, unit);

	for (size_t i = 0; i < UNIT_BYTES; i++)
		if (p[i] != value)
			fail_msg("unit %llu, byte %zu is %#x, not %#x", (unsigned long long)unit, i,
			         p[i], value);
}

/* A vCPU that reads a page; it waits in its fault until somebody wakes it. */
struct toucher {
	pthread_t thread;
	const volatile uint8_t *p;
	uint8_t first, last;
};

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	t->first = t->p[0];
	t->last = t->p[UNIT_BYTES - 1];
	return NULL;
}

static void touch(struct fixture *f, struct toucher *t, uint64_t unit)
{
	t->p = page_at(f, unit);
	assert_int_equal(pthread_create(&t->thread, NULL, toucher_main, t), 0);
}

/* It has run on, in good time, and read @value. */
static void touched(struct toucher *t, uint8_t value)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += EVENT_MS / 1000;
	if (pthread_timedjoin_np(t->thread, NULL, &until))
		fail_msg("the guest still waits for its page");
	assert_int_equal(t->first, value);
	assert_int_equal(t->last, value);
}

/* The whole way of a fault whose page is here: event, want, map, run on. */
static void touch_present(struct fixture *f, uint64_t unit, uint8_t value)
{
	struct toucher t;

	touch(f, &t, unit);
	assert_true(wait_fault(f) == (uintptr_t)page_at(f, unit));
	assert_true(page_state_want(f->ps, 0, unit));
	assert_int_equal(resolver_map_page(&f->caller, 0, unit), 0);
	touched(&t, value);
}

static void no_more_events(struct fixture *f)
{
	struct pollfd fd = { .fd = f->uffd, .events = POLLIN };

	assert_int_equal(poll(&fd, 1, 0), 0);
}

/* In place of libc's: memory that has gone bad under a page (EIO), a kernel without UFFDIO_POISON.
 */
static atomic_uint continues_to_break;
static atomic_bool no_poison;
static atomic_uint writes_to_break;

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	if (atomic_load(&writes_to_break)) {
		atomic_fetch_sub(&writes_to_break, 1);
		errno = EIO;
		return -1;
	}
	return syscall(SYS_pwrite64, fd, buf, len, offset);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == UFFDIO_CONTINUE && atomic_load(&continues_to_break)) {
		atomic_fetch_sub(&continues_to_break, 1);
		errno = EIO;
		return -1;
	}
	if (request == UFFDIO_POISON && atomic_load(&no_poison)) {
		errno = EINVAL;
		return -1;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

/* What the guest finds there: a machine check, as the kernel tells a system call of it. */
static bool is_poisoned(const struct fixture *f, uint64_t unit)
{
	int fd = memfd_create("test", MFD_CLOEXEC);
	ssize_t n = write(fd, page_at(f, unit), 1);
	int error = errno;

	close(fd);
	errno = error;
	return n < 0 && errno == EFAULT;
}

/* One word, of which nothing has come. */
static uint64_t lose(struct fixture *f, uint64_t word, uint64_t error)
{
	struct resolver_batch b = { .word = word, .error_mask = error, .data = (uint8_t *)"" };
	uint64_t filled;

	assert_int_equal(resolver_fill(&f->caller, &b, &filled), 0);
	return filled;
}

struct loser {
	pthread_t thread;
	const struct fixture *f;
	uint64_t unit;
	bool poisoned;
};

static void *loser_main(void *arg)
{
	struct loser *l = arg;

	l->poisoned = is_poisoned(l->f, l->unit);
	return NULL;
}

/*
 * A page that the source can't read is poisoned: whoever waits for it gets a machine check, the
 * others their pages, and the guest becomes whole. It was asked for again for ever.
 */
static void lose_pages(enum postcopy_memory memory, enum resolver_map map)
{
	struct loser l = { .unit = 70 };

	fixture = start(memory, map);
	if (!fixture)
		skip();
	l.f = fixture;
	assert_int_equal(pthread_create(&l.thread, NULL, loser_main, &l), 0);
	assert_true(wait_fault(fixture) == (uintptr_t)page_at(fixture, 70));
	assert_false(page_state_want(fixture->ps, 0, 70));
	assert_true(lose(fixture, 1, 0xc0) == 0xc0);
	pthread_join(l.thread, NULL);
	assert_true(l.poisoned);
	assert_true(is_poisoned(fixture, 71));
	assert_true(fill(fixture, 1, 0x3f, UINT64_MAX << 8, 3) == ~0xc0ull);
	assert_int_equal(stat_get(&fixture->stats.pages_poisoned), 2);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - WORD_UNITS);
	/* A fault that comes late, and an answer that does, change nothing. */
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 70), 0);
	assert_true(fill(fixture, 1, 0xc0, 0, 9) == 0);
	assert_true(is_poisoned(fixture, 70));
	assert_int_equal(page_state_count_poisoned(fixture->ps), 2);
	stop(fixture);
}

static void test_what_the_source_can_not_read_is_poisoned_memfd_eager(void **state)
{
	(void)state;
	lose_pages(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_what_the_source_can_not_read_is_poisoned_memfd_lazy(void **state)
{
	(void)state;
	lose_pages(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY);
}

static void test_what_the_source_can_not_read_is_poisoned_anonymous(void **state)
{
	(void)state;
	lose_pages(POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER);
}

/* One unit of a huge page costs all of it; the rest of it comes and is never shown. */
static void test_a_huge_page_that_is_not_whole_is_poisoned(void **state)
{
	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	fill(fixture, 0, ~1ull, 0, 1);
	assert_true(lose(fixture, 0, 1) == 1);
	for (uint64_t word = 1; word < 16; word++)
		fill(fixture, word, UINT64_MAX, 0, 1);
	assert_true(is_poisoned(fixture, 0) && is_poisoned(fixture, 300));
	assert_false(is_poisoned(fixture, 512));
	assert_int_equal(page_state_missing(fixture->ps), 0);
	stop(fixture);
}

/* The kernel can't: the page stays missing, and all else is as if nothing had been. */
static void test_what_can_not_be_poisoned_stays_missing(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	atomic_store(&no_poison, true);
	assert_true(lose(fixture, 1, 0x3) == 0);
	atomic_store(&no_poison, false);
	assert_int_equal(stat_get(&fixture->stats.pages_unpoisoned), 2);
	assert_int_equal(stat_get(&fixture->stats.pages_poisoned), 0);
	assert_int_equal(page_state_missing(fixture->ps), PAGES);
	assert_int_equal(page_state_count_poisoned(fixture->ps), 0);
	/* Should it come after all, it is a page like any other. */
	assert_true(fill(fixture, 1, 0x3, 0, 7) == 0x3);
	check_page(fixture, 64, 7);
	stop(fixture);
}

/* A memory error here: mapping it says EIO for ever, and was tried for ever. */
static void test_a_page_whose_memory_here_is_broken_is_poisoned(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	assert_true(fill(fixture, 0, 0xff, 0, 1) == 0xff);
	atomic_store(&continues_to_break, 1);
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 3), 0);
	assert_true(is_poisoned(fixture, 3));
	assert_int_equal(stat_get(&fixture->stats.pages_poisoned), 1);
	touch_present(fixture, 4, 5);
	stop(fixture);
}

/* A page that came ahead, is zero now, and can't be written over: it was tried for ever. */
static void test_a_page_that_can_not_be_zeroed_is_poisoned(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	assert_true(fill_as(fixture, NULL, 0, 0x7, 0, 1) == 0x7);
	assert_true(page_state_renew(fixture->ps, 0, 0, 0x7) == 0x7);
	atomic_store(&writes_to_break, 1);
	assert_true(fill(fixture, 0, 0, 0x7, 1) == 0x7);
	assert_true(is_poisoned(fixture, 0));
	assert_int_equal(stat_get(&fixture->stats.pages_poisoned), 1);
	touch_present(fixture, 1, 0);
	touch_present(fixture, 2, 0);
	stop(fixture);
}

static void test_eager_maps_what_it_fills(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	assert_true(fill(fixture, 1, 0x8001ff0f, 0x70, 10) == 0x8001ff7f);
	for (unsigned int i = 0; i < WORD_UNITS; i++)
		assert_int_equal(is_mapped(fixture, 64 + i), 0x8001ff0full >> i & 1);
	for (unsigned int i = 0; i < 4; i++)
		check_page(fixture, 64 + i, (uint8_t)(10 + i));
	check_page(fixture, 64 + 31, 10 + 31);
	assert_int_equal(fixture->faults, 0);
	no_more_events(fixture);
	assert_int_equal(stat_get(&fixture->stats.fill_write) + stat_get(&fixture->stats.fill_copy),
	                 14);
	assert_int_equal(stat_get(&fixture->stats.fill_zero), 3);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 17);
	stop(fixture);
}

static void test_eager_fills_a_whole_word(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	assert_true(fill(fixture, 3, UINT64_MAX, 0, 100) == UINT64_MAX);
	for (unsigned int i = 0; i < WORD_UNITS; i++)
		check_page(fixture, 192 + i, (uint8_t)(100 + i));
	no_more_events(fixture);
	stop(fixture);
}

static void test_lazy_maps_on_the_fault(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	assert_true(fill(fixture, 0, 0xff, 0, 1) == 0xff);
	for (unsigned int i = 0; i < 8; i++)
		assert_false(is_mapped(fixture, i));
	touch_present(fixture, 3, 4);
	assert_true(is_mapped(fixture, 3));
	assert_false(is_mapped(fixture, 4));
	assert_int_equal(fixture->faults, 1);
	stop(fixture);
}

/* A page that is missing when the guest touches it: it waits until the data came. */
static void fault_first(enum postcopy_memory memory, enum resolver_map map)
{
	struct toucher t, zero;

	fixture = start(memory, map);
	if (!fixture)
		skip();
	touch(fixture, &t, 70);
	assert_true(wait_fault(fixture) == (uintptr_t)page_at(fixture, 70));
	assert_false(page_state_want(fixture->ps, 0, 70));
	touch(fixture, &zero, 72);
	assert_true(wait_fault(fixture) == (uintptr_t)page_at(fixture, 72));
	assert_false(page_state_want(fixture->ps, 0, 72));
	assert_true(fill(fixture, 1, 0xf3, 0x0c00, 5) == 0x0cf3);
	touched(&t, 5 + 6);
	assert_true(fill(fixture, 1, 0, 0x100, 0) == 0x100);
	touched(&zero, 0);
	stop(fixture);
}

/*
 * With huge pages for memfds (shmem_enabled=always) a write of one page made 512 of them present,
 * all zeroes. Elsewhere this holds by itself.
 */
static void test_a_fill_makes_the_page_and_no_more(void **state)
{
	struct stat st;

	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_MEMFD, 2 * SIZE_2M, RESOLVER_MAP_LAZY);
	if (!fixture)
		skip();
	assert_true(fill(fixture, 0, 1, 0, 7) == 1);
	assert_int_equal(fstat(memory_fd(fixture->memories[0]), &st), 0);
	assert_int_equal(st.st_blocks, UNIT_BYTES / 512);
	stop(fixture);
}

static void test_a_waiting_guest_is_woken_by_the_fill_memfd_eager(void **state)
{
	(void)state;
	fault_first(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_a_waiting_guest_is_woken_by_the_fill_memfd_lazy(void **state)
{
	(void)state;
	fault_first(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY);
}

static void test_a_waiting_guest_is_woken_by_the_fill_anonymous(void **state)
{
	(void)state;
	fault_first(POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER);
}

static void test_zero_units_stay_holes_until_touched(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	assert_true(fill(fixture, 0, 0, UINT64_MAX, 0) == UINT64_MAX);
	for (unsigned int i = 0; i < WORD_UNITS; i++)
		assert_false(is_mapped(fixture, i));
	touch_present(fixture, 0, 0);
	touch_present(fixture, 63, 0);
	assert_false(is_mapped(fixture, 1));
	/* What the guest wrote into its zero page stays, also where its fault is looked at twice.
	 */
	memset(page_at(fixture, 0), 9, UNIT_BYTES);
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 0), 0);
	check_page(fixture, 0, 9);
	stop(fixture);
}

static void test_anonymous_memory_is_copied(void **state)
{
	(void)state;
	START_OR_SKIP(ANONYMOUS, EAGER);
	assert_true(fill(fixture, 2, 0xf0f0, 0x0f00, 20) == 0xfff0);
	assert_int_equal(stat_get(&fixture->stats.fill_copy), 8);
	check_page(fixture, 128 + 4, 24);
	check_page(fixture, 128 + 15, 35);
	assert_false(is_mapped(fixture, 128 + 8));
	touch_present(fixture, 128 + 8, 0);
	/* Looked at again it keeps its content. */
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 128 + 4), 0);
	check_page(fixture, 128 + 4, 24);
	stop(fixture);
}

/*
 * What came while the guest ran at the source, of three generations: nobody sees a page before it
 * runs here, and then the last content; also where that is zero, or came in postcopy.
 */
static void fill_ahead(enum resolver_map map)
{
	const uint64_t all = 0x1f;

	start_or_skip(POSTCOPY_MEMORY_MEMFD, map);
	assert_true(fill_as(fixture, NULL, 0, 0x1f, 0x20, 1) == 0x3f);
	for (unsigned int i = 0; i < WORD_UNITS; i++)
		assert_false(is_mapped(fixture, i));
	/* It is zero now; it has other content; it will come in postcopy, as zero and not so. */
	assert_true(page_state_renew(fixture->ps, 0, 0, 0x3e) == 0x3e);
	assert_true(fill_as(fixture, NULL, 0, 0x24, 0x02, 100) == 0x26);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 4);
	assert_true(fill(fixture, 0, all & ~0x10ull, 0x10, 200) == 0x18);
	for (unsigned int i = 0; i < 6; i++)
		if (!is_mapped(fixture, i))
			touch_present(fixture, i, (uint8_t[]){ 1, 0, 102, 203, 0, 105 }[i]);
	check_page(fixture, 1, 0);
	check_page(fixture, 3, 203);
	check_page(fixture, 4, 0);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 6);
	stop(fixture);
}

static void test_what_came_ahead_is_seen_as_it_was_last_memfd_eager(void **state)
{
	(void)state;
	fill_ahead(RESOLVER_MAP_EAGER);
}

static void test_what_came_ahead_is_seen_as_it_was_last_memfd_lazy(void **state)
{
	(void)state;
	fill_ahead(RESOLVER_MAP_LAZY);
}

/* A huge page came ahead in part; the rest, and what was zero before, comes in postcopy. */
static void test_a_huge_page_that_came_ahead_is_seen_as_it_was_last(void **state)
{
	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_HUGETLB, SIZE_2M, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	for (unsigned int word = 0; word < 8; word++)
		assert_true(fill_as(fixture, NULL, word, 0xff, ~0xffull, 1) == UINT64_MAX);
	assert_int_equal(page_state_missing(fixture->ps), 0);
	assert_false(is_mapped(fixture, 0));
	assert_true(page_state_renew(fixture->ps, 0, 7, 0x3) == 0x3);
	assert_true(fill(fixture, 7, 0x2, 0x1, 50) == 0x3);
	assert_true(is_mapped(fixture, 0));
	check_page(fixture, 0, 1);
	check_page(fixture, 7 * WORD_UNITS, 0);
	check_page(fixture, 7 * WORD_UNITS + 1, 51);
	check_page(fixture, 7 * WORD_UNITS + 2, 3);
	check_page(fixture, 7 * WORD_UNITS + 9, 0);
	stop(fixture);
}

/* The pass of a bulk thread that has nothing to ask for. */
static void map_all_ahead(struct fixture *f)
{
	struct pull *p = calloc(1, sizeof *p);

	p->config.table = f->table;
	p->state = f->ps;
	while (pull_map_ahead(p, &f->caller))
		;
	free(p);
}

/* Of huge pages it maps those that came ahead, and makes none of holes. */
static void test_huge_pages_that_are_holes_are_not_made_ahead(void **state)
{
	struct stat st;

	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	/* One unit has content, of the first page. */
	for (unsigned int word = 0; word < 16; word++) {
		uint64_t data = word == 5;

		assert_true(fill_as(fixture, NULL, word, data, ~data, 1) == UINT64_MAX);
	}
	map_all_ahead(fixture);
	assert_true(is_mapped(fixture, 0));
	assert_false(is_mapped(fixture, 512));
	assert_int_equal(fstat(memory_fd(fixture->memories[0]), &st), 0);
	assert_int_equal(st.st_blocks, SIZE_2M / 512);
	check_page(fixture, 5 * WORD_UNITS, 1);
	stop(fixture);
}

/* The pages that nobody discards are placed, each by one call. */
static void test_what_is_staged_is_placed_page_by_page(void **state)
{
	uint32_t region = 0;
	uint64_t offset = 0;

	(void)state;
	fixture = start_paged(POSTCOPY_MEMORY_ANONYMOUS, 2 * SIZE_2M, true, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	for (unsigned int word = 0; word < 16; word++)
		assert_true(fill(fixture, word, word % 8 ? 0 : 0xff,
		                 word % 8 ? UINT64_MAX : ~0xffull, 7) == UINT64_MAX);
	assert_int_equal(resolver_place_staged(&fixture->caller, &region, &offset), 1);
	assert_true(is_mapped(fixture, 0));
	assert_false(is_mapped(fixture, 512));
	assert_int_equal(resolver_place_staged(&fixture->caller, &region, &offset), 1);
	assert_int_equal(resolver_place_staged(&fixture->caller, &region, &offset), 0);
	check_page(fixture, 3, 10);
	check_page(fixture, 512 + 3, 10);
	stop(fixture);
}

/* A zero unit that nothing was put in is a hole: it takes no memory. */
static void test_zero_units_that_come_ahead_stay_holes(void **state)
{
	struct stat st;

	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	assert_true(fill_as(fixture, NULL, 0, 0, UINT64_MAX, 0) == UINT64_MAX);
	assert_true(page_state_renew(fixture->ps, 0, 0, 0xf) == 0xf);
	assert_true(fill_as(fixture, NULL, 0, 0, 0xf, 0) == 0xf);
	assert_int_equal(fstat(memory_fd(fixture->memories[0]), &st), 0);
	assert_int_equal(st.st_blocks, 0);
	touch_present(fixture, 0, 0);
	stop(fixture);
}

/* What the source can't read is not lost before it has said so of a guest that stands still. */
static void test_what_can_not_be_had_ahead_is_left_for_later(void **state)
{
	struct resolver_batch b = { .word = 1, .zero_mask = 0xe, .error_mask = 1 };
	uint64_t filled = 0;

	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	assert_int_equal(prefill(&fixture->r, &b, &filled), 0);
	assert_true(filled == 0xe);
	assert_true(page_state_poisoned(fixture->ps, 0, 1) == 0);
	/* It is not asked for again meanwhile. */
	assert_true(page_state_claimed(fixture->ps, 0, 1) == 0xf);
	page_state_drop_claims(fixture->ps);
	assert_true(fill(fixture, 1, 1, 0, 70) == 1);
	check_page(fixture, WORD_UNITS, 70);
	stop(fixture);
}

static void fill_twice(enum postcopy_memory memory, enum resolver_map map)
{
	start_or_skip(memory, map);
	assert_true(fill(fixture, 0, 0x3, 0, 1) == 0x3);
	if (map == RESOLVER_MAP_LAZY)
		touch_present(fixture, 0, 1);
	memset(page_at(fixture, 0), 0xee, UNIT_BYTES);
	/* An answer that comes late, over what the guest has written and what it has not. */
	assert_true(fill(fixture, 0, 0x7, 0, 50) == 0x4);
	assert_true(fill(fixture, 0, 0, 0x7, 0) == 0);
	check_page(fixture, 0, 0xee);
	if (map == RESOLVER_MAP_LAZY) {
		touch_present(fixture, 1, 2);
		touch_present(fixture, 2, 52);
	}
	check_page(fixture, 1, 2);
	check_page(fixture, 2, 52);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 3);
	stop(fixture);
}

static void test_the_first_fill_stays_memfd_eager(void **state)
{
	(void)state;
	fill_twice(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_EAGER);
}

static void test_the_first_fill_stays_memfd_lazy(void **state)
{
	(void)state;
	fill_twice(POSTCOPY_MEMORY_MEMFD, RESOLVER_MAP_LAZY);
}

static void test_the_first_fill_stays_anonymous(void **state)
{
	(void)state;
	fill_twice(POSTCOPY_MEMORY_ANONYMOUS, RESOLVER_MAP_EAGER);
}

struct racer {
	pthread_t thread;
	struct fixture *f;
	uint8_t value;
	uint64_t filled[PAGES / WORD_UNITS];
};

static bool race_again(void *arg)
{
	(void)arg;
	sched_yield();
	return true;
}

static void *racer_main(void *arg)
{
	struct racer *r = arg;
	struct resolver_caller caller = { .resolver = &r->f->r, .again = race_again };

	/* In overlapping pieces, so that both win some of each word. */
	for (unsigned int shift = 0; shift < 4; shift++)
		for (uint64_t word = 0; word < PAGES / WORD_UNITS; word++)
			r->filled[word] |= fill_as(r->f, &caller, word,
			                           0x1111111111111111ull << shift, 0, r->value);
	return NULL;
}

static void race(enum postcopy_memory memory)
{
	for (int round = 0; round < 10; round++) {
		struct racer racers[2] = { { .value = 1 }, { .value = 101 } };

		fixture = start(memory, RESOLVER_MAP_EAGER);
		if (!fixture)
			skip();
		racers[0].f = racers[1].f = fixture;
		for (int i = 0; i < 2; i++)
			assert_int_equal(
			        pthread_create(&racers[i].thread, NULL, racer_main, &racers[i]), 0);
		for (int i = 0; i < 2; i++)
			pthread_join(racers[i].thread, NULL);
		for (uint64_t unit = 0; unit < PAGES; unit++) {
			bool a = racers[0].filled[unit / 64] >> unit % 64 & 1;
			bool b = racers[1].filled[unit / 64] >> unit % 64 & 1;

			assert_true(a != b);
			check_page(fixture, unit, (uint8_t)(unit % 64 + (a ? 1 : 101)));
		}
		assert_int_equal(page_state_missing(fixture->ps), 0);
		stop(fixture);
	}
}

static void test_two_fillers_of_the_same_pages_memfd(void **state)
{
	(void)state;
	race(POSTCOPY_MEMORY_MEMFD);
}

static void test_two_fillers_of_the_same_pages_anonymous(void **state)
{
	(void)state;
	race(POSTCOPY_MEMORY_ANONYMOUS);
}

/* madvise() or munmap(), from a thread: it returns once its event has been read. */
struct change {
	pthread_t thread;
	uint8_t *p;
	size_t len;
	int advice; /* 0: munmap() */
	int result;
};

static void *change_main(void *arg)
{
	struct change *c = arg;

	c->result = c->advice ? madvise(c->p, c->len, c->advice) : munmap(c->p, c->len);
	return NULL;
}

static void change(struct fixture *f, struct change *c, uint64_t unit, uint64_t n, int advice)
{
	*c = (struct change){ .p = page_at(f, unit), .len = n * UNIT_BYTES, .advice = advice };
	assert_int_equal(pthread_create(&c->thread, NULL, change_main, c), 0);
}

static void changed(struct change *c)
{
	pthread_join(c->thread, NULL);
	assert_int_equal(c->result, 0);
}

static bool not_again(void *arg)
{
	(void)arg;
	return false;
}

/*
 * A page that is staged, and whole, and waits for its fault, is discarded: nobody puts it back, not
 * a bulk thread's pass, nor who places what is left, before the event was read or after.
 */
static void test_a_staged_page_that_is_discarded_stays_away(void **state)
{
	struct resolver_caller placer;
	uint32_t region = 0;
	uint64_t offset = 0;
	struct change c;

	(void)state;
	fixture = start_paged(POSTCOPY_MEMORY_ANONYMOUS, SIZE_2M, true, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	for (unsigned int word = 0; word < 8; word++) /* the last that comes is zero */
		assert_true(fill(fixture, word, word ? 0 : 0xff, word ? UINT64_MAX : ~0xffull, 7) ==
		            UINT64_MAX);
	assert_int_equal(page_state_missing(fixture->ps), 0);
	map_all_ahead(fixture);
	assert_false(is_mapped(fixture, 0));
	placer = fixture->caller;
	placer.again = not_again;
	change(fixture, &c, 0, SIZE_2M / UNIT_BYTES, MADV_DONTNEED);
	wait_event(fixture);
	assert_int_equal(resolver_place_staged(&placer, &region, &offset), -ECANCELED);
	assert_true(take_event(fixture, NULL));
	assert_int_equal(resolver_place_staged(&placer, &region, &offset), 0);
	changed(&c);
	assert_false(is_mapped(fixture, 0));
	touch_present(fixture, 0, 0);
	stop(fixture);
}

static void discard(enum postcopy_memory memory, int advice)
{
	struct change c;

	fixture = start(memory, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	assert_true(fill(fixture, 0, 0x3, 0, 1) == 0x3);
	/* Units 60..69: across two words, none of them here yet. */
	change(fixture, &c, 60, 10, advice);
	wait_event(fixture);
	assert_true(take_event(fixture, NULL));
	changed(&c);
	assert_true(page_state_present(fixture->ps, 0, 0) == (0xfull << 60 | 3));
	assert_true(page_state_present(fixture->ps, 0, 1) == 0x3f);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 12);
	/* What comes for them now is dropped, for their neighbours it is not. */
	assert_true(fill(fixture, 0, 0xffull << 56, 0, 100) == 0xfull << 56);
	assert_true(fill(fixture, 1, 0xff, 0, 100) == 0xc0);
	touch_present(fixture, 60, 0);
	touch_present(fixture, 69, 0);
	check_page(fixture, 59, 100 + 59);
	check_page(fixture, 70, 100 + 6);
	check_page(fixture, 1, 2);
	stop(fixture);
}

/*
 * Calls that say UFFD_EVENT_REMOVE and leave what the file has: 16 pages of a guest were zeroes
 * after a madvise() that had failed.
 */
static void test_what_is_no_discard_zeroes_nothing(void **state)
{
	static const struct {
		int advice, seal;
	} calls[] = {
		{ MADV_DONTNEED, 0 },
		{ MADV_FREE, 0 },                     /* EINVAL */
		{ MADV_REMOVE, F_SEAL_FUTURE_WRITE }, /* EPERM */
	};
	struct change c;

	(void)state;
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		START_OR_SKIP(MEMFD, EAGER);
		if (calls[i].seal)
			assert_int_equal(
			        fcntl(memory_fd(fixture->memories[0]), F_ADD_SEALS, calls[i].seal),
			        0);
		change(fixture, &c, 60, 10, calls[i].advice);
		wait_event(fixture);
		assert_true(take_event(fixture, NULL));
		pthread_join(c.thread, NULL);
		assert_int_equal(c.result, calls[i].advice == MADV_DONTNEED ? 0 : -1);
		assert_int_equal(page_state_missing(fixture->ps), PAGES);
		stop(fixture);
	}
}

static void test_discarded_pages_are_zero_anonymous(void **state)
{
	(void)state;
	discard(POSTCOPY_MEMORY_ANONYMOUS, MADV_DONTNEED);
}

/* A page that had arrived and was removed since: zero, and not what came first. */
static void test_a_removed_page_that_was_there_is_zero(void **state)
{
	struct change c;

	(void)state;
	START_OR_SKIP(MEMFD, EAGER);
	fill(fixture, 0, 0xff, 0, 1);
	change(fixture, &c, 2, 2, MADV_REMOVE);
	wait_event(fixture);
	assert_true(take_event(fixture, NULL));
	changed(&c);
	touch_present(fixture, 2, 0);
	touch_present(fixture, 3, 0);
	check_page(fixture, 4, 5);
	stop(fixture);
}

/*
 * While the VMM changes its mappings the kernel answers EAGAIN, until the event was read: the
 * caller is asked to do that, and then all of the batch is there.
 */
static void fill_during_discard(enum postcopy_memory memory, int advice)
{
	struct change c;

	fixture = start(memory, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	change(fixture, &c, 128, 2, advice);
	wait_event(fixture);
	assert_true(fill(fixture, 0, 0xffff, 0, 1) == 0xffff);
	assert_true(fixture->agains > 0);
	changed(&c);
	for (unsigned int i = 0; i < 16; i++)
		check_page(fixture, i, (uint8_t)(1 + i));
	if (memory == POSTCOPY_MEMORY_ANONYMOUS)
		touch_present(fixture, 129, 0);
	no_more_events(fixture);
	stop(fixture);
}

/* A discard of units 2 and 3 that takes place while a batch with them is being filled. */
static struct {
	struct change change;
	bool goes_on; /* the fill */
} discarded;

/* The kernel refuses to fill: the event is read, and the madvise() returns, before it is tried
 * again. */
static bool let_discard(void *arg)
{
	struct fixture *f = arg;

	if (f->agains++)
		return true;
	assert_true(take_event(f, NULL));
	changed(&discarded.change);
	return discarded.goes_on;
}

/* Return: as resolver_fill(), of all of the first 16 units but @error, which the source lacks. */
static int fill_while_discarded(uint64_t error, uint64_t *ret_filled)
{
	uint8_t data[16 * UNIT_BYTES];
	struct resolver_batch b = { .data_mask = 0xffff & ~error,
		                    .error_mask = error,
		                    .data = data };
	int rc;

	memset(data, 0x77, sizeof data);
	change(fixture, &discarded.change, 2, 2, MADV_DONTNEED);
	wait_event(fixture);
	fixture->caller.again = let_discard;
	rc = resolver_fill(&fixture->caller, &b, ret_filled);
	fixture->caller.again = on_again;
	assert_true(fixture->agains > 0);
	return rc;
}

/*
 * Who fills had claimed it before the event was read, and tried again afterwards: what the guest
 * had given back came again with its old bytes, in 298 of 300 tries.
 */
static void test_what_is_discarded_while_it_is_filled_is_zero(void **state)
{
	uint64_t filled;

	(void)state;
	discarded.goes_on = true;
	START_OR_SKIP(ANONYMOUS, EAGER);
	assert_int_equal(fill_while_discarded(0, &filled), 0);
	assert_int_equal(page_state_present(fixture->ps, 0, 0), 0xffff);
	assert_false(is_mapped(fixture, 2));
	touch_present(fixture, 2, 0);
	touch_present(fixture, 3, 0);
	check_page(fixture, 1, 0x77);
	check_page(fixture, 4, 0x77);
	assert_int_equal(page_state_missing(fixture->ps), PAGES - 16);
	stop(fixture);
}

/* Nothing is filled there that would wake who waits for it: he is woken all the same. */
static void test_who_waits_for_what_is_discarded_while_it_is_filled_is_woken(void **state)
{
	struct toucher t;
	uint64_t filled;

	(void)state;
	discarded.goes_on = true;
	START_OR_SKIP(ANONYMOUS, EAGER);
	touch(fixture, &t, 3);
	wait_fault(fixture);
	assert_false(page_state_want(fixture->ps, 0, 3));
	assert_int_equal(fill_while_discarded(0, &filled), 0);
	touched(&t, 0);
	stop(fixture);
}

/* What the source can't read and the guest has given back is zero, no machine check. */
static void test_what_is_discarded_while_it_is_lost_is_zero(void **state)
{
	uint64_t filled;

	(void)state;
	discarded.goes_on = true;
	START_OR_SKIP(ANONYMOUS, EAGER);
	assert_int_equal(fill_while_discarded(0x8, &filled), 0);
	assert_int_equal(page_state_present(fixture->ps, 0, 0), 0xffff);
	assert_int_equal(page_state_count_poisoned(fixture->ps), 0);
	assert_int_equal(stat_get(&fixture->stats.pages_poisoned), 0);
	touch_present(fixture, 2, 0);
	touch_present(fixture, 3, 0);
	stop(fixture);
}

/* A fill that is given up gives back what it has claimed, but not what was discarded since. */
static void test_what_is_discarded_while_a_fill_is_given_up_is_zero(void **state)
{
	uint64_t filled;

	(void)state;
	discarded.goes_on = false;
	START_OR_SKIP(ANONYMOUS, EAGER);
	assert_int_equal(fill_while_discarded(0, &filled), -ECANCELED);
	assert_int_equal(page_state_claimed(fixture->ps, 0, 0), 0xc);
	assert_int_equal(page_state_present(fixture->ps, 0, 0), 0xc);
	assert_int_equal(fill(fixture, 0, 0xffff, 0, 1), 0xfff3);
	touch_present(fixture, 2, 0);
	stop(fixture);
}

static void test_a_fill_gives_way_to_a_discard_memfd(void **state)
{
	(void)state;
	fill_during_discard(POSTCOPY_MEMORY_MEMFD, MADV_DONTNEED);
}

static void test_a_fill_gives_way_to_a_discard_anonymous(void **state)
{
	(void)state;
	fill_during_discard(POSTCOPY_MEMORY_ANONYMOUS, MADV_DONTNEED);
}

static bool give_up(void *arg)
{
	struct fixture *f = arg;

	return ++f->agains < 3;
}

/*
 * A daemon that was to end while its VMM discarded: nobody read events any more, the fill went on
 * for ever, and systemd killed the process 90 s later, with every other guest's.
 */
static void fill_is_given_up(enum postcopy_memory memory)
{
	struct change c;
	struct resolver_batch b = { .data_mask = 0xffff };
	uint8_t data[16 * UNIT_BYTES] = { 0 };
	uint64_t filled;

	fixture = start(memory, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	b.data = data;
	change(fixture, &c, 128, 2, MADV_DONTNEED);
	wait_event(fixture);
	fixture->caller.again = give_up;
	assert_int_equal(resolver_fill(&fixture->caller, &b, &filled), -ECANCELED);
	assert_int_equal(fixture->agains, 3);
	assert_true(!filled && !page_state_claimed(fixture->ps, 0, 0));
	fixture->caller.again = on_again;
	assert_true(fill(fixture, 0, 0xffff, 0, 1) == 0xffff);
	changed(&c);
	check_page(fixture, 15, 16);
	stop(fixture);
}

static void test_a_fill_that_is_to_stop_does_memfd(void **state)
{
	(void)state;
	fill_is_given_up(POSTCOPY_MEMORY_MEMFD);
}

static void test_a_fill_that_is_to_stop_does_anonymous(void **state)
{
	(void)state;
	fill_is_given_up(POSTCOPY_MEMORY_ANONYMOUS);
}

static void unmap_between(enum postcopy_memory memory)
{
	struct change c;
	struct toucher t;

	fixture = start(memory, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	change(fixture, &c, 4, 4, 0);
	/* Read before anything faults: faults overtake other events. */
	wait_event(fixture);
	assert_true(take_event(fixture, NULL));
	changed(&c);
	touch(fixture, &t, 9);
	wait_fault(fixture);
	assert_false(page_state_want(fixture->ps, 0, 9));
	assert_null(addrmap_find(&fixture->r.shards[0].addrmap, (uintptr_t)page_at(fixture, 4)));
	assert_true(fill(fixture, 0, 0xffff, 0, 1) == 0xffff);
	touched(&t, 10);
	for (unsigned int i = 0; i < 16; i++) {
		if (i >= 4 && i < 8)
			assert_false(is_mapped(fixture, i));
		else
			check_page(fixture, i, (uint8_t)(1 + i));
	}
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 5), 0);
	stop(fixture);
}

static void test_unmapped_pages_are_gone_around_memfd(void **state)
{
	(void)state;
	unmap_between(POSTCOPY_MEMORY_MEMFD);
}

static void test_unmapped_pages_are_gone_around_anonymous(void **state)
{
	(void)state;
	unmap_between(POSTCOPY_MEMORY_ANONYMOUS);
}

/* mremap(), from a thread: it returns once its event has been read. */
struct move {
	pthread_t thread;
	uint8_t *from, *to;
	size_t len;
	void *result;
};

static void *move_main(void *arg)
{
	struct move *m = arg;

	m->result = mremap(m->from, m->len, m->len, MREMAP_MAYMOVE | MREMAP_FIXED, m->to);
	return NULL;
}

/*
 * The event has been read, but the map of addresses does not know yet: the kernel says that
 * nothing is mapped where the page was. Anonymous memory has no other way to fill it, so the unit
 * must be missing again, and be filled where the memory has gone to.
 */
static void test_a_fill_before_the_map_knows_of_a_move_is_tried_again(void **state)
{
	uint8_t data[2 * UNIT_BYTES];
	struct resolver_batch b = { .data_mask = 0x3, .zero_mask = 0x4, .data = data };
	struct uffd_msg msg, rest;
	uint64_t filled;
	struct move m;

	(void)state;
	START_OR_SKIP(ANONYMOUS, EAGER);
	memset(data, 0x77, sizeof data);
	m = (struct move){ .from = fixture->guest, .len = SIZE };
	m.to = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pthread_create(&m.thread, NULL, move_main, &m), 0);
	wait_event(fixture);
	assert_int_equal(read(fixture->uffd, &msg, sizeof msg), sizeof msg);
	assert_int_equal(msg.event, UFFD_EVENT_REMAP);
	/* The kernel then tells that nothing is left behind; only with that read it lets go. */
	wait_event(fixture);
	assert_int_equal(read(fixture->uffd, &rest, sizeof rest), sizeof rest);
	assert_int_equal(rest.event, UFFD_EVENT_UNMAP);
	assert_int_equal(rest.arg.remove.start, (uintptr_t)m.from);
	pthread_join(m.thread, NULL);
	assert_true(m.result == m.to);

	assert_int_equal(resolver_fill(&fixture->caller, &b, &filled), -EAGAIN);
	assert_int_equal(filled, 0x4);
	assert_int_equal(page_state_claimed(fixture->ps, 0, 0), 0x4);
	assert_int_equal(page_state_present(fixture->ps, 0, 0), 0x4);

	pthread_rwlock_wrlock(&fixture->r.shards[0].map_lock);
	assert_int_equal(addrmap_move(&fixture->r.shards[0].addrmap, msg.arg.remap.from,
	                              msg.arg.remap.to, msg.arg.remap.len),
	                 0);
	pthread_rwlock_unlock(&fixture->r.shards[0].map_lock);
	fixture->guest = m.to;
	assert_int_equal(resolver_fill(&fixture->caller, &b, &filled), 0);
	assert_int_equal(filled, 0x3);
	check_page(fixture, 0, 0x77);
	check_page(fixture, 1, 0x77);
	stop(fixture);
}

/* The same page, but unmapped for good, as the map of addresses knows: there is no place for it. */
static void test_a_fill_of_what_is_unmapped_for_good_is_done(void **state)
{
	uint8_t data[UNIT_BYTES] = { 1 };
	struct resolver_batch b = { .data_mask = 0x10, .data = data };
	struct change c;
	uint64_t filled;

	(void)state;
	START_OR_SKIP(ANONYMOUS, EAGER);
	change(fixture, &c, 4, 4, 0);
	wait_event(fixture);
	assert_true(take_event(fixture, NULL));
	changed(&c);
	assert_int_equal(resolver_fill(&fixture->caller, &b, &filled), 0);
	assert_int_equal(filled, 0x10);
	assert_int_equal(page_state_present(fixture->ps, 0, 0), 0x10);
	stop(fixture);
}

static void test_mapped_pages_are_gone_around(void **state)
{
	struct toucher t;

	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	/* Every other one is mapped; then all the rest of the run at once, one of it waited for. */
	fill(fixture, 0, 0x00aa, 0, 1);
	touch_present(fixture, 1, 2);
	touch_present(fixture, 5, 6);
	fixture->r.map = RESOLVER_MAP_EAGER;
	touch(fixture, &t, 6);
	wait_fault(fixture);
	assert_false(page_state_want(fixture->ps, 0, 6));
	assert_true(fill(fixture, 0, 0xffff, 0, 50) == 0xff55);
	touched(&t, 56);
	for (unsigned int i = 8; i < 16; i++)
		check_page(fixture, i, (uint8_t)(50 + i));
	stop(fixture);
}

static void test_a_huge_page_is_mapped_when_it_is_whole(void **state)
{
	struct toucher t;

	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	touch(fixture, &t, 512 + 100);
	wait_fault(fixture);
	assert_false(page_state_want(fixture->ps, 0, 512));
	for (uint64_t word = 8; word < 16; word++) {
		assert_false(is_mapped(fixture, 512));
		fill(fixture, word, word % 2 ? UINT64_MAX : 0xff, word % 2 ? 0 : ~0xffull, 7);
	}
	touched(&t, 7 + 100 % 64);
	check_page(fixture, 512 + 2, 9);
	check_page(fixture, 512 + 20, 0);
	/* The other one: nothing but zeroes, nobody waits, so it stays a hole. */
	for (uint64_t word = 0; word < 8; word++)
		fill(fixture, word, 0, UINT64_MAX, 0);
	assert_false(is_mapped(fixture, 0));
	touch(fixture, &t, 5);
	wait_fault(fixture);
	assert_true(page_state_want(fixture->ps, 0, 0));
	assert_int_equal(resolver_map_page(&fixture->caller, 0, 0), 0);
	touched(&t, 0);
	stop(fixture);
}

/*
 * The VMM has told the kernel something about part of a region (madvise(), mprotect()), which no
 * event announces: the region is several VMAs now, and no ioctl reaches across them.
 */
static void several_vmas(enum postcopy_memory memory)
{
	struct toucher t;

	fixture = start(memory, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	assert_int_equal(madvise(page_at(fixture, 4), 4 * UNIT_BYTES, MADV_DONTDUMP), 0);
	touch(fixture, &t, 1);
	wait_fault(fixture);
	assert_false(page_state_want(fixture->ps, 0, 1));
	assert_true(fill(fixture, 0, 0xffff, 0, 1) == 0xffff);
	touched(&t, 2);
	for (unsigned int i = 0; i < 16; i++)
		if (is_mapped(fixture, i))
			check_page(fixture, i, (uint8_t)(1 + i));
		else
			touch_present(fixture, i, (uint8_t)(1 + i));
	stop(fixture);
}

static void test_a_region_of_several_vmas_anonymous(void **state)
{
	(void)state;
	several_vmas(POSTCOPY_MEMORY_ANONYMOUS);
}

static int uffd_with(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
	return fd;
}

static void assert_refused(int fd, uint64_t claimed, const char *why)
{
	struct error err = ERROR_INIT;

	assert_int_equal(uffd_check(fd, claimed, false, &err), -EINVAL);
	if (!strstr(err.text, why))
		fail_msg("%s", err.text);
	close(fd);
}

/*
 * A memfd that calls itself so was believed: its bytes were read as events. So was a userfaultfd
 * without events: what its VMM discarded came back, what it moved was not found.
 */
static void test_what_is_no_fit_userfaultfd_is_refused(void **state)
{
	const uint64_t events =
	        UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;
	struct error err = ERROR_INIT;
	int fd;

	(void)state;
	fd = open_uffd();
	if (fd < 0)
		skip();
	close(fd);
	assert_refused(memfd_create("[userfaultfd]", MFD_CLOEXEC), 0, "no userfaultfd");
	assert_refused(memfd_create("anon_inode:[userfaultfd]", MFD_CLOEXEC), 0, "no userfaultfd");
	assert_refused(eventfd(0, EFD_CLOEXEC), 0, "no userfaultfd");
	assert_refused(uffd_with(0), 0, "without the events 0x4c");
	assert_refused(uffd_with(events & ~UFFD_FEATURE_EVENT_REMOVE), 0, "without the events 0x8");
	assert_refused(uffd_with(events), events | UFFD_FEATURE_THREAD_ID, "said to have");
	fd = uffd_with(events);
	assert_int_equal(uffd_check(fd, events, false, &err), 0);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	close(fd);
	/* As stock VMMs make them. */
	fd = uffd_with(UFFD_FEATURE_EVENT_REMOVE);
	assert_int_equal(uffd_check(fd, UFFD_FEATURE_EVENT_REMOVE, true, &err), 0);
	close(fd);
	fd = uffd_with(UFFD_FEATURE_EVENT_UNMAP);
	assert_int_equal(uffd_check(fd, 0, true, &err), -EINVAL);
	close(fd);
	err = ERROR_INIT;
	fd = uffd_with(0);
	assert_int_equal(uffd_check_kind(fd, &err), 0);
	close(fd);
}

/*
 * A huge page of which a part has arrived, and of which that part is being filled: discarded, told
 * first, it is zero as a whole. What it lost: one that was punched out while a part was being
 * filled came back as that part, for the fill made the page anew.
 */
static void test_a_half_arrived_huge_page_is_discarded_whole(void **state)
{
	struct memory_filled filled = { 0 };
	uint8_t data[UNIT_BYTES];

	(void)state;
	fixture = start_sized(POSTCOPY_MEMORY_HUGETLB, 2 * SIZE_2M, RESOLVER_MAP_EAGER);
	if (!fixture)
		skip();
	memset(data, 0x55, sizeof data);
	assert_true(fill(fixture, 8, UINT64_MAX, 0, 7) == UINT64_MAX);
	assert_int_equal(page_state_claim(fixture->ps, 0, 9, 1), 1);
	assert_int_equal(resolver_discard_units(fixture->ps, 0, 512, 1024, false), 512 - 64 - 1);
	/* Not whole yet: the VMM has no answer, and punches nothing out. */
	assert_false(page_state_page_present(fixture->ps, 0, 512));
	assert_int_equal(memory_fill(fixture->memories[0], SIZE_2M + 64 * UNIT_BYTES, data,
	                             sizeof data, false, &filled),
	                 0);
	page_state_publish(fixture->ps, 0, 9, 1);
	assert_true(page_state_page_present(fixture->ps, 0, 512));
	assert_int_equal(fallocate(memory_fd(fixture->memories[0]),
	                           FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, SIZE_2M, SIZE_2M),
	                 0);
	/* Nothing that comes late is put there. */
	assert_true(fill(fixture, 8, UINT64_MAX, 0, 7) == 0);
	touch_present(fixture, 512, 0);
	check_page(fixture, 512 + 64, 0);
	check_page(fixture, 512 + 5, 0);
	stop(fixture);
}

static void test_a_region_of_several_vmas_memfd(void **state)
{
	(void)state;
	several_vmas(POSTCOPY_MEMORY_MEMFD);
}

/*
 * The kernel unregisters nothing of a range that is all unmapped, or of which a part is a file
 * (EINVAL), and that made a complete guest "failed". What is registered still is found.
 */
static void test_unregister_finds_what_is_left(void **state)
{
	struct change c;
	int exe = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	uint8_t *hole;

	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	change(fixture, &c, 0, 5, 0);
	wait_event(fixture);
	assert_true(take_event(fixture, NULL));
	changed(&c);
	/* As if nobody had told: a record without what the VMM has unmapped. */
	addrmap_init(&fixture->r.shards[0].addrmap, &fixture->table);
	hole = mmap(page_at(fixture, 2), UNIT_BYTES, PROT_READ, MAP_PRIVATE | MAP_FIXED, exe, 0);
	assert_true(hole == page_at(fixture, 2));
	for (uint64_t word = 0; word < PAGES / WORD_UNITS; word++)
		fill(fixture, word, 0, UINT64_MAX, 0);
	assert_int_equal(resolver_unregister(&fixture->r, &fixture->r.shards[0], false),
	                 UFFD_UNMAPPED);
	assert_true(resolver_unregister(&fixture->r, &fixture->r.shards[0], true) >= 0);
	for (uint64_t unit = 5; unit < PAGES; unit++)
		check_page(fixture, unit, 0);
	no_more_events(fixture);
	close(exe);
	stop(fixture);
}

static void test_unregistered_holes_read_as_zeroes(void **state)
{
	(void)state;
	START_OR_SKIP(MEMFD, LAZY);
	for (uint64_t word = 0; word < PAGES / WORD_UNITS; word++)
		fill(fixture, word, 0xff, ~0xffull, 3);
	assert_int_equal(page_state_missing(fixture->ps), 0);
	assert_int_equal(resolver_unregister(&fixture->r, &fixture->r.shards[0], false), 0);
	check_page(fixture, 0, 3);
	check_page(fixture, 8, 0);
	check_page(fixture, PAGES - 1, 0);
	no_more_events(fixture);
	stop(fixture);
}

/*
 * Which of two address maps counts, and how many pieces it has, was believed: numbers that make no
 * sense led beyond the memfd's mapping. Fuzzing shows it, too.
 */
static void test_a_journal_that_makes_no_sense_is_refused(void **state)
{
	/* In 4 bytes from the room on: behind the slots come ready, current, and a map's applied
	 * and n. */
	enum { READY = EVENTS_MAX * sizeof(struct uffd_msg) / 4, CURRENT, APPLIED, N = READY + 4 };
	static struct fixture f;
	struct region region = { .memory = POSTCOPY_MEMORY_ANONYMOUS,
		                 .size = SIZE,
		                 .page_size = UNIT_BYTES,
		                 .host_addr = 1ull << 32 };
	struct error err = ERROR_INIT;
	struct events e = { 0 };
	uint32_t *journal;

	(void)state;
	f.uffd = -1;
	assert_int_equal(region_table_add(&f.table, &region, &err), 0);
	init_resolver(&f, RESOLVER_MAP_EAGER);
	assert_int_equal(events_init(&e, &f.r, 0, "id"), 0);
	journal = page_state_room(f.ps);
	assert_int_equal(events_open(&e, journal, &err), 0);
	events_take_up(&e);
	assert_int_equal(journal[READY], 1);
	assert_int_equal(journal[N], 1);
	assert_int_equal(events_open(&e, journal, &err), 0);
	journal[CURRENT] = 2;
	assert_int_equal(events_open(&e, journal, &err), -EPROTO);
	journal[CURRENT] = 0;
	journal[N] = ADDRMAP_PIECES_MAX + 1;
	assert_int_equal(events_open(&e, journal, &err), -EPROTO);
	journal[N] = 1;
	assert_int_equal(events_open(&e, journal, &err), 0);
	events_deinit(&e);
	resolver_deinit(&f.r);
	page_state_free(f.ps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_the_source_can_not_read_is_poisoned_memfd_eager),
		cmocka_unit_test(test_what_the_source_can_not_read_is_poisoned_memfd_lazy),
		cmocka_unit_test(test_what_the_source_can_not_read_is_poisoned_anonymous),
		cmocka_unit_test(test_a_huge_page_that_is_not_whole_is_poisoned),
		cmocka_unit_test(test_what_can_not_be_poisoned_stays_missing),
		cmocka_unit_test(test_a_page_whose_memory_here_is_broken_is_poisoned),
		cmocka_unit_test(test_a_page_that_can_not_be_zeroed_is_poisoned),
		cmocka_unit_test(test_eager_maps_what_it_fills),
		cmocka_unit_test(test_eager_fills_a_whole_word),
		cmocka_unit_test(test_lazy_maps_on_the_fault),
		cmocka_unit_test(test_a_fill_makes_the_page_and_no_more),
		cmocka_unit_test(test_a_waiting_guest_is_woken_by_the_fill_memfd_eager),
		cmocka_unit_test(test_a_waiting_guest_is_woken_by_the_fill_memfd_lazy),
		cmocka_unit_test(test_a_waiting_guest_is_woken_by_the_fill_anonymous),
		cmocka_unit_test(test_zero_units_stay_holes_until_touched),
		cmocka_unit_test(test_anonymous_memory_is_copied),
		cmocka_unit_test(test_what_came_ahead_is_seen_as_it_was_last_memfd_eager),
		cmocka_unit_test(test_what_came_ahead_is_seen_as_it_was_last_memfd_lazy),
		cmocka_unit_test(test_a_huge_page_that_came_ahead_is_seen_as_it_was_last),
		cmocka_unit_test(test_huge_pages_that_are_holes_are_not_made_ahead),
		cmocka_unit_test(test_a_staged_page_that_is_discarded_stays_away),
		cmocka_unit_test(test_what_is_staged_is_placed_page_by_page),
		cmocka_unit_test(test_zero_units_that_come_ahead_stay_holes),
		cmocka_unit_test(test_what_can_not_be_had_ahead_is_left_for_later),
		cmocka_unit_test(test_the_first_fill_stays_memfd_eager),
		cmocka_unit_test(test_the_first_fill_stays_memfd_lazy),
		cmocka_unit_test(test_the_first_fill_stays_anonymous),
		cmocka_unit_test(test_two_fillers_of_the_same_pages_memfd),
		cmocka_unit_test(test_two_fillers_of_the_same_pages_anonymous),
		cmocka_unit_test(test_what_is_no_discard_zeroes_nothing),
		cmocka_unit_test(test_discarded_pages_are_zero_anonymous),
		cmocka_unit_test(test_a_removed_page_that_was_there_is_zero),
		cmocka_unit_test(test_what_is_discarded_while_it_is_filled_is_zero),
		cmocka_unit_test(test_who_waits_for_what_is_discarded_while_it_is_filled_is_woken),
		cmocka_unit_test(test_what_is_discarded_while_it_is_lost_is_zero),
		cmocka_unit_test(test_what_is_discarded_while_a_fill_is_given_up_is_zero),
		cmocka_unit_test(test_a_fill_gives_way_to_a_discard_memfd),
		cmocka_unit_test(test_a_fill_gives_way_to_a_discard_anonymous),
		cmocka_unit_test(test_a_fill_that_is_to_stop_does_memfd),
		cmocka_unit_test(test_a_fill_that_is_to_stop_does_anonymous),
		cmocka_unit_test(test_unmapped_pages_are_gone_around_memfd),
		cmocka_unit_test(test_unmapped_pages_are_gone_around_anonymous),
		cmocka_unit_test(test_a_fill_before_the_map_knows_of_a_move_is_tried_again),
		cmocka_unit_test(test_a_fill_of_what_is_unmapped_for_good_is_done),
		cmocka_unit_test(test_mapped_pages_are_gone_around),
		cmocka_unit_test(test_a_huge_page_is_mapped_when_it_is_whole),
		cmocka_unit_test(test_a_half_arrived_huge_page_is_discarded_whole),
		cmocka_unit_test(test_what_is_no_fit_userfaultfd_is_refused),
		cmocka_unit_test(test_a_region_of_several_vmas_memfd),
		cmocka_unit_test(test_a_region_of_several_vmas_anonymous),
		cmocka_unit_test(test_unregister_finds_what_is_left),
		cmocka_unit_test(test_unregistered_holes_read_as_zeroes),
		cmocka_unit_test(test_a_journal_that_makes_no_sense_is_refused),
	};

	return cmocka_run_group_tests_name("resolver", tests, NULL, NULL);
}
