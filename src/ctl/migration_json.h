/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service's messages as JSON: what postcopyctl --json prints, and what its own reports read.
 *
 * migration (numbers that are not known, or not yet, are null; times of the day are RFC 3339):
 *   {id, role: "source"|"destination", state, state_time, prepare_time, reason,
 *    memory_bytes, page_bytes, backend, vmm_pid, peer_version: empty where it is not known,
 *    parties: {uids: [uid...], pid, cgroup, peer}, as prepared; null where none are named
 *    waiting: {for: "source"|"pause"|"vmstate"|"load"|"resume"|"memory"|"destination"|"turn"
 *                   |"switchover",
 *              elapsed_ms, tries, next_try_ms (null: it is being tried), place (of its turn)},
 *              null where it waits for nothing
 *    limited_by: "network"|"cap"|"destination-cpu"|"source-cpu"|"faults", null where not known
 *    bandwidth: {share_bytes_per_s (0: no limit), bulk_bytes_per_s, fault_bytes_per_s, weight},
 *              null when it has ended
 *    ...}
 * and at a destination
 *   {source_address, tls, map: "auto"|"eager"|"lazy", streams,
 *    limits: {bandwidth_bytes_per_s, streams, bulk, prefetch, weight},
 *    warm: {policy: {max_rounds, max_time_ms, dirty_bytes, catch_up_ms},
 *           refused: why it is not done, warm_ms, rounds, bytes, dirty_bytes, dirty_bytes_per_s,
 *           bytes_per_s, catch_up_ms: forecast, dirty_pages_at_switchover, given_up_percent},
 *           null where it was not asked for
 *    downtime_us: {total, pause, send, load, resume}, resume_time, total_ms,
 *    eta_ms,                                         from start on; until it is complete
 *    bulk_bytes, bulk_bytes_per_s,
 *    pages_total, pages_present, pages_poisoned, pages_zero,
 *    fill: {write, memcpy, copy, zero},              pages, by what filled them
 *    faults: {total, remote, minor, coalesced},
 *    fault_us: {count, p50, p90, p99, p999, max},    event read -> resolved, remote faults
 *    fault_idle_us: {the same},                      those with no bulk in flight
 *    fault_bulk_us: {the same},                      those with bulk in flight
 *    fault_phases_us: {PHASE: {the same}...},
 *    guest_stall_us: {the same and source: "daemon"|"tracepoint"|...},
 *    stall_joined_us, stall_phases_us: {as fault_us}, of the stalls whose phases are known: as the
 *                      kernel saw them, and their phases added up; null without eBPF
 *    prefetch: {units, watched, hit, late, wasted, hot, around, stride, recent, duplicate},
 *    reconnects}
 * and at a source
 *   {served: {requests, pages, zero_pages, unreadable_pages, bytes, connected},
 *    pace: {bytes_per_s, in_flight_bytes, round_trip_us, queued_us}}   of bulk to that host; null
 *                      before there was any; bytes_per_s null: as fast as it gets
 *
 * A report is a migration and
 *   {phases: [name...], timeline: [[ms, pages_present]...], fault_dots: [[ms, us, phase]...],
 *    fault_dots_every: of the remote faults, every so many-th is a dot, and the slowest; 1: all;
 *                      null: not known, of an older daemon, whose dots are the latest
 *    fault_histogram: [[upper_us, count]...], stall_histogram: [the same],
 *    slow_faults: [{at_ms, us, stall_us, address, tid, phase, during_bulk, minor,
 *                   phases_us: [us...]}...],
 *    arrival: [[pages, mean_ms, fault_pages]...]}
 * times in ms (fractional) since the guest was resumed; a dot's phase is the index of the one that
 * took longest, or -1. "entry" and "wakeup" are the last of the phases, where eBPF saw them.
 */
#ifndef CTL_MIGRATION_JSON_H
#define CTL_MIGRATION_JSON_H

#include <json-c/json.h>
#include <stdint.h>

#include "postcopy/v1/control.pb-c.h"

/* The caller owns what these return. */
struct json_object *migration_json(const Postcopy__V1__Migration *m);
struct json_object *report_json(const Postcopy__V1__Report *report);
struct json_object *missing_range_json(const Postcopy__V1__MissingRange *range);
struct json_object *check_response_json(const Postcopy__V1__CheckResponse *check);
struct json_object *host_info_json(const Postcopy__V1__HostInfo *info);
struct json_object *budget_json(const Postcopy__V1__Budget *budget);

/* The state of that name ("postcopy"); 0 where there is none. */
unsigned int migration_json_state(const char *name);

#endif
