/* SPDX-License-Identifier: Apache-2.0 */
/* Has a process make a system call that changes nothing, so many times: interrupt PID TIMES */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "qemu/inject.h"

int main(int argc, char **argv)
{
	const uint64_t args[6] = { 0 };
	struct error err = ERROR_INIT;
	pid_t pid = argc == 3 ? atoi(argv[1]) : 0;
	int times = argc == 3 ? atoi(argv[2]) : 0;

	for (int i = 0; i < times; i++) {
		long got = 0;

		if (inject_syscall(pid, SYS_getpid, args, &got, &err) || got != pid) {
			fprintf(stderr, "interruption %d: %s, getpid() says %ld\n", i, err.text,
			        got);
			return 1;
		}
		/* It gets on meanwhile, and is met wherever it is. */
		usleep((useconds_t)(random() % 300));
	}
	return !times;
}
