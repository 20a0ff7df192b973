/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/inject.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#include "util/cleanup.h"
#include "util/clock.h"

/* A thread that sleeps in the kernel where no signal wakes it can't be stopped. */
#define STOP_LIMIT_NS (5 * NSEC_PER_SEC)
#define TRIES 100
#define CODE_BYTES (256u << 10)
#define CS_64 0x33
/* In the thread's struct rseq, include/uapi/linux/rseq.h. */
#define RSEQ_CS_OFFSET 8
/* Above PTRACE_O_TRACESYSGOOD's mark nothing is set for a stop at a system call. */
#define SYSCALL_STOP (SIGTRAP | 0x80)

static long trace(int request, pid_t tid, uintptr_t addr, const void *data)
{
	return ptrace((enum __ptrace_request)request, tid, (void *)addr, (void *)data);
}

static int yama_scope(const char *path)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	int scope = 0;

	if (f && fscanf(f, "%d", &scope) != 1)
		scope = 0;
	return scope;
}

int inject_explain(pid_t tid, int rc, const char *yama_path, struct error *err)
{
	int yama = yama_scope(yama_path);

	if (rc == -EPERM && yama == 3)
		return error_set(err, rc,
		                 "Yama forbids ptrace to everybody (kernel.yama.ptrace_scope = 3): "
		                 "no guest can come to this host until it is booted with less "
		                 "(sysctl.d)");
	if (rc == -EPERM)
		return error_set(err, rc,
		                 "process %d may not be traced: run as its user or as root%s",
		                 (int)tid,
		                 yama ? ", with CAP_SYS_PTRACE (kernel.yama.ptrace_scope is not 0)"
		                      : "; or another tracer has it");
	return error_errno(err, rc, "can't trace process %d", (int)tid);
}

static int refused(pid_t tid, int rc, struct error *err)
{
	return inject_explain(tid, rc, "/proc/sys/kernel/yama/ptrace_scope", err);
}

/* A system call instruction in [start, end); 0: there is none. */
static uint64_t find_syscall(int mem, uint64_t start, uint64_t end)
{
	static const unsigned char insn[2] = { 0x0f, 0x05 };
	size_t size = end - start < CODE_BYTES ? end - start : CODE_BYTES;
	_cleanup_free_ unsigned char *code = malloc(size);
	ssize_t n = code ? pread(mem, code, size, (off_t)start) : -1;
	const unsigned char *at = n > 0 ? memmem(code, (size_t)n, insn, sizeof insn) : NULL;

	return at ? start + (uint64_t)(at - code) : 0;
}

/* The vDSO's, else libc's. 0: there is none, or it can't be read. */
static uint64_t find_code(pid_t tid)
{
	_cleanup_fclose_ FILE *maps = NULL;
	_cleanup_free_ char *line = NULL;
	_cleanup_close_ int mem = -1;
	uint64_t in_vdso = 0, in_libc = 0;
	size_t len = 0;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/mem", (int)tid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/maps", (int)tid);
	maps = fopen(path, "re");
	while (mem >= 0 && maps && getline(&line, &len, maps) > 0) {
		uint64_t start, end;
		char perms[5] = "";

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, perms) != 3 ||
		    perms[2] != 'x')
			continue;
		if (strstr(line, "[vdso]"))
			in_vdso = find_syscall(mem, start, end);
		else if (!in_libc && strstr(line, "/libc"))
			in_libc = find_syscall(mem, start, end);
	}
	return in_vdso ? in_vdso : in_libc;
}

/* Return: 0 with a stop in @status; -ESRCH where the thread has ended. */
static int await_stop(pid_t tid, int *status)
{
	pid_t who;

	do
		who = waitpid(tid, status, __WALL);
	while (who < 0 && errno == EINTR);
	return who == tid && WIFSTOPPED(*status) ? 0 : -ESRCH;
}

/* The same of one that was told to stop, but may not hear it. */
static int await_stop_for(pid_t tid, int *status)
{
	const struct timespec pause = { .tv_nsec = 20000 };
	uint64_t deadline_ns = clock_now_ns() + STOP_LIMIT_NS;

	for (;;) {
		pid_t who = waitpid(tid, status, __WALL | WNOHANG);

		if (who == tid)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		if (who < 0 && errno != EINTR)
			return -ESRCH;
		if (clock_now_ns() > deadline_ns)
			return -EBUSY;
		nanosleep(&pause, NULL);
	}
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

/* Seized: on its way back to user space, before any instruction. Signals go where they were going.
 */
static int stop(pid_t tid, struct error *err)
{
	int status, rc;

	if (trace(PTRACE_INTERRUPT, tid, 0, NULL))
		return error_errno(err, -errno, "PTRACE_INTERRUPT");
	while (!(rc = await_stop_for(tid, &status)) && !is_event_stop(status)) {
		uintptr_t signal = (uintptr_t)WSTOPSIG(status);

		if (trace(PTRACE_CONT, tid, 0, (void *)signal))
			return error_errno(err, -errno, "PTRACE_CONT");
	}
	return rc ? error_errno(err, rc, "process %d does not stop", (int)tid) : 0;
}

/* 1: it is amid a restartable sequence. */
static int is_in_rseq(pid_t tid)
{
	struct __ptrace_rseq_configuration config = { 0 };
	long cs;

	/* Linux 5.13. A thread that has none has no address. */
	if (trace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof config, &config) < 0 ||
	    !config.rseq_abi_pointer)
		return 0;
	errno = 0;
	cs = trace(PTRACE_PEEKDATA, tid, config.rseq_abi_pointer + RSEQ_CS_OFFSET, NULL);
	return !errno && cs;
}

/*
 * Runs a stopped thread, whose signals are blocked, until it enters a system call or leaves it.
 * Group stops go by: it is in one still when it is let go. SIGSTOP alone can't be blocked: it is
 * kept.
 */
static int run_to_syscall(pid_t tid, bool *was_told_to_stop)
{
	for (;;) {
		int status, rc;

		if (trace(PTRACE_SYSCALL, tid, 0, NULL))
			return -errno;
		rc = await_stop(tid, &status);
		if (rc)
			return rc;
		if (WSTOPSIG(status) == SYSCALL_STOP)
			return 0;
		if (!is_event_stop(status) && WSTOPSIG(status) == SIGSTOP)
			*was_told_to_stop = true;
	}
}

/* From entry to exit. */
static int run_syscall(pid_t tid, const struct user_regs_struct *call, long *ret,
                       bool *was_told_to_stop)
{
	struct user_regs_struct after;
	int rc = 0;

	if (trace(PTRACE_SETREGS, tid, 0, call))
		rc = -errno;
	if (!rc)
		rc = run_to_syscall(tid, was_told_to_stop);
	if (!rc)
		rc = run_to_syscall(tid, was_told_to_stop);
	if (!rc && trace(PTRACE_GETREGS, tid, 0, &after))
		rc = -errno;
	if (rc)
		return rc;
	*ret = (long)after.rax;
	return 0;
}

static struct user_regs_struct call_registers(const struct user_regs_struct *own, uint64_t code,
                                              long number, const uint64_t args[6])
{
	struct user_regs_struct call = *own;

	call.rip = code;
	call.rax = (unsigned long long)number;
	/* In no system call of its own, or the kernel would restart that one, with these registers.
	 */
	call.orig_rax = (unsigned long long)-1;
	call.rdi = args[0];
	call.rsi = args[1];
	call.rdx = args[2];
	call.r10 = args[3];
	call.r8 = args[4];
	call.r9 = args[5];
	return call;
}

/* Of a thread that is stopped. */
static int borrow(pid_t tid, uint64_t code, long number, const uint64_t args[6], long *ret,
                  bool *was_told_to_stop, struct error *err)
{
	struct user_regs_struct own = { 0 }, call;
	uint64_t own_mask = 0, all = ~0ull;
	int rc = 0;

	if (trace(PTRACE_GETREGS, tid, 0, &own) ||
	    trace(PTRACE_GETSIGMASK, tid, sizeof own_mask, &own_mask))
		return error_errno(err, -errno, "can't read the registers of %d", (int)tid);
	if (own.cs != CS_64)
		return error_set(err, -EOPNOTSUPP, "process %d is no 64-bit process", (int)tid);
	call = call_registers(&own, code, number, args);
	if (trace(PTRACE_SETOPTIONS, tid, 0,
	          (void *)(uintptr_t)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)) ||
	    trace(PTRACE_SETSIGMASK, tid, sizeof all, &all))
		return error_errno(err, -errno, "can't block the signals of %d", (int)tid);
	rc = run_syscall(tid, &call, ret, was_told_to_stop);
	/* Whatever has failed: it is stopped, or it has ended. */
	if (trace(PTRACE_SETREGS, tid, 0, &own) && !rc)
		rc = -errno;
	if (trace(PTRACE_SETSIGMASK, tid, sizeof own_mask, &own_mask) && !rc)
		rc = -errno;
	(void)trace(PTRACE_SETOPTIONS, tid, 0, NULL);
	return rc ? error_errno(err, rc, "system call %ld in process %d", number, (int)tid) : 0;
}

/* Return: 1 where it should be tried again. */
static int try_once(pid_t tid, uint64_t code, long number, const uint64_t args[6], long *ret,
                    struct error *err)
{
	bool was_told_to_stop = false;
	int rc;

	if (trace(PTRACE_SEIZE, tid, 0, NULL))
		return refused(tid, -errno, err);
	rc = stop(tid, err);
	if (!rc)
		rc = is_in_rseq(tid) ? 1
		                     : borrow(tid, code, number, args, ret, &was_told_to_stop, err);
	/* Where it does not stop it can't be let go either, but by this process's end. */
	(void)trace(PTRACE_DETACH, tid, 0, NULL);
	if (was_told_to_stop)
		kill(tid, SIGSTOP);
	return rc;
}

int inject_syscall(pid_t tid, long number, const uint64_t args[6], long *ret, struct error *err)
{
	uint64_t code = find_code(tid);
	int rc;

	if (!code) {
		rc = inject_check(tid, err);
		return rc ? rc
		          : error_set(err, -EOPNOTSUPP,
		                      "process %d: there is no system call instruction in its "
		                      "vDSO or libc, or they can't be read",
		                      (int)tid);
	}
	for (unsigned int i = 0; i < TRIES; i++) {
		rc = try_once(tid, code, number, args, ret, err);
		if (rc <= 0)
			return rc;
	}
	return error_set(err, -EBUSY, "process %d does not leave its restartable sequences",
	                 (int)tid);
}

/* A seized thread that was not stopped is let go by stopping it. */
int inject_check(pid_t pid, struct error *err)
{
	int rc;

	if (trace(PTRACE_SEIZE, pid, 0, NULL))
		return refused(pid, -errno, err);
	rc = stop(pid, err);
	(void)trace(PTRACE_DETACH, pid, 0, NULL);
	return rc;
}
