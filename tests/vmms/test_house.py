# SPDX-License-Identifier: Apache-2.0
"""The house itself: the QEMUs start, the guests run, and what is wrong with their memory is seen."""
import mmap
import os

import pytest

from harness import Failure

PAGE = 4096
SHAPES = [dict(suite="bookworm", memory="tmpfs", vcpus=1),
          dict(suite="trixie", memory="hugetlb", vcpus=2),
          dict(suite="sid", memory="memfd", vcpus=2),
          dict(suite="trixie", memory="memfd", accel="kvm", mib=64)]


def named(shape):
    return "-".join(str(value) for value in shape.values())


def first_word(page):
    """Of a page that is written once (guest/pattern.h)."""
    x = ((page << 24) + 1) * 0x9e3779b97f4a7c15 & (1 << 64) - 1
    return x ^ x >> 29


def spoil(vmm):
    """Turns one bit of a page that the guest does not write again, wherever the guest has put it."""
    pages = vmm.guest.size_bytes // PAGE
    wanted = {first_word(page).to_bytes(8, "little") for page in range(1, pages, 2)}
    for offset in reversed(range(0, vmm.guest.size_bytes, PAGE)):
        word = os.pread(vmm.memory_fd, 8, offset)
        if word in wanted:
            # hugetlbfs has no write()
            with mmap.mmap(vmm.memory_fd, vmm.guest.size_bytes) as memory:
                memory[offset] ^= 1
            return
    raise AssertionError("no page of the pattern")


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_a_wrong_page_is_seen(guest_of, shape):
    guest = guest_of(**shape)
    vmm = guest.start("a").wait_until_ready()
    progress = vmm.progress()
    vmm.check(passes=1)
    assert all(now > then for now, then in zip(vmm.progress(), progress))
    spoil(vmm)
    with pytest.raises(Failure, match="wrong pages: bad"):
        vmm.check(passes=1)


def test_a_moved_guest_is_right(guest_of, host):
    """By QEMU's own postcopy: what is asked of a guest that we have moved holds for one that others have."""
    guest = guest_of(suite="trixie", memory="tmpfs", vcpus=2)
    source, destination = guest.start("a").wait_until_ready(), guest.start("b", incoming=True)
    for vmm in (source, destination):
        vmm.qmp.execute("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": True} for name in ("events", "postcopy-ram")])
    address = "unix:%s" % (host.dir / "native")
    destination.qmp.execute("migrate-incoming", uri=address)
    source.qmp.execute("migrate-set-parameters", **{"max-bandwidth": 0})
    source.qmp.execute("migrate", uri=address)
    source.qmp.wait_for_event("MIGRATION", status="active")
    source.qmp.execute("migrate-start-postcopy")
    destination.qmp.wait_for_event("RESUME")
    destination.check(passes=2)
    source.qmp.wait_for_event("MIGRATION", status="completed")
    assert source.status() == "postmigrate"
