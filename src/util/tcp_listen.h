/* SPDX-License-Identifier: Apache-2.0 */
/* Listening on a TCP address. */
#ifndef UTIL_TCP_LISTEN_H
#define UTIL_TCP_LISTEN_H

#include "util/error.h"

/*
 * tcp_listen() - a listening, non-blocking socket
 * @host, @port: as getaddrinfo() takes them; port 0: any that is free
 * @what: for messages, "page stream address"
 * @ret_port: the port that it has
 *
 * Return: the descriptor, or -errno with @err set.
 */
int tcp_listen(const char *host, const char *port, const char *what, unsigned int *ret_port,
               struct error *err);

/* The same for "host:port", "[v6]:port". */
int tcp_listen_at(const char *address, const char *what, unsigned int *ret_port, struct error *err);

/* The port that a listening socket has; 0 where it is no TCP socket. */
unsigned int tcp_port(int fd);

#endif
