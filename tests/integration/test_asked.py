# SPDX-License-Identifier: Apache-2.0
"""A destination whose VMM traps its memory itself and asks for each page (POSTCOPY_REGION_ASKED):
the daemon has no userfaultfd of it. The VMM here is this process, the trap is left out: what counts
is what lies in the file when an answer says so."""
import errno
import os

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from pyvmm import PAGE
from test_fetch import ALL, Channel

SIZE = 4 << 20
ASKED = 2  # a region's flag
EHWPOISON = 133  # which Python does not name


class AskedVmm(pyvmm.Socket):
    def __init__(self, daemon, migration_id, size, regions=None, fds=None):
        super().__init__(daemon.vmm_path)
        self.size = size
        self.memory_fd = pyvmm.memfd(size=size)
        self.send(pyvmm.attach(pyvmm.DESTINATION, migration_id, regions or [asked(size)]),
                  [self.memory_fd] if fds is None else fds)

    load = pyvmm.DestinationVmm.load

    def page(self, unit):
        return os.pread(self.memory_fd, PAGE, unit * PAGE)

    def close(self):
        super().close()
        os.close(self.memory_fd)


def asked(size, **values):
    return pyvmm.Region(size, **{"host_addr": 0, "flags": ASKED, **values})


class Guests:
    def __init__(self, host, content, kind=None, **limits):
        options = {"kind": kind} if kind else {}
        self.source = host.daemon("source", **options)
        self.destination = host.daemon("destination", **options)
        self.content = content
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, **limits)
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", content)
        self.vmm = AskedVmm(self.destination, "vm1", len(content))
        self.vmm.expect(pyvmm.ATTACHED)
        host.later(self.source_vmm.close)
        host.later(self.vmm.close)

    def start(self, poisoned=()):
        self.destination.call("Start", id="vm1")
        self.source_vmm.pause(poisoned)
        self.vmm.load()


def test_what_is_asked_for_comes_and_nothing_else(host):
    guests = Guests(host, pyvmm.guest_content(SIZE), bulk=False, prefetch=False)
    guests.start()
    channel = Channel(guests.vmm)
    for unit in (700, 3, 0):
        channel.ask(unit, unit * PAGE, PAGE)
        assert channel.answer() == (unit, 0)
        assert guests.vmm.page(unit) == guests.content[unit * PAGE:(unit + 1) * PAGE]
    assert guests.vmm.page(1) == bytes(PAGE)
    # Each is a fault, not a guess: these are told apart in the numbers.
    faults = guests.destination.call("Get", id="vm1")["faults"]
    assert faults["remote"] == faults["total"] == 3, faults


def test_all_comes_by_bulk_and_the_migration_ends(host):
    content = pyvmm.guest_content(SIZE // 2) + bytes(SIZE // 2)
    guests = Guests(host, content)
    guests.start()
    channel = Channel(guests.vmm)
    assert channel.answer() == (ALL, 0)
    for daemon in (guests.destination, guests.source):
        daemon.wait_for_state("vm1", "complete")
    assert os.pread(guests.vmm.memory_fd, SIZE, 0) == content
    guests.vmm.expect(pyvmm.COMPLETE)


@pytest.mark.parametrize("daemons", ["destination", "both"])
def test_goes_on_in_another_process(host, daemons):
    """Claims that died with a process were never seen by a guest: they are filled again."""
    guests = Guests(host, pyvmm.guest_content(SIZE), kind=KeptDaemon, bulk=False, prefetch=False)
    guests.start()
    channel = Channel(guests.vmm)
    channel.ask(1, 0, PAGE)
    assert channel.answer() == (1, 0)
    os.pwrite(guests.vmm.memory_fd, b"written by the guest", 0)
    guests.destination.crash()
    if daemons == "both":
        guests.source.crash()
        guests.source.start()
    channel.ask(2, PAGE, PAGE)
    guests.destination.start()
    answers = {channel.answer() for _ in range(2)}
    assert (2, 0) in answers, answers
    guests.destination.call("SetLimits", id="vm1", bulk=True)
    guests.destination.wait_for_state("vm1", "complete")
    here = os.pread(guests.vmm.memory_fd, SIZE, 0)
    assert here == b"written by the guest" + guests.content[20:]


def test_page_that_the_source_can_not_read_is_its_askers_error(host):
    """Nobody can poison it here: it stays missing, is never taken for zeroes, and costs no other
    page and no connection."""
    guests = Guests(host, pyvmm.guest_content(SIZE), bulk=False, prefetch=False)
    guests.start([(0, 5, 1)])
    channel = Channel(guests.vmm)
    for tag in (1, 2):
        channel.ask(tag, 5 * PAGE, PAGE)
        assert channel.answer() == (tag, EHWPOISON)
    channel.ask(3, 6 * PAGE, PAGE)
    assert channel.answer() == (3, 0)
    guests.destination.call("SetLimits", id="vm1", bulk=True)
    harness.eventually(lambda: guests.destination.call("Get", id="vm1")["pages_present"] == SIZE // PAGE - 1,
                       "all but the lost page has come")
    assert guests.destination.state("vm1") == "postcopy"
    channel.ask(4, 5 * PAGE, PAGE)
    assert channel.answer() == (4, EHWPOISON)


REFUSED = {
    "anonymous": ([asked(PAGE, memory=pyvmm.ANONYMOUS, fd_index=pyvmm.NO_FD)], []),
    "with an address": ([asked(PAGE, host_addr=1 << 20)], None),
    "private": ([asked(PAGE, flags=ASKED | pyvmm.PRIVATE)], None),
    "only a part": ([asked(PAGE), pyvmm.Region(PAGE, guest_phys_addr=PAGE, fd_offset=PAGE)], None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_asked_for_is_refused(host, case):
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    regions, fds = REFUSED[case]
    with AskedVmm(daemon, "vm1", SIZE, regions, fds) as vmm:
        code, text = vmm.expect_error()
        assert code == errno.EINVAL and "asked for" in text, text


def test_source_can_not_ask(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    fd = pyvmm.memfd(size=PAGE)
    with pyvmm.Socket(daemon.vmm_path) as vmm:
        vmm.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [asked(PAGE)]), [fd])
        code, text = vmm.expect_error()
    os.close(fd)
    assert code == errno.EINVAL and "destination" in text, text
