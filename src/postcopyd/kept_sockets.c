/* SPDX-License-Identifier: Apache-2.0 */
#include "postcopyd/kept_sockets.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "stream/target.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/thread.h"

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct comparison {
	const char *key;
	struct conn_target configured;
	unsigned int n;
	union address kept[TCP_LISTEN_MAX];
	char text[TCP_LISTEN_MAX * TCP_ADDRESS_MAX]; /* of these */
};

/* Port 0 of a configuration is any. */
static bool is_same_port(const union address *a, const union address *configured)
{
	in_port_t port = configured->any.sa_family == AF_INET ? configured->v4.sin_port
	                                                      : configured->v6.sin6_port;

	return !port || port == (a->any.sa_family == AF_INET ? a->v4.sin_port : a->v6.sin6_port);
}

static bool is_same(const union address *a, const union address *configured)
{
	if (a->any.sa_family != configured->any.sa_family || !is_same_port(a, configured))
		return false;
	if (a->any.sa_family == AF_INET)
		return a->v4.sin_addr.s_addr == configured->v4.sin_addr.s_addr;
	return IN6_ARE_ADDR_EQUAL(&a->v6.sin6_addr, &configured->v6.sin6_addr);
}

/* [::] takes IPv4 as well, but where the host is told otherwise. */
static bool covers(const union address *a, const union address *configured)
{
	if (is_same(a, configured))
		return true;
	if (!is_same_port(a, configured))
		return false;
	if (a->any.sa_family == AF_INET)
		return configured->any.sa_family == AF_INET &&
		       a->v4.sin_addr.s_addr == htonl(INADDR_ANY);
	return IN6_IS_ADDR_UNSPECIFIED(&a->v6.sin6_addr);
}

/* Others of a name are passed over where it is listened on, too (util/tcp_listen.h). */
static bool is_of_this_host(const struct addrinfo *ai)
{
	_cleanup_close_ int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	union address any_port = { 0 };

	if (fd < 0 || ai->ai_addrlen > sizeof any_port)
		return false;
	memcpy(&any_port, ai->ai_addr, ai->ai_addrlen);
	if (ai->ai_family == AF_INET)
		any_port.v4.sin_port = 0;
	else
		any_port.v6.sin6_port = 0;
	return !bind(fd, &any_port.any, ai->ai_addrlen);
}

/* Whether all of @list is listened on, and nothing else. */
static bool fits(const struct comparison *c, const struct addrinfo *list)
{
	bool known[TCP_LISTEN_MAX] = { false };

	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		const union address *configured = (const void *)ai->ai_addr;
		bool covered = false;

		for (unsigned int i = 0; i < c->n; i++) {
			known[i] = known[i] || is_same(&c->kept[i], configured);
			covered = covered || covers(&c->kept[i], configured);
		}
		if (!covered && is_of_this_host(ai))
			return false;
	}
	for (unsigned int i = 0; i < c->n; i++)
		if (!known[i])
			return false;
	return true;
}

static void print(const struct addrinfo *list, char *buf, size_t size)
{
	char host[NI_MAXHOST];
	size_t used = 0;

	*buf = 0;
	for (const struct addrinfo *ai = list; ai && used < size; ai = ai->ai_next)
		if (!getnameinfo(ai->ai_addr, ai->ai_addrlen, host, sizeof host, NULL, 0,
		                 NI_NUMERICHOST) &&
		    is_of_this_host(ai))
			used += (size_t)snprintf(buf + used, size - used, "%s%s", used ? ", " : "",
			                         host);
}

static void *compare_main(void *arg)
{
	_cleanup_(freeaddrinfo_p) struct addrinfo *list = NULL;
	_cleanup_free_ struct comparison *c = arg;
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE };
	char now[TCP_LISTEN_MAX * TCP_ADDRESS_MAX];

	thread_set_name("sockets");
	/* A name that nobody knows for the moment says nothing. */
	if (getaddrinfo(c->configured.host, c->configured.port, &hints, &list) || fits(c, list))
		return NULL;
	print(list, now, sizeof now);
	log_warning("%s \"%s:%s\" is %s here, but what is listened on are the service manager's "
	            "sockets: %s. A restart keeps them; STOPPING in postcopyd(8) says how to have "
	            "others",
	            c->key, c->configured.host, c->configured.port, *now ? now : "no address",
	            c->text);
	return NULL;
}

void kept_sockets_compare(const struct tcp_listening *l, const char *key, const char *configured)
{
	struct comparison *c = calloc(1, sizeof *c);

	if (!c || conn_target_parse(configured, &c->configured, NULL)) {
		free(c);
		return;
	}
	c->key = key;
	for (c->n = 0; c->n < l->n; c->n++) {
		socklen_t len = sizeof c->kept[c->n];

		(void)getsockname(l->fds[c->n], &c->kept[c->n].any, &len);
	}
	tcp_listening_print(l, c->text, sizeof c->text);
	if (thread_start_detached(compare_main, c))
		free(c);
}
