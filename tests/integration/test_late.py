# SPDX-License-Identifier: Apache-2.0
"""Late memory: a VMM that has its memory when it has read the vmstate. Until that is taken the
guest is the source's, whatever fails; and a daemon or an adapter may be killed at each step."""
import ctypes
import errno
import hashlib
import mmap
import os
import signal
import struct
import threading

import pytest

import foreign
import harness
import pyvmm
import stream
from keeper import KeptDaemon
from test_fetch import Channel
from test_store import channels

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class LateVmm(pyvmm.DestinationVmm):
    """One that attaches without memory."""

    def __init__(self, daemon, migration_id, pidfd=-1):
        pyvmm.Socket.__init__(self, daemon.vmm_path)
        self.id, self.uffd = migration_id, -1
        self.send(pyvmm.attach(pyvmm.DESTINATION, migration_id, [], 0,
                               pyvmm.LATE | (pyvmm.WITH_PIDFD if pidfd >= 0 else 0)),
                  [pidfd] if pidfd >= 0 else [])
        self.expect(pyvmm.ATTACHED)

    def vmstate_comes(self):
        payload, fds = self.expect(pyvmm.VMSTATE)
        vmstate = os.pread(fds[0], struct.unpack("<Q", payload)[0], 0)
        os.close(fds[0])
        return vmstate

    def make_memory(self, size):
        self.size = size
        self.memory_fd = pyvmm.memfd(size=size)
        self.addr = pyvmm.map_shared(self.memory_fd, size)
        self.uffd = pyvmm.userfaultfd(self.addr, size, flags=self.UFFD_FLAGS)

    def say_memory(self, size=None):
        region = pyvmm.Region(size or self.size, host_addr=self.addr, fd_index=1,
                              uffd_mode=pyvmm.UFFD_MODE_MISSING | pyvmm.UFFD_MODE_MINOR)
        self.send(pyvmm.attach(pyvmm.DESTINATION, self.id, [region], pyvmm.UFFD_FEATURES,
                               kind=pyvmm.MEMORY), [self.uffd, self.memory_fd])

    def run(self):
        self.send(pyvmm.packet(pyvmm.LOADED))
        self.send(pyvmm.packet(pyvmm.RESUMED))


class Scene:
    def __init__(self, host, kind=harness.Daemon, **params):
        self.host = host
        self.source = host.daemon("source", kind=kind)
        self.destination = host.daemon("destination", kind=kind)
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, **params)
        self.there = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.here = LateVmm(self.destination, "vm1")
        host.later(self.there.close)
        host.later(self.here.close)

    def switch_over(self):
        """Up to where the VMM at the destination has the vmstate, and no memory."""
        self.destination.call("Start", id="vm1")
        self.there.pause()
        assert self.here.vmstate_comes() == self.there.vmstate
        assert self.destination.state("vm1") == "switching"

    def given_back(self):
        self.there.expect(pyvmm.RESUME)
        return self.destination.wait_for_state("vm1", "failed")["reason"]

    def finish(self):
        self.here.expect(pyvmm.COMPLETE)
        self.there.expect(pyvmm.COMPLETE)
        assert os.pread(self.here.memory_fd, SIZE, 0) == self.content


def test_memory_comes_after_the_vmstate(host):
    scene = Scene(host)
    scene.switch_over()
    # Known by now, though there is nothing here yet.
    answer = scene.destination.call("Get", id="vm1")
    assert answer["memory_bytes"] == SIZE and answer["pages_present"] == 0
    assert not scene.destination.call("ListMissing", id="vm1").next_page_token
    scene.here.make_memory(SIZE)
    thread, page = scene.here.touch(7)
    scene.here.say_memory()
    scene.here.expect(pyvmm.ATTACHED)
    # Faults of loading itself are served before it is said to be loaded.
    thread.join(harness.DEADLINE_S)
    assert page.raw == scene.content[7 * pyvmm.PAGE:8 * pyvmm.PAGE]
    assert scene.destination.state("vm1") == "postcopy"
    scene.here.run()
    scene.finish()
    for daemon in (scene.source, scene.destination):
        daemon.wait_for_state("vm1", "complete")


@pytest.mark.parametrize("kept", [False, True], ids=["", "taken-over"])
def test_memory_in_more_pieces_than_the_source_has(host, kept):
    """A source that has read it from a file does not know where it is cut."""
    scene = Scene(host, kind=KeptDaemon if kept else harness.Daemon, bulk=False)
    scene.switch_over()
    sizes = [SIZE // 4, SIZE // 2 + pyvmm.PAGE, SIZE // 4 - pyvmm.PAGE]
    here, regions, at = scene.here, [], 0
    for size in sizes:
        # Each apart from the others.
        pyvmm.libc.mmap(None, 1 << 21, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        addr = pyvmm.libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE,
                               mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        pyvmm.libc.madvise(addr, size, mmap.MADV_DONTFORK)
        if not regions:
            uffd = pyvmm.userfaultfd(addr, size, pyvmm.UFFD_MODE_MISSING)
        else:
            pyvmm.register(uffd, addr, size, pyvmm.UFFD_MODE_MISSING)
        regions.append(pyvmm.Region(size, at, pyvmm.ANONYMOUS, host_addr=addr,
                                    fd_index=pyvmm.NO_FD, uffd_mode=pyvmm.UFFD_MODE_MISSING))
        at += size
    here.send(pyvmm.attach(pyvmm.DESTINATION, "vm1", regions, pyvmm.UFFD_FEATURES,
                           kind=pyvmm.MEMORY), [uffd])
    here.expect(pyvmm.ATTACHED)
    if kept:
        scene.destination.crash_and_restart()
    here.addr = regions[1].host_addr
    thread, page = here.touch(5)
    thread.join(harness.DEADLINE_S)
    first = regions[1].guest_phys_addr + 5 * pyvmm.PAGE
    assert page.raw == scene.content[first:first + pyvmm.PAGE]
    if kept:
        here.vmstate_comes()
    here.run()
    scene.destination.call("SetLimits", id="vm1", bulk=True)
    here.expect(pyvmm.COMPLETE)
    assert b"".join(ctypes.string_at(region.host_addr, region.size)
                    for region in regions) == scene.content
    os.close(uffd)


@pytest.mark.parametrize("units", [[], [1]], ids=["none", "one"])
def test_a_source_that_tells_what_was_written_where_there_is_no_memory_is_refused(host, units):
    source = stream.WarmSource(host.pki.source, pyvmm.guest_content(SIZE))
    host.later(source.close)

    def harvest(source, connection):
        connection.send(stream.dirty(0, units, stream.DIRTY_LAST))
    source.before_vmstate = harvest
    daemon = host.daemon("destination", allow=["postcopy:source"])
    daemon.prepare_destination("vm1", source.address)
    here = LateVmm(daemon, "vm1")
    host.later(here.close)
    daemon.call("Start", id="vm1")
    assert "DIRTY" in daemon.wait_for_state("vm1", "failed")["reason"]


def refuse_to_load(scene):
    text = b"this version is too old"
    scene.here.send(pyvmm.packet(pyvmm.ERROR, struct.pack("<II", 22, len(text)) + text))
    return "too old"


def end(scene):
    scene.here.sock.close()
    return "VMM is gone"


def hand_over_too_little(scene):
    scene.here.make_memory(SIZE // 2)
    scene.here.say_memory()
    assert "on the other side" in scene.here.expect_failure()[1]
    return "the VMM's memory: region 0"


def hand_over_what_is_not_registered(scene):
    scene.here.make_memory(SIZE)
    pyvmm.libc.close(scene.here.uffd)
    scene.here.uffd = os.open("/dev/null", os.O_RDWR)
    scene.here.say_memory()
    assert "userfaultfd" in scene.here.expect_failure()[1]
    return "the VMM's memory: "


@pytest.mark.parametrize("how", [refuse_to_load, end, hand_over_too_little,
                                 hand_over_what_is_not_registered])
def test_what_fails_before_memory_is_taken_gives_the_guest_back(host, how):
    scene = Scene(host)
    scene.switch_over()
    why = how(scene)
    reason = scene.given_back()
    assert why in reason, reason
    scene.source.wait_for_state("vm1", "cancelled")


def test_what_fails_between_memory_and_loaded_gives_the_guest_back(host):
    scene = Scene(host)
    scene.switch_over()
    scene.here.make_memory(SIZE)
    scene.here.say_memory()
    scene.here.expect(pyvmm.ATTACHED)
    refuse_to_load(scene)
    assert "too old" in scene.given_back()


def detach(scene):
    scene.here.sock.close()
    scene.destination.wait_for_state("vm1", "prepared")


def fail_to_load(scene):
    scene.switch_over()
    refuse_to_load(scene)
    scene.given_back()


@pytest.mark.parametrize("how", [detach, fail_to_load])
def test_a_channel_ends_with_a_vmm_that_had_no_memory(host, how):
    """A vCPU that waited there was never told, and the manager kept the channel for good."""
    scene = Scene(host, kind=KeptDaemon)
    channel = Channel(scene.here)
    host.later(channel.sock.close)
    destination = scene.destination
    harness.eventually(lambda: channels(destination), "it is kept")
    how(scene)
    assert channel.answer() is None
    harness.eventually(lambda: not channels(destination), "it is not kept any more")


def test_cancel_while_memory_is_waited_for(host):
    scene = Scene(host)
    scene.switch_over()
    scene.destination.call("Cancel", id="vm1")
    scene.there.expect(pyvmm.RESUME)
    scene.destination.wait_for_state("vm1", "cancelled")


def test_memory_is_not_for_who_has_some_or_was_not_asked(host):
    scene = Scene(host)
    scene.here.make_memory(SIZE)
    scene.here.say_memory()
    code, text = scene.here.expect_error()
    assert code == errno.EPROTO and "attached" in text
    assert scene.destination.state("vm1") == "prepared"
    scene.here.close()
    again = LateVmm(scene.destination, "vm1")
    again.close()
    pyvmm.DestinationVmm(scene.destination, "vm1", SIZE).close()


def test_a_source_attached_anew_may_have_another_table(host):
    """What the source before had was sought for by a daemon that took over, as if it were here."""
    scene = Scene(host, kind=KeptDaemon)
    scene.destination.call("Start", id="vm1", switchover=False)
    scene.source.wait_for_state("vm1", "warming")
    scene.destination.crash()
    scene.source.wait_for_state("vm1", "attached")
    scene.there.sock.close()
    scene.source.wait_for_state("vm1", "prepared")
    scene.content = pyvmm.guest_content(2 * SIZE)
    scene.there = pyvmm.SourceVmm(scene.source, "vm1", scene.content)
    host.later(scene.there.close)
    scene.destination.start()
    scene.source.wait_for_state("vm1", "warming")
    scene.destination.call("Switchover", id="vm1")
    scene.there.pause()
    scene.here.vmstate_comes()
    scene.here.make_memory(2 * SIZE)
    scene.here.say_memory()
    scene.here.expect(pyvmm.ATTACHED)
    scene.here.run()
    scene.here.expect(pyvmm.COMPLETE)
    assert os.pread(scene.here.memory_fd, 2 * SIZE, 0) == scene.content


class Disowning(stream.FakeSource):
    """A source that was told to run its guest on: a connection that was there still looks alive."""

    runs_on = False

    def _answer(self, connection, kind, payload, request_id):
        if kind == stream.PING and self.runs_on:
            text = b"its guest runs on at the source"
            connection.send(stream.frame(stream.ERROR,
                                         struct.pack("<I", errno.EKEYREVOKED) + text))
        else:
            super()._answer(connection, kind, payload, request_id)


def test_memory_is_taken_only_after_the_source_was_asked(host):
    """Who stood still for so long that the source's guest was told to run on would run a second."""
    daemon = host.daemon("destination", allow=["postcopy:source"])
    source = Disowning(host.pki.source, pyvmm.guest_content(SIZE))
    host.later(source.close)
    daemon.prepare_destination("vm1", source.address)
    here = LateVmm(daemon, "vm1")
    host.later(here.close)
    daemon.call("Start", id="vm1")
    assert here.vmstate_comes() == source.vmstate
    here.make_memory(SIZE)
    source.runs_on = True
    here.say_memory()
    assert "runs on at the source" in here.expect_failure()[1]
    assert "runs on" in daemon.wait_for_state("vm1", "failed")["reason"]


STEPS = ["attached", "warming", "offered", "asked", "taken", "loaded"]


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("step", STEPS)
def test_a_daemon_killed_at_each_step_is_taken_over(host, victim, step):
    scene = Scene(host, kind=KeptDaemon)
    daemon = getattr(scene, victim)

    def reached(name, meanwhile=lambda: None):
        if name != step:
            return meanwhile()
        daemon.crash()
        meanwhile()
        daemon.start()
        return None

    reached("attached")
    scene.destination.call("Start", id="vm1", switchover=False)
    scene.source.wait_for_state("vm1", "warming")
    reached("warming")
    scene.destination.call("Switchover", id="vm1")
    scene.there.pause()
    answer = threading.Thread(target=answer_again, args=(scene.there,), daemon=True)
    scene.here.vmstate_comes()
    answer.start()
    reached("offered")
    scene.here.make_memory(SIZE)
    thread, page = scene.here.touch(9)
    reached("asked", scene.here.say_memory)
    # Asked again by a daemon that does not know, it says the same again.
    kind = 0
    while kind != pyvmm.ATTACHED:
        kind, _, fds = scene.here.receive()
        assert kind in (pyvmm.ATTACHED, pyvmm.VMSTATE), pyvmm.NAMES[kind]
        for fd in fds:
            os.close(fd)
        if kind == pyvmm.VMSTATE:
            scene.here.say_memory()
    reached("taken")
    thread.join(harness.DEADLINE_S)
    assert page.raw == scene.content[9 * pyvmm.PAGE:10 * pyvmm.PAGE]
    reached("loaded", scene.here.run)
    kind = 0
    while kind != pyvmm.COMPLETE:
        kind, _, _ = scene.here.receive()
        assert kind in (pyvmm.COMPLETE, pyvmm.VMSTATE, pyvmm.ATTACHED), pyvmm.NAMES[kind]
        if kind == pyvmm.VMSTATE:
            scene.here.run()
    answer.join(harness.DEADLINE_S)
    assert os.pread(scene.here.memory_fd, SIZE, 0) == scene.content
    for one in (scene.source, scene.destination):
        one.wait_for_state("vm1", "complete")


def answer_again(there):
    """A source VMM that is asked again says the same again, until all is there."""
    kind = 0
    while kind != pyvmm.COMPLETE:
        kind, _, _ = there.receive()
        if kind == pyvmm.PAUSE:
            fd = pyvmm.sealed_memfd(there.vmstate)
            there.send(pyvmm.paused(len(there.vmstate)), [fd])
            os.close(fd)
        elif not kind:
            return


def start_foreign(host, kind=harness.Daemon, **options):
    """A source VMM, and a stranger at the destination, for which an adapter attaches."""
    source = host.daemon("source", kind=kind, **options)
    destination = host.daemon("destination", kind=kind, **options)
    content = pyvmm.guest_content(SIZE)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    there = pyvmm.SourceVmm(source, "vm1", content)
    side = foreign.Side(host, destination, "destination", "vm1", SIZE)
    pidfd = os.pidfd_open(side.vmm.pid)
    host.later(lambda: os.close(pidfd))
    host.later(there.close)
    return source, destination, there, side, pidfd, content


def hand_over(adapter, side):
    region = pyvmm.Region(SIZE, host_addr=foreign.json.loads(side.told)["addr"], fd_index=1,
                          uffd_mode=foreign.BOTH_MODES)
    adapter.send(pyvmm.attach(pyvmm.DESTINATION, "vm1", [region], pyvmm.UFFD_FEATURES,
                              kind=pyvmm.MEMORY), [side.uffds[0], side.memory_fd])
    adapter.expect(pyvmm.ATTACHED)


def come_again(destination, side, pidfd, standing):
    adapter = foreign.Adapter(destination.vmm_path, "destination", "vm1", pidfd)
    adapter.sock.settimeout(harness.DEADLINE_S)
    assert adapter.attach_again() == standing
    return adapter


def test_an_adapter_comes_again_at_each_step(host):
    source, destination, there, side, pidfd, content = start_foreign(host)
    LateVmm(destination, "vm1", pidfd).close()
    come_again(destination, side, pidfd, pyvmm.STANDS_WAITING).close()
    destination.call("Start", id="vm1")
    there.pause()
    harness.eventually(lambda: destination.state("vm1") == "switching", "it waits")
    for _ in range(2):
        adapter = come_again(destination, side, pidfd, pyvmm.STANDS_WAITING)
        adapter.expect(pyvmm.VMSTATE)
        adapter.close()
    adapter = come_again(destination, side, pidfd, pyvmm.STANDS_WAITING)
    _, fds = adapter.expect(pyvmm.VMSTATE)
    side.ask("load " + os.pread(fds[0], 100, 0).hex())
    hand_over(adapter, side)
    adapter.close()
    adapter = come_again(destination, side, pidfd, pyvmm.STANDS_LOADING)
    adapter.expect(pyvmm.VMSTATE)
    adapter.send(pyvmm.packet(pyvmm.LOADED))
    adapter.close()
    adapter = come_again(destination, side, pidfd, pyvmm.STANDS_LOADED)
    side.ask("cont")
    adapter.send(pyvmm.packet(pyvmm.RESUMED))
    adapter.expect(pyvmm.COMPLETE)
    seen = harness.eventually(lambda: side.ask("seen"), "the guest has read all of its memory")
    assert seen == hashlib.sha256(content).hexdigest()
    adapter.close()


@pytest.mark.parametrize("memory", ["late", "taken"])
def test_an_adapter_that_stays_away_gives_the_guest_back(host, memory):
    source, destination, there, side, pidfd, _ = start_foreign(
        host, extra=["--attach-timeout", "1"])
    adapter = LateVmm(destination, "vm1", pidfd)
    destination.call("Start", id="vm1")
    there.pause()
    adapter.vmstate_comes()
    if memory == "taken":
        hand_over(adapter, side)
    adapter.close()
    there.expect(pyvmm.RESUME)
    assert "did not come back" in destination.wait_for_state("vm1", "failed")["reason"]


@pytest.mark.parametrize("memory", ["late", "taken"])
def test_a_vmm_that_dies_while_it_loads_gives_the_guest_back(host, memory):
    source, destination, there, side, pidfd, _ = start_foreign(host)
    adapter = LateVmm(destination, "vm1", pidfd)
    destination.call("Start", id="vm1")
    there.pause()
    adapter.vmstate_comes()
    if memory == "taken":
        hand_over(adapter, side)
    side.vmm.kill()
    there.expect(pyvmm.RESUME)
    assert "VMM is gone" in destination.wait_for_state("vm1", "failed")["reason"]
    adapter.close()
