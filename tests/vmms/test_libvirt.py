# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, moved by one command; libvirt knows them afterwards as before."""
import os

import pytest

import debian
import libvirt_host
from console import PASS, READY, Console
from libvirt_host import Libvirtd, domain_xml, open_to_all
from qemu import BOOT_DEADLINE_S, PASS_DEADLINE_S, Missing

NAME = "vm7"

pytestmark = pytest.mark.skipif(os.environ.get("POSTCOPYD_VMMS") != "all", reason=(
    "make vmms has it: a libvirtd takes a minute or more to find out what QEMU can do"))


class Side:
    def __init__(self, host, pki_role, stem):
        self.daemon = host.daemon(pki_role, allow=["postcopy:source", "postcopy:destination"])
        self.libvirt = Libvirtd(host, self.daemon, "libvirtd-" + stem)
        self.dir = self.libvirt.dir
        self.host = host
        self.n = 0

    def domain(self, qmp=True):
        """(its XML, its console): a new one for each QEMU."""
        self.n += 1
        console = Console(self.dir / ("console%d" % self.n), "the guest at %s" % self.dir.name)
        self.host.later(console.close)
        return domain_xml(self.dir, NAME, console, self.dir / "run/qmp" if qmp else None), console


@pytest.fixture
def sides(host):
    try:
        libvirt_host.fetch()
        libvirt_host.linux(libvirt_host.harness.BUILD)
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


def move(there, here):
    xml, console = here.domain()
    status, said = there.libvirt.move(NAME, here.libvirt, (there.daemon, here.daemon), "--xml", xml)
    assert status == 0, said
    return console


def test_there_and_back_again_by_one_command_each(sides):
    a, b = sides
    begin(a)
    console = move(a, b)
    assert (a.libvirt.state(NAME), b.libvirt.state(NAME)) == ("absent", "running")
    check(console)
    for command, state in (("suspend", "paused"), ("resume", "running")):
        b.libvirt.virsh(command, NAME)
        assert b.libvirt.state(NAME) == state
    # What came by -incoming is a source like any other.
    console = move(b, a)
    assert (a.libvirt.state(NAME), b.libvirt.state(NAME)) == ("running", "absent")
    check(console)
    a.libvirt.virsh("destroy", NAME)


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
