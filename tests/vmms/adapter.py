# SPDX-License-Identifier: Apache-2.0
"""postcopy-qemu, as a test starts, kills and hears it."""
import subprocess

import harness

PROGRAM = harness.BUILD / "src/qemu/postcopy-qemu"


def check(vmm, *options):
    """(exit status, what it says)"""
    done = subprocess.run([PROGRAM, "check", "--qmp", vmm.qmp_path, *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    return done.returncode, done.stdout + done.stderr


class Adapter(harness.Process):
    """It speaks for @vmm; start() again is what systemd does."""

    def __init__(self, host, vmm, role, daemon, migration_id, qmp_path=None, options=()):
        self.host, self.vmm, self.role = host, vmm, role
        self.name = host._name("adapter-" + role)
        self.log_path = host.dir / (self.name + ".log")
        self.command = [PROGRAM, role, "--id", migration_id, "--qmp", qmp_path or vmm.qmp_path,
                        "--socket", daemon.vmm_path, *options]
        self.earlier = ""
        self.start()
        host._started(self)

    def start(self):
        if self.log_path.exists():
            self.earlier = self.log()
        super().__init__(self.name, self.command, self.log_path)
        return self

    def log(self):
        return self.earlier + super().log()

    def wait_until_attached(self):
        harness.eventually(lambda: "attached" in super(Adapter, self).log() or self.popen.poll() is not None,
                           "%s has attached" % self.name)
        if self.popen.poll() is not None:
            raise harness.Failure("%s ended with status %d: %s" % (self.name, self.popen.returncode,
                                                                   self.log()))
        return self
