/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/conn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pkt_sched.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"

/* A peer that acknowledges nothing for this long is dead. */
#define PEER_TIMEOUT_MS 10000
#define KEEPALIVE_IDLE_S 5
#define KEEPALIVE_INTERVAL_S 2
#define KEEPALIVE_COUNT 3

DEFINE_CLEANUP(struct conn *, conn_free);

static void set_option(int fd, int level, int option, int value)
{
	/* Each of these makes things better and none makes them right: ignore a refusal. */
	(void)!setsockopt(fd, level, option, &value, sizeof value);
}

/*
 * What a connection's packets are to the network (DSCP, RFC 4594) and to the queue of this host's
 * own link (SO_PRIORITY; pfifo_fast and prio have three bands for it, and 6 goes first). A fault
 * must pass all of bulk that waits there. What is said over the control connection is short, but
 * for the vmstate, during which the guest stands still. Bulk is no less than other traffic: a guest
 * whose pages come last is not moved.
 */
static const struct {
	int dscp;
	int priority;
} classes[] = {
	[STREAM_CONTROL] = { .dscp = 40 /* CS5 */, .priority = TC_PRIO_INTERACTIVE },
	[STREAM_URGENT] = { .dscp = 46 /* EF */, .priority = TC_PRIO_INTERACTIVE },
	[STREAM_BULK] = { .dscp = 10 /* AF11 */, .priority = TC_PRIO_BESTEFFORT },
};

static void tune_socket(int fd, enum stream_role role)
{
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, PEER_TIMEOUT_MS);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
	/* In this order: IP_TOS sets a priority of its own, by which EF goes with bulk. */
	set_option(fd, IPPROTO_IP, IP_TOS, classes[role].dscp << 2);
	set_option(fd, IPPROTO_IPV6, IPV6_TCLASS, classes[role].dscp << 2);
	set_option(fd, SOL_SOCKET, SO_PRIORITY, classes[role].priority);
}

static void set_timeouts(int fd, unsigned int timeout_ms)
{
	struct timeval t = { timeout_ms / 1000, (timeout_ms % 1000) * 1000 };

	(void)!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
	(void)!setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
}

void conn_set_receive_timeout(struct conn *c, unsigned int timeout_ms)
{
	struct timeval t = { timeout_ms / 1000, (timeout_ms % 1000) * 1000 };

	(void)!setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

int conn_set_blocking(struct conn *c, bool blocking)
{
	int flags = fcntl(c->fd, F_GETFL);

	if (flags < 0)
		return -errno;
	set_timeouts(c->fd, 0);
	flags = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	return fcntl(c->fd, F_SETFL, flags) ? -errno : 0;
}

/*
 * The one place where a connection that is being opened, or probed, waits for its peer: until
 * poll() says @events, or its deadline is over.
 */
static int wait_ready(void *arg, short events, struct error *err)
{
	const struct conn *c = arg;
	struct pollfd fd = { .fd = c->fd, .events = events };
	uint64_t now_ns;

	while ((now_ns = clock_now_ns()) < c->deadline_ns) {
		uint64_t left_ms = (c->deadline_ns - now_ns) / NSEC_PER_MSEC + 1;
		int n = poll(&fd, 1, (int)left_ms);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return error_errno(err, -errno, "connection: poll");
	}
	return error_set(err, -ETIMEDOUT, "the peer is silent");
}

/* From here on all that is sent and received has to be over in time. Return: 0 or -errno. */
static int begin_deadline(struct conn *c)
{
	int rc = conn_set_blocking(c, false);

	c->deadline_ns = clock_now_ns() + CONN_OPEN_TIMEOUT_MS * NSEC_PER_MSEC;
	tls_set_wait(c->tls, wait_ready, c);
	return rc;
}

static int end_deadline(struct conn *c)
{
	tls_set_wait(c->tls, NULL, NULL);
	c->deadline_ns = 0;
	return conn_set_blocking(c, true);
}

/* @fd is taken over on success only; it does not block from now on. */
static int conn_new(int fd, struct tls_context *tls, bool server, struct conn **ret,
                    struct error *err)
{
	struct conn *c = calloc(1, sizeof *c);
	int rc;

	if (c)
		c->rx = malloc(FRAME_PAGES_MAX);
	if (!c || !c->rx) {
		free(c);
		return error_set(err, -ENOMEM, "connection: out of memory");
	}
	c->fd = fd;
	rc = conn_set_blocking(c, false);
	if (rc)
		error_errno(err, rc, "connection: O_NONBLOCK");
	else
		rc = tls_open(tls, fd, server, &c->tls, err);
	if (!rc) {
		*ret = c;
		return 0;
	}
	c->fd = -1;
	conn_free(c);
	return rc;
}

/* The TLS handshake, within the deadline. */
static int shake_hands(struct conn *c, struct error *err)
{
	short events = 0;
	int rc;

	while ((rc = tls_handshake_step(c->tls, &events, err)) == -EAGAIN) {
		rc = wait_ready(c, events, err);
		if (rc)
			return error_prefix(err, "TLS handshake");
	}
	return rc;
}

struct conn *conn_free(struct conn *c)
{
	if (!c)
		return NULL;
	tls_free(c->tls);
	free(c->rx);
	close_fd(&c->fd);
	free(c);
	return NULL;
}

void conn_shutdown(const struct conn *c)
{
	shutdown(c->fd, SHUT_RDWR);
}

static int silent_peer(int rc, const char *what, struct error *err)
{
	if (rc == -ETIMEDOUT)
		return error_set(err, rc, "no %s from the peer within %d ms", what,
		                 CONN_OPEN_TIMEOUT_MS);
	return rc;
}

/* What an unknown daemon may say for itself: that it knows nothing of us, or not what we speak. */
static bool is_strangers_word(int rc)
{
	return rc == -EACCES || rc == -EPROTO || rc == -EINVAL;
}

/*
 * The source knows the token, too: before anything that it says is acted on. What became of a guest
 * one daemon alone can tell.
 */
static int expect_proof(struct conn *c, const struct hello *hello, struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc = conn_expect_frame(c, FRAME_PROOF, &h, &payload, err);

	if (rc && err && !is_strangers_word(rc))
		err->from_peer = false;
	if (rc)
		return rc;
	rc = hello_check_proof(hello, c->tls, HELLO_SOURCE, hello->token, payload);
	if (rc != -EACCES)
		return rc ? error_errno(err, rc, "PROOF") : 0;
	return error_set(err, -EACCES,
	                 "it has not proven that it knows the migration's token: this is not the "
	                 "source's daemon");
}

static int send_hello(struct conn *c, const struct hello *hello)
{
	uint8_t frame[FRAME_HEADER_BYTES + FRAME_HELLO_MAX], proof[PROOF_BYTES];
	int rc = hello_prove(hello, c->tls, HELLO_DESTINATION, hello->token, proof);

	return rc ? rc : conn_send(c, frame, hello_encode(hello, proof, frame));
}

/* Everything after the TCP connection. @fd is taken over where *@ret is set, also on failure. */
static int greet(int fd, const struct conn_target *target, struct tls_context *tls,
                 const struct hello *hello, struct conn **ret, struct hello_reply *ret_reply,
                 struct error *err)
{
	struct conn *c = NULL;
	struct frame_header h;
	const void *payload;
	int rc = conn_new(fd, tls, false, &c, err);

	if (rc)
		return rc;
	*ret = c;
	begin_deadline(c);
	rc = shake_hands(c, err);
	if (rc) {
		error_prefix(err, "source %s:%s", target->host, target->port);
		return rc;
	}
	if (hello->peer && !tls_peer_is(c->tls, hello->peer))
		return error_set(err, -EACCES,
		                 "source %s:%s: peer \"%s\" is not \"%s\", the other daemon of "
		                 "migration \"%s\"",
		                 target->host, target->port, tls_peer_name(c->tls), hello->peer,
		                 hello->migration_id);
	/* One who has ended it already has mostly said why: that is to be read, also if this fails.
	 */
	rc = send_hello(c, hello);
	if (rc == -ETIMEDOUT || rc == -ENOMEM)
		return error_errno(err, rc, "source %s:%s: HELLO", target->host, target->port);
	rc = expect_proof(c, hello, err);
	if (!rc)
		rc = conn_expect_frame(c, FRAME_HELLO_REPLY, &h, &payload, err);
	if (!rc)
		rc = hello_reply_decode(payload, h.payload_len, ret_reply, err);
	if (rc) {
		silent_peer(rc, "HELLO_REPLY", err);
		error_prefix(err, "source %s:%s", target->host, target->port);
		return rc;
	}
	rc = end_deadline(c);
	return rc ? error_errno(err, rc, "source %s:%s", target->host, target->port) : 0;
}

int conn_dial(struct dialing *d, const struct conn_target *target, struct tls_context *tls,
              const struct hello *hello, struct conn **ret, struct hello_reply *ret_reply,
              struct error *err)
{
	_cleanup_(conn_free_p) struct conn *c = NULL;
	_cleanup_close_ int fd = dialing_connect(d, target, CONN_OPEN_TIMEOUT_MS, err);
	int rc;

	rc = fd;
	if (fd >= 0) {
		tune_socket(fd, hello->role);
		rc = greet(fd, target, tls, hello, &c, ret_reply, err);
		/* Before it may be closed: its number could be somebody else's then. */
		dialing_done(d);
	}
	if (c)
		(void)steal_fd(&fd);
	if (rc && dialing_is_cancelled(d))
		return error_set(err, -ECANCELED, "source %s:%s: dialling was given up",
		                 target->host, target->port);
	if (!rc)
		*ret = steal_ptr(&c);
	return rc;
}

uint64_t conn_min_rtt_us(const struct conn *c)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof info;

	return getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) ? 0 : info.tcpi_min_rtt;
}

/*
 * Whether a full-size packet has not reached the peer's kernel. A small one may have: what
 * acknowledges the last of what was sent travels in a packet of the answer, and is lost with it.
 */
static bool is_unacknowledged(const struct conn *c)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof info;
	int bytes = 0;

	return !getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
	       !ioctl(c->fd, SIOCOUTQ, &bytes) && bytes >= (int)info.tcpi_snd_mss;
}

/*
 * A probe has filled buffers that most connections, of single pages and a word now and then, never
 * will again: of hundreds that is most of their memory.
 */
static void give_back(struct conn *c)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = ((uintptr_t)c->rx + page - 1) & ~(page - 1);
	uintptr_t to = ((uintptr_t)c->rx + FRAME_PAGES_MAX) & ~(page - 1);

	tls_give_back(c->tls);
	/* Whole pages of it alone, and nothing is being received. */
	if (!c->rx_have)
		(void)madvise((void *)from, to - from, MADV_DONTNEED);
}

int conn_probe(struct conn *c, const struct conn_target *target, struct error *err)
{
	struct frame_header h = { .type = FRAME_PROBE, .payload_len = FRAME_PROBE_BYTES };
	const void *payload;
	int rc = begin_deadline(c);

	/* Nothing is being received: its buffer is as good as any. */
	frame_header_encode(&h, c->rx);
	if (!rc)
		rc = conn_send(c, c->rx, FRAME_HEADER_BYTES + FRAME_PROBE_BYTES);
	if (!rc)
		rc = conn_expect_frame(c, FRAME_PROBE_REPLY, &h, &payload, err);
	if (rc == -ETIMEDOUT)
		return error_set(err, rc,
		                 "full-size packets do not get through %s %s:%s: path MTU (a "
		                 "firewall that drops ICMP?)",
		                 is_unacknowledged(c) ? "to" : "from", target->host, target->port);
	if (rc)
		return err->code ? error_prefix(err, "source %s:%s: probe", target->host,
		                                target->port)
		                 : error_errno(err, rc, "source %s:%s: probe", target->host,
		                               target->port);
	give_back(c);
	rc = end_deadline(c);
	return rc ? error_errno(err, rc, "source %s:%s", target->host, target->port) : 0;
}

int conn_answer_probe(struct conn *c)
{
	struct frame_header h = { .type = FRAME_PROBE_REPLY, .payload_len = FRAME_PROBE_BYTES };
	int rc;

	/* It lies there still, behind its header. */
	frame_header_encode(&h, c->rx);
	rc = conn_send(c, c->rx, FRAME_HEADER_BYTES + FRAME_PROBE_BYTES);
	give_back(c);
	return rc;
}

/* A stranger's connection: there are others to look after. */
static int wait_never(void *arg, short events, struct error *err)
{
	(void)arg;
	(void)events;
	(void)err;
	return -EAGAIN;
}

int conn_accept_begin(int fd, struct tls_context *tls, struct conn **ret, struct error *err)
{
	int rc = conn_new(fd, tls, true, ret, err);

	if (!rc)
		tls_set_wait((*ret)->tls, wait_never, NULL);
	return rc;
}

int conn_accept_step(struct conn *c, short *ret_events, struct hello *ret_hello, struct error *err)
{
	struct frame_header h;
	const void *payload;
	int rc = c->greeted ? 0 : tls_handshake_step(c->tls, ret_events, err);

	if (rc)
		return rc;
	c->greeted = true;
	rc = conn_expect_frame(c, FRAME_HELLO, &h, &payload, err);
	if (!rc)
		rc = hello_decode(payload, h.payload_len, ret_hello, err);
	if (rc == -EAGAIN)
		*ret_events = POLLIN;
	else if (rc)
		conn_send_error(c, err);
	return rc;
}

int conn_accept_end(struct conn *c, enum stream_role role)
{
	tune_socket(c->fd, role);
	tls_set_wait(c->tls, NULL, NULL);
	return conn_set_blocking(c, true);
}

int conn_send_plain(struct conn *c, enum frame_type type)
{
	struct frame_header h = { .type = (uint16_t)type };
	uint8_t buf[FRAME_HEADER_BYTES];

	frame_header_encode(&h, buf);
	return conn_send(c, buf, sizeof buf);
}

void conn_send_error(struct conn *c, const struct error *error)
{
	uint8_t buf[FRAME_HEADER_BYTES + FRAME_ERROR_MAX];

	/* The peer may be gone, which is no news to a connection that ends anyway. */
	(void)conn_send(c, buf, frame_error_encode(error->code, error->text, buf));
}

/* Have @want bytes of the current frame. */
static int receive(struct conn *c, size_t want, struct error *err)
{
	while (c->rx_have < want) {
		ssize_t n = tls_read(c->tls, c->rx + c->rx_have, want - c->rx_have);

		if (n == -EAGAIN && c->deadline_ns) {
			int rc = wait_ready(c, POLLIN, err);

			if (rc)
				return rc;
			continue;
		}
		if (n == -EAGAIN)
			return -EAGAIN;
		if (n == 0)
			return error_set(err, -ECONNRESET, "the peer closed the connection%s",
			                 c->rx_have ? " in the middle of a frame" : "");
		if (n < 0 && tls_alert(c->tls))
			return error_set(err, -EACCES, "TLS: the peer refuses: %s",
			                 tls_alert(c->tls));
		if (n < 0)
			return error_errno(err, (int)n, "connection");
		c->rx_have += (size_t)n;
	}
	return 0;
}

int conn_next_frame(struct conn *c, struct frame_header *ret_header, const void **ret_payload,
                    struct error *err)
{
	struct frame_header h;
	int rc = receive(c, FRAME_HEADER_BYTES, err);

	if (rc)
		return rc;
	rc = frame_header_decode(c->rx, &h, err);
	if (rc)
		return rc;
	rc = receive(c, FRAME_HEADER_BYTES + h.payload_len, err);
	if (rc)
		return rc;
	c->rx_have = 0;
	*ret_header = h;
	*ret_payload = c->rx + FRAME_HEADER_BYTES;
	return 0;
}

int conn_expect_frame(struct conn *c, enum frame_type type, struct frame_header *ret_header,
                      const void **ret_payload, struct error *err)
{
	struct frame_header h;
	int rc = conn_next_frame(c, &h, ret_payload, err);

	if (rc)
		return rc;
	if (h.type == FRAME_ERROR)
		return frame_error_decode(&h, *ret_payload, err);
	if (h.type != type)
		return error_set(err, -EPROTO, "frame of type %u where %u must come", h.type, type);
	*ret_header = h;
	return 0;
}
