/* SPDX-License-Identifier: Apache-2.0 */
/* Others' traffic on the link: datagrams at a fixed rate that are lost where there is no room. */
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bench/link.h"
#include "util/clock.h"

/* Of an ordinary MTU, so many in one call (UDP_SEGMENT): it is not the CPU that is to be short. */
#define DATAGRAM_BYTES 1400
#define DATAGRAMS 8
#define BURST_BYTES (DATAGRAM_BYTES * DATAGRAMS)

_Noreturn void link_cross(int from, uint64_t mbit)
{
	static const char burst[BURST_BYTES];
	uint64_t gap_ns = BURST_BYTES * 8ull * 1000 / mbit, next_ns = clock_now_ns();
	int size = DATAGRAM_BYTES;

	setsockopt(from, SOL_UDP, UDP_SEGMENT, &size, sizeof size);
	for (;;) {
		uint64_t now_ns = clock_now_ns();
		struct timespec next;
		ssize_t sent;

		/* Who was late does not make up for it by more than a little. */
		if (now_ns > next_ns + 10 * NSEC_PER_MSEC)
			next_ns = now_ns;
		sent = send(from, burst, sizeof burst, 0);
		(void)sent; /* where there is no room it is lost */
		next_ns += gap_ns;
		next = (struct timespec){ .tv_sec = (time_t)(next_ns / NSEC_PER_SEC),
			                  .tv_nsec = (long)(next_ns % NSEC_PER_SEC) };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}
