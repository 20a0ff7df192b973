/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A link between the benchmark's two hosts: two network namespaces with a device each, whose
 * egress is shaped by tbf as a real bottleneck is: a rate, and a queue before it, one FIFO or
 * the three bands of pfifo_fast.
 *
 * Without a delay the devices are a veth pair. With one they are tun devices, and a process of
 * ours carries each packet from one to the other and holds it for half of the round trip; netem
 * would do that, but many hosts don't have it. What the qdisc does is the kernel's in any case.
 *
 * The namespaces have no name: they end with the last process in them, so nothing is left behind.
 */
#ifndef BENCH_LINK_H
#define BENCH_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

#define LINK_SOURCE_ADDRESS "192.0.2.1" /* RFC 5737: nobody else's */

struct link_options {
	uint64_t mbit;
	uint64_t rtt_us;
	uint64_t queue_ms;
	uint64_t cross_mbit; /* of foreign traffic; 0: none */
	bool prio;           /* pfifo_fast instead of one FIFO */
};

struct link {
	int source_ns, destination_ns; /* -1: there is none */
	pid_t carrier;                 /* with a delay; else 0 */
	pid_t stranger;                /* who sends foreign traffic; else 0 */
};

#define LINK_INIT ((struct link){ .source_ns = -1, .destination_ns = -1 })

/* Wants root. Return: 0, or why there can't be one; link_down() in any case. */
int link_up(struct link *l, const struct link_options *o, struct error *err);
void link_down(struct link *l);

/* What the source has sent by it, as its qdisc counts. Return: 0 where it can't be told. */
uint64_t link_sent_bytes(const struct link *l);

/* Foreign traffic by @from, a connected UDP socket, at that rate, whatever becomes of it. */
_Noreturn void link_cross(int from, uint64_t mbit);

/*
 * link_carry() - the carrier's work: packets from one device to the other, each @delay_ns later
 * @a, @b: both ends, which keep the packets' borders
 *
 * Return: when an end is closed.
 */
void link_carry(int a, int b, uint64_t delay_ns);

#endif
