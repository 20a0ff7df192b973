# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, moved by one command; libvirt knows them afterwards as before."""
import os

import pytest

import debian
import harness
import libvirt_host
from console import PASS, READY, Console
from libvirt_host import Libvirtd, domain_xml, open_to_all
from qemu import BOOT_DEADLINE_S, PASS_DEADLINE_S, Missing

NAME = "vm7"

pytestmark = pytest.mark.skipif(os.environ.get("POSTCOPYD_VMMS") != "all", reason=(
    "make vmms has it: two libvirtds, and a Linux guest that boots for each test, take minutes"))


class Side:
    def __init__(self, host, pki_role, stem):
        self.daemon = host.daemon(pki_role, allow=["postcopy:source", "postcopy:destination"])
        self.libvirt = Libvirtd(host, self.daemon, "libvirtd-" + stem)
        self.dir = self.libvirt.dir
        self.host = host
        self.n = 0

    def left_for_unit(self):
        return self.libvirt.look("ls", "/run/postcopy-qemu").split()

    def console(self, name):
        """Where the next QEMU with that in its XML says what its guest says."""
        path = self.dir / name
        path.unlink(missing_ok=True)
        console = Console(path, "the guest at %s" % self.dir.name)
        open_to_all(path)
        self.host.later(console.close)
        return console

    def domain(self, qmp=True):
        """(its XML, its console): a new one for each move."""
        self.n += 1
        console = self.console("console%d" % self.n)
        return domain_xml(self.dir, NAME, console, self.dir / "run/qmp" if qmp else None), console


@pytest.fixture
def sides(host):
    try:
        libvirt_host.fetch()
        libvirt_host.linux(harness.BUILD)
        open_to_all(host.dir)
        both = [Side(host, role, stem) for role, stem in (("source", "a"), ("destination", "b"))]
    except (Missing, debian.Unavailable) as why:
        pytest.skip(str(why))
    for side in both:
        (side.dir / "run").chmod(0o777)
    return both


def begin(side):
    xml, console = side.domain()
    side.libvirt.virsh("create", xml)
    console.wait(lambda lines: console.matches(READY), "ready", BOOT_DEADLINE_S)
    return console


def check(console, passes=2):
    """Every page is right, over full passes of both workers that begin from now on."""
    before = len(console.lines)

    def passed(lines):
        done = [PASS.fullmatch(line) for line in lines[before:]]
        return all(sum(1 for m in done if m and int(m[1]) == worker) > passes for worker in (0, 1))
    console.wait(passed, "%d full passes" % passes, PASS_DEADLINE_S)
    assert not [m[0] for m in console.matches(PASS) if int(m[4])]


def move(there, here, *extra):
    xml, console = here.domain()
    status, said = there.libvirt.move(NAME, here.libvirt, (there.daemon, here.daemon), "--xml", xml, *extra)
    assert status == 0, said
    assert there.libvirt.state(NAME) in ("absent", "in shutdown") and here.libvirt.state(NAME) == "running"
    return console


def test_there_and_back_again_by_one_command_each(sides):
    """And there once more: what came by -incoming is a source like any other, and what an id has been before, in
    whichever role, stands in nobody's way."""
    a, b = sides
    begin(a)
    for there, here in ((a, b), (b, a), (a, b)):
        console = move(there, here)
        check(console)
        # Nothing of it waits here for the next guest of that name.
        harness.eventually(lambda: not there.left_for_unit(), "what the unit was told is gone")
    b.libvirt.virsh("destroy", NAME)


def test_a_domain_that_has_come_is_like_any_other(sides):
    a, b = sides
    begin(a)
    console = move(a, b, "--persistent")
    for command, state in (("suspend", "paused"), ("resume", "running")):
        b.libvirt.virsh(command, NAME)
        assert b.libvirt.state(NAME) == state
    b.libvirt.restart()
    assert b.libvirt.state(NAME) == "running"
    check(console, passes=1)
    adapter = b.libvirt.adapter_log.read_text()

    def comes_again(*words, ready=False):
        console = b.console("console1")
        b.libvirt.virsh(*words)
        assert b.libvirt.state(NAME) == "running"
        console.wait(lambda lines: console.matches(READY if ready else PASS), "the guest runs", BOOT_DEADLINE_S)
        assert "-incoming" not in b.libvirt.virsh("dumpxml", NAME)
        return console
    assert "-incoming" in b.libvirt.virsh("dumpxml", NAME)
    b.libvirt.virsh("save", NAME, b.dir / "run/saved")
    check(comes_again("restore", b.dir / "run/saved"), passes=1)
    b.libvirt.virsh("managedsave", NAME)
    check(comes_again("start", NAME), passes=1)
    b.libvirt.virsh("destroy", NAME)
    comes_again("start", NAME, ready=True)
    b.libvirt.virsh("reset", NAME)
    # Of all these none was taken for one that waits for a guest of ours.
    assert b.libvirt.adapter_log.read_text() == adapter
    b.libvirt.virsh("destroy", NAME)


def test_libvirt_s_own_migration_takes_it_on(sides):
    """And ours takes on what came by libvirt's."""
    a, b = sides
    begin(a)
    move(a, b)
    xml, console = a.domain()
    b.libvirt.virsh("migrate", "--live", "--migrateuri", "tcp://127.0.0.1", "--xml", xml, NAME, a.libvirt.uri)
    assert (a.libvirt.state(NAME), b.libvirt.state(NAME)) == ("running", "absent")
    check(console, passes=1)
    check(move(a, b), passes=1)
    b.libvirt.virsh("destroy", NAME)


def test_what_fails_leaves_the_domain_where_it_runs(sides):
    """The destination's daemon is not there: no guest is lost, and none waits for ever."""
    a, b = sides
    console = begin(a)
    xml, _ = b.domain()
    absent = type("Absent", (), {"control_path": b.dir / "absent"})
    status, said = a.libvirt.move(NAME, b.libvirt, (a.daemon, absent), "--xml", xml)
    assert status == 1 and "the guest runs on here; the domain that waited for it is gone" in said
    assert (a.libvirt.state(NAME), b.libvirt.state(NAME)) == ("running", "absent")
    check(console, passes=1)


def test_a_domain_without_a_monitor_for_it_is_told_what_to_write(sides):
    a, b = sides
    xml, _ = a.domain(qmp=False)
    a.libvirt.virsh("create", xml)
    status, said = a.libvirt.move(NAME, b.libvirt, (a.daemon, b.daemon))
    assert status == 1 and "virsh edit" in said and "server=on,wait=off" in said
    assert (a.libvirt.state(NAME), b.libvirt.state(NAME)) == ("running", "absent")
