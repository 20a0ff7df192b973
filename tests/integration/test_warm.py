# SPDX-License-Identifier: Apache-2.0
"""Warm migrations as a whole: real daemons, real vCPUs that write all the time, and the guest's own
word that each page is right, whatever breaks meanwhile."""
import random

import pytest

import harness
from test_migrate import Pair, huge_pages, pytestmark as needs_kvm  # noqa: F401
from test_takeover import KeptPair, SIDES

pytestmark = needs_kvm

SEED = 13


@pytest.fixture
def pair(host):
    return Pair(host)


@pytest.fixture
def kept(host):
    return KeptPair(host)


def warm_of(pair, migration_id="vm1"):
    return pair.destination.call("Get", id=migration_id)["warm"]


def await_rounds(pair, rounds=1, migration_id="vm1"):
    harness.eventually(lambda: warm_of(pair, migration_id)["rounds"] >= rounds,
                       "round %d is over" % rounds)
    return warm_of(pair, migration_id)["rounds"]


def check_warm(ended, rounds=1):
    """It was worth it: not all had to come when the guest was here."""
    warm = ended["warm"]
    assert warm["refused"] == "", warm
    assert warm["rounds"] >= rounds or warm["given_up_percent"], warm
    assert warm["dirty_pages_at_switchover"] < ended["pages_total"], warm


@pytest.mark.parametrize("dirty_log", ("kvm", "ring", "wp"))
@pytest.mark.parametrize("workload", ("random", "hotcold", "sequential"))
def test_a_guest_that_writes_is_whole(pair, workload, dirty_log):
    vmms = pair.attach("vm1", workload=workload, dirty_log=dirty_log, vcpus=2, write_percent=50)
    pair.start("vm1", warm={"max_rounds": 4})
    check_warm(pair.finish("vm1", *vmms))


@pytest.mark.parametrize("backend", ("memfd", "hugetlb"))
@pytest.mark.parametrize("map_policy", ("eager", "lazy"))
@pytest.mark.parametrize("policy", ({}, {"max_time": "0.5s"}, {"catch_up": "0.05s", "max_rounds": 8}),
                         ids=("round", "time", "catch-up"))
def test_each_policy_and_memory(pair, huge_pages, policy, map_policy, backend):  # noqa: F811
    vmms = pair.attach("vm1", {"map": map_policy}, backend=backend, workload="hotcold")
    pair.start("vm1", warm=policy)
    # Time may be over before a round is: then it has what came until then.
    check_warm(pair.finish("vm1", *vmms), rounds=0 if "max_time" in policy else 1)


@pytest.mark.parametrize("dirty_log", ("kvm", "ring"))
def test_data_turns_zero_and_back_and_its_vmm_discards(pair, dirty_log):
    vmms = pair.attach("vm1", workload="zeroes", dirty_log=dirty_log, vcpus=2, write_percent=60,
                       source_flags=["discard"])
    pair.start("vm1", warm={"max_rounds": 4})
    check_warm(pair.finish("vm1", *vmms))


def test_discards_that_the_kernel_does_not_see_are_not_warmed(pair):
    vmms = pair.attach("vm1", dirty_log="wp", source_flags=["discard"])
    pair.start("vm1", warm={})
    ended = pair.finish("vm1", *vmms)
    assert "balloon" in ended["warm"]["refused"]


def test_until_it_is_told(pair):
    vmms = pair.attach("vm1", vcpus=2)
    pair.start("vm1", warm={}, switchover=False)
    await_rounds(pair, 3)
    assert pair.destination.call("Get", id="vm1")["waiting"]["for"] == "switchover"
    pair.destination.call("Switchover", id="vm1")
    check_warm(pair.finish("vm1", *vmms))


def test_memory_that_can_not_be_warmed_is_moved_as_ever(pair):
    vmms = pair.attach("vm1", backend="anon")
    pair.start("vm1", warm={})
    ended = pair.finish("vm1", *vmms)
    assert "anon memory" in ended["warm"]["refused"]


def test_a_guest_that_is_not_logged_is_moved_as_ever(pair):
    vmms = pair.attach("vm1", dirty_log="none")
    pair.start("vm1", warm={})
    ended = pair.finish("vm1", *vmms)
    assert ended["warm"]["refused"] and ended["warm"]["rounds"] == 0


@SIDES
def test_killed_while_it_warms(kept, sides):
    vmms = kept.attach("vm1", vcpus=2)
    kept.start("vm1", warm={}, switchover=False)
    for _ in range(3):
        before = await_rounds(kept, 2)
        kept.crash(sides)
        kept.destination.wait_for_state("vm1", "warming")
        # A destination may not have noticed yet that its source was another for a moment.
        harness.eventually(lambda: warm_of(kept)["rounds"] < before, "the log has begun anew")
    await_rounds(kept, 1)
    kept.destination.call("Switchover", id="vm1")
    check_warm(kept.finish("vm1", *vmms))


@SIDES
def test_killed_at_any_moment(kept, sides):
    """From the beginning to the end, whatever is under way."""
    chance = random.Random(SEED)
    for i in range(5):
        migration_id = "vm%d" % i
        vmms = kept.attach(migration_id, memory="32M")
        kept.start(migration_id, warm={"max_rounds": 2})
        harness.time.sleep(chance.random())  # any moment is a good one
        kept.crash(sides)
        kept.finish(migration_id, *vmms)


def test_cancelled_at_any_moment_the_guest_runs_on(pair):
    chance = random.Random(SEED)
    for i in range(6):
        migration_id = "vm%d" % i
        source_vmm, destination_vmm = pair.attach(migration_id, memory="32M", workload="hotcold")
        pair.start(migration_id, warm={}, switchover=False)
        harness.time.sleep(0.5 * chance.random())
        pair.destination.call("Cancel", id=migration_id)
        pair.destination.wait_for_state(migration_id, "cancelled")
        # Where nobody had come yet the source has nothing to end.
        harness.eventually(lambda: pair.source.state(migration_id) in ("cancelled", "attached"),
                           "the source has let go")
        assert source_vmm.popen.poll() is None or source_vmm.popen.returncode == 0
        source_vmm.kill()
        destination_vmm.kill()
    vmms = pair.attach("last", memory="32M")
    pair.start("last", warm={})
    check_warm(pair.finish("last", *vmms))
