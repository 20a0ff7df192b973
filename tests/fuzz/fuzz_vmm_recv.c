/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packet with descriptors, as it comes out of a VMM's socket. The first byte is their number, the
 * second says in how many messages of control data they come, whether credentials stand among them,
 * and what did not fit. Whatever it was: each descriptor is either handed over or closed, once.
 * Most are numbers alone, as recvmsg() brings them; some come by way of a socket.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libpostcopy/vmm_wire.h"

#define FDS_MAX 80u
#define PIECES_MAX 3u
#define HAS_CREDENTIALS 4u
#define IS_CONTROL_CUT 8u
#define IS_DATA_CUT 16u
/* What stands for a descriptor that is none. */
#define FIRST_FD 1000

const unsigned int fuzz_rounds = 50000;

/* The control data of the packet that is being tried. */
static _Alignas(
        struct cmsghdr) char control[CMSG_SPACE(FDS_MAX * sizeof(int)) +
                                     PIECES_MAX * CMSG_SPACE(0) + CMSG_SPACE(sizeof(struct ucred))];

static char *put_control(char *at, int type, const void *data, size_t len)
{
	struct cmsghdr *c = (struct cmsghdr *)(void *)at;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), data, len);
	return at + CMSG_SPACE(len);
}

/* Return: its bytes. */
static size_t make_control(const int *fds, size_t n_fds, uint8_t how)
{
	const struct ucred credentials = { .pid = 1 };
	size_t pieces = 1 + how % PIECES_MAX;
	char *at = control;

	memset(control, 0, sizeof control);
	if (how & HAS_CREDENTIALS)
		at = put_control(at, SCM_CREDENTIALS, &credentials, sizeof credentials);
	for (size_t left = n_fds, i = 0; left; i++) {
		size_t n = i + 1 < pieces && left > 1 ? left / 2 : left;

		at = put_control(at, SCM_RIGHTS, fds + (n_fds - left), n * sizeof *fds);
		left -= n;
	}
	return (size_t)(at - control);
}

static bool is_gone[FDS_MAX];

static void note_gone(int *fd)
{
	FUZZ_CHECK(*fd >= FIRST_FD && *fd < FIRST_FD + (int)FDS_MAX && !is_gone[*fd - FIRST_FD]);
	is_gone[*fd - FIRST_FD] = true;
}

static void check_packet(size_t n, uint8_t how, const uint8_t *data, size_t size)
{
	static struct vmm_wire_msg msg;
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = size };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	struct error err = ERROR_INIT;
	int sent[FDS_MAX], fds[VMM_WIRE_FDS_MAX], rc;
	size_t n_fds = 0;

	for (size_t i = 0; i < n; i++)
		sent[i] = FIRST_FD + (int)i;
	memset(is_gone, 0, sizeof is_gone);
	hdr.msg_controllen = make_control(sent, n, how);
	hdr.msg_flags =
	        (how & IS_CONTROL_CUT ? MSG_CTRUNC : 0) | (how & IS_DATA_CUT ? MSG_TRUNC : 0);
	rc = vmm_wire_take(&hdr, size, &msg, fds, &n_fds, note_gone, &err);
	FUZZ_CHECK(rc || (n_fds == n && !hdr.msg_flags));
	FUZZ_CHECK(!rc || rc == -EPIPE || (err.code == rc && *err.text));
	for (size_t i = 0; !rc && i < n_fds; i++)
		note_gone(&fds[i]);
	for (size_t i = 0; i < n; i++)
		FUZZ_CHECK(is_gone[i]);
}

/* The number that the next descriptor will have: those below are in use. */
static int next_fd(void)
{
	int fd = fcntl(0, F_DUPFD_CLOEXEC, 0);

	FUZZ_CHECK(fd >= 0);
	close(fd);
	return fd;
}

/* The kernel makes one message of control data of all of its own kind. */
static void check_socket(size_t n, uint8_t how, const uint8_t *data, size_t size)
{
	static int socks[2] = { -1, -1 };
	static int lowest;
	static struct vmm_wire_msg msg;
	const int sent[FDS_MAX] = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = size };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct error err = ERROR_INIT;
	int fds[VMM_WIRE_FDS_MAX], rc;
	size_t n_fds = 0;

	if (socks[0] < 0) {
		FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks));
		lowest = next_fd();
	}
	hdr.msg_controllen = make_control(sent, n, how % PIECES_MAX);
	hdr.msg_control = hdr.msg_controllen ? control : NULL;
	FUZZ_CHECK(sendmsg(socks[0], &hdr, MSG_NOSIGNAL) == (ssize_t)size);
	rc = vmm_wire_recv(socks[1], MSG_DONTWAIT, &msg, fds, &n_fds, &err);
	if (rc)
		FUZZ_CHECK(err.code == rc && *err.text && rc != -EAGAIN && rc != -EPIPE);
	else
		FUZZ_CHECK(n_fds == n && n_fds <= VMM_WIRE_FDS_MAX);
	for (size_t i = 0; !rc && i < n_fds; i++) {
		FUZZ_CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
		close(fds[i]);
	}
	FUZZ_CHECK(next_fd() == lowest);
}

int fuzz_one(const uint8_t *data, size_t size)
{
	if (size < 3)
		return 0;
	if (data[0] >= 254)
		check_socket(data[1] % (FDS_MAX + 1), data[1], data + 2, size - 2);
	else
		check_packet(data[0] % (FDS_MAX + 1), data[1], data + 2, size - 2);
	return 0;
}

size_t fuzz_seed(unsigned int i, uint8_t *buf)
{
	static struct vmm_wire_msg msg;

	/* One that is too long to be read whole. */
	if (i == VMM_WIRE_TYPE_LAST) {
		memset(buf, 1, VMM_WIRE_PACKET_MAX + 3);
		buf[0] = 254;
		return VMM_WIRE_PACKET_MAX + 3;
	}
	msg = (struct vmm_wire_msg){ .type = (enum vmm_wire_type)(VMM_WIRE_ATTACH + i),
		                     .role = VMM_WIRE_SOURCE,
		                     .id = "vm-7",
		                     .n_regions = 1,
		                     .vmstate_len = 1,
		                     .n_shards = 3,
		                     .how = VMM_WIRE_LOG_BY_KERNEL,
		                     .code = 5,
		                     .text = "no" };
	msg.regions[0].page_size = msg.regions[0].size = 4096;
	buf[0] = msg.type == VMM_WIRE_ATTACH || msg.type == VMM_WIRE_PAUSED ||
	         msg.type == VMM_WIRE_VMSTATE || msg.type == VMM_WIRE_CHANNEL ||
	         msg.type == VMM_WIRE_POISONED || msg.type == VMM_WIRE_VMSTATE_AHEAD;
	if (msg.type == VMM_WIRE_DIRTY_LOG || msg.type == VMM_WIRE_MEMORY ||
	    msg.type == VMM_WIRE_SHARDS)
		buf[0] = 2;
	buf[1] = 1;
	return msg.type <= VMM_WIRE_TYPE_LAST ? 2 + vmm_wire_encode(&msg, buf + 2) : 0;
}
