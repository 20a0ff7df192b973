# SPDX-License-Identifier: Apache-2.0
"""A guest of a QEMU as it is, moved by two daemons and postcopy-qemu on each side."""
import pytest

import harness
from adapter import Adapter
from monitor_proxy import KillAt, Proxy

SHAPES = [dict(suite="bookworm", memory="tmpfs", vcpus=1),
          dict(suite="trixie", memory="memfd", vcpus=2),
          dict(suite="sid", memory="hugetlb", vcpus=2),
          dict(suite="trixie", memory="tmpfs", accel="kvm", mib=64)]


def named(shape):
    return "-".join(str(value) for value in shape.values())


class Move:
    """Two daemons and two QEMUs, attached, up to where somebody says Start."""

    def __init__(self, host, guest, source=None, migration_id="vm1", kill=None):
        """@kill: (role, KillAt): whose adapter is killed, and where."""
        self.host, self.id = host, migration_id
        self.there, self.here = host.daemon("source"), host.daemon("destination")
        self.source = source or guest.start("a").wait_until_ready()
        self.destination = guest.start("b", incoming=True)
        self.there.prepare_source(self.id)
        self.here.prepare_destination(self.id, self.there.address)
        self.kill = kill or (None, None)
        self.leaving = self.adapter(self.source, "source", self.there)
        self.coming = self.adapter(self.destination, "destination", self.here)

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
    ("source", "after", "migrate-set-capabilities", 1), ("source", "before", "stop", 1),
    ("source", "after", "stop", 1), ("source", "after", "getfd", 1), ("source", "after", "migrate", 1),
    ("source", "before", "quit", 1), ("source", "after", "quit", 1),
    ("destination", "after", "migrate-set-capabilities", 1), ("destination", "after", "getfd", 2),
    ("destination", "before", "closefd", 2), ("destination", "after", "closefd", 2),
    ("destination", "after", "getfd", 3), ("destination", "before", "migrate-incoming", 1),
    ("destination", "after", "migrate-incoming", 1), ("destination", "before", "cont", 1),
    ("destination", "after", "cont", 1),
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
    if not kill.killed.is_set():
        move.start()
    harness.eventually(kill.killed.is_set, "%s %s" % (moment, command))
    if (moment, command) == ("after", "quit"):
        # There is no QEMU any more that it could speak for.
        assert move.source.wait() == 0
        move.here.wait_for_state("vm1", "complete")
    else:
        victim.start()
        if command in ("migrate-set-capabilities", "closefd") or (command, nth) == ("getfd", 2):
            victim.wait_until_attached()
            move.start()
        move.complete()
    move.destination.check(passes=2)
