/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl/json.h"
#include "util/cleanup.h"

#define DEVICE "migration"
#define DESTINATION_ADDRESS "192.0.2.2"
#define CROSS_PORT 9 /* discard */
#define COMMAND_MAX 512
#define OUTPUT_MAX 4096
/* What passes at once; a packet with segmentation offload is as large. */
#define BURST_BYTES (64u << 10)
#define BITS_PER_MBIT 1000000u

/* In the child, in the namespace. */
static _Noreturn void run_command(int ns, int out_fd, const char *command)
{
	if (setns(ns, CLONE_NEWNET) < 0 || dup2(out_fd, STDOUT_FILENO) < 0 ||
	    dup2(out_fd, STDERR_FILENO) < 0)
		_exit(126);
	execl("/bin/sh", "sh", "-c", command, NULL);
	_exit(127);
}

/* All that comes, as far as there is room. */
static void read_text(int fd, char *ret, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size - 1 && (n = read(fd, ret + len, size - 1 - len)) > 0)
		len += (size_t)n;
	ret[len] = 0;
}

/* Runs a shell's command in a namespace. @said: OUTPUT_MAX bytes; what it prints */
__attribute__((format(printf, 4, 5))) static int run_in(int ns, char *said, struct error *err,
                                                        const char *fmt, ...)
{
	char command[COMMAND_MAX];
	int pipe_fds[2], status = -1;
	va_list ap;
	pid_t pid;

	va_start(ap, fmt);
	vsnprintf(command, sizeof command, fmt, ap);
	va_end(ap);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return error_errno(err, -errno, "link: pipe");
	fflush(NULL);
	pid = fork();
	if (!pid)
		run_command(ns, pipe_fds[1], command);
	close(pipe_fds[1]);
	read_text(pid > 0 ? pipe_fds[0] : -1, said, OUTPUT_MAX);
	close(pipe_fds[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return error_errno(err, -errno, "link: \"%s\"", command);
	if (!status)
		return 0;
	said[strcspn(said, "\n")] = 0;
	return error_set(err, -EIO, "link: \"%s\": %s", command,
	                 *said ? said : "failed; ip and tc (iproute2) are needed");
}

static int open_own_ns(struct error *err)
{
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	return fd >= 0 ? fd : error_errno(err, -errno, "link: /proc/self/ns/net");
}

static int new_ns(int *ret, struct error *err)
{
	if (unshare(CLONE_NEWNET) < 0)
		return error_errno(err, -errno, "link: a network namespace (as root?)");
	*ret = open_own_ns(err);
	return *ret < 0 ? *ret : 0;
}

/* This process is back in its own when it returns. */
static int make_namespaces(struct link *l, struct error *err)
{
	_cleanup_close_ int own = open_own_ns(err);
	int r = own < 0 ? own : new_ns(&l->source_ns, err);

	if (!r)
		r = new_ns(&l->destination_ns, err);
	if (own >= 0 && setns(own, CLONE_NEWNET) < 0)
		return error_errno(err, -errno, "link: back into our network namespace");
	return r;
}

static int make_veth(const struct link *l, struct error *err)
{
	char said[OUTPUT_MAX];

	return run_in(l->source_ns, said, err,
	              "ip link add name " DEVICE " type veth peer name " DEVICE
	              " netns /proc/%d/fd/%d",
	              (int)getpid(), l->destination_ns);
}

/* In the namespace that the calling process is in. Return: its descriptor. */
static int open_tun(struct error *err)
{
	_cleanup_close_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	struct ifreq request = { .ifr_name = DEVICE,
		                 .ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR };

	/* Large packets stay whole, as they do on a veth: it is the qdisc that is to be slow. */
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0 ||
	    ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
		return error_errno(err, -errno, "link: a tun device");
	return steal_fd(&fd);
}

/* What @open_one opens in a namespace; this process is back in its own when it returns. */
static int open_in(int ns, int (*open_one)(struct error *err), struct error *err)
{
	_cleanup_close_ int own = open_own_ns(err);
	int fd;

	if (own < 0)
		return own;
	if (setns(ns, CLONE_NEWNET) < 0)
		return error_errno(err, -errno, "link: entering a network namespace");
	fd = open_one(err);
	if (setns(own, CLONE_NEWNET) < 0) {
		close_fd(&fd);
		return error_errno(err, -errno, "link: back into our network namespace");
	}
	return fd;
}

/* A process that ends with this one. Return: its pid, 0 in it. */
static pid_t fork_helper(struct error *err)
{
	pid_t parent = getpid(), pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return error_errno(err, -errno, "link: a process");
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	return 0;
}

static int start_carrier(struct link *l, const struct link_options *o, struct error *err)
{
	/* It has little to do, and being late would be taken for the link's. */
	struct sched_param first = { .sched_priority = 1 };
	_cleanup_close_ int a = open_in(l->source_ns, open_tun, err);
	_cleanup_close_ int b = a < 0 ? a : open_in(l->destination_ns, open_tun, err);
	pid_t pid;

	if (b < 0)
		return b;
	pid = fork_helper(err);
	if (!pid) {
		sched_setscheduler(0, SCHED_FIFO, &first);
		link_carry(a, b, o->rtt_us * 1000 / 2);
		_exit(0);
	}
	if (pid < 0)
		return pid;
	l->carrier = pid;
	return 0;
}

static struct sockaddr_in destination_port(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(CROSS_PORT) };

	inet_pton(AF_INET, DESTINATION_ADDRESS, &a.sin_addr);
	return a;
}

/* Nobody reads it; without it each packet would be answered by "port unreachable". */
static int open_sink(struct error *err)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = destination_port();

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0)
		return error_errno(err, -errno, "link: a socket for foreign traffic");
	return steal_fd(&fd);
}

static int open_sender(struct error *err)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = destination_port();

	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
		return error_errno(err, -errno, "link: a socket for foreign traffic");
	return steal_fd(&fd);
}

static int start_stranger(struct link *l, const struct link_options *o, struct error *err)
{
	_cleanup_close_ int sink = open_in(l->destination_ns, open_sink, err);
	_cleanup_close_ int sender = sink < 0 ? sink : open_in(l->source_ns, open_sender, err);
	pid_t pid;

	if (sender < 0)
		return sender;
	pid = fork_helper(err);
	if (!pid)
		link_cross(sender, o->cross_mbit);
	if (pid < 0)
		return pid;
	l->stranger = pid;
	return 0;
}

/* How a device's egress is shaped; both ways are. */
static int shape(int ns, const struct link_options *o, struct error *err)
{
	uint64_t queue_bytes = o->mbit * BITS_PER_MBIT / 8 / 1000 * o->queue_ms;
	char said[OUTPUT_MAX];
	int r = run_in(ns, said, err,
	               "tc qdisc replace dev " DEVICE " root handle 1: tbf rate %" PRIu64
	               "mbit burst %u limit %" PRIu64,
	               o->mbit, BURST_BYTES, queue_bytes > BURST_BYTES ? queue_bytes : BURST_BYTES);

	/* Its bands are as long as the device's queue, in packets of up to 64 KiB. */
	if (!r && o->prio)
		r = run_in(ns, said, err,
		           "ip link set " DEVICE " txqueuelen %" PRIu64
		           " && tc qdisc add dev " DEVICE " parent 1:1 pfifo_fast",
		           queue_bytes / BURST_BYTES + 4);
	return r;
}

static int configure(int ns, const char *address, const char *peer, const struct link_options *o,
                     struct error *err)
{
	char said[OUTPUT_MAX];
	int r = run_in(ns, said, err,
	               "ip address add %s peer %s dev " DEVICE " && ip link set " DEVICE
	               " up && ip link set lo up",
	               address, peer);

	return r < 0 ? r : shape(ns, o, err);
}

int link_up(struct link *l, const struct link_options *o, struct error *err)
{
	int r;

	*l = LINK_INIT;
	r = make_namespaces(l, err);
	if (!r)
		r = o->rtt_us ? start_carrier(l, o, err) : make_veth(l, err);
	if (!r)
		r = configure(l->source_ns, LINK_SOURCE_ADDRESS, DESTINATION_ADDRESS, o, err);
	if (!r)
		r = configure(l->destination_ns, DESTINATION_ADDRESS, LINK_SOURCE_ADDRESS, o, err);
	if (!r && o->cross_mbit)
		r = start_stranger(l, o, err);
	return r;
}

static void end(pid_t pid)
{
	if (!pid)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void link_down(struct link *l)
{
	end(l->stranger);
	end(l->carrier);
	close_fd(&l->source_ns);
	close_fd(&l->destination_ns);
	*l = LINK_INIT;
}

uint64_t link_sent_bytes(const struct link *l)
{
	_cleanup_json_ struct json_object *qdiscs = NULL;
	char said[OUTPUT_MAX];

	if (run_in(l->source_ns, said, NULL, "tc -j -s qdisc show dev " DEVICE " root") < 0)
		return 0;
	qdiscs = json_tokener_parse(said);
	return json_object_is_type(qdiscs, json_type_array)
	               ? json_count_or(json_object_array_get_idx(qdiscs, 0), "bytes", 0)
	               : 0;
}
