# SPDX-License-Identifier: Apache-2.0
"""libpostcopy speaks for a VMM that is another process: the calls that an adapter makes, in C's
calling convention, against real daemons."""
import ctypes
import errno
import hashlib
import os
import socket
import struct
import threading

import pytest

import foreign
import harness
import pyvmm
from keeper import KeptDaemon

SIZE = 1 << 20
PAUSE, RESUME, VMSTATE, COMPLETE, FAILED = range(1, 6)
RUNNING, PAUSED, WAITING, LOADED, RESUMED, LOADING = range(1, 7)

pytestmark = pytest.mark.skipif(pyvmm.can_userfault() is not None,
                                reason=str(pyvmm.can_userfault()))
LIBRARY = harness.BUILD / "src/libpostcopy/libpostcopy.so"
if b"libasan" in LIBRARY.read_bytes():
    # It would end the process: its runtime has to be there before all else.
    pytest.skip("this libpostcopy is instrumented, and Python is not", allow_module_level=True)
lib = ctypes.CDLL(str(LIBRARY))


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("text", ctypes.c_char * 320)]


class Region(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_int), ("flags", ctypes.c_uint32),
                ("guest_phys_addr", ctypes.c_uint64), ("size", ctypes.c_uint64),
                ("page_size", ctypes.c_uint64), ("host_addr", ctypes.c_void_p),
                ("fd", ctypes.c_int), ("fd_offset", ctypes.c_uint64), ("name", ctypes.c_char_p)]


class Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("vmstate_fd", ctypes.c_int),
                ("vmstate_len", ctypes.c_uint64), ("reason", ctypes.c_char * 320),
                ("n_regions", ctypes.c_uint32), ("region_flags", ctypes.c_uint32 * 64)]


def call(name, *args):
    error = Error()
    code = getattr(lib, "postcopy_" + name)(*args, ctypes.byref(error))
    if code:
        raise OSError(-code, error.text.decode())


class Attachment:
    def __init__(self):
        self.p = ctypes.c_void_p()

    def attach_again(self, role, daemon, pidfd):
        standing = ctypes.c_int()
        call(role + "_attach_again", str(daemon.vmm_path).encode(), b"vm1", pidfd,
             ctypes.byref(self.p), ctypes.byref(standing))
        return standing.value

    def event(self):
        event = Event()
        call("next_event", self.p, harness.DEADLINE_S * 1000, ctypes.byref(event))
        return event

    def say(self, name, *args):
        call(name, self.p, *args)

    def detach(self):
        lib.postcopy_detach(self.p)
        self.p = ctypes.c_void_p()


lib.postcopy_detach.argtypes = [ctypes.c_void_p]


def region(side):
    return Region(pyvmm.MEMFD, 0, 0, SIZE, pyvmm.PAGE, foreign.json.loads(side.told)["addr"],
                  side.memory_fd, 0)


def pidfd_of(host, side):
    fd = os.pidfd_open(side.vmm.pid)
    host.later(lambda: os.close(fd))
    return fd


def test_an_adapter_moves_a_guest_and_comes_again_at_each_step(host):
    source, destination = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address, bulk=False, prefetch=False)
    content = pyvmm.guest_content(SIZE)
    there = foreign.Side(host, source, "source", "vm1", SIZE, content)
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    there_fd, here_fd = pidfd_of(host, there), pidfd_of(host, here)
    # What a VMM has touched before: its own firmware, say.
    os.pwrite(here.memory_fd, b"x" * pyvmm.PAGE, 5 * pyvmm.PAGE)
    a, b = Attachment(), Attachment()
    call("source_attach_for", str(source.vmm_path).encode(), b"vm1", there_fd,
         ctypes.byref(region(there)), 1, ctypes.byref(a.p))
    call("destination_register", here_fd, here.uffds[0], ctypes.byref(region(here)),
         ctypes.c_size_t(1), ctypes.byref(b.p))
    call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm1")
    b.detach()
    destination.call("Start", id="vm1")
    assert a.event().type == PAUSE
    a.detach()
    assert a.attach_again("source", source, there_fd) == RUNNING
    assert a.event().type == PAUSE
    there.ask("stop")
    count = there.ask("count")
    a.say("source_paused", b"count " + count.encode(), ctypes.c_size_t(6 + len(count)))
    assert b.attach_again("destination", destination, here_fd) == WAITING
    event = b.event()
    assert event.type == VMSTATE
    here.ask("load " + os.pread(event.vmstate_fd, 100, 0).hex())
    os.close(event.vmstate_fd)
    b.say("destination_loaded")
    destination.wait_for_state("vm1", "postcopy")
    b.detach()
    assert b.attach_again("destination", destination, here_fd) == LOADED
    here.ask("cont")
    b.say("destination_resumed")
    a.detach()
    source.wait_for_state("vm1", "postcopy")
    assert a.attach_again("source", source, there_fd) == PAUSED
    b.detach()
    assert b.attach_again("destination", destination, here_fd) == RESUMED
    b.detach()
    destination.call("SetLimits", id="vm1", bulk=True)
    destination.wait_for_state("vm1", "complete")
    assert a.event().type == COMPLETE
    # It has ended, and its last word is there still.
    assert b.attach_again("destination", destination, here_fd) == RESUMED
    assert b.event().type == COMPLETE
    seen = harness.eventually(lambda: here.ask("seen"), "the guest has read all of its memory")
    assert seen == hashlib.sha256(int(count).to_bytes(8, "little") + content[8:]).hexdigest()
    a.detach()
    b.detach()


def test_only_the_vmm_can_make_its_userfaultfd(host):
    daemon = host.daemon("destination")
    side = foreign.Side(host, daemon, "destination", "vm1", SIZE, bare=True)
    p = ctypes.c_void_p()
    with pytest.raises(OSError, match="no userfaultfd"):
        call("destination_register", pidfd_of(host, side), -1, ctypes.byref(region(side)),
             ctypes.c_size_t(1), ctypes.byref(p))


def test_a_refused_attach_leaves_memory_as_it_was(host):
    """With the wrong id it may be the memory of a guest that runs."""
    source, destination = host.daemon("source"), host.daemon("destination")
    destination.prepare_destination("vm1", source.address)
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    os.pwrite(here.memory_fd, b"x" * pyvmm.PAGE, 5 * pyvmm.PAGE)
    before = os.pread(here.memory_fd, SIZE, 0)
    b = Attachment()
    call("destination_register", pidfd_of(host, here), here.uffds[0], ctypes.byref(region(here)),
         ctypes.c_size_t(1), ctypes.byref(b.p))
    with pytest.raises(OSError, match="vm2"):
        call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm2")
    assert os.pread(here.memory_fd, SIZE, 0) == before
    call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm1")
    assert os.pread(here.memory_fd, SIZE, 0) == bytes(SIZE)
    b.detach()


def test_what_is_too_much_for_the_daemon_to_discard_is_discarded_here(host):
    """It says so when all else is well, and is asked once more. The daemon is played here; and it is a
    newer one, that says what this library passes over."""
    daemon = host.daemon("destination")
    here = foreign.Side(host, daemon, "destination", "vm1", SIZE, bare=True)
    os.pwrite(here.memory_fd, b"x" * pyvmm.PAGE, 5 * pyvmm.PAGE)
    before, seen = os.pread(here.memory_fd, SIZE, 0), []
    path = host.dir / "played.sock"
    b = Attachment()
    call("destination_register", pidfd_of(host, here), here.uffds[0], ctypes.byref(region(here)),
         ctypes.c_size_t(1), ctypes.byref(b.p))

    def answer(listener):
        for message in (pyvmm.packet(pyvmm.ERROR, struct.pack("<II", errno.EFBIG, 4) + b"much"),
                        pyvmm.packet(pyvmm.ATTACHED)):
            with listener.accept()[0] as sock:
                sock.recv(1 << 16)
                seen.append(os.pread(here.memory_fd, SIZE, 0))
                sock.send(pyvmm.packet(99))
                sock.send(message)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        call("destination_attach_registered", b.p, str(path).encode(), b"vm1")
        thread.join(harness.DEADLINE_S)
    assert seen == [before, bytes(SIZE)]
    b.detach()


def halves(side, *names):
    """Its memory as two regions, of these names; they lie where the first and the second is."""
    regions = (Region * 2)()
    for i, name in enumerate(names):
        regions[i] = region(side)
        regions[i].size = SIZE // 2
        regions[i].name = name
        half = sorted(names).index(name) if side.role == "source" else i
        regions[i].guest_phys_addr = sorted(names).index(name) * SIZE // 2
        regions[i].host_addr += half * SIZE // 2
        regions[i].fd_offset = half * SIZE // 2
    return regions


@pytest.mark.parametrize("kept", [False, True], ids=["", "taken-over"])
def test_regions_are_matched_by_name_in_whatever_order(host, kept):
    """QEMU's RAM blocks come in the order of its devices, which is another at the other side: one
    block's pages came into the other, or the migration was refused."""
    kind = KeptDaemon if kept else harness.Daemon
    source, destination = host.daemon("source", kind=kind), host.daemon("destination", kind=kind)
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    content = pyvmm.guest_content(SIZE)
    there = foreign.Side(host, source, "source", "vm1", SIZE, content)
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    a, b = Attachment(), Attachment()
    call("source_attach_for", str(source.vmm_path).encode(), b"vm1", pidfd_of(host, there),
         halves(there, b"pc.ram", b"vga"), ctypes.c_size_t(2), ctypes.byref(a.p))
    call("destination_register", pidfd_of(host, here), here.uffds[0],
         halves(here, b"vga", b"pc.ram"), ctypes.c_size_t(2), ctypes.byref(b.p))
    call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm1")
    if kept:
        for daemon in (source, destination):
            daemon.crash_and_restart()
    destination.call("Start", id="vm1")
    assert a.event().type == PAUSE
    there.ask("stop")
    count = int(there.ask("count"))
    a.say("source_paused", b"count %d" % count, ctypes.c_size_t(len(b"count %d" % count)))
    event = b.event()
    assert event.type == VMSTATE
    os.close(event.vmstate_fd)
    b.say("destination_loaded")
    b.say("destination_resumed")
    destination.wait_for_state("vm1", "complete")
    content = count.to_bytes(8, "little") + content[8:]
    assert os.pread(here.memory_fd, SIZE, 0) == content[SIZE // 2:] + content[:SIZE // 2]
    a.detach()
    b.detach()


def write_all(fd, data):
    with open(fd, "wb") as file:
        file.write(data)


def test_a_vmstate_by_a_pipe_and_a_guest_that_could_not_run(host):
    """QEMU's vmstate comes by a descriptor; and its "cont" may fail when it is loaded."""
    source, destination = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    there = foreign.Side(host, source, "source", "vm1", SIZE, pyvmm.guest_content(SIZE))
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    a, b = Attachment(), Attachment()
    call("source_attach_for", str(source.vmm_path).encode(), b"vm1", pidfd_of(host, there),
         ctypes.byref(region(there)), ctypes.c_size_t(1), ctypes.byref(a.p))
    call("destination_register", pidfd_of(host, here), here.uffds[0], ctypes.byref(region(here)),
         ctypes.c_size_t(1), ctypes.byref(b.p))
    call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm1")
    destination.call("Start", id="vm1")
    assert a.event().type == PAUSE
    vmstate = os.urandom(3 << 20)
    end, ours = os.pipe()
    writer = threading.Thread(target=write_all, args=(ours, vmstate), daemon=True)
    writer.start()
    a.say("source_paused_fd", end)
    writer.join()
    os.close(end)
    event = b.event()
    assert event.type == VMSTATE and os.pread(event.vmstate_fd, 4 << 20, 0) == vmstate
    os.close(event.vmstate_fd)
    b.say("destination_loaded")
    b.say("destination_could_not_run", b"cont: the disk is locked")
    assert a.event().type == RESUME
    reason = destination.wait_for_state("vm1", "failed")["reason"]
    assert "could not run the guest: cont: the disk is locked" in reason
    a.detach()
    b.detach()


def test_a_name_that_is_missing_is_told_with_both_lists(host):
    """Sizes and addresses are the same: a block's pages would come into another one."""
    source, destination = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    there = foreign.Side(host, source, "source", "vm1", SIZE, pyvmm.guest_content(SIZE))
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    a, b = Attachment(), Attachment()
    call("source_attach_for", str(source.vmm_path).encode(), b"vm1", pidfd_of(host, there),
         halves(there, b"pc.ram", b"vga"), ctypes.c_size_t(2), ctypes.byref(a.p))
    call("destination_register", pidfd_of(host, here), here.uffds[0],
         halves(here, b"pc.ram", b"virtio-gpu"), ctypes.c_size_t(2), ctypes.byref(b.p))
    call("destination_attach_registered", b.p, str(destination.vmm_path).encode(), b"vm1")
    destination.call("Start", id="vm1")
    reason = destination.wait_for_state("vm1", "failed")["reason"]
    assert "pc.ram, vga" in reason and "pc.ram, virtio-gpu" in reason, reason
    assert there.ask("state") == "running"
    a.detach()
    b.detach()


def test_late_memory_is_handed_over_when_the_vmstate_is_read(host):
    """The userfaultfd as Firecracker makes it: with the event REMOVE alone."""
    source, destination = host.daemon("source"), host.daemon("destination")
    source.prepare_source("vm1")
    destination.prepare_destination("vm1", source.address)
    content = pyvmm.guest_content(SIZE)
    there = foreign.Side(host, source, "source", "vm1", SIZE, content)
    here = foreign.Side(host, destination, "destination", "vm1", SIZE, bare=True)
    here_fd = pidfd_of(host, here)
    pyvmm.handshake(here.uffds[0], pyvmm.UFFD_EVENT_REMOVE)
    a, b = Attachment(), Attachment()
    call("source_attach_for", str(source.vmm_path).encode(), b"vm1", pidfd_of(host, there),
         ctypes.byref(region(there)), ctypes.c_size_t(1), ctypes.byref(a.p))
    call("destination_attach_late", str(destination.vmm_path).encode(), b"vm1", here_fd,
         ctypes.byref(b.p))
    destination.call("Start", id="vm1")
    assert a.event().type == PAUSE
    there.ask("stop")
    count = int(there.ask("count"))
    a.say("source_paused", b"count %d" % count, ctypes.c_size_t(len(b"count %d" % count)))
    event = b.event()
    assert event.type == VMSTATE
    here.ask("load " + os.pread(event.vmstate_fd, 100, 0).hex())
    os.close(event.vmstate_fd)
    with pytest.raises(OSError, match="was not handed over yet"):
        b.say("destination_loaded")
    # What the library refuses may be said better.
    with pytest.raises(OSError):
        b.say("destination_memory", here.uffds[0], ctypes.byref(region(here)), ctypes.c_size_t(0))
    b.say("destination_memory", here.uffds[0], ctypes.byref(region(here)), ctypes.c_size_t(1))
    with pytest.raises(OSError, match="already"):
        b.say("destination_memory", here.uffds[0], ctypes.byref(region(here)), ctypes.c_size_t(1))
    b.detach()
    assert b.attach_again("destination", destination, here_fd) == LOADING
    event = b.event()
    assert event.type == VMSTATE
    os.close(event.vmstate_fd)
    b.say("destination_loaded")
    here.ask("cont")
    b.say("destination_resumed")
    destination.wait_for_state("vm1", "complete")
    seen = harness.eventually(lambda: here.ask("seen"), "the guest has read all of its memory")
    assert seen == hashlib.sha256(count.to_bytes(8, "little") + content[8:]).hexdigest()
    a.detach()
    b.detach()
