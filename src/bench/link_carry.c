/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets on their way: each comes out as long after it came in as the link's delay says, in order.
 * A ring of bytes holds them, each behind its header; where it is full nothing is read, and waits
 * in the device's own queue.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/link.h"
#include "util/clock.h"

#define PACKET_MAX ((64u << 10) + 256)
/* Each of up to 64 KiB: what 10 Gbit/s brings in 50 ms. */
#define SLOTS 1024u

struct packet {
	uint64_t due_ns;
	size_t len;
	uint8_t bytes[PACKET_MAX];
};

/* One way. */
struct way {
	int from, to;
	struct packet *slots;
	size_t first, n;
};

/* Return: false where the end is closed. */
static bool take_in(struct way *w, uint64_t delay_ns)
{
	while (w->n < SLOTS) {
		struct packet *p = &w->slots[(w->first + w->n) % SLOTS];
		ssize_t len = read(w->from, p->bytes, sizeof p->bytes);

		if (len < 0)
			return errno == EAGAIN || errno == EINTR;
		if (!len)
			return false;
		p->len = (size_t)len;
		p->due_ns = clock_now_ns() + delay_ns;
		w->n++;
	}
	return true;
}

/* What is due goes out. One that the other device doesn't take is lost, as on a link. */
static void put_out(struct way *w, uint64_t now_ns)
{
	while (w->n && w->slots[w->first].due_ns <= now_ns) {
		const struct packet *p = &w->slots[w->first];
		ssize_t r = write(w->to, p->bytes, p->len);

		(void)r;
		w->first = (w->first + 1) % SLOTS;
		w->n--;
	}
}

static uint64_t next_due_ns(const struct way ways[2])
{
	uint64_t due = UINT64_MAX;

	for (int i = 0; i < 2; i++)
		if (ways[i].n && ways[i].slots[ways[i].first].due_ns < due)
			due = ways[i].slots[ways[i].first].due_ns;
	return due;
}

static void wait_for_packets(const struct way ways[2])
{
	struct pollfd fds[2];
	uint64_t due = next_due_ns(ways), now = clock_now_ns();
	uint64_t left = due > now ? due - now : 0;
	struct timespec limit = { .tv_sec = (time_t)(left / NSEC_PER_SEC),
		                  .tv_nsec = (long)(left % NSEC_PER_SEC) };

	for (int i = 0; i < 2; i++)
		fds[i] = (struct pollfd){ .fd = ways[i].n < SLOTS ? ways[i].from : -1,
			                  .events = POLLIN };
	ppoll(fds, 2, due == UINT64_MAX ? NULL : &limit, NULL);
}

void link_carry(int a, int b, uint64_t delay_ns)
{
	struct way ways[2] = { { .from = a, .to = b }, { .from = b, .to = a } };
	bool open = true;

	for (int i = 0; i < 2; i++)
		ways[i].slots = calloc(SLOTS, sizeof *ways[i].slots);
	while (open && ways[0].slots && ways[1].slots) {
		wait_for_packets(ways);
		open = take_in(&ways[0], delay_ns) && take_in(&ways[1], delay_ns);
		for (int i = 0; i < 2; i++)
			put_out(&ways[i], clock_now_ns());
	}
	for (int i = 0; i < 2; i++)
		free(ways[i].slots);
}
