# SPDX-License-Identifier: Apache-2.0
"""All that moves must move in: versions, memory, vCPUs; again and again, many at once, with a balloon, and
while things are killed. `make test` has some of it, `make vmms` (POSTCOPYD_VMMS=all) the whole. A failed test's
seed is printed: POSTCOPYD_VMMS_SEED draws the same points again."""
import concurrent.futures
import itertools
import os
import random
import threading
import time

import pytest

import harness
import qemu_program
from adapter import Adapter
from keeper import KeptDaemon
from qmp import QmpError
from test_qemu import Move, named
from witness import Witness

ALL = os.environ.get("POSTCOPYD_VMMS") == "all"
# All workers must draw the same points.
SEED = (os.environ.get("POSTCOPYD_VMMS_SEED") or os.environ.get("PYTEST_XDIST_TESTRUNUID")
        or "%08x" % random.SystemRandom().randrange(1 << 32))
SHAPES = [dict(suite=suite, memory=memory, vcpus=vcpus) for suite, memory, vcpus in itertools.product(
    qemu_program.SUITES, ("tmpfs", "hugetlb", "memfd"), (1, 2))]
BARE = dict(suite="trixie", memory="memfd", accel="kvm", mib=64)
# The bare guest takes a second so, and there is time for something to break.
SLOW = dict(bandwidth_bytes_per_s=48 << 20)
DEADLINE_S = 90


def points(name, n):
    rng = random.Random("%s %s" % (name, SEED))
    return [rng.randrange(1 << 32) for _ in range(n if ALL else 1)]


# Otherwise test_qemu.py moves some of these.
if ALL:
    @pytest.mark.parametrize("shape", SHAPES, ids=named)
    def test_every_shape(host, guest_of, shape):
        move = Move(host, guest_of(**shape)).attached()
        move.start()
        move.complete()
        move.destination.check(passes=2)


# Of the Linux guest, each way one; 40 are 20 there and back, and take longer than a suite gives a test.
MOVES = int(os.environ.get("POSTCOPYD_VMMS_MOVES", 2))


@pytest.mark.parametrize("shape, moves", [(dict(suite="sid", memory="tmpfs", vcpus=2), MOVES)] +
                         ([(BARE, 20)] if ALL else []), ids=["linux", "bare"][:1 + ALL])
def test_there_and_back_again(host, guest_of, shape, moves):
    """Under one name."""
    guest = guest_of(**shape)
    daemons = [host.daemon("source"), host.daemon("destination")]
    vmm = guest.start("a").wait_until_ready()
    for _ in range(moves):
        move = Move(host, guest, source=vmm, daemons=daemons).attached()
        move.start()
        move.complete()
        vmm = move.destination
        vmm.check(passes=1)
        daemons.reverse()
    vmm.check(passes=2)


def test_adapters_that_are_there_before_it_is_prepared(host, guest_of):
    """As libvirt's hook starts them; under a name that has moved before, in whichever role."""
    guest = guest_of(**BARE)
    daemons = [host.daemon("source"), host.daemon("destination")]
    vmm = guest.start("a").wait_until_ready()
    for _ in range(4):
        move = Move(host, guest, source=vmm, daemons=daemons, adapters_first=True).attached()
        move.start()
        move.complete()
        vmm = move.destination
        daemons.reverse()
    vmm.check(passes=2)


@pytest.mark.parametrize("n", [8 if ALL else 3])
def test_many_at_once(host, guest_of, n):
    daemons = (host.daemon("source"), host.daemon("destination"))
    guests = [guest_of(**BARE) for _ in range(n)]
    vmms = [guest.start("a") for guest in guests]
    moves = [Move(host, guest, source=vmm.wait_until_ready(), daemons=daemons, migration_id="vm%d" % i)
             for i, (guest, vmm) in enumerate(zip(guests, vmms))]
    for move in moves:
        move.attached()
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        list(pool.map(Move.start, moves))
        list(pool.map(Move.complete, moves))
        list(pool.map(lambda move: move.destination.check(passes=2), moves))


class Balloon(threading.Thread):
    """Inflates and deflates, wherever the guest runs."""

    MIB = 24

    def __init__(self, guest, *vmms):
        super().__init__(daemon=True)
        self.guest, self.vmms = guest, vmms
        self.stopping = threading.Event()
        self.seen = set()  # how much the guest had, at the last of them
        self.start()

    def run(self):
        for wanted in itertools.cycle((self.guest.mib - self.MIB, self.guest.mib)):
            if self.stopping.wait(0.1):
                return
            for vmm in self.vmms:
                try:
                    vmm.qmp.execute("balloon", value=wanted << 20)
                    if vmm is self.vmms[-1]:
                        self.seen.add(vmm.qmp.execute("query-balloon")["actual"])
                except QmpError:
                    pass  # it waits for a guest, or has ended

    def close(self):
        self.stopping.set()
        self.join()


@pytest.mark.parametrize("shape", [dict(suite="trixie", memory="tmpfs", vcpus=2)] + (
    [dict(suite=suite, memory="memfd", vcpus=2) for suite in qemu_program.SUITES] if ALL else []), ids=named)
def test_with_a_balloon(host, guest_of, shape):
    move = Move(host, guest_of(**shape), **SLOW).attached()
    balloon = Balloon(move.source.guest, move.source, move.destination)
    host.later(balloon.close)
    move.start()
    move.complete()
    move.destination.check(passes=2)
    harness.eventually(lambda: len(balloon.seen) > 2, "the balloon moves at the destination", DEADLINE_S)
    balloon.close()
    move.destination.check(passes=1)


class Manager(threading.Thread):
    """Starts an adapter again that has failed, as systemd does (Restart=on-failure)."""

    INTERVAL_S = 0.1

    def __init__(self, *adapters):
        super().__init__(daemon=True)
        self.adapters = adapters
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(self.INTERVAL_S):
            for adapter in self.adapters:
                if adapter.popen.poll():
                    adapter.start()

    def close(self):
        self.stopping.set()
        self.join()


VICTIMS = {
    "source's adapter": ("leaving",), "destination's adapter": ("coming",),
    "both adapters": ("leaving", "coming"), "source's daemon": ("there",),
    "destination's daemon": ("here",), "both daemons": ("there", "here"),
    "all": ("leaving", "coming", "there", "here"),
}


@pytest.mark.parametrize("victims, seed", [
    pytest.param(victims, seed, id="%s-%d" % (victims.replace(" ", "-"), seed))
    for victims in VICTIMS if ALL or victims in ("both adapters", "both daemons")
    for seed in points(victims, 10)])
def test_killed_at_a_random_point(host, guest_of, victims, seed):
    print("POSTCOPYD_VMMS_SEED=%s" % SEED)
    rng = random.Random(seed)
    daemons = (host.daemon("source", kind=KeptDaemon), host.daemon("destination", kind=KeptDaemon))
    move = Move(host, guest_of(**BARE), daemons=daemons, **SLOW).attached()
    witness = Witness(move.source, move.destination)
    host.later(witness.close)
    manager = Manager(move.leaving, move.coming)
    host.later(manager.close)
    move.start()
    # anywhere: most of it happens within a second and a half
    time.sleep(rng.uniform(0, 1.5))
    killed = [getattr(move, name) for name in VICTIMS[victims]]
    for process in killed:
        process.crash() if isinstance(process, KeptDaemon) else process.popen.kill()
    for process in killed:
        if isinstance(process, KeptDaemon):
            process.start()
    move.here.wait_for_state(move.id, "complete", deadline_s=DEADLINE_S)
    harness.eventually(lambda: move.source.popen.poll() is not None, "the source's QEMU has ended", DEADLINE_S)
    manager.close()
    move.destination.check(passes=2)
    witness.check()


class KillsQemu:
    """Just after it has been told to load; Move sets the adapter, whose monitor is listened to."""

    def __init__(self):
        self.adapter = None
        self.killed = threading.Event()

    def __call__(self, moment, command):
        if (moment, command) == ("after", "migrate-incoming"):
            self.adapter.vmm.popen.kill()
            self.killed.set()
        return False


def test_the_destination_s_qemu_dies_before_it_has_loaded(host, guest_of):
    """The source's guest runs on."""
    kill = KillsQemu()
    move = Move(host, guest_of(**BARE), kill=("destination", kill)).attached()
    move.start()
    assert kill.killed.wait(harness.DEADLINE_S)
    harness.eventually(lambda: move.source.status() == "running", "the source's guest runs on")
    move.source.check(passes=2)
