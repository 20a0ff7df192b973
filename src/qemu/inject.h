/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One system call in another process's name.
 *
 * Theory of operation
 * -------------------
 * A userfaultfd is of the address space that it was made in, so QEMU has to make it, and no command
 * of its monitor does. So its main thread is stopped for a moment (PTRACE_SEIZE and
 * PTRACE_INTERRUPT: no signal, and nothing that its parent would see), is given registers that lead
 * to a `syscall` instruction which it has mapped anyway (the vDSO's, or libc's), is let run from
 * the call's entry to its exit, and gets all of its registers back.
 *
 *   - Between the stop and the restored registers all its signals are blocked: no handler ever runs
 *     on registers that are not the thread's. Those that come wait, SIGSTOP as well.
 *   - The thread may stand within a system call of its own, which the stop has interrupted. It goes
 *     on by what is in its registers (the call's number, and -ERESTART...): the kernel looks at
 * them on the way out of a stop, so also when we let go.
 *   - A restartable sequence (rseq(2)) would not be restarted, for the kernel has looked when our
 *     call ended. Where the thread is within one it is let go, and stopped again later.
 *   - If this process is killed meanwhile the kernel kills the other one (PTRACE_O_EXITKILL): a
 * QEMU with registers that are not its own never runs on. That is for some 50 us, in a QEMU that
 * has no guest yet.
 *
 * Needs what ptrace(2) needs: the same user and a process that may be dumped, or CAP_SYS_PTRACE;
 * and Yama's consent. x86-64 only.
 *
 * Threads: the calling one is the tracer meanwhile.
 */
#ifndef QEMU_INJECT_H
#define QEMU_INJECT_H

#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

/*
 * inject_syscall() - have thread @tid make a system call that does not sleep
 * @ret: what it returned: -errno where it failed
 *
 * Return: 0; -EPERM with @err saying who forbids it; -ESRCH; -EBUSY where the thread can't be
 * stopped; -EOPNOTSUPP where it has no system call instruction, or is no 64-bit one. Whatever it
 * returns, the thread is as it was, or has ended.
 */
int inject_syscall(pid_t tid, long number, const uint64_t args[6], long *ret, struct error *err);

/*
 * inject_explain() - why thread @tid may not be traced, and what to do
 * @rc: of having tried
 * @yama_path: the file of kernel.yama.ptrace_scope; there may be none
 *
 * Return: @rc.
 */
int inject_explain(pid_t tid, int rc, const char *yama_path, struct error *err);

/* Whether the above could be done to @pid: it is seized, and let go. */
int inject_check(pid_t pid, struct error *err);

#endif
