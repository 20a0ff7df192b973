# SPDX-License-Identifier: Apache-2.0
"""An adapter is not the VMM: it is killed, and comes again, and the guest lives on. Each of these
was the end of a guest when the connection was the VMM's life."""
import ctypes
import errno
import hashlib
import json
import os
import pathlib
import random
import selectors
import signal
import socket
import subprocess
import sys
import time

import pytest

import foreign
import harness
import pyvmm
import stream
from keeper import KeptDaemon

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Pair:
    def __init__(self, host, kind=harness.Daemon, size=SIZE, **options):
        self.source = host.daemon("source", kind=kind, **options)
        self.destination = host.daemon("destination", kind=kind, **options)
        self.content = pyvmm.guest_content(size)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address)
        self.sides = {"source": foreign.Side(host, self.source, "source", "vm1", size,
                                             self.content),
                      "destination": foreign.Side(host, self.destination, "destination", "vm1",
                                                  size)}

    def start(self, **params):
        self.destination.call("Start", id="vm1", **params)

    def finish(self):
        """The guest runs at the destination, and has seen what the source's had."""
        for daemon in (self.destination, self.source):
            daemon.wait_for_state("vm1", "complete")
        side = self.sides["destination"]
        seen = harness.eventually(lambda: side.ask("seen"), "the guest has read all of its memory")
        vmstate = bytes.fromhex(side.ask("vmstate"))
        count = int(vmstate.split()[1])
        # The count as it was at the pause, both in the vmstate and in memory.
        assert side.ask("count") == str(count)
        content = count.to_bytes(8, "little") + self.content[8:]
        assert seen == hashlib.sha256(content).hexdigest()


def state_of(daemon):
    answer = daemon.call("Get", id="vm1")
    return answer["state"], answer["reason"]


def wait_detached(daemon):
    harness.eventually(lambda: "adapter detached" in state_of(daemon)[1] or
                       state_of(daemon)[0] == "complete", "the daemon sees that it is away")


POINTS = [("source", "attached"), ("source", "pause"), ("source", "stopped"), ("source", "paused"),
          ("source", "complete"), ("destination", "attached"), ("destination", "vmstate"),
          ("destination", "loading"), ("destination", "loaded"), ("destination", "running"),
          ("destination", "resumed"), ("destination", "complete")]


def take_turns(pair, victim, point, on_point):
    """Both adapters take their steps, in whatever order; at the point one is killed, and comes
    again."""
    sides = dict(pair.sides)
    struck = False
    while sides:
        with selectors.DefaultSelector() as selector:
            for name, side in sides.items():
                selector.register(side.adapter.stdout, selectors.EVENT_READ, name)
            ready = selector.select(harness.DEADLINE_S)
        assert ready, "no adapter says anything: %s" % [
            state_of(daemon) for daemon in (pair.source, pair.destination)]
        name = ready[0][0].data
        side = sides[name]
        line = side.step()
        assert line is None or not line.startswith("error"), line
        if not struck and name == victim and line and line.split()[0] == point:
            struck = True
            side.kill_adapter()
            on_point(name)
            side.start_adapter(again=True, stepping=True)
        elif line is None:
            del sides[name]
        else:
            side.go_on()
    assert struck


@pytest.mark.parametrize("victim,point", POINTS)
@pytest.mark.parametrize("kept", [False, True], ids=["adapter", "adapter-and-daemon"])
def test_adapter_killed_at_each_step_comes_again(host, victim, point, kept):
    """The socket's end was the VMM's death: a destination's failed, a source's gave up."""
    pair = Pair(host, kind=KeptDaemon if kept else harness.Daemon)
    for side in pair.sides.values():
        side.start_adapter(stepping=True)
    for daemon in (pair.source, pair.destination):
        daemon.wait_for_state("vm1", "attached")
    pair.start()

    def on_point(name):
        daemon = getattr(pair, name)
        wait_detached(daemon)
        if kept:
            daemon.crash_and_restart()

    take_turns(pair, victim, point, on_point)
    pair.finish()
    assert pair.sides["source"].vmm.wait(harness.DEADLINE_S) == 0


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_adapter_killed_at_any_moment_comes_again(host, victim):
    """Ten times, whatever it is doing: three before the start, the others while the guest moves."""
    pair = Pair(host, size=8 << 20)
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    pair.sides["destination"].ask("slow 0.1")
    for side in pair.sides.values():
        side.start_adapter()
    for daemon in (pair.source, pair.destination):
        daemon.wait_for_state("vm1", "attached")
    side = pair.sides[victim]
    assert side.step().startswith("attached")
    seed = random.randrange(1 << 32)
    print("seed", seed)
    moments = random.Random(seed)
    for number in range(10):
        if number == 3:
            pair.start()
        time.sleep(moments.random() / 10)
        side.kill_adapter()
        side.start_adapter(again=True)
        assert side.step().startswith("attached")
    pair.sides["destination"].ask("slow 0")
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.finish()


def start_one(host, role, size=SIZE, **options):
    """The adapter is this process: (daemon, side, connection)."""
    daemon = host.daemon(role, **options)
    if role == "source":
        daemon.prepare_source("vm1")
    side = foreign.Side(host, daemon, role, "vm1", size, b"")
    pidfd = os.pidfd_open(side.vmm.pid)
    host.later(lambda: os.close(pidfd))
    return daemon, side, pidfd


def connect(daemon, side, pidfd):
    adapter = foreign.Adapter(daemon.vmm_path, side.role, "vm1", pidfd)
    adapter.sock.settimeout(harness.DEADLINE_S)
    return adapter


def again_is_refused(daemon, side, pidfd, code):
    with connect(daemon, side, pidfd) as adapter:
        adapter.send(pyvmm.attach(adapter.kind, "vm1", [], 0, pyvmm.WITH_PIDFD | pyvmm.AGAIN),
                     [pidfd])
        got, text = adapter.expect_error()
        assert got == code, text
        return text


def test_who_attaches_again_must_have_attached(host):
    """A daemon that has lost its record, and was told of the migration anew, would else have
    emptied the memory of a guest that runs."""
    daemon, side, pidfd = start_one(host, "source")
    again_is_refused(daemon, side, pidfd, errno.ENOENT)
    first = connect(daemon, side, pidfd)
    first.attach(SIZE, 0x10000000, [side.memory_fd])
    again_is_refused(daemon, side, pidfd, errno.EBUSY)
    first.close()
    wait_detached(daemon)
    me = os.pidfd_open(os.getpid())
    text = again_is_refused(daemon, side, me, errno.ENOENT)
    os.close(me)
    assert str(os.getpid()) in text
    with connect(daemon, side, pidfd) as adapter:
        adapter.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [pyvmm.Region(SIZE)], 0,
                                  pyvmm.WITH_PIDFD), [side.memory_fd, pidfd])
        assert adapter.expect_error()[0] == errno.EBUSY
    with connect(daemon, side, pidfd) as adapter:
        assert adapter.attach_again() == pyvmm.STANDS_RUNNING
        assert "adapter detached" not in state_of(daemon)[1]


def test_what_is_no_pidfd_is_refused(host):
    daemon, side, _ = start_one(host, "source")
    gone = os.fork()
    if not gone:
        os._exit(0)
    dead = os.pidfd_open(gone)
    os.waitpid(gone, 0)
    ends = socket.socketpair()
    for fd, code in ((side.memory_fd, errno.EINVAL), (ends[0].fileno(), errno.EINVAL),
                     (dead, errno.ESRCH)):
        with connect(daemon, side, fd) as adapter:
            adapter.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [pyvmm.Region(SIZE)], 0,
                                      pyvmm.WITH_PIDFD), [side.memory_fd, fd])
            got, text = adapter.expect_error()
            assert got == code, text
    os.close(dead)
    assert daemon.state("vm1") == "prepared"


NAME = """
import os, sys
sys.path.insert(0, sys.argv[4])
import pyvmm
with pyvmm.Socket(sys.argv[1]) as sock:
    pid, fd = int(sys.argv[2]), int(sys.argv[3])
    sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [pyvmm.Region(%d)], 0, pyvmm.WITH_PIDFD),
              [fd, os.pidfd_open(pid or os.getpid())])
    kind, payload, _ = sock.receive()
    print(pyvmm.NAMES[kind], payload[8:].decode())
""" % SIZE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_process_may_be_named_by_its_user_and_by_root(host):
    """Whoever names a process has it looked at by the daemon, which may more than he."""
    host.dir.chmod(0o755)
    daemon = host.daemon("source", extra=["--vmm-group", "nogroup"])
    daemon.prepare_source("vm1")
    fd = pyvmm.memfd(size=SIZE)

    def name(pid, **user):
        here = str(pathlib.Path(__file__).parent)
        return subprocess.run([sys.executable, "-c", NAME, str(daemon.vmm_path), str(pid), str(fd),
                               here], pass_fds=[fd], capture_output=True, text=True,
                              check=True, timeout=harness.DEADLINE_S, **user).stdout

    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    told = name(os.getpid(), **nobody)
    assert told.startswith("ERROR") and "user 65534 may not name it" in told, told
    assert name(0, **nobody).startswith("ATTACHED")
    daemon.wait_for_state("vm1", "prepared")
    theirs = subprocess.Popen(["/bin/sleep", "60"], **nobody)
    host.later(lambda: (theirs.kill(), theirs.wait()))
    assert name(theirs.pid).startswith("ATTACHED")
    os.close(fd)


def run_to(pair, point):
    """Both adapters, up to a step of the destination's that is not let go on."""
    for side in pair.sides.values():
        side.start_adapter(stepping=True)
    for name, daemon in (("source", pair.source), ("destination", pair.destination)):
        assert pair.sides[name].step().startswith("attached")
        pair.sides[name].go_on()
    pair.start()
    steps = {"source": ["pause", "stopped", "paused"],
             "destination": ["vmstate", "loading", "loaded", "running", "resumed"]}
    for name in ("source", "destination"):
        for step in steps[name]:
            assert pair.sides[name].step() == step
            if step == point:
                return
            pair.sides[name].go_on()


def test_destination_vmm_killed_before_it_is_loaded_gives_the_guest_back(host):
    pair = Pair(host)
    run_to(pair, "vmstate")
    pair.sides["destination"].vmm.kill()
    assert "VMM is gone" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert pair.sides["source"].step() == "resume"
    assert pair.sides["source"].ask("state") == "running"


def test_destination_vmm_killed_in_postcopy_is_told_as_such(host):
    """The adapter lives, and was taken for the VMM."""
    pair = Pair(host)
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    run_to(pair, "loaded")
    side = pair.sides["destination"]
    side.vmm.kill()
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert "destination VMM is gone, and the guest with it" in reason
    assert state_of(pair.source)[0] in ("switching", "postcopy")


def test_source_vmm_killed_while_attached_or_warm(host):
    daemon, side, pidfd = start_one(host, "source")
    adapter = connect(daemon, side, pidfd)
    host.later(adapter.close)
    adapter.attach(SIZE, 0x10000000, [side.memory_fd])
    side.vmm.kill()
    daemon.wait_for_state("vm1", "prepared")
    assert "VMM (pid %d) is gone" % side.vmm.pid in adapter.expect_failure()[1]


def test_vmm_that_died_while_no_daemon_ran(host):
    pair = Pair(host, kind=KeptDaemon)
    pair.destination.call("SetLimits", id="vm1", bulk=False, prefetch=False)
    run_to(pair, "loaded")
    # Nothing comes, so the migration can't be complete.
    os.kill(pair.source.pid, signal.SIGSTOP)
    host.later(lambda: os.kill(pair.source.pid, signal.SIGCONT))
    side = pair.sides["destination"]
    for step in ("running", "resumed"):
        side.go_on()
        assert side.step() == step
    side.kill_adapter()
    wait_detached(pair.destination)
    pair.destination.crash()
    side.vmm.kill()
    side.vmm.wait()
    pair.destination.start()
    assert "VMM is gone" in pair.destination.wait_for_state("vm1", "failed")["reason"]


def test_pause_waits_for_the_adapter_and_not_for_ever(host):
    pair = Pair(host, extra=["--attach-timeout", "1"])
    for side in pair.sides.values():
        side.start_adapter()
        assert side.step().startswith("attached")
    side = pair.sides["source"]
    side.kill_adapter()
    wait_detached(pair.source)
    pair.start()
    reason = pair.source.wait_for_state("vm1", "failed")["reason"]
    assert "adapter has detached" in reason and "attach-timeout" in reason
    assert side.ask("state") == "running"
    # Told when it comes, whatever it had done before.
    side.start_adapter(again=True)
    assert side.step() == "attached %d" % pyvmm.STANDS_RUNNING
    assert side.step() == "resume"


def test_vmstate_waits_for_the_adapter_and_not_for_ever(host):
    """The source's guest stands still meanwhile."""
    pair = Pair(host, extra=["--attach-timeout", "1"])
    run_to(pair, "vmstate")
    side = pair.sides["destination"]
    side.kill_adapter()
    assert "did not come back" in pair.destination.wait_for_state("vm1", "failed")["reason"]
    assert pair.sides["source"].step() == "resume"
    side.start_adapter(again=True)
    assert side.step() == "attached %d" % pyvmm.STANDS_WAITING
    assert side.step().startswith("error")


def test_cancel_reaches_an_adapter_that_was_away(host):
    pair = Pair(host)
    for side in pair.sides.values():
        side.start_adapter()
        assert side.step().startswith("attached")
    pair.start(switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    for name, side in pair.sides.items():
        side.kill_adapter()
        wait_detached(getattr(pair, name))
    pair.destination.call("Cancel", id="vm1")
    for name in ("destination", "source"):
        getattr(pair, name).wait_for_state("vm1", "cancelled")
    for name, side in pair.sides.items():
        side.start_adapter(again=True)
        assert side.step().startswith("attached")
        assert side.step().split()[0] == {"source": "resume", "destination": "error"}[name]


class BusySource(stream.WarmSource):
    """Its guest writes some pages just before it is paused: they come after that."""

    LAST = range(3, 40)

    def harvest(self):
        if self.paused:
            for unit in self.LAST:
                self.content[unit * stream.UNIT:(unit + 1) * stream.UNIT] = b"w" * stream.UNIT
                self.log.add(unit)
        return super().harvest()


def read_vmm(pid, addr):
    """A page of the VMM's, as its own threads would read it: it waits for one that is not there."""
    page = ctypes.create_string_buffer(stream.UNIT)
    vectors = [(ctypes.c_void_p * 2)(where, stream.UNIT) for where in (ctypes.addressof(page), addr)]
    assert pyvmm.libc.process_vm_readv(pid, vectors[0], 1, vectors[1], 1, 0) == stream.UNIT
    return page.raw


def test_daemon_killed_when_pages_may_be_seen_and_nobody_was_given_the_vmstate(host):
    """With the adapter away that moment lasts: the daemon has its threads, and its record says
    switching. The next process warmed again, and undid what the VMM had done with what had come."""
    daemon, side, pidfd = start_one(host, "destination", kind=KeptDaemon, allow=["postcopy:source"])
    source = BusySource(host.pki.source, pyvmm.guest_content(SIZE), vmstate=b"count 0")
    host.later(source.close)
    daemon.prepare_destination("vm1", source.address)
    addr = json.loads(side.told)["addr"]
    adapter = connect(daemon, side, pidfd)
    adapter.attach(SIZE, addr, [*side.uffds, side.memory_fd])
    adapter.close()
    wait_detached(daemon)
    daemon.call("Start", id="vm1", warm={})
    harness.eventually(lambda: source.paused, "it has asked for the switchover")
    assert read_vmm(side.vmm.pid, addr + 5 * stream.UNIT) == b"w" * stream.UNIT
    assert state_of(daemon)[0] == "switching"
    os.pwrite(side.memory_fd, b"v" * stream.UNIT, 5 * stream.UNIT)
    asked, tracks = len(source.asked), source.tracks
    daemon.crash_and_restart()
    assert state_of(daemon)[0] == "switching"
    side.start_adapter(again=True)
    daemon.wait_for_state("vm1", "complete")
    again = {first + bit for _, first, mask in source.asked[asked:] for bit in range(64)
             if mask >> bit & 1}
    assert again == set(source.LAST) - {5} and source.tracks == tracks
    source.content[5 * stream.UNIT:6 * stream.UNIT] = b"v" * stream.UNIT
    seen = harness.eventually(lambda: side.ask("seen"), "the guest has read all of its memory")
    assert seen == hashlib.sha256(bytes(source.content)).hexdigest()
