# SPDX-License-Identifier: Apache-2.0
"""The network goes, or the source moves, or is gone for good."""
import ctypes
import errno
import os
import threading

import pytest

import harness
import pyvmm
from harness import ControlError
from keeper import KeptDaemon
from proxy import Proxy
from pyvmm import PAGE
from test_migrate import Pair as GuestPair

SIZE = 1 << 20
PAGES = SIZE // PAGE

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def poison_when_away(daemon, missing_bytes):
    """As soon as the source counts as away."""
    def poisoned():
        try:
            return daemon.call("Poison", id="vm1", confirm_missing_bytes=missing_bytes)
        except ControlError as error:
            assert "has not failed to answer yet" in error.message
            return None

    harness.eventually(poisoned, "the source is away")


class Pair:
    """Two daemons with a proxy between them, and scripted VMMs; the guest runs at the destination
    and only faults bring pages."""

    def __init__(self, host, kind=harness.Daemon, destination_kind=harness.Daemon,
                 extra=()):
        self.source = host.daemon("source", allow=["postcopy:destination"], kind=kind)
        self.destination = host.daemon("destination", allow=["postcopy:source"],
                                       kind=destination_kind, extra=extra)
        self.proxy = Proxy(self.source.address)
        host.later(self.proxy.close)
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.proxy.address, bulk=False)
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.destination_vmm = pyvmm.DestinationVmm(self.destination, "vm1", SIZE)
        host.later(self.source_vmm.close)
        host.later(self.destination_vmm.close)

    def run(self):
        self.destination.call("Start", id="vm1")
        self.source_vmm.pause()
        self.destination_vmm.load()
        self.destination.wait_for_state("vm1", "postcopy")
        self.read(3)

    def read(self, unit):
        thread, page = self.destination_vmm.touch(unit)
        thread.join(harness.DEADLINE_S)
        assert page.raw == self.content[unit * PAGE:(unit + 1) * PAGE]

    def poison(self, missing_bytes):
        poison_when_away(self.destination, missing_bytes)

    def finish(self):
        self.destination.call("SetLimits", id="vm1", bulk=True)
        self.destination_vmm.expect(pyvmm.COMPLETE)
        self.source_vmm.expect(pyvmm.COMPLETE)
        assert os.pread(self.destination_vmm.memory_fd, SIZE, 0) == self.content


def test_cut_connections_are_dialled_again(host):
    pair = Pair(host)
    pair.run()
    for unit in range(10, 20):
        pair.proxy.cut()
        pair.read(unit)
    pair.proxy.cut()
    pair.finish()


def test_paused_says_why_and_postcopy_when_it_is_over(host):
    pair = Pair(host)
    pair.run()
    pair.proxy.refuse(True)
    thread, page = pair.destination_vmm.touch(9)
    assert pair.destination.wait_for_state("vm1", "paused")["reason"]
    pair.proxy.refuse(False)
    pair.destination.wait_for_state("vm1", "postcopy")
    thread.join(harness.DEADLINE_S)
    assert page.raw == pair.content[9 * PAGE:10 * PAGE]
    pair.finish()


def test_control_connection_that_is_lost_in_postcopy_comes_back(host):
    pair = Pair(host)
    pair.run()
    harness.eventually(lambda: pair.source.state("vm1") == "postcopy", "RESUMED is told")
    pair.proxy.cut()
    # Nobody faults: the ping finds it out.
    harness.eventually(lambda: len(pair.proxy.pairs) >= 2, "urgent and control are there again",
                       deadline_s=30)
    pair.finish()


def test_source_at_another_address(host):
    pair = Pair(host)
    pair.run()
    pair.proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    pair.destination.call("Recover", id="vm1", source_address=pair.source.address)
    pair.destination.wait_for_state("vm1", "postcopy")
    # What status calls the source is what is dialled.
    with pair.destination.control() as control:
        told = control.client.migrations("Get", id="vm1").destination.source_address
    assert told == pair.source.address
    pair.finish()


def test_source_at_another_address_while_warm(host):
    pair = Pair(host)
    pair.destination.call("Start", id="vm1", switchover=False)
    pair.source.wait_for_state("vm1", "warming")
    pair.proxy.refuse(True)
    pair.destination.call("Recover", id="vm1", source_address=pair.source.address)
    pair.destination.call("Switchover", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.finish()


def test_recover_checks_its_parameters(host):
    pair = Pair(host)
    with pytest.raises(ControlError) as caught:
        pair.destination.call("Recover", id="vm1", source_address="nonsense")
    assert caught.value.code == "INVALID_ARGUMENT"


def test_recover_before_start_and_at_the_source_is_refused(host):
    pair = Pair(host)
    for daemon in (pair.source, pair.destination):
        with pytest.raises(ControlError) as caught:
            daemon.call("Recover", id="vm1")
        assert caught.value.code == "FAILED_PRECONDITION"


def missing_pages(daemon, page_size=0):
    """All of them, by as many calls as that takes."""
    pages, token = set(), ""
    while True:
        answer = daemon.call("ListMissing", id="vm1", page_size=page_size, page_token=token)
        for missing in answer.ranges:
            assert missing.region == 0 and missing.size_bytes
            first = missing.guest_phys_addr // PAGE
            found = set(range(first, first + missing.size_bytes // PAGE))
            assert not found & pages
            pages |= found
        token = answer.next_page_token
        if not token:
            assert answer.missing_bytes == len(pages) * PAGE
            return pages
        assert len(answer.ranges) == (page_size or 1000)


def test_missing_pages_are_told_exactly(host):
    pair = Pair(host)
    pair.run()
    here = {3}
    for unit in (0, 1, 63, 64, 200, PAGES - 1):
        pair.read(unit)
        here.add(unit)
    assert missing_pages(pair.destination) == set(range(PAGES)) - here
    pair.finish()
    assert missing_pages(pair.destination) == set()


def test_missing_pages_are_told_in_parts(host):
    """Many ranges: each other page."""
    pair = Pair(host)
    pair.run()
    for unit in range(1, PAGES, 2):
        pair.read(unit)
    for page_size in (0, 1, 7, PAGES // 2, 100000):
        assert missing_pages(pair.destination, page_size) == set(range(0, PAGES, 2))
    pair.finish()


def kernel_reads(vmm, unit, result):
    """As a vCPU would, but by the kernel: an errno instead of SIGBUS."""
    reader, writer = os.pipe()
    got = pyvmm.libc.write(writer, ctypes.c_void_p(vmm.addr + unit * PAGE), ctypes.c_size_t(PAGE))
    result.append(os.read(reader, PAGE) if got == PAGE else ctypes.get_errno())
    os.close(reader)
    os.close(writer)


def test_lost_pages_are_poisoned_by_command(host):
    pair = Pair(host, KeptDaemon)
    pair.run()
    with pytest.raises(ControlError) as caught:
        pair.destination.call("Poison", id="vm1")
    assert caught.value.code == "FAILED_PRECONDITION"
    pair.source.crash()
    pair.proxy.refuse(True)
    result = []
    waiter = threading.Thread(target=kernel_reads, args=(pair.destination_vmm, 7, result),
                              daemon=True)
    waiter.start()
    pair.destination.wait_for_state("vm1", "paused")
    missing = missing_pages(pair.destination)
    with pytest.raises(ControlError) as caught:
        pair.destination.call("Poison", id="vm1", confirm_missing_bytes=(len(missing) - 1) * PAGE)
    assert caught.value.code == "FAILED_PRECONDITION" and "confirmed" in str(caught.value)
    pair.destination.call("Poison", id="vm1", confirm_missing_bytes=len(missing) * PAGE)
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    pair.source.start()
    if "UFFDIO_POISON" in reason:
        pytest.skip(reason)
    assert "%d bytes" % (len(missing) * PAGE) in reason
    again = pair.destination.call("Poison", id="vm1", confirm_missing_bytes=len(missing) * PAGE)
    assert again["state"] == "failed" and again["reason"] == reason
    waiter.join(harness.DEADLINE_S)
    assert result == [errno.EFAULT], "who waited for a lost page gets an error"
    for unit in (8, PAGES - 1):
        result = []
        kernel_reads(pair.destination_vmm, unit, result)
        assert result == [errno.EFAULT]
    result = []
    kernel_reads(pair.destination_vmm, 3, result)
    assert result == [pair.content[3 * PAGE:4 * PAGE]], "what was here is whole"
    _, text = pair.destination_vmm.expect_failure()
    assert "lost" in text


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                    reason="/dev/kvm can't be opened: no vCPUs here")
def test_guest_that_dies_of_poison_is_not_said_to_be_at_its_source(host):
    """A VMM that ends at its first machine check is gone before the last page is poisoned: who looked
    then was sent to a source that he had just given up."""
    pair = GuestPair(host)
    proxy = Proxy(pair.source.address)
    host.later(proxy.close)
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", proxy.address, bulk=False)
    for role, daemon in ("source", pair.source), ("destination", pair.destination):
        host.minivmm(role, daemon, "vm1", memory="64M", backend="memfd", workload="random",
                     zero_percent=0).wait_for_event("attached")
    pair.start("vm1")
    pair.destination.wait_for_state("vm1", "postcopy")
    proxy.refuse(True)
    pair.destination.wait_for_state("vm1", "paused")
    with pair.destination.control() as control:
        missing = control.call("ListMissing", id="vm1").missing_bytes
    poison_when_away(pair.destination, missing)
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    if "UFFDIO_POISON" in reason:
        pytest.skip(reason)
    assert "poisoned by command" in reason


def test_poison_is_not_forgotten_by_who_takes_over(host):
    """A daemon killed between the last page's poison and the record of it: the next one found all
    pages here, and called the migration complete without a word of what was lost."""
    pair = Pair(host, KeptDaemon, KeptDaemon)
    pair.run()
    pair.source.crash()
    pair.destination.wait_for_state("vm1", "paused")
    store = pair.destination.store
    with store.lock:
        before = [(name, os.dup(fd)) for name, fd in store.fds]
    record = dict(before)["record.vm1"]
    content = os.pread(record, os.fstat(record).st_size, 0)
    pair.poison(SIZE - PAGE)
    reason = pair.destination.wait_for_state("vm1", "failed")["reason"]
    pair.destination.crash()
    # As if it had come no further.
    with store.lock:
        for _, fd in store.fds:
            os.close(fd)
        store.fds = before
    os.pwrite(record, content, 0)
    pair.source.start()
    if "UFFDIO_POISON" in reason:
        pytest.skip(reason)
    pair.destination.start()
    complete = pair.destination.wait_for_state("vm1", "complete")
    assert "%u pages of 4 KiB" % (PAGES - 1) in complete["reason"]


def test_black_hole_is_survived(host):
    """Longer than the kernel takes for a dead peer: a stall, and on it goes."""
    pair = Pair(host)
    pair.run()
    pair.proxy.black_hole(True)
    thread, page = pair.destination_vmm.touch(9)
    pair.destination.wait_for_state("vm1", "paused", deadline_s=30)
    pair.proxy.black_hole(False)
    thread.join(30)
    assert page.raw == pair.content[9 * PAGE:10 * PAGE]
    pair.finish()


def test_source_that_is_silent_while_it_is_dialled(host):
    """Longer than two TLS handshakes may take: it is dialled again, and again."""
    pair = Pair(host)
    pair.proxy.black_hole(True)
    pair.destination.call("Start", id="vm1", switchover=False)
    harness.eventually(lambda: pair.destination.log().count("dialling again") == 2,
                       "two dials have come to nothing")
    pair.proxy.black_hole(False)
    pair.source.wait_for_state("vm1", "warming")
    pair.destination.call("Switchover", id="vm1")
    pair.source_vmm.pause()
    pair.destination_vmm.load()
    pair.finish()
