/* SPDX-License-Identifier: Apache-2.0 */
#include "firecracker/destination.h"

#include <errno.h>
#include <fcntl.h>
#include <json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "firecracker/api.h"
#include "firecracker/handshake.h"
#include "firecracker/take_back.h"
#include "util/cleanup.h"
#include "util/log.h"

#define SOON_MS 10000
/* Whether it loads: then it does not answer. */
#define QUICK_MS 1000
#define LOOK_MS 20

struct load {
	struct session *session;
	enum postcopy_standing standing;
	bool again; /* a process before this one may have begun */
	int listen_fd, sock;
	struct api_call *call;
	bool handed; /* its memory */
};

static int copy(int from, uint64_t len, int to, struct error *err)
{
	uint64_t at = 0;

	while (at < len) {
		char buf[65536];
		ssize_t n = pread(from, buf, sizeof buf, (off_t)at);

		if (n <= 0 || write(to, buf, (size_t)n) != n)
			return error_errno(err, n < 0 ? -errno : -EIO, "writing the vmstate");
		at += (uint64_t)n;
	}
	return 0;
}

static int write_vmstate(struct session *s, const struct postcopy_event *event, struct error *err)
{
	_cleanup_close_ int fd = session_create(s, "vmstate", err);

	return fd < 0 ? fd : copy(event->vmstate_fd, event->vmstate_len, fd, err);
}

/*
 * Firecracker's own, and nobody else's. It may write the directory, and put something else in the
 * socket's place at any moment: its mode is set before it has a name, and links are not followed.
 */
static int bind_for(const struct session *s, int sock, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof addr.sun_path)
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	(void)unlink(path);
	if (fchmod(sock, 0600) || bind(sock, (struct sockaddr *)&addr, sizeof addr) ||
	    lchown(path, s->cred.uid, s->cred.gid) || listen(sock, 1))
		return -errno;
	return 0;
}

static int listen_for(struct load *l, struct error *err)
{
	char path[PATH_MAX];
	int rc;

	session_path(l->session, "uffd", path);
	l->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	rc = l->listen_fd < 0 ? -errno : bind_for(l->session, l->listen_fd, path);
	return rc ? error_errno(err, rc, "%s (--dir)", path) : 0;
}

static int begin(struct load *l, struct error *err)
{
	json_object *o = json_object_new_object(), *backend = json_object_new_object();
	char vmstate[PATH_MAX], uffd[PATH_MAX];
	int rc;

	session_their_path(l->session, "vmstate", vmstate);
	session_their_path(l->session, "uffd", uffd);
	json_object_object_add(backend, "backend_type", json_object_new_string("Uffd"));
	json_object_object_add(backend, "backend_path", json_object_new_string(uffd));
	json_object_object_add(o, "snapshot_path", json_object_new_string(vmstate));
	json_object_object_add(o, "mem_backend", backend);
	json_object_object_add(o, "resume_vm", json_object_new_boolean(false));
	rc = api_begin(l->session->options->api, "PUT", "/snapshot/load",
	               json_object_to_json_string(o), &l->call, err);
	json_object_put(o);
	return rc;
}

static int hand_over(struct load *l, const struct handshake *h, int uffd, struct error *err)
{
	struct postcopy_error why = { 0 };
	int rc = postcopy_destination_memory(l->session->postcopy, uffd, h->regions, h->n_regions,
	                                     &why);

	l->handed = !rc;
	return daemon_error(rc, &why, err);
}

/* Written before it is used: then who comes after this process knows it. */
static int keep_handshake(struct session *s, const char *text, size_t len, struct error *err)
{
	_cleanup_close_ int fd = session_create(s, "handshake", err);

	if (fd < 0)
		return fd;
	return write(fd, text, len) == (ssize_t)len
	               ? 0
	               : error_errno(err, -errno, "writing the handshake");
}

static int take_handshake(struct load *l, struct error *err)
{
	_cleanup_free_ char *text = malloc(HANDSHAKE_BYTES_MAX);
	_cleanup_close_ int uffd = -1;
	struct handshake h;
	struct ucred cred;
	size_t len;
	socklen_t cred_len = sizeof cred;
	int rc;

	if (!text)
		return error_set(err, -ENOMEM, "out of memory");
	l->sock = accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (l->sock < 0 || getsockopt(l->sock, SOL_SOCKET, SO_PEERCRED, &cred, &cred_len))
		return error_errno(err, -errno, "Firecracker's connection");
	if (cred.pid != l->session->cred.pid)
		return error_set(err, -EPERM, "process %d has connected, and not Firecracker",
		                 (int)cred.pid);
	rc = handshake_receive(l->sock, text, &len, &h, &uffd, err);
	if (!rc)
		rc = keep_handshake(l->session, text, len, err);
	return rc ? rc : hand_over(l, &h, uffd, err);
}

/* The migration may end meanwhile. Return: 0; -ECANCELED with @err set. */
static int look_at_daemon(struct session *s, struct error *err)
{
	struct postcopy_event event;
	int rc = session_event(s, 0, &event, err);

	if (!rc && event.type == POSTCOPY_EVENT_FAILED)
		rc = error_set(err, -ECANCELED, "%.200s", event.reason);
	return rc;
}

/* Until Firecracker has answered. It waits for pages that come when its memory was handed over. */
static int await_load(struct load *l, struct error *err)
{
	struct session *s = l->session;
	bool done = false;
	int rc = 0;

	while (!rc && !done) {
		struct pollfd fds[] = {
			{ .fd = s->pidfd, .events = POLLIN },
			{ .fd = postcopy_fd(s->postcopy), .events = POLLIN },
			{ .fd = l->listen_fd, .events = POLLIN },
		};

		rc = api_wait(l->call, fds, l->sock < 0 ? 3 : 2, SOON_MS, &done, err);
		if (!rc && done)
			break;
		if (!rc && l->sock < 0 && fds[2].revents)
			rc = take_handshake(l, err);
		else if (!rc && fds[0].revents)
			rc = error_set(err, -ESRCH, "Firecracker has ended while it loaded");
		else if (!rc && fds[1].revents)
			rc = look_at_daemon(s, err);
	}
	if (!rc)
		rc = api_result(l->call, err);
	if (!rc && !l->handed)
		rc = error_set(err, -EPROTO, "Firecracker has loaded without telling its memory");
	return rc;
}

/* The answer went to a process that is no more. */
static int await_paused(struct session *s, struct error *err)
{
	for (;;) {
		enum api_state state;
		int rc = api_get_state(s->options->api, QUICK_MS, &state, err);

		if (!rc && state == API_PAUSED)
			return 0;
		if (!rc && state == API_RUNNING)
			return error_set(err, -EPROTO, "Firecracker runs a guest already");
		rc = session_check_alive(s, err);
		if (!rc)
			rc = look_at_daemon(s, err);
		if (rc)
			return rc;
		usleep(LOOK_MS * 1000);
	}
}

static int load_anew(struct load *l, const struct postcopy_event *event, struct error *err)
{
	int rc = write_vmstate(l->session, event, err);

	if (!rc)
		rc = listen_for(l, err);
	if (!rc)
		rc = begin(l, err);
	return rc ? rc : await_load(l, err);
}

/* A process before this one has told Firecracker to load, or not. */
static int load_again(struct load *l, const struct postcopy_event *event, struct error *err)
{
	_cleanup_close_ int uffd = -1;
	struct session *s = l->session;
	enum api_state state;
	struct handshake h;
	int rc;

	if (l->standing != POSTCOPY_STANDS_LOADING) {
		/* It answers: it has not begun. */
		if (!api_get_state(s->options->api, QUICK_MS, &state, err) &&
		    state == API_NOT_STARTED)
			return load_anew(l, event, err);
		*err = ERROR_INIT;
		rc = take_back(s, &h, &uffd, err);
		if (!rc)
			rc = hand_over(l, &h, uffd, err);
		if (rc)
			return rc;
	}
	return await_paused(s, err);
}

/* Said before any vCPU may run. Whoever comes again asks Firecracker whether they do. */
static int run_guest(struct session *s, struct error *err)
{
	struct postcopy_error why = { 0 };
	enum api_state state;
	int rc = api_get_state(s->options->api, SOON_MS, &state, err);

	if (!rc && state == API_PAUSED)
		rc = api_set_state(s->options->api, "Resumed", err);
	return rc ? rc : daemon_error(postcopy_destination_resumed(s->postcopy, &why), &why, err);
}

/* The guest is the source's, and this microVM is nobody's. Return: @rc. */
static int give_up(struct session *s, int rc, const struct error *why)
{
	struct postcopy_error told = { 0 };

	if (rc != -EPIPE) {
		session_kill(s);
		(void)postcopy_destination_load_failed(s->postcopy, why->text, &told);
	}
	return rc;
}

static int load(struct load *l, const struct postcopy_event *event, struct error *err)
{
	struct session *s = l->session;
	struct postcopy_error why = { 0 };
	int rc = l->again ? load_again(l, event, err) : load_anew(l, event, err);

	if (rc)
		return give_up(s, rc, err);
	rc = daemon_error(postcopy_destination_loaded(s->postcopy, &why), &why, err);
	return rc ? rc : run_guest(s, err);
}

/* Return: 0 to go on; 1: all is here; or -errno. */
static int handle(struct load *l, const struct postcopy_event *event, struct error *err)
{
	struct session *s = l->session;
	int fd = event->vmstate_fd, rc;

	switch (event->type) {
	case POSTCOPY_EVENT_VMSTATE:
		rc = load(l, event, err);
		close_fd(&fd);
		return rc;
	case POSTCOPY_EVENT_COMPLETE:
		return 1;
	case POSTCOPY_EVENT_FAILED:
		return error_set(err, -ECANCELED, "the migration failed: %.200s", event->reason);
	case POSTCOPY_EVENT_NONE:
		return session_check_alive(s, err);
	default: /* nothing that this has offered to do */
		return 0;
	}
}

int destination_check(const struct session *s, struct error *err)
{
	enum api_state state;
	int rc = api_get_state(s->options->api, SOON_MS, &state, err);

	if (!rc && state != API_NOT_STARTED)
		rc = error_set(err, -EBUSY, "this Firecracker has a guest already: start another");
	return rc;
}

static int attach_anew(struct session *s, struct error *err)
{
	struct postcopy_error why = { 0 };
	int rc = destination_check(s, err);

	if (rc)
		return rc;
	rc = postcopy_destination_attach_late(s->options->socket, s->options->id, s->pidfd,
	                                      &s->postcopy, &why);
	s->is_unprepared = rc == -ENOENT;
	return daemon_error(rc, &why, err);
}

static int attach(struct load *l, struct error *err)
{
	struct session *s = l->session;
	int rc = session_attach_again(s, &l->standing, err);

	l->again = rc != -ENOENT;
	if (l->again)
		return rc;
	*err = ERROR_INIT;
	return attach_anew(s, err);
}

/* As at the source: what was attached before has ended. */
static int attach_next(struct load *l, struct error *err)
{
	struct error none = ERROR_INIT;

	l->session->postcopy = postcopy_detach(l->session->postcopy);
	l->again = false;
	if (attach_anew(l->session, &none))
		return err->code;
	*err = ERROR_INIT;
	return 0;
}

static int follow(struct load *l, struct error *err)
{
	int rc = attach(l, err);
	bool first = true;

	if (!rc)
		log_migration_info(l->session->options->id, "attached for Firecracker, pid %d",
		                   (int)l->session->cred.pid);
	if (!rc && l->again && l->standing == POSTCOPY_STANDS_LOADED)
		rc = run_guest(l->session, err);
	while (!rc) {
		struct postcopy_event event;

		rc = session_event(l->session, SOON_MS, &event, err);
		if (!rc)
			rc = handle(l, &event, err);
		if (rc == -ECANCELED && l->again && first)
			rc = attach_next(l, err);
		first = false;
	}
	return rc;
}

static void end_load(struct load *l)
{
	l->call = api_end(l->call);
	close_fd(&l->listen_fd);
}

int destination_run(struct session *s, struct error *err)
{
	struct load l = { .session = s, .listen_fd = -1, .sock = -1 };
	int rc;

	do {
		s->postcopy = postcopy_detach(s->postcopy);
		*err = ERROR_INIT;
		s->is_unprepared = false;
		rc = follow(&l, err);
		end_load(&l);
		if (rc == -ENOENT && s->is_unprepared)
			rc = session_await_prepared(s, err);
	} while (rc == -EPIPE || rc == -EAGAIN);
	close_fd(&l.sock);
	session_remove(s, "vmstate");
	session_remove(s, "uffd");
	session_remove(s, "handshake");
	return rc < 0 ? rc : 0;
}
