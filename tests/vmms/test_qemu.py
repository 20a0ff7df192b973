# SPDX-License-Identifier: Apache-2.0
"""A guest of a QEMU as it is, moved by two daemons and postcopy-qemu on each side."""
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
import types

import pytest

import harness
import pyvmm
from adapter import Adapter, check
from keeper import KeptDaemon
from monitor_proxy import KillAt, Proxy

SHAPES = [dict(suite="bookworm", memory="tmpfs", vcpus=1),
          dict(suite="trixie", memory="memfd", vcpus=2),
          dict(suite="sid", memory="hugetlb", vcpus=2),
          dict(suite="trixie", memory="tmpfs", accel="kvm", mib=64)]


def named(shape):
    return "-".join(str(value) for value in shape.values())


def migrates_as_ever(vmm):
    """A migration of QEMU's own takes all of its RAM along, and no more of the network than before."""
    capabilities = {c["capability"]: c["state"] for c in
                    vmm.qmp.execute("query-migrate-capabilities")}
    return (not capabilities["x-ignore-shared"] and
            not vmm.qmp.execute("qom-get", path="/machine", property="suppress-vmdesc") and
            vmm.qmp.execute("query-migrate-parameters")["max-bandwidth"] == 128 << 20)


class Move:
    """Two daemons and two QEMUs, attached, up to where somebody says Start."""

    def __init__(self, host, guest, source=None, migration_id="vm1", kill=None, daemons=None,
                 adapters_first=False, **limits):
        """@kill: (role, KillAt): whose adapter is killed, and where. @daemons: from where, and where to.
        @adapters_first: they wait until it is prepared."""
        self.host, self.id = host, migration_id
        self.there, self.here = daemons or (host.daemon("source"), host.daemon("destination"))
        self.source = source or guest.start("a").wait_until_ready()
        self.destination = guest.start("b", incoming=True)
        self.kill = kill or (None, None)
        if not adapters_first:
            self.prepare(limits)
        self.leaving = self.adapter(self.source, "source", self.there)
        self.coming = self.adapter(self.destination, "destination", self.here)
        if adapters_first:
            for adapter in (self.leaving, self.coming):
                adapter.wait_for_log("waiting for it to be prepared")
            self.prepare(limits)

    def prepare(self, limits):
        self.there.prepare_source(self.id)
        self.here.prepare_destination(self.id, self.there.address, **limits)

    def adapter(self, vmm, role, daemon):
        if role != self.kill[0]:
            return Adapter(self.host, vmm, role, daemon, self.id)
        proxy = Proxy(self.host, vmm, self.kill[1])
        self.kill[1].adapter = adapter = Adapter(
            self.host, vmm, role, daemon, self.id, qmp_path=proxy.path,
            options=["--pid", vmm.pid])
        return adapter

    def attached(self):
        self.leaving.wait_until_attached()
        self.coming.wait_until_attached()
        return self

    def start(self):
        self.here.call("Start", id=self.id)

    def complete(self):
        migration = self.here.wait_for_state(self.id, "complete")
        assert self.coming.wait() == 0 and self.leaving.wait() == 0
        assert self.source.wait() == 0
        assert migrates_as_ever(self.destination)
        return migration


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_a_guest_moves(host, guest_of, shape):
    guest = guest_of(**shape)
    move = Move(host, guest).attached()
    move.start()
    move.complete()
    assert move.destination.status() == "running"
    move.destination.check(passes=2)


# (role, moment, command, which of these): each leaves QEMU and the daemon in another state.
POINTS = [
    ("source", "after", "migrate-set-capabilities", 1), ("source", "after", "qom-set", 1),
    ("source", "after", "getfd", 1), ("source", "before", "migrate", 1), ("source", "after", "migrate", 1),
    ("source", "before", "quit", 1), ("source", "after", "quit", 1),
    ("destination", "after", "getfd", 2),
    ("destination", "before", "closefd", 2), ("destination", "after", "closefd", 2),
    ("destination", "after", "migrate-set-capabilities", 1), ("destination", "after", "stop", 1),
    ("destination", "after", "getfd", 3), ("destination", "after", "getfd", 4),
    ("destination", "before", "migrate-incoming", 1),
    ("destination", "after", "migrate-incoming", 1),
    ("destination", "before", "closefd", 3), ("destination", "after", "closefd", 3),
    ("destination", "before", "cont", 1), ("destination", "after", "cont", 1),
]


@pytest.mark.parametrize("role,moment,command,nth", POINTS,
                         ids=["-".join(map(str, point)) for point in POINTS])
def test_an_adapter_killed_there_is_started_again_and_goes_on(host, guest_of, role, moment, command, nth):
    guest = guest_of(suite="trixie", memory="tmpfs", accel="kvm", mib=64)
    kill = KillAt(moment, command, nth)
    move = Move(host, guest, kill=(role, kill))
    other = move.coming if role == "source" else move.leaving
    other.wait_until_attached()
    victim = kill.adapter
    # Some of the points are on its way to attach.
    harness.eventually(lambda: kill.killed.is_set() or "attached" in victim.log(), "it has attached")
    started = not kill.killed.is_set()
    if started:
        move.start()
    harness.eventually(kill.killed.is_set, "%s %s" % (moment, command))
    if (moment, command) == ("after", "quit"):
        # There is no QEMU any more that it could speak for.
        assert move.source.wait() == 0
        move.here.wait_for_state("vm1", "complete")
    else:
        victim.start()
        if not started:
            victim.wait_until_attached()
            move.start()
        move.complete()
    move.destination.check(passes=2)


def bare_guest(guest_of, suite="trixie"):
    return guest_of(suite=suite, memory="tmpfs", accel="kvm", mib=64)


def killed_at(host, guest_of, role, *point, **which):
    """A move up to there, once it was begun."""
    kill = KillAt(*point)
    move = Move(host, bare_guest(guest_of, **which), kill=(role, kill)).attached()
    move.start()
    harness.eventually(kill.killed.is_set, " ".join(point))
    return move


def test_a_guest_runs_while_its_qemu_gets_ready(host, guest_of):
    move = killed_at(host, guest_of, "source", "before", "migrate")
    assert move.source.status() == "running"
    progress = move.source.progress()
    harness.eventually(lambda: move.source.progress() > progress, "the guest goes on")
    move.leaving.start()
    move.complete()
    move.destination.check(passes=2)


@pytest.mark.parametrize("suite", ["bookworm", "trixie", "sid"])
def test_a_guest_that_has_come_does_not_run_before_it_may(host, guest_of, suite):
    """Its vmstate says that it ran, and its QEMU was not started with -S."""
    move = killed_at(host, guest_of, "destination", "before", "cont", suite=suite)
    assert move.destination.status() == "paused"
    move.coming.start()
    move.complete()
    move.destination.check(passes=2)


def test_a_guest_that_has_come_is_saved_whole_while_its_memory_comes(host, guest_of):
    """Somebody who saves it in postcopy, which may last, must not get a file without its RAM."""
    move = Move(host, bare_guest(guest_of), bulk=False, prefetch=False).attached()
    move.start()
    move.here.wait_for_state("vm1", "postcopy")
    move.coming.wait_for_log("the guest runs here")
    harness.eventually(lambda: migrates_as_ever(move.destination), "QEMU's settings are put back")
    assert move.here.state("vm1") == "postcopy"


def test_a_guest_that_is_continued_by_hand_before_it_comes_waits(host, guest_of):
    """What was said to a QEMU that waits is not what it does when the guest is there."""
    kill = KillAt("before", "cont")
    move = Move(host, bare_guest(guest_of), kill=("destination", kill)).attached()
    move.destination.qmp.execute("cont")
    move.start()
    harness.eventually(kill.killed.is_set, "its adapter is killed before it says so")
    assert move.destination.status() == "paused"
    move.coming.start()
    move.complete()
    move.destination.check(passes=2)


def test_a_guest_that_is_continued_by_hand_after_it_has_gone_is_stopped(host, guest_of):
    move = Move(host, bare_guest(guest_of), bulk=False, prefetch=False).attached()
    move.start()
    move.here.wait_for_state("vm1", "postcopy")
    progress = move.source.progress()
    move.source.qmp.execute("cont")
    move.leaving.wait_for_log("continued here by somebody")
    harness.eventually(lambda: move.source.status() != "running", "it is stopped again")
    # While nobody watches: seen by the next one.
    move.leaving.kill()
    move.source.qmp.execute("cont")
    move.leaving.start()
    harness.eventually(lambda: move.leaving.log().count("continued here by somebody") == 2,
                       "it is told again")
    harness.eventually(lambda: move.source.status() != "running", "it is stopped again")
    stopped = move.source.progress()
    time.sleep(0.1)  # long enough for a guest to get on
    assert move.source.progress() == stopped and stopped >= progress


def test_a_destination_that_dies_before_it_is_loaded_costs_nothing(host, guest_of):
    class Death(KillAt):
        def __call__(self, moment, command):
            if (moment, command) == ("before", "migrate-incoming") and not self.killed.is_set():
                move.destination.kill()
                self.killed.set()
            return False
    guest = bare_guest(guest_of)
    source = guest.start("a").wait_until_ready()
    move = Move(host, guest, source=source, kill=("destination", Death(None, None))).attached()
    move.start()
    assert "gone" in move.here.wait_for_state("vm1", "failed")["reason"]
    assert move.leaving.wait() == 1 and "the guest runs on here" in move.leaving.log()
    assert move.coming.wait() == 1
    assert source.status() == "running" and migrates_as_ever(source)
    source.check(passes=2)


def await_message(sock, kind, told):
    """Its first number. How much is ahead until then is added to @told."""
    while True:
        data, fds, _, _ = socket.recv_fds(sock, pyvmm.PACKET_MAX, 8)
        for fd in fds:
            os.close(fd)
        got, number = struct.unpack_from("<H6xQ", data)
        if got == kind:
            return number
        if got == pyvmm.VMSTATE_AHEAD:
            told.append(number)


def test_what_is_saved_is_told_as_it_grows_but_for_its_last_byte(host, guest_of):
    """By which no QEMU comes to the end of its load before it is known that the guest was handed over. The daemon
    is the test."""
    path = host.dir / "daemon.vmm"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(harness.DEADLINE_S)
        adapter = Adapter(host, bare_guest(guest_of).start("a").wait_until_ready(), "source",
                          types.SimpleNamespace(vmm_path=path), "vm1")
        daemon, _ = listener.accept()
    daemon.settimeout(harness.DEADLINE_S)
    told = []
    with daemon:
        await_message(daemon, pyvmm.ATTACH, told)
        daemon.sendall(pyvmm.packet(pyvmm.ATTACHED))
        daemon.sendall(pyvmm.packet(pyvmm.PAUSE))
        length = await_message(daemon, pyvmm.PAUSED, told)
        assert told == sorted(set(told)) and told[-1] == length - 1
    adapter.kill()


def test_a_qemu_that_hangs_as_it_is_saved_keeps_its_guest(host, guest_of):
    """As by a disk that does not answer: its adapter waited for ever. What the destination has loaded by then
    is of no use to anybody."""
    class Hang(KillAt):
        def __call__(self, moment, command):
            if (moment, command) == ("before", "migrate-incoming"):
                os.kill(move.source.pid, signal.SIGSTOP)
                self.killed.set()
            return False
    move = Move(host, bare_guest(guest_of), kill=("destination", Hang(None, None))).attached()
    move.start()
    reason = move.there.wait_for_state("vm1", "failed")["reason"]
    assert "QEMU has written nothing of its vmstate for 10 s" in reason, reason
    move.here.wait_for_state("vm1", "failed")
    assert move.coming.wait() == 1
    move.destination.wait()
    # Worth another try, which has the guest run on when its QEMU answers.
    assert move.leaving.wait() == 75
    os.kill(move.source.pid, signal.SIGCONT)
    move.leaving.start()
    assert move.leaving.wait() == 1 and "the guest runs on here" in move.leaving.log()
    assert move.source.status() == "running" and migrates_as_ever(move.source)
    move.source.check(passes=2)


def test_a_qemu_that_does_not_answer_when_it_is_to_end_is_killed(host, guest_of):
    """It has loaded a part of a guest that does not come: as in a page fault that nobody serves any more."""
    class Stop(KillAt):
        def __call__(self, moment, command):
            if command == "migrate-incoming":
                os.kill((move.source if moment == "before" else move.destination).pid, signal.SIGSTOP)
                if moment == "after":
                    self.killed.set()
            return False
    stop = Stop(None, None)
    move = Move(host, bare_guest(guest_of), kill=("destination", stop)).attached()
    move.start()
    assert stop.killed.wait(harness.DEADLINE_S)
    move.here.call("Cancel", id="vm1")
    assert move.coming.wait() == 1
    assert move.destination.wait() == -signal.SIGKILL
    os.kill(move.source.pid, signal.SIGCONT)
    assert move.leaving.wait() == 1 and "the guest runs on here" in move.leaving.log()
    assert move.source.status() == "running"
    move.source.check(passes=2)


def test_a_guest_that_was_paused_by_others_stays_so_when_it_does_not_go(host, guest_of):
    guest = bare_guest(guest_of)
    source = guest.start("a").wait_until_ready()
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    adapter = Adapter(host, source, "source", daemon, "vm1").wait_until_attached()
    source.qmp.execute("stop")
    daemon.call("Cancel", id="vm1")
    assert adapter.wait() == 1
    assert source.status() == "paused"


def test_a_cancelled_guest_runs_on_and_moves_by_the_same_id_later(host, guest_of):
    guest = bare_guest(guest_of)
    move = Move(host, guest).attached()
    move.here.call("Cancel", id="vm1")
    move.there.call("Cancel", id="vm1")
    assert move.leaving.wait() == 1 and move.coming.wait() == 1
    assert move.source.status() == "running" and migrates_as_ever(move.source)
    again = Move(host, guest, source=move.source).attached()
    again.start()
    again.complete()
    again.destination.check(passes=2)


def test_daemons_killed_before_and_after_the_guest_has_gone(host, guest_of):
    daemons = [host.daemon(name, kind=KeptDaemon) for name in ("source", "destination")]
    move = Move(host, bare_guest(guest_of), daemons=daemons, bulk=False, prefetch=False).attached()
    for daemon in (move.there, move.here):
        daemon.crash_and_restart()
    move.start()
    move.here.wait_for_state("vm1", "postcopy")
    for daemon in (move.there, move.here):
        daemon.crash_and_restart()
    move.here.call("SetLimits", id="vm1", bulk=True)
    move.complete()
    move.destination.check(passes=2)


def test_check_says_what_moves_and_how(host, guest_of):
    guest = bare_guest(guest_of)
    source, destination = guest.start("a").wait_until_ready(), guest.start("b", incoming=True)
    status, said = check(source)
    assert status == 0 and "as a source" in said and "It can be moved." in said, said
    assert "RAM block ram: 65536 KiB, pages of 4 KiB: page by page, from /dev/shm/" in said, said
    status, said = check(destination)
    assert status == 0 and "as a destination" in said, said
    # Nothing of it stays.
    assert destination.status() == "inmigrate"
    migration = destination.qmp.execute("query-migrate")
    assert not migration.get("status") or migration["status"] == "none"


REFUSED = [
    ("private", "trixie", ["-object", "memory-backend-ram,id=other,size=16M", "-device",
                           "pc-dimm,memdev=other", "-m", "64,slots=2,maxmem=128M"],
     "RAM block other: its memory is private"),
    ("memfd-backend", "trixie", ["-object", "memory-backend-memfd,id=other,size=16M,share=on", "-device",
                                 "pc-dimm,memdev=other", "-m", "64,slots=2,maxmem=128M"],
     "it is a memory-backend-memfd, which QEMU since 8.1 puts into the vmstate"),
]


@pytest.mark.parametrize("what,suite,extra,reason", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_can_not_move_is_told_before_anything_begins(host, guest_of, what, suite, extra, reason):
    guest = guest_of(suite=suite, memory="tmpfs", accel="kvm", mib=64, extra=extra)
    source = guest.start("a")
    status, said = check(source)
    assert status == 1 and reason in said and "It can't be moved." in said, said
    # All that is against it is said once, and no error beside it.
    assert "level=error" not in said, said
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    adapter = Adapter(host, source, "source", daemon, "vm1")
    assert adapter.wait() == 1 and reason in adapter.log()
    assert source.status() == "running" and daemon.state("vm1") == "prepared"


def test_memory_that_others_have_mapped_and_capabilities_are_reasons(host, guest_of):
    guest = bare_guest(guest_of)
    source = guest.start("a")
    source.qmp.execute("migrate-set-capabilities",
                       capabilities=[{"capability": "multifd", "state": True}])
    source.qmp.execute("stop")
    with mmap.mmap(source.memory_fd, guest.size_bytes):
        status, said = check(source)
    assert status == 1 and "vhost-user" in said and "its migration capability multifd is on" in said, said
    assert "its guest does not run: it is \"paused\"" in said, said


@pytest.mark.parametrize("suite, said", [("bookworm", "is gone"), ("trixie", "can't load the guest: its migration has failed")])
def test_a_version_that_does_not_know_the_guest_costs_nothing(host, guest_of, suite, said):
    """QEMU 7.2 can only exit then; later ones say why."""
    guest = guest_of(suite="sid", memory="tmpfs", accel="kvm", mib=64)
    source = guest.start("a").wait_until_ready()
    move = Move(host, guest_of(suite=suite, memory="tmpfs", accel="kvm", mib=64), source=source).attached()
    move.start()
    reason = move.here.wait_for_state("vm1", "failed")["reason"]
    assert move.leaving.wait() == 1 and "the guest runs on here" in move.leaving.log()
    assert move.coming.wait() == 1 and said in move.coming.log() + reason
    assert source.status() == "running" and migrates_as_ever(source)
    source.check(passes=2)
    # It has quit: nobody can continue there what has been loaded in part.
    move.destination.wait()


@pytest.mark.parametrize("shape", [dict(suite="trixie", memory="tmpfs", accel="kvm", mib=64), pytest.param(
    dict(suite="trixie", memory="tmpfs", vcpus=2), marks=pytest.mark.skipif(
        os.environ.get("POSTCOPYD_VMMS") != "all", reason="make vmms has it; the bare guest's is here"))],
                         ids=["kvm", "tcg"])
def test_a_qemu_that_works_hard_is_interrupted_ten_thousand_times(guest_of, shape):
    """Of its guest nobody would do that; what an interruption leaves behind would be seen here."""
    vmm = guest_of(**shape).start("a").wait_until_ready()
    worker = subprocess.Popen([harness.BUILD / "tests/vmms/interrupt", str(vmm.pid), "10000"])
    while worker.poll() is None:
        vmm.check(passes=1)
        assert vmm.status() == "running"
    assert worker.wait() == 0
    vmm.check(passes=2)
