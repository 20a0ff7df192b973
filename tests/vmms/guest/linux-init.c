// SPDX-License-Identifier: Apache-2.0
/*
 * The init, and all there is, of the Linux guest: it knows what each page of its memory must hold.
 *
 * Each worker (one a CPU) owns a share of the pages, and passes over it again and again
 * (pattern.h).
 *
 * What it says, one a line, goes to the virtio console (/dev/hvc0):
 *
 *   ready W workers N pages progress 0xGPA   the counters' place in guest memory: 64-bit, one a
 *                                            worker, each on a cache line of its own: pages done
 *   pass W N pages M bad B                   worker W has looked at all M of its pages, N times
 *   bad W page P word I holds 0xX not 0xY    the first ones
 *   beat N                                   each 100 ms of the guest's time
 *
 * The kernel's command line: check_mib=N is how much it checks.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ctl/guest/pattern.h"

#define CACHE_LINE_WORDS 8
#define BAD_TOLD 8
#define MAX_WORKERS 16

struct worker {
	pthread_t thread;
	unsigned int index;
	uint64_t *memory;
	uint64_t first_page;
	uint64_t n_pages;
	_Atomic uint64_t *progress;
};

static int console = -1;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A line is written whole, by whichever thread. */
static void say(const char *format, ...)
{
	char line[200];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	line[len++] = '\n';
	if (write(console, line, (size_t)len) != len)
		(void)!write(STDERR_FILENO, line, (size_t)len);
}

static void die(const char *what)
{
	perror(what);
	reboot(RB_POWER_OFF);
	pause();
}

static uint64_t pass(struct worker *w, uint64_t n)
{
	uint64_t bad = 0;

	for (uint64_t i = 0; i < w->n_pages; i++) {
		uint64_t page = w->first_page + i;
		uint64_t *p = w->memory + page * PAGE_WORDS;
		uint64_t generation = generation_in_pass(page, n);
		uint64_t word = check_page(p, page, generation);

		if (word < PAGE_WORDS && bad++ < BAD_TOLD)
			say("bad %u page %lu word %lu holds %#lx not %#lx", w->index, page, word,
			    p[word], page_word(page, generation, word));
		if (is_rewritten(page))
			write_page(p, page, generation + 1);
		atomic_fetch_add_explicit(w->progress, 1, memory_order_relaxed);
	}
	return bad;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t bad = 0;

	for (uint64_t n = 1;; n++) {
		bad += pass(w, n);
		say("pass %u %lu pages %lu bad %lu", w->index, n, w->n_pages, bad);
	}
	return NULL;
}

static void *map(size_t len_bytes)
{
	void *p = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE,
	               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static uint64_t physical_address(void *p)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0 ||
	    pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)p / PAGE_BYTES * sizeof(entry))) !=
	            (ssize_t)sizeof(entry))
		die("/proc/self/pagemap");
	close(fd);
	return (entry & ((1ull << 55) - 1)) * PAGE_BYTES;
}

static void load_modules(void)
{
	char path[64];

	/* they are numbered in the order in which they need each other */
	for (int i = 0;; i++) {
		int fd;

		snprintf(path, sizeof(path), "/modules/%d.ko", i);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0))
			die(path);
		close(fd);
	}
}

static void set_address(struct ifreq *request, const char *address)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&request->ifr_addr;

	*in = (struct sockaddr_in){ .sin_family = AF_INET };
	inet_pton(AF_INET, address, &in->sin_addr);
}

/* The kernel answers pings; no other host is asked for anything. */
static void start_network(void)
{
	struct ifreq request = { .ifr_name = "eth0" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		return;
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		die("eth0");
	set_address(&request, "10.7.0.2");
	if (ioctl(fd, SIOCSIFADDR, &request))
		die("eth0's address");
	set_address(&request, "255.255.255.0");
	if (ioctl(fd, SIOCSIFNETMASK, &request))
		die("eth0's network");
	close(fd);
}

static void start_system(void)
{
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) ||
	    (mount("dev", "/dev", "devtmpfs", 0, NULL) && access("/dev/console", F_OK)))
		die("mount");
	load_modules();
	console = open("/dev/hvc0", O_RDWR | O_CLOEXEC | O_NOCTTY);
	if (console < 0)
		die("/dev/hvc0");
	start_network();
}

static size_t mib_to_check(void)
{
	const char *mib = getenv("check_mib");

	return (mib ? strtoul(mib, NULL, 10) : 64) << 20;
}

static void start_workers(struct worker *workers, unsigned int n)
{
	size_t len_bytes = mib_to_check();
	uint64_t n_pages = len_bytes / PAGE_BYTES, share = n_pages / n;
	uint64_t *memory = map(len_bytes);
	uint64_t *counters = map(PAGE_BYTES);

	for (uint64_t page = 0; page < n_pages; page++)
		write_page(memory + page * PAGE_WORDS, page, 1);
	say("ready %u workers %lu pages progress %#lx", n, share * n, physical_address(counters));
	for (unsigned int i = 0; i < n; i++) {
		workers[i] = (struct worker){
			.index = i,
			.memory = memory,
			.first_page = i * share,
			.n_pages = share,
			.progress = (_Atomic uint64_t *)&counters[i * CACHE_LINE_WORDS],
		};
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("pthread_create");
	}
}

int main(void)
{
	static struct worker workers[MAX_WORKERS];
	long cpus;

	start_system();
	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	start_workers(workers, cpus < 1             ? 1
	                       : cpus > MAX_WORKERS ? MAX_WORKERS
	                                            : (unsigned int)cpus);
	for (uint64_t n = 1;; n++) {
		usleep(100 * 1000);
		say("beat %lu", n);
	}
}
