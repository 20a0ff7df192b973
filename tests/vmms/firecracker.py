#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Firecracker (1.17), for hosts that have none.

As the real one: the API's paths and answers that are needed here, one thread for the API and what it
asks for; a snapshot's memory file is not truncated where it has its size; on load it connects to
mem_backend's socket and sends one message, a JSON array that nothing ends with both page sizes in
bytes, and a non-blocking userfaultfd with the event REMOVE alone, registered MISSING over private
anonymous memory; the load itself writes to two pages, and the API hangs until they are there; the
socket stays open; where nobody listens it answers 400 and exits; a balloon gives back 1 MiB at a
time, and sleeps while its event is unread; with huge pages it gives back nothing.

Not as the real one: no KVM. The guest is a thread that writes a counter while it runs, and at the
destination reads all memory, in no order. The state file is this program's own. Memory has as many
regions as it is told (--regions), not a hole at 3 GiB; nothing is ever unplugged.

    firecracker.py --api-sock PATH [--regions MIB,MIB...] [--seed N] [--huge] [--guest-waits PATH]
                   [--jail DIR --uid N]

With --jail it is as the jailer leaves a Firecracker: DIR is its root, which all paths then are in, N its user and
group, and it makes its userfaultfd by DIR/dev/userfaultfd. (The real one has namespaces and cgroups of its own, too.)

With --regions it boots a guest at once. A guest that has come reads nothing while PATH exists. What the guest sees it says on stdout, as JSON.
"""
import argparse
import codecs
import ctypes
import fcntl
import hashlib
import http.server
import json
import mmap
import os
import pathlib
import random
import socket
import socketserver
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))

import pyvmm  # noqa: E402

MIB = 1 << 20
HUGE = 2 * MIB
MAP_HUGETLB, MAP_HUGE_2MB = 0x40000, 21 << 26
MADV_DONTNEED = 4
USERFAULTFD_IOC_NEW = 0xaa00


def guest_content(size, seed):
    """Of each 2 MiB the last 64 KiB are zero, and all of every fourth."""
    content = bytearray(pyvmm.guest_content(size, seed))
    for at in range(0, size, HUGE):
        first = at if at // HUGE % 4 == 3 else at + HUGE - 65536
        content[first:at + HUGE] = bytes(at + HUGE - first)
    return bytes(content)


def make_userfaultfd():
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return pyvmm.libc.syscall(pyvmm.SYS_USERFAULTFD, flags)
    uffd = fcntl.ioctl(device, USERFAULTFD_IOC_NEW, flags)
    os.close(device)
    return uffd


def enter_jail(path, uid):
    for name in ("ascii", "latin-1", "idna"):  # of files that are not there then
        codecs.lookup(name)
    os.chroot(path)
    os.chdir("/")
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.umask(0o077)


class Fault(Exception):
    pass


class MicroVm:
    def __init__(self):
        self.state = "Not started"
        self.regions = []  # (address, bytes, offset in the memory file)
        self.page_size = pyvmm.PAGE
        self.seed = self.count = self.balloon = 0
        self.going = threading.Event()
        self.lock = threading.Lock()
        self.sock = self.uffd = None
        self.waits = None

    def make_memory(self, sizes, huge):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        flags |= MAP_HUGETLB | MAP_HUGE_2MB if huge else 0
        self.page_size = HUGE if huge else pyvmm.PAGE
        offset = 0
        for size in sizes:
            # Alone, so that no two are one mapping.
            addr = pyvmm.libc.mmap(None, size + HUGE, 0,
                                   mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
            addr = (addr + HUGE - 1) & ~(HUGE - 1)
            got = pyvmm.libc.mmap(addr, size, mmap.PROT_READ | mmap.PROT_WRITE,
                                  flags | pyvmm.MAP_FIXED, -1, 0)
            if got != addr:
                raise Fault("no memory: %s" % os.strerror(ctypes.get_errno()))
            self.regions.append((addr, size, offset))
            offset += size

    def devices(self):
        """What the load itself touches."""
        addr, size, _ = self.regions[-1]
        return [self.regions[0][0] + pyvmm.PAGE, addr + size - pyvmm.PAGE]

    def size(self):
        return sum(size for _, size, _ in self.regions)

    def boot(self, sizes, seed, huge):
        self.seed = seed
        self.make_memory(sizes, huge)
        content = guest_content(self.size(), seed)
        for addr, size, offset in self.regions:
            ctypes.memmove(addr, content[offset:offset + size], size)
        self.state = "Running"
        self.going.set()
        threading.Thread(target=self.write, daemon=True).start()

    def write(self):
        while True:
            self.going.wait()
            with self.lock:
                if self.going.is_set():
                    self.count += 1
                    ctypes.memmove(self.regions[0][0], struct.pack("<Q", self.count), 8)
            time.sleep(0.001)

    def read_all(self):
        """What a guest sees that comes from elsewhere."""
        self.going.wait()
        while self.waits and os.path.exists(self.waits):
            time.sleep(0.01)
        page = ctypes.create_string_buffer(pyvmm.PAGE)
        places = [(offset + at, addr + at) for addr, size, offset in self.regions
                  for at in range(0, size, pyvmm.PAGE)]
        random.shuffle(places)
        content = {}
        for offset, addr in places:
            pyvmm.libc.memcpy(page, addr, pyvmm.PAGE)
            content[offset] = page.raw
        seen = hashlib.sha256(b"".join(content[at] for at in sorted(content))).hexdigest()
        print(json.dumps({"seen": seen, "count": struct.unpack_from("<Q", content[0])[0],
                          "vmstate": self.count}), flush=True)
        self.write()

    def set_state(self, state):
        with self.lock:
            if state == "Paused" and self.state == "Running":
                self.going.clear()
                self.state = "Paused"
            elif state == "Resumed" and self.state == "Paused":
                self.state = "Running"
                self.going.set()
            else:
                raise Fault("The requested operation is not supported in %s state" % self.state)

    def create(self, request):
        if self.state != "Paused":
            raise Fault("Cannot create a snapshot of a microVM that is not paused")
        fd = os.open(request["mem_file_path"], os.O_WRONLY | os.O_CREAT)
        if os.fstat(fd).st_size != self.size():
            os.ftruncate(fd, 0)
        os.ftruncate(fd, self.size())
        for addr, size, offset in self.regions:
            os.pwrite(fd, ctypes.string_at(addr, size), offset)
        os.close(fd)
        with open(request["snapshot_path"], "w", encoding="ascii") as file:
            json.dump({"devices": [ctypes.string_at(addr, 1)[0] for addr in self.devices()],
                       "sizes": [size for _, size, _ in self.regions], "count": self.count,
                       "huge": self.page_size == HUGE}, file)

    def load(self, request):
        if self.state != "Not started":
            raise Fault("Loading a microVM snapshot not supported after configuring or starting")
        with open(request["snapshot_path"], encoding="ascii") as file:
            state = json.load(file)
        backend = request["mem_backend"]
        assert backend["backend_type"] == "Uffd"
        self.count = state["count"]
        self.make_memory(state["sizes"], state["huge"])
        uffd = make_userfaultfd()
        pyvmm.handshake(uffd, pyvmm.UFFD_EVENT_REMOVE)
        for addr, size, _ in self.regions:
            pyvmm.register(uffd, addr, size, pyvmm.UFFD_MODE_MISSING)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(backend["backend_path"])
        table = [{"base_host_virt_addr": addr, "size": size, "offset": offset,
                  "page_size": self.page_size, "page_size_kib": self.page_size}
                 for addr, size, offset in self.regions]
        socket.send_fds(self.sock, [json.dumps(table, separators=(",", ":")).encode()], [uffd])
        self.uffd = uffd
        # Writes of what is there: nothing is to differ for it.
        for addr, byte in zip(self.devices(), state["devices"]):
            pyvmm.libc.memset(addr, byte, 1)
        self.state = "Paused"
        threading.Thread(target=self.read_all, daemon=True).start()
        if request.get("resume_vm"):
            self.set_state("Resumed")

    def inflate(self, request):
        """From the end of the memory on, on the thread that serves the API."""
        addr, size, _ = self.regions[-1]
        while self.balloon < request["amount_mib"]:
            self.balloon += 1
            if self.page_size == pyvmm.PAGE:
                pyvmm.libc.madvise(addr + size - self.balloon * MIB, MIB, MADV_DONTNEED)

    def config(self):
        return {"machine-config": {"mem_size_mib": self.size() // MIB, "vcpu_count": 1}}


class Handler(http.server.BaseHTTPRequestHandler):
    vm = None

    def answer(self, status, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do(self):
        length = int(self.headers.get("Content-Length", 0))
        request = json.loads(self.rfile.read(length)) if length else {}
        calls = {("GET", "/"): lambda: {"id": "stand-in", "state": self.vm.state,
                                        "vmm_version": "1.17.0-dev", "app_name": "Firecracker"},
                 ("GET", "/vm/config"): self.vm.config,
                 ("PATCH", "/vm"): lambda: self.vm.set_state(request["state"]),
                 ("PUT", "/snapshot/create"): lambda: self.vm.create(request),
                 ("PUT", "/snapshot/load"): lambda: self.vm.load(request),
                 ("PATCH", "/balloon"): lambda: self.vm.inflate(request)}
        call = calls.get((self.command, self.path))
        try:
            if not call:
                raise Fault("Invalid request method and/or path: %s %s" % (self.command, self.path))
            body = call()
        except (Fault, OSError) as why:
            self.answer(400, {"fault_message": str(why)})
            if self.path == "/snapshot/load":
                self.wfile.flush()
                os._exit(1)
            return
        self.answer(204 if body is None else 200, body)

    do_GET = do_PUT = do_PATCH = do

    def address_string(self):
        return ""

    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--api-sock", required=True)
    parser.add_argument("--regions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--huge", action="store_true")
    parser.add_argument("--guest-waits", metavar="PATH")
    parser.add_argument("--jail", metavar="DIR")
    parser.add_argument("--uid", type=int, metavar="N")
    options = parser.parse_args()
    if options.jail:
        enter_jail(options.jail, options.uid)
    pyvmm.libc.prctl(1, 9)  # it ends with the test
    Handler.vm = MicroVm()
    Handler.vm.waits = options.guest_waits
    if options.regions:
        Handler.vm.boot([int(size) * MIB for size in options.regions.split(",")], options.seed,
                        options.huge)
    with socketserver.UnixStreamServer(options.api_sock, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
