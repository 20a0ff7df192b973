# SPDX-License-Identifier: Apache-2.0
"""Real QEMUs with guests that know what their memory must hold.

    guest = Guest(host, suite="trixie", memory="tmpfs", vcpus=2)
    source = guest.start("a")
    source.wait_until_ready()
    destination = guest.start("b", incoming=True)
    ... whoever moves it is given source.qmp_path and destination.qmp_path ...
    destination.check(passes=2)

A Guest is what both sides have in common. Memory is "tmpfs" or "hugetlb" (files), or "memfd" (handed
to QEMU as /proc/self/fd/N); accel "tcg" runs Linux, "kvm" the bare guest, which needs no more of KVM
than ring 3. What is missing here raises debian.Unavailable or Missing: reasons to skip.
"""
import atexit
import functools
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

import harness
import linux_guest
import qemu_program
from console import BEAT, PASS, READY, Console
from harness import Failure, eventually
from net_peer import NetPeer
from qmp import Qmp

# Linux boots in TCG, on a machine that has other things to do.
BOOT_DEADLINE_S = 120
PASS_DEADLINE_S = 90
HUGE_PAGE_BYTES = 2 << 20
OVERCOMMIT = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages")
FREE = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
# What the guest has no use for and would only wait for.
KERNEL_WORDS = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr cryptomgr.notests apparmor=0 "
                "no_timer_check tsc=reliable")


class Missing(Exception):
    """What this host does not have; a reason to skip."""


def allow_huge_pages(n):
    """Room for n more, none of it taken before it is used; the limit is left where it is put, for
    another test may have come to need it."""
    try:
        if int(OVERCOMMIT.read_text()) < n:
            OVERCOMMIT.write_text(str(n))
    except OSError as error:
        if not FREE.exists() or int(FREE.read_text()) < n:
            raise Missing("no %d huge pages of 2 MiB, and none to be had: %s" % (n, error)) from None


@functools.lru_cache(None)
def hugetlbfs():
    """A mounted one, or one of our own until we end."""
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        _, path, kind, options, *_ = line.split()
        if kind == "hugetlbfs" and "pagesize=2M" in options.split(",") and os.access(path, os.W_OK):
            return pathlib.Path(path)
    path = tempfile.mkdtemp(prefix="postcopyd-huge-")
    atexit.register(os.rmdir, path)
    done = subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "hugetlbfs", path],
                          capture_output=True, text=True)
    if done.returncode:
        raise Missing("no hugetlbfs with pages of 2 MiB: %s" % done.stderr.strip())
    atexit.register(subprocess.run, ["umount", path])
    return pathlib.Path(path)


@functools.lru_cache(None)
def linux(build):
    """(kernel, initramfs)"""
    directory = tempfile.mkdtemp(prefix="postcopyd-guest-")
    atexit.register(shutil.rmtree, directory)
    return linux_guest.build(build, directory)


class Guest:
    def __init__(self, host, suite="trixie", memory="tmpfs", mib=192, check_mib=64, vcpus=2, accel="tcg",
                 extra=()):
        self.host = host
        self.suite = suite
        self.memory = memory
        self.mib = mib
        self.check_mib = check_mib
        self.vcpus = vcpus
        self.accel = accel
        self.extra = list(extra)
        self.version, self.program = qemu_program.fetch(suite)
        self.progress_gpa = None
        self.peer = None
        if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise Missing("no /dev/kvm")
        if memory == "hugetlb":
            hugetlbfs()
            allow_huge_pages(2 * self.size_bytes // HUGE_PAGE_BYTES)
        if accel == "tcg":
            linux(harness.BUILD)
            self.peer = NetPeer(host.dir / host._name("net"))
            host.later(self.peer.close)

    @property
    def size_bytes(self):
        return self.mib << 20

    def open_memory(self):
        """(descriptor, where QEMU finds it, descriptors to hand to it)"""
        if self.memory == "memfd":
            fd = os.memfd_create("ram")
            path, handed = "/proc/self/fd/%d" % fd, (fd,)
        else:
            directory = "/dev/shm"
            if self.memory == "hugetlb":
                directory = hugetlbfs()
            fd, path = tempfile.mkstemp(prefix="postcopyd-test-", dir=directory)
            self.host.later(lambda: os.unlink(path))
            handed = ()
        self.host.later(lambda: os.close(fd))
        os.ftruncate(fd, self.size_bytes)
        return fd, path, handed

    def guest_words(self):
        if self.accel == "kvm":
            return ["-kernel", harness.BUILD / "src/ctl/bare", "-serial", "chardev:console"]
        kernel, initramfs = linux(harness.BUILD)
        return ["-kernel", kernel, "-initrd", initramfs,
                "-append", "%s check_mib=%d" % (KERNEL_WORDS, self.check_mib),
                "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
                "-device", "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:02",
                "-device", "virtio-balloon-pci,id=balloon"]

    def start(self, stem, incoming=False):
        """Starts a QEMU with it, under a name that begins so."""
        return self.host._started(Qemu(self, self.host._name(stem), incoming))


class Qemu(harness.Process):
    def __init__(self, guest, name, incoming):
        self.guest = guest
        directory = guest.host.dir
        self.qmp_path = directory / (name + ".qmp")
        self.net_path = directory / (name + ".net")
        test_qmp = directory / (name + ".test-qmp")
        self.memory_fd, memory_path, handed = guest.open_memory()
        self.memory_path = memory_path
        self.console = Console(directory / (name + ".console"), name)
        command = [
            guest.program, "-name", name, "-nodefaults", "-display", "none", "-no-reboot",
            "-machine", "q35,memory-backend=ram", "-accel", guest.accel, "-smp", guest.vcpus,
            "-m", guest.mib, "-object", "memory-backend-file,id=ram,share=on,size=%dM,mem-path=%s" % (
                guest.mib, memory_path),
            "-chardev", "socket,id=console,path=%s" % self.console.path,
            "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path,
            "-qmp", "unix:%s,server=on,wait=off" % test_qmp,
        ]
        if guest.peer:
            command += ["-serial", "file:%s" % (directory / (name + ".serial")), "-netdev",
                        "dgram,id=net,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s"
                        % (self.net_path, guest.peer.path)]
        command += [*guest.guest_words(), *guest.extra]
        if incoming:
            command += ["-incoming", "defer"]
        super().__init__(name, command, directory / (name + ".log"), handed)
        self.qmp = self._monitor(test_qmp)

    def _monitor(self, path):
        def connect():
            if self.popen.poll() is not None:
                raise Failure("%s ended with status %d: %s" % (self.name, self.popen.returncode,
                                                               self.log()))
            try:
                return Qmp(path, harness.DEADLINE_S)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
        return eventually(connect, "monitor of %s" % self.name)

    def log(self):
        serial = self.log_path.with_suffix(".serial")
        parts = [super().log(), "\n".join(self.console.lines[-20:])]
        if serial.exists():
            parts.append(serial.read_text(errors="replace"))
        return "\n".join(parts)

    def kill(self):
        super().kill()
        self.console.close()

    def status(self):
        return self.qmp.execute("query-status")["status"]

    def wait_until_ready(self):
        """The guest runs and has begun to check; it is known then where it counts."""
        [match] = self.console.wait(lambda lines: self.console.matches(READY), "ready",
                                    BOOT_DEADLINE_S)
        self.guest.progress_gpa = int(match[3], 16)
        return self

    def progress(self):
        """Pages done by each worker, read from outside: works at once, and allocates nothing."""
        workers = self.guest.vcpus if self.guest.accel == "tcg" else 1
        data = os.pread(self.memory_fd, 64 * workers, self.guest.progress_gpa)
        return [struct.unpack_from("<Q", data, 64 * i)[0] for i in range(workers)]

    def check(self, passes=2, deadline_s=PASS_DEADLINE_S):
        """Every page is right over so many full passes that begin from now on, the clock goes on, and the
        network answers."""
        console = self.console
        workers = self.guest.vcpus if self.guest.accel == "tcg" else 1
        before = len(console.lines)

        def passed(lines):
            done = [PASS.fullmatch(line) for line in lines[before:]]
            # the first pass that ends may have begun before now
            return all(sum(1 for m in done if m and int(m[1]) == worker) > passes
                       for worker in range(workers))
        console.wait(passed, "%d full passes" % passes, deadline_s)
        wrong = [line for line in console.lines if line.startswith("bad ")]
        wrong += [m[0] for m in console.matches(PASS) if int(m[4])]
        if wrong:
            raise Failure("%s has wrong pages: %s" % (self.name, "; ".join(wrong[:8])))
        if self.guest.peer:
            console.wait(lambda lines: any(map(BEAT.fullmatch, lines[before:])), "beat", deadline_s)
            if not self.guest.peer.ping(self.net_path, harness.DEADLINE_S):
                raise Failure("%s answers no ping" % self.name)
