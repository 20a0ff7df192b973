# SPDX-License-Identifier: Apache-2.0
"""Something breaks at a random point of a warm migration: while the guest writes at the source and its
memory is copied over and over, around the switchover, or after it. In the end the guest has moved and
is whole; or it has not, and runs on at the source unharmed, with nobody who logs what it writes."""
import itertools
import pathlib
import random

import pytest

import harness
from recoveries import POINTS
from scene import (ACCESSES_BEFORE, DEADLINE_S, MEMORY_BYTES, PAGES, VCPU, VCPU_STRIDE, Memory, Scene,
                   assert_never_ran)
from test_lost_guests import SIDES
from test_migrate import Pair, huge_pages, pytestmark as needs_kvm  # noqa: F401
from test_warm import check_warm

pytestmark = needs_kvm

# Backends that can be warmed on any kernel: what is written to guest_memfd is logged by none.
BACKENDS = ("memfd", "hugetlb")
WORKLOADS = ("random", "hotcold", "sequential", "zeroes")
LOGS = ("kvm", "ring", "wp")
VCPUS = (1, 2, 4)
# The last one goes on until it is told.
POLICIES = ({"max_rounds": 3}, {"max_time": "1.5s"}, {"catch_up": "0.1s", "max_rounds": 6}, {})
# A round copies 64 MiB: some 1.3 s.
ROUNDS = 2.2
BATCH = 5
# More than all that comes while warming.
REFUSED = -0.5


def discards(backend, log):
    """What is discarded of shared memory its VMM must tell; and nobody discards a part of a huge page."""
    return ["discard"] if backend == "memfd" and log != "wp" else []


class WarmScene(Scene):
    def __init__(self, host, request, seed, name, policy=None):
        rng = random.Random("%d of warm" % seed)
        backend, workload, log, vcpus = (rng.choice(choices) for choices in
                                         (BACKENDS, WORKLOADS, LOGS, VCPUS))
        self.policy = rng.choice(POLICIES) if policy is None else policy
        if backend == "hugetlb":
            request.getfixturevalue("huge_pages")
        super().__init__(host, seed, name, backend=backend,
                         guest={"workload": workload, "write_percent": 50, "vcpus": vcpus},
                         source_vmm={"dirty_log": log, "flags": discards(backend, log)})

    def present(self):
        """Below zero while it warms: all that comes then comes once more, if need be."""
        migration = self.get()
        if migration and migration["state"] == "warming" and migration["warm"]:
            if migration["warm"]["refused"]:
                return REFUSED  # nothing comes any more until it is told to switch over
            return migration["warm"]["bytes"] / (1 << 50) - 1
        return super().present() if migration else -2

    def go_to_a_point(self):
        """Anywhere in two rounds, or what comes after them."""
        self.destination.call("Start", id="vm1", warm=self.policy, switchover=bool(self.policy))
        come = self.rng.uniform(0, ROUNDS) * MEMORY_BYTES / (1 << 50) - 1
        harness.eventually(lambda: self.present() >= come, "some of the guest has come", DEADLINE_S)

    def broken_from(self, before, killed=()):
        """What goes on must be more than: nothing that came before it was lost may count as that."""
        if before >= 0:
            return before
        # The count begins anew with the destination's process; and it is not there to be asked.
        if self.destination in killed:
            return -1
        now = self.present()
        # Where the source could not tell its writes nothing comes until the switchover. With the log
        # the count begins anew too.
        return -1 if now == REFUSED or now < before else now

    def move(self):
        """If that is not done by itself."""
        if not self.policy:
            self.destination.call("Switchover", id="vm1")
        self.finish()
        # A source that was started on a busy host may not answer within its 10 s.
        assert self.get()["warm"]["refused"] == "" or "has not answered" in self.get()["warm"]["refused"]

    def accesses(self):
        memory = Memory(self.source_vmm)
        counts = [int.from_bytes(memory.read(VCPU + vcpu * VCPU_STRIDE + ACCESSES_BEFORE, 8), "little")
                  for vcpu in range(self.guest["vcpus"])]
        memory.close()
        return counts

    def is_watched(self):
        """Whether any of the guest's memory is write-protected still, or could be."""
        smaps = pathlib.Path("/proc/%d/smaps" % self.source_vmm.pid).read_text()
        return any(" uw" in line for line in smaps.splitlines() if line.startswith("VmFlags:"))

    def assert_nobody_logs(self):
        """By the kernel, and by the VMM's word of its memslot's flags."""
        harness.eventually(lambda: not self.is_watched(), "write protection is off")
        logging = [event["event"] for event in self.source_vmm.events
                   if event["event"].startswith("logging")]
        assert not logging or logging[-1] == "logging-off", logging

    def runs_on_unharmed(self):
        """It was told that nobody comes for its guest."""
        self.source_vmm.wait_for_event("running-on", deadline_s=DEADLINE_S)
        self.assert_nobody_logs()
        before = self.accesses()
        harness.eventually(lambda: all(now > then for now, then in zip(self.accesses(), before)),
                           "each of its vCPUs works on")
        self.source_vmm.popen.terminate()
        result = self.source_vmm.wait_for_event("result", deadline_s=DEADLINE_S)
        assert result["pages_checked"] > 0 and result["pages_bad"] == 0, result
        assert self.source_vmm.wait() == 0


@pytest.mark.parametrize("sides", SIDES, ids=["source", "destination", "both"])
def test_sigkill(host, request, seed, sides):
    scene = WarmScene(host, request, seed, "warm: SIGKILL of " + " and ".join(sides))
    scene.go_to_a_point()
    before = scene.breaks()
    daemons = [getattr(scene, side) for side in sides]
    for daemon in daemons:
        daemon.crash()
    before = scene.broken_from(before, daemons)
    for daemon in daemons:
        daemon.start()
    scene.goes_on(before)
    scene.move()


def test_connections_reset(host, request, seed):
    scene = WarmScene(host, request, seed, "warm: connections reset")
    scene.go_to_a_point()
    for _ in range(scene.rng.randrange(1, 4)):
        before = scene.breaks()
        scene.proxy.cut()
        scene.goes_on(scene.broken_from(before))
    scene.move()


def test_everything_at_once(host, request, seed):
    """Three faults, one after the other, of any kind."""
    scene = WarmScene(host, request, seed, "warm: three faults in a row")
    scene.go_to_a_point()
    for _ in range(3):
        before = scene.breaks()
        what = scene.rng.choice(["cut", *SIDES])
        if what == "cut":
            scene.proxy.cut()
            killed = []
        else:
            killed = [getattr(scene, side) for side in what]
        for daemon in killed:
            daemon.crash()
        before = scene.broken_from(before, killed)
        for daemon in killed:
            daemon.start()
        scene.goes_on(before)
    scene.move()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_cancelled(host, request, seed, side):
    """Beyond the point of no return that is refused, and it goes on."""
    scene = WarmScene(host, request, seed, "warm: cancelled at the " + side)
    scene.go_to_a_point()
    try:
        getattr(scene, side).call("Cancel", id="vm1")
    except harness.ControlError as error:
        assert error.code == "FAILED_PRECONDITION", error
        scene.finish()
        return
    end = scene.destination.wait_for_state("vm1", "cancelled", "failed", deadline_s=DEADLINE_S)
    assert end["state"] == "cancelled" or side == "source", end
    if scene.source.state("vm1") == "attached":
        # Nobody had come there yet.
        scene.source.call("Cancel", id="vm1")
    assert_never_ran(scene.destination_vmm)
    scene.runs_on_unharmed()
    scene.assert_nothing_is_left()


@pytest.mark.parametrize("what", ["VMM", "daemon"])
def test_destination_is_gone(host, request, seed, what):
    """For good, while it warms."""
    scene = WarmScene(host, request, seed, "", policy={})
    scene.go_to_a_point()
    if what == "VMM":
        scene.destination_vmm.popen.kill()
        assert scene.destination.wait_for_state("vm1", "failed", deadline_s=DEADLINE_S)
    else:
        scene.destination.crash()
        scene.destination_vmm.popen.kill()
        scene.source.wait_for_state("vm1", "attached", deadline_s=DEADLINE_S)
        harness.eventually(lambda: not scene.is_watched(), "write protection is off")
        scene.source.call("Cancel", id="vm1")
    scene.runs_on_unharmed()
    if what == "daemon":
        # It has nothing left to do, and nobody to do it for.
        scene.destination.start()
        scene.destination.wait_for_state("vm1", "failed", deadline_s=DEADLINE_S)


@pytest.mark.parametrize("batch", range(max(1, POINTS // 2)))
def test_back_to_back(host, request, batch):
    """Nothing breaks: one guest after the other, of all kinds, between the same two daemons; 50 of
    them at 20 points."""
    shapes = list(itertools.product(BACKENDS, (*WORKLOADS, "idle"), LOGS, VCPUS, POLICIES[:3],
                                    ("eager", "lazy")))
    pair = Pair(host)
    request.getfixturevalue("huge_pages")
    for n, shape in enumerate(random.Random(batch).sample(shapes, BATCH)):
        backend, workload, log, vcpus, policy, map_policy = shape
        vmms = attach_warm(pair, "vm%d" % n, shape)
        pair.start("vm%d" % n, warm=policy)
        ended = pair.finish("vm%d" % n, *vmms)
        check_warm(ended, rounds=0 if "max_time" in policy else 1)
        assert ended["backend"] == backend


def attach_warm(pair, migration_id, shape):
    backend, workload, log, vcpus, _, map_policy = shape
    return pair.attach(migration_id, {"map": map_policy}, memory="32M", backend=backend,
                       workload=workload, vcpus=vcpus, dirty_log=log, write_percent=50,
                       source_flags=discards(backend, log))
