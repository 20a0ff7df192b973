# SPDX-License-Identifier: Apache-2.0
"""libvirt's hook, run as libvirtd runs it: the steps as arguments, the domain's XML on stdin. With libvirt itself:
tests/vmms/test_libvirt.py."""
import os
import pathlib
import shutil
import subprocess

import pytest

import harness

DIRECTORY = pathlib.Path(__file__).parents[2] / "src/libvirt"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
UNITS = pathlib.Path("/run/postcopy-qemu")
# Of a domain's life, in libvirt's order.
START = [("prepare", "begin"), ("start", "begin"), ("started", "begin")]
END = [("stopped", "end"), ("release", "end")]
# A /run of its own; what lies there in the end is told behind what the hook has said.
ENTER = ("mount --make-rprivate / && mount -t tmpfs none /run && \"$@\"; status=$?; echo ---; "
         "for f in %s/*; do [ ! -f \"$f\" ] || { echo \"$f\"; cat \"$f\"; }; done; exit $status" % UNITS)
SYSTEMCTL = "#!/bin/sh\necho \"systemctl $*\" >>\"$CALLS\"\n"


@pytest.fixture
def hook(tmp_path):
    """hook(steps, xml): (what it said, {file: text} in /run/postcopy-qemu, what systemctl was asked)"""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a /run of the test's own wants root and unshare")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "bin/postcopy-libvirt").symlink_to(DIRECTORY / "postcopy-libvirt")
    calls = tmp_path / "calls"
    env = {"PATH": "%s:/usr/sbin:/usr/bin:/sbin:/bin" % (tmp_path / "bin"), "CALLS": str(calls)}

    def run(steps, xml, program=True, **extra):
        calls.write_text("")
        if not program:
            (tmp_path / "bin/postcopy-libvirt").unlink()
        (tmp_path / "xml").write_text(xml)
        each = "; ".join("sh %s vm7 %s %s - <%s || exit 1" % (DIRECTORY / "hook", *step, tmp_path / "xml")
                         for step in steps)
        done = subprocess.run(["unshare", "--mount", "sh", "-c", ENTER, "sh", "sh", "-c", each],
                              env={**env, **extra}, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=harness.DEADLINE_S)
        assert done.returncode == 0, done.stdout + done.stderr
        said, _, left = done.stdout.partition("---\n")
        files, name = {}, None
        for line in left.splitlines():
            if line.startswith(str(UNITS)):
                name = pathlib.Path(line).name
                files[name] = []
            else:
                files[name].append(line)
        return said, files, calls.read_text().splitlines()
    return run


def domain(*words, name="vm7"):
    return """<domain type='kvm' xmlns:qemu='%s'>
  <name>%s</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <qemu:commandline>%s</qemu:commandline>
</domain>""" % (QEMU, name, "".join("<qemu:arg value='%s'/>" % word for word in words))


MONITOR = ("-qmp", "unix:/var/lib/libvirt/qemu/vm7.monitor,server=on,wait=off")
WAITS = (*MONITOR, "-incoming", "defer")


def test_a_domain_that_waits_for_a_guest_is_spoken_for(hook):
    said, files, asked = hook(START, domain(*WAITS))
    assert said == ""
    assert files == {"vm7.conf": ["ROLE=destination", "QMP=/var/lib/libvirt/qemu/vm7.monitor", 'OPTIONS=""']}
    assert asked == ["systemctl --no-block restart postcopy-qemu@vm7.service"]
    _, files, _ = hook(START, domain(*WAITS), POSTCOPYD_VMM_SOCKET="/run/other/vmm.sock")
    assert files["vm7.conf"][2] == 'OPTIONS="--socket /run/other/vmm.sock"'


def test_no_other_domain_is_touched(hook):
    for xml in domain(*MONITOR), domain(), "<domain type='kvm'><name>vm7</name></domain>":
        assert hook(START + END, xml) == ("", {}, [])


def test_nothing_of_it_is_left_behind(hook):
    said, files, asked = hook(START + END, domain(*WAITS))
    assert (said, files) == ("", {})
    assert asked == ["systemctl --no-block restart postcopy-qemu@vm7.service"]


def test_a_name_that_is_no_id_gives_the_uuid(hook):
    _, files, asked = hook(START, domain(*WAITS, name="my vm; rm"))
    assert list(files) == ["4dea22b3-1d52-d8f3-2516-782e98ab3fa0.conf"]
    assert asked == ["systemctl --no-block restart postcopy-qemu@4dea22b3-1d52-d8f3-2516-782e98ab3fa0.service"]


@pytest.mark.parametrize("step", ["migrate", "restore"])
def test_libvirts_own_ways_stay_open(hook, step):
    """Its XML has the words that had it wait, for as long as it runs: what libvirt starts from it must not wait."""
    said, files, asked = hook([(step, "begin")], domain(*WAITS))
    assert "-incoming" not in said and "-qmp" in said and "<name>vm7</name>" in said.replace("ns0:", "")
    assert (files, asked) == ({}, [])
    # An answer changes nothing, and so none is given.
    assert hook([(step, "begin")], domain(*MONITOR))[0] == ""


def test_a_domain_starts_where_the_program_is_gone(hook):
    """A package that was removed leaves the hook, which is a configuration file: no domain would start any more."""
    assert hook(START + END, domain(*WAITS), program=False) == ("", {}, [])


@pytest.mark.parametrize("tool, file", [("shellcheck", "hook"), ("pyflakes3", "postcopy-libvirt")])
def test_lint(tool, file):
    if not shutil.which(tool):
        pytest.skip("%s is not installed" % tool)
    done = subprocess.run([tool, DIRECTORY / file], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
