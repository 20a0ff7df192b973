# SPDX-License-Identifier: Apache-2.0
"""Two daemons and a guest with real vCPUs on its way between them, and who watches that it is whole
in the end and has never run twice."""
import glob
import os
import random
import signal
import struct
import threading
import time

import pytest

import harness
from keeper import KeptDaemon
from link import ADDRESSES
from proxy import Proxy
from recoveries import recoveries
from test_migrate import assert_guest_runs_on

MEMORY = "64M"
PAGES = (64 << 20) // 4096
# So that it takes a second or two: there is time for something to break.
BULK_BYTES_PER_S = 48 << 20
# A fault lasts up to 10 s, and what it broke must be found and mended.
DEADLINE_S = 90


OVER = ("complete", "failed", "cancelled")

# Where things lie in a guest's memory (src/minivmm/guest/abi.h).
MEMORY_BYTES = PAGES * 4096
BOOT, VCPU, VCPU_STRIDE, SPARE = 0x180000, 0x200000, 0x10000, 0x380000
# In a vCPU's block: accesses before the pause at the source, and since; whether that has been.
ACCESSES_BEFORE, ACCESSES_SINCE, PHASE = 0, 5408, 10824


class Memory:
    """A VMM's guest memory, looked at from outside."""

    def __init__(self, vmm):
        self.fd = os.open("/proc/%d/mem" % vmm.pid, os.O_RDONLY)
        self.start = next(start for start in self._candidates(vmm.pid) if self._is_guest(start))

    @staticmethod
    def _candidates(pid):
        """A neighbour of its kind may be one with it in the kernel's eyes; and where several
        userfaultfds watch it, it is as many mappings, one behind the other."""
        with open("/proc/%d/maps" % pid) as maps:
            ranges = [[int(at, 16) for at in line.split()[0].split("-")] for line in maps]
        for i, (start, end) in enumerate(ranges):
            for later_start, later_end in ranges[i + 1:]:
                if later_start != end:
                    break
                end = later_end
            if end - start >= MEMORY_BYTES:
                yield from (start, end - MEMORY_BYTES)

    def _is_guest(self, start):
        try:
            return struct.unpack("<Q", os.pread(self.fd, 8, start + BOOT))[0] == MEMORY_BYTES
        except OSError:
            return False

    def read(self, offset, length):
        """None where the process has ended."""
        return os.pread(self.fd, length, self.start + offset) or None

    def close(self):
        os.close(self.fd)


class Witness(threading.Thread):
    """Sees whether the source's guest works on after it has been paused: by its own counters,
    whatever its VMM says."""

    INTERVAL_S = 0.005

    def __init__(self, vmm, vcpus):
        super().__init__(daemon=True)
        self.memory = Memory(vmm)
        self.vcpus = vcpus
        self.seen_paused = False
        self.ran_on = False
        self.stopping = threading.Event()
        self.start()

    def _look(self):
        """(paused, accesses) of each vCPU; None where the VMM has ended."""
        blocks = []
        for vcpu in range(self.vcpus):
            at = VCPU + vcpu * VCPU_STRIDE
            fields = [self.memory.read(at + ACCESSES_BEFORE, 8),
                      self.memory.read(at + ACCESSES_SINCE, 8), self.memory.read(at + PHASE, 4)]
            if None in fields:
                return None
            before, since, phase = (int.from_bytes(field, "little") for field in fields)
            blocks.append((phase, before, since))
        return blocks

    def run(self):
        at_pause = None
        while not self.stopping.wait(self.INTERVAL_S):
            blocks = self._look()
            if not blocks:
                break
            if at_pause:
                self.ran_on |= blocks != at_pause
            elif all(phase for phase, _, _ in blocks):
                at_pause = blocks
                self.seen_paused = True
        self.memory.close()

    def close(self):
        self.stopping.set()
        self.join()


def waits_for_attached(pid):
    """It has a userfaultfd, and sleeps in poll() or recvmsg()."""
    with open("/proc/%d/syscall" % pid) as syscall:
        return syscall.read().split()[0] in ("7", "47", "271") and any(
            "userfaultfd" in os.readlink(fd) for fd in glob.glob("/proc/%d/fd/*" % pid))


def guest_memfd_of(pid):
    return next(fd for fd in glob.glob("/proc/%d/fd/*" % pid)
                if os.readlink(fd).startswith("/memfd:guest"))


class Scene:
    """Two daemons, a network between them, a guest on its way."""

    def __init__(self, host, seed, name, kind=KeptDaemon, link=None, prefixes=None, backend=None,
                 populate=None, guest=None, source_vmm=None, destination_vmm=None, **options):
        """@prefixes: of a side's daemon. @populate: makes the destination's memory what it must
        not be, by its descriptor. @guest, @source_vmm, @destination_vmm: more of minivmm's options,
        of both or of one."""
        self.host = host
        self.rng = random.Random(seed)
        self.daemons = []
        threads = ["--fault-threads", str(self.rng.choice([1, 2, 4]))]
        options["extra"] = [*options.get("extra", ()), *threads]
        for side, other in (("source", "destination"), ("destination", "source")):
            if link:
                options.update(listen=ADDRESSES[side] + ":0", prefix=link.enter(side))
            if prefixes:
                options.update(prefix=prefixes[side])
            self.daemons.append(host.daemon(side, allow=["postcopy:" + other], kind=kind,
                                            **options))
        self.source, self.destination = self.daemons
        # The first call leaves a descriptor that the loop keeps.
        for daemon in self.daemons:
            daemon.call("List")
        self.before = {daemon: daemon.resources()["fds"] for daemon in self.daemons}
        address = self.source.address
        if not link:
            self.proxy = Proxy(address)
            host.later(self.proxy.close)
            address = self.proxy.address
        self.address = address
        backend = backend or self.rng.choice(["memfd", "memfd", "anon"])
        self.guest = {"memory": MEMORY, "backend": backend, "vcpus": 2, "workload": "random",
                      "write_percent": 30, "run_after_complete": 50, "seed": seed % 1000 + 1,
                      **(guest or {})}
        self.source.prepare_source("vm1")
        self.prepare_destination(self.destination)
        self.source_vmm = host.minivmm("source", self.source, "vm1", **self.guest,
                                       **(source_vmm or {}))
        if populate:
            self.destination_vmm = self.attach_populated(populate, **(destination_vmm or {}))
        else:
            self.destination_vmm = self.attach_destination(self.destination,
                                                           **(destination_vmm or {}))
        self.source_vmm.wait_for_event("attached")
        self.witness = Witness(self.source_vmm, self.guest["vcpus"])
        host.later(self.witness.close)
        self.destination_vmm.wait_for_event("attached")
        self.name = name

    def prepare_destination(self, daemon):
        daemon.prepare_destination("vm1", self.address, streams=2,
                                   map=self.rng.choice(["eager", "lazy"]),
                                   bandwidth_bytes_per_s=BULK_BYTES_PER_S)

    def attach_destination(self, daemon, **options):
        return self.host.minivmm("destination", daemon, "vm1", **{**self.guest, **options})

    def attach_populated(self, populate, **options):
        """The library empties the memory, the daemon once more: between them it is populated."""
        self.destination.popen.send_signal(signal.SIGSTOP)
        try:
            vmm = self.attach_destination(self.destination, **options)
            harness.eventually(lambda: waits_for_attached(vmm.pid), "the VMM waits for ATTACHED")
            fd = os.open(guest_memfd_of(vmm.pid), os.O_RDWR)
            try:
                populate(fd)
            finally:
                os.close(fd)
        finally:
            self.destination.popen.send_signal(signal.SIGCONT)
        return vmm

    def get(self):
        """The migration at the destination; None while nobody is there to tell."""
        try:
            return self.destination.call("Get", id="vm1")
        except (OSError, harness.Failure):
            return None

    def go_to_a_point(self):
        """Starts, and waits until a random part of the guest has come: none of it in each fifth."""
        fraction = max(0, self.rng.uniform(-0.25, 0.9))
        self.destination.call("Start", id="vm1")
        if fraction:
            harness.eventually(lambda: self.get()["pages_present"] >= fraction * PAGES,
                               "%d %% of the guest are there" % (100 * fraction))
        else:
            # Anywhere around the switchover.
            time.sleep(self.rng.uniform(0, 0.03))

    def present(self):
        migration = self.get()
        if not migration:
            return -1
        return PAGES + 1 if migration["state"] in OVER else migration["pages_present"]

    def breaks(self):
        """From now on something is broken. Returns what was there."""
        self.broken = time.monotonic()
        return self.present()

    def goes_on(self, after):
        """Notes how long that took; not where it is over, before it has broken or because of it."""
        began = self.broken
        if after > PAGES:
            return
        harness.eventually(lambda: self.present() > after, "the guest's memory comes again",
                           DEADLINE_S)
        if self.get()["state"] == "failed":
            return
        recoveries.setdefault(self.name, []).append(time.monotonic() - began)

    def finish(self, look=None):
        """The guest has moved and is whole; @look, if given, looks at it before it ends."""
        self.destination.wait_for_state("vm1", "complete", deadline_s=DEADLINE_S)
        self.source.wait_for_state("vm1", "complete", deadline_s=DEADLINE_S)
        self.source_vmm.wait_for_event("complete", deadline_s=DEADLINE_S)
        assert self.source_vmm.wait() == 0
        self.assert_source_stood_still()
        if look:
            self.destination_vmm.wait_for_event("complete")
            look()
            self.destination_vmm.popen.terminate()
        result = self.destination_vmm.wait_for_event("result", deadline_s=DEADLINE_S)
        assert result["pages_checked"] > 0
        assert result["accesses"] > 0, "no vCPU has run here"
        assert result["pages_bad"] == 0, result
        assert self.destination_vmm.wait() == 0
        self.assert_nothing_is_left()

    def assert_nothing_is_left(self):
        for daemon in self.daemons:
            # One that was started again has the record, and what it was given beside it.
            harness.eventually(
                lambda: set(daemon.store.names()) <= {"control", "pages", "vmm", "config0",
                                                      "config1", "record.vm1"},
                "%s has let go of %s" % (daemon.name, daemon.store.names()))
            # The record's, and the store's copy of it.
            harness.eventually(lambda: daemon.resources()["fds"] <= self.before[daemon] + 2,
                               "%s leaks no descriptor" % daemon.name)

    def assert_source_stood_still(self):
        """From its pause on: by what its VMM said, and by the guest's own counters."""
        self.witness.close()
        said = [event["event"] for event in self.source_vmm.events]
        assert "running-on" not in said, "the guest ran twice: %s" % said
        assert not self.witness.ran_on, "the guest ran twice: its source worked on"

    def finish_wherever_it_is(self):
        """It has moved and is whole; or nothing of it has, and the source's runs on. Returns
        whether it has moved."""
        end = self.destination.wait_for_state("vm1", "complete", "failed", deadline_s=DEADLINE_S)
        if end["state"] == "complete":
            self.finish()
            return True
        assert_never_ran(self.destination_vmm)
        if self.source.state("vm1") == "attached":
            # Nobody has reached it; it waits for another destination.
            self.source.call("Cancel", id="vm1")
        assert_guest_runs_on(self.source_vmm)
        return False


def assert_never_ran(vmm):
    """A destination's VMM: it was told that its migration has failed, and ended."""
    with pytest.raises(harness.Failure, match="ended with status 1 without"):
        vmm.wait_for_event("resumed")
    assert "resumed" not in [event["event"] for event in vmm.events]
