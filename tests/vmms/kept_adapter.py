# SPDX-License-Identifier: Apache-2.0
"""An adapter with a service manager that keeps its descriptors, and a Cloud Hypervisor's stand-in."""
import json
import os
import pathlib
import subprocess
import sys

import foreign
import harness
import keeper

PROGRAM = harness.BUILD / "src/cloud_hypervisor/postcopy-cloud-hypervisor"
STAND_IN = pathlib.Path(__file__).resolve().parent / "cloud_hypervisor.py"


class Adapter(keeper.KeptDaemon):
    """postcopy-cloud-hypervisor as a unit; start() again is what systemd does."""

    def __init__(self, host, role, daemon, migration_id, path):
        self.name = host._name("adapter-" + role)
        self.log_path = host.dir / (self.name + ".log")
        self.store = keeper.Store(host.dir / (self.name + ".notify"))
        self.activated, self.env = [], {}
        way = "--listen" if role == "source" else "--connect"
        self.command = [PROGRAM, role, "--id", migration_id, way, path, "--socket",
                        daemon.vmm_path]
        self.start()
        host._started(self)

    def ready_arguments(self, fd):
        """It says READY to the manager."""
        return []

    def start(self):
        ready, child = os.pipe()
        self.spawn(child)
        os.close(child)
        os.close(ready)
        harness.eventually(lambda: self.store.said("READY=1") or self.popen.poll() is not None,
                           "%s is ready" % self.name)
        return self

    def status(self):
        """The exit status, when it has ended."""
        return self.wait()

    def has_said(self, text):
        harness.eventually(lambda: text in self.log(), "\"%s\" in the log of %s" % (text, self.name))

    def shut_down(self):
        """A guest may hang on it still: SIGTERM would not end it then."""
        self.popen.kill()
        self.popen.wait()
        problems = [text for text in harness.SANITIZER_REPORTS if text in self.log()]
        self.store.close()
        if problems:
            raise harness.Failure("%s: %s" % (self.name, problems))


class CloudHypervisor:
    """The stand-in, as a test sees it."""

    def __init__(self, host, name, layout=None):
        self.api_path = host.dir / (name + ".api")
        self.log_path = host.dir / (name + ".log")
        with open(self.log_path, "wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, STAND_IN, str(self.api_path), json.dumps(layout)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        line = harness.Lines(self.popen.stdout.fileno(), name).next(
            harness.time.monotonic() + harness.DEADLINE_S)
        assert line == "ready", self.log_path.read_text()
        self.api = foreign.Monitor(self.api_path)
        host.later(self.close)

    def ask(self, word):
        return self.api.ask(word)

    def state(self):
        """Of its guest; None where it has exited, as where its fault connection has ended."""
        try:
            return self.ask("state") or None
        except OSError:
            return None

    def wait(self):
        return self.popen.wait(harness.DEADLINE_S)

    def close(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()
        self.api.sock.close()
