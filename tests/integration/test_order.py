# SPDX-License-Identifier: Apache-2.0
"""What is fetched first when the guest runs here: with real vCPUs, and what is told of it."""
import pytest

from test_migrate import Pair, assert_guest_is_whole, pytestmark as needs_kvm  # noqa: F401

pytestmark = needs_kvm

SLOW = {"streams": 1, "bandwidth_bytes_per_s": 32 << 20}


@pytest.fixture
def pair(host):
    return Pair(host)


def check_sums(prefetch):
    reasons = sum(prefetch[why] for why in ("hot", "around", "stride", "recent"))
    assert prefetch["units"] == reasons, prefetch
    assert prefetch["hit"] + prefetch["wasted"] <= prefetch["watched"] <= prefetch["units"], prefetch


def test_a_matrix_by_columns(pair):
    vmms = pair.attach("vm1", {"map": "lazy", **SLOW}, memory="128M", workload="stride")
    pair.start("vm1")
    prefetch = pair.finish("vm1", *vmms)["prefetch"]
    check_sums(prefetch)
    assert prefetch["stride"] and prefetch["hit"], prefetch


def test_mapped_ahead_no_touch_is_seen(pair):
    vmms = pair.attach("vm1", {"map": "eager", **SLOW}, memory="64M")
    pair.start("vm1")
    prefetch = pair.finish("vm1", *vmms)["prefetch"]
    check_sums(prefetch)
    assert prefetch["around"] and not prefetch["watched"], prefetch


def test_guesses_after_a_warm_phase(pair):
    """By faults or by what was written lately: here chance decides which is first."""
    vmms = pair.attach("vm1", {"map": "lazy"}, workload="hotcold", write_percent=50)
    pair.start("vm1", warm={"max_rounds": 3})
    ended = pair.finish("vm1", *vmms)
    assert ended["warm"]["rounds"] == 3, ended["warm"]
    check_sums(ended["prefetch"])
    assert ended["prefetch"]["recent"] or ended["prefetch"]["around"], ended["prefetch"]


def test_what_its_vmm_names_comes_first(pair):
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address, **SLOW)
    options = {"memory": "64M", "run_after_complete": 50}
    source = pair.host.minivmm("source", pair.source, "vm1", **options)
    destination = pair.host.minivmm("destination", pair.destination, "vm1", flags=("hot",), **options)
    source.wait_for_event("attached")
    destination.wait_for_event("attached")
    pair.start("vm1")
    ended = pair.destination.wait_for_state("vm1", "complete")
    check_sums(ended["prefetch"])
    assert ended["prefetch"]["hot"], ended["prefetch"]
    assert_guest_is_whole(destination)


def test_in_the_order_of_addresses_where_that_is_wanted(pair):
    vmms = pair.attach("vm1", {"prefetch": False}, workload="hotcold")
    pair.start("vm1", warm={"max_rounds": 2})
    assert pair.finish("vm1", *vmms)["prefetch"]["units"] == 0
