/* SPDX-License-Identifier: Apache-2.0 */
#include "util/tcp_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/log.h"

#define LISTEN_BACKLOG 128

#define ANY_PORT_TRIES 16u

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

static bool is_loopback(const struct sockaddr *a)
{
	const struct sockaddr_in *v4 = (const void *)a;
	const struct sockaddr_in6 *v6 = (const void *)a;

	if (a->sa_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static bool is_same_address(const struct addrinfo *a, const struct addrinfo *b)
{
	return a->ai_addrlen == b->ai_addrlen && !memcmp(a->ai_addr, b->ai_addr, a->ai_addrlen);
}

/* Whether the list has it before: "localhost" twice in a hosts file comes twice. */
static bool is_repeated(const struct addrinfo *list, const struct addrinfo *ai)
{
	while (list != ai && !is_same_address(list, ai))
		list = list->ai_next;
	return list != ai;
}

/* What no other host reaches can't be missed by one. */
static bool all_are_loopback(const struct addrinfo *list)
{
	while (list && is_loopback(list->ai_addr))
		list = list->ai_next;
	return !list;
}

static void print_host(const struct addrinfo *ai, char digits[NI_MAXHOST])
{
	if (getnameinfo(ai->ai_addr, ai->ai_addrlen, digits, NI_MAXHOST, NULL, 0, NI_NUMERICHOST))
		strcpy(digits, "?");
}

/* A name may stand for something else than its author thinks: Debian's own is 127.0.1.1. */
static void say_where(const char *host, const char *port, const char *what,
                      const struct tcp_listening *l)
{
	char digits[TCP_LISTEN_MAX * TCP_ADDRESS_MAX];
	struct sockaddr_storage a = { 0 };
	struct addrinfo numeric = { .ai_flags = AI_NUMERICHOST }, *list;
	socklen_t len;
	bool is_local = true;

	if (!strcmp(host, "localhost"))
		return;
	if (!getaddrinfo(host, NULL, &numeric, &list)) {
		freeaddrinfo(list);
		return;
	}
	for (unsigned int i = 0; i < l->n; i++) {
		len = sizeof a;
		is_local = is_local && !getsockname(l->fds[i], (struct sockaddr *)&a, &len) &&
		           is_loopback((struct sockaddr *)&a);
	}
	tcp_listening_print(l, digits, sizeof digits);
	if (is_local)
		log_warning("%s \"%s:%s\": the name is %s here, which no other host reaches: "
		            "name an address, or [::] for all",
		            what, host, port, digits);
	else
		log_info("%s \"%s:%s\" is %s", what, host, port, digits);
}

static void set_port(struct sockaddr *a, unsigned int port)
{
	if (a->sa_family == AF_INET)
		((struct sockaddr_in *)(void *)a)->sin_port = htons((uint16_t)port);
	else if (a->sa_family == AF_INET6)
		((struct sockaddr_in6 *)(void *)a)->sin6_port = htons((uint16_t)port);
}

/* Return: the socket, or -errno. */
static int listen_on(const struct addrinfo *ai)
{
	_cleanup_close_ int fd = socket(
	        ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);

	if (fd < 0)
		return -errno;
	(void)!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, LISTEN_BACKLOG))
		return -errno;
	return steal_fd(&fd);
}

static bool is_not_ours(int rc)
{
	return rc == -EADDRNOTAVAIL || rc == -EAFNOSUPPORT;
}

struct attempt {
	const char *host, *port, *what;
	bool any_port; /* it is the first socket's */
};

/* Return: 0; -errno with @err set and the sockets that there are left open. */
static int listen_on_all(const struct attempt *a, struct addrinfo *list, struct tcp_listening *ret,
                         struct error *err)
{
	char digits[NI_MAXHOST];
	int fd = -EADDRNOTAVAIL;

	for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		if (is_repeated(list, ai))
			continue;
		print_host(ai, digits);
		if (ret->n == TCP_LISTEN_MAX) {
			if (!all_are_loopback(list))
				log_warning("%s \"%s:%s\": the name has more addresses than are "
				            "listened on: %s is none of those; name one, or [::] "
				            "for all",
				            a->what, a->host, a->port, digits);
			continue;
		}
		if (a->any_port && ret->n)
			set_port(ai->ai_addr, tcp_port(ret->fds[0]));
		fd = listen_on(ai);
		if (fd >= 0)
			ret->fds[ret->n++] = fd;
		else if (is_not_ours(fd) && list->ai_next)
			log_warning("%s \"%s:%s\": %s is not listened on: %s", a->what, a->host,
			            a->port, digits, strerror(-fd));
		else
			return error_errno(err, fd, "%s \"%s:%s\"%s%s", a->what, a->host, a->port,
			                   list->ai_next ? ", which is " : "",
			                   list->ai_next ? digits : "");
	}
	return ret->n ? 0 : error_errno(err, fd, "%s \"%s:%s\"", a->what, a->host, a->port);
}

int tcp_listen(const char *host, const char *port, const char *what, struct tcp_listening *ret,
               struct error *err)
{
	_cleanup_(freeaddrinfo_p) struct addrinfo *list = NULL;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	struct attempt attempt = { host, port, what, !strtoul(port, NULL, 10) };
	struct tcp_listening made;
	int rc = getaddrinfo(host, port, &hints, &list);

	/* Of a larger number getaddrinfo() takes what is left in 16 bits. */
	if (!rc && strtoul(port, NULL, 10) > UINT16_MAX)
		rc = EAI_SERVICE;
	if (rc)
		return error_set(err, -EINVAL, "%s \"%s:%s\": %s", what, host, port,
		                 gai_strerror(rc));
	/* A port that is free on the first address may be taken on the next. */
	for (unsigned int i = 0; i < ANY_PORT_TRIES; i++) {
		made.n = 0;
		if (attempt.any_port)
			set_port(list->ai_addr, 0);
		rc = listen_on_all(&attempt, list, &made, err);
		if (!rc)
			break;
		tcp_listening_close(&made);
		if (rc != -EADDRINUSE || !attempt.any_port)
			break;
	}
	if (rc)
		return rc;
	say_where(host, port, what, &made);
	*ret = made;
	return 0;
}

int tcp_listen_at(const char *address, const char *what, struct tcp_listening *ret,
                  struct error *err)
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
	return tcp_listen(host, colon + 1, what, ret, err);
}

void tcp_listening_close(struct tcp_listening *l)
{
	while (l->n)
		close_fd(&l->fds[--l->n]);
}

void tcp_listening_print(const struct tcp_listening *l, char *buf, size_t size)
{
	char address[TCP_ADDRESS_MAX];
	size_t used = 0;

	*buf = 0;
	for (unsigned int i = 0; i < l->n && used < size; i++) {
		tcp_address_print(l->fds[i], address);
		used += (size_t)snprintf(buf + used, size - used, "%s%s", i ? ", " : "", address);
	}
}

void tcp_address_print(int fd, char buf[TCP_ADDRESS_MAX])
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof addr;
	char host[64], port[8];

	*buf = 0;
	if (getsockname(fd, (struct sockaddr *)&addr, &len) || addr.ss_family == AF_UNIX ||
	    getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
	                NI_NUMERICHOST | NI_NUMERICSERV))
		return;
	snprintf(buf, TCP_ADDRESS_MAX, addr.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
	         port);
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
