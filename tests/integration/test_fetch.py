# SPDX-License-Identifier: Apache-2.0
"""Pages that the VMM asks for itself, over a fetch channel (libpostcopy's postcopy_channel)."""
import errno
import os
import re
import socket
import struct

import pytest

import harness
import pyvmm
from pyvmm import PAGE

SIZE = 4 << 20
ALL = 0xFFFFFFFFFFFFFFFF

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")


@pytest.fixture
def daemons(host):
    return (host.daemon("source", allow=["postcopy:destination"]),
            host.daemon("destination", allow=["postcopy:source"]))


def fetched_ahead(host, daemons, **options):
    """A whole migration whose destination asks for pages before its guest runs; bulk waits until
    it does. Returns the migration as it was then, and the guest's result."""
    source, destination = daemons
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False, prefetch=False)
    options = {"memory": "32M", "workload": "random", "run_after_complete": 50, **options}
    source_vmm = host.minivmm("source", source, "vm1", **options)
    destination_vmm = host.minivmm("destination", destination, "vm1", fetch=300, **options)
    source_vmm.wait_for_event("attached")
    destination_vmm.wait_for_event("attached")
    destination.call("Start", id="vm1")
    destination_vmm.wait_for_event("resumed")
    migration = destination.call("Get", id="vm1")
    destination.call("SetLimits", id="vm1", bulk=True)
    destination.wait_for_state("vm1", "complete")
    result = destination_vmm.wait_for_event("result")
    assert result["pages_bad"] == 0 and result["pages_checked"] > 0
    # 300, and the page tables, code, control blocks, stacks.
    assert result["fetched"] > 308, result
    assert destination_vmm.wait() == 0
    return migration, result


@needs_kvm
@pytest.mark.parametrize("backend", ["memfd", "anon"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_pages_asked_for_before_the_guest_runs_are_in_place(host, daemons, backend, vcpus):
    fetched_ahead(host, daemons, backend=backend, vcpus=vcpus)


@needs_kvm
def test_fetch_on_guest_memfd_fills_by_write(host, daemons):
    """In the test kernel; elsewhere what is missing is named."""
    try:
        migration, result = fetched_ahead(host, daemons, backend="guest_memfd", vcpus=2)
    except harness.Failure as failure:
        if re.search("lacks guest_memfd|can't trap guest_memfd", str(failure)):
            pytest.skip("no guest_memfd with userfaultfd here")
        raise
    # Duplicates and zero pages apart; and bulk, the other one who writes, had not begun.
    assert 200 < migration["fill"]["write"] <= result["fetched"]
    if os.environ.get("POSTCOPYD_EXPECT_PREFAULT"):
        assert result["prefaulted"] == result["fetched"]


FETCH_DISCARD = 1


class Channel:
    def __init__(self, vmm):
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(harness.DEADLINE_S)
        vmm.send(pyvmm.packet(pyvmm.CHANNEL), [theirs.fileno()])
        theirs.close()

    def ask(self, tag, addr, length):
        self.sock.send(struct.pack("<QQQ", tag, addr, length))

    def discard(self, tag, addr, length):
        """As postcopy_discard()."""
        self.sock.send(struct.pack("<QQQQ", tag, addr, length, FETCH_DISCARD))

    def answer(self):
        """(tag, code); None at end of file."""
        try:
            data = self.sock.recv(64)
        except ConnectionResetError:
            return self.answer()
        if not data:
            return None
        tag, code, reserved = struct.unpack("<QII", data)
        assert not reserved
        return tag, code


class Guests:
    """A source that stands still and an empty destination, both in Python."""

    def __init__(self, daemons):
        reason = pyvmm.can_userfault()
        if reason:
            pytest.skip(reason)
        self.source, self.destination = daemons
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        # Without bulk nothing comes but what is asked for.
        self.destination.prepare_destination("vm1", self.source.address, bulk=False, prefetch=False)
        self.source_vmm = pyvmm.SourceVmm(self.source, "vm1", self.content)
        self.vmm = pyvmm.DestinationVmm(self.destination, "vm1", SIZE)

    def start(self):
        self.destination.call("Start", id="vm1")
        self.source_vmm.pause()
        self.vmm.load()

    def page(self, unit):
        return os.pread(self.vmm.memory_fd, PAGE, unit * PAGE)

    def close(self):
        self.source_vmm.close()
        self.vmm.close()


@pytest.fixture
def guests(daemons):
    guests = Guests(daemons)
    yield guests
    guests.close()


def test_answer_says_that_all_of_the_range_is_there(guests):
    channel = Channel(guests.vmm)
    channel.ask(7, 64 * PAGE, 512 * PAGE)  # before switchover: it waits
    guests.start()
    assert channel.answer() == (7, 0)
    assert os.pread(guests.vmm.memory_fd, 512 * PAGE, 64 * PAGE) == \
        guests.content[64 * PAGE:576 * PAGE]
    assert guests.page(63) == guests.page(576) == bytes(PAGE)
    channel.ask(8, 100 * PAGE, PAGE)
    assert channel.answer() == (8, 0)


def test_many_channels_before_switchover_are_all_served(guests):
    channels = [Channel(guests.vmm) for _ in range(64)]
    for unit, channel in enumerate(channels):
        channel.ask(unit, unit * PAGE, PAGE)
    guests.start()
    for unit, channel in enumerate(channels):
        assert channel.answer() == (unit, 0)
        assert guests.page(unit) == guests.content[unit * PAGE:(unit + 1) * PAGE]


def test_channel_too_many_is_closed_and_the_migration_goes_on(guests):
    channels = [Channel(guests.vmm) for _ in range(64)]
    assert Channel(guests.vmm).answer() is None
    guests.start()
    channels[0].ask(1, 0, PAGE)
    assert channels[0].answer() == (1, 0)


BAD_RANGES = {
    "of no bytes": (0, 0),
    "not of whole pages": (0, 100),
    "not aligned": (1, PAGE),
    "of more than 2 MiB": (0, (2 << 20) + PAGE),
    "that ends beyond its region": (SIZE - PAGE, 2 * PAGE),
    "of no region": (SIZE, PAGE),
    "that wraps around": (ALL - PAGE + 1, PAGE),
}


@pytest.mark.parametrize("case", BAD_RANGES)
def test_range_that_is_none_is_answered_so(guests, case):
    guests.start()
    channel = Channel(guests.vmm)
    channel.ask(3, *BAD_RANGES[case])
    assert channel.answer() == (3, errno.EINVAL)
    channel.ask(4, 0, PAGE)
    assert channel.answer() == (4, 0)


@pytest.mark.parametrize("data", [b"x", bytes(23), bytes(25), struct.pack("<QQQ", ALL, 0, PAGE)],
                         ids=["1 byte", "23 bytes", "25 bytes", "the tag that means all"])
def test_request_that_is_none_costs_the_channel_and_nothing_else(guests, data):
    guests.start()
    channel, other = Channel(guests.vmm), Channel(guests.vmm)
    channel.sock.send(data)
    assert channel.answer() is None
    other.ask(1, 0, PAGE)
    assert other.answer() == (1, 0)


def test_all_is_said_when_all_is_there_and_ever_after(guests):
    guests.start()
    channel = Channel(guests.vmm)
    channel.ask(1, 0, PAGE)
    assert channel.answer() == (1, 0)
    guests.destination.call("SetLimits", id="vm1", bulk=True)
    assert channel.answer() == (ALL, 0)
    assert channel.answer() is None
    guests.destination.wait_for_state("vm1", "complete")
    late = Channel(guests.vmm)
    assert late.answer() == (ALL, 0)
    assert late.answer() is None


def test_vmm_that_goes_away_takes_its_channel_along(guests):
    guests.start()
    channel = Channel(guests.vmm)
    channel.ask(1, 0, PAGE)
    assert channel.answer() == (1, 0)
    guests.vmm.close()
    guests.destination.wait_for_state("vm1", "failed")
    assert channel.answer() is None


def stream_pair(host):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pair[1].close()
    return pair[0].detach()


NO_CHANNELS = {
    "memfd": lambda host: pyvmm.memfd(size=PAGE),
    "pipe": lambda host: os.pipe()[0],
    "stream socket": stream_pair,
    "TCP socket": lambda host: socket.socket().detach(),
}


@pytest.mark.parametrize("what", NO_CHANNELS)
def test_descriptor_that_is_no_channel_is_refused(host, guests, what):
    fd = NO_CHANNELS[what](host)
    guests.vmm.send(pyvmm.packet(pyvmm.CHANNEL), [fd])
    os.close(fd)
    code, text = guests.vmm.expect_error()
    assert code == errno.EINVAL and "SEQPACKET" in text


def test_channel_of_a_source_is_refused(guests):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guests.source_vmm.send(pyvmm.packet(pyvmm.CHANNEL), [theirs.fileno()])
    _, text = guests.source_vmm.expect_error()
    assert "source" in text
    ours.close()
    theirs.close()
