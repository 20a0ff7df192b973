/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "postcopyd/kept_sockets.h"
#include "stream/page_server.h"
#include "util/log.h"
#include "util/unix_listen.h"

#define OPEN_MODE 0666

/* The manager's word counts: it made the socket, and clients know where. */
static void compare_path(int fd, const char *name, const char *path)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof addr - 1;

	if (!getsockname(fd, (struct sockaddr *)&addr, &len) && strcmp(addr.sun_path, path))
		log_warning("the %s socket comes from the service manager, at \"%s\" and not at "
		            "\"%s\"",
		            name, addr.sun_path, path);
}

int listener_unix(struct fd_store *store, const char *name, const char *path, int type,
                  struct error *err)
{
	int fd = fd_store_get(store, name);
	char what[32];

	if (fd >= 0) {
		compare_path(fd, name, path);
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
		return fd;
	}
	if (fd != -ENOENT)
		return error_errno(err, fd, "the service manager's %s socket", name);
	snprintf(what, sizeof what, "%s socket", name);
	fd = unix_listen(path, type, what, err);
	if (fd >= 0)
		(void)fd_store_add(store, name, fd);
	return fd;
}

/* As the store calls several of one name. */
static void nth_name(const char *name, unsigned int n, char ret[FD_STORE_NAME_BYTES])
{
	snprintf(ret, FD_STORE_NAME_BYTES, n ? "%s+%u" : "%s", name, n);
}

/* All of that name that the service manager has. */
static int take_sockets(struct fd_store *store, const char *name, struct tcp_listening *ret,
                        struct error *err)
{
	char nth[FD_STORE_NAME_BYTES];

	for (ret->n = 0; ret->n < TCP_LISTEN_MAX; ret->n++) {
		int fd;

		nth_name(name, ret->n, nth);
		fd = fd_store_get(store, nth);
		if (fd == -ENOENT)
			return 0;
		if (fd < 0) {
			tcp_listening_close(ret);
			return error_errno(err, fd, "the service manager's socket \"%s\"", nth);
		}
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
		ret->fds[ret->n] = fd;
	}
	nth_name(name, ret->n, nth);
	if (fd_store_entry(store, nth))
		log_warning("the service manager has more than %u sockets \"%s\": the others are "
		            "not served",
		            TCP_LISTEN_MAX, name);
	return 0;
}

int listener_tcp(struct fd_store *store, struct tcp_listening *ret, struct error *err)
{
	return take_sockets(store, "control-tcp", ret, err);
}

void listener_address(const struct tcp_listening *l, const char *configured, char *ret, size_t size)
{
	const char *colon = configured ? strrchr(configured, ':') : NULL;
	char address[TCP_ADDRESS_MAX];

	tcp_address_print(l->fds[0], address);
	if (colon)
		snprintf(ret, size, "%.*s:%u", (int)(colon - configured), configured,
		         tcp_port(l->fds[0]));
	else
		snprintf(ret, size, "%s", address);
}

void listener_open_up(const char *path, const char *key)
{
	struct stat st;

	if (chmod(path, OPEN_MODE) && !stat(path, &st) && (st.st_mode & OPEN_MODE) != OPEN_MODE)
		log_warning("%s: \"%s\" has mode %03o and is not ours to change; set "
		            "SocketMode=0666 in its socket unit",
		            key, path, (unsigned int)st.st_mode & 0777u);
}

int listener_pages(struct fd_store *store, const char *address, struct tcp_listening *ret,
                   struct error *err)
{
	char name[FD_STORE_NAME_BYTES];
	int rc = take_sockets(store, "pages", ret, err);

	if (!rc && ret->n && address)
		kept_sockets_compare(ret, "listen", address);
	if (rc || ret->n || !address)
		return rc;
	rc = page_server_listen(address, ret, err);
	for (unsigned int i = 0; !rc && i < ret->n; i++) {
		nth_name("pages", i, name);
		(void)fd_store_add(store, name, ret->fds[i]);
	}
	return rc;
}
