# SPDX-License-Identifier: Apache-2.0
"""A host is emptied: all of its guests, to two others."""
import json
import os
import re
import signal
import subprocess
import threading

import pytest

import harness
import pyvmm
from keeper import KeptDaemon

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
SIZE = 2 << 20
CTL = harness.BUILD / "src/ctl/postcopyctl"


class Host:
    """Daemons, and guests whose destinations' VMMs are started by the command's --exec: it writes
    who is wanted where into a pipe."""

    def __init__(self, host, ids, targets=2, kind=harness.Daemon):
        self.host = host
        self.from_ = host.daemon("source", allow=["postcopy:destination"])
        self.to = [host.daemon("destination", allow=["postcopy:source"], kind=kind)
                   for _ in range(targets)]
        self.by_path = {str(daemon.control_path): daemon for daemon in self.to}
        self.wanted = host.dir / "wanted"
        os.mkfifo(self.wanted)
        # Read and write: so that it has no end while nobody writes.
        self.pipe = os.open(self.wanted, os.O_RDWR)
        self.content = {name: pyvmm.guest_content(SIZE, seed) for seed, name in enumerate(ids)}
        self.arrived, self.lock, self.threads = {}, threading.Lock(), []
        for name in ids:
            self.from_.prepare_source(name)
            self.begin(self.live_at_source, pyvmm.SourceVmm(self.from_, name, self.content[name]))
        self.lines = harness.Lines(self.pipe, "--exec")
        host.later(lambda: os.close(self.pipe))

    def begin(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def live_at_source(self, vmm):
        with vmm:
            try:
                vmm.pause()
                vmm.expect(pyvmm.COMPLETE)
            except harness.Failure:
                # One that stays: the test ends under it. What must have gone is in .arrived.
                pass

    def live_at_destination(self, name, daemon):
        with pyvmm.DestinationVmm(daemon, name, SIZE) as vmm:
            vmm.load()
            vmm.expect(pyvmm.COMPLETE)
            whole = os.pread(vmm.memory_fd, SIZE, 0) == self.content[name]
        with self.lock:
            self.arrived[name] = (daemon, whole)

    def start_wanted(self, n):
        """The VMMs of the next n guests that are wanted."""
        for _ in range(n):
            name, path = self.lines.next(harness.time.monotonic() + harness.DEADLINE_S).split()
            self.begin(self.live_at_destination, name, self.by_path[path])

    def command(self, *extra):
        to = ",".join(self.by_path)
        return subprocess.Popen(
            [CTL, "evacuate", "--from", self.from_.control_path, "--to", to, "--exec",
             "echo $POSTCOPY_ID $POSTCOPY_TO >%s" % self.wanted, *extra],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(command, status):
    out, err = command.communicate(timeout=harness.DEADLINE_S)
    assert command.returncode == status, out + err
    return out, err


def test_all_go_and_are_whole(host):
    ids = ["vm%d" % i for i in range(9)]
    hosts = Host(host, ids)
    command = hosts.command("--parallel", "3")
    hosts.start_wanted(len(ids))
    out, _ = ended(command, 0)
    assert "9 guests of %s" % hosts.from_.control_path in out
    assert "9 moved, 0 failed, 0 not begun" in out
    assert re.search(r"\[9/9\] vm\d -> .*: moved in .*, downtime ", out)
    for thread in hosts.threads:
        thread.join(harness.DEADLINE_S)
    assert {name: whole for name, (_, whole) in hosts.arrived.items()} == dict.fromkeys(ids, True)
    shares = [sum(daemon is to for daemon, _ in hosts.arrived.values()) for to in hosts.to]
    assert sorted(shares) == [4, 5]


def test_the_plan_alone_changes_nothing(host):
    hosts = Host(host, ["vm1", "vm2"])
    out, _ = ended(hosts.command("--plan", "--json"), 0)
    guests = json.loads(out)["guests"]
    assert [guest["id"] for guest in guests] == ["vm1", "vm2"]
    assert sorted(guest["to"] for guest in guests) == sorted(hosts.by_path)
    assert [hosts.from_.state(name) for name in ("vm1", "vm2")] == ["attached"] * 2
    assert all(not to.call("List")["migrations"] for to in hosts.to)


def test_interrupted_each_guest_is_here_or_there_and_it_goes_on(host):
    ids = ["vm%d" % i for i in range(4)]
    hosts = Host(host, ids)
    command = hosts.command("--parallel", "2")
    # Of the first two one comes to its end, the other's VMM never attaches before the signal.
    hosts.start_wanted(1)
    first = command.stdout.readline()
    while "[1/4]" not in first:
        first = command.stdout.readline()
        assert first
    command.send_signal(signal.SIGINT)
    _, err = ended(command, 130)
    assert "the same command again goes on" in err
    harness.eventually(lambda: len(hosts.arrived) == 1, "the first one has arrived")
    states = [hosts.from_.state(name) for name in ids]
    assert sorted(states) == ["attached"] * 3 + ["complete"]
    # Of those whose VMM was wanted and not started the pipe still has some lines.
    os.set_blocking(hosts.pipe, False)
    try:
        os.read(hosts.pipe, 65536)
    except BlockingIOError:
        pass
    os.set_blocking(hosts.pipe, True)
    hosts.lines.rest = b""
    command = hosts.command("--parallel", "2")
    hosts.start_wanted(3)
    out, _ = ended(command, 0)
    assert "3 moved, 0 failed, 0 not begun" in out
    for thread in hosts.threads:
        thread.join(harness.DEADLINE_S)
    assert len(hosts.arrived) == 4 and all(whole for _, whole in hosts.arrived.values())


def test_a_target_that_can_not_take_a_guest_is_passed_over(host):
    """Its VMM can't be started there: it goes to the other, and its attachment is kept meanwhile."""
    hosts = Host(host, ["vm1"])
    first = next(iter(hosts.by_path))
    command = hosts.command("--exec", "[ $POSTCOPY_TO != %s ] && echo $POSTCOPY_ID $POSTCOPY_TO "
                            ">%s" % (first, hosts.wanted))
    hosts.start_wanted(1)
    out, _ = ended(command, 0)
    assert "ended with status 1; is tried elsewhere" in out
    for thread in hosts.threads:
        thread.join(harness.DEADLINE_S)
    assert hosts.arrived["vm1"] == (hosts.to[1], True)


def test_what_can_not_be_moved_is_told_and_stays(host):
    hosts = Host(host, ["vm1"], targets=1)
    out, _ = ended(hosts.command("--attach-timeout", "1"), 1)
    assert "the destination's VMM has not attached for 1 s" in out
    assert "0 moved, 1 failed, 0 not begun" in out
    assert hosts.from_.state("vm1") == "attached"


def test_one_that_is_out_of_sight_is_not_tried_elsewhere(host):
    """The target's daemon ended while the guest came: its next process goes on with it."""
    hosts = Host(host, ["vm1"], kind=KeptDaemon)
    command = hosts.command("--bandwidth", "64K", "--json")
    hosts.start_wanted(1)
    harness.eventually(lambda: any(to.call("List")["migrations"] for to in hosts.to),
                       "it has been prepared")
    target, other = sorted(hosts.to, key=lambda to: not to.call("List")["migrations"])
    target.wait_for_state("vm1", "postcopy")
    target.crash_and_restart()
    out, _ = ended(command, 1)
    guest, = json.loads(out)["guests"]
    assert guest["tries"] == 1 and not guest["moved"] and "destination's daemon" in guest["result"]
    assert not other.call("List")["migrations"]
    target.call("SetLimits", id="vm1", bandwidth_bytes_per_s=0)
    for thread in hosts.threads:
        thread.join(harness.DEADLINE_S)
    assert hosts.arrived["vm1"] == (target, True)
    # Given again it finds nothing that is left to do.
    out, _ = ended(hosts.command("--json"), 0)
    assert not json.loads(out)["guests"]
