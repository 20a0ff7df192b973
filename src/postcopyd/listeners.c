/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

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

int listener_tcp(struct fd_store *store)
{
	int fd = fd_store_get(store, "control-tcp");

	if (fd >= 0)
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

void listener_address(int fd, const char *configured, char *ret, size_t size)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	char host[NI_MAXHOST], port[NI_MAXSERV];
	const char *colon = configured ? strrchr(configured, ':') : NULL;

	*ret = 0;
	if (getsockname(fd, (struct sockaddr *)&addr, &len) ||
	    getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
	                NI_NUMERICHOST | NI_NUMERICSERV))
		return;
	if (colon)
		snprintf(ret, size, "%.*s:%s", (int)(colon - configured), configured, port);
	else
		snprintf(ret, size, addr.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

void listener_open_up(const char *path, const char *key)
{
	struct stat st;

	if (chmod(path, OPEN_MODE) && !stat(path, &st) && (st.st_mode & OPEN_MODE) != OPEN_MODE)
		log_warning("%s: \"%s\" has mode %03o and is not ours to change; set "
		            "SocketMode=0666 in its socket unit",
		            key, path, (unsigned int)st.st_mode & 0777u);
}

int listener_pages(struct fd_store *store, const char *address, int *ret_fd, struct error *err)
{
	int fd = fd_store_get(store, "pages");

	if (fd < 0 && fd != -ENOENT)
		return error_errno(err, fd, "the service manager's socket for page streams");
	if (fd < 0 && address) {
		fd = page_server_listen(address, err);
		if (fd < 0)
			return fd;
		(void)fd_store_add(store, "pages", fd);
	}
	*ret_fd = fd;
	return 0;
}
