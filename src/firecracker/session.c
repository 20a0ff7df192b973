/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/session.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/log.h"
#include "util/peer.h"

/* Between two looks whether the daemon is there. */
#define LOOK_MS 100

static int connect_to(const char *path, int type)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	return connect(sock, (struct sockaddr *)&addr, sizeof addr) ? -errno : steal_fd(&sock);
}

/* As Firecracker sees it: it may be jailed, and its links are followed within its root. */
static int open_dir(struct session *s, struct error *err)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		                .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	_cleanup_close_ int root = -1;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/root", (int)s->cred.pid);
	root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return error_errno(err, -errno, "%s", path);
	s->dir_fd = (int)syscall(SYS_openat2, root, s->options->dir, &how, sizeof how);
	return s->dir_fd < 0 ? error_errno(err, -errno, "%s%s (--dir)", path, s->options->dir) : 0;
}

int session_open(struct session *s, const struct options *o, struct error *err)
{
	_cleanup_close_ int sock = -1;
	int rc;

	*s = (struct session){ .options = o, .pidfd = -1, .dir_fd = -1 };
	if (!o->api)
		return 0;
	sock = connect_to(o->api, SOCK_STREAM);
	if (sock < 0)
		return error_errno(err, sock, "Firecracker's API socket, %s", o->api);
	rc = peer_credentials(sock, &s->cred);
	if (!rc) {
		s->pidfd = peer_pidfd(sock, &s->cred);
		rc = s->pidfd < 0 ? s->pidfd : 0;
	}
	return rc ? error_errno(err, rc, "the process behind %s", o->api) : open_dir(s, err);
}

void session_close(struct session *s)
{
	s->postcopy = postcopy_detach(s->postcopy);
	close_fd(&s->dir_fd);
	close_fd(&s->pidfd);
}

void session_their_path(const struct session *s, const char *name, char ret[PATH_MAX])
{
	snprintf(ret, PATH_MAX, "%s/%s.%s", s->options->dir, s->options->id, name);
}

void session_path(const struct session *s, const char *name, char ret[PATH_MAX])
{
	snprintf(ret, PATH_MAX, "/proc/self/fd/%d/%s.%s", s->dir_fd, s->options->id, name);
}

int session_create(const struct session *s, const char *name, struct error *err)
{
	_cleanup_close_ int fd = -1;
	char path[PATH_MAX];

	session_path(s, name, path);
	(void)unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || fchown(fd, s->cred.uid, s->cred.gid))
		return error_errno(err, -errno, "%s.%s in %s (--dir)", s->options->id, name,
		                   s->options->dir);
	return steal_fd(&fd);
}

void session_remove(const struct session *s, const char *name)
{
	char path[PATH_MAX];

	session_path(s, name, path);
	(void)unlink(path);
}

int session_check_alive(const struct session *s, struct error *err)
{
	return peer_has_ended(s->pidfd)
	               ? error_set(err, -ESRCH, "Firecracker (pid %d) has ended", (int)s->cred.pid)
	               : 0;
}

int session_await_daemon(const struct session *s, struct error *err)
{
	const char *path = s->options->socket ? s->options->socket : POSTCOPY_DEFAULT_SOCKET;
	bool told = false;

	for (;;) {
		struct pollfd fd = { .fd = s->pidfd, .events = POLLIN };
		int sock = connect_to(path, SOCK_SEQPACKET);

		if (sock >= 0) {
			close(sock);
			return 0;
		}
		if (!told)
			log_migration_warning(s->options->id, "%s: %s; waiting for postcopyd", path,
			                      strerror(-sock));
		told = true;
		if (poll(&fd, 1, LOOK_MS) > 0)
			return session_check_alive(s, err);
	}
}

void session_kill(const struct session *s)
{
	if (s->pidfd >= 0)
		(void)syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
}

int session_error(int rc, const struct postcopy_error *from, struct error *err)
{
	return rc ? error_set(err, rc, "%s", from->text) : 0;
}

int session_event(struct session *s, int timeout_ms, struct postcopy_event *ret, struct error *err)
{
	struct postcopy_error why = { 0 };

	return session_error(postcopy_next_event(s->postcopy, timeout_ms, ret, &why), &why, err);
}

int session_open_file(const struct session *s, const char *name, struct error *err)
{
	_cleanup_close_ int fd = -1;
	char path[PATH_MAX];
	struct stat st;

	session_path(s, name, path);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return error_errno(err, -errno, "%s", path);
	if (!S_ISREG(st.st_mode) || st.st_nlink > 1)
		return error_set(err, -EINVAL, "%s is no file of its own", path);
	return steal_fd(&fd);
}
