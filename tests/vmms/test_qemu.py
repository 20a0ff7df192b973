# SPDX-License-Identifier: Apache-2.0
"""A guest of a QEMU as it is, moved by two daemons and postcopy-qemu on each side."""
import pytest

from adapter import Adapter

SHAPES = [dict(suite="bookworm", memory="tmpfs", vcpus=1),
          dict(suite="trixie", memory="memfd", vcpus=2),
          dict(suite="sid", memory="hugetlb", vcpus=2),
          dict(suite="trixie", memory="tmpfs", accel="kvm", mib=64)]


def named(shape):
    return "-".join(str(value) for value in shape.values())


class Move:
    """Two daemons and two QEMUs, attached, up to where somebody says Start."""

    def __init__(self, host, guest, source=None, migration_id="vm1"):
        self.id = migration_id
        self.there, self.here = host.daemon("source"), host.daemon("destination")
        self.source = source or guest.start("a").wait_until_ready()
        self.destination = guest.start("b", incoming=True)
        self.there.prepare_source(self.id)
        self.here.prepare_destination(self.id, self.there.address)
        self.leaving = Adapter(host, self.source, "source", self.there, self.id)
        self.coming = Adapter(host, self.destination, "destination", self.here, self.id)

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
