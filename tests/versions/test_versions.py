# SPDX-License-Identifier: Apache-2.0
"""Two hosts are never upgraded at once: this version and the one before it, N and N-1, at each end of
each wire. What works with what, and what is said where it does not, is in docs/upgrading.md."""
import json
import subprocess

import pytest

import harness
from keeper import KeptDaemon
from test_migrate import assert_guest_is_whole, attach, pytestmark as needs_kvm

pytestmark = needs_kvm

OTHER = {"N": "N-1", "N-1": "N"}
VERSIONS = tuple(OTHER)
CROSSED = pytest.mark.parametrize("source, destination", list(OTHER.items()),
                                  ids=["from-%s" % version for version in OTHER])


class Hosts:
    """A daemon of some version at each end, and guests whose VMM is of some version."""

    def __init__(self, host, builds, source, destination, kind=harness.Daemon):
        self.host, self.builds = host, builds
        self.source = host.daemon("source", kind=kind, build=builds[source])
        self.destination = host.daemon("destination", kind=kind, build=builds[destination])

    def attach(self, vmm, prepare=None, **options):
        """What a VMM's own vmstate is like is its own business: it is of one version at both ends."""
        return attach(self.host, self.source, self.destination, "vm1", prepare,
                      build=self.builds[vmm], **{"memory": "32M", **options})

    def start(self, **params):
        self.destination.call("Start", id="vm1", **params)

    def finish(self, vmms):
        migration = self.destination.wait_for_state("vm1", "complete")
        self.source.wait_for_state("vm1", "complete")
        vmms[0].wait_for_event("complete")
        assert_guest_is_whole(vmms[1])
        return migration

    def await_rounds(self, rounds):
        harness.eventually(
            lambda: self.destination.call("Get", id="vm1")["warm"]["rounds"] >= rounds,
            "round %d is over" % rounds)


@CROSSED
@pytest.mark.parametrize("vmm", VERSIONS)
@pytest.mark.parametrize("warm", [None, {"max_rounds": 2}], ids=["plain", "warm"])
def test_page_stream_and_library(host, builds, source, destination, vmm, warm):
    """So each library is at each daemon as well, as source and as destination."""
    hosts = Hosts(host, builds, source, destination)
    vmms = hosts.attach(vmm)
    hosts.start(**({"warm": warm} if warm else {}))
    migration = hosts.finish(vmms)
    if warm:
        assert migration["warm"]["refused"] == "" and migration["warm"]["rounds"] >= 1, migration


@pytest.mark.parametrize("destination", VERSIONS)
def test_hot_hints_of_a_newer_library(host, builds, destination):
    """An older daemon ignores them."""
    hosts = Hosts(host, builds, destination, destination)
    vmms = hosts.attach("N", destination_flags=["hot"])
    hosts.start()
    hosts.finish(vmms)


def replace(daemon, builds, version):
    """As a package does it: the next process finds in the manager's store what the last one left."""
    daemon.crash()
    taken = daemon.log().count("taken over")
    daemon.command[0] = builds[version] / "src/postcopyd/postcopyd"
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


class Ctl:
    """postcopyctl of some version."""

    def __init__(self, builds, version):
        self.program = builds[version] / "src/ctl/postcopyctl"

    def __call__(self, *arguments):
        done = subprocess.run([str(word) for word in (self.program, *arguments)], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=4 * harness.DEADLINE_S)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def at(self, daemon, *arguments):
        return self(*arguments, "--control", daemon.control_path)

    def json(self, daemon, *arguments):
        return json.loads(self.at(daemon, *arguments, "--json"))


# One version of all is what the other suites have.
@pytest.mark.parametrize("version, source, destination", [
    ("N", "N", "N-1"), ("N", "N-1", "N"), ("N", "N-1", "N-1"),
    ("N-1", "N", "N-1"), ("N-1", "N-1", "N"), ("N-1", "N", "N")])
def test_postcopyctl(host, builds, version, source, destination):
    ctl = Ctl(builds, version)
    hosts = Hosts(host, builds, source, destination)
    vmms = hosts.attach(version)
    for daemon in (hosts.source, hosts.destination):
        assert "version " in ctl.at(daemon, "info")
        assert ctl.json(daemon, "info")["migrations_active"] == 1
        assert "vm1" in ctl.at(daemon, "list")
        assert "attached" in ctl.at(daemon, "status", "vm1")
    ctl.at(hosts.destination, "limits", "vm1", "--streams", "2")
    said = ctl("migrate", "vm1", "--from", hosts.source.control_path, "--to",
               hosts.destination.control_path)
    assert "complete" in said
    hosts.finish(vmms)
    for daemon in (hosts.source, hosts.destination):
        assert ctl.json(daemon, "status", "vm1")["state"] == "complete"
        assert "complete" in ctl.at(daemon, "watch", "vm1")
        ctl.at(daemon, "delete", "vm1")
        assert ctl.json(daemon, "list")["migrations"] == []
