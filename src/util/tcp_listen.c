/* SPDX-License-Identifier: Apache-2.0 */
#include "util/tcp_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/log.h"

#define LISTEN_BACKLOG 128

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

static bool is_loopback(const struct sockaddr *a)
{
	const struct sockaddr_in *v4 = (const void *)a;
	const struct sockaddr_in6 *v6 = (const void *)a;

	if (a->sa_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

/* A name may stand for something else than its author thinks: Debian's own is 127.0.1.1. */
static void say_where(const char *host, const char *port, const char *what,
                      const struct addrinfo *list)
{
	char digits[INET6_ADDRSTRLEN] = "?";

	(void)!getnameinfo(list->ai_addr, list->ai_addrlen, digits, sizeof digits, NULL, 0,
	                   NI_NUMERICHOST);
	if (!strcmp(host, digits) || !strcmp(host, "localhost"))
		return;
	if (is_loopback(list->ai_addr))
		log_warning("%s \"%s:%s\": the name is %s here, which no other host reaches: "
		            "name an address, or [::] for all",
		            what, host, port, digits);
	else if (list->ai_next)
		log_warning("%s \"%s:%s\": the name has several addresses, and it is %s alone that "
		            "is listened on: name one, or [::] for all",
		            what, host, port, digits);
	else
		log_info("%s \"%s:%s\" is %s", what, host, port, digits);
}

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
	say_where(host, port, what, list);
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
