# SPDX-License-Identifier: Apache-2.0
"""A VMM dies, or hangs up, at each point of a migration: the daemon says so, lets go of
what it held, and serves on."""
import os
import pathlib
import subprocess
import threading

import pytest

import harness
import pyvmm
import stream
from stream import FakeSource
from test_recover import kernel_reads

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Pair:
    """Two daemons, and two VMMs without vCPUs that do what a test tells them."""

    def __init__(self, host):
        self.source = host.daemon("source")
        self.destination = host.daemon("destination")
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address)
        self.fds = {daemon: daemon.resources()["fds"]
                    for daemon in (self.source, self.destination)}
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.destination_vmm = pyvmm.DestinationVmm(self.destination, "vm1", SIZE)

    def start(self, **params):
        self.destination.call("Start", id="vm1", **params)

    def lets_go(self, daemon):
        """The daemon holds no more descriptors than before the VMM came."""
        harness.eventually(lambda: daemon.resources()["fds"] <= self.fds[daemon],
                           "%s has let go of its VMM's descriptors" % daemon.name)

    def close(self):
        self.source_vmm.close()
        self.destination_vmm.close()


@pytest.fixture
def pair(host):
    pair = Pair(host)
    yield pair
    pair.close()


def assert_reason_names_the_vmm(daemon, *states):
    migration = daemon.wait_for_state("vm1", *states)
    assert "VMM" in migration["reason"], migration["reason"]


def test_source_vmm_gone_while_attached_may_come_again(pair):
    pair.source_vmm.sock.close()
    pair.source.wait_for_state("vm1", "prepared")
    pair.lets_go(pair.source)
    pyvmm.SourceVmm(pair.source, "vm1", pair.content).close()


def test_destination_vmm_gone_while_attached_may_come_again(pair):
    pair.destination_vmm.close()
    pair.destination.wait_for_state("vm1", "prepared")
    pair.lets_go(pair.destination)
    pyvmm.DestinationVmm(pair.destination, "vm1", SIZE).close()
    assert pair.source.state("vm1") == "attached"


def test_source_vmm_gone_while_warming(pair):
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.source_vmm.sock.close()
    assert_reason_names_the_vmm(pair.source, "failed")
    assert pair.destination.wait_for_state("vm1", "failed")["reason"]
    pair.destination_vmm.expect_failure()
    pair.destination_vmm.close()
    pair.lets_go(pair.source)
    pair.lets_go(pair.destination)


def test_destination_vmm_gone_while_warming_lets_the_source_guest_run_on(pair):
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination_vmm.close()
    assert_reason_names_the_vmm(pair.destination, "failed")
    pair.lets_go(pair.destination)
    pair.source_vmm.expect(pyvmm.RESUME)
    pair.source.wait_for_state("vm1", "cancelled")


def test_source_vmm_gone_when_told_to_pause(pair):
    pair.start()
    pair.source_vmm.expect(pyvmm.PAUSE)
    pair.source_vmm.sock.close()
    assert_reason_names_the_vmm(pair.source, "failed")
    assert "VMM" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    pair.destination_vmm.expect_failure()


def test_destination_vmm_gone_before_it_loaded_resumes_the_source_guest(pair):
    """No vCPU runs before LOADED, so the guest has not run there."""
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.close()
    assert_reason_names_the_vmm(pair.destination, "failed")
    pair.source_vmm.expect(pyvmm.RESUME)
    pair.source.wait_for_state("vm1", "cancelled")
    pair.lets_go(pair.destination)


def test_destination_vmm_gone_after_it_loaded_leaves_the_guest_to_nobody(pair):
    """It may have run: the source guest must not run too, but its memory is kept."""
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.send(pyvmm.packet(pyvmm.LOADED))
    pair.destination_vmm.close()
    assert_reason_names_the_vmm(pair.destination, "failed")
    pair.lets_go(pair.destination)
    assert pair.source.state("vm1") in ("switching", "postcopy", "paused")


def test_destination_vmm_that_can_t_load_resumes_the_source_guest(pair):
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    text = b"unknown device"
    pair.destination_vmm.send(pyvmm.packet(
        pyvmm.ERROR, (22).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text))
    pair.source_vmm.expect(pyvmm.RESUME)
    assert "unknown device" in pair.destination.wait_for_state("vm1", "failed")["reason"]


def could_not_run(text=b"no vCPU has run"):
    return pyvmm.packet(pyvmm.COULD_NOT_RUN, (125).to_bytes(4, "little") +
                        len(text).to_bytes(4, "little") + text)


def test_destination_vmm_that_could_not_run_resumes_the_source_guest(pair):
    """What it said after LOADED was refused, and the guest stood still for ever."""
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.expect(pyvmm.VMSTATE)
    pair.destination_vmm.send(pyvmm.packet(pyvmm.LOADED))
    pair.destination_vmm.send(could_not_run())
    pair.source_vmm.expect(pyvmm.RESUME)
    assert "could not run the guest: no vCPU has run" in pair.destination.wait_for_state(
        "vm1", "failed")["reason"]
    pair.source.wait_for_state("vm1", "cancelled")


def test_destination_vmm_that_has_run_can_t_take_it_back(pair):
    """Two guests would run."""
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.source.wait_for_state("vm1", "postcopy")
    pair.destination_vmm.send(could_not_run())
    assert_reason_names_the_vmm(pair.destination, "failed")
    assert pair.source.state("vm1") == "postcopy"


def test_source_vmm_gone_in_postcopy_does_not_lose_the_guest(pair):
    """The daemon has the memory's descriptor: it needs the VMM no more."""
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.source_vmm.sock.close()
    pair.destination.call("SetLimits", id="vm1", bulk=True, prefetch=True)
    pair.destination_vmm.expect(pyvmm.COMPLETE)
    assert os.pread(pair.destination_vmm.memory_fd, SIZE, 0) == pair.content
    pair.destination.wait_for_state("vm1", "complete")
    pair.lets_go(pair.source)


def test_destination_vmm_gone_in_postcopy_ends_the_migration(pair):
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    pair.start()
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.destination_vmm.close()
    assert_reason_names_the_vmm(pair.destination, "failed")
    pair.lets_go(pair.destination)


def test_vmm_that_dies_while_a_thread_of_it_waits_for_a_page(host):
    """A source that never answers, a page fault that waits for it, and then a SIGKILL."""
    answers = threading.Event()

    def never(source, region, first_unit, mask, request_id):
        answers.wait(harness.DEADLINE_S)
        return b""

    source = FakeSource(host.pki.source, pyvmm.guest_content(SIZE), never)
    host.later(source.close)
    host.later(answers.set)
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", source.address, bulk=False, prefetch=False)
    before = daemon.resources()
    child = os.fork()
    if child == 0:
        try:
            vmm = pyvmm.DestinationVmm(daemon, "vm1", SIZE)
            daemon.call("Start", id="vm1")
            vmm.load()
            vmm.touch(7)[0].join()
        finally:
            os._exit(1)
    try:
        harness.eventually(lambda: source.asked, "the page is asked for")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert_reason_names_the_vmm(daemon, "failed")
    harness.eventually(lambda: daemon.resources()["fds"] <= before["fds"] and
                       daemon.resources()["threads"] <= before["threads"],
                       "the daemon has let go of everything")


def test_source_daemon_told_of_lost_destination_keeps_the_guest_s_memory(host):
    """Invariant: the source keeps everything until COMPLETE has been acknowledged."""
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    content = pyvmm.guest_content(SIZE)
    vmm = pyvmm.SourceVmm(daemon, "vm1", content)
    host.later(vmm.close)
    identity = host.pki.destination
    control, reply = stream.dial_stream(daemon.port, identity, stream.CONTROL, "vm1",
                                        regions=[stream.region(0, SIZE)])
    control.send(stream.frame(stream.SWITCHOVER))
    vmm.pause()
    assert control.receive()[0] == stream.VMSTATE
    control.send(stream.frame(stream.RESUMED))
    control.close()
    urgent, _ = stream.dial_stream(daemon.port, identity, stream.URGENT, "vm1", epoch=reply[2][0])
    urgent.send(stream.get(0, 0, 1))
    assert urgent.receive()[1][stream.PAGES_HEAD:] == content[:stream.UNIT]
    urgent.close()


def test_anonymous_memory_that_went_with_its_vmm_can_be_poisoned(host):
    """Each connection was let in and closed at the first page: the destination stayed "postcopy",
    Poison was refused for ever, and so was Release, for the holder was heard."""
    source, destination = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False)
    source_vmm = subprocess.Popen(
        ["/usr/bin/python3", "-c",
         "import pyvmm, signal, types\n"
         "daemon = types.SimpleNamespace(vmm_path=%r)\n"
         "vmm = pyvmm.AnonymousSourceVmm(daemon, 'vm1', pyvmm.guest_content(%d))\n"
         "vmm.pause()\n"
         "signal.pause()\n" % (str(source.vmm_path), SIZE)],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)})
    try:
        source.wait_for_state("vm1", "attached")
        vmm = pyvmm.DestinationVmm(destination, "vm1", SIZE)
        host.later(vmm.close)
        destination.call("Start", id="vm1")
        vmm.load()
        destination.wait_for_state("vm1", "postcopy")
    finally:
        source_vmm.kill()
        source_vmm.wait()
    result = []
    reader = threading.Thread(target=kernel_reads, args=(vmm, 3, result), daemon=True)
    reader.start()
    paused = destination.wait_for_state("vm1", "paused")
    harness.eventually(lambda: "anonymous memory with it"
                       in destination.call("Get", id="vm1")["reason"], paused["reason"])
    missing = sum(r.size_bytes for r in destination.call("ListMissing", id="vm1").ranges)
    destination.call("Poison", id="vm1", confirm_missing_bytes=missing)
    reason = destination.wait_for_state("vm1", "failed")["reason"]
    if "UFFDIO_POISON" in reason:
        pytest.skip(reason)
    reader.join(harness.DEADLINE_S)
    assert result and not isinstance(result[0], bytes)
