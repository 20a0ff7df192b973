# SPDX-License-Identifier: Apache-2.0
"""Two hosts are never upgraded at once: this version and the one before it, N and N-1, at each end of
each wire. What works with what, and what is said where it does not, is in docs/upgrading.md."""
import harness
from test_migrate import assert_guest_is_whole, attach

OTHER = {"N": "N-1", "N-1": "N"}
VERSIONS = tuple(OTHER)
# With one userfaultfd, also on hosts of many CPUs: of more an older daemon knows nothing, and refuses the record.
ONE = "--fault-threads=1"


def set_version(daemon, builds, version):
    """What it is when it is started next."""
    daemon.command[0] = builds[version] / "src/postcopyd/postcopyd"
    daemon.command = [word for word in daemon.command if word != ONE]
    if version == "N":
        daemon.command.append(ONE)


class Hosts:
    """A daemon of some version at each end, and guests whose VMM is of some version."""

    def __init__(self, host, builds, source, destination, kind=harness.Daemon, newer=ONE):
        """@newer: an option of a destination of this version."""
        self.host, self.builds = host, builds
        self.source = host.daemon("source", kind=kind, build=builds[source])
        self.destination = host.daemon("destination", kind=kind, build=builds[destination],
                                       extra=[newer] if destination == "N" else [])

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
