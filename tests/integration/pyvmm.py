# SPDX-License-Identifier: Apache-2.0
"""A VMM in Python that speaks the daemon's VMM socket (src/libpostcopy/vmm_wire.h) byte by
byte, so that it can speak it wrongly, too. It has guest memory but no vCPUs."""
import array
import ctypes
import dataclasses
import errno
import fcntl
import mmap
import os
import random
import socket
import struct
import threading

from harness import DEADLINE_S, Failure

PAGE = 4096
ATTACH, ATTACHED, ERROR, PAUSE, PAUSED, RESUME, VMSTATE, LOADED, RESUMED, COMPLETE = range(1, 11)
CHANNEL, ATTRIBUTES, POISONED, COULD_NOT_RUN, MEMORY, VMSTATE_AHEAD = 11, 12, 13, 14, 20, 21
OFFER_SHARDS, SHARDS = 22, 23
NAMES = ["", "ATTACH", "ATTACHED", "ERROR", "PAUSE", "PAUSED", "RESUME", "VMSTATE", "LOADED",
         "RESUMED", "COMPLETE", "CHANNEL", "ATTRIBUTES", "POISONED", "COULD_NOT_RUN",
         "DIRTY_LOG", "LOG_START", "LOG_HARVEST", "LOG_STOP", "HARVESTED", "MEMORY", "VMSTATE_AHEAD",
         "OFFER_SHARDS", "SHARDS"]
SOURCE, DESTINATION = 1, 2
MEMFD, HUGETLB, GUEST_MEMFD, ANONYMOUS = 1, 2, 3, 4
NO_FD = 0xFFFFFFFF
PRIVATE = 1  # a region's flag
WITH_PIDFD, AGAIN, WITH_NAMES, LATE = 1, 2, 4, 8  # ATTACH's flags
# What ATTACHED says of one that has attached again.
STANDS_RUNNING, STANDS_PAUSED, STANDS_WAITING, STANDS_LOADED, STANDS_RESUMED = range(1, 6)
STANDS_LOADING = 6
PACKET_MAX = 24576

SYS_USERFAULTFD = 323
# Of its flags: faults of user mode alone, which needs no privilege.
UFFD_USER_MODE_ONLY = 1
MAP_FIXED = 0x10
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFD_API = 0xAA
UFFD_MODE_MISSING, UFFD_MODE_MINOR = 1, 4
UFFD_EVENT_REMOVE = 1 << 3
# What libpostcopy asks for: the events REMAP, REMOVE, UNMAP; MISSING and MINOR on shmem and hugetlb.
UFFD_FEATURES = 1 << 2 | 1 << 3 | 1 << 6 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


@dataclasses.dataclass
class Region:
    """One row of the table as it travels; the defaults make a good source's one."""

    size: int
    guest_phys_addr: int = 0
    memory: int = MEMFD
    flags: int = 0
    page_size: int = PAGE
    host_addr: int = 0x10000000
    fd_offset: int = 0
    fd_index: int = 0
    uffd_mode: int = 0
    name: str = ""

    def encode(self):
        return struct.pack("<IIQQQQQII", self.memory, self.flags, self.guest_phys_addr, self.size,
                           self.page_size, self.host_addr, self.fd_offset, self.fd_index,
                           self.uffd_mode)


def packet(kind, payload=b"", version=1, length=None):
    return struct.pack("<HHI", kind, version, len(payload) if length is None else length) + payload


def attach(role, migration_id, regions, uffd_features=0, flags=0, kind=ATTACH):
    """ATTACH, or MEMORY, which is the same."""
    flags |= WITH_NAMES if any(region.name for region in regions) else 0
    name = migration_id.encode()
    return packet(kind, struct.pack("<IIQI", role, len(regions), uffd_features, len(name)) +
                  name + b"".join(region.encode() for region in regions) +
                  (struct.pack("<I", flags) if flags or kind == MEMORY else b"") +
                  b"".join(struct.pack("<I", len(region.name)) + region.name.encode()
                           for region in regions if region.name))


def paused(vmstate_len, pause_ns=1000):
    return packet(PAUSED, struct.pack("<QQ", vmstate_len, pause_ns))


def ahead(length):
    return packet(VMSTATE_AHEAD, struct.pack("<Q", length))


def shards(n):
    return packet(SHARDS, struct.pack("<I", n))


def poisoned(ranges):
    """The records of (region, first page, pages)."""
    return b"".join(struct.pack("<IIQQ", region, 0, first * PAGE, n * PAGE)
                    for region, first, n in ranges)


def memfd(content=b"", size=None):
    """A memfd with the content, or of the size, that the daemon may seal."""
    fd = os.memfd_create("test-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, len(content) if size is None else size)
    if content:
        os.pwrite(fd, content, 0)
    return fd


def sealed_memfd(content=b"", size=None):
    """A vmstate as it must be: nobody can change it while it is sent."""
    fd = memfd(content, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK |
                fcntl.F_SEAL_GROW)
    return fd


def guest_content(size, seed=1):
    """Pages that tell each other apart, so that one in another's place is seen."""
    return random.Random(seed).randbytes(size)


def map_shared(fd, size, offset=0):
    """Maps guest memory. It stays mapped: munmap() would wait for the daemon to hear of it."""
    addr = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, offset)
    if addr == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap of guest memory")
    libc.madvise(addr, size, mmap.MADV_DONTFORK)
    return addr


def userfaultfd(addr, size, mode=UFFD_MODE_MISSING | UFFD_MODE_MINOR, features=UFFD_FEATURES,
                flags=os.O_CLOEXEC | os.O_NONBLOCK):
    fd = libc.syscall(SYS_USERFAULTFD, flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    handshake(fd, features)
    register(fd, addr, size, mode)
    return fd


def empty_userfaultfd(features=UFFD_FEATURES):
    """One that watches nothing yet."""
    fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    handshake(fd, features)
    return fd


def handshake(uffd, features):
    fcntl.ioctl(uffd, UFFDIO_API, struct.pack("<QQQ", UFFD_API, features, 0))


def register(uffd, addr, size, mode=UFFD_MODE_MISSING | UFFD_MODE_MINOR):
    fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("<QQQQ", addr, size, mode, 0))


def unregister(uffd, addr, size):
    fcntl.ioctl(uffd, UFFDIO_UNREGISTER, struct.pack("<QQ", addr, size))


def shard_part(n, shard, size, page_size=PAGE, index=0):
    """Which bytes of a region, from and up to, one of n userfaultfds watches (src/util/shards.c)."""
    piece = max(page_size, 2 << 20)
    count = size // piece
    if count < n:
        return (0, size) if index % n == shard else (0, 0)
    return count * shard // n * piece, size if shard + 1 == n else count * (shard + 1) // n * piece


class Socket:
    """A raw connection to a daemon's VMM socket."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(path))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def send(self, data, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def receive(self):
        """(type, payload, descriptors); type 0 at end of file. As a library does that does not know it,
        OFFER_SHARDS is passed over: whether it comes is up to the host's CPUs."""
        while True:
            kind, payload, fds = self.receive_any()
            if kind != OFFER_SHARDS:
                return kind, payload, fds

    def receive_any(self):
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, PACKET_MAX, 8)
        except ConnectionResetError:
            return 0, b"", []
        except TimeoutError:
            raise Failure("the daemon said nothing on the VMM socket in time") from None
        if not data:
            return 0, b"", []
        return struct.unpack_from("<H", data)[0], data[8:], fds

    def expect(self, kind):
        """The next message, which must be of this type. Returns payload and descriptors."""
        got, payload, fds = self.receive()
        if got != kind:
            text = payload[8:].decode() if got == ERROR else ""
            raise Failure("%s where %s was due: %s" % (NAMES[got] or "end of file", NAMES[kind],
                                                       text))
        return payload, fds

    def expect_failure(self):
        """The ERROR that must come next: the migration failed. Returns (errno, text)."""
        payload, _ = self.expect(ERROR)
        code, length = struct.unpack_from("<II", payload)
        text = payload[8:8 + length].decode()
        assert text and "\n" not in text, "not one line: %r" % text
        return code, text

    def expect_error(self):
        """The same, and the daemon hangs up: what was sent made no sense."""
        code, text = self.expect_failure()
        self.expect(0)
        return code, text

    def close(self):
        self.sock.close()


class SourceVmm(Socket):
    """A source guest that stands still: its content is known."""

    def __init__(self, daemon, migration_id, content, vmstate=b"the vmstate", make=memfd):
        """@make: a file of the content, as memfd() makes one."""
        super().__init__(daemon.vmm_path)
        self.vmstate = vmstate
        self.memory_fd = make(content)
        self.send(attach(SOURCE, migration_id, [Region(len(content))]), [self.memory_fd])
        self.expect(ATTACHED)

    def pause(self, poisoned_ranges=()):
        """Waits for PAUSE and answers it."""
        self.expect(PAUSE)
        if poisoned_ranges:
            fd = sealed_memfd(poisoned(poisoned_ranges))
            self.send(packet(POISONED), [fd])
            os.close(fd)
        fd = sealed_memfd(self.vmstate)
        self.send(paused(len(self.vmstate)), [fd])
        os.close(fd)

    def close(self):
        super().close()
        os.close(self.memory_fd)


class AnonymousSourceVmm(SourceVmm):
    """The same of private memory, that the daemon reads by /proc/PID/mem."""

    def __init__(self, daemon, migration_id, content, vmstate=b"the vmstate"):
        Socket.__init__(self, daemon.vmm_path)
        self.vmstate = vmstate
        self.addr = libc.mmap(None, len(content), mmap.PROT_READ | mmap.PROT_WRITE,
                              mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        ctypes.memmove(self.addr, content, len(content))
        self.memory_fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        region = Region(len(content), memory=ANONYMOUS, host_addr=self.addr, fd_offset=self.addr)
        self.send(attach(SOURCE, migration_id, [region]), [self.memory_fd])
        self.expect(ATTACHED)

    def lose(self, unit):
        """A page that can't be read any more; nothing else comes to lie in its place."""
        empty = os.memfd_create("test-empty", os.MFD_CLOEXEC)
        at = libc.mmap(self.addr + unit * PAGE, PAGE, mmap.PROT_READ,
                       mmap.MAP_SHARED | MAP_FIXED, empty, 0)
        assert at == self.addr + unit * PAGE
        os.close(empty)


class DestinationVmm(Socket):
    """Empty guest memory, registered; what arrives is looked at through its descriptor.
    populate(fd, addr, size), if given, makes it what it must not be, and says nothing of it."""

    UFFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

    def __init__(self, daemon, migration_id, size, populate=None, make=memfd):
        super().__init__(daemon.vmm_path)
        self.size = size
        self.memory_fd = make(size=size)
        self.addr = map_shared(self.memory_fd, size)
        if populate:
            populate(self.memory_fd, self.addr, size)
        self.uffd = userfaultfd(self.addr, size, flags=self.UFFD_FLAGS)
        region = Region(size, host_addr=self.addr, fd_index=1,
                        uffd_mode=UFFD_MODE_MISSING | UFFD_MODE_MINOR)
        self.send(attach(DESTINATION, migration_id, [region], UFFD_FEATURES),
                  [self.uffd, self.memory_fd])
        self.await_attached()

    def await_attached(self):
        self.expect(ATTACHED)

    def load(self):
        """Takes the VMSTATE and says LOADED and RESUMED. Returns the vmstate."""
        payload, fds = self.expect(VMSTATE)
        length = struct.unpack("<Q", payload)[0]
        vmstate = os.pread(fds[0], length, 0)
        os.close(fds[0])
        self.send(packet(LOADED))
        self.send(packet(RESUMED))
        return vmstate

    def touch(self, unit):
        """Reads a page in a thread, as a vCPU would. Returns [the thread, its page]."""
        page = ctypes.create_string_buffer(PAGE)
        # libc's memcpy() runs without the interpreter's lock: the fault stops only this thread.
        thread = threading.Thread(target=libc.memcpy, daemon=True,
                                  args=(page, self.addr + unit * PAGE, PAGE))
        thread.start()
        return thread, page

    def read_by_kernel(self, unit):
        """Reads a page as the kernel does for a system call: where a vCPU would get SIGBUS this
        raises OSError."""
        fd = memfd(size=PAGE)
        try:
            if libc.pwrite(fd, self.addr + unit * PAGE, PAGE, 0) != PAGE:
                raise OSError(ctypes.get_errno(), "page %d" % unit)
            return os.pread(fd, PAGE, 0)
        finally:
            os.close(fd)

    def wrong_pages(self, content):
        """Pages that are neither absent (a hole reads as zeroes) nor what they must be."""
        here = os.pread(self.memory_fd, self.size, 0)
        return [at // PAGE for at in range(0, self.size, PAGE)
                if here[at:at + PAGE] not in (content[at:at + PAGE], bytes(PAGE))]

    def close(self):
        super().close()
        if self.uffd >= 0:
            os.close(self.uffd)
            os.close(self.memory_fd)
            self.uffd = -1


class DividedVmm(DestinationVmm):
    """A destination that divides its memory among as many userfaultfds as it is offered, as libpostcopy
    does, and says so when it is told to."""

    def await_attached(self):
        self.offer = self.expect_offer()
        self.expect(ATTACHED)

    def expect_offer(self):
        kind, payload, _ = self.receive_any()
        if kind != OFFER_SHARDS:
            raise Failure("%s where OFFER_SHARDS was due" % (NAMES[kind] or "end of file"))
        return struct.unpack("<I", payload)[0]

    def divide(self, n=None):
        n = n or self.offer
        self.shards = [empty_userfaultfd() for _ in range(n - 1)]
        for shard, uffd in enumerate(self.shards, 1):
            begin, end = shard_part(n, shard, self.size)
            unregister(self.uffd, self.addr + begin, end - begin)
            register(uffd, self.addr + begin, end - begin)

    def say_shards(self):
        self.send(shards(len(self.shards) + 1), self.shards)

    def units_of_all(self, n):
        """A page of each part, and its last one."""
        parts = [shard_part(n, shard, self.size) for shard in range(n)]
        return [unit for begin, end in parts for unit in ((begin // PAGE) + 3, end // PAGE - 1)]

    def close(self):
        super().close()
        for uffd in getattr(self, "shards", ()):
            os.close(uffd)
        self.shards = []


def can_userfault():
    """Whether this process may create a userfaultfd; the reason why not, or None."""
    fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return "userfaultfd: %s" % errno.errorcode[ctypes.get_errno()]
    os.close(fd)
    return None
