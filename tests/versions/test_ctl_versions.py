# SPDX-License-Identifier: Apache-2.0
"""postcopyctl at daemons of the other version, and of both."""
import json
import subprocess

import pytest

import harness
from hosts import Hosts
from test_migrate import pytestmark  # noqa: F401


class Ctl:
    """postcopyctl of some version."""

    def __init__(self, builds, version):
        self.program = builds[version] / "src/ctl/postcopyctl"

    def __call__(self, *arguments):
        done = subprocess.run([str(word) for word in (self.program, *arguments)], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=4 * harness.DEADLINE_S)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def at(self, daemon, *arguments):
        return self(*arguments, "--control", daemon.control_path)

    def json(self, daemon, *arguments):
        return json.loads(self.at(daemon, *arguments, "--json"))


# The newest that each can read.
RECORD = {"N": 4, "N-1": 3}


# One version of all is what the other suites have.
@pytest.mark.parametrize("version, source, destination", [
    ("N", "N", "N-1"), ("N", "N-1", "N"), ("N", "N-1", "N-1"),
    ("N-1", "N", "N-1"), ("N-1", "N-1", "N"), ("N-1", "N", "N")])
def test_postcopyctl(host, builds, version, source, destination):
    ctl = Ctl(builds, version)
    hosts = Hosts(host, builds, source, destination)
    vmms = hosts.attach(version)
    for daemon, its in (hosts.source, source), (hosts.destination, destination):
        said = ctl.at(daemon, "info")
        assert "version " in said and "page stream 3, record %d" % RECORD[its] in said
        assert ctl.json(daemon, "info")["migrations_active"] == 1
        assert "vm1" in ctl.at(daemon, "list")
        assert "attached" in ctl.at(daemon, "status", "vm1")
    ctl.at(hosts.destination, "limits", "vm1", "--streams", "2")
    said = ctl("migrate", "vm1", "--from", hosts.source.control_path, "--to",
               hosts.destination.control_path)
    assert "complete" in said
    hosts.finish(vmms)
    for daemon in (hosts.source, hosts.destination):
        assert ctl.json(daemon, "status", "vm1")["state"] == "complete"
        assert "complete" in ctl.at(daemon, "watch", "vm1")
        ctl.at(daemon, "delete", "vm1")
        assert ctl.json(daemon, "list")["migrations"] == []
