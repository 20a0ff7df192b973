# SPDX-License-Identifier: Apache-2.0
"""A domain of libvirt's moves, and libvirt goes on with it."""
import pathlib
import shutil
import tempfile

import pytest

import debian
import harness
import libvirt
from adapter import Adapter
from console import PASS, Console
from qemu import Missing

DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name>
  <uuid>5a5a5a5a-0000-4000-8000-000000000001</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <memoryBacking>
    <source type='file'/>
    <access mode='shared'/>
  </memoryBacking>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>%(kernel)s</kernel></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='unix'><source mode='connect' path='%(console)s'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:%(qmp)s,server=on,wait=off'/>
    %(more)s
  </qemu:commandline>
</domain>
"""
INCOMING = "<qemu:arg value='-incoming'/><qemu:arg value='defer'/>"


class Side:
    """One host: libvirtd, daemon."""

    def __init__(self, host, name):
        memory = tempfile.mkdtemp(prefix="postcopyd-test-", dir="/dev/shm")
        host.later(lambda: shutil.rmtree(memory))
        self.host, self.name = host, name
        self.daemon = host.daemon(name)
        self.libvirt = host._started(libvirt.Libvirt(host, memory))
        self.qmp_path = host.dir / (name + ".qmp")
        self.console = Console(host.dir / (name + ".console"), name)
        host.later(self.console.close)
        self.kernel = host.dir / "guest"
        shutil.copy(harness.BUILD / "src/ctl/bare", self.kernel)

    def create(self, *options, more=""):
        xml = self.host.dir / (self.name + ".xml")
        xml.write_text(DOMAIN % {"kernel": self.kernel, "console": self.console.path, "qmp": self.qmp_path,
                                 "more": more})
        self.libvirt.virsh("create", xml, *options)

    def state(self):
        return self.libvirt.virsh("domstate", "vm1")

    def check(self):
        before = len(self.console.matches(PASS))
        passes = self.console.wait(
            lambda lines: self.console.matches(PASS)[before + 2:], "two full passes", 60)
        assert all(int(match[4]) == 0 for match in passes)


@pytest.fixture
def sides(host):
    try:
        libvirt.fetch()
    except (debian.Unavailable, Missing) as why:
        pytest.skip(str(why))
    return Side(host, "source"), Side(host, "destination")


def test_a_domain_moves(host, sides):
    source, destination = sides
    source.create()
    source.check()
    destination.create("--paused", more=INCOMING)
    source.daemon.prepare_source("vm1")
    destination.daemon.prepare_destination("vm1", source.daemon.address)
    leaving = Adapter(host, source, "source", source.daemon, "vm1")
    coming = Adapter(host, destination, "destination", destination.daemon, "vm1")
    leaving.wait_until_attached()
    coming.wait_until_attached()
    destination.daemon.call("Start", id="vm1")
    destination.daemon.wait_for_state("vm1", "complete")
    assert leaving.wait() == 0 and coming.wait() == 0
    destination.check()
    harness.eventually(lambda: destination.state() == "running", "libvirt says that it runs")
    harness.eventually(lambda: not source.libvirt.virsh("list", "--name"), "libvirt sees the source's QEMU gone")
    destination.libvirt.virsh("suspend", "vm1")
    assert destination.state() == "paused"
    destination.libvirt.virsh("resume", "vm1")
    destination.check()
