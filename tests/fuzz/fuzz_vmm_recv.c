/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packet with descriptors, as it comes out of a VMM's socket. The first byte is their number, the
 * second how many messages of control data they come in. Whatever it was: each descriptor is either
 * handed over or closed.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libpostcopy/vmm_wire.h"

#define FDS_MAX 80u

const unsigned int fuzz_rounds = 10000;

/* The number that the next descriptor will have: those below are in use. */
static int next_fd(void)
{
	int fd = fcntl(0, F_DUPFD_CLOEXEC, 0);

	FUZZ_CHECK(fd >= 0);
	close(fd);
	return fd;
}

/* What a stranger may write: the kernel makes one message of control data of all of its own kind.
 */
static void send_packet(int sock, size_t n_fds, size_t pieces, const uint8_t *data, size_t size)
{
	_Alignas(
	        struct cmsghdr) char control[CMSG_SPACE(FDS_MAX * sizeof(int)) + 3 * CMSG_SPACE(0)];
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = size };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[FDS_MAX] = { 0 };
	char *at = control;

	memset(control, 0, sizeof control);
	for (size_t left = n_fds, i = 0; left; i++) {
		size_t n = i + 1 < pieces && left > 1 ? left / 2 : left;
		struct cmsghdr *c = (struct cmsghdr *)(void *)at;

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n * sizeof(int));
		at += CMSG_SPACE(n * sizeof(int));
		left -= n;
	}
	if (n_fds) {
		hdr.msg_control = control;
		hdr.msg_controllen = (size_t)(at - control);
	}
	FUZZ_CHECK(sendmsg(sock, &hdr, MSG_NOSIGNAL) == (ssize_t)size);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	static int socks[2] = { -1, -1 };
	static int lowest;
	static struct vmm_wire_msg msg;
	struct error err = ERROR_INIT;
	int fds[VMM_WIRE_FDS_MAX];
	size_t n_fds = 0, sent;
	int rc;

	if (size < 3)
		return 0;
	if (socks[0] < 0) {
		FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks));
		lowest = next_fd();
	}
	sent = data[0] % (FDS_MAX + 1);
	send_packet(socks[0], sent, 1 + data[1] % 3, data + 2, size - 2);
	rc = vmm_wire_recv(socks[1], MSG_DONTWAIT, &msg, fds, &n_fds, &err);
	if (rc) {
		FUZZ_CHECK(err.code == rc && *err.text && rc != -EAGAIN && rc != -EPIPE);
	} else {
		FUZZ_CHECK(n_fds == sent && n_fds <= VMM_WIRE_FDS_MAX);
		for (size_t i = 0; i < n_fds; i++) {
			FUZZ_CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
			close(fds[i]);
		}
	}
	FUZZ_CHECK(next_fd() == lowest);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static struct vmm_wire_msg msg;

	/* One that is too long to be read whole. */
	if (i == VMM_WIRE_ATTRIBUTES) {
		memset(buf, 1, VMM_WIRE_PACKET_MAX + 3);
		return VMM_WIRE_PACKET_MAX + 3;
	}
	msg = (struct vmm_wire_msg){ .type = (enum vmm_wire_type)(VMM_WIRE_ATTACH + i),
		                     .role = VMM_WIRE_SOURCE,
		                     .id = "vm-7",
		                     .n_regions = 1,
		                     .vmstate_len = 1,
		                     .code = 5,
		                     .text = "no" };
	msg.regions[0].page_size = msg.regions[0].size = 4096;
	buf[0] = msg.type == VMM_WIRE_ATTACH || msg.type == VMM_WIRE_PAUSED ||
	         msg.type == VMM_WIRE_VMSTATE || msg.type == VMM_WIRE_CHANNEL;
	buf[1] = 1;
	return msg.type <= VMM_WIRE_ATTRIBUTES ? 2 + vmm_wire_encode(&msg, buf + 2) : 0;
}
