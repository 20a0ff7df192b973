# SPDX-License-Identifier: Apache-2.0
"""Memslots bound to guest_memfd: their vCPUs go around userfaultfd, and what they fault on comes as
a KVM exit (KVM userfault) and is asked for over a fetch channel. KVM's own accesses (here: it writes
a PV clock for each vCPU) go by the mapping meanwhile, and are userfaultfd's."""
import json
import os
import re
import subprocess

import pytest

import harness
from keeper import KeptDaemon
from proxy import Proxy
from test_migrate import assert_guest_runs_on
from test_recover import poison_when_away

CANT = 2  # minivmm's exit status
WORKLOADS = ["sequential", "random", "hotcold", "stride", "zeroes", "light", "idle"]

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="/dev/kvm can't be opened: no vCPUs here")


@pytest.fixture(scope="module")
def check():
    """What this kernel can, by the name of each row: (yes or no, how or why not)."""
    done = subprocess.run([harness.BUILD / "src/ctl/postcopyctl", "check", "--json"],
                          stdout=subprocess.PIPE, check=False)
    return {row["name"]: (row["ok"], row["detail"]) for row in json.loads(done.stdout)["checks"]}


@pytest.fixture
def trapped(check):
    for row in "guest_memfd destination", "KVM userfault":
        if not check[row][0]:
            pytest.skip("%s: %s" % (row, check[row][1]))


@pytest.fixture
def daemons(host):
    return (host.daemon("source", allow=["postcopy:destination"]),
            host.daemon("destination", allow=["postcopy:source"]))


def start_vmm(host, role, daemon, migration_id, flags=(), **options):
    options = {"memory": "16M", "backend": "guest_memfd", "run_after_complete": 50, **options}
    return host.minivmm(role, daemon, migration_id, flags=["bound", *flags], **options)


def migrate(host, daemons, migration_id, flags=("pv-clock",), prepare=None, fetch=None, **options):
    """One guest, whole at the end. Returns the migration as it was then, and the guest's result."""
    source, destination = daemons
    source.prepare_source(migration_id)
    destination.prepare_destination(migration_id, source.address, **(prepare or {}))
    source_vmm = start_vmm(host, "source", source, migration_id, flags, **options)
    if fetch:
        options["fetch"] = fetch
    destination_vmm = start_vmm(host, "destination", destination, migration_id, flags, **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    destination.call("Start", id=migration_id)
    migration = destination.wait_for_state(migration_id, "complete")
    result = destination_vmm.wait_for_event("result")
    assert result["pages_checked"] > 0 and result["pages_bad"] == 0, result
    assert destination_vmm.wait() == 0
    source_vmm.wait_for_event("complete")
    assert source_vmm.wait() == 0
    return migration, result


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_guest_on_a_bound_memslot_is_whole(host, daemons, trapped, vcpus, workload):
    migration, result = migrate(host, daemons, "vm1", vcpus=vcpus, workload=workload)
    # At least what it runs in, and its control block and stack.
    assert result["userfaults"] > 2 * vcpus, result
    assert sum(migration["fill"].values()) == migration["pages_total"], migration["fill"]


def test_pages_that_are_mapped_when_touched(host, daemons, trapped):
    _, result = migrate(host, daemons, "vm1", prepare={"map": "lazy"}, vcpus=2, workload="random")
    assert result["userfaults"] > 0


def test_pages_fetched_ahead_are_no_exits(host, daemons, trapped):
    """Where bulk brings nothing their vCPUs would have to leave KVM_RUN for each."""
    _, asked = migrate(host, daemons, "vm1", fetch=4000, vcpus=2, workload="idle")
    _, touched = migrate(host, daemons, "vm2", vcpus=2, workload="idle")
    assert asked["fetched"] > 4000
    assert asked["userfaults"] < touched["userfaults"], (asked, touched)
    if os.environ.get("POSTCOPYD_EXPECT_PREFAULT"):
        assert asked["prefaulted"] == asked["fetched"]


def test_daemon_that_is_killed_meanwhile_costs_the_guest_time_alone(host, trapped):
    """What its vCPUs wait for they ask again of the next one."""
    source = host.daemon("source", allow=["postcopy:destination"])
    destination = host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False, prefetch=False)
    options = {"vcpus": 2, "workload": "random"}
    source_vmm = start_vmm(host, "source", source, "vm1", ["pv-clock"], **options)
    destination_vmm = start_vmm(host, "destination", destination, "vm1", ["pv-clock"], **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    destination.call("Start", id="vm1")
    destination_vmm.wait_for_event("resumed")
    destination.wait_for_state("vm1", "postcopy")
    destination.crash_and_restart()
    destination.call("SetLimits", id="vm1", bulk=True)
    result = destination_vmm.wait_for_event("result")
    assert result["pages_checked"] > 0 and result["pages_bad"] == 0, result
    assert destination_vmm.wait() == 0


def test_daemon_that_is_gone_leaves_the_guest_waiting(host, daemons, trapped):
    """As on an ordinary memslot: no page comes any more, so no vCPU may go on, nor end."""
    source, destination = daemons
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False, prefetch=False)
    for role, daemon in ("source", source), ("destination", destination):
        vmm = start_vmm(host, role, daemon, "vm1", vcpus=2, workload="random")
        vmm.wait_for_event("attached")
    destination.call("Start", id="vm1")
    vmm.wait_for_event("resumed")
    destination.kill()
    host.processes.remove(destination)
    vmm.wait_for_event("daemon-gone")
    vmm.popen.terminate()
    assert vmm.wait() == 1
    assert "ended before all of the guest's memory was here" in vmm.log(), vmm.log()


def test_lost_pages_are_a_machine_check_and_no_zeroes(host, daemons, trapped):
    """Poison is in the mapping, where no vCPU of a bound memslot looks."""
    source, destination = daemons
    proxy = Proxy(source.address)
    host.later(proxy.close)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", proxy.address, bulk=False, prefetch=False)
    for role, daemon in ("source", source), ("destination", destination):
        vmm = start_vmm(host, role, daemon, "vm1", workload="random", zero_percent=0)
        vmm.wait_for_event("attached")
    destination.call("Start", id="vm1")
    destination.wait_for_state("vm1", "postcopy")
    proxy.refuse(True)
    destination.wait_for_state("vm1", "paused")
    with destination.control() as control:
        missing = control.call("ListMissing", id="vm1").missing_bytes
    poison_when_away(destination, missing)
    assert vmm.wait() == 1
    assert "machine check" in vmm.log() and "lost" in vmm.log(), vmm.log()
    assert not any(event["event"] == "result" for event in vmm.events)


@pytest.mark.parametrize("workload", ["random", "zeroes"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_guest_that_the_kernel_itself_can_not_reach(host, daemons, trapped, check, vcpus, workload):
    """Its pages are in no direct map: filled by write(), or by memcpy where there is none."""
    can, why = check["guest_memfd, no direct map"]
    if not can:
        pytest.skip("guest_memfd, no direct map: " + why)
    migration, result = migrate(host, daemons, "vm1", flags=["no-direct-map"], vcpus=vcpus,
                                workload=workload)
    assert result["userfaults"] > 2 * vcpus, result
    fill = migration["fill"]
    assert sum(fill.values()) == migration["pages_total"], fill
    assert fill["memcpy" if "pwrite no" in why else "write"] > 0, fill


def test_memory_that_the_kernel_can_reach_is_not_taken_for_other(host, daemons, check):
    if check["guest_memfd, no direct map"][0]:
        pytest.skip("this kernel has guest_memfd without a direct map")
    vmm = start_vmm(host, "destination", daemons[1], "vm1", ["no-direct-map"])
    assert vmm.wait() == CANT
    assert re.search("stays in this kernel's direct map|lacks guest_memfd", vmm.log()), vmm.log()


def test_where_kvm_can_not_trap_them_the_guest_stays(host, daemons, check):
    """Before anything of the guest moves: its destination does not attach."""
    can, why = check["KVM userfault"]
    if can:
        pytest.skip("this kernel has KVM userfault")
    source, destination = daemons
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    source_vmm = host.minivmm("source", source, "vm1", memory="32M")
    source_vmm.wait_for_event("attached")
    destination_vmm = start_vmm(host, "destination", destination, "vm1")
    assert destination_vmm.wait() == CANT
    said = destination_vmm.log()
    assert len(said.splitlines()) == 1
    if why.startswith("dangerous"):
        assert "region 0: its memslot is bound to guest_memfd: " + why in said, said
    else:
        assert re.search("no KVM userfault|lacks guest_memfd", said), said
    assert not destination_vmm.events
    source.call("Cancel", id="vm1")
    assert_guest_runs_on(source_vmm)


@pytest.mark.parametrize("how", ["kvm", "wp"])
def test_nobody_tells_what_a_bound_guest_writes(host, daemons, how):
    """So it is not warmed; write protection would miss it all, silently."""
    source, _ = daemons
    source.prepare_source("vm1")
    vmm = start_vmm(host, "source", source, "vm1", dirty_log=how)
    try:
        vmm.wait_for_event("attached")
    except harness.Failure as failure:
        if re.search("lacks guest_memfd|can't bind a memslot", str(failure)):
            pytest.skip("no memslot can be bound to guest_memfd here")
        raise
    if how == "wp":
        said = [event["reason"] for event in vmm.events if event["event"] == "no-dirty-log"]
        assert len(said) == 1 and "past the mapping" in said[0], vmm.events
    vmm.popen.terminate()
    assert vmm.wait_for_event("result")["pages_bad"] == 0
    assert vmm.wait() == 0
