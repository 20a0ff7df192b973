/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm_server.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "mem/descriptor.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/peer.h"
#include "util/refused.h"
#include "vmm/vmm_process.h"

/* How long nothing is accepted where there is not even a descriptor to say so by. */
#define NO_DESCRIPTOR_MS 100u
/* Of what a socket's buffer holds (some 200 KiB), counted as the kernel does. */
#define BEHIND_BYTES (64 << 10)

/* That of an ATTACH and the next: who has called meanwhile is answered in that one. */
#define REST_TURNS 2u

struct vmm_conn {
	struct vmm_server *server;
	struct vmm_conn *next;
	uv_poll_t poll;
	int fd;
	struct ucred cred; /* of who connected */
	void *owner;       /* NULL before ATTACH and after disown */
	bool attached;
	bool is_newer;     /* it has said what is not known here, and that is told */
	uint64_t since_ms; /* by the loop's clock */
};

struct vmm_server {
	uv_poll_t poll;
	struct vmm_server_config config;
	struct vmm_conn *conns;
	unsigned int n_conns;
	uv_timer_t deadline; /* runs while any has to attach still, or nothing can be accepted */
	uv_prepare_t turn;   /* the loop has gone round */
	unsigned int rest;   /* turns in which no ATTACH is looked at, this one included */
	int spare_fd;        /* for when there is no other; -1: gone as well */
	bool told;           /* that there is none, since one was accepted */
	unsigned int n_handles;
};

static void refuse(enum refused_reason reason, const struct ucred *cred, const char *why)
{
	char who[64];

	snprintf(who, sizeof who, "uid %u, gid %u (process %d)", cred->uid, cred->gid, cred->pid);
	refused(REFUSED_AT_VMM, reason, who, "%s", why);
}

static void on_conn_closed(uv_handle_t *handle)
{
	struct vmm_conn *conn = handle->data;

	close_fd(&conn->fd);
	free(conn);
}

static void close_conn(struct vmm_conn *conn)
{
	struct vmm_server *server = conn->server;
	void *owner = conn->owner;

	for (struct vmm_conn **p = &server->conns; *p; p = &(*p)->next)
		if (*p == conn) {
			*p = conn->next;
			break;
		}
	server->n_conns--;
	conn->owner = NULL;
	uv_poll_stop(&conn->poll);
	uv_close((uv_handle_t *)&conn->poll, on_conn_closed);
	if (owner)
		server->config.ops->closed(owner);
}

pid_t vmm_conn_pid(const struct vmm_conn *conn)
{
	return conn->cred.pid;
}

uid_t vmm_conn_uid(const struct vmm_conn *conn)
{
	return conn->cred.uid;
}

int vmm_conn_send(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int fd)
{
	return vmm_wire_send(conn->fd, msg, &fd, fd >= 0 ? 1 : 0);
}

bool vmm_conn_is_behind(const struct vmm_conn *conn)
{
	int unread = 0;

	return !ioctl(conn->fd, SIOCOUTQ, &unread) && unread > BEHIND_BYTES;
}

int vmm_conn_send_type(struct vmm_conn *conn, enum vmm_wire_type type)
{
	return vmm_conn_send(conn, &(struct vmm_wire_msg){ .type = type }, -1);
}

static void send_error(int fd, const struct error *why)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ERROR };

	msg.code = (uint32_t)(why->code ? -why->code : EIO);
	snprintf(msg.text, sizeof msg.text, "%s", why->text);
	/* It may be gone; then its connection ends by itself. */
	(void)vmm_wire_send(fd, &msg, NULL, 0);
}

void vmm_conn_send_error(struct vmm_conn *conn, const struct error *why)
{
	send_error(conn->fd, why);
}

void vmm_conn_disown(struct vmm_conn *conn)
{
	conn->owner = NULL;
}

/* Return: 0, with the pidfd apart from the others; or -errno with @err set. */
static int take_process(const struct vmm_conn *conn, struct vmm_attach *attach, struct error *err)
{
	int pid;

	if (!(attach->msg->attach_flags & VMM_WIRE_ATTACH_PIDFD))
		return 0;
	attach->n_fds--;
	pid = vmm_process_open(attach->fds[attach->n_fds], conn->cred.uid, &attach->pidfd, err);
	if (pid < 0)
		return pid;
	attach->vmm = pid;
	return 0;
}

static int handle_attach(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                         size_t n_fds, struct error *err)
{
	struct vmm_server *server = conn->server;
	struct vmm_attach attach = {
		.msg = msg, .fds = fds, .n_fds = n_fds, .vmm = conn->cred.pid, .pidfd = -1
	};
	struct vmm_wire_msg answer = { .type = VMM_WIRE_ATTACHED };
	void *owner;
	int rc;

	if (msg->type != VMM_WIRE_ATTACH)
		return error_set(err, -EPROTO, "the first message must be ATTACH");
	server->rest = REST_TURNS;
	rc = take_process(conn, &attach, err);
	if (!rc)
		rc = server->config.ops->attach(server->config.arg, conn, &attach, &owner, err);
	close_fd(&attach.pidfd);
	if (rc)
		return rc;
	conn->owner = owner;
	conn->attached = true;
	answer.standing = attach.standing;
	rc = vmm_conn_send(conn, &answer, -1);
	if (!rc && attach.standing)
		server->config.ops->attached_again(owner);
	return rc;
}

static int handle_memory(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                         size_t n_fds, struct error *err)
{
	struct vmm_attach memory = { .msg = msg, .fds = fds, .n_fds = n_fds, .pidfd = -1 };

	conn->server->rest = REST_TURNS;
	return conn->server->config.ops->memory(conn->owner, &memory, err);
}

static int handle_message(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                          size_t n_fds, struct error *err)
{
	if (!conn->attached)
		return handle_attach(conn, msg, fds, n_fds, err);
	if (msg->type == VMM_WIRE_ATTACH)
		return error_set(err, -EBUSY, "attached already");
	if (!conn->owner)
		return 0;
	if (msg->type == VMM_WIRE_MEMORY)
		return handle_memory(conn, msg, fds, n_fds, err);
	for (size_t i = n_fds; i < VMM_MESSAGE_FDS; i++)
		fds[i] = -1;
	return conn->server->config.ops->message(conn->owner, msg, fds, err);
}

/*
 * A message whose descriptors this process had no room for. One that a guest can do without costs
 * nothing else. Return: 0, or -EMFILE: the VMM is to be told and cut off.
 */
static int handle_cut_message(struct vmm_conn *conn, const struct vmm_wire_msg *msg,
                              const struct error *why)
{
	struct error told = ERROR_INIT;

	bool is_shards = msg->type == VMM_WIRE_SHARDS;
	bool is_spare = is_shards || msg->type == VMM_WIRE_CHANNEL ||
	                msg->type == VMM_WIRE_DIRTY_LOG || msg->type == VMM_WIRE_VMSTATE_AHEAD;

	if (conn->owner && (!is_spare || is_shards))
		conn->server->config.ops->cut_message(conn->owner, msg->type, why);
	if (!conn->attached || !is_spare)
		return -EMFILE;
	/* A channel is closed by now, and its VMM sees that; without a log it is no warm phase. */
	error_set(&told, 0, "%s: %s",
	          msg->type == VMM_WIRE_CHANNEL     ? "a fetch channel"
	          : msg->type == VMM_WIRE_DIRTY_LOG ? "a dirty log"
	          : is_shards                       ? "more userfaultfds"
	                                            : "a vmstate ahead",
	          why->text);
	refuse(REFUSED_RESOURCES, &conn->cred, told.text);
	return 0;
}

/*
 * A newer libpostcopy says something of itself. A guest can do without what that offers, and not
 * without its VMM, however often it says so: once is told. Return: 0, or -EPROTO from a stranger.
 */
static int handle_unknown(struct vmm_conn *conn, struct error *err)
{
	struct error told = ERROR_INIT;

	if (!conn->attached)
		return err->code = -EPROTO;
	if (!conn->is_newer) {
		error_set(&told, 0,
		          "%s: its libpostcopy is newer than this postcopyd, and goes without what "
		          "that offers: upgrade postcopyd",
		          err->text);
		refuse(REFUSED_PROTOCOL, &conn->cred, told.text);
	}
	conn->is_newer = true;
	*err = ERROR_INIT;
	return 0;
}

/* One message. Return: 0; -EAGAIN where there is none; or why the VMM is to be cut off. */
static int read_message(struct vmm_conn *conn, struct error *err)
{
	int fds[VMM_WIRE_FDS_MAX];
	struct vmm_wire_msg msg;
	size_t n_fds = 0;
	int rc = vmm_wire_recv_from(conn->fd, MSG_DONTWAIT, &msg, fds, &n_fds, descriptor_discard,
	                            err);

	if (rc == -EMFILE)
		return handle_cut_message(conn, &msg, err);
	if (rc == -ENOMSG)
		return handle_unknown(conn, err);
	if (!rc)
		rc = handle_message(conn, &msg, fds, n_fds, err);
	for (size_t i = 0; i < n_fds; i++)
		descriptor_discard(&fds[i]);
	return rc;
}

/*
 * libuv reports a hang-up with an error once, and then no more: all that was said is read here. It
 * comes when the peer is closed: there is no more than what its socket held.
 */
static int read_last_messages(struct vmm_conn *conn, struct error *err)
{
	int rc;

	do
		rc = read_message(conn, err);
	while (!rc);
	return rc == -EAGAIN ? -EPIPE : rc;
}

static enum refused_reason reason_of(int rc)
{
	switch (rc) {
	case -ETIMEDOUT:
		return REFUSED_DEADLINE;
	case -EMFILE:
	case -ENOMEM:
		return REFUSED_RESOURCES;
	case -EDQUOT:
		return REFUSED_USER;
	case -EUSERS:
		return REFUSED_LIMIT;
	case -EPROTO:
		return REFUSED_PROTOCOL;
	default:
		return REFUSED_ATTACH;
	}
}

/* @rc is why nothing more is read from it. */
static void cut_off(struct vmm_conn *conn, int rc, struct error *err)
{
	if (rc != -EPIPE) {
		if (!err->code)
			error_errno(err, rc, "VMM socket");
		refuse(reason_of(rc), &conn->cred, err->text);
		vmm_conn_send_error(conn, err);
	}
	close_conn(conn);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct vmm_conn *conn = poll->data;
	struct error err = ERROR_INIT;
	int rc;

	(void)events;
	/* Its message is still there in a later turn. */
	if (status >= 0 && !conn->attached && conn->server->rest)
		return;
	rc = status < 0 ? read_last_messages(conn, &err) : read_message(conn, &err);
	if (rc && rc != -EAGAIN)
		cut_off(conn, rc, &err);
}

void vmm_conn_catch_up(struct vmm_conn *conn)
{
	struct error err = ERROR_INIT;
	int said = 0, left, rc;

	/* All of it, and then whether it has hung up. Who goes on is heard in later turns: it
	 * might never end. */
	(void)ioctl(conn->fd, FIONREAD, &said);
	do {
		left = said;
		said -= (int)recv(conn->fd, NULL, 0, MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
		rc = read_message(conn, &err);
	} while (!rc && left > 0);
	if (rc && rc != -EAGAIN)
		cut_off(conn, rc, &err);
}

static const struct vmm_limits *limits(const struct vmm_server *server)
{
	return &server->config.limits;
}

static void refuse_late(struct vmm_conn *conn)
{
	struct error why = ERROR_INIT;

	error_set(&why, -ETIMEDOUT, "no ATTACH within %u ms (attach-timeout)",
	          limits(conn->server)->attach_timeout_ms);
	cut_off(conn, -ETIMEDOUT, &why);
}

static uint64_t due_ms(const struct vmm_conn *conn)
{
	return conn->since_ms + limits(conn->server)->attach_timeout_ms;
}

static void on_deadline(uv_timer_t *timer);

/* For the first one that is due. */
static void set_deadline(struct vmm_server *server)
{
	uint64_t now_ms = uv_now(server->poll.loop), first_ms = UINT64_MAX;

	for (struct vmm_conn *c = server->conns; c; c = c->next)
		if (!c->attached && due_ms(c) < first_ms)
			first_ms = due_ms(c);
	if (first_ms != UINT64_MAX)
		uv_timer_start(&server->deadline, on_deadline,
		               first_ms > now_ms ? first_ms - now_ms : 0, 0);
}

static void on_connection(uv_poll_t *poll, int status, int events);

static void on_deadline(uv_timer_t *timer)
{
	struct vmm_server *server = timer->data;
	uint64_t now_ms = uv_now(timer->loop);

	for (struct vmm_conn *c = server->conns, *next; c; c = next) {
		next = c->next;
		if (!c->attached && due_ms(c) <= now_ms)
			refuse_late(c);
	}
	/* Where there was no descriptor at all. */
	uv_poll_start(&server->poll, UV_READABLE, on_connection);
	set_deadline(server);
}

/* Takes over @fd in any case. Return: NULL where there is no memory for it. */
static struct vmm_conn *add_conn(struct vmm_server *server, int fd)
{
	struct vmm_conn *conn = calloc(1, sizeof *conn);
	struct ucred cred = { 0 };

	(void)peer_credentials(fd, &cred);
	if (!conn || uv_poll_init(server->poll.loop, &conn->poll, fd)) {
		refuse(REFUSED_RESOURCES, &cred, "out of memory");
		free(conn);
		close(fd);
		return NULL;
	}
	conn->server = server;
	conn->fd = fd;
	conn->cred = cred;
	conn->since_ms = uv_now(server->poll.loop);
	conn->poll.data = conn;
	conn->next = server->conns;
	server->conns = conn;
	server->n_conns++;
	uv_poll_start(&conn->poll, UV_READABLE | UV_DISCONNECT, on_readable);
	return conn;
}

static unsigned int count_waiting(const struct vmm_server *server, uid_t uid)
{
	unsigned int n = 0;

	for (const struct vmm_conn *c = server->conns; c; c = c->next)
		n += !c->attached && c->cred.uid == uid;
	return n;
}

/* Return: 0; or -errno, with @err for the one who is turned away. */
static int check_peer(struct vmm_server *server, int fd, struct error *err)
{
	unsigned int most = limits(server)->conns, waiting = limits(server)->waiting;
	struct ucred cred;
	int rc = peer_credentials(fd, &cred);

	if (rc)
		return error_errno(err, rc, "credentials");
	if (!peer_is_allowed(fd, &cred, server->config.groups, server->config.n_groups)) {
		rc = error_set(err, -EACCES,
		               "this user may not connect: it is in none of the allowed groups");
		refuse(REFUSED_GROUP, &cred, err->text);
		return rc;
	}
	if (server->n_conns >= most + (cred.uid ? 0 : VMM_ROOT_SPARE)) {
		rc = error_set(err, -EUSERS, "%u VMMs are connected (max-vmms)", server->n_conns);
		refuse(REFUSED_LIMIT, &cred, err->text);
		return rc;
	}
	if (cred.uid && count_waiting(server, cred.uid) >= waiting) {
		rc = error_set(err, -EUSERS,
		               "%u connections of this user have not attached yet "
		               "(max-waiting-vmms)",
		               waiting);
		refuse(REFUSED_USER, &cred, err->text);
		return rc;
	}
	return 0;
}

/* Tell it why, and close. */
static void turn_away(int fd, const struct error *why)
{
	send_error(fd, why);
	/* What is closed with something unread is reset, and that is told before the rest. */
	while (recv(fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
		;
	close(fd);
}

static int accept_one(const struct vmm_server *server)
{
	int fd = accept4(server->config.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

static void keep_spare(struct vmm_server *server)
{
	if (server->spare_fd < 0)
		server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* No descriptor for one who waits: what is not taken would wake us again at once. */
static void on_no_descriptor(struct vmm_server *server, int rc)
{
	struct error why = ERROR_INIT;
	struct ucred cred = { 0 };
	int fd;

	if (!server->told)
		log_error("VMM socket: no descriptor for a connection (LimitNOFILE= of the unit): "
		          "%s; VMMs are turned away until there is one",
		          strerror(-rc));
	server->told = true;
	close_fd(&server->spare_fd);
	fd = accept_one(server);
	if (fd >= 0) {
		(void)peer_credentials(fd, &cred);
		error_set(&why, -EMFILE,
		          "postcopyd has no descriptor left for a connection: try again, or raise "
		          "LimitNOFILE= of its unit");
		refuse(REFUSED_RESOURCES, &cred, why.text);
		turn_away(fd, &why);
	} else if (fd != -EAGAIN) {
		/* Somebody else has it. Nothing is accepted for a while. */
		uv_poll_stop(&server->poll);
		uv_timer_start(&server->deadline, on_deadline, NO_DESCRIPTOR_MS, 0);
	}
	keep_spare(server);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct vmm_server *server = poll->data;
	struct error err = ERROR_INIT;
	int fd;

	(void)events;
	if (status < 0)
		return;
	keep_spare(server);
	fd = accept_one(server);
	if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM) {
		on_no_descriptor(server, fd);
	} else if (fd >= 0) {
		server->told = false;
		if (check_peer(server, fd, &err))
			turn_away(fd, &err);
		else if (add_conn(server, fd))
			set_deadline(server);
	}
}

static void on_turn(uv_prepare_t *turn)
{
	struct vmm_server *server = turn->data;

	if (server->rest)
		server->rest--;
}

int vmm_server_adopt(struct vmm_server *server, int fd, void *owner, struct vmm_conn **ret)
{
	struct vmm_conn *conn = add_conn(server, fd);

	if (!conn)
		return -ENOMEM;
	conn->owner = owner;
	conn->attached = true;
	*ret = conn;
	return 0;
}

int vmm_conn_fd(const struct vmm_conn *conn)
{
	return conn->fd;
}

static struct vmm_limits with_defaults(struct vmm_limits l)
{
	l.conns = l.conns ? l.conns : VMM_CONNS_MAX;
	l.waiting = l.waiting ? l.waiting : VMM_WAITING_MAX;
	l.attach_timeout_ms = l.attach_timeout_ms ? l.attach_timeout_ms : VMM_ATTACH_TIMEOUT_MS;
	return l;
}

void vmm_server_set(struct vmm_server *server, const struct vmm_limits *limits, const gid_t *groups,
                    size_t n_groups)
{
	server->config.limits = with_defaults(*limits);
	server->config.groups = groups;
	server->config.n_groups = n_groups;
	set_deadline(server);
}

int vmm_server_new(uv_loop_t *loop, const struct vmm_server_config *config, struct vmm_server **ret,
                   struct error *err)
{
	struct vmm_server *server = calloc(1, sizeof *server);

	if (!server || uv_poll_init(loop, &server->poll, config->fd)) {
		free(server);
		close(config->fd);
		return error_set(err, -ENOMEM, "VMM socket: out of memory");
	}
	server->config = *config;
	server->config.limits = with_defaults(config->limits);
	server->spare_fd = -1;
	keep_spare(server);
	uv_timer_init(loop, &server->deadline);
	uv_prepare_init(loop, &server->turn);
	server->n_handles = 3;
	server->poll.data = server->deadline.data = server->turn.data = server;
	uv_prepare_start(&server->turn, on_turn);
	uv_poll_start(&server->poll, UV_READABLE, on_connection);
	*ret = server;
	return 0;
}

static void on_server_closed(uv_handle_t *handle)
{
	struct vmm_server *server = handle->data;

	if (--server->n_handles)
		return;
	close_fd(&server->config.fd);
	close_fd(&server->spare_fd);
	free(server);
}

void vmm_server_close(struct vmm_server *server)
{
	if (!server)
		return;
	for (struct vmm_conn *c = server->conns, *next; c; c = next) {
		next = c->next;
		c->owner = NULL;
		close_conn(c);
	}
	uv_poll_stop(&server->poll);
	uv_close((uv_handle_t *)&server->poll, on_server_closed);
	uv_close((uv_handle_t *)&server->deadline, on_server_closed);
	uv_close((uv_handle_t *)&server->turn, on_server_closed);
}
