# SPDX-License-Identifier: Apache-2.0
"""postcopy-firecracker moves the guest of a Firecracker, or of what stands in for one."""
import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
INTEGRATION = HERE.parent / "integration"
sys.path.insert(0, str(INTEGRATION))

sys.path.insert(0, str(HERE))

import firecracker  # noqa: E402
import harness  # noqa: E402
import pyvmm  # noqa: E402
from keeper import KeptDaemon  # noqa: E402
from microvm import PROGRAM, MicroVm  # noqa: E402

spec = importlib.util.spec_from_file_location("integration_fixtures", INTEGRATION / "conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
host, pki = fixtures.host, fixtures.pki

MIB = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Pair:
    def __init__(self, host, kind=harness.Daemon, regions="16", huge=False, jails=(None, None),
                 adapters_first=False, **params):
        self.source = host.daemon("source", kind=kind)
        self.destination = host.daemon("destination", kind=kind)
        if not adapters_first:
            self.prepare(params)
        self.there = MicroVm(host, self.source, "source", regions=regions, huge=huge, jail=jails[0])
        self.here = MicroVm(host, self.destination, "destination", jail=jails[1])
        self.size = sum(int(size) for size in regions.split(",")) * MIB
        if adapters_first:
            for vm in (self.there, self.here):
                harness.eventually(lambda vm=vm: "waiting for it to be prepared" in vm.said(),
                                   "the adapter waits")
            self.prepare(params)
        for daemon in (self.source, self.destination):
            daemon.wait_for_state("vm1", "attached")

    def prepare(self, params):
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, **params)

    def start(self, **params):
        self.destination.call("Start", id="vm1", **params)

    def content(self, count, ballooned=0):
        content = struct.pack("<Q", count) + firecracker.guest_content(self.size, 1)[8:]
        return content[:self.size - ballooned] + bytes(ballooned)

    def finish(self):
        seen = self.here.seen()
        # As it was at the pause, both in the state file and in memory.
        assert seen["count"] == seen["vmstate"] > 0
        assert seen["seen"] == hashlib.sha256(self.content(seen["count"])).hexdigest()
        for daemon in (self.destination, self.source):
            daemon.wait_for_state("vm1", "complete")
        assert self.here.state() == "Running"
        # Nobody can resume it: its guest is here.
        assert self.there.vmm.wait(harness.DEADLINE_S) == -signal.SIGKILL
        for vm in (self.there, self.here):
            assert vm.adapter.wait(harness.DEADLINE_S) == 0, vm.said()
            assert not list(vm.dir.iterdir())


@pytest.mark.parametrize("regions", ["16", "8,4,2"])
def test_a_guest_moves(host, regions):
    """Where its memory is cut (around the hole for devices) only the destination is told."""
    pair = Pair(host, regions=regions)
    pair.start()
    pair.finish()


def test_adapters_that_are_there_before_it_is_prepared(host):
    """As a service that is started at boot; it said that there is no such migration, and was failed."""
    pair = Pair(host, adapters_first=True)
    pair.start()
    pair.finish()


def jailed():
    if os.geteuid() or not os.path.exists("/dev/userfaultfd"):
        pytest.skip("a jail wants root and /dev/userfaultfd")
    return 61001, 61002


def test_a_jailed_guest_moves(host):
    """What each Firecracker calls a path is within its root, links too, and what is put there is its user's."""
    pair = Pair(host, jails=jailed())
    assert [vm.dir.stat().st_uid for vm in (pair.there, pair.here)] == [61001, 61002]
    assert (pair.there.dir / "vm1.memory").stat().st_uid == 61001
    pair.start()
    pair.finish()


def test_a_jailed_firecracker_can_not_have_another_file_made_its_own(host):
    """It may write the directory that its socket is in, and was given what a link in the socket's place
    named, outside of the jail."""
    if harness.sanitizer():
        pytest.skip("a sanitizer wants to be the first library")
    pair = Pair(host, jails=jailed())
    victim = host.dir / "victim"
    victim.touch(0o644)
    pair.here.kill_adapter()
    pair.here.env = {"LD_PRELOAD": str(harness.BUILD / "tests/vmms/swap.so"), "SWAP_TO": str(victim)}
    pair.here.start_adapter()
    pair.start()
    pair.destination.wait_for_state("vm1", "failed")
    assert (victim.stat().st_uid, victim.stat().st_mode & 0o777) == (0, 0o644)
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")


def free_huge_pages():
    return int(pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
               .read_text())


@pytest.mark.parametrize("regions", ["16", "8,6"])
@pytest.mark.parametrize("kept", [False, True], ids=["", "taken-over"])
def test_a_guest_of_huge_pages_moves(host, regions, kept):
    """Each is placed when all of it has come: a part of one can't be."""
    if free_huge_pages() < 24:
        pytest.skip("fewer than 24 free huge pages of 2 MiB")
    pair = Pair(host, kind=KeptDaemon if kept else harness.Daemon, regions=regions, huge=True,
                bulk=not kept, prefetch=not kept)
    pair.start()
    if kept:
        pair.destination.wait_for_state("vm1", "postcopy")
        pair.destination.crash_and_restart()
        pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.finish()


def test_huge_pages_that_nobody_touches_are_there_in_the_end(host):
    """One whose last part is zero waits on its stage for a fault: it read as zeroes when the
    migration was complete."""
    if free_huge_pages() < 24:
        pytest.skip("fewer than 24 free huge pages of 2 MiB")
    pair = Pair(host, regions="16", huge=True)
    pair.here.guest_waits.touch()
    pair.start()
    pair.destination.wait_for_state("vm1", "complete")
    pair.here.guest_waits.unlink()
    pair.finish()


@pytest.mark.parametrize("other", [False, True], ids=["gone", "replaced"])
def test_memory_that_the_daemon_does_not_have_is_not_written(host, other):
    """Firecracker would make a new file, as large, and the guest's memory be zeroes."""
    pair = Pair(host)
    memory = pair.there.dir / "vm1.memory"
    memory.unlink()
    if other:
        memory.write_bytes(b"")
    pair.start()
    assert pair.destination.wait_for_state("vm1", "failed", "complete")["state"] == "failed"
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
    assert pair.there.adapter.wait(harness.DEADLINE_S) == 1


def test_a_state_that_can_not_be_given_has_the_guest_run_on(host):
    """It was paused by then, and stood still for good. Here its file has a second name."""
    pair = Pair(host)
    pair.start()
    until = time.monotonic() + harness.DEADLINE_S
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            (pair.there.dir / "second").hardlink_to(pair.there.dir / "vm1.vmstate")
            break
    assert pair.destination.wait_for_state("vm1", "failed", "complete")["state"] == "failed"
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")


def test_a_load_that_nobody_can_do_gives_the_guest_back(host):
    """As of a snapshot by another version: the real one exits, too."""
    pair = Pair(host)
    broken = pair.here.dir / "vm1.vmstate"
    broken.mkdir()
    pair.start()
    harness.eventually(lambda: pair.source.state("vm1") == "cancelled", "it is given back")
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
    assert pair.there.adapter.wait(harness.DEADLINE_S) == 1
    assert pair.here.adapter.wait(harness.DEADLINE_S) == 1
    broken.rmdir()


def load_and_hang(pair):
    """Firecracker is told to load, and does not get to it."""
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.here.vmm.send_signal(signal.SIGSTOP)
    pair.destination.call("Switchover", id="vm1")
    harness.eventually((pair.here.dir / "vm1.uffd").exists, "the adapter awaits its memory")
    assert pair.destination.state("vm1") == "switching"


def test_firecracker_killed_while_it_loads_gives_the_guest_back(host):
    pair = Pair(host)
    load_and_hang(pair)
    pair.here.vmm.kill()
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    # Whoever sees it first.
    assert "VMM is gone" in reason or "Firecracker" in reason
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
    assert pair.there.adapter.wait(harness.DEADLINE_S) == 1


def test_cancel_while_it_loads_gives_the_guest_back_and_ends_the_microvm(host):
    """It can't be loaded a second time, and would wait for its pages for ever."""
    pair = Pair(host)
    load_and_hang(pair)
    pair.destination.call("Cancel", id="vm1")
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
    assert pair.here.vmm.wait(harness.DEADLINE_S) == -signal.SIGKILL


def test_a_firecracker_with_a_guest_is_no_destination(host):
    daemon = host.daemon("destination")
    source = host.daemon("source")
    source.prepare_source("vm1")
    daemon.prepare_destination("vm1", source.address)
    vm = MicroVm(host, daemon, "destination", regions="1")
    assert vm.adapter.wait(harness.DEADLINE_S) == 1
    assert "has a guest already" in vm.said()
    assert vm.state() == "Running"


@pytest.mark.parametrize("victim", ["there", "here"])
def test_an_adapter_killed_at_any_moment_comes_again(host, victim):
    pair = Pair(host, kind=KeptDaemon, regions="32")
    vm = getattr(pair, victim)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    moments = random.Random(seed)
    for number in range(8):
        if number == 1:
            pair.start()
        time.sleep(moments.random() / 8)
        if vm.adapter.poll() is None:
            vm.kill_adapter()
            vm.start_adapter()
    if pair.destination.wait_for_state("vm1", "complete", "failed")["state"] == "failed":
        # Killed before Firecracker had said what its memory is: the guest is the source's still.
        harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
        return
    seen = pair.here.seen()
    assert seen["seen"] == hashlib.sha256(pair.content(seen["count"])).hexdigest()
    assert pair.there.vmm.wait(harness.DEADLINE_S) == -signal.SIGKILL


def test_an_adapter_killed_while_firecracker_loads_goes_on(host):
    """The faults of the load wait for the source, and so does Firecracker's API."""
    pair = Pair(host, kind=KeptDaemon)
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Switchover", id="vm1")
    handshake = pair.here.dir / "vm1.handshake"
    harness.eventually(handshake.exists, "Firecracker has said what its memory is")
    pair.here.kill_adapter()
    pair.here.start_adapter()
    pair.finish()


def test_an_adapter_takes_the_userfaultfd_out_of_firecracker(host):
    """The one before was killed when Firecracker had said what its memory is, and the daemon had not
    heard of it: Firecracker never says it again. Here it is this test."""
    pair = Pair(host)
    load_and_hang(pair)
    pair.here.kill_adapter()
    path = pair.here.dir / "vm1.uffd"
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(harness.DEADLINE_S)
        pair.here.vmm.send_signal(signal.SIGCONT)
        connection = listener.accept()[0]
        text, fds, _, _ = socket.recv_fds(connection, 65536, 1)
        (pair.here.dir / "vm1.handshake").write_bytes(text)
        os.close(fds[0])
        connection.close()
    assert pair.destination.state("vm1") == "switching"
    pair.here.start_adapter()
    pair.finish()


def test_a_load_that_was_begun_and_not_told_is_given_up(host):
    """Nobody knows where its memory is."""
    pair = Pair(host)
    load_and_hang(pair)
    pair.here.kill_adapter()
    pair.here.start_adapter()
    assert "what Firecracker has said" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    harness.eventually(lambda: pair.there.state() == "Running", "the guest runs on")
    assert pair.here.vmm.wait(harness.DEADLINE_S) == -signal.SIGKILL


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_a_daemon_killed_in_postcopy_goes_on(host, victim):
    pair = Pair(host, kind=KeptDaemon, bulk=False, prefetch=False)
    pair.start()
    pair.destination.wait_for_state("vm1", "postcopy")
    getattr(pair, victim).crash_and_restart()
    pair.finish()


def test_a_balloon_inflates_while_pages_come(host):
    """Its event is read at once: else Firecracker and every page would wait."""
    pair = Pair(host, regions="32", bulk=False, prefetch=False)
    pair.start()
    pair.destination.wait_for_state("vm1", "postcopy")
    harness.eventually(lambda: pair.here.state() == "Running", "it is resumed")
    pair.here.call("PATCH", "/balloon", {"amount_mib": 8})
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.here.seen()
    pair.destination.wait_for_state("vm1", "complete")


def test_a_snapshot_is_restored_to_two_hosts_at_once(host):
    """From one copy of its memory: no guest runs in it, so nobody owns it."""
    source = host.daemon("source")
    destinations = [host.daemon("destination") for _ in range(2)]
    ids = ["vm1", "vm2"]
    # A snapshot, as Firecracker makes it.
    original = MicroVm(host, source, "source", "original", regions="8", adapter=False)
    memory, vmstate = host.dir / "memory", host.dir / "vmstate"
    original.call("PATCH", "/vm", {"state": "Paused"})
    original.call("PUT", "/snapshot/create", {"snapshot_type": "Full", "snapshot_path": str(vmstate),
                                              "mem_file_path": str(memory)})
    content = memory.read_bytes()
    for name, destination in zip(ids, destinations):
        source.prepare_source(name)
        destination.prepare_destination(name, source.address)
    here = [MicroVm(host, destination, "destination", name)
            for name, destination in zip(ids, destinations)]
    server = subprocess.Popen([str(PROGRAM), "serve", "--id", ids[0], "--id", ids[1], "--memory",
                               str(memory), "--vmstate", str(vmstate), "--socket",
                               str(source.vmm_path)])
    host.later(lambda: (server.kill(), server.wait()))
    for name, destination in zip(ids, destinations):
        source.wait_for_state(name, "attached")
        destination.wait_for_state(name, "attached")
        destination.call("Start", id=name)
    for name, vm in zip(ids, here):
        assert vm.seen()["seen"] == hashlib.sha256(content).hexdigest()
        vm.daemon.wait_for_state(name, "complete")
    assert server.wait(harness.DEADLINE_S) == 0
    assert original.state() == "Paused"
