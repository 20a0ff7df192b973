# SPDX-License-Identifier: Apache-2.0
"""Guests of Cloud Hypervisor, by a stand-in of it (cloud_hypervisor.py), moved by postcopyd and
postcopy-cloud-hypervisor: what a stock one says and does, and nothing else."""
import hashlib
import os
import random
import socket
import struct
import time

import pytest

import cloud_hypervisor as ch
import harness
import pyvmm
from keeper import KeptDaemon
from kept_adapter import PROGRAM, Adapter, CloudHypervisor

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))

MIB = 1 << 20
ONE = {"seed": 1, "slots": [{"slot": 0, "gpa": 0, "size": 4 * MIB, "file_offset": 0, "zone": "a"}]}
# Two zones; one of them on both sides of a hole, in one file, as Cloud Hypervisor makes it.
ZONES = {"seed": 2, "slots": [
    {"slot": 0, "gpa": 0, "size": 2 * MIB, "file_offset": 0, "zone": "a"},
    {"slot": 1, "gpa": 4 << 30, "size": MIB, "file_offset": 2 * MIB, "zone": "a"},
    {"slot": 5, "gpa": 5 << 30, "size": MIB, "file_offset": 0, "zone": "b"}]}
HUGE = {"seed": 3, "huge": True, "slots": [
    {"slot": 0, "gpa": 0, "size": 4 * MIB, "file_offset": 0, "zone": "a"}]}


class Pair:
    """Two daemons, two Cloud Hypervisors, two adapters."""

    def __init__(self, host, layout=None, mode="postcopy", paused=False, **limits):
        self.source = host.daemon("source", kind=KeptDaemon)
        self.destination = host.daemon("destination", kind=KeptDaemon)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, **limits)
        self.source_ch = CloudHypervisor(host, "source-ch", layout or ONE)
        self.destination_ch = CloudHypervisor(host, "destination-ch")
        self.send_path = host.dir / "send"
        self.receive_path = host.dir / "receive"
        self.source_adapter = Adapter(host, "source", self.source, "vm1", self.send_path)
        self.destination_adapter = Adapter(host, "destination", self.destination, "vm1",
                                           self.receive_path)
        self.destination_ch.ask("receive %s %s" % (self.receive_path, mode))
        harness.eventually(self.send_path.exists, "the adapter listens")
        if paused:
            self.source_ch.ask("pause")
        self.source_ch.ask("send %s" % self.send_path)
        for daemon in (self.source, self.destination):
            daemon.wait_for_state("vm1", "attached")

    def start(self, **params):
        self.destination.call("Start", id="vm1", **params)

    def wait_until_it_runs(self):
        harness.eventually(lambda: self.destination_ch.ask("state") == "Running",
                           "the guest runs at the destination")

    def limit(self, **limits):
        self.destination.call("SetLimits", id="vm1", **limits)

    def finish(self):
        for daemon in (self.destination, self.source):
            daemon.wait_for_state("vm1", "complete")
        assert self.source_adapter.status() == 0
        assert self.source_ch.wait() == 0
        assert self.destination_adapter.status() == 0
        assert self.destination_ch.ask("prefaulted") == "True"


def expected_content(layout, count):
    """As Vmm.boot() fills it."""
    rng = random.Random(layout["seed"])
    parts = {}
    for slot in layout["slots"]:
        content = rng.randbytes(slot["size"] * 3 // 4)
        parts[slot["gpa"]] = content + bytes(slot["size"] - len(content))
    whole = b"".join(parts[gpa] for gpa in sorted(parts))
    return hashlib.sha256(struct.pack("<Q", count) + whole[8:]).hexdigest()


def check(pair, layout):
    """The guest has read all of its memory, and it is what the source's had when it was paused: the
    count is in the vmstate as well."""
    seen = harness.eventually(lambda: pair.destination_ch.ask("seen"),
                              "the guest has read all of its memory")
    assert seen == expected_content(layout, int(pair.destination_ch.ask("vmstate")))


def has_huge_pages(n):
    with open("/proc/meminfo") as f:
        free = next(int(line.split()[1]) for line in f if line.startswith("HugePages_Free"))
    return free >= n


@pytest.mark.parametrize("layout", [ONE, ZONES, HUGE], ids=["one", "zones", "huge"])
def test_guest_moves_whole(host, layout):
    if layout is HUGE and not has_huge_pages(4):
        pytest.skip("fewer than 4 huge pages of 2 MiB are free")
    pair = Pair(host, layout)
    # It runs on while it is only offered.
    count = int(pair.source_ch.ask("count"))
    harness.eventually(lambda: int(pair.source_ch.ask("count")) > count, "the source's guest runs")
    pair.start()
    check(pair, layout)
    pair.finish()


def test_guest_that_was_paused_stays_paused(host):
    pair = Pair(host, ONE, paused=True)
    pair.start()
    pair.finish()
    assert pair.destination_ch.ask("state") == "Paused"
    pair.destination_ch.ask("resume")
    check(pair, ONE)


def test_no_page_is_made_of_nothing(host):
    """Zero pages are holes in the file until they are asked for: CONTINUE would find none. Bulk has
    brought all of them before the first was asked for."""
    pair = Pair(host, ZONES)
    pair.start()
    pair.destination.wait_for_state("vm1", "complete")
    check(pair, ZONES)
    pair.finish()


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_adapter_killed_again_and_again_goes_on(host, victim):
    """Neither side's Cloud Hypervisor sees anything of it: no request is lost, and none is answered
    twice."""
    pair = Pair(host, ONE, bulk=False, prefetch=False)
    pair.start()
    pair.wait_until_it_runs()
    adapter = getattr(pair, victim + "_adapter")
    seed = random.randrange(1 << 32)
    print("seed", seed)
    moments = random.Random(seed)
    for _ in range(10):
        time.sleep(moments.random() / 20)
        if adapter.popen.poll() is not None:
            break
        adapter.crash_and_restart()
    pair.limit(bulk=True)
    check(pair, ONE)
    pair.finish()


def asks_for_pages(pair):
    harness.eventually(lambda: int(pair.destination_ch.ask("asked")), "it loads")


@pytest.mark.parametrize("who", ["adapter", "daemon", "both"])
def test_killed_while_the_guest_is_loaded(host, who):
    """The daemon goes on. The adapter gives up, for it can't know what Cloud Hypervisor has heard: the
    source's guest runs on, and the destination's never."""
    pair = Pair(host, ONE)
    pair.destination_ch.ask("slow 2")
    pair.start()
    asks_for_pages(pair)
    adapter, daemon = pair.destination_adapter, pair.destination
    victims = {"adapter": [adapter], "daemon": [daemon], "both": [adapter, daemon]}[who]
    for victim in victims:
        victim.crash()
    for victim in reversed(victims):
        victim.start()
    if who == "daemon":
        check(pair, ONE)
        pair.finish()
        return
    # Cloud Hypervisor exits when it is hung up on, which the daemon may see first.
    reason = daemon.wait_for_state("vm1", "failed")["reason"]
    assert "ended while it loaded" in reason or "the destination VMM is gone" in reason, reason
    harness.eventually(lambda: pair.source_ch.ask("state") == "Running", "it runs at the source")
    assert adapter.status() == 1
    assert pair.destination_ch.wait() == 3


def test_cancel_of_the_source_while_the_guest_is_loaded_is_too_late(host):
    pair = Pair(host, ONE)
    pair.destination_ch.ask("slow 1")
    pair.start()
    asks_for_pages(pair)
    with pytest.raises(harness.ControlError):
        pair.destination.call("Cancel", id="vm1")
    check(pair, ONE)
    pair.finish()


def test_who_traps_absent_pages_alone_never_runs(host):
    """As version 53 did: a page that is being filled would be read in part."""
    pair = Pair(host, ONE, mode="postcopy-missing")
    pair.start()
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert "version 54" in reason, reason
    harness.eventually(lambda: pair.source_ch.ask("state") == "Running",
                       "the source's guest runs on")


@pytest.mark.parametrize("point", range(5))
@pytest.mark.parametrize("victim", ["source", "destination"])
def test_adapter_killed_at_any_moment_leaves_one_guest(host, victim, point):
    """It is moved, or runs on where it was; whatever was being said. Not both, and not neither."""
    pair = Pair(host, ONE)
    moment_s = random.random() * 0.3
    print("after %.4f s" % moment_s)
    pair.start()
    time.sleep(moment_s)
    adapter = getattr(pair, victim + "_adapter")
    # One that has ended is not started again.
    if adapter.popen.poll() is None:
        adapter.crash_and_restart()
    state = pair.destination.wait_for_state("vm1", "complete", "failed", "cancelled")["state"]
    if state == "complete":
        check(pair, ONE)
        pair.finish()
        return
    pair.source.wait_for_state("vm1", "failed", "cancelled")
    harness.eventually(lambda: pair.source_ch.ask("state") == "Running", "it runs at the source")
    count = int(pair.source_ch.ask("count"))
    harness.eventually(lambda: int(pair.source_ch.ask("count")) > count, "it runs at the source")
    assert pair.destination_ch.state() != "Running"


def test_adapter_killed_while_it_waits_goes_on(host):
    pair = Pair(host, ONE)
    for adapter in (pair.source_adapter, pair.destination_adapter):
        adapter.crash_and_restart()
    pair.start()
    check(pair, ONE)
    pair.finish()


@pytest.mark.parametrize("who", ["source", "destination", "both"])
def test_daemon_killed_goes_on(host, who):
    pair = Pair(host, ONE, bulk=False, prefetch=False)
    pair.start()
    pair.wait_until_it_runs()
    for name in ("source", "destination"):
        if who in (name, "both"):
            getattr(pair, name).crash_and_restart()
    pair.limit(bulk=True)
    check(pair, ONE)
    pair.finish()


def test_both_killed_at_the_destination_goes_on(host):
    pair = Pair(host, ONE, bulk=False, prefetch=False)
    pair.start()
    pair.wait_until_it_runs()
    pair.destination_adapter.crash()
    pair.destination.crash()
    pair.destination_adapter.start()
    pair.destination.start()
    pair.limit(bulk=True)
    check(pair, ONE)
    pair.finish()


def test_who_does_not_trap_its_memory_never_runs(host):
    """memory_mode=postcopy was left out: the guest would have run on zeroes."""
    pair = Pair(host, ONE, mode="precopy")
    pair.start()
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert "memory_mode=postcopy" in reason, reason
    assert pair.destination_adapter.status() == 1
    harness.eventually(lambda: pair.source_ch.ask("state") == "Running",
                       "the source's guest runs on")
    assert "failed" in harness.eventually(
        lambda: pair.destination_ch.ask("result") != "none" and pair.destination_ch.ask("result"),
        "the destination has given up")


def test_migration_that_is_cancelled_gives_the_guest_back(host):
    pair = Pair(host, ONE)
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Cancel", id="vm1")
    assert pair.source_adapter.status() == 1
    assert pair.destination_adapter.status() == 1
    harness.eventually(lambda: "failed" in pair.source_ch.ask("result"), "the source is told")
    assert pair.source_ch.ask("state") == "Running"


def test_destination_that_dies_before_it_has_anything_costs_nothing(host):
    pair = Pair(host, ONE)
    pair.destination_ch.popen.kill()
    pair.destination.wait_for_state("vm1", "prepared")
    assert pair.destination_adapter.status() == 1
    assert pair.source_ch.ask("state") == "Running"
    assert pair.source.state("vm1") == "attached"


def test_destination_that_refuses_the_guest_gives_it_back(host):
    """It listens for a guest no more when the vmstate comes."""
    pair = Pair(host, ONE)
    pair.destination_ch.ask("abort")
    pair.destination_adapter.has_said("closed the connection")
    pair.start()
    pair.destination.wait_for_state("vm1", "failed")
    harness.eventually(lambda: pair.source_ch.ask("state") == "Running" and
                       "failed" in pair.source_ch.ask("result"), "the source's guest runs on")


def test_destination_that_dies_is_told_and_the_source_stays_paused(host):
    pair = Pair(host, ONE, bulk=False, prefetch=False)
    pair.start()
    pair.wait_until_it_runs()
    pair.destination.wait_for_state("vm1", "postcopy")
    harness.eventually(lambda: pair.destination.call("Get", id="vm1")["downtime_us"],
                       "it has been said to run")
    pair.destination_ch.popen.kill()
    assert "VMM is gone" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert pair.source_ch.ask("state") == "Paused"
    # SIGTERM is no reason to run it twice.
    pair.source_adapter.popen.terminate()
    pair.source_adapter.has_said("not now")
    assert pair.source_ch.ask("state") == "Paused"


@pytest.mark.parametrize("method", ["RunOn", "Release"])
def test_whose_destination_is_gone_for_good(host, method):
    """By command it runs on at the source; or its source ends, and nothing runs it again."""
    pair = Pair(host, ONE, bulk=False, prefetch=False)
    pair.start()
    pair.wait_until_it_runs()
    pair.destination_ch.popen.kill()
    pair.destination.crash()
    holder = pair.source.call("Get", id="vm1")["holder"]

    def fence():
        try:
            return pair.source.call(method, id="vm1", confirm_holder=holder)
        except harness.ControlError as refused:
            assert "not gone" in refused.message, refused
            return None

    harness.eventually(fence, "the destination has been silent for long enough", 30)
    if method == "RunOn":
        harness.eventually(lambda: pair.source_ch.ask("state") == "Running", "it runs on")
        assert pair.source_adapter.status() == 1
    else:
        assert pair.source_ch.wait() == 0
        assert pair.source_adapter.status() == 0
    pair.destination.start()


class Sender:
    """A Cloud Hypervisor that says what a test wants, to a source's adapter."""

    def __init__(self, host):
        self.daemon = host.daemon("source")
        self.daemon.prepare_source("vm1")
        self.path = host.dir / "send"
        self.adapter = Adapter(host, "source", self.daemon, "vm1", self.path)
        harness.eventually(self.path.exists, "the adapter listens")
        self.sock = None
        host.later(self.close)

    def connect(self):
        self.close()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(harness.DEADLINE_S)
        self.sock.connect(str(self.path))
        return self

    def say(self, *args, payload=b"", **kwargs):
        self.sock.sendall(ch.request(*args, **kwargs) + payload)
        return self

    def answer(self):
        try:
            return struct.unpack("<HHIQ", ch.read_exact(self.sock, 16))[0]
        except (EOFError, ConnectionResetError):
            return None

    def close(self):
        if self.sock:
            self.sock.close()
            self.sock = None


WRONG = {
    "version": (lambda s: s.say(ch.START, version=1), "version 1"),
    "unknown command": (lambda s: s.say(23), "command 23"),
    "no Start": (lambda s: s.say(ch.STATE, 3), "State where Start was due"),
    "no descriptor": (lambda s: (s.say(ch.START), s.answer(),
                                 s.say(ch.MEMORY_FD, 4, payload=bytes(4))),
                      "without a descriptor"),
    "memory by copy": (lambda s: (s.say(ch.START), s.answer(), s.say(ch.MEMORY)), "Memory before"),
    "Config of another": (lambda s: (s.say(ch.START), s.answer(),
                                     s.say(ch.CONFIG, 2, payload=b"{}")), "guest_ram_mappings"),
    "gives up": (lambda s: (s.say(ch.START), s.answer(), s.say(ch.ABANDON)), "Abandon"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused_by_name(host, case):
    """And the next try is taken."""
    sender = Sender(host).connect()
    say, text = WRONG[case]
    say(sender)
    assert sender.answer() == ch.ERROR
    assert sender.answer() is None
    sender.adapter.has_said(text)
    sender.connect().say(ch.START)
    assert sender.answer() == ch.OK
    assert sender.daemon.state("vm1") == "prepared"


def test_source_that_ends_before_complete_runs_on(host):
    """Between Config's answer and Complete: it died, or was refused something by a device."""
    pair_content = pyvmm.guest_content(MIB)
    sender = Sender(host)
    destination = host.daemon("destination")
    destination.prepare_destination("vm1", sender.daemon.address)
    fd = pyvmm.memfd(pair_content)
    pyvmm.map_shared(fd, MIB)  # it is found in /proc/PID/maps
    sender.connect().say(ch.START)
    assert sender.answer() == ch.OK
    sender.say(ch.MEMORY_FD, 4)
    pyvmm.Socket.send(sender, struct.pack("<I", 0), [fd])
    assert sender.answer() == ch.OK
    config = (b'{"memory_manager_data":{"guest_ram_mappings":[{"slot":0,"gpa":0,"size":%d,'
              b'"file_offset":0}]}}' % MIB)
    sender.say(ch.CONFIG, len(config), payload=config)
    sender.daemon.wait_for_state("vm1", "attached")
    vmm = pyvmm.DestinationVmm(destination, "vm1", MIB)
    host.later(vmm.close)
    destination.call("Start", id="vm1")
    assert sender.answer() == ch.OK
    sender.say(ch.STATE, 2, payload=b"{}")
    assert sender.answer() == ch.OK
    sender.close()
    reason = sender.daemon.wait_for_state("vm1", "failed")["reason"]
    assert "closed the connection" in reason, reason
    assert vmm.expect_failure()[0]
    assert sender.adapter.status() == 1
    os.close(fd)


def test_without_a_store_it_does_not_start(host):
    """Where it died then the guest would be lost, or run twice."""
    process = harness.Process("adapter", [PROGRAM, "source", "--id", "vm1", "--listen",
                                          host.dir / "send"], host.dir / "alone.log")
    host._started(process)
    assert process.wait() == 2
    assert "postcopy-cloud-hypervisor-source@" in process.log()
