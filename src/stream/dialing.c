/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/dialing.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/tcp_dial.h"
#include "util/thread.h"

DEFINE_CLEANUP(struct addrinfo *, freeaddrinfo);

/* Shared by who asks and the thread that waits for name servers; under its lock. */
struct lookup {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int refs;
	bool interrupted; /* whoever waits is not to wait any longer */
	bool done;
	int rc; /* getaddrinfo()'s */
	struct addrinfo *list;
	struct conn_target target;
};

static struct lookup *lookup_unref(struct lookup *l)
{
	bool last;

	if (!l)
		return NULL;
	pthread_mutex_lock(&l->lock);
	last = !--l->refs;
	pthread_mutex_unlock(&l->lock);
	if (!last)
		return NULL;
	if (l->list)
		freeaddrinfo(l->list);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l);
	return NULL;
}

static int look_up(const struct conn_target *target, int flags, struct addrinfo **ret)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = flags };

	*ret = NULL;
	return getaddrinfo(target->host, target->port, &hints, ret);
}

static void *lookup_main(void *arg)
{
	struct lookup *l = arg;
	struct addrinfo *list;
	int rc;

	thread_set_name("lookup");
	rc = look_up(&l->target, AI_ADDRCONFIG, &list);
	pthread_mutex_lock(&l->lock);
	l->rc = rc;
	l->list = list;
	l->done = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	lookup_unref(l);
	return NULL;
}

static int lookup_new(const struct conn_target *target, struct lookup **ret)
{
	struct lookup *l = calloc(1, sizeof *l);
	int rc;

	if (!l)
		return -ENOMEM;
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->changed, NULL);
	l->refs = 2;
	l->target = *target;
	rc = thread_start_detached(lookup_main, l);
	if (rc) {
		l->refs = 1;
		lookup_unref(l);
		return rc;
	}
	*ret = l;
	return 0;
}

/* Return: 0 with the addresses, *@ret_rc what getaddrinfo() says; -ETIMEDOUT; -ECONNABORTED. */
static int lookup_wait(struct lookup *l, unsigned int timeout_ms, struct addrinfo **ret,
                       int *ret_rc)
{
	uint64_t until_ns = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
	const struct timespec until = {
		.tv_sec = (time_t)(until_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(until_ns % NSEC_PER_SEC),
	};
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	while (!l->done && !l->interrupted && rc != ETIMEDOUT)
		rc = pthread_cond_clockwait(&l->changed, &l->lock, CLOCK_MONOTONIC, &until);
	rc = l->done ? 0 : l->interrupted ? -ECONNABORTED : -ETIMEDOUT;
	l->interrupted = false;
	if (!rc) {
		*ret = steal_ptr(&l->list);
		*ret_rc = l->rc;
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void dialing_init(struct dialing *d)
{
	*d = (struct dialing){ .fd = -1, .wake = -1 };
	pthread_mutex_init(&d->lock, NULL);
}

void dialing_deinit(struct dialing *d)
{
	d->lookup = lookup_unref(d->lookup);
	pthread_mutex_destroy(&d->lock);
}

/* Under the lock. */
static void interrupt_locked(struct dialing *d)
{
	if (d->fd >= 0)
		shutdown(d->fd, SHUT_RDWR);
	if (d->wake >= 0)
		(void)!eventfd_write(d->wake, 1);
	if (!d->lookup)
		return;
	pthread_mutex_lock(&d->lookup->lock);
	d->lookup->interrupted = true;
	pthread_cond_broadcast(&d->lookup->changed);
	pthread_mutex_unlock(&d->lookup->lock);
}

void dialing_cancel(struct dialing *d)
{
	pthread_mutex_lock(&d->lock);
	d->cancelled = true;
	interrupt_locked(d);
	pthread_mutex_unlock(&d->lock);
}

void dialing_interrupt(struct dialing *d)
{
	pthread_mutex_lock(&d->lock);
	interrupt_locked(d);
	pthread_mutex_unlock(&d->lock);
}

bool dialing_is_cancelled(struct dialing *d)
{
	bool cancelled;

	pthread_mutex_lock(&d->lock);
	cancelled = d->cancelled;
	pthread_mutex_unlock(&d->lock);
	return cancelled;
}

/* Have a lookup of this target, the one of the last dial where that is still under way. */
static int have_lookup(struct dialing *d, const struct conn_target *target)
{
	struct lookup *fresh = NULL, *old = NULL;
	bool fits = d->lookup && !strcmp(d->lookup->target.host, target->host) &&
	            !strcmp(d->lookup->target.port, target->port);
	int rc = fits ? 0 : lookup_new(target, &fresh);

	pthread_mutex_lock(&d->lock);
	if (!rc && d->cancelled)
		rc = -ECANCELED;
	if (!rc && fresh) {
		old = d->lookup;
		d->lookup = steal_ptr(&fresh);
	}
	pthread_mutex_unlock(&d->lock);
	lookup_unref(old);
	lookup_unref(fresh);
	return rc;
}

static void drop_lookup(struct dialing *d)
{
	struct lookup *l;

	pthread_mutex_lock(&d->lock);
	l = steal_ptr(&d->lookup);
	pthread_mutex_unlock(&d->lock);
	lookup_unref(l);
}

static int resolve(struct dialing *d, const struct conn_target *target, unsigned int timeout_ms,
                   struct addrinfo **ret, struct error *err)
{
	int gai = look_up(target, AI_NUMERICHOST, ret), rc = 0;

	if (!gai)
		return 0;
	rc = have_lookup(d, target);
	if (!rc)
		rc = lookup_wait(d->lookup, timeout_ms, ret, &gai);
	if (!rc)
		drop_lookup(d);
	if (rc == -ETIMEDOUT)
		return error_set(err, rc, "source %s:%s: no name server answers for %u ms",
		                 target->host, target->port, timeout_ms);
	if (rc)
		return error_errno(err, rc, "source %s:%s: asking name servers", target->host,
		                   target->port);
	if (gai)
		return error_set(err, -EHOSTUNREACH, "source %s:%s: %s", target->host, target->port,
		                 gai_strerror(gai));
	return 0;
}

/*
 * Show what goes on: by @wake who connects is woken, by @fd who shakes hands. Return: 0 or
 * -ECANCELED.
 */
static int show(struct dialing *d, int wake, int fd)
{
	bool cancelled;

	pthread_mutex_lock(&d->lock);
	cancelled = d->cancelled;
	d->wake = cancelled ? -1 : wake;
	d->fd = cancelled ? -1 : fd;
	pthread_mutex_unlock(&d->lock);
	return cancelled ? -ECANCELED : 0;
}

void dialing_done(struct dialing *d)
{
	pthread_mutex_lock(&d->lock);
	d->wake = d->fd = -1;
	pthread_mutex_unlock(&d->lock);
}

/* Return: the socket, which is shown and blocking, or -errno. */
static int connect_any(struct dialing *d, const struct conn_target *target,
                       const struct addrinfo *list, unsigned int timeout_ms,
                       struct tcp_dial_why *ret_why)
{
	_cleanup_close_ int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), fd = -1;
	uint64_t deadline_ns = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
	eventfd_t interrupted;
	int rc = wake < 0 ? -errno : show(d, wake, -1);

	snprintf(ret_why->text, sizeof ret_why->text, "%s", strerror(-rc));
	if (rc)
		return rc;
	rc = tcp_dial(target->host, target->port, list, wake, deadline_ns, ret_why);
	if (rc >= 0) {
		fd = rc;
		rc = fcntl(fd, F_SETFL, 0) ? -errno : show(d, -1, fd);
	}
	if (rc)
		dialing_done(d);
	/* Nobody sees it any more: what is not in it by now was not meant for this dial. */
	if (rc == -ECANCELED || !eventfd_read(wake, &interrupted)) {
		dialing_done(d);
		return dialing_is_cancelled(d) ? -ECANCELED : -ECONNABORTED;
	}
	return rc ? rc : steal_fd(&fd);
}

int dialing_connect(struct dialing *d, const struct conn_target *target, unsigned int timeout_ms,
                    struct error *err)
{
	_cleanup_(freeaddrinfo_p) struct addrinfo *list = NULL;
	struct tcp_dial_why why;
	int rc = resolve(d, target, timeout_ms, &list, err);
	int fd;

	if (rc)
		return rc;
	fd = connect_any(d, target, list, timeout_ms, &why);
	return fd < 0 ? error_set(err, fd, "source %s:%s: %s", target->host, target->port, why.text)
	              : fd;
}
