/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm_server.h"

#include <errno.h>
#include <sys/socket.h>

#include "mem/descriptor.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/peer.h"

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
	struct vmm_server_config config;
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
		server->config.ops->closed(owner);
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

static int handle_attach(struct vmm_conn *conn, const struct vmm_wire_msg *msg, int *fds,
                         size_t n_fds, struct error *err)
{
	struct vmm_server *server = conn->server;
	struct vmm_attach attach = { .msg = msg, .fds = fds, .n_fds = n_fds, .vmm = conn->pid };
	void *owner;
	int rc;

	if (msg->type != VMM_WIRE_ATTACH)
		return error_set(err, -EPROTO, "the first message must be ATTACH");
	rc = server->config.ops->attach(server->config.arg, conn, &attach, &owner, err);
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
	return conn->server->config.ops->message(conn->owner, msg, n_fds ? &fds[0] : &none, err);
}

/* One message. Return: 0; -EAGAIN where there is none; or why the VMM is to be cut off. */
static int read_message(struct vmm_conn *conn, struct error *err)
{
	int fds[VMM_WIRE_FDS_MAX];
	struct vmm_wire_msg msg;
	size_t n_fds = 0;
	int rc = vmm_wire_recv_from(conn->fd, MSG_DONTWAIT, &msg, fds, &n_fds, descriptor_discard,
	                            err);

	if (!rc)
		rc = handle_message(conn, &msg, fds, n_fds, err);
	for (size_t i = 0; i < n_fds; i++)
		descriptor_discard(&fds[i]);
	return rc;
}

/* libuv reports a hang-up with an error once, and then no more: all that was said is read here. */
static int read_last_messages(struct vmm_conn *conn, struct error *err)
{
	int rc;

	do
		rc = read_message(conn, err);
	while (!rc);
	return rc == -EAGAIN ? -EPIPE : rc;
}

/* @rc is why nothing more is read from it. */
static void cut_off(struct vmm_conn *conn, int rc, struct error *err)
{
	if (rc != -EPIPE) {
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
	if (rc != -EAGAIN)
		cut_off(conn, rc, &err);
}

/* Takes over @fd in any case. Return: NULL where there is no room for it. */
static struct vmm_conn *add_conn(struct vmm_server *server, int fd)
{
	struct vmm_conn *conn = server->n_conns < VMM_CONNS_MAX ? calloc(1, sizeof *conn) : NULL;
	struct ucred cred = { 0 };

	(void)peer_credentials(fd, &cred);
	if (!conn || uv_poll_init(server->poll.loop, &conn->poll, fd)) {
		log_warning("VMM (pid %d) refused: %u are connected", (int)cred.pid,
		            server->n_conns);
		free(conn);
		close(fd);
		return NULL;
	}
	conn->server = server;
	conn->fd = fd;
	conn->pid = cred.pid;
	conn->poll.data = conn;
	conn->next = server->conns;
	server->conns = conn;
	server->n_conns++;
	uv_poll_start(&conn->poll, UV_READABLE | UV_DISCONNECT, on_readable);
	return conn;
}

/* Return: 0; -EACCES, with @err for the one who is turned away. */
static int check_peer(const struct vmm_server *server, int fd, struct error *err)
{
	struct ucred cred;
	int rc = peer_credentials(fd, &cred);

	if (rc)
		return error_errno(err, rc, "credentials");
	if (peer_is_allowed(fd, &cred, server->config.groups, server->config.n_groups))
		return 0;
	log_warning("VMM (pid %d) refused: uid %u, gid %u may not connect", (int)cred.pid, cred.uid,
	            cred.gid);
	return error_set(err, -EACCES,
	                 "this user may not connect: it is in none of the allowed groups");
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct vmm_server *server = poll->data;
	struct error err = ERROR_INIT;
	int fd;

	(void)events;
	fd = status < 0 ? -1 : accept4(server->config.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0 && check_peer(server, fd, &err)) {
		send_error(fd, &err);
		/* What is closed with something unread is reset, and that is told before the rest.
		 */
		while (recv(fd, NULL, 0, MSG_DONTWAIT | MSG_TRUNC) > 0)
			;
		close(fd);
	} else if (fd >= 0) {
		add_conn(server, fd);
	}
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
	server->poll.data = server;
	uv_poll_start(&server->poll, UV_READABLE, on_connection);
	*ret = server;
	return 0;
}

static void on_server_closed(uv_handle_t *handle)
{
	struct vmm_server *server = handle->data;

	close_fd(&server->config.fd);
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
