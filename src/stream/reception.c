/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/reception.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/refused.h"

/* Takes the stranger out of the table. Return: its connection. */
static struct conn *take_out(struct reception *r, unsigned int i)
{
	struct conn *c = r->strangers[i].c;

	memmove(&r->strangers[i], &r->strangers[i + 1], (r->n - i - 1) * sizeof *r->strangers);
	r->n--;
	return c;
}

static void turn_away(struct reception *r, unsigned int i, enum refused_reason reason,
                      const char *why)
{
	refused(REFUSED_AT_PAGES, reason, r->strangers[i].peer, "%s", why);
	conn_free(take_out(r, i));
}

static unsigned int count_same(const struct reception *r, unsigned int i)
{
	unsigned int n = 0;

	for (unsigned int j = 0; j < r->n; j++)
		n += !memcmp(&r->strangers[j].address, &r->strangers[i].address,
		             sizeof r->strangers[j].address);
	return n;
}

/* The oldest of the address that has most. */
static void make_room(struct reception *r)
{
	unsigned int victim = 0, most = 0;

	for (unsigned int i = 0; i < r->n; i++) {
		unsigned int n = count_same(r, i);

		if (n > most) {
			most = n;
			victim = i;
		}
	}
	turn_away(r, victim, REFUSED_LIMIT, "too many connections that have not said who they are");
}

/* IPv4 as IPv6 writes it. */
static struct in6_addr address_of(const struct sockaddr_storage *addr)
{
	struct in6_addr a = { 0 };

	if (addr->ss_family == AF_INET6)
		return ((const struct sockaddr_in6 *)addr)->sin6_addr;
	a.s6_addr[10] = a.s6_addr[11] = 0xff;
	memcpy(&a.s6_addr[12], &((const struct sockaddr_in *)addr)->sin_addr, 4);
	return a;
}

static void name_peer(int fd, struct stranger *s)
{
	struct sockaddr_storage addr = { 0 };
	socklen_t len = sizeof addr;
	char host[48], port[8];

	if (getpeername(fd, (struct sockaddr *)&addr, &len) ||
	    getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
	                NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(s->peer, sizeof s->peer, "(gone)");
	else
		snprintf(s->peer, sizeof s->peer, "%s port %s", host, port);
	s->address = address_of(&addr);
}

void reception_add(struct reception *r, int fd)
{
	struct stranger s = {
		.deadline_ns = clock_now_ns() + CONN_OPEN_TIMEOUT_MS * NSEC_PER_MSEC,
		.events = POLLIN,
	};
	struct error err = ERROR_INIT;

	name_peer(fd, &s);
	if (conn_accept_begin(fd, r->tls, &s.c, &err)) {
		refused(REFUSED_AT_PAGES, REFUSED_RESOURCES, s.peer, "%s", err.text);
		close(fd);
		return;
	}
	if (r->n == STRANGERS_MAX)
		make_room(r);
	r->strangers[r->n++] = s;
}

unsigned int reception_prepare(const struct reception *r, struct pollfd *fds, int *timeout_ms)
{
	uint64_t now_ns = clock_now_ns();

	for (unsigned int i = 0; i < r->n; i++)
		fds[i] = (struct pollfd){ .fd = r->strangers[i].c->fd,
			                  .events = r->strangers[i].events };
	/* All have the same time: the oldest's is over first. */
	if (r->n) {
		uint64_t until_ns = r->strangers[0].deadline_ns;

		*timeout_ms =
		        until_ns > now_ns ? (int)((until_ns - now_ns) / NSEC_PER_MSEC) + 1 : 0;
	}
	return r->n;
}

/* Return: whether it has left the table. */
static bool step(struct reception *r, unsigned int i)
{
	struct stranger *s = &r->strangers[i];
	struct error err = ERROR_INIT;
	char peer[sizeof s->peer];
	int rc = conn_accept_step(s->c, &s->events, &r->hello, &err);

	if (rc == -EAGAIN)
		return false;
	if (rc) {
		turn_away(r, i, rc == -EACCES ? REFUSED_CERTIFICATE : REFUSED_PROTOCOL, err.text);
		return true;
	}
	memcpy(peer, s->peer, sizeof peer);
	r->admit(r->arg, take_out(r, i), &r->hello, peer);
	return true;
}

void reception_serve(struct reception *r, const struct pollfd *fds, unsigned int n)
{
	uint64_t now_ns = clock_now_ns();

	/* From the newest on: those before keep their places. */
	while (n--) {
		if (fds[n].revents && step(r, n))
			continue;
		if (now_ns >= r->strangers[n].deadline_ns)
			turn_away(r, n, REFUSED_DEADLINE,
			          r->strangers[n].c->greeted ? "no HELLO in time"
			                                     : "TLS handshake: the peer is silent");
	}
}

void reception_close(struct reception *r)
{
	while (r->n)
		conn_free(take_out(r, r->n - 1));
}
