# SPDX-License-Identifier: Apache-2.0
"""What a confused or hostile VMM sends: refused in one line that names the thing, while the
daemon serves the others on and keeps nothing."""
import errno
import fcntl
import mmap
import os
import re
import socket
import struct

import pytest

import harness
import pyvmm
from harness import eventually
from pyvmm import PAGE, Region
from silent_fs import SilentFile

SIZE = 4 << 20
F_SEAL_FUTURE_WRITE = 0x10


@pytest.fixture
def daemon(host):
    daemon = host.daemon("source")
    daemon.prepare_source("vm1")
    return daemon


@pytest.fixture
def guest_fd():
    fd = pyvmm.memfd(size=SIZE)
    yield fd
    os.close(fd)


def refused(daemon, data, fds=()):
    """Sends one packet on a connection of its own; returns the ERROR's errno and text."""
    before = daemon.resources()["fds"]
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(data, fds)
        code, text = sock.expect_error()
    eventually(lambda: daemon.resources()["fds"] <= before, "the refused descriptors are closed")
    return code, text


def attaches(daemon, migration_id="vm1"):
    """The daemon is unharmed: a good VMM gets what the bad one was refused."""
    pyvmm.SourceVmm(daemon, migration_id, bytes(SIZE)).close()


TOP = 1 << 64

BAD_TABLES = {
    "regions that overlap in guest memory": (
        [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE // 2 - PAGE,
                                   fd_offset=SIZE // 2, host_addr=0x20000000)], "overlap"),
    "regions that overlap in host memory": (
        [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE, fd_offset=SIZE // 2,
                                   host_addr=0x10000000 + PAGE)], "overlap"),
    "regions that share a page of their file": (
        [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE, fd_offset=SIZE // 2 - PAGE,
                                   host_addr=0x20000000)], "0 and 1 overlap in their file"),
    "guest address plus size that overflows": (
        [Region(SIZE, guest_phys_addr=TOP - PAGE)], "region 0.*guest physical"),
    "host address plus size that overflows": (
        [Region(SIZE, host_addr=TOP - PAGE)], "region 0.*host address"),
    "descriptor offset plus size that overflows": (
        [Region(SIZE, fd_offset=TOP - PAGE)], "region 0.*offset"),
    "guest address that is not aligned": (
        [Region(SIZE, guest_phys_addr=1)], "region 0.*guest physical.*multiple"),
    "host address that is not aligned": (
        [Region(SIZE, host_addr=0x10000800)], "region 0.*host.*multiple"),
    "descriptor offset that is not aligned": (
        [Region(SIZE - PAGE, fd_offset=512)], "region 0.*offset.*multiple"),
    "size that is not aligned": ([Region(SIZE - 1)], "region 0.*size.*multiple"),
    "size 0": ([Region(0)], "region 0.*size"),
    "size of all address space": ([Region(TOP - PAGE)], "region 0"),
    "region beyond the descriptor's end": ([Region(SIZE + PAGE)], "region 0.*(descriptor|size)"),
    "offset beyond the descriptor's end": (
        [Region(SIZE, fd_offset=SIZE)], "region 0.*(descriptor|size)"),
    "page size 0": ([Region(SIZE, page_size=0)], "region 0.*page.?size"),
    "page size that memfd has not": ([Region(SIZE, page_size=2 << 20)], "region 0.*page.?size"),
    "page size that no memory has": ([Region(SIZE, page_size=12288)], "region 0.*page.?size"),
    "memory of a kind that is not known": ([Region(SIZE, memory=9)], "region 0.*memory"),
    "memfd that is said to be hugetlb": (
        [Region(SIZE, memory=pyvmm.HUGETLB, page_size=2 << 20)], "region 0"),
    "memfd that is said to be guest_memfd": (
        [Region(SIZE, memory=pyvmm.GUEST_MEMFD)], "region 0"),
    "flags that are not known": ([Region(SIZE, flags=4)], "region 0.*flags"),
    "memfd region without a descriptor": ([Region(SIZE, fd_index=pyvmm.NO_FD)], "descriptor"),
    "descriptor index beyond those sent": ([Region(SIZE, fd_index=7)], "region 0.*descriptor"),
    "no regions": ([], "0 regions"),
    "names out of their order": (
        [Region(SIZE // 2, name="b"), Region(SIZE // 2, guest_phys_addr=SIZE, name="a",
                                             fd_offset=SIZE // 2, host_addr=0x20000000)],
        "region 1.*\"a\".*after \"b\""),
    "a name twice": (
        [Region(SIZE // 2, name="b"), Region(SIZE // 2, guest_phys_addr=SIZE, name="b",
                                             fd_offset=SIZE // 2, host_addr=0x20000000)],
        "region 1.*unique"),
    "a name too long": ([Region(SIZE, name="n" * 256)], "name of a region of 256 bytes"),
    "65 regions": ([Region(PAGE, guest_phys_addr=n * PAGE, host_addr=0x10000000 + n * PAGE,
                           fd_offset=n * PAGE) for n in range(65)], "65 regions"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_region_table_is_refused(daemon, guest_fd, case):
    regions, named = BAD_TABLES[case]
    code, text = refused(daemon, pyvmm.attach(pyvmm.SOURCE, "vm1", regions), [guest_fd])
    assert code in (errno.EINVAL, errno.EPROTO, errno.E2BIG)
    assert re.search(named, text, re.I), text
    attaches(daemon)


def test_regions_that_overlap_in_a_file_that_is_given_twice_are_refused(daemon, guest_fd):
    """Bulk put the source's old bytes over what the guest had written by the other region."""
    again = os.open("/proc/self/fd/%d" % guest_fd, os.O_RDWR)
    regions = [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE, host_addr=0x20000000,
                                         fd_index=1)]
    code, text = refused(daemon, pyvmm.attach(pyvmm.SOURCE, "vm1", regions), [guest_fd, again])
    os.close(again)
    assert code == errno.EINVAL and "0 and 1 overlap in their file" in text
    attaches(daemon)


def pipe_end(host):
    read, write = os.pipe()
    os.close(write)
    return read


def regular_file(host):
    path = host.dir / "regular"
    with open(path, "wb") as out:
        out.truncate(SIZE)
    return os.open(path, os.O_RDWR)


def socket_fd(host):
    return socket.socket().detach()


WRONG_DESCRIPTORS = {
    "regular file": regular_file,
    "pipe": pipe_end,
    "socket": socket_fd,
    "directory": lambda host: os.open(host.dir, os.O_RDONLY),
    "/dev/null": lambda host: os.open("/dev/null", os.O_RDWR),
    "O_PATH descriptor": lambda host: os.open("/dev/null", os.O_PATH),
}


@pytest.mark.parametrize("what", WRONG_DESCRIPTORS)
def test_descriptor_that_is_no_guest_memory_is_refused(host, daemon, what):
    fd = WRONG_DESCRIPTORS[what](host)
    try:
        _, text = refused(daemon, pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE)]), [fd])
    finally:
        os.close(fd)
    assert "region 0" in text
    attaches(daemon)


@pytest.mark.parametrize("count, named", [(0, "descriptor"), (2, "descriptor 1"),
                                          (64, "descriptor 1"), (67, "descriptors"),
                                          (200, "descriptors")])
def test_wrong_number_of_descriptors_is_refused(daemon, guest_fd, count, named):
    code, text = refused(daemon, pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE)]),
                         [guest_fd] * count)
    assert code == errno.EPROTO and named in text
    attaches(daemon)


def good_attach(migration_id="vm1"):
    return pyvmm.attach(pyvmm.SOURCE, migration_id, [Region(SIZE)])


BAD_PACKETS = {
    "garbage": (b"\xde\xad\xbe\xef" * 30, "version"),
    "shorter than a header": (b"\x01\x00\x01", "header"),
    "truncated": (good_attach()[:40], "payload"),
    "truncated with a length that fits": (
        pyvmm.packet(pyvmm.ATTACH, good_attach()[8:40]), "ends within"),
    "longer than it says": (good_attach() + b"x", "payload"),
    "with bytes after the table": (pyvmm.packet(pyvmm.ATTACH, good_attach()[8:] + bytes(5)),
                                   "followed by"),
    "cut within its flags": (pyvmm.packet(pyvmm.ATTACH, good_attach()[8:] + b"x"), "cut short"),
    "oversized": (pyvmm.packet(pyvmm.ATTACH, bytes(25000)), "24576"),
    "of another version": (pyvmm.packet(pyvmm.ATTACH, good_attach()[8:], version=2), "version 2"),
    "of an unknown type": (pyvmm.packet(99), "type 99"),
    "of type 0": (pyvmm.packet(0), "type 0"),
    "with an unknown role": (pyvmm.attach(3, "vm1", [Region(SIZE)]), "role 3"),
    "with an id that climbs out": (good_attach("../vm1"), "migration id"),
    "with an empty id": (good_attach(""), "migration id"),
    "with an id of 65": (good_attach("x" * 65), "migration id"),
    "with a NUL in the id": (good_attach("v\0m"), "NUL"),
    "with an id length of 4 GiB": (
        pyvmm.packet(pyvmm.ATTACH, struct.pack("<IIQI", 1, 1, 0, 0xFFFFFFFF)), "migration id"),
    "of the daemon's own": (pyvmm.packet(pyvmm.PAUSE), "PAUSE|ATTACH"),
    "before ATTACH": (pyvmm.packet(pyvmm.LOADED), "ATTACH"),
}


def test_what_a_newer_library_offers_is_passed_over(daemon, guest_fd):
    """It was cut off for it, and its guest's migration was none any more."""
    before = daemon.resources()["fds"]
    with pyvmm.SourceVmm(daemon, "vm1", bytes(SIZE)) as vmm:
        attached = daemon.resources()["fds"]
        vmm.send(pyvmm.packet(99, b"an offer"), [guest_fd])
        daemon.wait_for_log("unknown message type 99: its libpostcopy is newer than this postcopyd")
        eventually(lambda: daemon.resources()["fds"] <= attached, "its descriptor is closed")
        assert daemon.state("vm1") == "attached"
    eventually(lambda: daemon.resources()["fds"] <= before, "all are closed")


@pytest.mark.parametrize("case", BAD_PACKETS)
def test_bad_packet_is_refused(daemon, guest_fd, case):
    data, named = BAD_PACKETS[case]
    code, text = refused(daemon, data, [guest_fd] if data[:2] == b"\x01\0" and len(data) > 8
                         and case != "of the daemon's own" else ())
    assert code in (errno.EPROTO, errno.EINVAL)
    assert re.search(named, text), text
    attaches(daemon)


def test_two_regions_in_one_memfd_are_served(daemon, guest_fd):
    """Each with a descriptor of its own, as libpostcopy sends them."""
    regions = [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE, fd_offset=SIZE // 2,
                                         host_addr=0x20000000, fd_index=1)]
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", regions), [guest_fd, guest_fd])
        sock.expect(pyvmm.ATTACHED)
    assert daemon.call("Get", id="vm1")["memory_bytes"] == SIZE


def test_descriptor_that_two_regions_share_is_served_or_named(daemon, guest_fd):
    regions = [Region(SIZE // 2), Region(SIZE // 2, guest_phys_addr=SIZE, fd_offset=SIZE // 2,
                                         host_addr=0x20000000)]
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", regions), [guest_fd])
        kind, payload, _ = sock.receive()
    assert kind == pyvmm.ATTACHED or b"region 1" in payload
    attaches(daemon)


def test_unknown_migration_is_named(daemon, guest_fd):
    code, text = refused(daemon, good_attach("vm2"), [guest_fd])
    assert code == errno.ENOENT and "vm2" in text


def test_role_that_the_migration_has_not_is_refused(daemon, guest_fd):
    region = Region(SIZE, fd_index=1, uffd_mode=5)
    code, text = refused(daemon, pyvmm.attach(pyvmm.DESTINATION, "vm1", [region]),
                         [guest_fd, guest_fd])
    assert code and "source" in text


def test_second_attach_is_refused_and_the_first_stays(daemon, guest_fd):
    first = pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    code, text = refused(daemon, good_attach(), [guest_fd])
    assert code == errno.EBUSY and "vm1" in text
    assert daemon.state("vm1") == "attached"
    first.close()


def test_destination_with_a_memfd_for_a_userfaultfd_is_refused(host, guest_fd):
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    region = Region(SIZE, fd_index=1, uffd_mode=5)
    code, text = refused(daemon, pyvmm.attach(pyvmm.DESTINATION, "vm1", [region],
                                              pyvmm.UFFD_FEATURES), [guest_fd, guest_fd])
    assert code and "userfaultfd" in text


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, F_SEAL_FUTURE_WRITE],
                         ids=["F_SEAL_WRITE", "F_SEAL_FUTURE_WRITE"])
def test_destination_memory_that_no_page_can_come_to_is_refused(host, seal):
    """It was attached, and the guest stood still for good at its first page: beyond the point of no
    return."""
    if pyvmm.can_userfault():
        pytest.skip(pyvmm.can_userfault())
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    fd = pyvmm.memfd(size=SIZE)
    if seal == fcntl.F_SEAL_WRITE:
        addr = pyvmm.libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
        uffd = pyvmm.userfaultfd(addr, SIZE, pyvmm.UFFD_MODE_MISSING)
    else:
        addr = pyvmm.map_shared(fd, SIZE)
        uffd = pyvmm.userfaultfd(addr, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    region = Region(SIZE, fd_index=1, uffd_mode=5)
    code, text = refused(daemon, pyvmm.attach(pyvmm.DESTINATION, "vm1", [region],
                                              pyvmm.UFFD_FEATURES), [uffd, fd])
    os.close(uffd)
    os.close(fd)
    assert code == errno.EINVAL and "region 0" in text and "sealed" in text


def test_memfd_that_the_guest_has_as_a_private_mapping_is_no_source(daemon, guest_fd):
    """What the guest had written was not in the file: its pages arrived as they once were."""
    addr = pyvmm.libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE,
                           guest_fd, 0)
    code, text = refused(daemon, pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE, host_addr=addr)]),
                         [guest_fd])
    assert code == errno.EINVAL and "region 0" in text and "MAP_PRIVATE" in text
    addr = pyvmm.map_shared(guest_fd, SIZE)
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(SIZE, host_addr=addr)]), [guest_fd])
        sock.expect(pyvmm.ATTACHED)


def test_source_descriptor_that_is_read_only_is_enough(daemon, guest_fd):
    """It was refused for its file could not be sealed by it."""
    fd = os.open("/proc/self/fd/%d" % guest_fd, os.O_RDONLY)
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(good_attach(), [fd])
        sock.expect(pyvmm.ATTACHED)
    os.close(fd)


@pytest.mark.parametrize("name", ["[userfaultfd]", "anon_inode:[userfaultfd]"])
def test_memfd_that_calls_itself_a_userfaultfd_is_refused(host, guest_fd, name):
    """It was believed, and its bytes were read as the kernel's events. One of them says FORK and
    names a descriptor, which was closed then: of another tenant's memory, say, whose number the
    next attach got, and with it the guest."""
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    impostor = os.memfd_create(name, os.MFD_CLOEXEC)
    region = Region(SIZE, fd_index=1, uffd_mode=5)
    code, text = refused(daemon, pyvmm.attach(pyvmm.DESTINATION, "vm1", [region],
                                              pyvmm.UFFD_FEATURES), [impostor, guest_fd])
    os.close(impostor)
    assert code == errno.EINVAL and "is no userfaultfd" in text
    assert daemon.state("vm1") == "prepared"


@pytest.mark.parametrize("name", ["kvm-gmem", "anon_inode:[kvm-gmem]"])
def test_memfd_that_calls_itself_a_guest_memfd_is_refused(daemon, guest_fd, name):
    impostor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.truncate(impostor, SIZE)
    code, text = refused(daemon, pyvmm.attach(
        pyvmm.SOURCE, "vm1", [Region(SIZE, memory=pyvmm.GUEST_MEMFD)]), [impostor])
    os.close(impostor)
    assert code == errno.EINVAL and "region 0" in text and "KVM_CREATE_GUEST_MEMFD" in text
    attaches(daemon)


@pytest.fixture
def silent(host, daemon):
    """After the daemon has started: no process may start while it is there."""
    directory = host.dir / "silent"
    directory.mkdir()
    file = SilentFile(directory)
    host.later(file.close)
    if file.fd < 0:
        pytest.skip(file.why)
    return file


SILENT = {
    "memfd": pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(1 << 20)]),
    "hugetlb": pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(2 << 20, memory=pyvmm.HUGETLB,
                                                         page_size=2 << 20, host_addr=2 << 30)]),
    "guest_memfd": pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(1 << 20, memory=pyvmm.GUEST_MEMFD)]),
    "anonymous": pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(1 << 20, memory=pyvmm.ANONYMOUS)]),
    "private": pyvmm.attach(pyvmm.SOURCE, "vm1", [Region(1 << 20, memory=pyvmm.GUEST_MEMFD,
                                                         flags=pyvmm.PRIVATE)]),
    "garbage": b"\xde\xad\xbe\xef" * 30,
}


@pytest.mark.parametrize("case", SILENT)
def test_file_of_a_filesystem_that_does_not_answer_hangs_nobody(daemon, silent, case):
    """fstat() of it on the loop was the end of the daemon, beyond SIGKILL; so was close(). The
    filesystem is asked nothing but what the process asks that closes the descriptor."""
    with pyvmm.Socket(daemon.vmm_path) as sock:
        sock.send(SILENT[case], [silent.fd])
        code, _ = sock.expect_error()
    assert code in (errno.EINVAL, errno.EPROTO)
    attaches(daemon)
    assert set(silent.close()) <= {"flush"}


def test_channel_that_is_a_silent_file_hangs_nobody(host, daemon, silent, guest_fd):
    vmm = pyvmm.SourceVmm(daemon, "vm1", bytes(SIZE))
    vmm.send(pyvmm.packet(pyvmm.CHANNEL), [silent.fd])
    vmm.expect_error()
    vmm.close()
    harness.eventually(lambda: daemon.state("vm1") == "prepared", "the VMM has gone")
    assert set(silent.close()) <= {"flush"}


@pytest.mark.parametrize("mode", [0, 2, 8, 0xFFFFFFFF])
def test_destination_with_an_impossible_register_mode_is_refused(host, guest_fd, mode):
    reason = pyvmm.can_userfault()
    if reason:
        pytest.skip(reason)
    daemon = host.daemon("destination")
    daemon.prepare_destination("vm1", "127.0.0.1:9")
    addr = pyvmm.map_shared(guest_fd, SIZE)
    uffd = pyvmm.userfaultfd(addr, SIZE)
    region = Region(SIZE, host_addr=addr, fd_index=1, uffd_mode=mode)
    code, text = refused(daemon, pyvmm.attach(pyvmm.DESTINATION, "vm1", [region],
                                              pyvmm.UFFD_FEATURES), [uffd, guest_fd])
    os.close(uffd)
    assert code and "region 0" in text


@pytest.mark.parametrize("data", [
    pyvmm.packet(pyvmm.PAUSE), pyvmm.packet(pyvmm.LOADED), pyvmm.packet(pyvmm.RESUMED),
    pyvmm.packet(pyvmm.ATTACHED), b"garbage that is no packet",
], ids=["PAUSE", "LOADED", "RESUMED", "ATTACHED", "garbage"])
def test_message_out_of_turn_fails_that_migration_only(daemon, data):
    daemon.prepare_source("vm2")
    other = pyvmm.SourceVmm(daemon, "vm2", pyvmm.guest_content(SIZE))
    vmm = pyvmm.SourceVmm(daemon, "vm1", pyvmm.guest_content(SIZE))
    vmm.send(data)
    _, text = vmm.expect_error()
    assert text
    assert daemon.state("vm2") == "attached"
    other.close()
    vmm.close()


def test_silent_connections_do_not_keep_a_vmm_out(daemon):
    silent = [pyvmm.Socket(daemon.vmm_path) for _ in range(70)]
    attaches(daemon)
    for sock in silent:
        sock.close()
