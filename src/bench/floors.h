/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this host can do at best, so that a migration's figures mean something on
 * a machine that nobody knows: plain code that does one thing, built on nothing of
 * the daemon's, measured in the same run.
 */
#ifndef BENCH_FLOORS_H
#define BENCH_FLOORS_H

#include <json-c/json.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"
#include "util/histogram.h"

/*
 * floors_measure() - all of them, some seconds
 * @pki_dir: where pki_make() has put its files
 * @streams: connections of the throughput floor
 * @ret: {tls_bytes_per_s, tls_pingpong_us {p50, p99}, uffd_resolve_us {p50, p99},
 *        pwrite_bytes_per_s, memcpy_bytes_per_s, and of these three rates what they cost:
 *        tls_cpu_s_per_gib (both ends), pwrite_cpu_s_per_gib, memcpy_cpu_s_per_gib}
 */
int floors_measure(const char *pki_dir, unsigned int streams, struct json_object **ret,
                   struct error *err);

struct floor_rate {
	double bytes_per_s;
	double cpu_s_per_gib;
};

/*
 * Throughput of @streams TLS connections over loopback TCP from one process to
 * another, and the round trip of a small request with a 4 KiB answer, blocking.
 */
int floor_tls_throughput(const char *pki_dir, unsigned int streams, struct floor_rate *ret,
                         struct error *err);
int floor_tls_pingpong(const char *pki_dir, struct histogram *ret_ns, struct error *err);

/*
 * A local fault on an absent memfd page: touch, event read by a blocking thread,
 * pwrite(), UFFDIO_CONTINUE, touch done.
 */
int floor_uffd_resolve(struct histogram *ret_ns, struct error *err);

/* Filling a fresh memfd in pieces of 256 KiB. */
int floor_pwrite(struct floor_rate *ret, struct error *err);
int floor_memcpy(struct floor_rate *ret, struct error *err);

/* Wall clock, and the CPU of this process and of @other (0: none), when something began. */
struct floor_meter {
	uint64_t wall_ns, cpu_ns;
	pid_t other;
};
struct floor_meter floor_meter_start(pid_t other);
struct floor_rate floor_meter_rate(const struct floor_meter *m, uint64_t bytes);

#endif
