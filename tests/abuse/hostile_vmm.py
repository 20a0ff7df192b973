# SPDX-License-Identifier: Apache-2.0
"""A VMM, or whoever may connect to the VMM sockets, that is up to no good.

    hostile_vmm.py {"source": {"vmm":, "control":}, "destination": {...}, "seed":, "tricks": [...]}
"""
import array
import json
import os
import random
import socket
import sys

import hostile
import pyvmm
from harness import Control
from pyvmm import Region

SIZE = 1 << 20
TOKEN = "e1" * 32


class Target:
    """A daemon, with migrations of each role that are the VMM's own to attach to."""

    def __init__(self, role, paths):
        self.role = role
        self.vmm_path = paths["vmm"]
        self.control_path = paths["control"]
        self.id = "evil-vmm-%s-%d" % (role, os.getuid())

    def prepare(self):
        """Again and again: what nobody attaches to expires."""
        with Control(self.control_path) as control:
            options = {} if self.role == "source" else {"source": "127.0.0.1:9"}
            control.call("Prepare", id=self.id, role=self.role, token=TOKEN, **options)


def eventfd():
    return os.eventfd(0) if hasattr(os, "eventfd") else pyvmm.libc.eventfd(0, 0)


def read_end():
    read, write = os.pipe()
    os.close(write)
    return read


def impostor(name):
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    # As the kernel would announce a FORK, and a descriptor with it.
    os.write(fd, b"\x13" + bytes(7) + bytes([5]) + bytes(23))
    return fd


DESCRIPTORS = [
    read_end, eventfd,
    lambda: socket.socket().detach(),
    lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(),
    lambda: os.open("/dev/null", os.O_RDWR),
    lambda: os.open("/dev/zero", os.O_RDWR),
    lambda: os.open("/", os.O_RDONLY),
    lambda: os.open("/", os.O_PATH),
    lambda: os.open("/proc/self/maps", os.O_RDONLY),
    lambda: pyvmm.memfd(size=SIZE // 2),
    lambda: pyvmm.memfd(size=SIZE + 1),
    lambda: pyvmm.memfd(size=0),
    lambda: pyvmm.sealed_memfd(size=SIZE),
    lambda: impostor("[userfaultfd]"),
    lambda: impostor("anon_inode:[userfaultfd]"),
    lambda: impostor("kvm-gmem"),
]


class Vmm:
    def __init__(self, config):
        self.rng = random.Random(config["seed"])
        self.source, self.destination = (Target(role, config[role])
                                         for role in ("source", "destination"))
        self.silent = hostile.Held(100)
        self.guest = pyvmm.memfd(size=SIZE)
        # Mapped once: the kernel has munmap() wait for whoever reads the userfaultfd.
        self.addr = pyvmm.map_shared(self.guest, SIZE)
        self.turn = 0

    def _target(self):
        return self.rng.choice([self.source, self.destination])

    def _refused(self, target, data, fds):
        with pyvmm.Socket(target.vmm_path) as sock:
            sock.send(data, fds)
            kind, _, _ = sock.receive()
        return "let in" if kind == pyvmm.ATTACHED else "refused"

    def prepare(self):
        for target in (self.source, self.destination):
            target.prepare()

    def wrong_memory(self):
        self.turn += 1
        fd = DESCRIPTORS[self.turn % len(DESCRIPTORS)]()
        memory = self.rng.choice([pyvmm.MEMFD, pyvmm.HUGETLB, pyvmm.GUEST_MEMFD, pyvmm.ANONYMOUS])
        try:
            return self._refused(self.source, pyvmm.attach(
                pyvmm.SOURCE, self.source.id, [Region(SIZE, memory=memory)]), [fd])
        finally:
            os.close(fd)

    def wrong_userfaultfd(self):
        self.turn += 1
        fd = DESCRIPTORS[self.turn % len(DESCRIPTORS)]()
        try:
            return self._refused(self.destination, pyvmm.attach(
                pyvmm.DESTINATION, self.destination.id,
                [Region(SIZE, host_addr=self.addr, fd_index=1, uffd_mode=5)],
                pyvmm.UFFD_FEATURES), [fd, self.guest])
        finally:
            os.close(fd)

    def blocking_userfaultfd(self):
        """A read of it that found nothing would wait for ever; and set so again once it is let in."""
        uffd = pyvmm.userfaultfd(self.addr, SIZE, flags=os.O_CLOEXEC | pyvmm.UFFD_USER_MODE_ONLY)
        try:
            with pyvmm.Socket(self.destination.vmm_path) as sock:
                sock.send(pyvmm.attach(
                    pyvmm.DESTINATION, self.destination.id,
                    [Region(SIZE, host_addr=self.addr, fd_index=1, uffd_mode=5)],
                    pyvmm.UFFD_FEATURES), [uffd, self.guest])
                kind, _, _ = sock.receive()
                os.set_blocking(uffd, True)
                with Control(self.destination.control_path) as control:
                    control.call("Start", id=self.destination.id)
            return "let in" if kind == pyvmm.ATTACHED else "refused"
        finally:
            os.close(uffd)

    def attach_and_detach(self):
        for _ in range(10):
            got = self._refused(self.source, pyvmm.attach(
                pyvmm.SOURCE, self.source.id, [Region(SIZE)]), [self.guest])
        return got

    def silent_attach(self):
        """Connects, and says nothing, more often than one user may."""
        for target in (self.source, self.destination) * 12:
            self.silent.add(pyvmm.Socket(target.vmm_path))

    def channels_without_end(self):
        with pyvmm.Socket(self.source.vmm_path) as sock:
            sock.send(pyvmm.attach(pyvmm.SOURCE, self.source.id, [Region(SIZE)]), [self.guest])
            sock.expect(pyvmm.ATTACHED)
            kept = []
            try:
                for _ in range(200):
                    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    kept.append(ours)
                    sock.send(pyvmm.packet(pyvmm.CHANNEL), [theirs.fileno()])
                    theirs.close()
            finally:
                for ours in kept:
                    ours.close()

    def malformed(self):
        target = self._target()
        good = bytearray(pyvmm.attach(self.rng.choice([1, 2]), target.id, [Region(SIZE)] *
                                      self.rng.randrange(4)))
        for _ in range(self.rng.randrange(1, 8)):
            good[self.rng.randrange(len(good))] = self.rng.randrange(256)
        data = self.rng.choice([bytes(good), bytes(good[:self.rng.randrange(1, len(good))]),
                                self.rng.randbytes(self.rng.randrange(1, 9000))])
        return self._refused(target, data, [self.guest] * self.rng.randrange(3))

    def descriptors_without_end(self):
        with pyvmm.Socket(self._target().vmm_path) as sock:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.guest] * 250))]
            for _ in range(20):
                sock.sock.sendmsg([pyvmm.packet(pyvmm.CHANNEL)], rights)

    def message_out_of_turn(self):
        with pyvmm.Socket(self.source.vmm_path) as sock:
            sock.send(pyvmm.attach(pyvmm.SOURCE, self.source.id, [Region(SIZE)]), [self.guest])
            sock.expect(pyvmm.ATTACHED)
            sock.send(pyvmm.packet(self.rng.randrange(25), self.rng.randbytes(16)))
            sock.receive()


def main():
    config = json.loads(sys.argv[1])
    vmm = Vmm(config)
    hostile.play({name: getattr(vmm, name) for name in config["tricks"]}, per_s=20)


if __name__ == "__main__":
    main()
