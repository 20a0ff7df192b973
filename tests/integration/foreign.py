#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A VMM that knows nothing of postcopyd, and the adapter that speaks for it: two processes each, as
with QEMU. The VMM obeys a monitor socket (one word a packet); its guest without vCPUs counts in its
first page at the source, and reads all of its memory at the destination, in no order.

    foreign.py vmm ROLE SIZE MONITOR MEMORY_FD UFFD_SOCKET_FD [bare]
    foreign.py adapter ROLE DAEMON_SOCKET ID VMM_PID SIZE MONITOR VMM_JSON again|new step|run FD...

An adapter says on stdout how far it has come; with "step" it waits for a line before it goes on.
"""
import ctypes
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import harness
import pyvmm
from pyvmm import PAGE

PR_SET_PDEATHSIG = 1
BOTH_MODES = pyvmm.UFFD_MODE_MISSING | pyvmm.UFFD_MODE_MINOR


class Guest:
    def __init__(self, role, addr, size):
        self.role, self.addr, self.size = role, addr, size
        self.running = threading.Event()
        self.slow_s = 0  # between two pages
        self.lock = threading.Lock()
        self.seen = None
        self.vmstate = b"nothing"
        self.state = "running" if role == "source" else "incoming"
        if role == "source":
            self.running.set()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        counter = 0
        pages = list(range(0, self.size, PAGE))
        random.Random(os.getpid()).shuffle(pages)
        page = ctypes.create_string_buffer(PAGE)
        while self.role == "source":
            self.running.wait()
            with self.lock:
                if self.running.is_set():
                    counter += 1
                    ctypes.memmove(self.addr, struct.pack("<Q", counter), 8)
            time.sleep(0.001)
        self.running.wait()
        content = {}
        for at in pages:
            pyvmm.libc.memcpy(page, self.addr + at, PAGE)
            content[at] = page.raw
            time.sleep(self.slow_s)
        self.seen = hashlib.sha256(b"".join(content[at] for at in sorted(content))).hexdigest()

    def obey(self, word):
        name, _, argument = word.partition(" ")
        if name == "stop":
            with self.lock:
                self.running.clear()
            self.state = "stopped"
        elif name == "load":
            if self.state != "incoming":
                return "it is " + self.state
            self.vmstate = bytes.fromhex(argument)
            self.state = "stopped"
        elif name == "cont":
            if self.role == "destination" and self.vmstate == b"nothing":
                return "nothing is loaded"
            self.state = "running"
            self.running.set()
        elif name == "slow":
            self.slow_s = float(argument)
        elif name == "count":
            return str(struct.unpack("<Q", ctypes.string_at(self.addr, 8))[0])
        elif name == "seen":
            return self.seen or ""
        elif name == "vmstate":
            return self.vmstate.hex()
        return self.state


def serve(guest, sock):
    while True:
        word = sock.recv(65536).decode()
        if not word:
            return
        sock.send(("bye" if word == "quit" else guest.obey(word)).encode())
        if word == "quit":
            os._exit(0)


def vmm(role, size, monitor, memory_fd, uffd_sock, bare):
    pyvmm.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    size = int(size)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(monitor)
    listener.listen()
    addr = pyvmm.map_shared(int(memory_fd), size)
    uffd = -1
    if role == "destination" and bare:
        uffd = pyvmm.libc.syscall(pyvmm.SYS_USERFAULTFD, os.O_CLOEXEC)
    elif role == "destination":
        uffd = pyvmm.userfaultfd(addr, size)
    told = socket.socket(fileno=int(uffd_sock))
    socket.send_fds(told, [json.dumps({"addr": addr}).encode()], [uffd] if uffd >= 0 else [])
    guest = Guest(role, addr, size)
    while True:
        threading.Thread(target=serve, args=(guest, listener.accept()[0]), daemon=True).start()


class Monitor:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))

    def ask(self, word):
        self.sock.send(word.encode())
        return self.sock.recv(65536).decode()


class Adapter(pyvmm.Socket):
    """One that attaches for another process."""

    def __init__(self, path, role, migration_id, pidfd):
        super().__init__(path)
        self.sock.settimeout(None)
        self.role, self.id, self.pidfd = role, migration_id, pidfd
        self.kind = pyvmm.SOURCE if role == "source" else pyvmm.DESTINATION

    def attach(self, size, addr, fds):
        source = self.role == "source"
        region = pyvmm.Region(size, host_addr=addr, fd_index=0 if source else 1,
                              uffd_mode=0 if source else BOTH_MODES)
        self.send(pyvmm.attach(self.kind, self.id, [region],
                               0 if source else pyvmm.UFFD_FEATURES, pyvmm.WITH_PIDFD),
                  [*fds, self.pidfd])
        self.expect(pyvmm.ATTACHED)

    def attach_again(self):
        """Returns where it stands."""
        self.send(pyvmm.attach(self.kind, self.id, [], 0, pyvmm.WITH_PIDFD | pyvmm.AGAIN),
                  [self.pidfd])
        payload, _ = self.expect(pyvmm.ATTACHED)
        return struct.unpack("<I", payload)[0]


def step(name, wait):
    print(name, flush=True)
    if wait:
        sys.stdin.readline()


def speak_for_source(a, monitor, wait):
    while True:
        kind, payload, _ = a.receive()
        if kind == pyvmm.PAUSE:
            step("pause", wait)
            monitor.ask("stop")
            step("stopped", wait)
            vmstate = b"count %s" % monitor.ask("count").encode()
            fd = pyvmm.sealed_memfd(vmstate)
            a.send(pyvmm.paused(len(vmstate)), [fd])
            os.close(fd)
            step("paused", wait)
        elif kind == pyvmm.RESUME:
            monitor.ask("cont")
            step("resume", wait)
            return
        elif kind == pyvmm.COMPLETE:
            step("complete", wait)
            monitor.ask("quit")
            return
        else:
            step("error %s" % payload[8:].decode(), wait)
            return


def run_guest(a, monitor, wait):
    answer = monitor.ask("cont")
    assert answer == "running", answer
    step("running", wait)
    a.send(pyvmm.packet(pyvmm.RESUMED))
    step("resumed", wait)


def speak_for_destination(a, monitor, standing, wait):
    if standing == pyvmm.STANDS_LOADED:
        run_guest(a, monitor, wait)
    while True:
        kind, payload, fds = a.receive()
        if kind == pyvmm.VMSTATE:
            step("vmstate", wait)
            if monitor.ask("state") == "incoming":
                monitor.ask("load " + os.pread(fds[0], 65536, 0).hex())
            step("loading", wait)
            a.send(pyvmm.packet(pyvmm.LOADED))
            step("loaded", wait)
            run_guest(a, monitor, wait)
        elif kind == pyvmm.COMPLETE:
            step("complete", wait)
            return
        else:
            step("error %s" % payload[8:].decode(), wait)
            return


def adapter(role, path, migration_id, pid, size, monitor, told, again, stepping, *fds):
    pyvmm.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    a = Adapter(path, role, migration_id, os.pidfd_open(int(pid)))
    standing = 0
    if again == "again":
        standing = a.attach_again()
    else:
        a.attach(int(size), json.loads(told)["addr"], [int(fd) for fd in fds])
    wait = stepping == "step"
    step("attached %d" % standing, wait)
    if role == "source":
        speak_for_source(a, Monitor(monitor), wait)
    else:
        speak_for_destination(a, Monitor(monitor), standing, wait)


class Side:
    """A VMM and its adapter, as a test sees them."""

    def __init__(self, host, daemon, role, migration_id, size, content=b"", bare=False):
        """@bare: its userfaultfd is as the system call has made it."""
        self.host, self.daemon, self.role, self.id, self.size = (host, daemon, role, migration_id,
                                                                 size)
        self.memory_fd = pyvmm.memfd(content, size)
        self.monitor_path = host.dir / (role + "-" + migration_id + ".monitor")
        ours, theirs = socket.socketpair()
        self.vmm = subprocess.Popen(
            [sys.executable, __file__, "vmm", role, str(size), str(self.monitor_path),
             str(self.memory_fd), str(theirs.fileno()), "bare" if bare else ""],
            pass_fds=[self.memory_fd, theirs.fileno()])
        theirs.close()
        ours.settimeout(harness.DEADLINE_S)
        told, self.uffds, _, _ = socket.recv_fds(ours, 4096, 1)
        self.told = told.decode()
        ours.close()
        self.adapter = None
        host.later(self.close)

    def start_adapter(self, again=False, stepping=False):
        fds = [*self.uffds, self.memory_fd]
        self.adapter = subprocess.Popen(
            [sys.executable, __file__, "adapter", self.role, str(self.daemon.vmm_path), self.id,
             str(self.vmm.pid), str(self.size), str(self.monitor_path), self.told,
             "again" if again else "new", "step" if stepping else "run", *map(str, fds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds)
        self.lines = harness.Lines(self.adapter.stdout.fileno(), self.role + " adapter")
        return self

    def step(self):
        """How far it has come; None: it has ended."""
        return self.lines.next(time.monotonic() + harness.DEADLINE_S)

    def go_on(self):
        try:
            self.adapter.stdin.write(b"\n")
            self.adapter.stdin.flush()
        except BrokenPipeError:
            pass

    def kill_adapter(self):
        self.adapter.kill()
        self.adapter.wait()
        self.adapter.stdin.close()
        self.adapter.stdout.close()

    def ask(self, word):
        return Monitor(self.monitor_path).ask(word)

    def close(self):
        if self.adapter and self.adapter.poll() is None:
            self.kill_adapter()
        self.vmm.kill()
        self.vmm.wait()
        for fd in [self.memory_fd, *self.uffds]:
            os.close(fd)
        self.uffds = []


if __name__ == "__main__":
    {"vmm": vmm, "adapter": adapter}[sys.argv[1]](*sys.argv[2:])
