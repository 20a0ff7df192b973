# SPDX-License-Identifier: Apache-2.0
"""Whole migrations: real daemons, real vCPUs, and the guest's own word that each page is
right."""
import itertools
import json
import os
import pathlib
import re
import subprocess

import pytest

import harness
from harness import ControlError

MIB = 1 << 20
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="/dev/kvm can't be opened: no vCPUs here")


@pytest.fixture(scope="module")
def huge_pages():
    """Reserves what two guests of 64 MiB need, and gives it back."""
    needed = 2 * 64 // 2 + 2
    before = HUGE_PAGES.read_text() if HUGE_PAGES.exists() else ""
    try:
        HUGE_PAGES.write_text(str(int(before or 0) + needed))
    except OSError as error:
        pytest.skip("huge pages can't be reserved: %s" % error)
    if int(HUGE_PAGES.read_text()) < int(before) + needed:
        HUGE_PAGES.write_text(before)
        pytest.skip("%d huge pages of 2 MiB can't be reserved: memory is fragmented" % needed)
    yield
    HUGE_PAGES.write_text(before)


class Pair:
    """A source daemon and a destination daemon, and guests that move between them."""

    def __init__(self, host, extra=()):
        self.host = host
        self.source = host.daemon("source", allow=["postcopy:destination"], extra=extra)
        self.destination = host.daemon("destination", allow=["postcopy:source"], extra=extra)

    def attach(self, migration_id, prepare=None, **vmm):
        """Prepares both sides and starts both VMMs. Returns (source VMM, destination VMM)."""
        return attach(self.host, self.source, self.destination, migration_id, prepare, **vmm)

    def start(self, migration_id, **params):
        return self.destination.call("Start", id=migration_id, **params)

    def finish(self, migration_id, source_vmm, destination_vmm):
        """Waits for the end on all four, and that no page is bad. Returns the migration."""
        migration = self.destination.wait_for_state(migration_id, "complete")
        self.source.wait_for_state(migration_id, "complete")
        source_vmm.wait_for_event("complete")
        assert_guest_is_whole(destination_vmm)
        return migration


def attach(host, source, destination, migration_id, prepare=None, source_flags=(),
           destination_flags=(), **vmm):
    source.prepare_source(migration_id)
    destination.prepare_destination(migration_id, source.address, **(prepare or {}))
    options = {"memory": "64M", "backend": "memfd", "vcpus": 1, "workload": "random",
               "write_percent": 30, "run_after_complete": 50, **vmm}
    flags = options.pop("flags", ())
    source_vmm = host.minivmm("source", source, migration_id, flags=[*flags, *source_flags],
                              **options)
    destination_vmm = host.minivmm("destination", destination, migration_id,
                                   flags=[*flags, *destination_flags], **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    return source_vmm, destination_vmm


def assert_guest_is_whole(destination_vmm):
    result = destination_vmm.wait_for_event("result")
    assert result["pages_checked"] > 0
    assert result["pages_bad"] == 0, result
    assert destination_vmm.wait() == 0


def assert_guest_runs_on(source_vmm):
    """The source guest was not lost: it works on where it was until it is stopped."""
    source_vmm.wait_for_event("running-on", "failed")
    source_vmm.popen.terminate()
    result = source_vmm.wait_for_event("result")
    assert result["pages_checked"] > 0
    assert result["pages_bad"] == 0, result
    assert source_vmm.wait() == 0


@pytest.fixture
def pair(host):
    return Pair(host)


def migrate(pair, prepare=None, **vmm):
    vmms = pair.attach("vm1", prepare, **vmm)
    pair.start("vm1")
    return pair.finish("vm1", *vmms)


WORKLOADS = ["sequential", "random", "hotcold", "idle"]
SHAPES = list(itertools.product(WORKLOADS, [1, 2], [1, 4]))


def assert_told_in_full(migration, memory_bytes, page_bytes):
    assert migration["memory_bytes"] == memory_bytes
    assert migration["page_bytes"] == page_bytes
    # Counted in units of 4 KiB whatever the host's pages are.
    assert migration["pages_present"] == migration["pages_total"] == memory_bytes // 4096
    downtime = migration["downtime_us"]
    assert set(downtime) == {"total", "pause", "send", "load", "resume"}
    assert all(part is not None and part >= 0 for part in downtime.values()), downtime
    assert 0 < max(downtime[part] for part in ("pause", "send", "load", "resume")) \
        <= downtime["total"]
    assert migration["tls"].startswith("TLSv1.3")


@pytest.mark.parametrize("workload, vcpus, streams", SHAPES)
@pytest.mark.parametrize("backend", ["memfd", "anon"])
def test_every_page_is_right(pair, backend, workload, vcpus, streams):
    migration = migrate(pair, {"streams": streams}, backend=backend, memory="32M",
                        workload=workload, vcpus=vcpus)
    assert migration["streams"] == streams
    assert migration["backend"] == backend
    assert_told_in_full(migration, 32 * MIB, 4096)


@pytest.mark.parametrize("workload, vcpus, streams", SHAPES)
def test_every_page_is_right_on_hugetlb(pair, huge_pages, workload, vcpus, streams):
    migration = migrate(pair, {"streams": streams}, backend="hugetlb", workload=workload,
                        vcpus=vcpus)
    assert migration["backend"] == "hugetlb"
    assert_told_in_full(migration, 64 * MIB, 2 * MIB)


def test_guest_memfd_works_or_what_is_missing_is_named(pair):
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address)
    options = {"memory": "32M", "backend": "guest_memfd", "workload": "random",
               "run_after_complete": 50}
    source = pair.host.minivmm("source", pair.source, "vm1", **options)
    destination = pair.host.minivmm("destination", pair.destination, "vm1", **options)
    try:
        destination.wait_for_event("attached")
    except harness.Failure:
        assert destination.wait() != 0
        assert re.search("guest_memfd|userfaultfd", destination.log())
        pytest.skip("no guest_memfd with userfaultfd here: " +
                    destination.log().strip().splitlines()[-1])
    source.wait_for_event("attached")
    pair.start("vm1")
    pair.finish("vm1", source, destination)


@pytest.mark.parametrize("map_policy", ["eager", "lazy"])
def test_every_page_is_right_with_map_policy(pair, map_policy):
    migration = migrate(pair, {"map": map_policy}, vcpus=2)
    assert migration["pages_present"] == migration["pages_total"]


def test_guest_that_only_writes_during_the_stream_is_whole(pair):
    migrate(pair, {"streams": 4}, memory="128M", vcpus=2, write_percent=100)


def test_backends_of_the_two_sides_may_differ(host):
    pair = Pair(host)
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address)
    options = {"memory": "32M", "workload": "random", "run_after_complete": 50}
    source = host.minivmm("source", pair.source, "vm1", backend="anon", **options)
    destination = host.minivmm("destination", pair.destination, "vm1", backend="memfd", **options)
    source.wait_for_event("attached")
    destination.wait_for_event("attached")
    pair.start("vm1")
    pair.finish("vm1", source, destination)


@pytest.mark.parametrize("zero_percent", [0, 90])
def test_zero_pages_are_counted_and_stay_zero(pair, zero_percent):
    migration = migrate(pair, zero_percent=zero_percent, workload="idle")
    share = migration["pages_zero"] / migration["pages_total"]
    assert share > 0.5 if zero_percent else share < 0.5


def test_faults_alone_bring_the_guest_over_until_bulk_is_switched_on(pair):
    source, destination = pair.attach("vm1", {"bulk": False, "prefetch": False})
    pair.start("vm1")
    with pair.destination.control() as control:
        for migration in control.watch("vm1", interval_ms=50):
            if migration["state"] == "postcopy" and migration["faults"]["remote"] > 100:
                break
    assert migration["pages_present"] < migration["pages_total"]
    pair.destination.call("SetLimits", id="vm1", bulk=True, prefetch=True)
    migration = pair.finish("vm1", source, destination)
    assert migration["fault_idle_us"]["count"] >= 100
    assert migration["fault_us"]["p50"] <= migration["fault_us"]["max"]


def test_cap_holds_over_the_whole_migration(pair):
    cap = 32 * MIB
    migration = migrate(pair, {"bandwidth_bytes_per_s": cap, "streams": 2}, workload="idle",
                        zero_percent=0)
    assert migration["limits"]["bandwidth_bytes_per_s"] == cap
    assert migration["bulk_bytes"] > 48 * MIB
    # By the daemon's own clock. A busy host may well be slower, but never faster.
    assert cap * 0.4 < migration["bulk_bytes_per_s"] < cap * 1.15


def test_streams_and_cap_change_while_it_runs(pair):
    vmms = pair.attach("vm1", {"bandwidth_bytes_per_s": 4 * MIB, "streams": 1},
                       write_percent=50, vcpus=2)
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    for streams in (4, 2):
        migration = pair.destination.call("SetLimits", id="vm1", streams=streams)
        assert migration["streams"] == streams
        assert migration["limits"]["bandwidth_bytes_per_s"] == 4 * MIB
        harness.eventually(lambda: pair.destination.threads("bulk") == streams,
                           "%d bulk threads" % streams)
    pair.destination.call("SetLimits", id="vm1", bulk=False)
    migration = pair.destination.call("SetLimits", id="vm1", bulk=True, streams=3,
                                      bandwidth_bytes_per_s=0)
    assert migration["pages_present"] < migration["pages_total"]
    migration = pair.finish("vm1", *vmms)
    assert migration["reconnects"] == 0


@pytest.mark.parametrize("streams", [0, 17])
def test_limit_that_is_none_changes_nothing(pair, streams):
    before = pair.destination.prepare_destination("vm1", "127.0.0.1:9", streams=2)
    with pytest.raises(ControlError, match="streams") as error:
        pair.destination.call("SetLimits", id="vm1", bulk=False, streams=streams)
    assert error.value.code == "INVALID_ARGUMENT"
    assert pair.destination.call("Get", id="vm1") == before


def test_limits_set_before_the_vmm_attaches_are_those_it_starts_with(pair):
    pair.destination.prepare_destination("vm1", pair.source.address, streams=1)
    pair.destination.call("SetLimits", id="vm1", streams=3, bandwidth_bytes_per_s=MIB)
    # The same Prepare still finds the same migration.
    vmms = pair.attach("vm1", {"streams": 1})
    pair.start("vm1")
    migration = pair.destination.wait_for_state("vm1", "postcopy")
    assert (migration["streams"], migration["limits"]["bandwidth_bytes_per_s"]) == (3, MIB)
    harness.eventually(lambda: pair.destination.threads("bulk") == 3, "3 bulk threads")
    pair.destination.call("SetLimits", id="vm1", bandwidth_bytes_per_s=0)
    pair.finish("vm1", *vmms)


def test_two_migrations_at_the_same_time_on_one_pair(pair):
    first = pair.attach("vm1", memory="64M")
    second = pair.attach("vm2", memory="64M", seed=2)
    pair.start("vm1")
    pair.start("vm2")
    pair.finish("vm1", *first)
    pair.finish("vm2", *second)


def test_a_daemon_is_source_and_destination_at_the_same_time(host):
    """Two guests change places."""
    a, b = host.daemon("source"), host.daemon("destination")
    there = attach(host, a, b, "there")
    back = attach(host, b, a, "back")
    b.call("Start", id="there")
    a.call("Start", id="back")
    for daemon in (a, b):
        daemon.wait_for_state("there", "complete")
        daemon.wait_for_state("back", "complete")
    assert_guest_is_whole(there[1])
    assert_guest_is_whole(back[1])


def test_ten_guests_one_after_the_other_leave_nothing_in_the_daemons(host):
    # Of the last some hundred KiB are kept for its report.
    pair = Pair(host, extra=["--max-ended", "1"])

    def one(name):
        vmms = pair.attach(name, memory="16M")
        pair.start(name)
        pair.finish(name, *vmms)
        for vmm in vmms:
            vmm.wait()

    one("first")
    daemons = (pair.source, pair.destination)
    before = [daemon.resources() for daemon in daemons]
    for number in range(10):
        one("vm%d" % number)
    for daemon, was in zip(daemons, before):
        harness.eventually(lambda: all(daemon.resources()[what] <= was[what]
                                       for what in ("fds", "threads")),
                           "%s is back at %s" % (daemon.name, was))
        if not harness.sanitizer():
            assert daemon.resources()["rss_kib"] < was["rss_kib"] + 10 * 256


def test_large_vmstate_arrives_whole(pair):
    """minivmm checks its padding when it loads."""
    migrate(pair, memory="16M", vmstate_pad=40 * MIB)


def test_vmstate_beyond_the_daemon_s_limit_lets_the_guest_run_on(host):
    source = host.daemon("source", extra=["--max-vmstate", str(1 << 20)])
    destination = host.daemon("destination")
    source_vmm, _ = attach(host, source, destination, "vm1", memory="16M", vmstate_pad=2 * MIB)
    destination.call("Start", id="vm1")
    assert "vmstate" in destination.wait_for_state("vm1", "failed")["reason"]
    assert_guest_runs_on(source_vmm)


def test_warm_migration_waits_for_switchover(pair):
    vmms = pair.attach("vm1")
    assert pair.destination.call("Get", id="vm1")["peer_version"] == ""
    pair.start("vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    harness.eventually(lambda: pair.destination.call("Get", id="vm1")["waiting"], "it is held")
    pair.destination.call("Switchover", id="vm1")
    pair.finish("vm1", *vmms)
    # Both say it, and it is known still when all is over.
    version = subprocess.run([harness.BUILD / "src/postcopyd/postcopyd", "--version"],
                             capture_output=True, text=True).stdout.split()[1]
    for daemon in pair.source, pair.destination:
        assert daemon.call("Get", id="vm1")["peer_version"] == version


def test_cancel_before_switchover_lets_the_source_guest_run_on(pair):
    source, destination = pair.attach("vm1")
    pair.start("vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Cancel", id="vm1")
    pair.destination.wait_for_state("vm1", "cancelled")
    assert_guest_runs_on(source)
    assert destination.wait() != 0
    assert not [event for event in destination.events if event["event"] == "resumed"]


def test_cancel_on_the_source_before_switchover_lets_its_guest_run_on(pair):
    source, _ = pair.attach("vm1")
    pair.start("vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    assert pair.source.call("Cancel", id="vm1")["state"] == "cancelled"
    assert_guest_runs_on(source)
    pair.destination.wait_for_state("vm1", "failed")


def test_cancel_after_switchover_is_refused_and_the_migration_completes(pair):
    vmms = pair.attach("vm1", {"bulk": False, "prefetch": False})
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    for daemon in (pair.source, pair.destination):
        with pytest.raises(ControlError) as caught:
            daemon.call("Cancel", id="vm1")
        assert caught.value.code == "FAILED_PRECONDITION"
    pair.destination.call("SetLimits", id="vm1", bulk=True, prefetch=True)
    pair.finish("vm1", *vmms)


def test_start_twice_changes_nothing(pair):
    vmms = pair.attach("vm1")
    pair.start("vm1")
    pair.start("vm1")
    pair.finish("vm1", *vmms)
    assert pair.start("vm1")["state"] == "complete"


def test_report_tells_the_course_of_the_migration(pair):
    migrate(pair, memory="64M", vcpus=2)
    report = pair.destination.call("GetReport", id="vm1")
    timeline = report["timeline"]
    assert timeline == sorted(timeline)
    assert timeline[-1][1] == report["pages_total"]
    assert sum(count for _, count in report["fault_histogram"]) == report["fault_us"]["count"]
    assert len(report["fault_dots"]) <= report["fault_us"]["count"]
    times = [at_ms for at_ms, _, _ in report["fault_dots"]]
    assert times == sorted(times)
    assert report["fault_dots_every"].bit_count() == 1
    # The slowest are among them, whatever else is.
    assert {(fault["at_ms"], fault["us"]) for fault in report["slow_faults"] if not fault["minor"]} <= \
        {(at_ms, us) for at_ms, us, _ in report["fault_dots"]}
    assert all(0 <= phase < len(report["phases"]) for _, _, phase in report["fault_dots"])
    # With eBPF there are "entry" and "wakeup" as well, of those that it saw.
    assert set(report["fault_phases_us"]) - set(report["phases"]) in (set(), {"entry", "wakeup"})
    assert all(report["fault_phases_us"][phase]["count"] == report["fault_us"]["count"]
               for phase in report["phases"])
    slow = report["slow_faults"]
    assert [fault["us"] for fault in slow] == sorted((fault["us"] for fault in slow), reverse=True)
    for fault in slow:
        # Each is rounded down to a tenth of a microsecond.
        assert abs(sum(fault["phases_us"]) - fault["us"]) < 1
        assert fault["address"] % 4096 == 0 and fault["tid"] > 0


def test_arrival_tells_what_came_when_and_by_whom(pair):
    migrate(pair, {"prefetch": False})
    report = pair.destination.call("GetReport", id="vm1")
    cells = report["arrival"]
    # A cell of 64 pages for each word, all of them here.
    assert [pages for pages, _, _ in cells] == [64] * (report["pages_total"] // 64)
    by_faults = sum(faults for _, _, faults in cells)
    assert 0 < by_faults <= report["faults"]["remote"]
    assert all(0 <= mean_ms <= report["total_ms"] for _, mean_ms, _ in cells)
    # Bulk goes from bottom to top.
    assert cells[0][1] < cells[-1][1]


def test_token_of_another_migration_fails_with_the_reason(pair):
    pair.source.prepare_source("vm1", token="11" * 32)
    pair.destination.prepare_destination("vm1", pair.source.address, token="22" * 32)
    source = pair.host.minivmm("source", pair.source, "vm1", memory="16M")
    destination = pair.host.minivmm("destination", pair.destination, "vm1", memory="16M")
    source.wait_for_event("attached")
    destination.wait_for_event("attached")
    pair.start("vm1")
    assert "token" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert pair.source.state("vm1") == "attached"


def test_guests_of_different_size_fail_before_switchover(pair):
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address)
    source = pair.host.minivmm("source", pair.source, "vm1", memory="32M")
    destination = pair.host.minivmm("destination", pair.destination, "vm1", memory="16M")
    source.wait_for_event("attached")
    destination.wait_for_event("attached")
    pair.start("vm1")
    assert "region" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert pair.source.state("vm1") == "attached"
    assert source.popen.poll() is None


@pytest.mark.parametrize("arguments", [["--backend", "paper"], ["--workload", "none"],
                                       ["--vcpus", "0"], ["--memory", "lots"], ["--no-such"]])
def test_minivmm_names_its_wrong_arguments(arguments):
    done = subprocess.run([harness.BUILD / "src/minivmm/minivmm", *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode != 0
    assert arguments[0].lstrip("-") in done.stderr


def fields(line):
    """A line of the log, logfmt, as a dictionary."""
    return {key: json.loads(value) if value.startswith('"') else value
            for key, value in re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|\S*)', line)}


def test_log_of_a_whole_migration_has_fields_and_no_secrets(host):
    pair = Pair(host, extra=["--log-level", "debug"])
    migrate(pair)
    for daemon, role in (pair.source, "source"), (pair.destination, "destination"):
        lines = [fields(line) for line in daemon.log().splitlines()]
        assert all(line["msg"] and line["level"] and
                   re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
                   for line in lines), daemon.log()
        states = [line for line in lines if "state" in line]
        assert [line["state"] for line in states] == [
            "prepared", "attached", "warming", "switching", "postcopy", "complete"]
        assert all(line["role"] == role and line["migration"] == "vm1" for line in states)
        assert [line["previous_state"] for line in states[1:]] == [
            line["state"] for line in states[:-1]]
        assert harness.TOKEN not in daemon.log()
        assert bytes.fromhex(harness.TOKEN).decode() not in daemon.log()
        assert "PRIVATE KEY" not in daemon.log()
        key = pathlib.Path(getattr(host.pki, role).key).read_text().splitlines()
        assert not [line for line in key[1:-1] if line in daemon.log()]
