# SPDX-License-Identifier: Apache-2.0
"""Guest memory whose file can't be sealed: Cloud Hypervisor's memfds, QEMU's files on a tmpfs. All
of it was refused. Nothing keeps its owner from truncating it, which costs what is cut off, and
neither the daemon nor another guest."""
import os
import tempfile

import pytest

import harness
import pyvmm

SIZE = 1 << 20
HALF = SIZE // 2

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))


def fill(fd, content, size):
    os.truncate(fd, len(content) if size is None else size)
    if content:
        os.pwrite(fd, content, 0)
    return fd


def unsealable_memfd(content=b"", size=None):
    return fill(os.memfd_create("test-guest", os.MFD_CLOEXEC), content, size)


def tmpfs_file(content=b"", size=None):
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        return fill(os.dup(file.fileno()), content, size)


MAKES = pytest.mark.parametrize("make", [unsealable_memfd, tmpfs_file])


class Pair:
    def __init__(self, host, make, map="auto"):
        self.source, self.destination = host.daemon("source"), host.daemon("destination")
        self.content = pyvmm.guest_content(SIZE)
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", self.source.address, map=map, bulk=False,
                                             prefetch=False)
        self.there = pyvmm.SourceVmm(self.source, "vm1", self.content, make=make)
        self.here = pyvmm.DestinationVmm(self.destination, "vm1", SIZE, make=make)
        host.later(self.there.close)
        host.later(self.here.close)
        self.destination.call("Start", id="vm1")
        self.there.pause()
        self.here.load()
        self.destination.wait_for_state("vm1", "postcopy")

    def finish(self):
        self.destination.call("SetLimits", id="vm1", bulk=True)
        return self.destination.wait_for_state("vm1", "complete")["reason"]

    def another_guest_moves(self):
        self.source.prepare_source("vm2")
        self.destination.prepare_destination("vm2", self.source.address)
        with pyvmm.SourceVmm(self.source, "vm2", self.content) as there, \
                pyvmm.DestinationVmm(self.destination, "vm2", SIZE) as here:
            self.destination.call("Start", id="vm2")
            there.pause()
            here.load()
            self.destination.wait_for_state("vm2", "complete")
            assert os.pread(here.memory_fd, SIZE, 0) == self.content


@MAKES
@pytest.mark.parametrize("map", ["lazy", "eager"])
def test_guest_moves_in_memory_that_can_t_be_sealed(host, make, map):
    pair = Pair(host, make, map)
    thread, page = pair.here.touch(7)
    thread.join(harness.DEADLINE_S)
    assert page.raw == pair.content[7 * pyvmm.PAGE:8 * pyvmm.PAGE]
    assert pair.finish() == ""
    assert os.pread(pair.here.memory_fd, SIZE, 0) == pair.content


@MAKES
def test_source_truncated_amid_a_migration(host, make):
    """What is cut off is lost like a page with a memory error: there, and nowhere else."""
    pair = Pair(host, make)
    os.truncate(pair.there.memory_fd, HALF)
    reason = pair.finish()
    assert "%d pages" % (HALF // pyvmm.PAGE) in reason and "could not be read" in reason, reason
    assert "region 0: its file, which could not be sealed, was truncated" in pair.source.log()
    assert os.pread(pair.here.memory_fd, HALF, 0) == pair.content[:HALF]
    pair.another_guest_moves()


@MAKES
@pytest.mark.parametrize("map", ["lazy", "eager"])
def test_destination_truncated_amid_a_migration(host, make, map):
    """UFFDIO_COPY's EFAULT was asked again for ever; pwrite() would have made the file longer."""
    pair = Pair(host, make, map)
    os.truncate(pair.here.memory_fd, HALF)
    reason = pair.finish()
    assert "%d pages" % (HALF // pyvmm.PAGE) in reason, reason
    assert "region 0: its file, which could not be sealed, was truncated" in pair.destination.log()
    assert os.fstat(pair.here.memory_fd).st_size == HALF
    assert os.pread(pair.here.memory_fd, SIZE, 0) == pair.content[:HALF]
    pair.another_guest_moves()


@MAKES
def test_what_is_cut_off_and_lost_is_poisoned_once_and_for_all(host, make):
    """UFFDIO_POISON's EFAULT, behind the file's end, was asked again for ever."""
    pair = Pair(host, make)
    os.truncate(pair.here.memory_fd, HALF)
    pair.source.shut_down()
    pair.destination.wait_for_state("vm1", "paused")

    def poisoned():
        try:
            return pair.destination.call("Poison", id="vm1", confirm_missing_bytes=SIZE)
        except harness.ControlError as error:
            assert "has not failed to answer yet" in error.message
            return None

    harness.eventually(poisoned, "the source is away")
    pair.destination.wait_for_state("vm1", "failed")
