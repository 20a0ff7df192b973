# SPDX-License-Identifier: Apache-2.0
"""postcopyctl bench --vmm qemu: what it measures is left to it; that it does, and says when pages are wrong."""
import json
import os
import subprocess

import pytest

import debian
import harness
import qemu
import qemu_program

CTL = harness.BUILD / "src/ctl/postcopyctl"


def bench(*options):
    return subprocess.run([str(word) for word in (CTL, "bench", "--vmm", "qemu", *options)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)


@pytest.fixture
def program():
    try:
        return qemu_program.fetch("trixie")[1]
    except debian.Unavailable as why:
        pytest.skip(str(why))


def check(done, ways):
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [way["way"] for way in result["ways"]] == ways
    for way in result["ways"]:
        assert way["bad_pages"] == 0
        assert 0 < way["downtime_ms"] <= way["gap_ms"] <= way["total_ms"]
    return result


def test_all_ways_of_the_built_in_guest(program):
    """In TCG, for it boots three times: in KVM that takes long where the firmware is emulated."""
    result = check(bench("--qemu", program, "--accel", "tcg", "--memory", "64M", "--native", "--json"),
                   ["postcopyd", "qemu-postcopy-preempt-tls", "qemu-postcopy"])
    assert result["version"].startswith("10.0.")


# It boots for long.
if os.environ.get("POSTCOPYD_VMMS") == "all":
    def test_a_linux_guest(program):
        kernel, initramfs = qemu.linux(harness.BUILD)
        check(bench("--qemu", program, "--accel", "tcg", "--memory", "256M", "--kernel", kernel, "--initrd",
                    initramfs, "--json"), ["postcopyd"])


@pytest.mark.parametrize("options, what", [
    (("--memory", "2G"), "1G"), (("--kernel", "/dev/null"), "--initrd"),
    (("--backend", "anon"), "--backend"), (("--qemu", "/no/qemu"), "/no/qemu"),
    (("--native", "--link-mbit", "100"), "--native")])
def test_what_can_not_be_is_said(options, what):
    done = bench(*options)
    assert done.returncode and what in done.stderr
