/* SPDX-License-Identifier: Apache-2.0 */
/* Listening, and who may connect over the unix socket. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "grpc/server_internal.h"
#include "util/cleanup.h"
#include "util/peer.h"
#include "util/unix_listen.h"

/* Connections that are accepted in one turn of the loop. */
#define ACCEPTS_PER_TURN 16u
/* How long to wait where descriptors or memory have run out. */
#define RETRY_MS 100u
/* Anybody may try: credentials decide. */
#define SOCKET_MODE 0666

/* HTTP/2 as the server begins it, for one who is turned away: SETTINGS, and GOAWAY with a text. */
static void say_goodbye(int fd, uint32_t error, const char *text)
{
	uint8_t frames[256] = { 0, 0, 0, NGHTTP2_SETTINGS, 0, 0, 0, 0, 0 };
	uint8_t *goaway = frames + 9;
	size_t len = strnlen(text, sizeof frames - 9 - 9 - 8);

	goaway[2] = (uint8_t)(8 + len);
	goaway[3] = NGHTTP2_GOAWAY;
	goaway[9 + 7] = (uint8_t)error;
	memcpy(goaway + 9 + 8, text, len);
	(void)!send(fd, frames, 9 + 9 + 8 + len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* For the log: what a process calls itself, where that may be known (ProtectProc= of the unit). */
static void read_comm(struct grpc_peer *peer)
{
	char path[32];
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%d/comm", peer->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, peer->comm, sizeof peer->comm - 1);
	peer->comm[n > 0 ? n : 0] = 0;
	peer->comm[strcspn(peer->comm, "\n")] = 0;
}

static enum grpc_role role_of(int fd, const struct ucred *cred, const struct grpc_groups *g)
{
	if (peer_is_allowed(fd, cred, g->operators, g->n_operators))
		return GRPC_OPERATOR;
	return peer_is_allowed(fd, cred, g->readers, g->n_readers) ? GRPC_READER : GRPC_NOBODY;
}

enum grpc_role listener_role_of(const struct grpc_listener *l, const struct grpc_connection *c)
{
	const struct ucred cred = { .uid = c->peer.uid, .gid = c->peer.gid, .pid = c->peer.pid };
	int fd;

	return uv_fileno(&c->handle, &fd) ? GRPC_NOBODY : role_of(fd, &cred, &l->groups);
}

static void accept_local(struct grpc_listener *l, int accepted)
{
	_cleanup_close_ int fd = accepted;
	struct ucred cred;
	struct grpc_peer peer = { .local = true };
	char name[32];
	int rc = peer_credentials(fd, &cred);

	if (rc) {
		peer.name = "";
		server_refused(l->server, &peer, REFUSED_RESOURCES, "it has no credentials: %s",
		               strerror(-rc));
		return;
	}
	snprintf(name, sizeof name, "uid %u", cred.uid);
	peer.uid = cred.uid;
	peer.gid = cred.gid;
	peer.pid = cred.pid;
	peer.name = name;
	peer.role = role_of(fd, &cred, &l->groups);
	read_comm(&peer);
	if (peer.role == GRPC_NOBODY) {
		server_refused(l->server, &peer, REFUSED_GROUP,
		               "it is in none of the groups (control-group, control-read-group)");
		say_goodbye(fd, NGHTTP2_INADEQUATE_SECURITY,
		            "this user may not connect: it is in none of the allowed groups");
		return;
	}
	if (l->server->n_connections >= GRPC_CONNECTIONS_MAX + (cred.uid ? 0 : GRPC_ROOT_SPARE)) {
		server_refused(l->server, &peer, REFUSED_LIMIT, "more than %u connections",
		               GRPC_CONNECTIONS_MAX);
		say_goodbye(fd, NGHTTP2_ENHANCE_YOUR_CALM, "too many connections");
		return;
	}
	connection_new(l->server, steal_fd(&fd), NULL, &peer);
}

static void read_address(int fd, struct grpc_peer *peer)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	char host[48], port[8];

	if (!getpeername(fd, (struct sockaddr *)&addr, &len) &&
	    !getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
	                 NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(peer->address, sizeof peer->address, "%s port %s", host, port);
}

static void accept_tcp(struct grpc_listener *l, int fd)
{
	struct grpc_peer peer = { .address = "(gone)", .name = "" };

	read_address(fd, &peer);
	if (l->server->n_tcp >= GRPC_CONNECTIONS_TCP_MAX) {
		server_refused(l->server, &peer, REFUSED_LIMIT, "more than %u TCP connections",
		               GRPC_CONNECTIONS_TCP_MAX);
		close(fd);
		return;
	}
	connection_new(l->server, fd, l->tls, &peer);
}

static void on_incoming(uv_poll_t *poll, int status, int events);

static void on_retry(uv_timer_t *timer)
{
	struct grpc_listener *l = timer->data;

	if (!l->server->draining)
		uv_poll_start(&l->poll, UV_READABLE, on_incoming);
}

static void on_incoming(uv_poll_t *poll, int status, int events)
{
	static const struct grpc_peer somebody = { .address = "somebody", .name = "" };
	struct grpc_listener *l = poll->data;

	(void)status;
	(void)events;
	for (unsigned int i = 0; i < ACCEPTS_PER_TURN; i++) {
		int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			if (l->tls)
				accept_tcp(l, fd);
			else
				accept_local(l, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
		           errno == ENOBUFS) {
			/* It stays in the backlog: don't spin on it. */
			server_refused(l->server, &somebody, REFUSED_RESOURCES, "accept: %s",
			               strerror(errno));
			uv_poll_stop(poll);
			uv_timer_start(&l->retry, on_retry, RETRY_MS, 0);
			return;
		} else if (errno == EAGAIN) {
			return;
		}
	}
}

void listener_init(struct grpc_listener *l, struct grpc_server *s)
{
	*l = (struct grpc_listener){ .server = s, .fd = -1 };
}

static int listener_start(struct grpc_listener *l, int fd, struct error *err)
{
	int rc = uv_poll_init(l->server->loop, &l->poll, fd);

	if (rc)
		return error_errno(err, rc, "grpc server: listening socket");
	uv_timer_init(l->server->loop, &l->retry);
	l->poll.data = l->retry.data = l;
	server_handle_opened(l->server);
	server_handle_opened(l->server);
	l->fd = fd;
	uv_poll_start(&l->poll, UV_READABLE, on_incoming);
	return 0;
}

int grpc_server_set_groups(struct grpc_server *s, const struct grpc_groups *groups)
{
	size_t n = groups->n_operators, n_readers = groups->n_readers;
	gid_t *gids = calloc(n + n_readers + 1, sizeof *gids);

	if (!gids)
		return -ENOMEM;
	if (n)
		memcpy(gids, groups->operators, n * sizeof *gids);
	if (n_readers)
		memcpy(gids + n, groups->readers, n_readers * sizeof *gids);
	free(s->local.gids);
	s->local.gids = gids;
	s->local.groups = (struct grpc_groups){ gids, n, gids + n, n_readers };
	return 0;
}

int grpc_server_listen_unix(struct grpc_server *s, const struct grpc_listen_unix *listen,
                            struct error *err)
{
	_cleanup_close_ int made = -1;
	int fd = listen->fd, rc;

	if (grpc_server_set_groups(s, &listen->groups))
		return error_set(err, -ENOMEM, "control socket: out of memory");
	if (fd < 0) {
		fd = made = unix_listen(listen->path, SOCK_STREAM, "control socket", err);
		if (fd < 0)
			return fd;
		if (chmod(listen->path, SOCKET_MODE))
			return error_errno(err, -errno, "control socket \"%s\"", listen->path);
	}
	rc = listener_start(&s->local, fd, err);
	if (rc)
		return rc;
	steal_fd(&made);
	return 0;
}

int grpc_server_listen_tls(struct grpc_server *s, const struct grpc_listen_tls *listen,
                           struct error *err)
{
	struct tcp_listening sockets = { .n = 0 };
	int rc = 0;

	if (listen->given)
		sockets = *listen->given;
	else
		rc = tcp_listen_at(listen->address, "control address", &sockets, err);
	for (unsigned int i = 0; i < sockets.n; i++) {
		if (!rc)
			rc = listener_start(&s->tcp[i], sockets.fds[i], err);
		s->tcp[i].tls = listen->tls;
		if (rc)
			close_fd(&sockets.fds[i]);
	}
	return rc;
}

void listener_stop(struct grpc_listener *l)
{
	if (l->fd < 0)
		return;
	uv_poll_stop(&l->poll);
	uv_timer_stop(&l->retry);
}

static void on_listener_closed(uv_handle_t *handle)
{
	struct grpc_listener *l = handle->data;

	server_handle_closed(l->server);
}

void listener_close(struct grpc_listener *l)
{
	free(l->gids);
	l->gids = NULL;
	l->groups = (struct grpc_groups){ 0 };
	if (l->fd < 0)
		return;
	listener_stop(l);
	uv_close((uv_handle_t *)&l->poll, on_listener_closed);
	uv_close((uv_handle_t *)&l->retry, on_listener_closed);
	close_fd(&l->fd);
}

unsigned int grpc_server_port(const struct grpc_server *s)
{
	return s->tcp[0].fd < 0 ? 0 : tcp_port(s->tcp[0].fd);
}

int grpc_server_unix_fd(const struct grpc_server *s)
{
	return s->local.fd;
}

void grpc_server_get_listening(const struct grpc_server *s, struct tcp_listening *ret)
{
	for (ret->n = 0; ret->n < TCP_LISTEN_MAX && s->tcp[ret->n].fd >= 0; ret->n++)
		ret->fds[ret->n] = s->tcp[ret->n].fd;
}
