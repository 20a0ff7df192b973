/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/hook.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/pidfd.h"

static bool is_named(const char *const *list, const char *entry)
{
	size_t len = strcspn(entry, "=") + 1;

	for (; *list; list++)
		if (!strncmp(*list, entry, len))
			return true;
	return false;
}

/* What it is given, and of ours what has another name; free() it. */
static char **join_environment(const char *const *given)
{
	size_t n = 0, n_ours = 0, n_given = 0;
	char **all;

	while (environ[n_ours])
		n_ours++;
	while (given[n_given])
		n_given++;
	all = calloc(n_ours + n_given + 1, sizeof *all);
	if (!all)
		return NULL;
	for (; n < n_given; n++)
		all[n] = (char *)given[n];
	for (size_t i = 0; i < n_ours; i++)
		if (!is_named(given, environ[i]))
			all[n++] = environ[i];
	return all;
}

/* In a group of its own, to be ended whole, and with the signals that we have blocked. */
static int spawn(const char *command, char **environment, pid_t *ret)
{
	char *argv[] = { (char *)"sh", (char *)"-c", (char *)command, NULL };
	posix_spawnattr_t attr;
	sigset_t none;
	int rc;

	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setpgroup(&attr, 0);
	rc = posix_spawn(ret, "/bin/sh", NULL, &attr, argv, environment);
	posix_spawnattr_destroy(&attr);
	return -rc;
}

/* Return: 0: it has ended; -ETIMEDOUT; -ECANCELED. */
static int wait_end(int pidfd, int timeout_ms, int cancel_fd)
{
	struct pollfd fds[] = { { .fd = pidfd, .events = POLLIN },
		                { .fd = cancel_fd, .events = POLLIN } };
	uint64_t until_ns = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC, now_ns;

	while ((now_ns = clock_now_ns()) < until_ns) {
		(void)!poll(fds, 2, (int)((until_ns - now_ns) / NSEC_PER_MSEC) + 1);
		if (fds[0].revents)
			return 0;
		if (fds[1].revents)
			return -ECANCELED;
	}
	return -ETIMEDOUT;
}

int hook_run(const char *command, const char *const *environment, int timeout_ms, int cancel_fd,
             struct error *err)
{
	_cleanup_free_ char **all = join_environment(environment);
	_cleanup_close_ int pidfd = -1;
	pid_t pid;
	int rc = all ? spawn(command, all, &pid) : -ENOMEM, status = 0;

	if (rc)
		return error_errno(err, rc, "\"%.200s\"", command);
	pidfd = pidfd_of(pid);
	rc = pidfd < 0 ? pidfd : wait_end(pidfd, timeout_ms, cancel_fd);
	if (rc)
		kill(-pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (rc == -ETIMEDOUT)
		return error_set(err, rc, "\"%.200s\" has not ended for %d s, and was killed",
		                 command, timeout_ms / 1000);
	if (rc)
		return error_errno(err, rc, "\"%.200s\"", command);
	if (WIFSIGNALED(status))
		return error_set(err, -EIO, "\"%.200s\" was killed by signal %d", command,
		                 WTERMSIG(status));
	if (WEXITSTATUS(status))
		return error_set(err, -EIO, "\"%.200s\" ended with status %d", command,
		                 WEXITSTATUS(status));
	return 0;
}
