/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc/link.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/tcp_dial.h"

#define OPEN_TIMEOUT_MS 10000

int link_wait(struct link *l, short events, uint64_t deadline_ns, struct error *err)
{
	for (;;) {
		struct pollfd fds[2] = { { .fd = l->fd, .events = events },
			                 { .fd = l->cancel_fd, .events = POLLIN } };
		uint64_t now = clock_now_ns();
		uint64_t left_ms = now < deadline_ns ? (deadline_ns - now) / NSEC_PER_MSEC + 1 : 0;
		int r;

		if (events == POLLIN && l->tls && tls_pending(l->tls))
			return 0;
		r = poll(fds, 2, left_ms < INT32_MAX ? (int)left_ms : INT32_MAX);
		if (r < 0 && errno != EINTR)
			return error_errno(err, -errno, "%s", l->name);
		if (r > 0 && fds[1].revents)
			return error_set(err, -ECANCELED, "interrupted");
		if (r > 0)
			return 0;
		if (!r && !left_ms)
			return error_set(err, -ETIMEDOUT, "%s has not answered in time", l->name);
	}
}

static int open_unix(struct link *l, const char *path, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = OPEN_TIMEOUT_MS / 1000 };
	int r;

	snprintf(l->name, sizeof l->name, "postcopyd at \"%.200s\"", path);
	snprintf(l->authority, sizeof l->authority, "localhost");
	if (strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -EINVAL, "control socket \"%s\": longer than %zu bytes", path,
		                 sizeof addr.sun_path - 1);
	strcpy(addr.sun_path, path);
	l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l->fd < 0)
		return error_errno(err, -errno, "control socket");
	/* Of connect(), too, where the backlog is full. */
	setsockopt(l->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	if (!connect(l->fd, (struct sockaddr *)&addr, sizeof addr))
		return 0;
	r = -errno;
	if (r == -ENOENT || r == -ECONNREFUSED)
		return error_set(err, r,
		                 "no postcopyd listens on \"%s\": start it, or name its socket by "
		                 "--control",
		                 path);
	if (r == -EAGAIN)
		return error_set(err, -ETIMEDOUT, "%s does not accept", l->name);
	return error_errno(err, r, "control socket \"%s\"", path);
}

/* "host:port" or "[v6]:port" into two. */
static int split_address(const char *target, char *host, size_t size, const char **ret_port,
                         struct error *err)
{
	const char *colon = strrchr(target, ':');
	bool bracket = *target == '[';
	const char *from = target + bracket;
	size_t len = colon ? (size_t)(colon - from) : 0;

	if (bracket && len && from[len - 1] == ']')
		len--;
	else if (bracket || memchr(from, ':', len))
		len = 0;
	if (!len || len >= size || !colon[1])
		return error_set(err, -EINVAL,
		                 "control address \"%s\": it takes a path, or host:port", target);
	memcpy(host, from, len);
	host[len] = 0;
	*ret_port = colon + 1;
	return 0;
}

static int open_tcp(struct link *l, const char *target, uint64_t deadline_ns, struct error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list;
	struct tcp_dial_why why;
	const char *port = NULL;
	char host[256];
	int r = split_address(target, host, sizeof host, &port, err);

	if (r < 0)
		return r;
	snprintf(l->name, sizeof l->name, "postcopyd at %.200s", target);
	snprintf(l->authority, sizeof l->authority, "%.270s", target);
	r = getaddrinfo(host, port, &hints, &list);
	if (r)
		return error_set(err, -EHOSTUNREACH, "%s: %s", l->name, gai_strerror(r));
	r = tcp_dial(host, port, list, l->cancel_fd, deadline_ns, &why);
	freeaddrinfo(list);
	if (r == -ECANCELED)
		return error_set(err, r, "interrupted");
	if (r < 0)
		return error_set(err, r, "%s: %s", l->name, why.text);
	l->fd = r;
	setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
	return 0;
}

struct handshake {
	struct link *link;
	uint64_t deadline_ns;
};

static int handshake_wait(void *arg, short events, struct error *err)
{
	struct handshake *h = arg;

	return link_wait(h->link, events, h->deadline_ns, err);
}

int link_open(struct link *l, const char *target, struct tls_context *tls, int cancel_fd,
              struct error *err)
{
	struct handshake h = { l, clock_now_ns() + OPEN_TIMEOUT_MS * NSEC_PER_MSEC };
	int r;

	l->cancel_fd = cancel_fd;
	if (!strncmp(target, "unix:", 5))
		return open_unix(l, target + 5, err);
	if (*target == '/')
		return open_unix(l, target, err);
	if (!tls)
		return error_set(err, -EINVAL, "\"%s\" takes a certificate, its key and a CA",
		                 target);
	r = open_tcp(l, target, h.deadline_ns, err);
	if (r < 0)
		return r;
	r = tls_handshake_wait(tls, l->fd, false, handshake_wait, &h, &l->tls, err);
	return r < 0 ? error_prefix(err, "%s", l->name) : 0;
}

void link_close(struct link *l)
{
	l->tls = tls_free(l->tls);
	close_fd(&l->fd);
}

/* The peer has hung up, or broken TLS off: which is how one that may not call learns of it. */
static int link_lost(struct link *l, struct error *err)
{
	if (l->heard)
		return error_set(err, -EPIPE, "%s closed the connection", l->name);
	if (l->tls && tls_alert(l->tls))
		return error_set(err, -EPIPE, "%s refuses: %s (control-allow, control-read?)",
		                 l->name, tls_alert(l->tls));
	return error_set(
	        err, -EPIPE, "%s closed the connection before its first word: may %s call it (%s)?",
	        l->name, l->tls ? "this certificate" : "this user",
	        l->tls ? "control-allow, control-read" : "control-group, control-read-group");
}

int link_send(struct link *l, const uint8_t *data, size_t len, uint64_t deadline_ns,
              struct error *err)
{
	uint8_t byte;

	if (l->tls && !tls_write(l->tls, data, len))
		return 0;
	/* One who has ended it already has mostly said why. */
	if (l->tls) {
		(void)tls_read(l->tls, &byte, 1);
		return link_lost(l, err);
	}
	while (len) {
		ssize_t n = send(l->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n >= 0) {
			data += n;
			len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return link_lost(l, err);
		r = link_wait(l, POLLOUT, deadline_ns, err);
		if (r < 0)
			return r;
	}
	return 0;
}

ssize_t link_receive(struct link *l, uint8_t *buf, size_t size, struct error *err)
{
	ssize_t n;

	if (l->tls) {
		n = tls_read(l->tls, buf, size);
	} else {
		n = recv(l->fd, buf, size, MSG_DONTWAIT);
		n = n < 0 ? -errno : n;
	}
	if (n == -EAGAIN || n == -EINTR)
		return 0;
	if (n <= 0)
		return link_lost(l, err);
	l->heard = true;
	return n;
}
