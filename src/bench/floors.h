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

#include "util/error.h"
#include "util/histogram.h"

/*
 * floors_measure() - all of them, some seconds
 * @pki_dir: where pki_make() has put its files
 * @streams: connections of the throughput floor
 * @ret: {tls_bytes_per_s, tls_pingpong_us {p50, p99}, uffd_resolve_us {p50, p99},
 *        pwrite_bytes_per_s, memcpy_bytes_per_s}
 */
int floors_measure(const char *pki_dir, unsigned int streams, struct json_object **ret,
                   struct error *err);

/*
 * Throughput of @streams TLS connections over loopback TCP from one process to
 * another, and the round trip of a small request with a 4 KiB answer, blocking.
 */
int floor_tls_throughput(const char *pki_dir, unsigned int streams, double *ret_bytes_per_s,
                         struct error *err);
int floor_tls_pingpong(const char *pki_dir, struct histogram *ret_ns, struct error *err);

/*
 * A local fault on an absent memfd page: touch, event read by a blocking thread,
 * pwrite(), UFFDIO_CONTINUE, touch done.
 */
int floor_uffd_resolve(struct histogram *ret_ns, struct error *err);

/* Filling a fresh memfd in pieces of 256 KiB. */
int floor_pwrite(double *ret_bytes_per_s, struct error *err);
int floor_memcpy(double *ret_bytes_per_s, struct error *err);

#endif
