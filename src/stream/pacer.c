/* SPDX-License-Identifier: Apache-2.0 */
#include "stream/pacer.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "util/clock.h"
#include "util/log.h"

/* A share that differs by less is left as it is. */
#define SHARE_SLACK 256u

struct pacer {
	struct pacer *next; /* under the lock of them all, as are: */
	unsigned int n_conns;
	struct in6_addr host;

	_Atomic uint64_t step_ns; /* when the next is due */
	_Atomic uint32_t burst;
	pthread_mutex_t lock;
	struct pacer_conn *conns;
	struct link_rate rate;
	struct pacer_view seen; /* by the last step; anybody reads it */
};

/* What one step finds of all connections. */
struct look {
	struct link_rate_sample sample;
	uint64_t since_ns;
	struct link_rate_part *parts;
	bool active;
	uint64_t busy_us, rwnd_us;
	bool waiting; /* something had to wait for the network */
	uint64_t in_flight_bytes;
};

void pacers_init(struct pacers *ps)
{
	pthread_mutex_init(&ps->lock, NULL);
	ps->list = NULL;
}

void pacers_deinit(struct pacers *ps)
{
	pthread_mutex_destroy(&ps->lock);
}

/* The peer's address; IPv4 as it is mapped into IPv6. Return: false where there is none. */
static bool find_host(int fd, struct in6_addr *ret)
{
	struct sockaddr_storage a = { 0 };
	socklen_t len = sizeof a;

	if (getpeername(fd, (struct sockaddr *)&a, &len))
		return false;
	if (a.ss_family == AF_INET6) {
		*ret = ((struct sockaddr_in6 *)&a)->sin6_addr;
		return true;
	}
	if (a.ss_family != AF_INET)
		return false;
	*ret = (struct in6_addr){ .s6_addr = { [10] = 0xff, [11] = 0xff } };
	memcpy(&ret->s6_addr[12], &((struct sockaddr_in *)&a)->sin_addr, 4);
	return true;
}

/* The lock is held. Return: NULL where memory is short. */
static struct pacer *find_pacer(struct pacers *ps, const struct in6_addr *host)
{
	struct pacer *p = ps->list;

	while (p && memcmp(&p->host, host, sizeof *host) != 0)
		p = p->next;
	if (p)
		return p;
	p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->host = *host;
	pthread_mutex_init(&p->lock, NULL);
	p->next = ps->list;
	ps->list = p;
	return p;
}

static void give_share(struct pacer_conn *pc, uint64_t bytes_per_s)
{
	uint64_t differs = bytes_per_s > pc->bytes_per_s ? bytes_per_s - pc->bytes_per_s
	                                                 : pc->bytes_per_s - bytes_per_s;
	/* "unlimited", as the kernel has it. */
	unsigned long rate = bytes_per_s ? bytes_per_s : ~0ul;

	/* Once it was paced the kernel does not stop pacing, at what TCP makes of it: so not before
	 * it has to be. */
	if (differs <= bytes_per_s / SHARE_SLACK ||
	    setsockopt(pc->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate))
		return;
	pc->bytes_per_s = bytes_per_s;
}

void pacers_join(struct pacers *ps, struct pacer_conn *pc, int fd)
{
	struct in6_addr host;

	*pc = (struct pacer_conn){ .fd = fd };
	if (!find_host(fd, &host))
		return;
	pthread_mutex_lock(&ps->lock);
	pc->pacer = find_pacer(ps, &host);
	if (pc->pacer) {
		pc->pacer->n_conns++;
		pthread_mutex_lock(&pc->pacer->lock);
		pc->next = pc->pacer->conns;
		pc->pacer->conns = pc;
		/* Until all are looked at. */
		give_share(pc, pc->pacer->rate.bytes_per_s / pc->pacer->n_conns);
		pthread_mutex_unlock(&pc->pacer->lock);
	}
	pthread_mutex_unlock(&ps->lock);
}

static void unlink_pacer(struct pacers *ps, struct pacer *p)
{
	struct pacer **at = &ps->list;

	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	pthread_mutex_destroy(&p->lock);
	free(p);
}

void pacers_leave(struct pacers *ps, struct pacer_conn *pc)
{
	struct pacer *p = pc->pacer;
	struct pacer_conn **at;

	if (!p)
		return;
	pthread_mutex_lock(&ps->lock);
	pthread_mutex_lock(&p->lock);
	at = &p->conns;
	while (*at != pc)
		at = &(*at)->next;
	*at = pc->next;
	pthread_mutex_unlock(&p->lock);
	/* With the last of a host goes what is known of the way there. */
	if (!--p->n_conns)
		unlink_pacer(ps, p);
	pthread_mutex_unlock(&ps->lock);
	pc->pacer = NULL;
}

/* Older kernels count less. Return: false where this is one of them. */
static bool ask_tcp(int fd, struct tcp_info *ret)
{
	socklen_t len = sizeof *ret;

	memset(ret, 0, sizeof *ret);
	return !getsockopt(fd, IPPROTO_TCP, TCP_INFO, ret, &len) &&
	       len >= offsetof(struct tcp_info, tcpi_sndbuf_limited);
}

/* Of what nothing is acknowledged tells nothing: its receiver may not read, and its round trip is
 * one of long ago. */
static void look_at(struct look *l, struct pacer_conn *pc)
{
	struct tcp_info info;
	uint64_t acked;

	pc->part = (struct link_rate_part){ .next = l->parts };
	l->parts = &pc->part;
	if (!ask_tcp(pc->fd, &info))
		return;
	acked = info.tcpi_bytes_acked - pc->acked_bytes;
	if (acked) {
		pc->part.active = l->active = true;
		pc->part.used = acked * 1000 / (l->since_ns / 1000 + 1) * 1000;
		/* Something that came just now is nearly always there to be sent. */
		pc->part.waiting =
		        info.tcpi_notsent_bytes && pc->part.used >= pc->bytes_per_s / 4 * 3;
		if (!l->sample.rtt_us || info.tcpi_rtt < l->sample.rtt_us)
			l->sample.rtt_us = info.tcpi_rtt;
		l->sample.acked_bytes += acked;
		l->busy_us += info.tcpi_busy_time - pc->busy_us;
		l->rwnd_us += info.tcpi_rwnd_limited - pc->rwnd_us;
		l->waiting |= info.tcpi_notsent_bytes != 0;
	}
	if (info.tcpi_min_rtt && (!l->sample.base_us || info.tcpi_min_rtt < l->sample.base_us))
		l->sample.base_us = info.tcpi_min_rtt;
	l->in_flight_bytes += (uint64_t)info.tcpi_unacked * info.tcpi_snd_mss;
	pc->acked_bytes = info.tcpi_bytes_acked;
	pc->busy_us = info.tcpi_busy_time;
	pc->rwnd_us = info.tcpi_rwnd_limited;
}

/* For who wants to know why bulk is not faster. */
static void tell(const struct link_rate *r, enum link_rate_state before)
{
	static const char *const says[] = {
		[LINK_RATE_FREE] = "as fast as it gets",
		[LINK_RATE_DRAIN] = "a queue stands, and is to drain",
		[LINK_RATE_HOLD] = "held below what the link carries",
	};

	if (r->state != before)
		log_debug("bulk: %s; %llu bytes/s, round trip %llu us, %llu us of it queued",
		          says[r->state], (unsigned long long)r->bytes_per_s,
		          (unsigned long long)r->rtt_us, (unsigned long long)r->queue_us);
}

/* The lock is held. */
static void step(struct pacer *p, uint64_t now_ns)
{
	struct look l = { .sample.now_ns = now_ns, .since_ns = now_ns - p->rate.last_ns };
	enum link_rate_state before = p->rate.state;

	for (struct pacer_conn *pc = p->conns; pc; pc = pc->next)
		look_at(&l, pc);
	if (!l.active)
		return;
	/* At most a quarter of the time it was the receiver that had no room. */
	l.sample.held = l.waiting && l.rwnd_us <= l.busy_us / 4;
	link_rate_step(&p->rate, &l.sample);
	tell(&p->rate, before);
	atomic_store(&p->seen.bytes_per_s, p->rate.bytes_per_s);
	atomic_store(&p->seen.queue_us, p->rate.queue_us);
	atomic_store(&p->seen.rtt_us, p->rate.rtt_us);
	atomic_store(&p->seen.in_flight_bytes, l.in_flight_bytes);
	atomic_store(&p->burst, link_rate_burst_bytes(&p->rate));
	link_rate_divide(p->rate.bytes_per_s, l.parts);
	for (struct pacer_conn *pc = p->conns; pc; pc = pc->next)
		give_share(pc, pc->part.bytes_per_s);
}

static void copy(_Atomic uint64_t *to, const _Atomic uint64_t *from)
{
	atomic_store_explicit(to, atomic_load_explicit(from, memory_order_relaxed),
	                      memory_order_relaxed);
}

/* To each migration that sends there, whoever has made the step. */
static void show(const struct pacer_view *seen, struct pacer_view *view)
{
	copy(&view->bytes_per_s, &seen->bytes_per_s);
	copy(&view->queue_us, &seen->queue_us);
	copy(&view->rtt_us, &seen->rtt_us);
	copy(&view->in_flight_bytes, &seen->in_flight_bytes);
}

void pacer_note(struct pacer_conn *pc, struct conn *c, struct pacer_view *view)
{
	struct pacer *p = pc->pacer;
	uint32_t burst;

	if (!p)
		return;
	/* Who does not get the lock need not: another looks at this connection as well. */
	if (clock_now_ns() >= atomic_load(&p->step_ns) && !pthread_mutex_trylock(&p->lock)) {
		/* Another may have made this step meanwhile: the time is taken under the lock. */
		uint64_t now_ns = clock_now_ns();

		if (now_ns >= atomic_load(&p->step_ns)) {
			step(p, now_ns);
			atomic_store(&p->step_ns, now_ns + link_rate_step_ns(&p->rate));
		}
		pthread_mutex_unlock(&p->lock);
	}
	show(&p->seen, view);
	burst = atomic_load(&p->burst);
	if (burst != pc->burst)
		conn_set_burst(c, burst);
	pc->burst = burst;
}
