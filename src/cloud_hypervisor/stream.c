/* SPDX-License-Identifier: Apache-2.0 */
#include "cloud_hypervisor/stream.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "util/cleanup.h"

/* More than may come: what is too much is seen, and closed. */
#define FDS_MAX 8

int ch_stream_settle(int sock, struct error *err)
{
	const struct timeval limit = { .tv_sec = CH_STREAM_TIMEOUT_MS / 1000 };

	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) ||
	    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit))
		return error_errno(err, -errno, "the connection to Cloud Hypervisor");
	return 0;
}

int ch_stream_connect(const char *path, int *ret_sock, struct error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_close_ int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int rc;

	if (!*path || strlen(path) >= sizeof addr.sun_path)
		return error_set(err, -EINVAL, "socket path \"%s\": give 1 to %zu bytes", path,
		                 sizeof addr.sun_path - 1);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (sock < 0)
		return error_errno(err, -errno, "can't create a socket");
	rc = ch_stream_settle(sock, err);
	if (rc)
		return rc;
	if (connect(sock, (struct sockaddr *)&addr, sizeof addr))
		return error_errno(err, -errno,
		                   "can't connect to %s; has Cloud Hypervisor been told to "
		                   "receive-migration there?",
		                   path);
	*ret_sock = steal_fd(&sock);
	return 0;
}

/* Return: whether those that came with a part of a message are as they should be. */
static bool take_fds(struct msghdr *hdr, int *ret_fd)
{
	bool fine = !(hdr->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(hdr); c; c = CMSG_NXTHDR(hdr, c)) {
		size_t n = c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS
		                   ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int)
		                   : 0;

		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (ret_fd && *ret_fd < 0) {
				*ret_fd = fd;
			} else {
				close(fd);
				fine = false;
			}
		}
	}
	return fine;
}

int ch_stream_read(int sock, void *buf, size_t len, int *ret_fd, struct error *err)
{
	_cleanup_close_ int fd = -1;
	char *to = buf;

	while (len) {
		_Alignas(struct cmsghdr) char control[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct iovec iov = { .iov_base = to, .iov_len = len };
		struct msghdr hdr = { .msg_iov = &iov,
			              .msg_iovlen = 1,
			              .msg_control = control,
			              .msg_controllen = sizeof control };
		ssize_t n = recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return error_set(err, -ETIMEDOUT,
			                 "Cloud Hypervisor stopped in the middle of a message");
		if (n <= 0)
			return error_set(err, -EPIPE, "Cloud Hypervisor has closed the connection");
		if (!take_fds(&hdr, ret_fd ? &fd : NULL))
			return error_set(err, -EPROTO,
			                 "Cloud Hypervisor sends descriptors that belong to no "
			                 "message");
		to += n;
		len -= (size_t)n;
	}
	if (ret_fd)
		*ret_fd = steal_fd(&fd);
	return 0;
}

int ch_stream_read_request(int sock, struct ch_request *ret, struct error *err)
{
	uint8_t buf[CH_REQUEST_BYTES];
	int rc = ch_stream_read(sock, buf, sizeof buf, NULL, err);

	return rc ? rc : ch_request_decode(buf, ret, err);
}

/* All of it; @fd goes with its first byte. */
static int write_all(int sock, const char *data, size_t len, int fd, struct error *err)
{
	while (len) {
		_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
		struct iovec iov = { .iov_base = (char *)data, .iov_len = len };
		struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (fd >= 0) {
			struct cmsghdr *c;

			memset(control, 0, sizeof control);
			hdr.msg_control = control;
			hdr.msg_controllen = sizeof control;
			c = CMSG_FIRSTHDR(&hdr);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof fd);
			memcpy(CMSG_DATA(c), &fd, sizeof fd);
		}
		n = sendmsg(sock, &hdr, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return error_set(err, -ETIMEDOUT, "Cloud Hypervisor takes no message");
		if (n < 0)
			return error_errno(err, errno == ECONNRESET ? -EPIPE : -errno,
			                   "can't send to Cloud Hypervisor");
		fd = -1;
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

int ch_stream_write(int sock, const void *data, size_t len, struct error *err)
{
	return write_all(sock, data, len, -1, err);
}

int ch_stream_answer(int sock, enum ch_status status, struct error *err)
{
	uint8_t buf[CH_RESPONSE_BYTES];

	ch_response_encode(status, buf);
	return ch_stream_write(sock, buf, sizeof buf, err);
}

int ch_stream_request(int sock, enum ch_command command, const void *payload, size_t len, int fd,
                      struct error *err)
{
	const struct ch_request q = { .command = command, .version = CH_VERSION, .length = len };
	uint8_t buf[CH_REQUEST_BYTES];
	int rc;

	ch_request_encode(&q, buf);
	rc = write_all(sock, (char *)buf, sizeof buf, -1, err);
	return rc ? rc : write_all(sock, payload, len, fd, err);
}

int ch_stream_await(int sock, int timeout_ms, const char *what, struct error *err)
{
	struct pollfd fd = { .fd = sock, .events = POLLIN };
	int n;

	do
		n = poll(&fd, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	return n > 0 ? 0
	             : error_set(err, -ETIMEDOUT, "Cloud Hypervisor does not say %s for %d s", what,
	                         timeout_ms / 1000);
}
