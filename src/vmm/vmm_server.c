/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm_server.h"

#include <errno.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/log.h"

struct vmm_conn {
	struct vmm_server *server;
	struct vmm_conn *next;
	uv_poll_t poll;
	int fd;
	pid_t pid;   /* of who connected, for the log */
	void *owner; /* NULL before ATTACH and after disown */
	bool attached;
};

struct vmm_server {
	uv_poll_t poll;
	int fd;
	const struct vmm_server_ops *ops;
	void *arg;
	struct vmm_conn *conns;
	unsigned int n_conns;
};

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
		server->ops->closed(owner);
}

pid_t vmm_conn_pid(const struct vmm_conn *conn)
{
	return conn->pid;
}

int vmm_conn_send(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int fd)
{
	return vmm_wire_send(conn->fd, msg, &fd, fd >= 0 ? 1 : 0);
}

int vmm_conn_send_type(struct vmm_conn *conn, enum vmm_wire_type type)
{
	return vmm_conn_send(conn, &(struct vmm_wire_msg){ .type = type }, -1);
}

void vmm_conn_send_error(struct vmm_conn *conn, const struct error *why)
{
	struct vmm_wire_msg msg = { .type = VMM_WIRE_ERROR };

	msg.code = (uint32_t)(why->code ? -why->code : EIO);
	snprintf(msg.text, sizeof msg.text, "%s", why->text);
	/* It may be gone; then its connection ends by itself. */
	(void)vmm_conn_send(conn, &msg, -1);
}

void vmm_conn_disown(struct vmm_conn *conn)
{
	conn->owner = NULL;
}

static int handle_attach(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                         size_t n_fds, struct error *err)
{
	struct vmm_server *server = conn->server;
	struct vmm_attach attach = { .msg = msg, .fds = fds, .n_fds = n_fds };
	void *owner;
	int rc;

	if (msg->type != VMM_WIRE_ATTACH)
		return error_set(err, -EPROTO, "the first message must be ATTACH");
	rc = server->ops->attach(server->arg, conn, &attach, &owner, err);
	if (rc)
		return rc;
	conn->owner = owner;
	conn->attached = true;
	return vmm_conn_send_type(conn, VMM_WIRE_ATTACHED);
}

static int handle_message(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                          size_t n_fds, struct error *err)
{
	int none = -1;

	if (!conn->attached)
		return handle_attach(conn, msg, fds, n_fds, err);
	if (msg->type == VMM_WIRE_ATTACH)
		return error_set(err, -EBUSY, "attached already");
	if (!conn->owner)
		return 0;
	return conn->server->ops->message(conn->owner, msg, n_fds ? &fds[0] : &none, err);
}

/* One message. Return: 0; -EAGAIN where there is none; or why the VMM is to be cut off. */
static int read_message(struct vmm_conn *conn, struct error *err)
{
	int fds[VMM_WIRE_FDS_MAX];
	struct vmm_wire_msg msg;
	size_t n_fds = 0;
	int rc = vmm_wire_recv(conn->fd, MSG_DONTWAIT, &msg, fds, &n_fds, err);

	if (!rc)
		rc = handle_message(conn, &msg, fds, n_fds, err);
	for (size_t i = 0; i < n_fds; i++)
		close_fd(&fds[i]);
	return rc;
}

/*
 * libuv reports a hang-up with an error once, and then no more; the socket reports that it was
 * reset before it gives what was said until then, LOADED perhaps. So all of it is read here.
 */
static int read_last_messages(struct vmm_conn *conn, struct error *err)
{
	bool reset = false;
	int rc;

	do {
		rc = read_message(conn, err);
		if (rc == -ECONNRESET && !reset) {
			reset = true;
			rc = 0;
		}
	} while (!rc);
	return rc == -EAGAIN ? -EPIPE : rc;
}

/* @rc is why nothing more is read from it. */
static void cut_off(struct vmm_conn *conn, int rc, struct error *err)
{
	if (rc != -EPIPE && rc != -ECONNRESET) {
		if (!err->code)
			error_errno(err, rc, "VMM socket");
		log_warning("VMM (pid %d) refused: %s", (int)conn->pid, err->text);
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
	rc = status < 0 ? read_last_messages(conn, &err) : read_message(conn, &err);
	if (rc == -ECONNRESET)
		rc = read_last_messages(conn, &err);
	if (rc && rc != -EAGAIN)
		cut_off(conn, rc, &err);
}

void vmm_conn_catch_up(struct vmm_conn *conn)
{
	struct error err = ERROR_INIT;
	int rc;

	do
		rc = read_message(conn, &err);
	while (!rc);
	if (rc == -ECONNRESET)
		rc = read_last_messages(conn, &err);
	if (rc != -EAGAIN)
		cut_off(conn, rc, &err);
}

static pid_t peer_pid(int fd)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof cred;

	(void)!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	return cred.pid;
}

/* Takes over @fd in any case. Return: NULL where there is no room for it. */
static struct vmm_conn *add_conn(struct vmm_server *server, int fd)
{
	struct vmm_conn *conn = server->n_conns < VMM_CONNS_MAX ? calloc(1, sizeof *conn) : NULL;

	if (!conn || uv_poll_init(server->poll.loop, &conn->poll, fd)) {
		log_warning("VMM (pid %d) refused: %u are connected", (int)peer_pid(fd),
		            server->n_conns);
		free(conn);
		close(fd);
		return NULL;
	}
	conn->server = server;
	conn->fd = fd;
	conn->pid = peer_pid(fd);
	conn->poll.data = conn;
	conn->next = server->conns;
	server->conns = conn;
	server->n_conns++;
	uv_poll_start(&conn->poll, UV_READABLE | UV_DISCONNECT, on_readable);
	return conn;
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct vmm_server *server = poll->data;
	int fd;

	(void)events;
	fd = status < 0 ? -1 : accept4(server->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		add_conn(server, fd);
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

int vmm_server_new(uv_loop_t *loop, int fd, const struct vmm_server_ops *ops, void *arg,
                   struct vmm_server **ret, struct error *err)
{
	struct vmm_server *server = calloc(1, sizeof *server);

	if (!server || uv_poll_init(loop, &server->poll, fd)) {
		free(server);
		close(fd);
		return error_set(err, -ENOMEM, "VMM socket: out of memory");
	}
	server->fd = fd;
	server->ops = ops;
	server->arg = arg;
	server->poll.data = server;
	uv_poll_start(&server->poll, UV_READABLE, on_connection);
	*ret = server;
	return 0;
}

static void on_server_closed(uv_handle_t *handle)
{
	struct vmm_server *server = handle->data;

	close_fd(&server->fd);
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
}
