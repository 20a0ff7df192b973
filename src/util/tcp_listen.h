/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening on a TCP address, which may be a name with several: of both families, of several links.
 * Who dials takes any of them (util/tcp_dial.h), so all are listened on, by one port. What is no
 * address of this host, or of a family that it has not, is told and passed over; an address that
 * somebody else has fails all of it: half of our callers would be answered by them.
 */
#ifndef UTIL_TCP_LISTEN_H
#define UTIL_TCP_LISTEN_H

#include <stddef.h>

#include "util/error.h"

#define TCP_LISTEN_MAX 8u

/* "[v6 with its scope]:port". */
#define TCP_ADDRESS_MAX 80

struct tcp_listening {
	unsigned int n;
	int fds[TCP_LISTEN_MAX]; /* that listen and do not block; no two on one address */
};

/*
 * tcp_listen() - listen on all addresses of a name
 * @host, @port: as getaddrinfo() takes them; port 0: one that is free on all of them
 * @what: for messages, "page stream address"
 * @ret: one at least; what is more than TCP_LISTEN_MAX is told
 *
 * Return: 0, or -errno with @err set.
 */
int tcp_listen(const char *host, const char *port, const char *what, struct tcp_listening *ret,
               struct error *err);

/* The same for "host:port", "[v6]:port". */
int tcp_listen_at(const char *address, const char *what, struct tcp_listening *ret,
                  struct error *err);

void tcp_listening_close(struct tcp_listening *l);

/* All of them in words: "192.0.2.1:7777, [2001:db8::1]:7777". */
void tcp_listening_print(const struct tcp_listening *l, char *buf, size_t size);

/* Where a socket listens, in digits; empty where it is no TCP socket. */
void tcp_address_print(int fd, char buf[TCP_ADDRESS_MAX]);

/* The port that a listening socket has; 0 where it is no TCP socket. */
unsigned int tcp_port(int fd);

#endif
