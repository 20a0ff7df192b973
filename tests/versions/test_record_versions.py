# SPDX-License-Identifier: Apache-2.0
"""A daemon is replaced by one of the other version, under its guests, and back again."""
import pytest

import harness

from hosts import OTHER, VERSIONS, Hosts, set_version
from keeper import KeptDaemon
from test_admission import destination_vmm, source_vmm
from test_migrate import pytestmark  # noqa: F401


def replace(daemon, builds, version):
    """As a package does it: the next process finds in the manager's store what the last one left."""
    daemon.crash()
    taken = daemon.log().count("taken over")
    set_version(daemon, builds, version)
    daemon.start()
    assert daemon.log().count("taken over") == taken + 1


SIDES = pytest.mark.parametrize("sides", [["source"], ["destination"], ["source", "destination"]],
                                ids=["source", "destination", "both"])


@SIDES
@pytest.mark.parametrize("first", VERSIONS)
def test_record_of_a_guest_in_postcopy(host, builds, sides, first):
    """There, and back again."""
    hosts = Hosts(host, builds, first, first, kind=KeptDaemon)
    vmms = hosts.attach(first, {"bulk": False})
    hosts.start()
    vmms[1].wait_for_event("resumed")
    for version in (OTHER[first], first):
        for side in sides:
            replace(getattr(hosts, side), builds, version)
        hosts.destination.wait_for_state("vm1", "postcopy")
    hosts.destination.call("SetLimits", id="vm1", bulk=True)
    hosts.finish(vmms)


@pytest.mark.parametrize("first", VERSIONS)
def test_record_of_a_guest_that_is_warmed(host, builds, first):
    hosts = Hosts(host, builds, first, first, kind=KeptDaemon)
    vmms = hosts.attach(first)
    hosts.start(warm={}, switchover=False)
    hosts.await_rounds(1)
    for side in (hosts.source, hosts.destination):
        replace(side, builds, OTHER[first])
    hosts.destination.wait_for_state("vm1", "warming")
    hosts.await_rounds(1)
    hosts.destination.call("Switchover", id="vm1")
    migration = hosts.finish(vmms)
    assert migration["warm"]["refused"] == "", migration


@pytest.mark.parametrize("first", VERSIONS)
def test_record_of_one_that_waits_for_its_turn(host, builds, first):
    """It waits on, and has its turn when there is a place."""
    path = host.dir / "own.conf"
    path.write_text("[host]\nmax-incoming=1\n")
    source = host.daemon("source", build=builds["N"])
    destination = host.daemon("destination", kind=KeptDaemon, build=builds[first], extra=["--config", path])
    for migration_id in "vm1", "vm2":
        source.prepare_source(migration_id)
        destination.prepare_destination(migration_id, source.address)
        source_vmm(host, source, migration_id, 1 << 20)
        destination_vmm(host, destination, migration_id, 1 << 20)
    destination.call("Start", id="vm1", switchover=False)
    assert destination.call("Start", id="vm2", queue=True)["waiting"]["for"] == "turn"
    destination.crash()
    set_version(destination, builds, OTHER[first])
    destination.start()
    waiting = harness.eventually(lambda: destination.call("Get", id="vm2")["waiting"], "it waits on")
    assert waiting["for"] == "turn"
    destination.call("Cancel", id="vm1")
    source.wait_for_state("vm2", "switching")
