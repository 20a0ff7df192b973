# SPDX-License-Identifier: Apache-2.0
"""A Firecracker, or what stands in for one (firecracker.py), and its adapter."""
import http.client
import json
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import time

import harness

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = harness.BUILD / "src/firecracker/postcopy-firecracker"


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class MicroVm:
    """A Firecracker and its adapter."""

    def __init__(self, host, daemon, role, migration_id="vm1", regions=None, huge=False,
                 adapter=True, jail=None):
        """@jail: its user; then --dir is by a link that leads elsewhere outside of the jail."""
        self.daemon, self.role, self.id = daemon, role, migration_id
        name = "%s-%s" % (role, migration_id)
        self.guest_waits = host.dir / (name + ".guest-waits")
        command = [sys.executable, str(HERE / "firecracker.py")]
        if jail:
            command += self.make_jail(host, host.dir / (name + ".jail"), jail)
        else:
            self.api_path = host.dir / (name + ".api")
            # A tmpfs, as --dir has to be.
            self.dir = pathlib.Path("/dev/shm/%s-%d-%s" % (host.dir.name, os.getpid(), name))
            self.dir.mkdir()
            self.their_dir = self.dir
            command += ["--api-sock", str(self.api_path)]
        command += ["--regions", regions] if regions else []
        command += ["--huge"] if huge else []
        command += ["--guest-waits", str(self.guest_waits)]
        self.vmm = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.lines = harness.Lines(self.vmm.stdout.fileno(), name)
        self.adapter = None
        self.env = {}
        self.log = open(host.dir / (name + ".log"), "ab")
        host.later(self.close)
        harness.eventually(self.api_path.exists, "its API socket is there")
        if adapter:
            self.start_adapter()

    def make_jail(self, host, root, uid):
        """As the jailer makes it, and a tmpfs. The arguments for it."""
        for name in ("", "dev", "run", "shm"):
            (root / name).mkdir()
        os.mknod(root / "dev/userfaultfd", stat.S_IFCHR | 0o600, os.stat("/dev/userfaultfd").st_rdev)
        os.chown(root / "dev/userfaultfd", uid, uid)
        os.chown(root / "run", uid, uid)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root / "shm"], check=True)
        host.later(lambda: subprocess.run(["umount", "-l", root / "shm"], check=True))
        (root / "link").symlink_to("/up")
        (root / "up").symlink_to("../../../../shm")
        self.api_path, self.dir = root / "run/api", root / "shm" / self.id
        self.their_dir = pathlib.Path("/link") / self.id
        return ["--jail", str(root), "--uid", str(uid), "--api-sock", "/run/api"]

    def start_adapter(self):
        self.adapter = subprocess.Popen(
            [str(PROGRAM), self.role, "--id", self.id, "--api", str(self.api_path), "--dir",
             str(self.their_dir), "--socket", str(self.daemon.vmm_path)], stderr=self.log,
            env={**os.environ, **self.env})

    def kill_adapter(self):
        self.adapter.kill()
        self.adapter.wait()

    def said(self):
        return pathlib.Path(self.log.name).read_text()

    def call(self, method, path, body=None, timeout=harness.DEADLINE_S):
        connection = Connection(self.api_path, timeout)
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status < 300, data
        return json.loads(data) if data else None

    def state(self):
        return self.call("GET", "/")["state"]

    def seen(self):
        line = self.lines.next(time.monotonic() + harness.DEADLINE_S)
        assert line, "Firecracker has ended: " + self.said()
        return json.loads(line)

    def close(self):
        for process in (self.adapter, self.vmm):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)
