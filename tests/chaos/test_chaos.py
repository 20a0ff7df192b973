# SPDX-License-Identifier: Apache-2.0
"""Something breaks at a random point of a migration, while the guest writes and verifies all the
time. In the end it is complete, each page is right, no vCPU is stuck, no descriptor is left."""
import datetime
import glob
import random
import re
import signal
import time

import pytest

import harness
from keeper import KeptDaemon
from link import ADDRESSES, Link
from proxy import Proxy
from recoveries import recoveries
from test_migrate import assert_guest_is_whole, pytestmark as needs_kvm

pytestmark = needs_kvm

MEMORY = "64M"
PAGES = (64 << 20) // 4096
# So that it takes a second or two: there is time for something to break.
BULK_BYTES_PER_S = 48 << 20
# A fault lasts up to 10 s, and what it broke must be found and mended.
DEADLINE_S = 90


class FullDisk(KeptDaemon):
    """Its log goes where nothing can be written."""

    def __init__(self, directory, name, *args, **options):
        (directory / (name + ".log")).symlink_to("/dev/full")
        super().__init__(directory, name, *args, **options)

    def log(self):
        return ""


class Clock:
    """What time it is for daemons that run with its environment."""

    AHEAD_S = 3600

    def __init__(self, host, ahead):
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            pytest.skip("libfaketime is not installed: this host's clock is not ours to set")
        self.path = host.dir / "clock"
        self.set(ahead)
        self.env = {"LD_PRELOAD": libraries[0], "FAKETIME_TIMESTAMP_FILE": str(self.path),
                    "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def set(self, ahead):
        """By an hour, or right."""
        new = self.path.with_suffix(".new")
        new.write_text("+%d" % (self.AHEAD_S if ahead else 0))
        new.rename(self.path)
        self.ahead = ahead

    def is_what(self, daemon):
        """Whether the daemon's newest line was written by this clock."""
        stamp = re.findall(r"^ts=(\S+)Z ", daemon.log(), re.MULTILINE)[-1]
        at = datetime.datetime.fromisoformat(stamp + "+00:00").timestamp()
        return (at - time.time() > self.AHEAD_S / 2) == self.ahead


class Scene:
    """Two daemons, a network between them, a guest on its way."""

    def __init__(self, host, seed, name, kind=KeptDaemon, link=None, **options):
        self.rng = random.Random(seed)
        self.daemons = []
        for side, other in (("source", "destination"), ("destination", "source")):
            if link:
                options.update(listen=ADDRESSES[side] + ":0", prefix=link.enter(side))
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
        self.source.prepare_source("vm1")
        self.destination.prepare_destination("vm1", address, streams=2,
                                             map=self.rng.choice(["eager", "lazy"]),
                                             bandwidth_bytes_per_s=BULK_BYTES_PER_S)
        guest = {"memory": MEMORY, "backend": self.rng.choice(["memfd", "memfd", "anon"]),
                 "vcpus": 2, "workload": "random", "write_percent": 30, "run_after_complete": 50,
                 "seed": seed % 1000 + 1}
        self.source_vmm = host.minivmm("source", self.source, "vm1", **guest)
        self.destination_vmm = host.minivmm("destination", self.destination, "vm1", **guest)
        self.source_vmm.wait_for_event("attached")
        self.destination_vmm.wait_for_event("attached")
        self.name = name

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
        return PAGES + 1 if migration["state"] == "complete" else migration["pages_present"]

    def breaks(self):
        """From now on something is broken. Returns what was there."""
        self.broken = time.monotonic()
        return self.present()

    def goes_on(self, after):
        """Notes how long that took."""
        began = self.broken
        if after > PAGES:
            return
        harness.eventually(lambda: self.present() > after, "the guest's memory comes again",
                           DEADLINE_S)
        recoveries.setdefault(self.name, []).append(time.monotonic() - began)

    def finish(self):
        self.destination.wait_for_state("vm1", "complete", deadline_s=DEADLINE_S)
        self.source.wait_for_state("vm1", "complete", deadline_s=DEADLINE_S)
        self.source_vmm.wait_for_event("complete", deadline_s=DEADLINE_S)
        assert_guest_is_whole(self.destination_vmm)
        assert self.source_vmm.wait() == 0
        for daemon in self.daemons:
            # One that was started again has the record, and what it was given beside it.
            harness.eventually(
                lambda: set(daemon.store.names()) <= {"control", "pages", "vmm", "config0",
                                                      "config1", "record.vm1"},
                "%s has let go of %s" % (daemon.name, daemon.store.names()))
            # The record's, and the store's copy of it.
            harness.eventually(lambda: daemon.resources()["fds"] <= self.before[daemon] + 2,
                               "%s leaks no descriptor" % daemon.name)


@pytest.mark.parametrize("sides", [["source"], ["destination"], ["source", "destination"]],
                         ids=["source", "destination", "both"])
def test_sigkill(host, seed, sides):
    scene = Scene(host, seed, "SIGKILL of " + " and ".join(sides))
    scene.go_to_a_point()
    here = scene.breaks()
    daemons = [getattr(scene, side) for side in sides]
    for daemon in daemons:
        daemon.crash()
    for daemon in daemons:
        daemon.start()
    scene.goes_on(here)
    scene.finish()


def test_restart_with_a_wrong_file(host, seed):
    """The daemon ended with status 2, and what the manager kept was lost."""
    scene = Scene(host, seed, "SIGKILL, and a wrong configuration")
    wrong = host.dir / "wrong.conf"
    wrong.write_text("[stream]\nmax-streems=4\n")
    scene.go_to_a_point()
    # It is not to be over meanwhile: without a migration the wrong file would be the end.
    scene.destination.call("SetLimits", id="vm1", bulk=False)
    here = scene.breaks()
    if here <= PAGES:
        for daemon in scene.daemons:
            daemon.crash()
            daemon.command[daemon.command.index("--config") + 1] = wrong
        for daemon in scene.daemons:
            daemon.start()
            assert "going on with the one of before" in daemon.log()
    scene.destination.call("SetLimits", id="vm1", bulk=True)
    scene.goes_on(here)
    scene.finish()


def test_connections_reset(host, seed):
    scene = Scene(host, seed, "connections reset")
    scene.go_to_a_point()
    for _ in range(scene.rng.randrange(1, 5)):
        here = scene.breaks()
        scene.proxy.cut()
        scene.goes_on(here)
    scene.finish()


@pytest.fixture
def link():
    link = Link()
    yield link
    link.close()


def test_black_hole_of_10_s(host, seed, link):
    scene = Scene(host, seed, "black hole of 10 s (from its end)", link=link)
    scene.go_to_a_point()
    link.black_hole(True)
    time.sleep(10)
    here = scene.breaks()
    link.black_hole(False)
    scene.goes_on(here)
    scene.finish()


def test_slow_link(host, seed, link):
    scene = Scene(host, seed, "link of 1 MiB/s for 3 s", link=link)
    scene.go_to_a_point()
    here = scene.breaks()
    link.limit(1 << 20)
    scene.goes_on(here)
    time.sleep(3)
    link.limit(None)
    scene.finish()


def test_sigstop_of_5_s(host, seed):
    scene = Scene(host, seed, "SIGSTOP of 5 s (from its end)")
    scene.go_to_a_point()
    here = scene.present()
    daemon = scene.rng.choice(scene.daemons)
    daemon.popen.send_signal(signal.SIGSTOP)
    time.sleep(5)
    scene.broken = time.monotonic()
    daemon.popen.send_signal(signal.SIGCONT)
    scene.goes_on(here)
    scene.finish()


def test_disk_full_for_logs(host, seed):
    scene = Scene(host, seed, "disk full, connections reset", kind=FullDisk)
    scene.go_to_a_point()
    here = scene.breaks()
    scene.proxy.cut()
    scene.goes_on(here)
    scene.finish()


def test_everything_at_once(host, seed):
    """Three faults, one after the other, of any kind."""
    scene = Scene(host, seed, "three faults in a row")
    scene.go_to_a_point()
    for _ in range(3):
        here = scene.breaks()
        what = scene.rng.choice(["source", "destination", "both", "cut"])
        if what == "cut":
            scene.proxy.cut()
        for daemon in scene.daemons:
            if what in ("both", daemon.name.rstrip("0123456789")):
                daemon.crash_and_restart()
        scene.goes_on(here)
    scene.finish()


def test_clock_jump(host, seed):
    """Forth or back, and all connections are made anew: tickets and certificates have times."""
    clock = Clock(host, ahead=seed % 2)
    scene = Scene(host, seed, "clock jump, connections reset", env=clock.env)
    assert all(clock.is_what(daemon) for daemon in scene.daemons)
    scene.go_to_a_point()
    here = scene.breaks()
    clock.set(not clock.ahead)
    scene.proxy.cut()
    scene.goes_on(here)
    scene.finish()
    assert all(clock.is_what(daemon) for daemon in scene.daemons)
