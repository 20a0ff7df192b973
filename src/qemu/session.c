/* SPDX-License-Identifier: Apache-2.0 */
#include "qemu/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>

#include "util/cleanup.h"
#include "util/log.h"
#include "util/pidfd.h"

#define DAEMON_RETRY_MS 100
/* Its sockets are closed a little before it has ended. */
#define END_MS 2000

static int catch_signals(int *ret_fd, struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	*ret_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return *ret_fd < 0 ? error_errno(err, -errno, "can't create a signalfd") : 0;
}

static int read_pidfile(const char *path, pid_t *ret, struct error *err)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	int pid;

	if (!f)
		return error_errno(err, -errno, "can't open pidfile %s", path);
	if (fscanf(f, "%d", &pid) != 1 || pid < 1)
		return error_set(err, -EINVAL, "pidfile %s does not begin with a number", path);
	*ret = pid;
	return 0;
}

static int find_process(struct session *s, struct error *err)
{
	const struct options *o = s->options;
	int rc = 0;

	s->pid = o->pid ? o->pid : qmp_peer(s->qmp);
	if (o->pidfile)
		rc = read_pidfile(o->pidfile, &s->pid, err);
	if (!rc && s->pid <= 0)
		rc = error_set(err, -ESRCH,
		               "the kernel does not say who listens at %s: give --pid or --pidfile",
		               o->qmp);
	if (rc)
		return rc;
	s->pidfd = pidfd_of(s->pid);
	return s->pidfd < 0 ? error_errno(err, s->pidfd, "QEMU's process %d", (int)s->pid) : 0;
}

int session_open(struct session *s, const struct options *o, struct error *err)
{
	int rc;

	*s = (struct session){ .options = o, .pidfd = -1, .signal_fd = -1 };
	rc = catch_signals(&s->signal_fd, err);
	if (!rc)
		rc = qmp_open(o->qmp, &s->qmp, err);
	if (!rc)
		rc = qemu_settings(s->qmp, &s->settings, err);
	return rc ? rc : find_process(s, err);
}

void session_close(struct session *s)
{
	s->postcopy = postcopy_detach(s->postcopy);
	s->qmp = qmp_close(s->qmp);
	close_fd(&s->pidfd);
	close_fd(&s->signal_fd);
}

static int qemu_ended(const struct session *s, struct error *err)
{
	const struct qmp_news *news = qmp_news(s->qmp);

	return error_set(err, -ESRCH, "QEMU (pid %d) has ended%s%s", (int)s->pid,
	                 news->shut_down ? ": " : "", news->reason);
}

bool session_has_ended(const struct session *s, bool soon)
{
	struct pollfd pfd = { .fd = s->pidfd, .events = POLLIN };

	return poll(&pfd, 1, soon ? END_MS : 0) > 0;
}

int session_wait(struct session *s, int timeout_ms, struct wake *ret, struct error *err)
{
	struct pollfd fds[] = {
		{ .fd = s->signal_fd, .events = POLLIN },
		{ .fd = s->pidfd, .events = POLLIN },
		{ .fd = qmp_fd(s->qmp), .events = POLLIN },
		{ .fd = s->postcopy ? postcopy_fd(s->postcopy) : -1, .events = POLLIN },
	};
	int rc = 0, n;

	do
		n = poll(fds, sizeof fds / sizeof *fds, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_errno(err, -errno, "poll");
	*ret = (struct wake){ .daemon = fds[3].revents };
	/* Before it is told that QEMU has ended: why is among its last words. */
	if (fds[2].revents)
		rc = qmp_wait(s->qmp, 0, err);
	if (session_has_ended(s, rc == -ECONNRESET))
		return qemu_ended(s, err);
	if (!rc && fds[0].revents)
		rc = error_set(err, -EINTR, "told to end");
	return rc;
}

int session_attach_again(struct session *s, enum postcopy_standing *ret, struct error *err)
{
	const struct options *o = s->options;
	struct wake wake;
	bool said = false;
	int rc;

	s->postcopy = postcopy_detach(s->postcopy);
	for (;;) {
		rc = daemon_attach_again(o->command == COMMAND_SOURCE, o->socket, o->id, s->pidfd,
		                         &s->postcopy, ret, err);
		if (!rc || !daemon_is_passing(rc, o->socket))
			return rc;
		if (!said)
			log_migration_info(o->id, "waiting for postcopyd: %s", err->text);
		said = true;
		rc = session_wait(s, DAEMON_RETRY_MS, &wake, err);
		if (rc)
			return rc;
	}
}

int session_await_prepared(struct session *s, struct error *err)
{
	struct wake wake;

	if (!daemon_may_be_prepared(&s->prepared, s->options->id, err))
		return -ENOENT;
	*err = ERROR_INIT;
	s->postcopy = postcopy_detach(s->postcopy);
	return session_wait(s, DAEMON_RETRY_MS, &wake, err);
}
