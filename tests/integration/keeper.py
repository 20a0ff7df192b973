# SPDX-License-Identifier: Apache-2.0
"""A service manager as small as a test needs it: it keeps a daemon's descriptors as systemd does
(sd_notify(3): FDSTORE=1), and gives them to the next process of that daemon."""
import array
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time

import harness
from harness import Daemon, Failure

SYS_KCMP, KCMP_FILE = 312, 0
MESSAGE_MAX, FDS_MAX = 4096, 253
# Where the originals of what a child inherits lie, out of the way of what they become.
HIGH_FD = 500
LISTEN_FDS_START = 3

libc = ctypes.CDLL(None, use_errno=True)


def same_file(a, b):
    return libc.syscall(SYS_KCMP, os.getpid(), os.getpid(), KCMP_FILE, a, b) == 0


class Store:
    """The manager's side of a NOTIFY_SOCKET. A thread of its own reads it, for the daemon may
    say more than a socket holds while the test waits for something else."""

    def __init__(self, path, most=None):
        """@most: descriptors that are kept; more are dropped without a word, as systemd does."""
        self.path = path
        self.most = most
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.lock = threading.Lock()
        self.fds = []  # (name, descriptor)
        self.messages = []
        self.stopping = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while not self.stopping:
            self._receive()

    def _receive(self):
        data, ancillary, _, _ = self.sock.recvmsg(
            MESSAGE_MAX, socket.CMSG_LEN(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[:len(content) - len(content) % fds.itemsize])
        with self.lock:
            self._take(dict(line.partition("=")[::2] for line in data.decode().splitlines()),
                       list(fds))

    def _take(self, message, fds):
        name = message.get("FDNAME", "stored")
        if message.get("FDSTORE") == "1":
            for fd in fds:
                # As systemd does: once is enough, whatever the name.
                if any(same_file(fd, kept) for _, kept in self.fds):
                    os.close(fd)
                elif self.most is not None and len(self.fds) >= self.most:
                    os.close(fd)
                else:
                    self.fds.append((name, fd))
            fds = []
        if message.get("FDSTOREREMOVE") == "1":
            for kept in [kept for kept in self.fds if kept[0] == name]:
                self.fds.remove(kept)
                os.close(kept[1])
        for fd in fds:
            os.close(fd)
        self.messages.append(message)

    def settle(self):
        """All that the daemon has said until it ended is taken. Its last datagrams may be in the
        thread's hands: a message of our own comes after them."""
        mark = "MARK=%d" % time.monotonic_ns()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(mark.encode(), str(self.path))
        harness.eventually(lambda: self.said(mark), "the store has taken what was said")

    def said(self, line):
        key, _, value = line.partition("=")
        with self.lock:
            return any(message.get(key) == value for message in self.messages)

    def last(self, key):
        with self.lock:
            return next((m[key] for m in reversed(self.messages) if key in m), None)

    def names(self):
        with self.lock:
            return sorted(name for name, _ in self.fds)

    def close(self):
        self.stopping = True
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"BYE=1", str(self.path))
        self.thread.join()
        self.sock.close()
        for _, fd in self.fds:
            os.close(fd)


class Spawned:
    """What of subprocess.Popen a harness.Process uses."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def _reap(self, flags):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def poll(self):
        return self._reap(os.WNOHANG)

    def wait(self, timeout=None):
        try:
            harness.eventually(lambda: self.poll() is not None, "it ends",
                               timeout or harness.DEADLINE_S)
        except Failure:
            raise subprocess.TimeoutExpired("daemon", timeout) from None
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class KeptDaemon(Daemon):
    """A daemon with a manager that keeps its descriptors."""

    def __init__(self, directory, name, identity, allow, activated=(), env=None, most=None,
                 **options):
        """@most: descriptors in the store, told as systemd 254 tells it."""
        self.store = Store(directory / (name + ".notify"), most)
        self.activated = list(activated)  # (name, descriptor): sockets that the manager listens on
        self.env = dict(env or {})
        if most is not None:
            self.env["FDSTORE"] = str(most)
        super().__init__(directory, name, identity, allow, **options)

    def ready_arguments(self, fd):
        return ["--ready-fd", str(fd)]

    def spawn(self, ready_fd):
        """The child's 3.. are the descriptors, then the one that says READY."""
        with self.store.lock:
            given = self.activated + self.store.fds
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
                    for fd in [fd for _, fd in given] + [ready_fd]]
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1),
                   (os.POSIX_SPAWN_DUP2, log, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, LISTEN_FDS_START + i) for i, fd in enumerate(high)]
        env = {**os.environ, "NOTIFY_SOCKET": str(self.store.path), **self.env}
        if given:
            env.update(LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=":".join(n for n, _ in given))
        command = ["/bin/sh", "-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]
        command += [str(word) for word in self.command]
        command += self.ready_arguments(LISTEN_FDS_START + len(given))
        try:
            self.popen = Spawned(os.posix_spawn(command[0], command, env, file_actions=actions))
        finally:
            for fd in high + [log, null]:
                os.close(fd)

    def crash(self):
        """SIGKILL, and everything that it had said is in the store."""
        self.popen.kill()
        self.popen.wait()
        self.store.settle()

    def crash_and_restart(self):
        self.crash()
        self.start()

    def shut_down(self):
        try:
            super().shut_down()
        finally:
            self.store.close()


def drop_from_store(daemon, name):
    with daemon.store.lock:
        for entry in [entry for entry in daemon.store.fds if entry[0] == name]:
            daemon.store.fds.remove(entry)
            os.close(entry[1])


def restart(daemons):
    """All at the same time, then all again."""
    for daemon in daemons:
        daemon.crash()
    for daemon in daemons:
        daemon.start()
