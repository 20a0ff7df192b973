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

from keeper import KeptDaemon
from scene import PAGES, Scene
from test_bad_config import WRONG
from test_migrate import pytestmark as needs_kvm

pytestmark = needs_kvm


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
    text, told = random.Random(seed).choice(list(WRONG.values()))
    scene = Scene(host, seed, "SIGKILL, and a wrong configuration")
    wrong = host.dir / "wrong.conf"
    wrong.write_text(text)
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
            assert "going on with the one of before" in daemon.log() and told in daemon.log()
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
