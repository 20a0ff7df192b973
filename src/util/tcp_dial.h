/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP connection to whichever of a name's addresses answers first.
 *
 * Theory of operation
 * -------------------
 * A name may have several addresses, of which some lead nowhere. They are tried as browsers do it
 * (RFC 8305): in the resolver's order, the families taking turns, the next one begun when one has
 * failed or has not answered within 250 ms, all of them going on meanwhile; the first that is open
 * wins. The address that won for a name is remembered, process-wide, and tried first from then on:
 * so of a migration's many connections the first alone pays for an address that is dead.
 *
 * Threads: any.
 */
#ifndef UTIL_TCP_DIAL_H
#define UTIL_TCP_DIAL_H

#include <netdb.h>
#include <stddef.h>
#include <stdint.h>

#define TCP_DIAL_MAX 16 /* addresses of one name that are tried */

/* What became of each address, as a text; of one address alone nothing but its failure. */
struct tcp_dial_why {
	char text[200];
};

/*
 * tcp_dial() - connect
 * @host, @port: by which the winner is remembered
 * @list: their addresses
 * @cancel_fd: readable: give up; -1: none
 *
 * Return: a socket that does not block; -ECANCELED; or, where no address could be connected to, the
 * failure that another try is likeliest to mend, with @ret_why written.
 */
int tcp_dial(const char *host, const char *port, const struct addrinfo *list, int cancel_fd,
             uint64_t deadline_ns, struct tcp_dial_why *ret_why);

/* The order they are tried in. Return: how many. */
size_t tcp_dial_order(const char *host, const char *port, const struct addrinfo *list,
                      const struct addrinfo *ret[TCP_DIAL_MAX]);

#endif
