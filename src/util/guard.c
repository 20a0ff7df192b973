/* SPDX-License-Identifier: Apache-2.0 */
#include "util/guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

static _Thread_local sigjmp_buf guard_env;
static _Thread_local volatile sig_atomic_t guard_armed;

static void on_sigbus(int sig)
{
	sigset_t set;

	if (guard_armed) {
		/* For runtimes that deliver signals with all others blocked (TSan's). */
		sigemptyset(&set);
		sigaddset(&set, SIGBUS);
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		siglongjmp(guard_env, 1);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

int guard_init(void)
{
	/* NODEFER: siglongjmp() leaves the handler without restoring a mask. */
	struct sigaction sa = { .sa_handler = on_sigbus, .sa_flags = SA_NODEFER };

	return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
}

int guard_copy(void *to, const void *from, size_t len)
{
	if (sigsetjmp(guard_env, 0)) {
		guard_armed = 0;
		return -EFAULT;
	}
	guard_armed = 1;
	atomic_signal_fence(memory_order_seq_cst);
	memcpy(to, from, len);
	atomic_signal_fence(memory_order_seq_cst);
	guard_armed = 0;
	return 0;
}
