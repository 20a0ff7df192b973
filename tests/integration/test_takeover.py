# SPDX-License-Identifier: Apache-2.0
"""A daemon dies at each point of a migration, on either side, and the next process goes on: the
guest only stalls, and each of its pages is right."""
import contextlib
import mmap
import os
import struct
import subprocess
import threading
import time

import pytest

import harness
import pyvmm
from keeper import KeptDaemon, drop_from_store
from test_migrate import Pair, assert_guest_is_whole, attach, pytestmark as needs_kvm

needs_userfaultfd = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                       reason=str(pyvmm.can_userfault()))
SIZE = 1 << 20
BOTH = ("source", "destination")


class KeptPair(Pair):
    def __init__(self, host):
        self.host = host
        self.source = host.daemon("source", allow=["postcopy:destination"], kind=KeptDaemon)
        self.destination = host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon)

    def crash(self, sides=BOTH):
        """All at the same time, then all again."""
        daemons = [getattr(self, side) for side in sides]
        for daemon in daemons:
            daemon.crash()
        for daemon in daemons:
            daemon.start()


@pytest.fixture
def pair(host):
    return KeptPair(host)


SIDES = pytest.mark.parametrize("sides", [["source"], ["destination"], ["source", "destination"]],
                                ids=["source", "destination", "both"])


@needs_kvm
@SIDES
def test_killed_before_the_vmms_attach(pair, sides):
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address)
    pair.crash(sides)
    # The same Prepare finds the same migration.
    vmms = pair.attach("vm1")
    pair.start("vm1")
    pair.finish("vm1", *vmms)


@needs_kvm
@SIDES
def test_killed_before_the_start(pair, sides):
    vmms = pair.attach("vm1")
    pair.crash(sides)
    for side in sides:
        assert getattr(pair, side).state("vm1") == "attached"
    pair.start("vm1")
    pair.finish("vm1", *vmms)


@needs_kvm
@SIDES
def test_killed_while_warm(pair, sides):
    vmms = pair.attach("vm1")
    pair.start("vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.crash(sides)
    pair.destination.wait_for_state("vm1", "warming")
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Switchover", id="vm1")
    pair.finish("vm1", *vmms)


@needs_kvm
@SIDES
@pytest.mark.parametrize("backend", ["memfd", "anon"])
def test_killed_in_postcopy(pair, sides, backend):
    vmms = pair.attach("vm1", {"bulk": False}, backend=backend, memory="64M")
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    vmms[1].wait_for_event("resumed")
    pair.crash(sides)
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.finish("vm1", *vmms)


@needs_kvm
def test_stalls_are_measured_by_who_takes_over(pair):
    """Not before the guest is served: the tracer is loaded beside it."""
    def stalls():
        return pair.destination.call("Get", id="vm1")["guest_stall_us"]

    def source():
        return stalls()["source"]

    # More than its vCPUs can have touched by the time the tracer is there.
    vmms = pair.attach("vm1", {"bulk": False}, memory="512M")
    pair.start("vm1")
    vmms[1].wait_for_event("resumed")
    before = source()
    if before == "daemon":
        pytest.skip("nothing to measure stalls with here: %s" % pair.destination.log())
    pair.crash(["destination"])
    pair.destination.wait_for_state("vm1", "postcopy")
    harness.eventually(lambda: source() == before, "stalls are measured by %s again" % before)
    harness.eventually(lambda: stalls()["count"] > 0, "a stall is measured")
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.finish("vm1", *vmms)


class Scripted(KeptPair):
    """VMMs without vCPUs, that answer when the test says so. As libpostcopy they say again what
    they have said when they are asked again."""

    def __init__(self, host):
        super().__init__(host)
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address)
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.destination_vmm = pyvmm.DestinationVmm(self.destination, "vm1", SIZE)
        host.later(self.source_vmm.close)
        host.later(self.destination_vmm.close)

    def finish(self):
        for vmm in (self.source_vmm, self.destination_vmm):
            while vmm.receive()[0] != pyvmm.COMPLETE:
                pass
        assert os.pread(self.destination_vmm.memory_fd, SIZE, 0) == self.content
        for daemon in (self.source, self.destination):
            assert daemon.wait_for_state("vm1", "complete")["state"] == "complete"
            # What is left is the record of how it went.
            harness.eventually(lambda: kept(daemon) <= {"record.vm1", "vmm.vm1"},
                               "%s has let go of %s" % (daemon.name, kept(daemon)))


def kept(daemon):
    """What the store holds of the migration, beside what is the daemon's."""
    return set(daemon.store.names()) - {"control", "vmm", "pages", "config0", "config1"}


def say(vmm, *kinds):
    for kind in kinds:
        vmm.send(pyvmm.packet(kind))


@pytest.fixture
def scripted(host):
    if pyvmm.can_userfault() is not None:
        pytest.skip(pyvmm.can_userfault())
    return Scripted(host)


@SIDES
def test_killed_while_the_source_vmm_pauses(scripted, sides):
    scripted.start("vm1")
    scripted.source_vmm.expect(pyvmm.PAUSE)
    scripted.crash(sides)
    if "source" in sides:
        # It can't know whether the VMM has got it.
        scripted.source_vmm.expect(pyvmm.PAUSE)
    say_paused(scripted.source_vmm)
    assert scripted.destination_vmm.load() == scripted.source_vmm.vmstate
    scripted.finish()


def say_paused(vmm):
    fd = pyvmm.sealed_memfd(vmm.vmstate)
    vmm.send(pyvmm.paused(len(vmm.vmstate)), [fd])
    os.close(fd)


def test_paused_is_said_while_no_daemon_runs(scripted):
    """It waits in the socket; and the second answer, to the question that came again, says
    nothing new."""
    scripted.start("vm1")
    scripted.source_vmm.expect(pyvmm.PAUSE)
    scripted.source.crash()
    say_paused(scripted.source_vmm)
    say_paused(scripted.source_vmm)
    scripted.source.start()
    scripted.destination_vmm.load()
    scripted.finish()


def test_pause_that_failed_while_no_daemon_ran_lets_the_guest_run(scripted):
    """The VMM could not pause, and paused after all when it was asked again: by then nobody
    wants that any more."""
    scripted.start("vm1")
    scripted.source_vmm.expect(pyvmm.PAUSE)
    scripted.source.crash()
    reason = b"not now"
    scripted.source_vmm.send(pyvmm.packet(pyvmm.ERROR, struct.pack("<II", 16, len(reason)) +
                                          reason))
    say_paused(scripted.source_vmm)
    scripted.source.start()
    scripted.source_vmm.expect(pyvmm.RESUME)


@SIDES
def test_killed_after_vmstate_was_given(scripted, sides):
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.expect(pyvmm.VMSTATE)
    scripted.crash(sides)
    if "destination" in sides:
        assert scripted.destination.state("vm1") in ("postcopy", "paused")
        # It can't know whether the VMM has got it.
        payload, fds = scripted.destination_vmm.expect(pyvmm.VMSTATE)
        assert os.pread(fds[0], SIZE, 0) == scripted.source_vmm.vmstate
    say(scripted.destination_vmm, pyvmm.LOADED, pyvmm.RESUMED)
    scripted.finish()


@pytest.mark.parametrize("said", [[], [pyvmm.LOADED], [pyvmm.LOADED, pyvmm.RESUMED]],
                         ids=["nothing", "loaded", "resumed"])
def test_killed_after_the_vmm_said(scripted, said):
    """What was said before, with the daemon there, is said again when it is asked again."""
    scripted.destination.call("SetLimits", id="vm1", bulk=False)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.expect(pyvmm.VMSTATE)
    say(scripted.destination_vmm, *said)
    # A page comes: the daemon has been there, and so it has read what was said before.
    if pyvmm.RESUMED in said:
        harness.eventually(lambda: "vmstate.vm1" not in kept(scripted.destination),
                           "RESUMED is taken")
    scripted.crash(["destination"])
    if pyvmm.RESUMED not in said:
        scripted.destination_vmm.expect(pyvmm.VMSTATE)
        say(scripted.destination_vmm, pyvmm.LOADED, pyvmm.RESUMED)
    scripted.destination.call("SetLimits", id="vm1", bulk=True)
    scripted.finish()


def test_said_while_no_daemon_runs(scripted):
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.expect(pyvmm.VMSTATE)
    scripted.destination.crash()
    say(scripted.destination_vmm, pyvmm.LOADED, pyvmm.RESUMED)
    scripted.destination.start()
    scripted.finish()


def test_thread_that_waits_for_a_page_sleeps_through_it(scripted):
    scripted.destination.call("SetLimits", id="vm1", bulk=False)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.source.crash()
    thread, page = scripted.destination_vmm.touch(7)
    harness.eventually(lambda: scripted.destination.call("Get", id="vm1")["faults"]["total"],
                       "the fault is read")
    scripted.destination.crash()
    scripted.source.start()
    scripted.destination.start()
    thread.join(harness.DEADLINE_S)
    assert page.raw == scripted.content[7 * pyvmm.PAGE:8 * pyvmm.PAGE]
    scripted.destination.call("SetLimits", id="vm1", bulk=True)
    scripted.finish()


def test_complete_that_nobody_has_acknowledged(scripted):
    """All pages are here, the source can't be told; then the destination dies as well."""
    scripted.destination.call("SetLimits", id="vm1", bulk=False)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.destination.wait_for_state("vm1", "postcopy")
    scripted.source.popen.send_signal(19)
    for at in range(SIZE // pyvmm.PAGE):
        scripted.destination_vmm.touch(at)
    scripted.source.popen.send_signal(18)
    harness.eventually(lambda: scripted.destination.call("Get", id="vm1")["pages_present"] ==
                       SIZE // pyvmm.PAGE, "every page is there")
    scripted.crash()
    scripted.finish()


@SIDES
def test_cancelled_and_killed_at_once_lets_the_source_guest_run_on(scripted, sides):
    scripted.start("vm1")
    scripted.source_vmm.expect(pyvmm.PAUSE)
    scripted.source.crash()
    say_paused(scripted.source_vmm)
    scripted.destination.call("Cancel", id="vm1")
    if "destination" in sides:
        scripted.destination.crash()
    if "source" not in sides:
        scripted.destination.start()
        scripted.source.start()
    else:
        scripted.source.start()
        if "destination" in sides:
            scripted.destination.start()
    while scripted.source_vmm.receive()[0] != pyvmm.RESUME:
        pass
    scripted.destination.wait_for_state("vm1", "cancelled")
    scripted.source.wait_for_state("vm1", "cancelled")
    harness.eventually(lambda: kept(scripted.source) <= {"record.vm1", "vmm.vm1"},
                       "%s is let go" % kept(scripted.source))


def test_vmm_that_died_while_no_daemon_ran(scripted):
    scripted.start("vm1", switchover=False)
    scripted.source.wait_for_state("vm1", "warming")
    scripted.destination.crash()
    scripted.destination_vmm.close()
    scripted.destination.start()
    assert "VMM" in scripted.destination.wait_for_state("vm1", "failed")["reason"]
    # Its guest runs on, whether it was told of the end or only sees that nobody is connected.
    scripted.source.wait_for_state("vm1", "cancelled", "attached")


def test_ended_migrations_are_still_told_of(scripted):
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.finish()
    before = scripted.destination.call("Get", id="vm1")
    scripted.crash()
    after = scripted.destination.call("Get", id="vm1")
    for key in ("state", "downtime_us", "pages_present", "memory_bytes", "total_ms"):
        assert after[key] == before[key]


@needs_kvm
@pytest.mark.parametrize("side", BOTH)
def test_sigterm_parks_and_the_next_process_goes_on(pair, side):
    vmms = pair.attach("vm1", {"bulk": False})
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    vmms[1].wait_for_event("resumed")
    pair.source.wait_for_state("vm1", "postcopy")
    daemon = getattr(pair, side)
    daemon.popen.terminate()
    assert daemon.wait() == 0
    assert "parked, postcopy" in daemon.log()
    assert daemon.store.said("STOPPING=1")
    daemon.start()
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.finish("vm1", *vmms)


def discard_all_the_time(vmm, unit, stop):
    """A thread of a VMM whose balloon takes the same page over and over."""
    def main():
        while not stop.is_set():
            pyvmm.libc.madvise(vmm.addr + unit * pyvmm.PAGE, pyvmm.PAGE, mmap.MADV_DONTNEED)
    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


def test_sigterm_while_the_vmm_discards(scripted):
    """What it lost: fills that the kernel refuses while a madvise() waits for its event went on for
    ever, for nobody read events any more. The daemon was killed after 90 s, with all its guests."""
    destination = scripted.destination
    destination.call("SetLimits", id="vm1", bandwidth_bytes_per_s=512 << 10)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    stop = threading.Event()
    threads = [discard_all_the_time(scripted.destination_vmm, unit, stop) for unit in (3, 90)]
    for _ in range(3):
        destination.wait_for_state("vm1", "postcopy")
        began = time.monotonic()
        destination.popen.terminate()
        assert destination.wait() == 0
        assert time.monotonic() - began < 10
        destination.start()
    stop.set()
    for thread in threads:
        thread.join(harness.DEADLINE_S)
        assert not thread.is_alive(), "a madvise() is stuck"
    destination.call("SetLimits", id="vm1", bandwidth_bytes_per_s=0)
    # Of shared memory that is no discard: all of the source's content comes.
    scripted.finish()


@needs_kvm
def test_sigterm_lets_what_runs_end_first(host):
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon,
                              extra=["--drain-timeout", "1000"])
    source_vmm, destination_vmm = attach(host, source, destination, "vm1", {"bulk": False})
    destination.call("Start", id="vm1")
    destination.wait_for_state("vm1", "postcopy")
    destination.popen.terminate()
    harness.eventually(lambda: destination.store.said("STOPPING=1"), "it has taken the signal")
    with pytest.raises(harness.ControlError) as caught:
        destination.prepare_destination("vm2", source.address)
    assert caught.value.reason == "DRAINING" and "ending" in caught.value.message
    destination.call("SetLimits", id="vm1", bulk=True)
    assert_guest_is_whole(destination_vmm)
    source_vmm.wait_for_event("complete")
    assert destination.wait() == 0


@needs_kvm
def test_second_sigterm_parks_at_once(host):
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon,
                              extra=["--drain-timeout", "1000"])
    source_vmm, destination_vmm = attach(host, source, destination, "vm1", {"bulk": False})
    destination.call("Start", id="vm1")
    destination.wait_for_state("vm1", "postcopy")
    destination_vmm.wait_for_event("resumed")
    destination.popen.terminate()
    harness.eventually(lambda: destination.store.said("STOPPING=1"), "it has taken the signal")
    destination.popen.terminate()
    assert destination.wait() == 0
    destination.start()
    destination.call("SetLimits", id="vm1", bulk=True)
    assert_guest_is_whole(destination_vmm)
    source_vmm.wait_for_event("complete")


def test_manager_is_told_what_goes_on(host):
    daemon = host.daemon("destination", kind=KeptDaemon, env={"WATCHDOG_USEC": "200000"})
    harness.eventually(lambda: daemon.store.said("READY=1"), "READY=1")
    assert daemon.store.names() == ["config0", "control", "pages", "vmm"]
    harness.eventually(lambda: daemon.store.last("STATUS") == "0 migrations", "a status")
    daemon.prepare_destination("vm1", "127.0.0.1:1")
    harness.eventually(lambda: daemon.store.last("STATUS") == "1 migration: 1 prepared",
                       "the status says what it does")
    harness.eventually(lambda: daemon.store.said("WATCHDOG=1"), "WATCHDOG=1")


# The store itself.


def test_descriptors_without_a_record_are_dropped_by_name(scripted):
    scripted.destination.crash()
    drop_from_store(scripted.destination, "record.vm1")
    scripted.destination.start()
    for name in ("vmm.vm1", "uffd.vm1", "mem1.vm1", "pages.vm1"):
        assert "\\\"%s\\\" belongs to no migration" % name in scripted.destination.log()
    harness.eventually(lambda: not kept(scripted.destination), "all of it is dropped")
    scripted.destination_vmm.expect(0)


@pytest.mark.parametrize("name", ["uffd.vm1", "mem1.vm1", "pages.vm1"])
def test_record_that_lacks_a_descriptor_fails_alone(scripted, name):
    scripted.destination.prepare_destination("other", scripted.source.address)
    scripted.destination.crash()
    drop_from_store(scripted.destination, name)
    scripted.destination.start()
    assert scripted.destination.state("other") == "prepared"
    failed = scripted.destination.call("Get", id="vm1")
    assert failed["state"] == "failed"
    assert "can't be taken over" in failed["reason"]
    scripted.destination_vmm.expect(pyvmm.ERROR)


SLOT_BYTES = 32 + 40960


def checksum(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & (1 << 64) - 1
    return value


def rewrite_record(daemon, change, key="vm1"):
    """As another build of the daemon would have written it: @change(content) -> content."""
    fd = next(fd for name, fd in daemon.store.fds if name == "record." + key)
    slots = [os.pread(fd, SLOT_BYTES, at * SLOT_BYTES) for at in (0, 1)]
    heads = [struct.unpack_from("<QQQQ", slot + bytes(32)) for slot in slots]
    newest = max((0, 1), key=lambda at: heads[at][1])
    magic, sequence, length, _ = heads[newest]
    content = change(slots[newest][32:32 + length])
    head = struct.pack("<QQQ", magic, sequence + 1, len(content))
    os.pwrite(fd, head + struct.pack("<Q", checksum(head + content)) + content,
              (sequence + 1) % 2 * SLOT_BYTES)


def test_record_of_a_newer_build_with_unknown_fields_is_taken_up(scripted):
    scripted.destination.crash()
    # written_by = "0.9.0", field 1000 a number.
    rewrite_record(scripted.destination, lambda content: content + b"\x12\x050.9.0" +
                   b"\xc0\x3e\x2a")
    scripted.destination.start()
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.finish()


def test_record_of_an_unknown_major_version_is_left_for_the_newer_build(scripted):
    scripted.destination.crash()
    before = scripted.destination.store.names()
    rewrite_record(scripted.destination, lambda content: content + b"\x08\x05\x12\x050.9.0")
    with pytest.raises(harness.Failure) as caught:
        scripted.destination.start()
    assert "postcopyd 0.9.0 wrote it, in version 5" in str(caught.value)
    scripted.destination.store.settle()
    assert scripted.destination.store.names() == before
    # The build that knows it is started again.
    rewrite_record(scripted.destination, lambda content: content + b"\x08\x03")
    scripted.destination.start()
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.finish()


def test_killed_before_it_hears_that_the_vmm_could_not_run(scripted):
    """LOADED is in the record by then; the other word waits in the socket."""
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.expect(pyvmm.VMSTATE)
    say(scripted.destination_vmm, pyvmm.LOADED)
    harness.eventually(lambda: scripted.destination.state("vm1") == "postcopy", "it is given")
    scripted.destination.crash()
    text = b"cont: no such device"
    scripted.destination_vmm.send(pyvmm.packet(
        pyvmm.COULD_NOT_RUN, struct.pack("<II", 125, len(text)) + text))
    scripted.destination.start()
    scripted.source_vmm.expect(pyvmm.RESUME)
    assert "no such device" in scripted.destination.wait_for_state("vm1", "failed")["reason"]


@needs_userfaultfd
def test_loaded_may_have_died_with_its_reader(host):
    """LOADED was read by a daemon that was killed before it wrote that down. RESUMED came, was refused
    as nonsense, and the guest was lost with its connection."""
    pair = KeptPair(host)
    content = pyvmm.guest_content(SIZE)
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address, bulk=False)
    source = pyvmm.SourceVmm(pair.source, "vm1", content)
    destination = pyvmm.DestinationVmm(pair.destination, "vm1", SIZE)
    for vmm in (source, destination):
        host.later(vmm.close)
    pair.destination.call("Start", id="vm1")
    source.pause()
    _, fds = destination.expect(pyvmm.VMSTATE)
    os.close(fds[0])
    pair.destination.crash()
    destination.send(pyvmm.packet(pyvmm.RESUMED))
    pair.destination.start()
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.destination.wait_for_state("vm1", "complete")
    assert os.pread(destination.memory_fd, SIZE, 0) == content


# Field 4; the last one counts.
SAVED_STATE_ATTACHED, SAVED_STATE_POSTCOPY, SAVED_STATE_NONE = b"\x20\x02", b"\x20\x05", b"\x20\x63"


def test_record_that_makes_no_sense_is_left_with_all_that_is_its(scripted):
    """It was dropped, and the userfaultfd with it: a guest would have read zeroes for what had not
    come."""
    daemon = scripted.destination
    daemon.call("SetLimits", id="vm1", bulk=False)
    scripted.start("vm1")
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    daemon.wait_for_state("vm1", "postcopy")
    harness.eventually(lambda: "vmstate.vm1" not in kept(daemon), "RESUMED is taken")
    thread, page = scripted.destination_vmm.touch(7)
    thread.join(harness.DEADLINE_S)
    daemon.crash()
    before = kept(daemon)
    rewrite_record(daemon, lambda content: content + SAVED_STATE_NONE)
    daemon.start()
    daemon.wait_for_log("is left as it is")
    assert "systemctl restart" in daemon.log()
    with daemon.control() as control:
        assert control.client.host("GetInfo").records_left == 1
    info = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "info", "--control",
                           str(daemon.control_path)], capture_output=True, text=True, check=True)
    # By this line a stop knows what it would lose (systemd/postcopyd-stop).
    assert "\nrecords left  " in info.stdout
    # Others are served; and a new one of that id takes nothing from it.
    daemon.prepare_destination("other", scripted.source.address)
    daemon.prepare_destination("vm1", scripted.source.address)
    thread, page = scripted.destination_vmm.touch(9)
    daemon.crash()
    assert kept(daemon) - {"record.other", "record.vm1@2"} == before
    for name in ("record.other", "record.vm1@2"):
        drop_from_store(daemon, name)
    rewrite_record(daemon, lambda content: content + SAVED_STATE_POSTCOPY)
    daemon.start()
    daemon.call("SetLimits", id="vm1", bulk=True)
    thread.join(harness.DEADLINE_S)
    assert page.raw == scripted.content[9 * pyvmm.PAGE:10 * pyvmm.PAGE]
    scripted.finish()


@pytest.mark.parametrize("ended", ["before", "after"])
def test_memory_of_an_unread_record_stays_by_whatever_name(host, ended):
    """Its entry had the name of a migration that had ended: the next daemon dropped it."""
    daemon = host.daemon("source", kind=KeptDaemon)
    content = pyvmm.guest_content(SIZE)
    snapshot = pyvmm.sealed_memfd(content)
    host.later(lambda: os.close(snapshot))
    vmms = []
    for migration_id in ("first", "vm1"):
        daemon.prepare_source(migration_id)
        vmms.append(pyvmm.SourceVmm(daemon, migration_id, content, make=lambda _: os.dup(snapshot)))
        host.later(vmms[-1].close)
    daemon.store.settle()
    assert "mem0.first" in kept(daemon) and "mem0.vm1" not in kept(daemon)
    if ended == "before":
        daemon.call("Cancel", id="first")
    daemon.crash()
    rewrite_record(daemon, lambda record: record + SAVED_STATE_NONE)
    daemon.start()
    if ended == "after":
        daemon.call("Cancel", id="first")
    # Nor does anybody get its name.
    vmms[0].sock.close()
    harness.eventually(lambda: "vmm.first" not in kept(daemon), "its VMM is let go of")
    daemon.call("Delete", id="first")
    daemon.prepare_source("first")
    again = pyvmm.SourceVmm(daemon, "first", content)
    host.later(again.close)
    daemon.store.settle()
    assert "mem0.first@2" in kept(daemon)
    daemon.call("Cancel", id="first")
    daemon.crash()
    assert "mem0.first" in kept(daemon)
    rewrite_record(daemon, lambda record: record + SAVED_STATE_ATTACHED)
    daemon.start()
    assert daemon.state("vm1") == "attached"


@pytest.mark.parametrize("make", [pyvmm.SourceVmm, pyvmm.AnonymousSourceVmm],
                         ids=["memfd", "anonymous"])
def test_memory_of_an_unread_record_is_not_attached_again(host, make):
    """It was nobody's, and its holes would have been read as zeroes for the next destination."""
    daemon = host.daemon("source", kind=KeptDaemon)
    content = pyvmm.guest_content(SIZE)
    daemon.prepare_source("vm1")
    vmm = make(daemon, "vm1", content)
    host.later(vmm.close)
    daemon.crash()
    rewrite_record(daemon, lambda record: record + SAVED_STATE_NONE)
    daemon.start()
    daemon.prepare_source("again")
    regions = [pyvmm.Region(SIZE)]
    if make is pyvmm.AnonymousSourceVmm:
        regions = [pyvmm.Region(SIZE, memory=pyvmm.ANONYMOUS, host_addr=vmm.addr,
                                fd_offset=vmm.addr)]
    with pyvmm.Socket(daemon.vmm_path) as again:
        again.send(pyvmm.attach(pyvmm.SOURCE, "again", regions), [vmm.memory_fd])
        assert "has not taken over" in again.expect_error()[1]
    # Other memory of this postcopyd's is as good as ever.
    other = pyvmm.SourceVmm(daemon, "again", content)
    host.later(other.close)
    daemon.crash()
    rewrite_record(daemon, lambda record: record + SAVED_STATE_ATTACHED)
    daemon.start()
    assert daemon.state("vm1") == daemon.state("again") == "attached"


def test_who_asks_for_an_unread_source_asks_again_and_others_are_told(scripted):
    """All were told to ask again: nobody heard that there was no such migration."""
    scripted.source.crash()
    rewrite_record(scripted.source, lambda record: record + SAVED_STATE_NONE)
    scripted.source.start()
    scripted.destination.prepare_destination("nobody", scripted.source.address)
    with contextlib.closing(pyvmm.DestinationVmm(scripted.destination, "nobody", SIZE)):
        scripted.start("nobody")
        migration = scripted.destination.wait_for_state("nobody", "failed")
        assert "unknown here" in migration["reason"]
    harness.eventually(lambda: "vmm.nobody" not in kept(scripted.destination), "it is let go of")
    scripted.destination.call("Delete", id="nobody")
    scripted.start("vm1")
    scripted.source.wait_for_log("not among those that are taken over by now")
    scripted.source.crash()
    rewrite_record(scripted.source, lambda record: record + SAVED_STATE_ATTACHED)
    scripted.source.start()
    scripted.source_vmm.pause()
    scripted.destination_vmm.load()
    scripted.finish()
