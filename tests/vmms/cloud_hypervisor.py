#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Cloud Hypervisor 54: its migration protocol on one host, both sides, byte for byte,
in the order of its sources, with the memory, the traps and the ends that go with it.

Limits: there is no KVM, no device and no vCPU. The guest is a thread that counts in its first page
at the source, and reads all of its memory at the destination. Config and State are JSON of this
file's own making, of which memory_manager_data.guest_ram_mappings is as Cloud Hypervisor's. The API
is a socket of one word a packet ("send PATH", "receive PATH postcopy", "pause", "resume") that
stands for ch-remote; "postcopy-missing" is how version 53 trapped. zone_id, hugepages of a Config
and virtio-mem mean nothing here.

    cloud_hypervisor.py API_SOCKET LAYOUT_JSON

LAYOUT_JSON: slots of the guest that runs here, with the seed of its content; "null": none runs.
As in Cloud Hypervisor, the process exits where its fault connection ends while a page is asked for.
"""
import array
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import pathlib
import random
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import pyvmm  # noqa: E402
from pyvmm import PAGE, libc  # noqa: E402

PR_SET_PDEATHSIG = 1
START, CONFIG, STATE, MEMORY, COMPLETE, ABANDON, MEMORY_FD, COMPLETE_PAUSED, PAGE_FAULT = range(1, 10)
OK, ERROR = 1, 2
ROLE_FAULT = 2
VERSION = 0
SHMEM_FEATURES = 1 << 5 | 1 << 10  # MISSING and MINOR
HUGETLB_FEATURES = 1 << 4 | 1 << 9
MISSING_FEATURES = 1 << 4 | 1 << 5
UFFDIO_CONTINUE, UFFDIO_WAKE = 0xC020AA07, 0x8010AA02
FAULT_CONNECTION_TIMEOUT_S = 10


def request(command, length=0, version=0):
    return struct.pack("<HHIQ", command, version, 0, length)


def read_exact(sock, length):
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise EOFError("the peer has closed")
        data += part
    return data


def read_request(sock):
    command, version, _, length = struct.unpack("<HHIQ", read_exact(sock, 16))
    return command, version, length


def respond(sock, status):
    sock.sendall(struct.pack("<HHIQ", status, 0, 0, 0))


def expect_ok(sock):
    status, _, _, length = struct.unpack("<HHIQ", read_exact(sock, 16))
    if status != OK or length:
        raise RuntimeError("the receiver reported an error")


class Memory:
    """The slots, mapped as they are in a memory manager: not one after the other."""

    def __init__(self, slots, fds):
        self.slots = slots
        self.addrs = [pyvmm.map_shared(fd, slot["size"], slot["file_offset"])
                      for slot, fd in zip(slots, fds)]
        self.fds = fds

    def ranges(self):
        return zip(self.slots, self.addrs)

    def read(self, skip=()):
        """All of it, as a guest does, page by page in no order."""
        pages = [(slot["gpa"], addr, at) for slot, addr in self.ranges()
                 for at in range(0, slot["size"], PAGE)]
        random.Random(os.getpid()).shuffle(pages)
        page = ctypes.create_string_buffer(PAGE)
        content = {}
        for gpa, addr, at in pages:
            libc.memcpy(page, addr + at, PAGE)
            content[gpa + at] = page.raw
        return b"".join(content[gpa] for gpa in sorted(content))


class Vm:
    def __init__(self, memory, state, counts):
        self.memory, self.counts = memory, counts
        self.state = state
        self.changed = threading.Condition()
        self.seen = None
        self.vmstate = None
        threading.Thread(target=self._run, daemon=True).start()

    def set_state(self, state):
        with self.changed:
            self.state = state
            self.changed.notify_all()

    def _run(self):
        counter = 0
        while self.counts:
            with self.changed:
                self.changed.wait_for(lambda: self.state == "Running")
                counter += 1
                ctypes.memmove(self.memory.addrs[0], struct.pack("<Q", counter), 8)
            time.sleep(0.001)
        with self.changed:
            self.changed.wait_for(lambda: self.state == "Running")
        self.seen = hashlib.sha256(self.memory.read()).hexdigest()

    def config(self):
        return json.dumps({"vm_config": {"memory": {"shared": True}}, "common_cpuid": [],
                           "memory_manager_data": {"guest_ram_mappings": [
                               {**slot, "zone_id": "mem0", "virtio_mem": False}
                               for slot in self.memory.slots]}}).encode()

    def snapshot(self):
        count = struct.unpack("<Q", ctypes.string_at(self.memory.addrs[0], 8))[0]
        return json.dumps({"id": "vm", "snapshots": {}, "snapshot_data": {"state": count}}).encode()


class Handler:
    """uffd_handler_loop(): faults before prefault, one page at a time."""

    def __init__(self, memory, sock, vmm, minor=True):
        self.memory, self.sock, self.vmm = memory, sock, vmm
        features = HUGETLB_FEATURES | SHMEM_FEATURES if minor else MISSING_FEATURES
        modes = pyvmm.UFFD_MODE_MISSING | (pyvmm.UFFD_MODE_MINOR if minor else 0)
        self.uffd = libc.syscall(pyvmm.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.uffd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        fcntl.ioctl(self.uffd, pyvmm.UFFDIO_API,
                    struct.pack("<QQQ", pyvmm.UFFD_API, features, 0))
        for slot, addr in memory.ranges():
            pyvmm.register(self.uffd, addr, slot["size"], modes)
        self.served = set()
        threading.Thread(target=self._main, daemon=True).start()

    def _main(self):
        try:
            self._loop()
        except (EOFError, OSError, RuntimeError) as error:
            print("UFFD handler exited with error: %s" % error, flush=True)
            os._exit(3)
        # The source is dropped.
        self.sock.shutdown(socket.SHUT_RDWR)
        os.close(self.uffd)
        self.vmm.prefault_complete = True

    def _loop(self):
        cursor = [(slot, addr, page_at) for slot, addr in self.memory.ranges()
                  for page_at in range(0, slot["size"], slot_page_size(slot, self.memory))]
        cursor.reverse()
        gave_up = False
        while True:
            fault = self._read_fault()
            if fault:
                self._resolve(*fault)
                continue
            while cursor and self._key(cursor[-1]) in self.served:
                cursor.pop()
            if not cursor and not gave_up:
                return
            if gave_up:
                time.sleep(0.001)
                continue
            try:
                self._resolve(*cursor[-1])
            except RuntimeError as error:
                print("UFFD prefault: source error: %s" % error, flush=True)
                gave_up = True
                cursor = []

    @staticmethod
    def _key(place):
        slot, _, at = place
        return slot["gpa"] + at

    def _read_fault(self):
        try:
            msg = os.read(self.uffd, 32)
        except BlockingIOError:
            return None
        if msg[0] != 0x12:
            return None
        address = struct.unpack_from("<Q", msg, 16)[0]
        for slot, addr in self.memory.ranges():
            if addr <= address < addr + slot["size"]:
                size = slot_page_size(slot, self.memory)
                return slot, addr, (address - addr) // size * size
        raise RuntimeError("fault outside of any range")

    def _resolve(self, slot, addr, at):
        size = slot_page_size(slot, self.memory)
        # Two writes, as write_to() does.
        self.sock.sendall(request(PAGE_FAULT, 16))
        self.sock.sendall(struct.pack("<QQ", slot["gpa"] + at, size))
        status, _, _, length = struct.unpack("<HHIQ", read_exact(self.sock, 16))
        if status != OK:
            raise RuntimeError("peer returned status %d for PageFault" % status)
        if length:
            raise RuntimeError("unexpected bytes")
        self.vmm.asked += 1
        while True:
            try:
                fcntl.ioctl(self.uffd, UFFDIO_CONTINUE,
                            struct.pack("<QQQq", addr + at, size, 0, 0))
            except FileExistsError:
                fcntl.ioctl(self.uffd, UFFDIO_WAKE, struct.pack("<QQ", addr + at, size))
            except BlockingIOError:
                continue
            break
        self.served.add(slot["gpa"] + at)


def slot_page_size(slot, memory):
    fd = memory.fds[memory.slots.index(slot)]
    return os.fstatvfs(fd).f_bsize


class Vmm:
    def __init__(self):
        self.vm = None
        self.asked = 0
        self.prefault_complete = False
        self.result = "none"
        self.slow_s = 0  # what restoring devices takes
        self.migrating = False

    def boot(self, layout):
        """Memfds without MFD_ALLOW_SEALING; a zone's regions share one."""
        files = {}
        rng = random.Random(layout["seed"])
        for slot in layout["slots"]:
            files[slot["zone"]] = max(files.get(slot["zone"], 0), slot["file_offset"] + slot["size"])
        flags = os.MFD_HUGETLB if layout.get("huge") else 0
        fds = {zone: os.memfd_create("ch_ram", flags) for zone in files}
        for zone, size in files.items():
            os.truncate(fds[zone], size)
        slots = [{key: slot[key] for key in ("slot", "gpa", "size", "file_offset")}
                 for slot in layout["slots"]]
        memory = Memory(slots, [fds[slot["zone"]] for slot in layout["slots"]])
        for slot, addr in memory.ranges():
            # The last quarter was never touched.
            content = rng.randbytes(slot["size"] * 3 // 4)
            ctypes.memmove(addr, content, len(content))
        self.vm = Vm(memory, "Running", True)

    def send(self, path):
        """Vmm::send_migration() with local=on, on its own thread; check_migration() at its end."""
        vm, initial = self.vm, self.vm.state
        self.migrating = True
        try:
            self._send(vm, initial, path)
        except (EOFError, OSError, RuntimeError) as error:
            self.result = "failed: %s" % error
            if initial == "Running" and vm.state == "Paused":
                vm.set_state("Running")
            self.migrating = False
            return
        self.result = "sent"
        os._exit(0)

    def _send(self, vm, initial, path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        sock.sendall(request(START, version=VERSION))
        expect_ok(sock)
        for slot, fd in zip(vm.memory.slots, vm.memory.fds):
            sock.sendall(request(MEMORY_FD, 4))
            sock.sendmsg([struct.pack("<I", slot["slot"])],
                         [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            expect_ok(sock)
        config = vm.config()
        sock.sendall(request(CONFIG, len(config)))
        sock.sendall(config)
        expect_ok(sock)
        if vm.state != "Paused":
            vm.set_state("Paused")
        state = vm.snapshot()
        sock.sendall(request(STATE, len(state)))
        sock.sendall(state)
        expect_ok(sock)
        sock.sendall(request(COMPLETE if initial == "Running" else COMPLETE_PAUSED))
        expect_ok(sock)

    def receive(self, path, mode):
        """vm_receive_migration(): the API does not answer meanwhile."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(128)
        sock = self.receiving = listener.accept()[0]
        try:
            self._receive(listener, sock, mode)
            self.result = "received"
        except (EOFError, OSError, RuntimeError) as error:
            self.vm = None
            self.result = "failed: %s" % error
            try:
                respond(sock, ERROR)
            except OSError:
                pass
        sock.close()
        listener.close()
        os.unlink(path)

    def _receive(self, listener, sock, mode):
        files, state, memory, fault = {}, "Established", None, []
        while True:
            command, version, length = read_request(sock)
            if command == ABANDON:
                raise RuntimeError("abandoned")
            if state == "Established" and command == START:
                if version != VERSION:
                    raise RuntimeError("version %d" % version)
                state = "Started"
            elif state in ("Started", "MemoryFds") and command == MEMORY_FD:
                data, fds, _, _ = socket.recv_fds(sock, length, 1)
                files[struct.unpack("<I", data)[0]] = fds[0]
                state = "MemoryFds"
            elif state == "MemoryFds" and command == CONFIG:
                config = json.loads(read_exact(sock, length))
                slots = [{key: slot[key] for key in ("slot", "gpa", "size", "file_offset")}
                         for slot in config["memory_manager_data"]["guest_ram_mappings"]]
                memory = Memory(slots, [files[slot["slot"]] for slot in slots])
                accept = threading.Thread(target=self._accept, args=(listener, fault), daemon=True)
                accept.start()
                state = "Configured"
            elif state == "Configured" and command == STATE:
                if mode.startswith("postcopy"):
                    accept.join(FAULT_CONNECTION_TIMEOUT_S)
                    if not fault:
                        raise RuntimeError("timed out waiting for the fault connection")
                    Handler(memory, fault[0], self, mode == "postcopy")
                self.vm = Vm(memory, "Paused", False)
                self.vm.vmstate = json.loads(read_exact(sock, length))
                # Restoring devices reads the queues, which are in guest memory.
                libc.memcpy(ctypes.create_string_buffer(PAGE), memory.addrs[-1], PAGE)
                time.sleep(self.slow_s)
                if not mode.startswith("postcopy"):
                    for extra in fault:
                        extra.close()
                state = "StateReceived"
            elif state == "StateReceived" and command == COMPLETE:
                self.vm.set_state("Running")
                respond(sock, OK)
                return
            elif state == "StateReceived" and command == COMPLETE_PAUSED:
                respond(sock, OK)
                return
            else:
                raise RuntimeError("can't handle command %d in state %s" % (command, state))
            respond(sock, OK)

    @staticmethod
    def _accept(listener, fault):
        extra = listener.accept()[0]
        role = struct.unpack("<H", read_exact(extra, 2))[0]
        if role == ROLE_FAULT:
            fault.append(extra)

    def obey(self, word):
        name, *arguments = word.split()
        if name == "send":
            threading.Thread(target=self.send, args=arguments, daemon=True).start()
        elif name == "receive":
            threading.Thread(target=self.receive, args=arguments, daemon=True).start()
        elif name == "pause":
            self.vm.set_state("Paused")
        elif name == "resume":
            self.vm.set_state("Running")
        elif name == "slow":
            self.slow_s = float(arguments[0])
        elif name == "abort":
            # What a wrong vm_config does later; here at once.
            self.receiving.shutdown(socket.SHUT_RDWR)
        elif name == "count":
            return str(struct.unpack("<Q", ctypes.string_at(self.vm.memory.addrs[0], 8))[0])
        elif name == "seen":
            return self.vm and self.vm.seen or ""
        elif name == "hash":
            return hashlib.sha256(self.vm.memory.read()).hexdigest()
        elif name == "vmstate":
            return str(self.vm.vmstate["snapshot_data"]["state"])
        elif name == "asked":
            return str(self.asked)
        elif name == "prefaulted":
            return str(self.prefault_complete)
        elif name == "result":
            return self.result
        return self.vm.state if self.vm else "none"


def serve(vmm, sock):
    while True:
        word = sock.recv(65536).decode()
        if not word:
            return
        sock.send(vmm.obey(word).encode())


def main(api, layout):
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    vmm = Vmm()
    layout = json.loads(layout)
    if layout:
        vmm.boot(layout)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(api)
    listener.listen()
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(vmm, listener.accept()[0]), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
