# SPDX-License-Identifier: Apache-2.0
"""A destination VMM whose memory is not empty when it attaches, and who does not say so: the guest
read what was there, or what it wrote was undone by a page that came late."""
import ctypes
import errno
import os
import mmap

import pytest

import harness
import pyvmm
from pyvmm import PAGE, Region
from test_migrate import Pair

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
SIZE = 1 << 20
POPULATE_READ, POPULATE_WRITE = 22, 23

POPULATE = {
    "written": lambda fd, addr, size: pyvmm.libc.memset(addr, 0x55, size),
    "one byte": lambda fd, addr, size: pyvmm.libc.memset(addr + 7 * PAGE, 0x55, 1),
    "read": lambda fd, addr, size: pyvmm.libc.madvise(addr, size, POPULATE_READ),
    "populated": lambda fd, addr, size: pyvmm.libc.madvise(addr, size, POPULATE_WRITE),
    "written by its descriptor": lambda fd, addr, size: os.pwrite(fd, b"U" * size, 0),
    "preallocated": lambda fd, addr, size: os.posix_fallocate(fd, 0, size),
}


def content_with_zero_pages():
    content = bytearray(pyvmm.guest_content(SIZE))
    for at in range(0, SIZE, 5 * PAGE):
        content[at:at + PAGE] = bytes(PAGE)
    return bytes(content)


@pytest.mark.parametrize("policy", ["lazy", "eager"])
@pytest.mark.parametrize("how", POPULATE)
def test_populated_memory_is_emptied_first(host, how, policy):
    pair = Pair(host)
    content = content_with_zero_pages()
    pair.source.prepare_source("vm1")
    pair.destination.prepare_destination("vm1", pair.source.address, map=policy, bulk=False)
    source_vmm = pyvmm.SourceVmm(pair.source, "vm1", content)
    vmm = pyvmm.DestinationVmm(pair.destination, "vm1", SIZE, POPULATE[how])
    host.later(source_vmm.close)
    host.later(vmm.close)
    pair.start("vm1")
    source_vmm.pause()
    vmm.load()
    # As the guest reads it: through the mapping, before bulk brings anything.
    for unit in (0, 7, 8, 200):
        thread, page = vmm.touch(unit)
        thread.join(harness.DEADLINE_S)
        assert page.raw == content[unit * PAGE:(unit + 1) * PAGE]
    pair.destination.call("SetLimits", id="vm1", bulk=True)
    vmm.expect(pyvmm.COMPLETE)
    got = ctypes.create_string_buffer(SIZE)
    pyvmm.libc.memcpy(got, vmm.addr, SIZE)
    assert got.raw == content


def test_anonymous_memory_that_is_not_empty_is_refused_by_place(host):
    """Nobody but its process can discard it; who does not must not be believed."""
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    addr = pyvmm.libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE,
                           mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    pyvmm.libc.madvise(addr, SIZE, 15)  # MADV_NOHUGEPAGE: the page and no more
    pyvmm.libc.memset(addr + 7 * PAGE, 0x55, 1)
    uffd = pyvmm.userfaultfd(addr, SIZE, pyvmm.UFFD_MODE_MISSING)
    region = Region(SIZE, memory=pyvmm.ANONYMOUS, host_addr=addr, fd_index=pyvmm.NO_FD,
                    uffd_mode=pyvmm.UFFD_MODE_MISSING)
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.DESTINATION, "vm1", [region], pyvmm.UFFD_FEATURES), [uffd])
        code, text = sock.expect_error()
    os.close(uffd)
    assert code == errno.EBUSY and "region 0" in text and "offset 0x7000" in text
    assert daemon.state("vm1") == "prepared"
