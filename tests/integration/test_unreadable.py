# SPDX-License-Identifier: Apache-2.0
"""Pages of a guest that its source can't read: they are lost, and nothing else is."""
import contextlib
import os

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from pyvmm import PAGE

SIZE = 1 << 20
PAGES = SIZE // PAGE

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


class Pair:
    """Two daemons and scripted VMMs."""

    def __init__(self, host, source_vmm=pyvmm.SourceVmm, **limits):
        self.source = host.daemon("source", allow=["postcopy:destination"], kind=KeptDaemon)
        self.destination = host.daemon("destination", allow=["postcopy:source"], kind=KeptDaemon)
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, **limits)
        self.source_vmm = source_vmm(self.source, "vm1", self.content)
        self.destination_vmm = pyvmm.DestinationVmm(self.destination, "vm1", SIZE)
        host.later(self.source_vmm.close)
        host.later(self.destination_vmm.close)

    def switch_over(self, **pause):
        self.destination.call("Start", id="vm1")
        self.source_vmm.pause(**pause)
        self.destination_vmm.load()

    def status(self, side="destination"):
        return getattr(self, side).call("Get", id="vm1")

    def check_complete(self, lost):
        self.destination_vmm.expect(pyvmm.COMPLETE)
        self.source_vmm.expect(pyvmm.COMPLETE)
        here = os.pread(self.destination_vmm.memory_fd, SIZE, 0)
        for unit in set(range(PAGES)) - set(lost):
            at = unit * PAGE
            assert here[at:at + PAGE] == self.content[at:at + PAGE], "page %d" % unit
        for unit in lost:
            with pytest.raises(OSError, match="page %d$" % unit):
                self.destination_vmm.read_by_kernel(unit)
        status = self.status()
        assert status["state"] == "complete"
        assert status["pages_poisoned"] == len(lost)
        assert "%d pages" % len(lost) in status["reason"] and "poisoned" in status["reason"]


def test_page_that_can_not_be_read_costs_itself_and_nothing_else(host):
    """It used to close each connection that asked for it, to be dialled again 500 times a second:
    healthy faults starved, and the guest never became whole."""
    pair = Pair(host, pyvmm.AnonymousSourceVmm)
    lost = [3, 64, 65, 200]
    for unit in lost:
        pair.source_vmm.lose(unit)
    pair.switch_over()
    pair.check_complete(lost)
    assert pair.status()["reconnects"] == 0
    assert pair.status("source")["served"]["unreadable_pages"] >= len(lost)
    # A line a page would fill the journal.
    assert pair.destination.log().count("can't be read") == 1


def test_fault_on_such_a_page_ends_by_poison_and_others_are_served(host):
    pair = Pair(host, pyvmm.AnonymousSourceVmm, bulk=False)
    pair.source_vmm.lose(7)
    pair.switch_over()
    with pytest.raises(OSError, match="page 7"):
        pair.destination_vmm.read_by_kernel(7)
    for unit in (6, 8, 100):
        thread, page = pair.destination_vmm.touch(unit)
        thread.join(harness.DEADLINE_S)
        assert page.raw == pair.content[unit * PAGE:(unit + 1) * PAGE]
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.check_complete([7])


def test_poison_goes_with_the_guest_to_the_next_host(host):
    """A memfd reads as zeroes where its mapping is poisoned: the next host showed the guest a
    zero page for what was lost."""
    pair = Pair(host)
    pair.switch_over(poisoned_ranges=[(0, 5, 1), (0, 60, 10)])
    pair.check_complete([5] + list(range(60, 70)))


def test_poison_outlives_the_sources_daemon(host):
    pair = Pair(host, bulk=False)
    pair.switch_over(poisoned_ranges=[(0, 5, 1)])
    pair.destination.wait_for_state("vm1", "postcopy")
    pair.source.crash_and_restart()
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    pair.check_complete([5])


@pytest.mark.parametrize("ranges", [[(1, 0, 1)], [(0, PAGES, 1)], [(0, PAGES - 1, 2)],
                                    [(0, 5, 1), (0, 4, 1)], [(0, 5, 2), (0, 6, 1)]])
def test_poison_that_makes_no_sense_is_refused(host, ranges):
    pair = Pair(host)
    pair.destination.call("Start", id="vm1")
    # Its PAUSED may find the door closed.
    with contextlib.suppress(BrokenPipeError):
        pair.source_vmm.pause(poisoned_ranges=ranges)
    pair.source.wait_for_log("poisoned range")
    assert pair.source.wait_for_state("vm1", "failed")
