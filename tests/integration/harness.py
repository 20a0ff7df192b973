# SPDX-License-Identifier: Apache-2.0
"""Real processes for the tests: postcopyd, minivmm, and the control service's client.

Everything waits for what the processes say, with a deadline; nothing sleeps and hopes.
"""
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

import grpc

import control_client
import migration_dict

BUILD = pathlib.Path(os.environ.get("POSTCOPYD_BUILD", "build")).resolve()
TOKEN = "5a" * 32
SANITIZER_REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:",
                     "WARNING: ThreadSanitizer")


def sanitizer():
    options = json.loads((BUILD / "meson-info/intro-buildoptions.json").read_text())
    value = next(o["value"] for o in options if o["name"] == "b_sanitize")
    return "" if value == "none" else value


# How long a step may take before a test calls it hung: generous, for CI may share its CPUs, and no
# test waits so long unless it fails.
DEADLINE_S = 60


class Failure(Exception):
    """A process did not do what the test needs; the text says which and what."""


class ControlError(Exception):
    """The daemon's refusal: a gRPC status name, a line of text, and an ErrorReason."""

    def __init__(self, error):
        self.code = error.code().name
        self.message = error.details()
        self.reason = (control_client.error_info(error).reason
                       if control_client.DETAILS in dict(error.trailing_metadata() or ()) else "")
        super().__init__("%s: %s" % (self.code, self.message))


class Lines:
    """Lines from a descriptor, each waited for until a deadline."""

    def __init__(self, fd, what):
        self.fd = fd
        self.what = what
        self.rest = b""

    def next(self, deadline):
        """One line without its newline; None at end of file."""
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise Failure("%s said nothing in time" % self.what)
            data = os.read(self.fd, 65536)
            if not data:
                return None
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()


def eventually(condition, what, deadline_s=None):
    """Asks again until it holds: for what the kernel counts and nobody announces."""
    deadline = time.monotonic() + (deadline_s or DEADLINE_S)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure("not in time: %s" % what)
        select.select([], [], [], 0.01)


class Process:
    """A child with its log in a file; ended by its own pid, never by name."""

    def __init__(self, name, command, log, pass_fds=()):
        self.name = name
        self.log_path = log
        with open(log, "wb") as out:
            self.popen = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                          stdout=out, stderr=subprocess.STDOUT, pass_fds=pass_fds)

    @property
    def pid(self):
        return self.popen.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def wait(self):
        try:
            return self.popen.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise Failure("%s does not end" % self.name) from None

    def kill(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


def prepare_fields(role=None, token=None, source=None, map=None, parties=None, **limits):
    """PrepareRequest's fields, from names and from a token in hex digits."""
    fields = {}
    if role:
        fields["role"] = "ROLE_" + role.upper()
    if token:
        fields["token"] = bytes.fromhex(token)
    if source:
        fields["source_address"] = source
    if map and map != "auto":
        fields["map"] = "MAP_POLICY_" + map.upper()
    if parties:
        fields["parties"] = parties
    if limits:
        fields["limits"] = limits
    return fields


class Control:
    """One connection to a control service. What it answers is in migration_json.h's shape."""

    def __init__(self, path):
        # Its own connection: grpcio would share one among all channels to the same address.
        self.client = control_client.Client("unix:%s" % path,
                                            options=[("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.client.close()

    def call(self, method, id=None, **params):
        fields = {"id": id} if id is not None else {}
        convert = migration_dict.migration
        if method == "Prepare":
            fields.update(prepare_fields(**params))
        elif method == "SetToken":
            fields["token"] = bytes.fromhex(params["token"])
        elif method == "Start":
            fields["hold_switchover"] = not params.get("switchover", True)
            fields.update({name: params[name] for name in ("warm", "queue", "priority")
                           if name in params})
        elif method == "SetLimits":
            if "warm" in params:
                fields["warm"] = params.pop("warm")
            fields["limits"] = params
        elif method == "List":
            convert = lambda answer: {
                "migrations": [migration_dict.migration(m) for m in answer.migrations]}
        elif method == "ListMissing":
            convert = lambda answer: answer
            fields.update(params)
        elif method == "GetReport":
            convert = migration_dict.report
            fields.update(params)
        elif method == "Delete":
            convert = lambda answer: answer.deleted
            fields.update(params)
        else:
            fields.update(params)
        try:
            return convert(self.client.migrations(method, **fields))
        except grpc.RpcError as error:
            raise ControlError(error) from None

    def watch(self, id, interval_ms=200, deadline_s=None):
        """Each update, up to the one with the last state."""
        try:
            for update in self.client.migrations("Watch", id=id, timeout=deadline_s,
                                                 interval="%.3fs" % (interval_ms / 1000)):
                yield migration_dict.migration(update)
        except grpc.RpcError as error:
            raise ControlError(error) from None


class Daemon(Process):
    """postcopyd, waited for until it serves."""

    def __init__(self, directory, name, identity, allow, listen="127.0.0.1:0", extra=(),
                 prefix=(), build=BUILD):
        """@prefix goes before the command: what shall run it. @build: where its program is."""
        self.control_path = directory / (name + ".control")
        self.vmm_path = directory / (name + ".vmm")
        self.name = name
        self.log_path = directory / (name + ".log")
        self.listen = listen
        self.command = [*prefix, build / "src/postcopyd/postcopyd", "--config", "/dev/null",
                        "--control", self.control_path, "--vmm", self.vmm_path,
                        "--listen", listen, "--cert", identity.cert, "--key", identity.key,
                        "--ca", identity.ca]
        for san in allow:
            self.command += ["--allow-peer", san]
        self.command += list(extra)
        self.start()

    def spawn(self, ready_fd):
        Process.__init__(self, self.name, self.command + ["--ready-fd", ready_fd], self.log_path,
                         (ready_fd,))

    def start(self):
        ready, ready_child = os.pipe()
        self.spawn(ready_child)
        os.close(ready_child)
        try:
            self.port = self._wait_until_ready(Lines(ready, self.name))
        except Failure:
            self.kill()
            raise
        finally:
            os.close(ready)

    def _wait_until_ready(self, lines):
        line = lines.next(time.monotonic() + DEADLINE_S)
        if line is None:
            raise Failure("%s ended with status %d: %s" % (self.name, self.wait(), self.log()))
        if not line.startswith("READY port="):
            raise Failure("%s said \"%s\" where READY port=N was due" % (self.name, line))
        return int(line.partition("=")[2].split()[0])

    @property
    def address(self):
        return "%s:%d" % (self.listen.rpartition(":")[0], self.port)

    def control(self):
        return Control(self.control_path)

    def call(self, method, **params):
        with self.control() as control:
            return control.call(method, **params)

    def prepare_source(self, migration_id, token=TOKEN, **options):
        return self.call("Prepare", id=migration_id, role="source", token=token, **options)

    def prepare_destination(self, migration_id, source, token=TOKEN, **options):
        return self.call("Prepare", id=migration_id, role="destination", token=token,
                         source=source, **options)

    def state(self, migration_id):
        return self.call("Get", id=migration_id)["state"]

    def wait_for_state(self, migration_id, *states, deadline_s=None):
        """Watches until one of the states is there; fails on another last state."""
        migration = {"state": "unknown", "reason": "the daemon says nothing"}
        try:
            with self.control() as control:
                for migration in control.watch(migration_id, deadline_s=deadline_s):
                    if migration["state"] in states:
                        return migration
        except ControlError as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise
        raise Failure("%s: %s is %s (%s), waited for %s" % (
            self.name, migration_id, migration["state"], migration["reason"],
            " or ".join(states)))

    def resources(self):
        """What a leak would raise: descriptors, threads, mappings' resident KiB."""
        status = dict(line.split(":", 1) for line in
                      pathlib.Path("/proc/%d/status" % self.pid).read_text().splitlines())
        return {"fds": len(os.listdir("/proc/%d/fd" % self.pid)),
                "threads": int(status["Threads"]),
                "rss_kib": int(status["VmRSS"].split()[0])}

    def threads(self, name):
        """How many of its threads have that name."""
        names = []
        for comm in pathlib.Path("/proc/%d/task" % self.pid).glob("*/comm"):
            try:
                names.append(comm.read_text().strip())
            except OSError:
                pass  # it has ended since
        return names.count(name)

    def wait_for_log(self, text):
        eventually(lambda: text in self.log(), "\"%s\" in the log of %s" % (text, self.name))

    def shut_down(self):
        """Ends it as a service manager would, and sees that it ends well."""
        if self.popen.poll() is None:
            self.popen.terminate()
        status = self.wait()
        reports = [text for text in SANITIZER_REPORTS if text in self.log()]
        if status or reports:
            raise Failure("%s ended with status %d %s" % (self.name, status, reports))


class MiniVmm(Process):
    """minivmm with its status lines."""

    def __init__(self, directory, name, role, daemon, migration_id, flags=(), build=BUILD, **options):
        self.events = []
        self.status, status_child = os.pipe()
        command = [build / "src/minivmm/minivmm", "--role", role, "--socket", daemon.vmm_path,
                   "--id", migration_id, "--status-fd", status_child]
        command += ["--" + flag for flag in flags]
        for option, value in options.items():
            command += ["--" + option.replace("_", "-"), value]
        super().__init__(name, command, directory / (name + ".log"), (status_child,))
        os.close(status_child)
        self.lines = Lines(self.status, name)

    def wait_for_event(self, *events, deadline_s=None):
        """The next status line of one of these kinds; those before it are kept in .events."""
        deadline = time.monotonic() + (deadline_s or DEADLINE_S)
        while True:
            line = self.lines.next(deadline)
            if line is None:
                raise Failure("%s ended with status %d without \"%s\": %s" % (
                    self.name, self.wait(), " or ".join(events), self.log()))
            status = json.loads(line)
            self.events.append(status)
            if status["event"] in events:
                return status

    def kill(self):
        super().kill()
        if self.status >= 0:
            os.close(self.status)
            self.status = -1


class Host:
    """What one test starts, in a directory short enough for socket paths."""

    def __init__(self, pki):
        self.pki = pki
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="postcopyd-test-"))
        self.processes = []
        self.closers = []
        self.final_logs = []
        self.count = 0

    def _name(self, stem):
        self.count += 1
        return "%s%d" % (stem, self.count)

    def _started(self, process):
        self.processes.append(process)
        return process

    def daemon(self, name, identity=None, allow=None, kind=Daemon, **options):
        identity = identity or getattr(self.pki, name)
        allow = allow or ["postcopy:source", "postcopy:destination"]
        return self._started(kind(self.dir, self._name(name), identity, allow, **options))

    def minivmm(self, role, daemon, migration_id, **options):
        name = self._name("vmm-" + role)
        return self._started(MiniVmm(self.dir, name, role, daemon, migration_id, **options))

    def later(self, close):
        """Called at the end of the test, last come first."""
        self.closers.append(close)

    def logs(self):
        return [(process.name, process.log()) for process in self.processes]

    def close(self):
        """VMMs first: a daemon that ends under a guest is another test's business."""
        problems = []
        for close in reversed(self.closers):
            close()
        for process in self.processes:
            if not isinstance(process, Daemon):
                process.kill()
        for process in self.processes:
            if isinstance(process, Daemon):
                try:
                    process.shut_down()
                except Failure as failure:
                    problems.append(str(failure))
                process.kill()
        self.final_logs = self.logs()
        shutil.rmtree(self.dir)
        return problems
