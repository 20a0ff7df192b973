/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Destination memory that is not empty: the guest would read what is there already, or a late fill
 * would come over what it wrote. And pages that turn up in it later, by nobody of us.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "fault/resolver.h"
#include "guest.h"
#include "libpostcopy/table.h"
#include "mem/inspect.h"
#include "mem/pagemap.h"
#include "util/clock.h"
#include "util/thread.h"

#define PAGES 256u
#define SIZE (PAGES * (size_t)UNIT_BYTES)

static uint8_t *map_memory(int fd)
{
	uint8_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
	                  fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

static int make_memfd(void)
{
	int fd = memfd_create("test-populated", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	return fd;
}

static bool has_pages(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_blocks;
}

static bool is_mapped_anywhere(const uint8_t *p)
{
	uint64_t addr;
	int rc = pagemap_find(getpid(), (uintptr_t)p, (uintptr_t)p + SIZE, UINT64_MAX, &addr);

	assert_true(!rc || rc == -ENOENT);
	return !rc;
}

/* What a VMM may have done to memory that it calls empty. */
static void populate(unsigned int how, int fd, uint8_t *p)
{
	switch (how) {
	case 0:
		memset(p, 0x55, SIZE);
		return;
	case 1:
		p[100 * UNIT_BYTES] = 1;
		return;
	case 2:
		assert_int_equal(madvise(p, SIZE, MADV_POPULATE_READ), 0);
		return;
	case 3:
		/*
		 * It may be more than this process may lock: then it is populated by hand. The
		 * sanitizers' mlock() does nothing.
		 */
		if (syscall(SYS_mlock, p, SIZE))
			memset(p, 0, SIZE);
		return;
	default:
		/* As a VMM does that preallocates: no SEEK_DATA tells of it. */
		assert_int_equal(fallocate(fd, 0, 0, SIZE), 0);
		return;
	}
}

/* Of the mapping that begins at @p: "nh" is MADV_NOHUGEPAGE. */
static bool has_flag(const uint8_t *p, const char *flag)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	char line[512], start[32];
	bool here = false, found = false;

	assert_non_null(f);
	snprintf(start, sizeof start, "%lx-", (unsigned long)(uintptr_t)p);
	while (fgets(line, sizeof line, f)) {
		if (!strncmp(line, start, strlen(start)))
			here = true;
		else if (here && !strncmp(line, "VmFlags:", 8)) {
			found = strstr(line, flag);
			break;
		}
	}
	fclose(f);
	return found;
}

static void the_library_empties(int fd, unsigned int how)
{
	uint8_t *p = map_memory(fd);
	struct postcopy_region r = {
		.memory = fd < 0 ? POSTCOPY_MEMORY_ANONYMOUS : POSTCOPY_MEMORY_MEMFD,
		.size = SIZE,
		.page_size = UNIT_BYTES,
		.host_addr = p,
		.fd = fd,
	};
	struct error err = ERROR_INIT;
	uint64_t features;
	uint32_t mode;
	int uffd;

	if (uffd_open(&uffd, &features, &err)) {
		print_message("skipped: %s\n", err.text);
		skip();
	}
	populate(how, fd, p);
	assert_true(fd < 0 ? is_mapped_anywhere(p) : has_pages(fd));
	if (uffd_register(uffd, &r, 0, &mode, &err))
		fail_msg("%s", err.text);
	assert_false(is_mapped_anywhere(p));
	/* It would stay so: on Linux 6.1 a huge page filled the rest with zeroes. */
	if (!access("/sys/kernel/mm/transparent_hugepage", F_OK))
		assert_true(has_flag(p, " nh"));
	if (fd >= 0) {
		assert_false(has_pages(fd));
		close(fd);
	}
	close(uffd);
	munmap(p, SIZE);
}

static void test_the_library_empties_anonymous_memory(void **state)
{
	(void)state;
	for (unsigned int how = 0; how < 4; how++)
		the_library_empties(-1, how);
}

static void test_the_library_empties_a_memfd(void **state)
{
	(void)state;
	for (unsigned int how = 0; how < 5; how++)
		the_library_empties(make_memfd(), how);
}

static struct memory *open_memory(enum postcopy_memory kind, int fd, const uint8_t *p)
{
	struct region r = {
		.memory = kind, .size = SIZE, .page_size = UNIT_BYTES, .host_addr = (uintptr_t)p
	};
	struct region_table table = { 0 };
	struct error err = ERROR_INIT;
	struct memory *m;

	assert_int_equal(region_table_add(&table, &r, &err), 0);
	if (memory_open_destination(&table.regions[0], 0, fd, &m, &err))
		fail_msg("%s", err.text);
	return m;
}

/* The daemon does not take the VMM's word for it. */
static void test_the_daemon_empties_a_memfd(void **state)
{
	(void)state;
	for (unsigned int how = 0; how < 5; how++) {
		struct error err = ERROR_INIT;
		int fd = make_memfd();
		uint8_t *p = map_memory(fd);
		struct memory *m = open_memory(POSTCOPY_MEMORY_MEMFD, fd, p);

		populate(how, fd, p);
		if (memory_empty(m, 0, UINT64_MAX, &err))
			fail_msg("%s", err.text);
		assert_false(has_pages(fd));
		assert_false(is_mapped_anywhere(p));
		munmap(p, SIZE);
		memory_free(m);
	}
}

/* It has other guests to serve, and says what is too much for it. */
static void test_what_takes_too_long_is_refused_by_name(void **state)
{
	struct error err = ERROR_INIT;
	int fd = make_memfd();
	uint8_t *p = map_memory(fd);
	struct memory *m = open_memory(POSTCOPY_MEMORY_MEMFD, fd, p);

	(void)state;
	assert_int_equal(memory_empty(m, 3, 0, &err), 0);
	memset(p, 1, SIZE);
	assert_int_equal(memory_empty(m, 3, 0, &err), -EFBIG);
	assert_non_null(strstr(err.text, "region 3"));
	assert_non_null(strstr(err.text, "offset 0"));
	munmap(p, SIZE);
	memory_free(m);
}

static int inspect(enum postcopy_memory kind, const uint8_t *p, int fd, pid_t vmm,
                   struct error *err)
{
	struct region r = {
		.memory = kind, .size = SIZE, .page_size = UNIT_BYTES, .host_addr = (uintptr_t)p
	};
	struct descriptor_file files[REGIONS_MAX] = { 0 };
	struct region_table table = { 0 };

	assert_int_equal(region_table_add(&table, &r, NULL), 0);
	if (fd >= 0)
		assert_int_equal(descriptor_file(fd, &files[0]), 0);
	return inspect_vmm(vmm, &table, files, true, err);
}

static void test_anonymous_memory_that_is_not_empty_is_refused_by_name(void **state)
{
	uint8_t *p = map_memory(-1);
	struct error err = ERROR_INIT;

	(void)state;
	madvise(p, SIZE, MADV_NOHUGEPAGE);
	assert_int_equal(inspect(POSTCOPY_MEMORY_ANONYMOUS, p, -1, getpid(), &err), 0);
	/* Read once: it is zero, and UFFDIO_COPY finds it there. */
	assert_int_equal(((volatile uint8_t *)p)[77 * UNIT_BYTES], 0);
	assert_int_equal(inspect(POSTCOPY_MEMORY_ANONYMOUS, p, -1, getpid(), &err), -EBUSY);
	assert_non_null(strstr(err.text, "region 0"));
	assert_non_null(strstr(err.text, "0x4d000"));
	/* Whose it is is not known: the library's discard has to do. */
	assert_int_equal(inspect(POSTCOPY_MEMORY_ANONYMOUS, p, -1, 0, &err), 0);
	munmap(p, SIZE);
}

/* What the guest writes is not in the file that would be sent: at its next host, old pages. */
static void test_a_private_mapping_is_refused_by_name(void **state)
{
	int fd = make_memfd();
	uint8_t *p = map_memory(fd), *private;
	struct error err = ERROR_INIT;
	struct postcopy_region r = { .memory = POSTCOPY_MEMORY_MEMFD,
		                     .size = SIZE,
		                     .page_size = UNIT_BYTES,
		                     .host_addr = p,
		                     .fd = fd };

	(void)state;
	assert_int_equal(inspect(POSTCOPY_MEMORY_MEMFD, p, fd, getpid(), &err), 0);
	assert_int_equal(table_check(&r, 1, 0, &err), 0);
	private = mmap(p + 9 * UNIT_BYTES, UNIT_BYTES, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
	assert_true(private == p + 9 * UNIT_BYTES);
	assert_int_equal(inspect(POSTCOPY_MEMORY_MEMFD, p, fd, getpid(), &err), -EINVAL);
	assert_non_null(strstr(err.text, "MAP_PRIVATE at offset 0x9000"));
	assert_int_equal(table_check(&r, 1, 0, &err), -EINVAL);
	assert_non_null(strstr(err.text, "MAP_PRIVATE"));
	munmap(p, SIZE);
	close(fd);
}

/* One CPU for this process, and others that want it, too. */
#define RIVALS 40u

/* TSan starts and ends threads by turns that all the others have: minutes, on one CPU. */
static void need_speed(void)
{
#ifdef __SANITIZE_THREAD__
	print_message("skipped: TSan takes minutes for so many threads on one CPU\n");
	skip();
#endif
}

struct busy_host {
	cpu_set_t before;
	pthread_t rivals[RIVALS];
	atomic_bool over;
};

static void *keep_busy(void *arg)
{
	atomic_bool *over = arg;

	while (!atomic_load(over))
		;
	return NULL;
}

static void make_busy(struct busy_host *busy)
{
	cpu_set_t one;

	atomic_init(&busy->over, false);
	assert_int_equal(sched_getaffinity(0, sizeof busy->before, &busy->before), 0);
	CPU_ZERO(&one);
	CPU_SET((unsigned int)sched_getcpu(), &one);
	assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
	for (unsigned int i = 0; i < RIVALS; i++)
		assert_int_equal(pthread_create(&busy->rivals[i], NULL, keep_busy, &busy->over), 0);
}

static void make_idle(struct busy_host *busy)
{
	atomic_store(&busy->over, true);
	for (unsigned int i = 0; i < RIVALS; i++)
		pthread_join(busy->rivals[i], NULL);
	assert_int_equal(sched_setaffinity(0, sizeof busy->before, &busy->before), 0);
}

/* Who had no CPU in time was taken as if he had seen nothing: so the VMM was let in. */
static void test_on_a_busy_host_it_is_looked_at_all_the_same(void **state)
{
	int fd = make_memfd();
	uint8_t *p = map_memory(fd);
	struct busy_host busy;

	(void)state;
	need_speed();
	assert_true(mmap(p, SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == p);
	make_busy(&busy);
	for (unsigned int i = 0; i < 10; i++) {
		struct error err = ERROR_INIT;

		assert_int_equal(inspect(POSTCOPY_MEMORY_MEMFD, p, fd, getpid(), &err), -EINVAL);
	}
	make_idle(&busy);
	munmap(p, SIZE);
	close(fd);
}

/* Where the kernel can't tell: with no descriptor to be had. */
static uint64_t own_time_untold_ns(void)
{
	struct rlimit limit, none;
	uint64_t ns;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = limit.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	ns = thread_own_time_ns();
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	return ns;
}

/* By it a limit on what a thread does on the loop is one on what it does. */
static void test_what_others_take_is_not_ones_own_time(void **state)
{
	struct busy_host busy;
	uint64_t begin_ns, own_ns;

	(void)state;
	need_speed();
	if (access("/proc/thread-self/schedstat", R_OK)) {
		print_message("skipped: this kernel does not tell how long a thread waits\n");
		skip();
	}
	make_busy(&busy);
	begin_ns = clock_now_ns();
	own_ns = thread_own_time_ns();
	while (clock_now_ns() - begin_ns < NSEC_PER_SEC)
		;
	own_ns = thread_own_time_ns() - own_ns;
	begin_ns = clock_now_ns() - begin_ns;
	make_idle(&busy);
	assert_in_range(own_ns, 1, begin_ns / 4);

	/* One that can't be told for a moment is the same time. */
	own_ns = thread_own_time_ns();
	assert_in_range(own_time_untold_ns() - own_ns, 1, begin_ns / 4);
}

static bool again(void *arg)
{
	(void)arg;
	return true;
}

#define THERE 3u /* somebody has read the hole: a page of zeroes */
#define ABSENT 5u

static struct resolver *make_resolver(const struct guest *g, struct memory **m,
                                      struct page_state *ps, struct pull_stats *stats)
{
	struct resolver *r = calloc(1, sizeof *r);

	*m = guest_memory(g);
	assert_non_null(*m);
	*r = (struct resolver){ .table = &g->table,
		                .state = ps,
		                .memories = m,
		                .shards[0].uffd = g->uffd,
		                .map = RESOLVER_MAP_EAGER,
		                .stats = stats };
	assert_int_equal(resolver_init(r), 0);
	return r;
}

/* The next UFFDIO_COPY is this process's end, before it is carried out. */
static bool die_at_copy(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)UFFDIO_COPY, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static _Noreturn void fill_until_killed(const struct guest *g, struct page_state *ps,
                                        const uint8_t *page)
{
	struct pull_stats stats = { 0 };
	struct memory *m;
	struct resolver_caller caller = { .resolver = make_resolver(g, &m, ps, &stats),
		                          .again = again };
	struct resolver_batch b = { .data = page };
	uint64_t filled;

	if (!die_at_copy())
		_exit(1);
	b.data_mask = 1ull << THERE;
	(void)resolver_fill(&caller, &b, &filled);
	b.data_mask = 1ull << ABSENT;
	(void)resolver_fill(&caller, &b, &filled);
	_exit(2);
}

/*
 * Killed between the note that a page is copied and the copy: in memory that was populated the next
 * process found a page there, and took it for the one that had come. 6 to 15 pages of zeroes in a
 * guest that was "complete".
 */
static void test_a_page_that_was_there_is_not_taken_for_one_that_came(void **state)
{
	static const uint8_t zeroes[UNIT_BYTES];
	struct pull_stats stats = { 0 };
	struct error err = ERROR_INIT;
	uint8_t page[UNIT_BYTES], got[UNIT_BYTES];
	struct page_state *ps, *adopted;
	struct resolver *r;
	struct memory *m;
	struct guest g;
	int status;
	pid_t child;

	(void)state;
	if (!guest_init(&g, POSTCOPY_MEMORY_MEMFD, SIZE))
		skip();
	memset(page, 0x5a, sizeof page);
	assert_int_equal(page_state_new(&g.table, &ps, &err), 0);
	assert_int_equal(pwrite(g.fd, zeroes, UNIT_BYTES, THERE * UNIT_BYTES), UNIT_BYTES);
	child = fork();
	if (!child)
		fill_until_killed(&g, ps, page);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);

	assert_int_equal(page_state_adopt(&g.table, page_state_fd(ps), &adopted, &err), 0);
	r = make_resolver(&g, &m, adopted, &stats);
	resolver_settle(r);
	assert_true(page_state_page_present(adopted, 0, THERE));
	assert_int_equal(pread(g.fd, got, UNIT_BYTES, THERE * UNIT_BYTES), UNIT_BYTES);
	assert_memory_equal(got, page, UNIT_BYTES);
	assert_int_equal(page_state_claimed(adopted, 0, 0) & 1ull << ABSENT, 0);
	assert_int_equal(page_state_missing(adopted), PAGES - 1);

	resolver_deinit(r);
	free(r);
	memory_free(m);
	page_state_free(adopted);
	page_state_free(ps);
	guest_deinit(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_library_empties_anonymous_memory),
		cmocka_unit_test(test_the_library_empties_a_memfd),
		cmocka_unit_test(test_the_daemon_empties_a_memfd),
		cmocka_unit_test(test_what_takes_too_long_is_refused_by_name),
		cmocka_unit_test(test_anonymous_memory_that_is_not_empty_is_refused_by_name),
		cmocka_unit_test(test_a_private_mapping_is_refused_by_name),
		cmocka_unit_test(test_on_a_busy_host_it_is_looked_at_all_the_same),
		cmocka_unit_test(test_what_others_take_is_not_ones_own_time),
		cmocka_unit_test(test_a_page_that_was_there_is_not_taken_for_one_that_came),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
