# SPDX-License-Identifier: Apache-2.0
"""The service's messages as postcopyctl --json has them (src/ctl/migration_json.h)."""

ROLES = ("unknown", "source", "destination")
STATES = ("unknown", "prepared", "attached", "warming", "switching", "postcopy", "paused",
          "complete", "failed", "cancelled")
MAPS = ("auto", "eager", "lazy")


def us(duration):
    return duration.seconds * 1e6 + duration.nanos / 1e3


def field(message, name, convert):
    return convert(getattr(message, name)) if message.HasField(name) else None


def latency(message):
    names = ("p50", "p90", "p99", "p999", "max")
    return {"count": message.count,
            **{name: getattr(message, name + "_ns") / 1e3 for name in names}}


def counters(message, *names):
    return {name: getattr(message, name) for name in names}


def downtime(message):
    return {name: us(getattr(message, name)) for name in ("total", "pause", "send", "load",
                                                          "resume")}


def limits(message):
    return {name: getattr(message, name) if message.WhichOneof(oneof) else None
            for oneof, name in (("optional_bandwidth", "bandwidth_bytes_per_s"),
                                ("optional_streams", "streams"), ("optional_bulk", "bulk"),
                                ("optional_prefetch", "prefetch"),
                                ("optional_weight", "weight"))}


def warm_policy(p):
    return {"max_rounds": p.max_rounds, "dirty_bytes": p.dirty_bytes,
            "max_time_ms": field(p, "max_time", lambda time: us(time) / 1e3),
            "catch_up_ms": field(p, "catch_up", lambda time: us(time) / 1e3)}


def warm(w):
    return {"policy": warm_policy(w.policy), "refused": w.refused,
            "warm_ms": field(w, "elapsed", lambda elapsed: us(elapsed) / 1e3),
            "catch_up_ms": field(w, "catch_up", lambda left: us(left) / 1e3),
            "dirty_pages_at_switchover": w.pages_at_switchover,
            "given_up_percent": w.given_up_percent,
            **counters(w, "rounds", "bytes", "dirty_bytes", "dirty_bytes_per_s", "bytes_per_s")}


def destination(d):
    stall = field(d, "guest_stall", latency)
    if stall:
        stall["source"] = d.guest_stall_source
    return {
        "source_address": d.source_address, "tls": d.tls, "map": MAPS[d.map],
        "streams": limits(d.limits)["streams"], "limits": limits(d.limits),
        "warm": field(d, "warm", warm),
        "downtime_us": field(d, "downtime", downtime),
        "total_ms": field(d, "elapsed", lambda elapsed: us(elapsed) / 1e3),
        "eta_ms": field(d, "time_to_complete", lambda left: us(left) / 1e3),
        "bulk_bytes": d.bulk_bytes,
        "bulk_bytes_per_s": d.bulk_bytes_per_s if d.WhichOneof("optional_rate") else None,
        "pages_total": d.pages_total, "pages_present": d.pages_present,
        "pages_poisoned": d.pages_poisoned,
        "pages_zero": d.fill.zero,
        "fill": counters(d.fill, "write", "memcpy", "copy", "zero"),
        "faults": counters(d.faults, "total", "remote", "minor", "coalesced"),
        "fault_us": field(d, "fault_latency", latency),
        "fault_idle_us": field(d, "fault_latency_idle", latency),
        "fault_bulk_us": field(d, "fault_latency_bulk", latency),
        "fault_phases_us": {phase.phase: latency(phase.latency) for phase in d.fault_phases},
        "guest_stall_us": stall,
        "stall_joined_us": field(d, "stall_joined", latency),
        "stall_phases_us": field(d, "stall_phases", latency),
        "prefetch": counters(d.prefetch, "units", "watched", "hit", "late", "wasted", "hot", "around",
                             "stride", "recent", "duplicate"),
        "reconnects": d.reconnects, "holder": d.holder}


def parties(p):
    return {"uids": list(p.uids), "pid": p.pid or None, "cgroup": p.cgroup, "peer": p.peer}


def waiting(w):
    return {"for": ("unknown", "source", "pause", "vmstate", "load", "resume", "memory",
                    "destination", "turn", "switchover")[w.what],
            "elapsed_ms": us(w.elapsed) / 1e3, "tries": w.tries, "place": w.place or None,
            "next_try_ms": field(w, "next_try", lambda next: us(next) / 1e3)}


LIMITED_BY = (None, "network", "cap", "destination-cpu", "source-cpu", "faults")


def pace(p):
    return {"bytes_per_s": p.bytes_per_s or None, "in_flight_bytes": p.in_flight_bytes,
            "round_trip_us": us(p.round_trip), "queued_us": us(p.queued)}


def bandwidth(b):
    return counters(b, "share_bytes_per_s", "bulk_bytes_per_s", "fault_bytes_per_s", "weight")


def migration(m):
    to = {"id": m.id, "role": ROLES[m.role], "state": STATES[m.state], "reason": m.reason,
          "memory_bytes": m.memory_bytes or None, "page_bytes": m.page_bytes or None,
          "backend": m.backend, "vmm_pid": m.vmm_pid or None, "peer_version": m.peer_version,
          "parties": field(m, "parties", parties), "waiting": field(m, "waiting", waiting),
          "limited_by": LIMITED_BY[m.limited_by],
          "bandwidth": field(m, "bandwidth", bandwidth)}
    half = m.WhichOneof("half")
    if half == "destination":
        to.update(destination(m.destination))
    elif half == "source":
        to["served"] = counters(m.source, "requests", "pages", "zero_pages",
                                "unreadable_pages", "bytes", "connected")
        to["pace"] = field(m.source, "pace", pace)
        to.update(holder=m.source.holder, holder_name=m.source.holder_name)
    return to


def stall(s):
    return {name: getattr(s, name + "_ns") / 1e3 for name in ("total", "entry", "wakeup")}


def buckets(histogram):
    return [[bucket.upper_ns / 1e3, bucket.count] for bucket in histogram]


def report(r):
    to = migration(r.migration)
    phases = list(r.phases)
    to["phases"] = phases
    to["timeline"] = [[point.at_ns / 1e6, point.pages_present] for point in r.timeline]
    to["fault_dots"] = [
        [dot.at_ns / 1e6, dot.latency_ns / 1e3,
         phases.index(dot.dominant_phase) if dot.dominant_phase in phases else -1]
        for dot in r.faults]
    to["fault_dots_every"] = r.faults_every or None
    to["slow_faults"] = [
        {"at_ms": dot.at_ns / 1e6, "us": dot.latency_ns / 1e3, "address": dot.address,
         "tid": dot.tid or None, "phase": dot.dominant_phase, "minor": dot.minor,
         "phases_us": [ns / 1e3 for ns in dot.phase_ns],
         "stall_us": field(dot, "stall", stall)} for dot in r.slow_faults]
    to["fault_histogram"] = buckets(r.fault_histogram)
    to["stall_histogram"] = buckets(r.stall_histogram)
    to["arrival"] = [[cell.pages, cell.mean_ns / 1e6, cell.fault_pages] for cell in r.arrival]
    return to
