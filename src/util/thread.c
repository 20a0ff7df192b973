/* SPDX-License-Identifier: Apache-2.0 */
#include "util/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"

#define STACK_BYTES (512 * 1024)
#define STACK_KEPT_PAGES 2u
#define LATENCY_NICE (-15)
#define CONTROL_NICE (-10)
#define SHORT_SLICE_NS (100 * NSEC_PER_USEC)
#define LONG_SLICE_NS (20 * NSEC_PER_MSEC)
#define UNTOLD (~0ull)
/* Of thread_spin::worth: its whole, where it pays, and how many waits it remembers. */
#define SPIN_ALWAYS 256
#define SPIN_WORTH 85
#define SPIN_MEMORY 8
/* What a wait that is slept through takes longer. */
#define WAKE_NS (50 * NSEC_PER_USEC)
/* Of schedstat: three numbers. */
#define TIMES_BYTES 72

static int start(pthread_t *ret, int detach_state, void *(*main)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int rc;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, detach_state);
	sigfillset(&all);
	/* The guard's own signal: blocked, it would kill. */
	sigdelset(&all, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	rc = pthread_create(ret, &attr, main, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return -rc;
}

int thread_start(pthread_t *ret, void *(*main)(void *), void *arg)
{
	return start(ret, PTHREAD_CREATE_JOINABLE, main, arg);
}

int thread_start_detached(void *(*main)(void *), void *arg)
{
	pthread_t thread;

	return start(&thread, PTHREAD_CREATE_DETACHED, main, arg);
}

void thread_set_name(const char *name)
{
	pthread_setname_np(pthread_self(), name);
}

/* SCHED_FLAG_RESET_ON_FORK of linux/sched.h. */
#define RESET_ON_FORK 0x01u

/* linux/sched/types.h, first version: that header and pthread.h can't be included together. */
struct scheduling {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime_ns;
	uint64_t deadline_ns;
	uint64_t period_ns;
};

/* @flags: SCHED_FLAG_RESET_ON_FORK or 0. Return: whether it is so now. */
static bool set_scheduling(uint32_t policy, uint64_t flags, int32_t nice, uint64_t slice_ns)
{
	struct scheduling s = { .size = sizeof s,
		                .policy = policy,
		                .flags = flags,
		                .nice = nice,
		                .runtime_ns = slice_ns };

	return !syscall(SYS_sched_setattr, 0, &s, 0);
}

/* A slice that is shorter than another's also ends that at once when we wake (Linux 6.12; older
 * kernels ignore it). */

void thread_prefer_latency(void)
{
	(void)set_scheduling(SCHED_OTHER, 0, LATENCY_NICE, SHORT_SLICE_NS);
}

void thread_prefer_promptness(void)
{
	(void)set_scheduling(SCHED_OTHER, 0, 0, SHORT_SLICE_NS);
}

void thread_prefer_control(void)
{
	/* Where that nice is not allowed the call fails as a whole. */
	if (!set_scheduling(SCHED_OTHER, RESET_ON_FORK, CONTROL_NICE, SHORT_SLICE_NS))
		thread_prefer_promptness();
}

void thread_prefer_throughput(void)
{
	(void)set_scheduling(SCHED_BATCH, 0, 0, LONG_SLICE_NS);
}

void thread_give_back_stack(void)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), end;
	pthread_attr_t attr;
	size_t size;
	void *low;

	if (pthread_getattr_np(pthread_self(), &attr))
		return;
	pthread_attr_getstack(&attr, &low, &size);
	pthread_attr_destroy(&attr);
	/* Not what this function, and those that it calls, stand on. */
	end = ((uintptr_t)__builtin_frame_address(0) & ~(page - 1)) - STACK_KEPT_PAGES * page;
	if (end > (uintptr_t)low)
		(void)madvise(low, end - (uintptr_t)low, MADV_DONTNEED);
}

int thread_open_times(void)
{
	int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static bool read_times(int fd, unsigned long long *ret_ran_ns, unsigned long long *ret_waited_ns)
{
	char text[TIMES_BYTES];
	ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);

	if (n <= 0)
		return false;
	text[n] = 0;
	return sscanf(text, "%llu %llu", ret_ran_ns, ret_waited_ns) == 2;
}

uint64_t thread_own_time_ns(void)
{
	/* Since it was first told. Where it is not, now and then, it has not changed. */
	static _Thread_local unsigned long long first_ns = UNTOLD, waited_ns;
	_cleanup_close_ int fd = thread_open_times();
	unsigned long long ran_ns, now_ns;

	if (read_times(fd, &ran_ns, &now_ns)) {
		if (first_ns == UNTOLD)
			first_ns = now_ns;
		waited_ns = now_ns - first_ns;
	}
	return clock_now_ns() - waited_ns;
}

uint64_t thread_busy_ns(int times_fd)
{
	unsigned long long ran_ns, waited_ns;

	return read_times(times_fd, &ran_ns, &waited_ns) ? ran_ns + waited_ns : 0;
}

bool thread_is_runnable(pid_t tid)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[64], state = 0;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
	f = fopen(path, "re");
	/* Names of our own threads have no parenthesis. */
	return f && fscanf(f, "%*d (%*[^)]) %c", &state) == 1 && state == 'R';
}

bool thread_spin_pays(const struct thread_spin *s)
{
	return s->worth >= SPIN_WORTH;
}

int thread_spin_poll(struct thread_spin *s, struct pollfd *fds, nfds_t n, uint64_t spin_ns,
                     int timeout_ms)
{
	uint64_t begin_ns = spin_ns ? clock_now_ns() : 0;
	int rc = 0;

	while (spin_ns && thread_spin_pays(s) && !rc && clock_now_ns() - begin_ns < spin_ns)
		rc = poll(fds, n, 0);
	if (!rc)
		rc = poll(fds, n, timeout_ms);
	if (spin_ns) {
		bool was_short = rc > 0 && clock_now_ns() - begin_ns < spin_ns + WAKE_NS;

		s->worth += ((was_short ? SPIN_ALWAYS : 0) - s->worth) / SPIN_MEMORY;
	}
	return rc;
}
