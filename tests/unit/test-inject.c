/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that works hard is interrupted 10,000 times, and made to call something each time. It
 * looks at its own registers all the time, computes, sleeps, waits, and takes signals: whatever an
 * interruption changed it would see, and end.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "qemu/inject.h"

#define TIMES 10000
#define MARK 0x706f7374

/* What the victim says of itself. */
struct progress {
	volatile uint64_t rounds, naps, signals, told, bytes;
	volatile int fault; /* the line that has seen something */
	volatile int stop;
};

static struct progress *progress;

static void fail_at(int line)
{
	progress->fault = line;
	_exit(1);
}

#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			fail_at(__LINE__);                                                         \
	} while (0)

/* All registers that a program may use as it likes, and the red zone, hold what was put there. */
static uint64_t registers_hold(uint64_t rounds)
{
	uint64_t bad;

	__asm__ volatile("mov %[n], %%rcx\n\t"
	                 "mov $0x1111111111111111, %%rax\n\t"
	                 "mov $0x2222222222222222, %%rdx\n\t"
	                 "mov $0x3333333333333333, %%rsi\n\t"
	                 "mov $0x4444444444444444, %%rdi\n\t"
	                 "mov $0x5555555555555555, %%r8\n\t"
	                 "mov $0x6666666666666666, %%r9\n\t"
	                 "mov $0x7777777777777777, %%r10\n\t"
	                 "mov $0x0888888888888888, %%r11\n\t"
	                 "movq %%rax, %%xmm3\n\t"
	                 "movq %%r11, %%xmm9\n\t"
	                 "xor %[bad], %[bad]\n\t"
	                 "1:\n\t"
	                 "lea (%%rax,%%rdx), %%r12\n\t" /* 3333... */
	                 "sub %%rsi, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "lea (%%rsi,%%rdx), %%r12\n\t" /* 5555... */
	                 "sub %%r8, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "lea (%%rdi,%%rsi), %%r12\n\t" /* 7777... */
	                 "sub %%r10, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "lea (%%r8,%%rax), %%r12\n\t" /* 6666... */
	                 "sub %%r9, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "movq %%xmm3, %%r12\n\t"
	                 "sub %%rax, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "movq %%xmm9, %%r12\n\t"
	                 "sub %%r11, %%r12\n\t"
	                 "or %%r12, %[bad]\n\t"
	                 "dec %%rcx\n\t"
	                 "jnz 1b\n\t"
	                 : [bad] "=&b"(bad)
	                 : [n] "r"(rounds)
	                 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
	                   "xmm3", "xmm9", "cc", "memory");
	return bad;
}

static void on_signal(int number)
{
	(void)number;
	progress->signals++;
}

static void on_told(int number)
{
	(void)number;
	progress->signals++;
	progress->told++;
}

static void *echo(void *arg)
{
	int *ends = arg;
	sigset_t alarm;
	char c;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	sigaddset(&alarm, SIGRTMIN);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	while (read(ends[0], &c, 1) == 1)
		if (write(ends[1], &c, 1) != 1)
			break;
	return NULL;
}

/* A pipe to another thread and back: each byte once, in order. */
static void pass_bytes(int to, int from)
{
	for (int i = 0; i < 20; i++) {
		char sent = (char)i, got = -1;
		ssize_t n;

		while ((n = write(to, &sent, 1)) < 0)
			MUST(errno == EINTR);
		MUST(n == 1);
		while ((n = read(from, &got, 1)) < 0)
			MUST(errno == EINTR);
		MUST(n == 1 && got == sent);
		progress->bytes++;
	}
}

/* They are restarted where a stop has interrupted them; only a signal may end them early. */
static void nap(void)
{
	struct timespec left, t = { .tv_nsec = 300000 };
	struct pollfd none = { .fd = -1 };
	uint64_t signals = progress->signals;
	int rc = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left);

	MUST(!rc || (rc == EINTR && progress->signals != signals));
	signals = progress->signals;
	rc = poll(&none, 1, 1);
	MUST(!rc || (rc < 0 && errno == EINTR && progress->signals != signals));
	t.tv_nsec = 300000;
	signals = progress->signals;
	rc = ppoll(&none, 1, &t, NULL);
	MUST(!rc || (rc < 0 && errno == EINTR && progress->signals != signals));
	progress->naps++;
}

static void work(int to, int from)
{
	struct sigaction action = { .sa_handler = on_signal }, told = { .sa_handler = on_told };
	struct itimerval often = { { 0, 700 }, { 0, 700 } };
	uint64_t own = (uint64_t)getpid();

	MUST(!sigaction(SIGRTMIN, &told, NULL) && !sigaction(SIGALRM, &action, NULL) &&
	     !setitimer(ITIMER_REAL, &often, NULL));
	while (!progress->stop) {
		MUST(!registers_hold(20000));
		MUST((uint64_t)getpid() == own && syscall(SYS_getppid) == getppid());
		pass_bytes(to, from);
		nap();
		progress->rounds++;
	}
	_exit(0);
}

static pid_t start(void)
{
	pid_t pid;

	memset((void *)progress, 0, sizeof *progress);
	pid = fork();
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* It counts and does nothing else, so it runs under any sanitizer. */
static pid_t start_counter(void)
{
	pid_t pid = start();

	if (pid)
		return pid;
	while (!progress->stop)
		progress->rounds++;
	_exit(0);
}

static pid_t start_victim(void)
{
	int there[2], back[2], ends[2];
	pthread_t thread;
	pid_t pid = start();

	if (pid)
		return pid;
	MUST(!pipe(there) && !pipe(back));
	ends[0] = there[0];
	ends[1] = back[1];
	MUST(!pthread_create(&thread, NULL, echo, ends));
	work(there[1], back[0]);
	return 0;
}

static void end_victim(pid_t pid)
{
	int status;

	progress->stop = 1;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (progress->fault)
		fail_msg("the victim has seen something: line %d", progress->fault);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_process_that_works_hard_notices_nothing(void **state)
{
	pid_t pid = start_victim();
	const uint64_t args[6] = { 0 };
	struct error err = ERROR_INIT;
	int waits = 0;

	(void)state;
#ifdef __SANITIZE_THREAD__
	end_victim(pid);
	print_message("TSan delivers signals when it likes: what the victim counts on is not so\n");
	skip();
#endif
	while (!progress->rounds && !progress->fault)
		usleep(1000);
	for (int i = 0; i < TIMES && !progress->fault; i++) {
		long got = 0;

		/* These queue: none may be lost. */
		assert_int_equal(kill(pid, SIGRTMIN), 0);
		if (inject_syscall(pid, SYS_getpid, args, &got, &err))
			fail_msg("interruption %d: %s", i, err.text);
		assert_int_equal(got, pid);
		/* It must get on meanwhile, and be met wherever it is. */
		usleep((useconds_t)(random() % 300));
	}
	while (progress->told < TIMES && !progress->fault && kill(pid, 0) == 0 && waits++ < 10000)
		usleep(1000);
	assert_int_equal(progress->told, TIMES);
	printf("%d interruptions in %llu rounds, %llu naps, %llu signals, %llu bytes\n", TIMES,
	       (unsigned long long)progress->rounds, (unsigned long long)progress->naps,
	       (unsigned long long)progress->signals, (unsigned long long)progress->bytes);
	end_victim(pid);
}

static void arguments_and_errors_are_the_calls(void **state)
{
	pid_t pid = start_counter();
	uint64_t args[6] = { 0, 1, 2, 3, 4, 5 };
	struct error err = ERROR_INIT;
	long got = 0;

	(void)state;
	/* Six arguments: the place of the mapping is what it returns. */
	args[0] = 0x10000000;
	args[1] = 4096;
	args[2] = PROT_READ;
	args[3] = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	args[4] = (uint64_t)-1;
	args[5] = 0;
	assert_int_equal(inject_syscall(pid, SYS_mmap, args, &got, &err), 0);
	assert_int_equal(got, 0x10000000);
	args[0] = (uint64_t)-1;
	assert_int_equal(inject_syscall(pid, SYS_close, args, &got, &err), 0);
	assert_int_equal(got, -EBADF);
	end_victim(pid);
}

/* Stopped as by a shell's ^Z: so it stays, and the call is made all the same. */
static void a_stopped_process_stays_stopped(void **state)
{
	pid_t pid = start_counter();
	const uint64_t args[6] = { 0 };
	struct error err = ERROR_INIT;
	uint64_t rounds;
	long got = 0;
	int status;

	(void)state;
	while (!progress->rounds && !progress->fault)
		usleep(1000);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	for (int i = 0; i < 100; i++)
		if (inject_syscall(pid, SYS_getpid, args, &got, &err))
			fail_msg("interruption %d: %s", i, err.text);
	assert_int_equal(got, pid);
	rounds = progress->rounds;
	usleep(50000);
	assert_int_equal(progress->rounds, rounds);
	assert_int_equal(kill(pid, SIGCONT), 0);
	end_victim(pid);
}

static void who_may_not_be_traced_is_told(void **state)
{
	const uint64_t args[6] = { 0 };
	struct error err = ERROR_INIT;
	long got;

	(void)state;
	assert_true(inject_syscall(getpid(), SYS_getpid, args, &got, &err) == -EPERM);
	assert_non_null(strstr(err.text, "may not be traced"));
	assert_int_equal(inject_check(0x3fffff, &err), -ESRCH);
}

/* As a host would have it whose sysctl nobody may set here: 3 can't be taken back. */
static void expect_explained(const char *scope, int rc, const char *part)
{
	char path[] = "/tmp/test-inject-XXXXXX";
	struct error err = ERROR_INIT;
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, scope, strlen(scope)), strlen(scope));
	close(fd);
	assert_int_equal(inject_explain(1, rc, path, &err), rc);
	unlink(path);
	if (!strstr(err.text, part))
		fail_msg("\"%s\" is not in: %s", part, err.text);
}

static void yama_s_refusal_is_told_with_what_to_do(void **state)
{
	struct error err = ERROR_INIT;

	(void)state;
	expect_explained("3\n", -EPERM, "until it is booted with less (sysctl.d)");
	expect_explained("1\n", -EPERM, "with CAP_SYS_PTRACE (kernel.yama.ptrace_scope is not 0)");
	expect_explained("0\n", -EPERM, "or another tracer has it");
	expect_explained("?\n", -EPERM, "or another tracer has it");
	expect_explained("3\n", -ESRCH, "can't trace process 1");
	assert_int_equal(inject_explain(1, -EPERM, "/no/such/file", &err), -EPERM);
	assert_non_null(strstr(err.text, "run as its user or as root; or another tracer"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_process_that_works_hard_notices_nothing),
		cmocka_unit_test(arguments_and_errors_are_the_calls),
		cmocka_unit_test(a_stopped_process_stays_stopped),
		cmocka_unit_test(who_may_not_be_traced_is_told),
		cmocka_unit_test(yama_s_refusal_is_told_with_what_to_do),
	};

	progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
	                -1, 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
