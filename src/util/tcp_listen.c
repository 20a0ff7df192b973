/* SPDX-License-Identifier: Apache-2.0 */
#include "util/tcp_listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "util/cleanup.h"

#define LISTEN_BACKLOG 128

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

int tcp_listen(const char *host, const char *port, const char *what, unsigned int *ret_port,
               struct error *err)
{
	_cleanup_(freeaddrinfo_p) struct addrinfo *list = NULL;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct sockaddr_storage bound;
	socklen_t bound_len = sizeof bound;
	_cleanup_close_ int fd = -1;
	char service[16];
	int rc = getaddrinfo(host, port, &hints, &list);

	if (rc)
		return error_set(err, -EINVAL, "%s \"%s:%s\": %s", what, host, port,
		                 gai_strerror(rc));
	fd = socket(list->ai_family, list->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
	            list->ai_protocol);
	if (fd < 0)
		return error_errno(err, -errno, "%s \"%s:%s\"", what, host, port);
	(void)!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	if (bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, LISTEN_BACKLOG))
		return error_errno(err, -errno, "%s \"%s:%s\"", what, host, port);
	if (getsockname(fd, (struct sockaddr *)&bound, &bound_len) ||
	    getnameinfo((struct sockaddr *)&bound, bound_len, NULL, 0, service, sizeof service,
	                NI_NUMERICSERV))
		return error_set(err, -EINVAL, "%s \"%s:%s\": no port", what, host, port);
	*ret_port = (unsigned int)strtoul(service, NULL, 10);
	return steal_fd(&fd);
}
