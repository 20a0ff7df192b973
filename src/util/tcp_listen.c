/* SPDX-License-Identifier: Apache-2.0 */
#include "util/tcp_listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"

#define LISTEN_BACKLOG 128

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

int tcp_listen(const char *host, const char *port, const char *what, unsigned int *ret_port,
               struct error *err)
{
	_cleanup_(freeaddrinfo_p) struct addrinfo *list = NULL;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	_cleanup_close_ int fd = -1;
	int rc = getaddrinfo(host, port, &hints, &list);

	/* Of a larger number getaddrinfo() takes what is left in 16 bits. */
	if (!rc && strtoul(port, NULL, 10) > UINT16_MAX)
		rc = EAI_SERVICE;
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
	*ret_port = tcp_port(fd);
	return steal_fd(&fd);
}

int tcp_listen_at(const char *address, const char *what, unsigned int *ret_port, struct error *err)
{
	_cleanup_free_ char *text = strdup(address);
	char *colon = text ? strrchr(text, ':') : NULL, *host = text;
	size_t len = colon ? (size_t)(colon - text) : 0;

	if (!text)
		return error_set(err, -ENOMEM, "%s \"%s\": out of memory", what, address);
	if (len && text[0] == '[' && text[len - 1] == ']') {
		text[len - 1] = 0;
		host++;
	}
	/* Of a larger number getaddrinfo() takes what is left in 16 bits. */
	if (!len || !colon[1] || !*host || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
	    strtoul(colon + 1, NULL, 10) > UINT16_MAX)
		return error_set(err, -EINVAL, "%s \"%s\": not HOST:PORT with a port of 0..65535",
		                 what, address);
	*colon = 0;
	return tcp_listen(host, colon + 1, what, ret_port, err);
}

unsigned int tcp_port(int fd)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} bound;
	socklen_t len = sizeof bound;

	if (getsockname(fd, &bound.any, &len))
		return 0;
	if (bound.any.sa_family == AF_INET)
		return ntohs(bound.v4.sin_port);
	return bound.any.sa_family == AF_INET6 ? ntohs(bound.v6.sin6_port) : 0;
}
