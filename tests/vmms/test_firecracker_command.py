# SPDX-License-Identifier: Apache-2.0
"""postcopyctl firecracker migrate: one command, and the guest is here or there whatever fails.

There is no systemd that would start postcopy-firecracker@.service: a systemctl stands in for it, that
takes the command from the unit's file and starts it again as the unit would. What stands in for ssh
runs the command here. Both wait while a file holds them.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess

import pytest

import firecracker
import harness
import pyvmm
from keeper import KeptDaemon
from microvm import PROGRAM, MicroVm

ROOT = pathlib.Path(__file__).resolve().parents[2]
CTL = harness.BUILD / "src/ctl/postcopyctl"
UNIT = ROOT / "systemd/postcopy-firecracker@.service"
MIB = 1 << 20
SIZE = 16 * MIB
FAR = "root@destination.example"

SYSTEMCTL = """#!/bin/sh
# start postcopy-firecracker@ID-ROLE.service
instance=${{2#postcopy-firecracker@}}
instance=${{instance%.service}}
echo "$1 $instance" >>{dir}/systemctl
while [ -e {dir}/hold-$instance ]; do sleep 0.02; done
[ -e {dir}/deaf-$instance ] && exit 0
# Whoever asks meanwhile: there is one of it.
exec 9>{dir}/$instance.lock
flock 9
pid=$(cat {dir}/$instance.pid 2>/dev/null)
[ -n "$pid" ] && kill -0 $pid 2>/dev/null && exit 0
. /run/postcopy-firecracker/$instance.conf
case $ROLE in source) socket={source};; *) socket={destination};; esac
line=$(sed -n "s,^ExecStart=/usr/sbin/,,; T; s,%i,$instance,g; p" {unit})
export command="$(eval echo "$line") --socket $socket"
setsid sh -c '
    while $command; status=$?; case $status in 0|1|2) exit;; esac; do sleep 0.1; done
    ' </dev/null >>{dir}/$instance.log 2>&1 9>&- &
echo $! >{dir}/$instance.pid
"""
SSH = """#!/bin/sh
# -o BatchMode=yes HOST COMMAND...
shift 2
echo "$*" >>{dir}/ssh
host=$1; shift
while [ -e {dir}/hold-ssh ]; do sleep 0.02; done
[ -e {dir}/deaf-ssh ] && {{ echo "ssh: connect to host $host port 22: No route" >&2; exit 255; }}
exec sh -c "$*"
"""
# A /run of its own.
ENTER = ["unshare", "--mount", "sh", "-c", """mount --make-rprivate / && mount -t tmpfs tmpfs /run &&
mkdir /run/postcopy-firecracker && mount --bind "$1" /run/postcopy-firecracker && shift && exec "$@"
""", "sh"]


def reason_to_skip():
    if pyvmm.can_userfault() is not None:
        return str(pyvmm.can_userfault())
    if os.geteuid() or not shutil.which("unshare"):
        return "a /run of the test's own wants root and unshare"
    return None


pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))


class Site:
    """Two hosts with all that they need, and a microVM on each, of which one has a guest."""

    def __init__(self, host, kind=harness.Daemon, here="16", there=None):
        self.host = host
        self.bin, self.units = host.dir / "bin", host.dir / "units"
        for directory in (self.bin, self.units):
            directory.mkdir()
        self.source, self.destination = [host.daemon(name, kind=kind)
                                         for name in ("source", "destination")]
        self.here = MicroVm(host, self.source, "source", regions=here, adapter=False)
        self.there = MicroVm(host, self.destination, "destination", regions=there, adapter=False)
        (self.bin / "postcopy-firecracker").symlink_to(PROGRAM)
        values = dict(dir=host.dir, source=self.source.vmm_path, unit=UNIT,
                      destination=self.destination.vmm_path)
        for name, text in (("systemctl", SYSTEMCTL), ("ssh", SSH)):
            (self.bin / name).write_text(text.format(**values))
            (self.bin / name).chmod(0o755)
        host.later(self.end_units)

    def end_units(self):
        for path in self.host.dir.glob("*.pid"):
            try:
                os.killpg(int(path.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass

    def file(self, name):
        return self.host.dir / name

    def begin(self, *extra):
        command = [*ENTER, self.units, CTL, "firecracker", "migrate", "vm1",
                   "--from", self.source.control_path, "--to", self.destination.control_path,
                   "--host", FAR, "--api", self.here.api_path, "--dir", self.here.dir / "made",
                   "--to-api", self.there.api_path, "--to-dir", self.there.dir / "for/it", *extra]
        popen = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PATH": "%s:%s" % (self.bin, os.environ["PATH"])})
        self.host.later(lambda: (popen.kill(), popen.communicate()))
        return popen

    def move(self, *extra, status=0):
        return self.ended(self.begin(*extra), status)

    def ended(self, popen, status):
        out, err = popen.communicate(timeout=2 * harness.DEADLINE_S)
        assert popen.returncode == status, "%d: %s" % (
            popen.returncode, " | ".join((out + err + self.units_said()).splitlines()))
        return out + err

    def units_said(self):
        return "".join(path.read_text() for path in self.host.dir.glob("vm1-*.log"))

    def is_moving(self):
        """The guest is there, and not all of its memory."""
        with contextlib.suppress(harness.ControlError):
            return self.destination.state("vm1") == "postcopy"
        return False

    def begin_slowly(self, *extra):
        """Which stays so until hurry()."""
        self.there.guest_waits.touch()
        popen = self.begin("--bandwidth", "1M", *extra)
        harness.eventually(self.is_moving, "it is under way")
        return popen

    def hurry(self):
        self.there.guest_waits.unlink()
        self.destination.call("SetLimits", id="vm1", bandwidth_bytes_per_s=0)

    def kill(self, popen):
        """The command alone, as kill(1) would."""
        popen.kill()
        popen.wait()

    def finish(self):
        """All of the guest is there, and nothing of it here."""
        seen = self.there.seen()
        assert seen["count"] == seen["vmstate"] > 0
        content = struct.pack("<Q", seen["count"]) + firecracker.guest_content(SIZE, 1)[8:]
        assert seen["seen"] == hashlib.sha256(content).hexdigest()
        for daemon in (self.destination, self.source):
            daemon.wait_for_state("vm1", "complete")
        assert self.there.state() == "Running"
        assert self.here.vmm.wait(harness.DEADLINE_S) == -signal.SIGKILL

    def assert_stays(self, said):
        assert "nothing has been moved: the guest is " in said
        harness.eventually(lambda: self.here.state() == "Running", "the guest runs here")
        assert self.source.state("vm1") in ("cancelled", "failed")
        assert self.destination.state("vm1") in ("cancelled", "failed")


def test_one_command_moves_a_guest(host):
    site = Site(host)
    out = site.move()
    assert "complete" in out
    site.finish()
    assert site.file("ssh").read_text().startswith(FAR + " postcopy-firecracker destination --unit")
    # --dir is made: its last part Firecracker's alone, what leads to it is for all.
    assert [path.stat().st_mode & 0o777 for path in
            (site.here.dir / "made", site.there.dir / "for", site.there.dir / "for/it")] == [
                0o700, 0o755, 0o700]


def test_there_and_back_again(host):
    """Under one name, with what the migration before has left: units' options, daemons' memories."""
    site = Site(host)
    site.move()
    site.finish()
    back = Site.__new__(Site)
    back.__dict__.update(site.__dict__)
    back.source, back.destination = site.destination, site.source
    back.here = site.there
    back.there = MicroVm(host, back.destination, "destination", "back", adapter=False)
    text = (site.bin / "systemctl").read_text()
    (site.bin / "systemctl").write_text(text.replace(str(site.source.vmm_path), "SWAP").replace(
        str(site.destination.vmm_path), str(site.source.vmm_path)).replace(
            "SWAP", str(site.destination.vmm_path)))
    back.move()
    seen = back.there.seen()
    assert seen["count"] == seen["vmstate"] > 0


def test_what_is_complete_is_not_done_once_more(host):
    """The command may have been killed just before it heard of it. Another guest of that id goes."""
    site = Site(host)
    site.move()
    site.finish()
    asked = site.file("systemctl").read_text()
    # Whose path that is nobody knows: another guest of that id may have been meant.
    assert "can't be told" in site.move("--api", host.dir / "mistyped", status=1)
    assert "complete" in site.move()
    assert json.loads(site.move("--json"))["state"] == "complete"
    assert site.file("systemctl").read_text() == asked
    new = MicroVm(host, site.source, "source", "new", regions="16", adapter=False)
    new.api_path.rename(site.here.api_path)
    said = site.move(status=1)
    assert "has a guest already" in said and "the guest is here, and runs on" in said


def test_a_firecracker_is_started_by_exec(host):
    site = Site(host)
    site.there.vmm.kill()
    site.there.vmm.wait()
    site.there.api_path.unlink()
    started = []
    popen = site.begin("--exec", "echo $POSTCOPY_ID $POSTCOPY_TO >%s" % site.file("wanted"))
    harness.eventually(site.file("wanted").exists, "--exec is run")
    started.append(MicroVm(host, site.destination, "destination", "late", adapter=False))
    started[0].api_path.rename(site.there.api_path)
    site.there.vmm, site.there.lines = started[0].vmm, started[0].lines
    site.ended(popen, 0)
    site.finish()
    assert site.file("wanted").read_text() == "vm1 %s\n" % site.destination.control_path


def break_pause(site):
    site.here.call("PATCH", "/vm", {"state": "Paused"})
    return lambda: site.here.call("PATCH", "/vm", {"state": "Resumed"})


def break_exec(site):
    del site
    return lambda: None


def break_ssh(site):
    site.file("deaf-ssh").touch()
    return site.file("deaf-ssh").unlink


def break_unit_here(site):
    site.file("deaf-vm1-source").touch()
    return site.file("deaf-vm1-source").unlink


def break_unit_there(site):
    site.file("deaf-vm1-destination").touch()
    return site.file("deaf-vm1-destination").unlink


def break_create(site):
    """Firecracker can't write its state: found when the guest has been paused."""
    path = site.here.dir / "made/vm1.vmstate"
    path.mkdir(parents=True)
    return path.rmdir


def replace_there(site):
    site.there.vmm.wait(harness.DEADLINE_S)
    new = MicroVm(site.host, site.destination, "destination", "new", adapter=False)
    new.api_path.rename(site.there.api_path)
    site.there.vmm, site.there.lines = new.vmm, new.lines


def break_load(site):
    path = site.there.dir / "for/it/vm1.vmstate"
    path.mkdir(parents=True)
    return lambda: (path.rmdir(), replace_there(site))


FAILURES = {
    "paused": (break_pause, "resume it first", ()),
    "exec": (break_exec, "\"exit 7\" ended with status 7", ("--exec", "exit 7")),
    "ssh": (break_ssh, "No route", ()),
    "unit-here": (break_unit_here, "source's VMM has not attached", ("--attach-timeout", "2")),
    "unit-there": (break_unit_there, "destination's VMM has not attached", ("--attach-timeout", "2")),
    "create": (break_create, "failed", ()),
    "load": (break_load, "failed", ()),
}


@pytest.mark.parametrize("step", FAILURES)
def test_whatever_fails_the_guest_stays_and_the_same_command_moves_it_later(host, step):
    site = Site(host)
    breaks, text, extra = FAILURES[step]
    mend = breaks(site)
    said = site.move(*extra, status=1)
    assert text in said
    if step == "paused":
        mend()
    site.assert_stays(said)
    if step != "paused":
        mend()
    site.move()
    site.finish()


def test_a_destination_that_has_a_guest_is_told_so(host):
    site = Site(host, there="1")
    said = site.move(status=1)
    assert "has a guest already" in said
    site.assert_stays(said)
    assert site.there.state() == "Running"


def mounted(host, *how):
    place = host.dir / ("mounted-" + how[1])
    place.mkdir()
    subprocess.run(["mount", *how, "none", place], check=True)
    host.later(lambda: subprocess.run(["umount", "-l", place], check=True))
    return place


def test_no_room_for_its_memory_is_found_before_it_is_paused(host):
    site = Site(host)
    said = site.move("--dir", mounted(host, "-t", "tmpfs", "-o", "size=8M"), status=1)
    assert "has room for 8 MiB, and the guest has 16 MiB" in said
    site.assert_stays(said)
    # Also one that lies in memory.
    assert "is no tmpfs" in site.move("--dir", mounted(host, "-t", "ramfs"), status=1)


@pytest.mark.parametrize("size, left", [("0", 0), ("24M", 12)], ids=["no-limit", "left"])
def test_there_is_room_for_its_memory(host, size, left):
    """In a tmpfs without a limit; and where an adapter that was killed has left its file."""
    site = Site(host)
    place = mounted(host, "-t", "tmpfs", "-o", "size=" + size)
    if left:
        (place / "vm1.memory").write_bytes(b"x" * left * MIB)
    site.move("--dir", place)
    site.finish()
    harness.eventually(lambda: not list(place.iterdir()), "nothing is left there")


def hold(name):
    return lambda site: (site.file("hold-" + name).touch(), site.file("hold-" + name).unlink)[1]


def is_asked(site, name):
    path = site.file("ssh" if name == "ssh" else "systemctl")
    return path.exists() and (name == "ssh" or name in path.read_text())


STEPS = {
    "unit-here": (hold("vm1-source"), lambda site: is_asked(site, "vm1-source"), ()),
    "ssh": (hold("ssh"), lambda site: is_asked(site, "ssh"), ()),
    "unit-there": (hold("vm1-destination"), lambda site: is_asked(site, "vm1-destination"), ()),
    "postcopy": (lambda site: (site.there.guest_waits.touch(), site.hurry)[1], Site.is_moving,
                 ("--bandwidth", "1M")),
}


@pytest.mark.parametrize("again", ["killed", "beside"])
@pytest.mark.parametrize("step", STEPS)
def test_at_any_step_the_same_command_goes_on(host, step, again):
    """After one that was killed, and beside one that is at it still."""
    site = Site(host)
    holds, reached, extra = STEPS[step]
    release = holds(site)
    popen = site.begin(*extra)
    harness.eventually(lambda: popen.poll() is not None or reached(site), "it is at that step")
    if again == "killed":
        site.kill(popen)
    second = site.begin(*extra)
    release()
    site.ended(second, 0)
    if again == "beside":
        site.ended(popen, 0)
    site.finish()


def test_a_migration_to_elsewhere_is_left_alone(host):
    """Its state is being written, and the source's daemon would take a cancel."""
    site = Site(host)
    elsewhere = host.daemon("destination")
    release = hold("vm1-destination")(site)
    popen = site.begin()
    harness.eventually(lambda: is_asked(site, "vm1-destination"), "the source is attached")
    site.here.vmm.send_signal(signal.SIGSTOP)
    release()
    harness.eventually(lambda: site.source.state("vm1") == "switching", "it is being paused")
    said = site.move("--to", elsewhere.control_path, status=2)
    assert "has left what there is at the source" in said
    assert site.source.state("vm1") == "switching"
    site.here.vmm.send_signal(signal.SIGCONT)
    site.ended(popen, 0)
    site.finish()


def test_a_daemon_that_is_lost_sight_of_before_the_start(host):
    """It may have heard what it has not answered: the source's half is not taken from it."""
    site = Site(host, kind=KeptDaemon)
    release = hold("vm1-destination")(site)
    popen = site.begin()
    harness.eventually(lambda: is_asked(site, "vm1-destination"), "the source is attached")
    site.destination.crash_and_restart()
    release()
    assert "the same command again follows it" in site.ended(popen, 3)
    assert site.source.state("vm1") == "attached"
    site.move()
    site.finish()


def test_ctrl_c_leaves_the_migration_alone(host):
    site = Site(host)
    popen = site.begin_slowly()
    popen.send_signal(signal.SIGINT)
    assert "the same command again goes on" in site.ended(popen, 130)
    site.hurry()
    site.move()
    site.finish()


def test_a_daemon_that_is_lost_sight_of(host):
    site = Site(host, kind=KeptDaemon)
    popen = site.begin_slowly()
    site.destination.crash_and_restart()
    assert "the same command again follows it" in site.ended(popen, 3)
    site.hurry()
    site.move()
    site.finish()


def test_a_guest_that_dies_there_is_not_said_to_run(host):
    site = Site(host)
    popen = site.begin_slowly()
    harness.eventually(lambda: site.there.state() == "Running", "the guest runs there")
    site.there.vmm.kill()
    said = site.ended(popen, 1)
    assert "has run at the destination, and is paused here" in said
    assert site.here.state() == "Paused"
    holder = json.loads(subprocess.run(
        [CTL, "status", "vm1", "--json", "--control", site.source.control_path], check=True,
        capture_output=True, text=True).stdout)["holder"]
    assert holder


@pytest.mark.parametrize("extra, text", [
    (("--api", "run/x"), "a path begins with /"), (("--dir", "/dev/shm/$(x)"), "a path begins"),
    (("--host", "-oProxyCommand=x"), "is no host"), (("--to", "x;y:1"), "is no host"),
    (("--to-dir", "/a b"), "a path begins")])
def test_words_that_a_shell_would_read_otherwise_are_refused(host, extra, text):
    popen = subprocess.run([CTL, "firecracker", "migrate", "vm1", "--to", "x:1", "--api", "/a", "--dir",
                            "/b", *extra], capture_output=True, text=True)
    assert popen.returncode == 2 and text in popen.stderr
    assert "migrate is missing" in subprocess.run([CTL, "firecracker", "vm1"], capture_output=True,
                                                  text=True).stderr
