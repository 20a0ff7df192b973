# SPDX-License-Identifier: Apache-2.0
"""What all page streams of a host take together: shared by weight, and faults are never held back. All
of it by what the daemons count: no clock is asked."""
import re
import subprocess

import grpc
import pytest

import harness
import pyvmm
from control_client import Client, error_info
from keeper import KeptDaemon
from test_admission import METRICS, budget, info
from test_metrics import samples, value
from test_reload import reread

MIB = 1 << 20
# At the least that a host's bandwidth may be, 1 MiB/s, it moves for longer than anything is waited for.
SIZE = 64 * MIB
PAGE = pyvmm.PAGE

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def set_host_limits(daemon, **fields):
    with Client("unix:%s" % daemon.control_path) as client:
        return client.host("SetHostLimits", **fields)


class Guests:
    """Some that run at the destination already, whose bulk begins when all of them do."""

    def __init__(self, host, source_extra=(), destination_extra=()):
        self.host = host
        self.source = host.daemon("source", extra=source_extra)
        self.destination = host.daemon("destination", extra=destination_extra)
        self.content = pyvmm.guest_content(SIZE)
        self.vmms = {}

    def add(self, migration_id, source_weight=100, **limits):
        self.source.prepare_source(migration_id, weight=source_weight)
        self.destination.prepare_destination(migration_id, self.source.address, streams=1, bulk=False,
                                             **limits)
        source = pyvmm.SourceVmm(self.source, migration_id, self.content)
        destination = pyvmm.DestinationVmm(self.destination, migration_id, len(self.content))
        self.host.later(source.close)
        self.host.later(destination.close)
        self.destination.call("Start", id=migration_id)
        source.pause()
        destination.load()
        self.vmms[migration_id] = destination

    def move(self):
        for migration_id in self.vmms:
            self.destination.call("SetLimits", id=migration_id, bulk=True)

    def finish(self):
        for migration_id, vmm in self.vmms.items():
            self.destination.wait_for_state(migration_id, "complete")
            assert vmm.wrong_pages(self.content) == []

    def all(self, daemon):
        """By id, as they are at one moment."""
        return {m["id"]: m for m in daemon.call("List")["migrations"]}

    def wait_for_shares(self, daemon, **shares):
        """A share of 0 is none: no limit."""
        def are():
            now = self.all(daemon)
            return all(now[key]["bandwidth"]["share_bytes_per_s"] in
                       range(max(1, share - 64 * 1024), share + 2) for key, share in shares.items())
        harness.eventually(are, "the shares of %s" % shares)

    def moved(self, daemon, count, bytes_of_second):
        """What each has moved while the second has moved so much."""
        before = {key: count(m) for key, m in self.all(daemon).items()}

        def since():
            now = {key: count(m) - before[key] for key, m in self.all(daemon).items()}
            return now["vm2"] >= bytes_of_second and now
        return harness.eventually(since, "the second moves")


def bulk_of(migration):
    return migration["bulk_bytes"]


def served_of(migration):
    return migration["served"]["bytes"]


@pytest.mark.parametrize("direction", ("in", "out"))
def test_it_is_shared_by_weight(host, direction):
    limit = ["--bandwidth-%s" % direction, "1M", *METRICS]
    if direction == "in":
        guests = Guests(host, destination_extra=limit)
        guests.add("vm1", weight=100)
        guests.add("vm2", weight=300)
        daemon, count = guests.destination, bulk_of
    else:
        guests = Guests(host, source_extra=limit)
        guests.add("vm1", source_weight=100)
        guests.add("vm2", source_weight=300)
        daemon, count = guests.source, served_of
    guests.move()
    guests.wait_for_shares(daemon, vm1=MIB // 4, vm2=3 * MIB // 4)
    moved = guests.moved(daemon, count, 3 * MIB)
    # An answer of 256 KiB more or less; and a thread that gets no CPU loses what it did not use.
    assert 1.5 < moved["vm2"] / moved["vm1"] < 6, moved
    now = budget(daemon)["bandwidth_" + direction]
    assert now["limit_bytes_per_s"] == MIB and now["bulk_bytes_per_s"] > 0
    assert re.search(r"bandwidth %s .* by bulk, .* by faults, of 1\S* MiB/s" % direction, info(daemon))
    told = samples(daemon)
    assert value(told, "postcopyd_bandwidth_limit_bytes_per_second", direction=direction) == MIB
    assert value(told, "postcopyd_bandwidth_bytes_per_second", direction=direction, by="bulk") > 0
    # The weights change while they move, and the limit goes.
    daemon.call("SetLimits", id="vm1", weight=300)
    guests.wait_for_shares(daemon, vm1=MIB // 2, vm2=MIB // 2)
    set_host_limits(daemon, **{"bandwidth_%s_bytes_per_s" % direction: 0})
    guests.finish()


def test_what_one_does_not_use_the_others_have(host):
    guests = Guests(host, destination_extra=["--bandwidth-in", "1M"])
    guests.add("vm1", bandwidth_bytes_per_s=256 << 10, weight=1000)
    guests.add("vm2")
    guests.move()
    guests.wait_for_shares(guests.destination, vm1=256 << 10, vm2=MIB - (256 << 10))


def test_what_holds_it_back_is_told_where_it_is(host):
    guests = Guests(host, source_extra=["--bandwidth-out", "1M"])
    guests.add("vm1")
    guests.move()
    harness.eventually(lambda: guests.source.call("Get", id="vm1")["limited_by"] == "cap",
                       "the source says that it is its cap")
    harness.eventually(lambda: guests.destination.call("Get", id="vm1")["limited_by"] == "network",
                       "the destination waits for answers")
    set_host_limits(guests.source, bandwidth_out_bytes_per_s=0)
    guests.finish()


def test_a_fault_is_answered_while_bulk_starves(host):
    """Its bulk has a page a second: the guest's page is in none of those."""
    guests = Guests(host, source_extra=["--bandwidth-out", "1M"],
                    destination_extra=["--bandwidth-in", "1M"])
    guests.add("vm2", weight=1000)
    guests.add("vm1", weight=1)
    guests.move()
    guests.wait_for_shares(guests.destination, vm1=4096)
    for unit in range(SIZE // PAGE - 1, SIZE // PAGE - 17, -1):
        thread, page = guests.vmms["vm1"].touch(unit)
        thread.join(harness.DEADLINE_S)
        assert page.raw == guests.content[unit * PAGE:(unit + 1) * PAGE]
    now = guests.destination.call("Get", id="vm1")
    assert now["faults"]["remote"] >= 1 and now["state"] == "postcopy"
    # Neither has waited for what bulk has to move.
    assert now["pages_present"] < now["pages_total"] // 2
    for daemon in guests.source, guests.destination:
        set_host_limits(daemon, bandwidth_in_bytes_per_s=0, bandwidth_out_bytes_per_s=0)
    guests.finish()


def test_what_an_operator_says_holds_until_the_file_says_otherwise(host):
    path = host.dir / "own.conf"
    path.write_text("[host]\nbandwidth-in=8M\n")
    daemon = host.daemon("destination", extra=["--config", path], kind=KeptDaemon)

    def limits():
        now = budget(daemon)
        return [now["bandwidth_" + way]["limit_bytes_per_s"] for way in ("in", "out")]
    assert limits() == [8 * MIB, 0]
    answer = set_host_limits(daemon, bandwidth_in_bytes_per_s=2 * MIB, bandwidth_out_bytes_per_s=MIB)
    assert answer.bandwidth_in.limit_bytes_per_s == 2 * MIB
    daemon.wait_for_log("SetHostLimits by")
    # Certificates are renewed: the file says what it said.
    reread(daemon, path, "[host]\nbandwidth-in=8M\nmax-incoming=7\n")
    assert limits() == [2 * MIB, MIB]
    reread(daemon, path, "[host]\nbandwidth-in=9M\n")
    assert limits() == [9 * MIB, MIB]
    for field in "bandwidth_in_bytes_per_s", "bandwidth_out_bytes_per_s":
        with pytest.raises(grpc.RpcError) as caught:
            set_host_limits(daemon, **{field: MIB - 1})
        assert error_info(caught.value).metadata["field"] == field
    assert limits() == [9 * MIB, MIB]
    daemon.kill()
    daemon.start()
    assert limits() == [9 * MIB, 0]


def host_limits(daemon, *options):
    return subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "host-limits", *options, "--control",
                           daemon.control_path], capture_output=True, text=True, timeout=harness.DEADLINE_S)


def test_postcopyctl_sets_it(host):
    daemon = host.daemon("destination")
    done = host_limits(daemon, "--bandwidth-in", "100M")
    assert done.returncode == 0 and re.search(r"bandwidth in .* of 100\S* MiB/s", done.stdout)
    assert budget(daemon)["bandwidth_in"]["limit_bytes_per_s"] == 100 * MIB
    for options, told in ((), "nothing to change"), (("--bandwidth-out", "1"), "at least 1048576"):
        done = host_limits(daemon, *options)
        assert done.returncode == 2 and told in done.stderr
