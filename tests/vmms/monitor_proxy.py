# SPDX-License-Identifier: Apache-2.0
"""Stands between a QEMU's monitor and its client, so that a test can act just before or just after QEMU
hears a command: there a client that is killed has done exactly so much."""
import json
import pathlib
import select
import socket
import threading

FDS_MAX = 8


class Proxy:
    """@hook(moment, command): moment "before" or "after" QEMU has obeyed; true: nothing more is passed on."""

    def __init__(self, host, vmm, hook):
        self.vmm, self.hook = vmm, hook
        self.path = pathlib.Path(str(vmm.qmp_path) + ".proxy")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        host.later(self.listener.close)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return  # closed: the test is over
            with client, socket.socket(socket.AF_UNIX) as monitor:
                try:
                    monitor.connect(str(self.vmm.qmp_path))
                    self._pass_on(client, monitor)
                except OSError:
                    pass  # either has ended

    def _pass_on(self, client, monitor):
        """Commands come one at a time, each in one piece; its answer is the message with its id."""
        while True:
            ready, _, _ = select.select([client, monitor], [], [])
            if monitor in ready:
                data = monitor.recv(65536)
                if not data:
                    return
                client.sendall(data)
            if client in ready:
                data, fds, _, _ = socket.recv_fds(client, 65536, FDS_MAX)
                if not data:
                    return
                try:
                    if self._command(client, monitor, data, fds):
                        return
                finally:
                    for fd in fds:
                        socket.close(fd)

    def _command(self, client, monitor, data, fds):
        """Whether to end."""
        message = json.loads(data)
        name = message["execute"]
        if self.hook("before", name):
            return True
        socket.send_fds(monitor, [data], fds)
        answer = b""
        while b'"id": %d' % message["id"] not in answer:
            more = monitor.recv(65536)
            if not more:
                break
            answer += more
        if self.hook("after", name):
            return True
        client.sendall(answer)
        return not answer


class KillAt:
    """A hook that kills the client at the n-th of such a command."""

    def __init__(self, moment, command, nth=1):
        self.moment, self.command, self.left = moment, command, nth
        self.adapter = None
        self.killed = threading.Event()

    def __call__(self, moment, command):
        if (moment, command) == (self.moment, self.command) and self.left:
            self.left -= 1
            if not self.left:
                self.adapter.popen.kill()
                self.adapter.popen.wait()
                self.killed.set()
                return True
        return False
