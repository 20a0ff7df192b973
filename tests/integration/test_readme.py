# SPDX-License-Identifier: Apache-2.0
"""The README's "Start one by hand", run as printed: its commands, in its order."""
import os
import pathlib
import re
import socket
import subprocess

import pytest

import harness
import python_package
from control_client import Client

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK),
                               reason="/dev/kvm can't be opened: no vCPUs here")

# What a person does between two of the README's lines: look until it is so.
WAIT_FOR_SOCKETS = "until [ -S /run/pc/src.ctl ] && [ -S /run/pc/dst.ctl ]; do sleep 0.05; done\n"
WAIT_FOR_ATTACHED = """for side in src dst; do
until postcopyctl --control /run/pc/$side.ctl status vm7 | grep -q attached; do sleep 0.05; done
done
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def blocks(title="Start one by hand", text=README):
    section = text.split("## " + title)[1].split("\n## ")[0]
    return ["\n".join(line[4:] for line in found.splitlines()) + "\n"
            for found in re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.M)]


@needs_kvm
def test_start_one_by_hand(tmp_path):
    daemons, prepare, vmms, start = blocks()
    script = ("set -e\ntrap 'kill $(jobs -p)' EXIT\n" + daemons + WAIT_FOR_SOCKETS +
              prepare + vmms + WAIT_FOR_ATTACHED + start +
              "postcopyctl --control /run/pc/src.ctl status vm7\n")
    # Its own directory, a port that is free, and a smaller guest: all else is as printed.
    for printed, here in (("/run/pc", tmp_path), ("7777", free_port()), ("--memory 1G", "--memory 64M"),
                          ("tests/make-certs", pathlib.Path(__file__).parents[1] / "make-certs")):
        script = script.replace(printed, str(here))
    path = ":".join(str(harness.BUILD / "src" / name) for name in ("postcopyd", "ctl", "minivmm"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, stdin=subprocess.DEVNULL,
                          env={**os.environ, "PATH": path + ":" + os.environ["PATH"]},
                          capture_output=True, text=True, timeout=4 * harness.DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("complete") >= 2, done.stdout


def test_drive_it_from_python(host, tmp_path):
    python_package.need()
    program, = blocks("Drive it from Python")
    daemon = host.daemon("destination")
    with Client("unix:%s" % daemon.control_path) as client:
        client.migrations("Prepare", id="vm7", role="ROLE_DESTINATION", token=bytes(range(32)),
                          source_address="127.0.0.1:9")
        program = program.replace("/run/pc/dst.ctl", str(daemon.control_path))
        running = subprocess.Popen(["/usr/bin/python3", "-u", "-c", program], cwd=tmp_path,
                                   env=python_package.environment(), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, text=True)
        try:
            # No VMM has attached: that is told, and the watch goes on to the end.
            assert "WRONG_STATE" in running.stdout.readline()
            assert running.stdout.readline() == "STATE_PREPARED 0 of 0\n"
            client.migrations("Cancel", id="vm7")
            assert running.communicate(timeout=harness.DEADLINE_S)[0].splitlines()[-1] == \
                "STATE_CANCELLED 0 of 0"
            assert running.returncode == 0
        finally:
            running.kill()
            running.wait()
