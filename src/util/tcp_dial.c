/* SPDX-License-Identifier: Apache-2.0 */
#include "util/tcp_dial.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/error.h"

/* RFC 8305, "Connection Attempt Delay". */
#define NEXT_AFTER_NS (250 * NSEC_PER_MSEC)
#define WINNERS_MAX 64

/* Names and the address that won. The oldest makes room. */
static struct {
	pthread_mutex_t lock;
	unsigned int next;
	struct winner {
		char host[256];
		char port[16];
		struct sockaddr_storage address; /* of family 0: none */
	} of[WINNERS_MAX];
} winners = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Under the lock. */
static struct winner *find_winner(const char *host, const char *port)
{
	for (size_t i = 0; i < WINNERS_MAX; i++)
		if (winners.of[i].address.ss_family && !strcmp(winners.of[i].host, host) &&
		    !strcmp(winners.of[i].port, port))
			return &winners.of[i];
	return NULL;
}

static void remember(const char *host, const char *port, const struct addrinfo *ai)
{
	struct winner *w;

	if (strlen(host) >= sizeof w->host || strlen(port) >= sizeof w->port ||
	    ai->ai_addrlen > sizeof w->address)
		return;
	pthread_mutex_lock(&winners.lock);
	w = find_winner(host, port);
	if (!w)
		w = &winners.of[winners.next++ % WINNERS_MAX];
	*w = (struct winner){ 0 };
	strcpy(w->host, host);
	strcpy(w->port, port);
	memcpy(&w->address, ai->ai_addr, ai->ai_addrlen);
	pthread_mutex_unlock(&winners.lock);
}

static bool has_won(const char *host, const char *port, const struct addrinfo *ai)
{
	const struct winner *w;
	bool won;

	pthread_mutex_lock(&winners.lock);
	w = find_winner(host, port);
	won = w && ai->ai_addrlen <= sizeof w->address &&
	      !memcmp(&w->address, ai->ai_addr, ai->ai_addrlen);
	pthread_mutex_unlock(&winners.lock);
	return won;
}

size_t tcp_dial_order(const char *host, const char *port, const struct addrinfo *list,
                      const struct addrinfo *ret[TCP_DIAL_MAX])
{
	const struct addrinfo *winner = NULL, *same = list, *other = list;
	size_t n = 0;

	for (const struct addrinfo *ai = list; ai && !winner; ai = ai->ai_next)
		winner = has_won(host, port, ai) ? ai : NULL;
	if (winner)
		ret[n++] = winner;
	/* Two walks through the list, one for the family that it begins with, taking turns. */
	while (n < TCP_DIAL_MAX && (same || other)) {
		while (same && (same == winner || same->ai_family != list->ai_family))
			same = same->ai_next;
		if (same) {
			ret[n++] = same;
			same = same->ai_next;
		}
		while (other && (other == winner || other->ai_family == list->ai_family))
			other = other->ai_next;
		if (other && n < TCP_DIAL_MAX) {
			ret[n++] = other;
			other = other->ai_next;
		}
	}
	return n;
}

struct race {
	const struct addrinfo *addresses[TCP_DIAL_MAX];
	size_t n, begun;
	int fds[TCP_DIAL_MAX];   /* being connected; -1: not, or failed */
	int codes[TCP_DIAL_MAX]; /* errno of what has failed; 0: not known */
};

static void race_close(struct race *r)
{
	for (size_t i = 0; i < r->begun; i++)
		if (r->fds[i] >= 0)
			close(r->fds[i]);
}

/* Return: whether it is open already. */
static bool begin_next(struct race *r)
{
	size_t i = r->begun++;
	const struct addrinfo *ai = r->addresses[i];
	_cleanup_close_ int fd =
	        socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);
	bool open;

	r->fds[i] = -1;
	open = fd >= 0 && !connect(fd, ai->ai_addr, ai->ai_addrlen);
	if (!open && (fd < 0 || errno != EINPROGRESS)) {
		r->codes[i] = errno;
		return false;
	}
	r->fds[i] = steal_fd(&fd);
	return open;
}

/* What became of a connect() that has ended. Return: whether it is open. */
static bool look_at(struct race *r, size_t i)
{
	socklen_t len = sizeof r->codes[i];

	if (getsockopt(r->fds[i], SOL_SOCKET, SO_ERROR, &r->codes[i], &len))
		r->codes[i] = errno;
	if (!r->codes[i])
		return true;
	close(r->fds[i]);
	r->fds[i] = -1;
	return false;
}

static size_t n_going_on(const struct race *r)
{
	size_t n = 0;

	for (size_t i = 0; i < r->begun; i++)
		n += r->fds[i] >= 0;
	return n;
}

/* Until @until_ns or something happens. Return: 0 or -ECANCELED, -errno. */
static int wait_for_any(struct race *r, int cancel_fd, uint64_t until_ns, size_t *ret_open)
{
	struct pollfd fds[TCP_DIAL_MAX + 1];
	uint64_t now_ns = clock_now_ns();
	int ms = now_ns < until_ns ? (int)((until_ns - now_ns) / NSEC_PER_MSEC) + 1 : 0;

	for (size_t i = 0; i < r->begun; i++)
		fds[i] = (struct pollfd){ .fd = r->fds[i], .events = POLLOUT };
	fds[r->begun] = (struct pollfd){ .fd = cancel_fd, .events = POLLIN };
	if (poll(fds, r->begun + 1, ms) < 0)
		return errno == EINTR ? 0 : -errno;
	if (fds[r->begun].revents)
		return -ECANCELED;
	for (size_t i = 0; i < r->begun && *ret_open == SIZE_MAX; i++)
		if (fds[i].revents && look_at(r, i))
			*ret_open = i;
	return 0;
}

/* What another try may mend comes first: what is ours, then silence, then what the network says. */
static int hope(int code)
{
	switch (code) {
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
	case EADDRNOTAVAIL:
		return 5;
	case 0:
	case ETIMEDOUT:
		return 4;
	case ECONNREFUSED:
	case ECONNRESET:
		return 3;
	case EHOSTUNREACH:
	case EHOSTDOWN:
		return 2;
	case ENETUNREACH:
	case ENETDOWN:
		return 1;
	default: /* a route of type prohibit, an address that is none */
		return 0;
	}
}

static int verdict(const struct race *r, struct tcp_dial_why *ret_why)
{
	size_t used = 0;
	int best = r->codes[0];

	ret_why->text[0] = 0;
	for (size_t i = 0; i < r->begun; i++) {
		const struct addrinfo *ai = r->addresses[i];
		int code = r->codes[i] ? r->codes[i] : ETIMEDOUT;
		char host[64] = "?";

		best = hope(code) > hope(best) ? code : best;
		(void)!getnameinfo(ai->ai_addr, ai->ai_addrlen, host, sizeof host, NULL, 0,
		                   NI_NUMERICHOST);
		if (r->n > 1 && used < sizeof ret_why->text)
			used += (size_t)snprintf(ret_why->text + used, sizeof ret_why->text - used,
			                         "%s%s: %s", i ? "; " : "", host, strerror(code));
	}
	best = best ? best : ETIMEDOUT;
	if (r->n <= 1)
		snprintf(ret_why->text, sizeof ret_why->text, "%s", strerror(best));
	return -best;
}

int tcp_dial(const char *host, const char *port, const struct addrinfo *list, int cancel_fd,
             uint64_t deadline_ns, struct tcp_dial_why *ret_why)
{
	struct race r = { 0 };
	uint64_t next_ns = 0, now_ns;
	size_t open = SIZE_MAX;
	int rc = 0, fd;

	r.n = tcp_dial_order(host, port, list, r.addresses);
	while (!rc && open == SIZE_MAX && (now_ns = clock_now_ns()) < deadline_ns) {
		size_t going_on = n_going_on(&r);

		if (r.begun < r.n && (!going_on || now_ns >= next_ns)) {
			next_ns = now_ns + NEXT_AFTER_NS;
			open = begin_next(&r) ? r.begun - 1 : SIZE_MAX;
			continue;
		}
		if (!going_on)
			break;
		rc = wait_for_any(&r, cancel_fd,
		                  r.begun < r.n && next_ns < deadline_ns ? next_ns : deadline_ns,
		                  &open);
	}
	if (open != SIZE_MAX) {
		remember(host, port, r.addresses[open]);
		fd = r.fds[open];
		r.fds[open] = -1;
		race_close(&r);
		return fd;
	}
	race_close(&r);
	if (!rc)
		return verdict(&r, ret_why);
	snprintf(ret_why->text, sizeof ret_why->text, "%s", strerror(-rc));
	return rc;
}
