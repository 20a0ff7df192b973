# SPDX-License-Identifier: Apache-2.0
"""Where a fault's time is said to go: a delay that the test makes is found in the phase where it
was made, and the daemon's phases agree with what the kernel saw of the same stalls."""
import os

import pytest

import harness
from proxy import Proxy
from test_migrate import Pair

DELAY_S = 0.02
DELAY_US = DELAY_S * 1e6
# What the other phases stay below, also on a host that does other things as well.
SMALL_US = DELAY_US / 2
# As a histogram rounds: 16 buckets to each power of two.
BUCKET = 1 / 16

pytestmark = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                                reason="/dev/kvm can't be opened: no vCPUs here")


@pytest.fixture
def pair(host):
    return Pair(host)


def wait_for_faults(daemon, migration_id, n, what="fault_us"):
    """The first update that has so many; the last one where it ended with fewer."""
    with daemon.control() as control:
        for migration in control.watch(migration_id, interval_ms=50):
            if migration["state"] == "postcopy" and migration[what] and \
                    migration[what]["count"] >= n:
                break
    return migration


def start_by_faults_alone(pair, migration_id, address=None, **vmm):
    """Every page that comes is one that a vCPU waits for."""
    pair.source.prepare_source(migration_id)
    pair.destination.prepare_destination(migration_id, address or pair.source.address, bulk=False,
                                         prefetch=False)
    options = {"memory": "32M", "backend": "memfd", "vcpus": 1, "workload": "random",
               "write_percent": 30, "zero_percent": 0, "run_after_complete": 50, **vmm}
    vmms = [pair.host.minivmm(role, daemon, migration_id, **options)
            for role, daemon in (("source", pair.source), ("destination", pair.destination))]
    for vmm in vmms:
        vmm.wait_for_event("attached")
    pair.start(migration_id)
    return vmms


def finish_with_bulk(pair, migration_id, vmms):
    pair.destination.call("SetLimits", id=migration_id, bulk=True)
    pair.finish(migration_id, *vmms)
    return pair.destination.call("GetReport", id=migration_id)


def test_a_slow_answer_is_told_as_one(pair):
    proxy = Proxy(pair.source.address)
    pair.host.later(proxy.close)
    proxy.delay(DELAY_S)
    vmms = start_by_faults_alone(pair, "vm1", proxy.address)
    migration = wait_for_faults(pair.destination, "vm1", 50)
    proxy.delay(0)
    phases = {name: latency["p50"] for name, latency in migration["fault_phases_us"].items()}
    assert phases.pop("answer") >= DELAY_US
    assert all(p50 < SMALL_US for p50 in phases.values()), phases
    assert migration["fault_us"]["p50"] >= DELAY_US
    assert migration["guest_stall_us"]["p50"] >= DELAY_US
    slow = finish_with_bulk(pair, "vm1", vmms)["slow_faults"][:30]
    assert len(slow) == 30
    assert {fault["phase"] for fault in slow} == {"answer"}
    if migration["guest_stall_us"]["source"] != "daemon":
        check_that_each_adds_up([fault for fault in slow if fault["stall_us"]])


def check_that_each_adds_up(faults):
    assert len(faults) >= 20
    for fault in faults:
        stall = fault["stall_us"]
        assert stall["total"] >= DELAY_US, fault
        parts = stall["entry"] + sum(fault["phases_us"]) + stall["wakeup"]
        assert parts == pytest.approx(stall["total"], rel=0.05), fault


def test_phases_add_up_to_what_the_kernel_saw(pair):
    vmms = start_by_faults_alone(pair, "vm1", vcpus=2)
    migration = wait_for_faults(pair.destination, "vm1", 100)
    if migration["guest_stall_us"]["source"] == "daemon":
        finish_with_bulk(pair, "vm1", vmms)
        pytest.skip(next(line for line in pair.destination.log().splitlines()
                         if "stalls are measured by" in line))
    migration = wait_for_faults(pair.destination, "vm1", 300, "stall_joined_us")
    finish_with_bulk(pair, "vm1", vmms)
    kernel, phases = migration["stall_joined_us"], migration["stall_phases_us"]
    assert kernel["count"] == phases["count"] >= 300
    # The daemon knows nearly all of the stalls that the kernel saw.
    assert kernel["count"] >= 0.95 * migration["guest_stall_us"]["count"]
    assert phases["p50"] / kernel["p50"] == pytest.approx(1, abs=0.05 + BUCKET)
