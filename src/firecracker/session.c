/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/session.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/peer.h"
#include "util/pidfd.h"

/* Between two looks whether the daemon, or Firecracker, is there. */
#define LOOK_MS 100

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return -errno;
	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	return connect(sock, (struct sockaddr *)&addr, sizeof addr) ? -errno : steal_fd(&sock);
}

/* Within Firecracker's root, as it would find it. */
static int open_in_root(int root, const char *path)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
		                .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };

	return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/*
 * The last name of a path: one that leads to --dir, or --dir itself, which is Firecracker's own.
 * Firecracker may write the directory that it is in: so it is given what was made, and not what has
 * its name by then.
 */
static int make_last(const struct session *s, int root, const char *path, bool leads)
{
	const char *last = strrchr(path, '/') + 1;
	_cleanup_close_ int parent = -1, made = -1;
	char above[PATH_MAX];

	snprintf(above, sizeof above, "%.*s", (int)(last - path), path);
	parent = open_in_root(root, above);
	if (parent < 0)
		return -errno;
	if (mkdirat(parent, last, 0700))
		return errno == EEXIST ? 0 : -errno;
	made = openat(parent, last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (made < 0)
		return -errno;
	if (leads)
		return fchmod(made, 0755) ? -errno : 0;
	return fchown(made, s->cred.uid, s->cred.gid) ? -errno : 0;
}

static int make_dir(const struct session *s, int root)
{
	char path[PATH_MAX];
	size_t len = strlen(s->options->dir);
	int rc = len < sizeof path ? 0 : -ENAMETOOLONG;

	for (size_t i = 1; !rc && i <= len; i++) {
		int fd = -1;

		if (i < len && s->options->dir[i] != '/')
			continue;
		snprintf(path, sizeof path, "%.*s", (int)i, s->options->dir);
		fd = open_in_root(root, path);
		rc = fd >= 0 ? 0 : errno == ENOENT ? make_last(s, root, path, i < len) : -errno;
		close_fd(&fd);
	}
	return rc;
}

/* As Firecracker sees it: it may be jailed, and its links are followed within its root. */
static int open_dir(struct session *s, struct error *err)
{
	_cleanup_close_ int root = -1;
	char path[64];
	int rc;

	snprintf(path, sizeof path, "/proc/%d/root", (int)s->cred.pid);
	root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return error_errno(err, -errno, "%s", path);
	rc = make_dir(s, root);
	if (!rc)
		s->dir_fd = open_in_root(root, s->options->dir);
	if (!rc && s->dir_fd < 0)
		rc = -errno;
	return rc ? error_errno(err, rc, "%s in Firecracker's root (--dir)", s->options->dir) : 0;
}

int session_open(struct session *s, const struct options *o, struct error *err)
{
	_cleanup_close_ int sock = -1;
	int rc;

	*s = (struct session){ .options = o, .pidfd = -1, .dir_fd = -1 };
	sock = connect_to(o->api);
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

int session_await_prepared(struct session *s, struct error *err)
{
	struct pollfd fd = { .fd = s->pidfd, .events = POLLIN };

	if (!daemon_may_be_prepared(&s->prepared, s->options->id, err))
		return err->code;
	return poll(&fd, 1, LOOK_MS) > 0 ? session_check_alive(s, err) : -EAGAIN;
}

int session_attach_again(struct session *s, enum postcopy_standing *ret_standing, struct error *err)
{
	const struct options *o = s->options;

	for (bool told = false;; told = true) {
		struct pollfd fd = { .fd = s->pidfd, .events = POLLIN };
		int rc = daemon_attach_again(o->command == COMMAND_SOURCE, o->socket, o->id,
		                             s->pidfd, &s->postcopy, ret_standing, err);

		if (!rc || !daemon_is_passing(rc, o->socket))
			return rc;
		if (!told)
			log_migration_warning(o->id, "waiting for postcopyd: %s", err->text);
		if (poll(&fd, 1, LOOK_MS) > 0)
			return session_check_alive(s, err);
		*err = ERROR_INIT;
	}
}

void session_kill(const struct session *s)
{
	if (s->pidfd >= 0)
		(void)pidfd_kill(s->pidfd);
}

int session_await_firecracker(struct session *s, const struct options *o, int timeout_ms,
                              struct error *err)
{
	uint64_t until_ns = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	int rc;

	while ((rc = session_open(s, o, err)) && (rc == -ENOENT || rc == -ECONNREFUSED) &&
	       clock_now_ns() < until_ns) {
		session_close(s);
		*err = ERROR_INIT;
		usleep(LOOK_MS * 1000);
	}
	return rc;
}

int session_event(struct session *s, int timeout_ms, struct postcopy_event *ret, struct error *err)
{
	struct postcopy_error why = { 0 };

	return daemon_error(postcopy_next_event(s->postcopy, timeout_ms, ret, &why), &why, err);
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
