/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local control socket, behind which gRPC will stand: one unix stream socket,
 * one JSON object a line in each direction. The methods and messages are those of
 * the service to come, and so are the names of its errors (gRPC status codes).
 *
 *   -> {"method": "Get", "params": {"id": "vm7"}}
 *   <- {"result": {...}}                     or
 *   <- {"error": {"code": "NOT_FOUND", "message": "no migration \"vm7\": ..."}}
 *
 * A connection may carry any number of requests, one after the other; a line is
 * 64 KiB at most.
 *
 *   Prepare    {id, role: "source"|"destination", token: 64 hex digits,
 *               source: "host:port" (destination), streams: 1..16 (destination; default 4, or
 *               the number of CPUs where that is less),
 *               map: "auto"|"eager"|"lazy" (destination), bulk: bool (destination),
 *               prefetch: bool (destination), bandwidth_bytes_per_s: of bulk at most, 0 (default)
 *               for no cap (destination)} -> migration. The same Prepare again changes nothing.
 *   Start      {id, switchover: bool (default true)} -> migration. Connects ("warming"), and
 *               with switchover goes on as soon as that is done.
 *   Switchover {id} -> migration. The point of no return follows.
 *   Get        {id} -> migration
 *   List       {} -> {migrations: [migration...]}
 *   Watch      {id, interval_ms: 50.. (default 200)} -> a line {"event": migration} for each
 *               change of state and each interval; after the last state {"result": migration}
 *   Report     {id} -> migration and {timeline: [[ms, pages_present]...],
 *               phases: [name...],
 *               fault_dots: [[ms, us, index of the longest phase]...],
 *               fault_histogram: [[upper_us, count]...],
 *               slow_faults: [{at_ms, us, address, tid, phases_us}...] slowest first,
 *               arrival: [[pages, mean ms, of them by faults]...] of each cell of guest memory}
 *               times in ms (fractional) since the guest was resumed here
 *   SetLimits  {id, bulk: bool, prefetch: bool, streams: 1..16, bandwidth_bytes_per_s: 0..}
 *               -> migration; at any time, what is not given stays as it is
 *   Cancel     {id} -> migration. Before the point of no return only.
 *
 * migration (numbers that are not known yet are null):
 *   {id, role, state, reason, memory_bytes, page_bytes, backend, streams,
 *    bandwidth_bytes_per_s, tls,
 *    downtime_us: {total, pause, send, load, resume},
 *    total_ms, bulk_bytes, bulk_bytes_per_s, pages_total, pages_present, pages_zero,
 *    fill: {write, memcpy, copy, zero},              pages, by what filled them
 *    faults: {total, remote, minor, coalesced},
 *    fault_us: {count, p50, p90, p99, p999, max},    event read -> resolved, remote faults
 *    fault_idle_us: {the same},                      those with no bulk in flight
 *    fault_bulk_us: {the same},                      those with bulk in flight
 *    fault_minor_us: {the same},                     faults whose page was there
 *    fault_phases_us: {queue, request, answer, fill, map: {the same}}, faults_slow,
 *    guest_stall_us: {p50, p90, p99, p999, max, source: "daemon"},
 *    prefetch: {hit, late, wasted}, reconnects}
 * A source reports id, role, state, reason, memory_bytes, page_bytes, backend and
 *    served: {requests, pages, bytes}.
 */
#ifndef RPC_CONTROL_H
#define RPC_CONTROL_H

#include <uv.h>

#include "util/error.h"

struct control;
struct migrations;

/*
 * control_new() - listen
 * @loop: whose thread serves all calls
 * @path: of the socket; a stale one is replaced, one in use is refused
 * @migrations: what the calls act on; must outlive the control socket
 */
int control_new(uv_loop_t *loop, const char *path, struct migrations *migrations,
                struct control **ret, struct error *err);

/* Closes the listener and all connections; memory goes when the loop has run on. */
void control_close(struct control *c);

#endif
