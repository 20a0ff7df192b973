# SPDX-License-Identifier: Apache-2.0
"""Guest memory belongs to one migration at a time. Moved on while it had 0 of 2048 pages, a guest
arrived "complete" at its third host, and was all zeroes: the second host's daemon served what it
had of it, and knew both migrations."""
import errno
import mmap
import os

import pytest

import harness
import pyvmm
from keeper import KeptDaemon
from pyvmm import Region

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
SIZE = 1 << 20


class Arriving:
    """"ab" arrives at @here, whose VMM has none of its pages yet."""

    def __init__(self, host, kind):
        self.a = host.daemon("source", allow=["postcopy:destination"], kind=kind)
        self.here = host.daemon("destination", kind=kind)
        self.content = pyvmm.guest_content(SIZE)
        self.a.prepare_source("ab")
        self.here.prepare_destination("ab", self.a.address, bulk=False)
        self.source_vmm = pyvmm.SourceVmm(self.a, "ab", self.content)
        self.vmm = pyvmm.DestinationVmm(self.here, "ab", SIZE)
        host.later(self.source_vmm.close)
        host.later(self.vmm.close)
        self.here.call("Start", id="ab")
        self.source_vmm.pause()
        self.vmm.load()
        self.here.wait_for_state("ab", "postcopy")
        self.here.prepare_source("bc")

    def attach_next(self, fd, region=None):
        """The same guest as the source of "bc". Returns the refusal, or None."""
        with pyvmm.Socket(self.here.vmm_path) as sock:
            sock.send(pyvmm.attach(pyvmm.SOURCE, "bc", [region or Region(SIZE)]), [fd])
            kind, payload, _ = sock.receive()
        return None if kind == pyvmm.ATTACHED else payload[8:].decode()

    def complete(self):
        self.here.call("SetLimits", id="ab", bulk=True)
        while self.vmm.receive()[0] != pyvmm.COMPLETE:
            pass
        assert os.pread(self.vmm.memory_fd, SIZE, 0) == self.content


@pytest.fixture
def arriving(host):
    return Arriving(host, KeptDaemon)


def assert_refused(why):
    assert why and '"ab"' in why and "region 0" in why and "all of its pages" in why


def test_memory_that_is_still_arriving_is_no_source(arriving):
    assert_refused(arriving.attach_next(arriving.vmm.memory_fd))
    # Another descriptor of it, another mapping, a part of it.
    again = os.open("/proc/self/fd/%d" % arriving.vmm.memory_fd, os.O_RDWR)
    assert_refused(arriving.attach_next(again, Region(pyvmm.PAGE, fd_offset=SIZE - pyvmm.PAGE)))
    os.close(again)
    assert arriving.here.state("bc") == "prepared"
    arriving.complete()
    assert arriving.attach_next(arriving.vmm.memory_fd) is None


def test_so_it_is_after_a_take_over(arriving):
    arriving.here.crash()
    arriving.here.start()
    assert_refused(arriving.attach_next(arriving.vmm.memory_fd))
    arriving.complete()
    assert arriving.attach_next(arriving.vmm.memory_fd) is None


def test_what_was_poisoned_is_no_source(arriving):
    """Where the source was lost: the guest has holes, and would have zeroes at its next host."""
    arriving.a.crash()
    arriving.here.wait_for_state("ab", "paused")
    # Not before a dial has failed: its port is kept, and nobody answers there.
    harness.eventually(lambda: "silent" in arriving.here.call("Get", id="ab")["reason"],
                       "nobody answers there")
    arriving.here.call("Poison", id="ab", confirm_missing_bytes=SIZE)
    reason = arriving.here.wait_for_state("ab", "failed")["reason"]
    arriving.a.start()
    if "UFFDIO_POISON" in reason:
        pytest.skip(reason)
    assert_refused(arriving.attach_next(arriving.vmm.memory_fd))


def test_one_guest_does_not_go_to_two_places(host):
    daemon = host.daemon("source")
    for migration in ("vm1", "vm2"):
        daemon.prepare_source(migration)
    vmm = pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm2", [Region(SIZE)]), [vmm.memory_fd])
        code, text = sock.expect_error()
    assert code == errno.EBUSY and '"vm1"' in text
    # It lets go of the one, and takes the other at once.
    vmm.sock.close()
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm2", [Region(SIZE)]), [vmm.memory_fd])
        sock.expect(pyvmm.ATTACHED)
    os.close(vmm.memory_fd)


def test_anonymous_memory_is_known_by_its_process_and_place(host):
    daemon = host.daemon("destination")
    daemon.prepare_destination("ab", "127.0.0.1:9")
    daemon.prepare_source("bc")
    addr = pyvmm.libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE,
                           mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    uffd = pyvmm.userfaultfd(addr, SIZE, pyvmm.UFFD_MODE_MISSING)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    region = Region(SIZE, memory=pyvmm.ANONYMOUS, host_addr=addr, fd_index=pyvmm.NO_FD,
                    uffd_mode=pyvmm.UFFD_MODE_MISSING)
    source = Region(SIZE, memory=pyvmm.ANONYMOUS, host_addr=addr, fd_offset=addr)
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.DESTINATION, "ab", [region], pyvmm.UFFD_FEATURES), [uffd])
        sock.expect(pyvmm.ATTACHED)
        with pyvmm.Socket(daemon.vmm_path) as second:
            second.send(pyvmm.attach(pyvmm.SOURCE, "bc", [source]), [memory])
            code, text = second.expect_error()
    assert code == errno.EBUSY and '"ab"' in text and "region 0" in text
    os.close(uffd)
    os.close(memory)
